//! What the examples say is what happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use mcp_hub_crds::MCPServer;
use mcp_hub_kubernetes_tests::{Place, image, ready_reason};
use serde_json::json;

fn example(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/kubernetes").join(file);
    let released = format!("localhost/mcp-hub/units:{}", env!("CARGO_PKG_VERSION"));
    std::fs::read_to_string(path).unwrap().replace(&released, &image("units"))
}

#[tokio::test]
async fn the_examples_answer_a_client_on_stdio_and_on_http() {
    let (place, _lease) = Place::new("examples").await;
    place.apply(&example("servers.yaml")).await;
    place.apply(&example("hub.yaml")).await;
    place.until_served("tools", 2).await;
    let session = place.connect("tools", None).await;
    for tool in ["units_convert", "units-http_convert"] {
        let answer = session.call(tool, json!({"value": 1, "from": "km", "to": "m"})).await.unwrap();
        assert!(answer.contains("1000 m"), "{tool}: {answer}");
    }
}

#[tokio::test]
async fn an_example_whose_secret_is_missing_waits_for_it() {
    let (place, _lease) = Place::new("examples-secret").await;
    place.apply(&example("more/github.yaml")).await;
    place.apply(&example("more/remote.yaml")).await;
    place.until_reason("github", "SecretMissing").await;
    let remote = place.until("elsewhere", "its secret to be missed", |server: &MCPServer| {
        ready_reason(server) == Some("SecretMissing")
    });
    remote.await;
}
