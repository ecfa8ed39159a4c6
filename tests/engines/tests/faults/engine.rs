//! An engine that is slow, asked for much at once, or stopped in the middle of what it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use mcp_hub_e2e::{Hub, condition, eventually, fixture};
use mcp_hub_engine_tests::{Scene, UNITS, manifest, until, until_ready};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::plan::plan;
use mcp_hub_reconcile::ports::{Runtime, RuntimeEvent};
use mcp_hub_reconcile::workload::Workload;
use mcp_hub_test_cluster::{EngineKind, Tap, Verdict};
use serde_json::json;

/// Containers that are made at one time at most.
const PARALLEL: usize = 8;

fn servers(count: usize) -> String {
    (0..count).map(|number| manifest(&format!("units-{number}"), UNITS, &json!({}))).collect()
}

fn until_all_are_ready(hub: &Hub, count: usize) {
    for number in 0..count {
        hub.wait_reason(&format!("units-{number}"), "Ready");
    }
}

/// Every server goes, and with the last one what they shared.
async fn all_goes(scene: &Scene, hub: &Hub) {
    let said = hub.ok(&["down", "--all"]);
    assert_eq!(scene.everybodys().await, Vec::<String>::new(), "{said}\n{}", hub.log());
}

#[tokio::test]
async fn fifty_servers_at_once_are_made_some_at_a_time_and_leave_nothing() {
    let scene = Scene::up(EngineKind::Docker).await;
    let tap = Tap::before(&scene.engine, |_| Verdict::Pass).unwrap();
    let mut hub = scene.hub(&tap.address());
    hub.write("servers.yaml", &servers(50));
    hub.start();
    until_all_are_ready(&hub, 50);
    let most = tap.at_once("POST /containers/create").max(tap.at_once("/start"));
    assert!((2..=PARALLEL).contains(&most), "{most} at one time");
    assert_eq!(scene.containers(Some("mcphub.io/uid".to_owned())).await.len(), 50);
    let networks = scene.api.list_networks(None).await.unwrap();
    let ours = networks.iter().filter(|network| network.name.as_deref().unwrap_or_default().starts_with("mcphub"));
    assert_eq!(ours.count(), 1, "a namespace has one network: {networks:?}");
    all_goes(&scene, &hub).await;
}

#[tokio::test]
async fn a_slow_engine_takes_longer_and_nothing_else() {
    let scene = Scene::up(EngineKind::Docker).await;
    let slow = |_: &str| {
        std::thread::sleep(Duration::from_millis(500));
        Verdict::Pass
    };
    let tap = Tap::before(&scene.engine, slow).unwrap();
    let mut hub = scene.hub(&tap.address());
    hub.write("servers.yaml", &servers(3));
    hub.start();
    until_all_are_ready(&hub, 3);
    assert_eq!(scene.containers(Some("mcphub.io/uid".to_owned())).await.len(), 3);
    all_goes(&scene, &hub).await;
}

/// More servers than passes run at a time, so that all of those wait for the engine.
const MANY: usize = 40;

#[tokio::test]
async fn an_engine_that_stops_in_the_middle_holds_up_no_other_server_and_is_waited_for() {
    let scene = Scene::up(EngineKind::Docker).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let tap = Tap::before(&scene.engine, move |line| {
        counted.fetch_add(usize::from(line.starts_with("POST /containers/create")), Ordering::Relaxed);
        Verdict::Pass
    })
    .unwrap();
    let mut hub = scene.hub(&tap.address());
    hub.write("servers.yaml", &servers(MANY));
    hub.start();
    // Some are there, some are being made, and most wait for their turn.
    eventually("some containers are made", || (made.load(Ordering::Relaxed) > 6).then_some(()));
    let paused = scene.engine.pause();
    hub.write("late.yaml", &fixture("late", &[]));
    hub.wait_reason("late", "Ready");
    assert_eq!(hub.ok(&["call", "late/echo", "--arg", "text=hello"]).trim(), "hello");
    // What cannot be done is given up and said, not waited for without end.
    let given_up = (0..MANY).map(|number| format!("units-{number}")).collect::<Vec<_>>();
    eventually("the engine is said not to answer", || {
        given_up
            .iter()
            .filter_map(|name| hub.server(name))
            .find(|server| condition(server, "Ready").is_some_and(|ready| ready["reason"] == "EngineUnreachable"))
    });
    drop(paused);
    until_all_are_ready(&hub, MANY);
    assert_eq!(scene.containers(Some("mcphub.io/uid".to_owned())).await.len(), MANY);
    all_goes(&scene, &hub).await;
}

#[tokio::test]
async fn an_engine_that_is_away_is_said_to_be_and_what_ran_is_taken_over_when_it_is_back() {
    let mut scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    let workload = scene.resolved(&*runtime, &scene.server("away", json!({}))).await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;

    let mut events = runtime.events();
    scene.engine.kill().unwrap();
    let refused = until("the engine is missed", async || runtime.observe(&workload.owner).await.err()).await;
    assert_eq!((refused.reason, refused.retry), ("EngineUnreachable", Retry::Backoff));
    assert!(refused.hint.is_some());
    scene.engine.start().unwrap();
    // Without being asked it tells that everything is to be looked at.
    until("a gap is told", async || match events.next().await {
        Some(RuntimeEvent::Resync) => Some(()),
        _ => None,
    })
    .await;
    // The engine ended its containers with itself, or did not; either way the next pass makes it right.
    until("the server runs again", async || {
        let lowered = runtime.lower(&Workload::Server(Box::new(workload.clone()))).ok()?;
        let observed = runtime.observe(&workload.owner).await.ok()?;
        for step in plan(&lowered, &observed) {
            runtime.execute(&workload.owner, &step).await.ok()?;
        }
        let bridge = runtime.observe(&workload.owner).await.ok()?.bridge?;
        (bridge.phase == mcp_hub_dataplane_api::status::Phase::Ready).then_some(())
    })
    .await;
    scene.remove(&*runtime, &workload.owner).await;
    assert_eq!(scene.everything().await, Vec::<String>::new());
}
