//! `mcpctl` with servers in containers, from the example's manifests to a tool's answer.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod egress;
mod images;
mod vessel;

use mcp_hub_e2e::eventually;
use mcp_hub_engine_tests::{FIXTURE, Scene, UNITS, manifest, until};
use mcp_hub_test_cluster::EngineKind;
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("../../../../examples/docker/servers.yaml");
const CONVERSION: [&str; 8] = ["call", "units/convert", "--arg", "value=26.2", "--arg", "from=mi", "--arg", "to=km"];

/// The example as it is, but for the tag of tests' images.
fn example() -> String {
    assert!(EXAMPLE.contains("units:0.1.0"), "the example names the image of this version");
    EXAMPLE.replace("localhost/mcp-hub/units:0.1.0", UNITS)
}

/// A server of the fixture's image.
fn fixture(name: &str, more: &Value) -> String {
    let mut spec = json!({"args": ["stdio"]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    manifest(name, FIXTURE, &spec)
}

/// What the engine shows of each of our containers, by the server's name.
async fn inspected(scene: &Scene, name: &str) -> Option<Value> {
    let all = scene.containers(Some(format!("mcphub.io/name={name}"))).await;
    let container = all.first()?.split(' ').next()?.to_owned();
    let found = scene.api.inspect_container(&container, None).await.ok()?;
    Some(serde_json::to_value(found).unwrap())
}

async fn the_example_answers_and_leaves_nothing(kind: EngineKind) {
    let scene = Scene::up(kind).await;
    let mut hub = scene.hub(&scene.engine.address());
    hub.write("servers.yaml", &example());
    hub.start();
    for name in ["units", "units-http"] {
        let server = hub.wait_reason(name, "Ready");
        assert_eq!(server["status"]["runtime"], scene.kind().as_str());
        let port = server["status"]["endpoint"].as_str().unwrap();
        assert!(port.starts_with("http://127.0.0.1:"), "{port}");
    }
    assert_eq!(hub.ok(&CONVERSION).trim(), "26.2 mi = 42.1648128 km");
    assert!(hub.ok(&["tools"]).contains("units-http_convert"));

    let shown = inspected(&scene, "units").await.unwrap();
    let host = &shown["HostConfig"];
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["Memory"], 64 << 20);
    assert_eq!(shown["Config"]["User"], "65532:65532");
    // Killed by somebody, it is back, and by nobody else's doing than ours.
    let id = shown["Id"].as_str().unwrap().to_owned();
    scene.api.kill_container(&id, None).await.unwrap();
    until("another container runs", async || {
        let now = inspected(&scene, "units").await?;
        (now["Id"] != id && now["State"]["Running"] == true).then_some(())
    })
    .await;
    hub.wait_reason("units", "Ready");
    assert_eq!(hub.ok(&CONVERSION).trim(), "26.2 mi = 42.1648128 km");

    // A daemon that died leaves servers running, and the next one takes them as they are.
    let id = inspected(&scene, "units").await.unwrap()["Id"].clone();
    hub.kill_daemon();
    assert_eq!(inspected(&scene, "units").await.unwrap()["Id"], id);
    hub.start();
    assert_eq!(
        eventually("the call is answered", || {
            let answer = hub.mcpctl(&CONVERSION);
            answer.status.success().then(|| mcp_hub_e2e::text(&answer.stdout))
        })
        .trim(),
        "26.2 mi = 42.1648128 km"
    );
    assert_eq!(inspected(&scene, "units").await.unwrap()["Id"], id);

    let said = hub.ok(&["down", "--all"]);
    assert_eq!(scene.everybodys().await, Vec::<String>::new(), "{said}\n{}", hub.log());
}

#[tokio::test]
async fn on_docker_the_example_answers_and_leaves_nothing() {
    the_example_answers_and_leaves_nothing(EngineKind::Docker).await;
}

#[tokio::test]
async fn on_podman_the_example_answers_and_leaves_nothing() {
    the_example_answers_and_leaves_nothing(EngineKind::Podman).await;
}

async fn a_secret_reaches_the_server_and_nothing_else(kind: EngineKind) {
    let scene = Scene::up(kind).await;
    scene.load("fixture").await;
    let mut hub = scene.hub(&scene.engine.address());
    let env = json!({"env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}, {"name": "PLAIN", "value": "seen"}]});
    hub.write("servers.yaml", &fixture("github", &env));
    hub.ok_with_input(&["secret", "set", "github", "token"], "s3cr3t-value");
    hub.start();
    hub.wait_reason("github", "Ready");
    let read = |name: &str| hub.ok(&["call", "github/env", "--arg", &format!("name={name}")]);
    assert_eq!(read("TOKEN").trim(), "s3cr3t-value");
    assert_eq!(read("PLAIN").trim(), "seen");
    let shown = inspected(&scene, "github").await.unwrap().to_string();
    assert!(shown.contains("seen") && !shown.contains("s3cr3t-value"), "{shown}");
}

#[tokio::test]
async fn on_docker_a_secret_reaches_the_server_and_nothing_else() {
    a_secret_reaches_the_server_and_nothing_else(EngineKind::Docker).await;
}

/// A server that was taken over by somebody reaches no other server, whatever address it tries.
async fn servers_do_not_reach_each_other(kind: EngineKind) {
    let scene = Scene::up(kind).await;
    scene.load("fixture").await;
    let mut hub = scene.hub(&scene.engine.address());
    // What is kept from another is not refused but lost, so that a call ends by its time.
    let limit = json!({"timeouts": {"call": "3s"}});
    hub.write("servers.yaml", &format!("{}{}", fixture("one", &limit), fixture("two", &limit)));
    hub.start();
    let mut addresses = Vec::new();
    for name in ["one", "two"] {
        hub.wait_reason(name, "Ready");
        let networks = inspected(&scene, name).await.unwrap()["NetworkSettings"]["Networks"].clone();
        let network = networks.as_object().unwrap().values().next().unwrap().clone();
        addresses.push(network["IPAddress"].as_str().unwrap().to_owned());
    }
    let health = |address: &str| format!("url=http://{address}:7337/healthz");
    let own = hub.ok(&["call", "one/fetch", "--arg", &health("127.0.0.1")]);
    assert!(own.contains("200 OK"), "the means of this test work: {own}");
    let other = hub.mcpctl(&["call", "one/fetch", "--arg", &health(&addresses[1])]);
    assert!(!other.status.success(), "one reached two: {}", mcp_hub_e2e::text(&other.stdout));
}

#[tokio::test]
async fn on_docker_servers_do_not_reach_each_other() {
    servers_do_not_reach_each_other(EngineKind::Docker).await;
}

#[tokio::test]
async fn on_podman_servers_do_not_reach_each_other() {
    servers_do_not_reach_each_other(EngineKind::Podman).await;
}
