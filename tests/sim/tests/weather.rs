//! Bad weather at the API server: outages, refusals, conflicts, silence, watches that break, lag or miss what happened.
//! The end is always that of good weather, and nobody storms the server on the way.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use mcp_hub_fakeapi::{Fault, Verb, When};
use mcp_hub_sim::canonical::{EndState, assert_same, end_state};
use mcp_hub_sim::oracle::{THREE_PASSES, calm, truth};
use mcp_hub_sim::specs::{NAMESPACE, hub, image, remote, server, with_secret};
use mcp_hub_sim::world::{LONG_QUIET, OPERATOR, QUIET};
use mcp_hub_sim::{Operator, World};
use serde_json::{Value, json};

#[path = "weather/walks.rs"]
mod walks;

const KINDS: [&str; 8] =
    ["MCPServer", "MCPHub", "Deployment", "Service", "NetworkPolicy", "Secret", "Pod", "PodDisruptionBudget"];
/// Far more writes than any of these stories needs, and far fewer than a storm makes in minutes.
const STORM: usize = 120;

fn install(world: &World) {
    world.secret("github", "token", "a-token-of-github");
    world.secret("docs", "token", "a-token-of-docs");
    world.apply(&server("github", &with_secret("registry.example.com/github:1")));
    world.apply(&server("time", &image("registry.example.com/time:1")));
    world.apply(&server("docs", &remote()));
    world.apply(&hub("default", &json!({})));
}

/// New images, a new option of the hub, a server more and one less.
fn change(world: &World) {
    world.apply(&server("github", &with_secret("registry.example.com/github:2")));
    world.apply(&server("more", &image("registry.example.com/more:1")));
    world.apply(&hub("default", &json!({"naming": {"separator": "-"}})));
    world.api.delete("MCPServer", NAMESPACE, "time");
}

/// What these deeds end in when nothing goes wrong.
async fn undisturbed(deeds: &[fn(&World)]) -> EndState {
    let world = World::new();
    let _operator = world.operator("calm");
    for deed in deeds {
        deed(&world);
        world.settle(QUIET).await;
    }
    truth(&world, "undisturbed");
    end_state(&world)
}

/// Waits for the end of the weather's effects and compares.
async fn converges(world: &World, want: &EndState, of: &str) {
    let writes = world.writes();
    assert!(writes.len() < STORM, "{of}: {} writes", writes.len());
    world.settle(LONG_QUIET).await;
    assert_same(&end_state(world), want, of);
    truth(world, of);
    calm(world, THREE_PASSES, of).await;
    world.assert_clean();
}

fn installed() -> (World, Operator) {
    let world = World::new();
    let operator = world.operator("one");
    install(&world);
    (world, operator)
}

#[tokio::test(start_paused = true)]
async fn the_api_server_may_be_down_for_a_minute() {
    let want = undisturbed(&[install, change]).await;
    for fault in [Fault::RequestLost, Fault::Answer(503), Fault::Answer(500), Fault::TooManyRequests(5)] {
        let of = format!("{fault:?}");
        let (world, _operator) = installed();
        world.settle(QUIET).await;
        change(&world);
        world.api.inject(When::any().user_agent(OPERATOR).always(), fault);
        world.api.clear_log();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let requests = world.api.log().len();
        assert!(requests < 1000, "{of}: {requests} requests in a minute of outage");
        world.api.clear_faults();
        converges(&world, &want, &of).await;
    }
}

#[tokio::test(start_paused = true)]
async fn writes_may_be_refused_for_a_while() {
    let want = undisturbed(&[install]).await;
    let faults = [
        Fault::Answer(409),
        Fault::Answer(500),
        Fault::Answer(503),
        Fault::Answer(504),
        Fault::TooManyRequests(2),
        Fault::RequestLost,
        Fault::ResponseLost,
        Fault::Hang,
        Fault::HangAfter,
    ];
    for fault in faults {
        let of = format!("{fault:?}");
        let (world, _operator) = installed();
        // One in between, and some in a row.
        world.api.inject(When::write().user_agent(OPERATOR).nth(3), fault);
        world.api.inject(When::write().user_agent(OPERATOR).nth(7).times(8), fault);
        converges(&world, &want, &of).await;
        assert_eq!(world.api.pending_faults(), 0, "{of}");
    }
}

