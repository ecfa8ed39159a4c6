//! Hubs: what they offer, how a change reaches their gateways, and what a rollout does to calls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "hubs/rest.rs"]
mod rest;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_kubernetes_tests::{Place, eventually, fixture, hub, remains};
use serde_json::json;

#[tokio::test]
async fn a_change_reaches_every_replica_long_before_its_file_does() {
    let (place, _lease) = Place::new("push").await;
    place.apply(&hub("default", "{gateway: {replicas: 2}}")).await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    let hub_now = place.until_served("default", 1).await;
    let gateway = hub_now.status.unwrap().gateway.unwrap();
    assert_eq!((gateway.replicas, gateway.synced), (2, 2));
    assert!(place.api::<PodDisruptionBudget>().get_opt("mcp-hub-default").await.unwrap().is_some());

    // A kubelet brings a changed Secret into a pod within a minute or so; a push takes no part of a second.
    let session = place.connect("default", None).await;
    session.until_listed(&["a_echo"]).await;
    place.apply(&fixture("a", &["stdio"], "  tools: {rename: {echo: parrot}}\n")).await;
    let changed = Instant::now();
    eventually("the new name", async || {
        let tools = session.tools().await;
        if tools.contains(&"a_parrot".to_owned()) { Ok(()) } else { Err(format!("{tools:?}")) }
    })
    .await;
    println!("a change was served after {:?}", changed.elapsed());
    place.until_served("default", 1).await;

    // With one replica a budget would keep its node from being drained.
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    eventually("the budget to go", async || {
        match place.api::<PodDisruptionBudget>().get_opt("mcp-hub-default").await.unwrap() {
            None => Ok(()),
            Some(budget) => Err(format!("{budget:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_hub_offers_servers_of_other_namespaces_only_if_they_want_it() {
    let (home, _home) = Place::new("home").await;
    let (far, _far) = Place::new("far").await;
    far.apply(&fixture("open", &["stdio"], &format!("  exposeTo: [{}]\n", home.name))).await;
    far.apply(&fixture("closed", &["stdio"], "")).await;
    home.apply(&fixture("own", &["stdio"], "")).await;
    let namespaces = format!("{{gateway: {{replicas: 1}}, servers: {{namespaces: [{}, {}]}}}}", home.name, far.name);
    home.apply(&hub("default", &namespaces)).await;
    far.until_reason("closed", "Ready").await;
    home.until_served("default", 2).await;
    let session = home.connect("default", None).await;
    let foreign = &format!("{}.open_echo", far.name);
    let tools = session.until_listed(&["own_echo", foreign]).await;
    assert!(!tools.iter().any(|tool| tool.contains("closed")), "{tools:?}");
    assert_eq!(session.call(foreign, json!({"text": "from afar"})).await.unwrap(), "from afar");
}

#[tokio::test]
async fn no_call_is_lost_when_server_and_gateway_are_rolled() {
    let (place, _lease) = Place::new("roll").await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    place.apply(&hub("default", "{gateway: {replicas: 2}}")).await;
    place.until_served("default", 1).await;

    // Calls of two seconds are always under way, while first the server's pod and then the gateways' are replaced.
    let done = Arc::new(AtomicBool::new(false));
    let answered: Vec<Arc<AtomicU32>> = (0..4).map(|_| Arc::default()).collect();
    let callers: Vec<_> = answered
        .iter()
        .cloned()
        .map(|answered| {
            let (place, done) = (place.clone(), done.clone());
            tokio::spawn(async move {
                let mut lost = Vec::new();
                let session = place.connect("default", None).await;
                while !done.load(Ordering::Relaxed) {
                    match session.call("a_sleep", json!({"ms": 2000})).await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => lost.push(error),
                    }
                }
                lost
            })
        })
        .collect();
    let answers = || answered.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let another_answer_each = async || {
        let before = answers();
        eventually("another answer to each caller", async || {
            let now = answers();
            if now.iter().zip(&before).all(|(now, before)| now > before) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    };
    another_answer_each().await;
    let pods = |owner: &'static str| {
        let place = place.clone();
        async move { place.pods_of(owner).await.iter().map(ResourceExt::name_any).collect::<Vec<_>>() }
    };
    let before = pods("a").await;
    let restart = json!({"metadata": {"annotations": {"mcphub.io/restarted-at": "now"}}});
    place.api::<MCPServer>().patch("a", &PatchParams::default(), &Patch::Merge(&restart)).await.unwrap();
    eventually("another pod of the server", async || {
        let now = pods("a").await;
        if now.len() == 1 && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    let before = pods("default").await;
    place.api::<Deployment>().restart("mcp-hub-default").await.unwrap();
    eventually("other pods of the gateway", async || {
        let now = pods("default").await;
        if now.len() == 2 && !now.iter().any(|pod| before.contains(pod)) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    another_answer_each().await;
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        let lost = caller.await.unwrap();
        assert!(lost.is_empty(), "{lost:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_run_is_not_called_ready_and_a_removed_hub_leaves_nothing() {
    let (place, _lease) = Place::new("hub").await;
    place.apply(&hub("default", "{auth: {mode: none}}")).await;
    let refused = place.until("default", "the refusal", |hub: &MCPHub| {
        let conditions = hub.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.message.contains("loopback"))
    });
    refused.await;
    assert!(remains(&place, "default").await.is_empty());
    place.apply(&hub("default", "{auth: {mode: bearer}, gateway: {replicas: 1}}")).await;
    place.until_served("default", 0).await;

    // Its pod is taken away and may not come back for a moment: nothing serves, and status says so.
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
    place.api::<ResourceQuota>().create(&PostParams::default(), &quota).await.unwrap();
    let pods: Vec<Pod> = place.pods_of("default").await;
    for pod in &pods {
        place.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    let unready = place.until("default", "the hub to be ready no more", |hub: &MCPHub| {
        let conditions = hub.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "False")
    });
    unready.await;
    place.api::<ResourceQuota>().delete("none", &DeleteParams::default()).await.unwrap();
    place.until_served("default", 0).await;
    place.api::<MCPHub>().delete("default", &DeleteParams::default()).await.unwrap();
    eventually("everything to go", async || {
        let left = remains(&place, "default").await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}
