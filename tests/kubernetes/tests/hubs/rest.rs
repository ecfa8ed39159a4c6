//! Servers that nobody calls: no pod, and a call that waits for one.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use mcp_hub_crds::MCPServer;
use mcp_hub_kubernetes_tests::{Place, eventually, fixture, hub};
use serde_json::json;

/// Calls that measure how long it takes to wake.
const CALLS: usize = 3;

/// Waits until nothing of the server runs, and its status says so.
async fn at_rest(place: &Place, name: &str) {
    place
        .until(name, "it to be at rest", |server: &MCPServer| {
            let status = server.status.as_ref();
            let phase = status.and_then(|status| status.phase).map(mcp_hub_crds::status::Phase::as_str);
            phase == Some("Asleep") && status.and_then(|status| status.replicas) == Some(0)
        })
        .await;
    eventually("its pods to be gone", async || {
        let selector = ListParams::default().labels(&format!("mcphub.io/owner-name={name}"));
        match place.api::<Pod>().list(&selector).await.unwrap().items.len() {
            0 => Ok(()),
            pods => Err(format!("{pods} pods")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_nobody_calls_has_no_pod_and_a_call_waits_for_one() {
    let (place, _lease) = Place::new("rest").await;
    place.apply(&fixture("a", &["stdio"], "  lifecycle: {mode: onDemand, idleTimeout: 5s}\n")).await;
    place.apply(&hub("default", "{gateway: {replicas: 2}}")).await;
    place.until_served("default", 1).await;
    let session = place.connect("default", None).await;
    session.until_listed(&["a_echo"]).await;
    at_rest(&place, "a").await;
    let resting = place.api::<MCPServer>().get("a").await.unwrap().status.unwrap();
    assert!(resting.tools.is_some() && resting.server.is_some() && resting.endpoint.is_some(), "{resting:#?}");

    // Gateways that never met it list what it offers, and that wakes nobody.
    let old: Vec<String> = place.pods_of("default").await.iter().map(ResourceExt::name_any).collect();
    for pod in &old {
        place.api::<Pod>().delete(pod, &DeleteParams::default()).await.unwrap();
    }
    eventually("other gateways", async || {
        let now = place.pods_of("default").await;
        let new = now.iter().filter(|pod| !old.contains(&pod.name_any())).count();
        if new == 2 && now.len() == 2 { Ok(()) } else { Err(format!("{new} of {}", now.len())) }
    })
    .await;
    place.until_served("default", 1).await;
    let session = place.connect("default", None).await;
    session.until_listed(&["a_echo"]).await;
    assert!(place.pods_of("a").await.is_empty());

    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        assert_eq!(session.call("a_echo", json!({"text": "awake"})).await.unwrap(), "awake");
        times.push(begun.elapsed());
        place.until_reason("a", "Ready").await;
        at_rest(&place, "a").await;
    }
    println!("calls that woke the server were answered after {times:?}");
}
