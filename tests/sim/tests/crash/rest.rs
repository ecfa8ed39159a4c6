//! A server that nobody calls goes to rest and is woken, whatever is cut off on the way.

use std::time::Duration;

use http::StatusCode;
use mcp_hub_dataplane_api::gateway::Target;
use mcp_hub_sim::bridges::Fate;
use mcp_hub_sim::canonical::{EndState, assert_same, end_state};
use mcp_hub_sim::oracle::{THREE_PASSES, calm, calm_so_far, condition, is_at_rest, truth};
use mcp_hub_sim::specs::{hub, image, server};
use mcp_hub_sim::world::{LONG_QUIET, QUIET, installation};
use mcp_hub_sim::{Cut, Lost, Operator, World};
use serde_json::{Value, json};

/// A server that sleeps after a minute without calls, and a hub.
fn install(world: &World) {
    let mut spec = image("registry.example.com/time:1");
    spec["lifecycle"] = json!({"mode": "onDemand", "idleTimeout": "1m"});
    world.apply(&server("time", &spec));
    world.apply(&hub("default", &json!({})));
}

fn time(world: &World) -> Value {
    world.api.get("MCPServer", "team", "time").unwrap()
}

fn uid(world: &World, kind: &str, name: &str) -> String {
    world.api.get(kind, "team", name).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn replicas(world: &World) -> u64 {
    world.api.get("Deployment", "team", "mcp-time").unwrap()["spec"]["replicas"].as_u64().unwrap()
}

/// As a gateway of the hub with a call for the server.
async fn call(world: &World, operator: &Operator) -> StatusCode {
    let hub = uid(world, "MCPHub", "default");
    operator.wake(&hub, &installation().wake_token(&hub), &uid(world, "MCPServer", "time")).await
}

/// What the configurations of the hub's gateways say of the server: whether it sleeps, and whether they know what it offers.
fn told(world: &World) -> Vec<(bool, bool)> {
    let gateways = world.api.list("Pod").into_iter().filter_map(|pod| world.gateways.config(&pod));
    let of = |upstream: &mcp_hub_dataplane_api::gateway::Upstream| {
        (upstream.target == Target::Asleep, upstream.definitions.is_some())
    };
    gateways.map(|config| of(&config.upstreams[0])).collect()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_nobody_calls_has_no_pod_and_a_call_brings_it_back() {
    let world = World::new();
    install(&world);
    let operator = world.operator("one");
    world.settle(QUIET).await;
    let awake = end_state(&world);
    let own = |entry: &mcp_hub_fakeapi::Entry| entry.kind != "Event" && entry.name.ends_with("time");
    let written = world.writes().into_iter().filter(own).count();
    assert!(written <= 5, "{written} writes for one server");

    // The bridge has stopped the program; a call is under way all the same, of which it does not know yet.
    world.gateways.call(&uid(&world, "MCPServer", "time"), true);
    world.fate("time", Fate::Asleep);
    world.settle(LONG_QUIET).await;
    assert_eq!(replicas(&world), 1);
    let before = operator.line.writes();
    world.gateways.call(&uid(&world, "MCPServer", "time"), false);
    world.settle(LONG_QUIET).await;
    assert_eq!((replicas(&world), is_at_rest(&time(&world))), (0, true), "{}", time(&world)["status"]);
    assert_eq!(told(&world), [(true, true), (true, true)]);
    truth(&world, "at rest");
    // Deployment, status, configuration, the hub's status.
    assert_eq!(operator.line.writes() - before, 4);
    calm(&world, THREE_PASSES, "at rest").await;

    // Neither another operator nor other gateways wake it, and these know what it offers.
    operator.kill().await;
    world.api.clear_log();
    let operator = world.operator("two");
    world.settle(QUIET).await;
    calm_so_far(&world, "another operator");
    for pod in world.api.list("Pod") {
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert!(world.api.delete("Pod", "team", name));
    }
    world.settle(LONG_QUIET).await;
    assert_eq!((replicas(&world), told(&world)), (0, vec![(true, true), (true, true)]));
    truth(&world, "new gateways");

    // Only those who have the hub's token can ask, and only for its servers.
    let (hub, server) = (uid(&world, "MCPHub", "default"), uid(&world, "MCPServer", "time"));
    let token = installation().wake_token(&hub);
    assert_eq!(operator.wake(&hub, &installation().wake_token("other"), &server).await, StatusCode::UNAUTHORIZED);
    assert_eq!(operator.wake("other", &token, &server).await, StatusCode::UNAUTHORIZED);
    assert_eq!(operator.wake(&hub, &token, "other").await, StatusCode::NOT_FOUND);
    world.settle(QUIET).await;
    assert_eq!(replicas(&world), 0);

    world.bridges.set("team/time", Fate::Ready);
    assert_eq!(call(&world, &operator).await, StatusCode::ACCEPTED);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(replicas(&world), 1, "at once");
    world.settle(LONG_QUIET).await;
    truth(&world, "awake");
    assert_same(&end_state(&world), &awake, "awake again");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_no_hub_offers_any_more_runs_again() {
    let world = World::new();
    install(&world);
    let _operator = world.operator("one");
    world.settle(QUIET).await;
    world.fate("time", Fate::Asleep);
    world.settle(LONG_QUIET).await;
    assert_eq!(replicas(&world), 0);
    assert!(world.api.delete("MCPHub", "team", "default"));
    world.settle(LONG_QUIET).await;
    assert_eq!(replicas(&world), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_was_called_since_it_was_last_asked_keeps_its_pod() {
    // It is asked about once a minute, whenever that is.
    for seconds in (0..60).step_by(5) {
        let world = World::new();
        install(&world);
        let _operator = world.operator("one");
        world.settle(QUIET).await;
        world.gateways.call(&uid(&world, "MCPServer", "time"), true);
        world.fate("time", Fate::Asleep);
        world.settle(LONG_QUIET).await;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let made =
            |world: &World| world.api.get("Deployment", "team", "mcp-time").unwrap()["metadata"]["generation"].clone();
        let before = made(&world);
        // By a gateway that is no more; those that there are know of no call.
        world.bridges.set("team/time", Fate::Ready);
        world.gateways.call(&uid(&world, "MCPServer", "time"), false);
        world.settle(LONG_QUIET).await;
        assert_eq!((replicas(&world), made(&world)), (1, before), "{seconds} s later");
        truth(&world, "called");
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_node_for_half_a_minute() {
    let world = World::new();
    install(&world);
    let operator = world.operator("one");
    world.settle(QUIET).await;
    world.fate("time", Fate::Asleep);
    world.settle(LONG_QUIET).await;
    assert_eq!(told(&world), [(true, true), (true, true)]);
    // Another pod has to go first.
    world.bridges.set("team/time", Fate::NoRoom);
    assert_eq!(call(&world, &operator).await, StatusCode::ACCEPTED);
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(replicas(&world), 1);
    assert_eq!(told(&world), [(true, true), (true, true)], "calls are held");
    world.fate("time", Fate::Ready);
    world.settle(LONG_QUIET).await;
    truth(&world, "there was room in time");

    world.fate("time", Fate::Asleep);
    world.settle(LONG_QUIET).await;
    assert_eq!(replicas(&world), 0);
    world.bridges.set("team/time", Fate::NoRoom);
    call(&world, &operator).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(told(&world), [(false, false), (false, false)], "whoever waits is told");
    assert_eq!(condition(&time(&world), "Ready").unwrap()["reason"], "Unschedulable");
    world.fate("time", Fate::Ready);
    world.settle(LONG_QUIET).await;
    truth(&world, "there is room");
    world.assert_clean();
}

/// One rest and one call, with a cut; gives the state at rest, the state at the end, and the writes.
async fn run(cut: Option<Cut>) -> (EndState, EndState, u64) {
    let of = format!("{cut:?}");
    let world = World::new();
    install(&world);
    let mut operator = world.operator("one");
    world.settle(QUIET).await;
    let line = operator.line.clone();
    let before = line.writes();
    if let Some(cut) = cut {
        line.cut(Cut { at: before + cut.at, ..cut });
    }
    world.fate("time", Fate::Asleep);
    world.settle(LONG_QUIET).await;
    if line.is_dead() {
        operator.kill().await;
        operator = world.operator("two");
        world.settle(LONG_QUIET).await;
    }
    truth(&world, &format!("{of}, at rest"));
    assert!(is_at_rest(&time(&world)), "{of}");
    let at_rest = end_state(&world);

    world.bridges.set("team/time", Fate::Ready);
    call(&world, &operator).await;
    world.settle(QUIET).await;
    if line.is_dead() && operator.line.is_dead() {
        operator.kill().await;
        operator = world.operator("two");
        // A gateway asks as long as the call waits.
        call(&world, &operator).await;
        world.settle(QUIET).await;
    }
    truth(&world, &format!("{of}, awake"));
    assert!(!is_at_rest(&time(&world)), "{of}");
    assert!(cut.is_none() || line.was_cut(), "{of} was not reached");
    let writes = line.writes() - before;
    // Whoever comes next has nothing to do.
    operator.kill().await;
    world.api.clear_log();
    let _next = world.operator("three");
    tokio::time::sleep(QUIET).await;
    calm_so_far(&world, &of);
    world.assert_clean();
    (at_rest, end_state(&world), writes)
}

#[tokio::test(start_paused = true)]
async fn any_write_of_a_rest_and_a_call_may_be_lost_with_or_without_the_operator() {
    let (at_rest, awake, writes) = run(None).await;
    assert!(writes <= 12, "{writes}");
    for at in 1..=writes {
        for (lost, fatal) in
            [(Lost::Request, false), (Lost::Response, false), (Lost::Request, true), (Lost::Response, true)]
        {
            let cut = Cut { at, lost, fatal };
            let (got_at_rest, got_awake, _) = run(Some(cut)).await;
            assert_same(&got_at_rest, &at_rest, &format!("{cut:?}, at rest"));
            assert_same(&got_awake, &awake, &format!("{cut:?}, awake"));
        }
    }
}
