//! The crash sweep: whichever write is cut off, before or after it took place, whether the operator lives on or another
//! takes its place, all ends where an undisturbed installation ends, and then nothing is written.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use mcp_hub_sim::canonical::{EndState, assert_same, end_state};
use mcp_hub_sim::oracle::{THREE_PASSES, calm, calm_so_far, truth};
use mcp_hub_sim::specs::{hub, image, remote, server, with_secret};
use mcp_hub_sim::world::QUIET;
use mcp_hub_sim::{Cut, Lost, World};
use serde_json::json;

#[path = "crash/rest.rs"]
mod rest;

fn install(world: &World) {
    world.secret("github", "token", "a-token-of-github");
    world.secret("docs", "token", "a-token-of-docs");
    world.apply(&server("github", &with_secret("registry.example.com/github:1")));
    world.apply(&server("time", &image("registry.example.com/time:1")));
    world.apply(&server("docs", &remote()));
    world.apply(&hub("default", &json!({})));
}

/// Installs everything and waits for the end; gives how many writes that took.
async fn run(cut: Option<Cut>) -> (EndState, u64, World) {
    let of = format!("{cut:?}");
    let world = World::new();
    install(&world);
    let first = world.operator("one");
    if let Some(cut) = cut {
        first.line.cut(cut);
    }
    let line = first.line.clone();
    let mut alive = Some(first);
    if cut.is_some_and(|cut| cut.fatal) {
        tokio::time::timeout(QUIET * 4, line.died()).await.expect("the cut is reached");
        alive.take().unwrap().kill().await;
        alive = Some(world.operator("two"));
    }
    world.settle(QUIET).await;
    assert!(cut.is_none() || line.was_cut(), "{of} was not reached");
    let state = end_state(&world);
    truth(&world, &of);
    let writes = line.writes();
    match cut {
        None => calm(&world, THREE_PASSES, &of).await,
        // Each new operator makes a pass over everything, and costs less to play than an hour.
        Some(_) => {
            world.api.clear_log();
            for name in ["three", "four", "five"] {
                alive.take().unwrap().kill().await;
                alive = Some(world.operator(name));
                tokio::time::sleep(QUIET).await;
            }
            calm_so_far(&world, &of);
        }
    }
    assert_same(&end_state(&world), &state, &format!("{of}, three passes later"));
    world.assert_clean();
    drop(alive);
    (state, writes, world)
}

#[tokio::test(start_paused = true)]
async fn an_undisturbed_installation_is_ready_and_writes_no_more_than_it_must() {
    let (state, writes, world) = run(None).await;
    for name in ["github", "time", "docs"] {
        let server = world.api.get("MCPServer", "team", name).unwrap();
        assert!(mcp_hub_sim::oracle::is_ready(&server), "{name}: {}", server["status"]);
    }
    assert!(writes <= 32, "{writes} writes");
    assert_eq!(state.len(), 22, "{:#?}", state.keys());
}

/// Sweeps one kind of cut over all writes of an undisturbed run.
async fn sweep(lost: Lost, fatal: bool) {
    let (want, writes, _) = run(None).await;
    for at in 1..=writes {
        let cut = Cut { at, lost, fatal };
        let (got, ..) = run(Some(cut)).await;
        assert_same(&got, &want, &format!("{cut:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn any_write_may_be_lost() {
    sweep(Lost::Request, false).await;
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_any_write_may_be_lost() {
    sweep(Lost::Response, false).await;
}

#[tokio::test(start_paused = true)]
async fn the_operator_may_be_killed_before_any_write() {
    sweep(Lost::Request, true).await;
}

#[tokio::test(start_paused = true)]
async fn the_operator_may_be_killed_after_any_write() {
    sweep(Lost::Response, true).await;
}