#[tokio::test(start_paused = true)]
async fn reads_may_fail_for_a_while() {
    let want = undisturbed(&[install]).await;
    for verb in [Verb::Get, Verb::List, Verb::Watch] {
        for fault in
            [Fault::Answer(500), Fault::Answer(403), Fault::TooManyRequests(2), Fault::ResponseLost, Fault::Hang]
        {
            let of = format!("{verb:?} {fault:?}");
            let (world, _operator) = installed();
            world.api.inject(When::verb(verb).user_agent(OPERATOR).times(12), fault);
            converges(&world, &want, &of).await;
            assert_eq!(world.api.pending_faults(), 0, "{of}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn any_cache_may_stand_still() {
    let want = undisturbed(&[install, change]).await;
    for kind in KINDS {
        for restarted in [false, true] {
            let of = format!("{kind}, restarted: {restarted}");
            let (world, mut operator) = installed();
            world.settle(QUIET).await;
            world.api.clear_log();
            world.api.hold(kind);
            delete_all_children(&world);
            change(&world);
            if restarted {
                operator.kill().await;
                operator = world.operator("two");
            }
            tokio::time::sleep(Duration::from_secs(300)).await;
            world.api.release(kind);
            converges(&world, &want, &of).await;
            drop(operator);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn watches_may_break_and_history_be_compacted() {
    let want = undisturbed(&[install, change]).await;
    for kind in KINDS {
        for how in [mcp_hub_fakeapi::Cut::Broken, mcp_hub_fakeapi::Cut::Closed] {
            let of = format!("{kind} {how:?}");
            let (world, _operator) = installed();
            world.settle(QUIET).await;
            world.api.clear_log();
            // While it stands still and breaks, the watch learns nothing; then what it asks for is forgotten.
            world.api.hold(kind);
            world.api.cut_watches(kind, how);
            delete_all_children(&world);
            change(&world);
            world.api.release(kind);
            world.api.compact();
            converges(&world, &want, &of).await;
        }
    }
}

fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "mcp-hub"
}

fn name(object: &Value) -> (&str, &str) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

fn children(world: &World, kinds: &[&'static str]) -> Vec<(&'static str, Value)> {
    let of = |kind: &'static str| world.api.list(kind).into_iter().filter(is_ours).map(move |object| (kind, object));
    kinds.iter().copied().flat_map(of).collect()
}

fn delete_all_children(world: &World) {
    for (kind, child) in children(world, &KINDS) {
        let (namespace, name) = name(&child);
        world.api.delete(kind, namespace, name);
    }
}

#[tokio::test(start_paused = true)]
async fn each_deleted_child_is_back_in_a_moment() {
    let (world, _operator) = installed();
    world.settle(QUIET).await;
    let want = end_state(&world);
    let made = children(&world, &KINDS);
    assert!(made.len() > 10, "{}", made.len());
    for (kind, child) in made.into_iter().filter(|(kind, _)| *kind != "Pod") {
        let (namespace, name) = name(&child);
        world.api.delete(kind, namespace, name);
        // Secrets are looked at, not watched.
        let soon = Duration::from_secs(if kind == "Secret" { 11 } else { 1 });
        let back = |api: &mcp_hub_fakeapi::FakeApi| api.get(kind, namespace, name).is_some();
        world.api.wait_until(soon, back).await.unwrap_or_else(|late| panic!("{kind} {name}: {late}"));
    }
    converges(&world, &want, "every child deleted once").await;
}

type Edit = fn(&mut Value);

/// What people do to objects that they do not own.
fn edits(kind: &str) -> Vec<(&'static str, Edit)> {
    match kind {
        "Deployment" => vec![
            ("another image", |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1")),
            ("more replicas", |d| d["spec"]["replicas"] = json!(5)),
            ("another container", |d| {
                let more = json!({"name": "evil", "image": "evil:1"});
                d["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(more);
            }),
            ("the node's network", |d| d["spec"]["template"]["spec"]["hostNetwork"] = json!(true)),
            ("no labels", |d| d["metadata"]["labels"] = json!({})),
            ("labels of another", |d| d["metadata"]["labels"]["mcphub.io/owner-uid"] = json!("evil")),
            ("no owner", |d| d["metadata"]["ownerReferences"] = json!([])),
            ("no annotations", |d| d["metadata"]["annotations"] = json!({})),
        ],
        "Service" => vec![
            ("another selector", |s| s["spec"]["selector"] = json!({"app": "evil"})),
            ("another port", |s| s["spec"]["ports"][0]["port"] = json!(81)),
            ("no labels", |s| s["metadata"]["labels"] = json!({})),
        ],
        "NetworkPolicy" => vec![
            ("open to all", |p| p["spec"]["ingress"] = json!([{}])),
            ("of no pods", |p| p["spec"]["podSelector"] = json!({"matchLabels": {"app": "evil"}})),
        ],
        "PodDisruptionBudget" => vec![("no budget", |b| b["spec"]["maxUnavailable"] = json!("100%"))],
        "Secret" => vec![
            ("another key", |s| s["data"]["more"] = json!("bW9yZQ==")),
            ("other data", |s| s["data"] = json!({"token": "ZXZpbA=="})),
        ],
        _ => Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn each_edit_of_a_child_is_mended() {
    let (world, _operator) = installed();
    world.settle(QUIET).await;
    let want = end_state(&world);
    let mut count = 0;
    for (kind, child) in children(&world, &KINDS) {
        let (namespace, name) = name(&child);
        for (what, edit) in edits(kind) {
            world.api.edit(kind, namespace, name, edit).unwrap();
            world.settle(QUIET).await;
            assert_same(&end_state(&world), &want, &format!("{kind} {name}: {what}"));
            count += 1;
        }
    }
    assert!(count > 20, "{count} edits");
    converges(&world, &want, "all edits").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_to_stop_stops_though_its_labels_name_another_owner() {
    let (world, _operator) = installed();
    world.settle(QUIET).await;
    let relabel = |object: &mut Value| object["metadata"]["labels"]["mcphub.io/owner-uid"] = json!("evil");
    world.api.edit("Deployment", NAMESPACE, "mcp-time", relabel).unwrap();
    let mut stopped = image("registry.example.com/time:1");
    stopped["paused"] = json!(true);
    world.apply(&server("time", &stopped));
    world.settle(QUIET).await;
    assert!(world.api.get("Deployment", NAMESPACE, "mcp-time").is_none());
    truth(&world, "stopped");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn answers_may_come_long_after_their_effect() {
    let want = undisturbed(&[install, change]).await;
    let (world, operator) = installed();
    world.settle(QUIET).await;
    operator.line.delay_answers(Duration::from_secs(5));
    // Whatever an answer tells of has changed or gone in the meantime.
    for _ in 0..4 {
        change(&world);
        world.apply(&server("time", &image("registry.example.com/time:2")));
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.api.delete("MCPServer", NAMESPACE, "time");
        world.api.delete("MCPServer", NAMESPACE, "more");
        delete_all_children(&world);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    change(&world);
    world.settle(QUIET).await;
    operator.line.delay_answers(Duration::ZERO);
    converges(&world, &want, "late answers").await;
}
