//! An API server that is away, and one that has forgotten what happened.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use mcp_hub_crds::MCPServer;
use mcp_hub_test_cluster::{Cluster, Part};
use serde_json::{Value, json};

use crate::audit::tally;
use crate::children::assert_same;
use crate::place::{Kept, Place, all_ready, eventually, server};
use crate::unrest::Census;

/// How long the API server is away: longer than a leader waits for its lease (10 s), than others before they take it (15 s),
/// than all retries of a request, and than a node may be silent (40 s); watches start anew with the operator that comes after.
const AWAY: Duration = Duration::from_secs(60);
/// Restarts of the API server until the operator outlives one.
const ROUNDS: usize = 3;
/// Servers that are there all the time, and are left alone.
const STEADY: [&str; 3] = ["steady-0", "steady-1", "steady-2"];

async fn is_ready(place: &Place) {
    let cluster = place.cluster.clone();
    eventually("the API server to be ready", async || {
        let cluster = cluster.clone();
        let ready = tokio::task::spawn_blocking(move || cluster.is_ready()).await.unwrap();
        if ready { Ok(()) } else { Err(String::new()) }
    })
    .await;
}

/// Uids of the pods of the servers that are left alone.
async fn pods(place: &Place) -> BTreeMap<String, String> {
    let pods = place.list::<Pod>().await.into_iter();
    let steady =
        pods.filter(|pod| pod.labels().get("mcphub.io/owner-name").is_some_and(|name| STEADY.contains(&&**name)));
    steady.map(|pod| (pod.name_any(), pod.uid().unwrap())).collect()
}

async fn begin(place: &Place) {
    place.hub("main", &json!({"gateway": {"replicas": 2}})).await;
    for name in STEADY {
        place.server(name, &server(json!({}))).await;
    }
    for name in ["changed", "robbed", "removed"] {
        place.server(name, &server(json!({"env": [{"name": "WHEN", "value": "before"}]}))).await;
    }
    place.settled(all_ready).await;
}

/// Changes one server, takes a child from another, removes a third, and makes a new one.
async fn disturb(place: &Place) {
    let after = server(json!({"env": [{"name": "WHEN", "value": "after"}]}));
    place.api::<Service>().delete("mcp-robbed", &DeleteParams::default()).await.unwrap();
    place.server("changed", &after).await;
    place.api::<MCPServer>().delete("removed", &DeleteParams::default()).await.unwrap();
    place.server("new", &after).await;
}

async fn answered(place: &Place) {
    eventually("all changes to be carried out", async || {
        let children = place.children().await;
        let has_after = |name: &str| {
            children
                .get(&format!("Deployment mcp-{name}"))
                .is_some_and(|object| object.to_string().contains("\"after\""))
        };
        // What is removed goes by the garbage collector, which has to find its feet again too.
        let left = children.keys().any(|key| key.ends_with("removed"));
        match has_after("changed") && has_after("new") && children.contains_key("Service mcp-robbed") && !left {
            true => Ok(()),
            false => Err(format!("{:?}", children.keys())),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_is_waited_for() {
    let place = Place::new().await;
    let operator = Kept::start(&place);
    begin(&place).await;
    let (before, children) = (pods(&place).await, place.children().await);
    let census = Census::of(&place);

    let audit = place.audit();
    place.cluster.kill(Part::ApiServer).unwrap();
    tokio::time::sleep(AWAY).await;
    let ends = operator.ends.load(Ordering::Relaxed);
    assert!(ends <= 1, "whoever lost its lease starts anew once and waits: {ends}");
    place.cluster.start(Part::ApiServer).unwrap();
    is_ready(&place).await;
    let back = Instant::now();
    disturb(&place).await;
    eventually("the change to be carried out", async || {
        let deployment = place.children().await.remove("Deployment mcp-new");
        deployment.map(drop).ok_or_else(String::new)
    })
    .await;
    println!(
        "carried out {:?} after it was back; the operator ended {} times",
        back.elapsed(),
        operator.ends.load(Ordering::Relaxed)
    );
    place.settled(all_ready).await;

    answered(&place).await;
    assert_eq!(pods(&place).await, before, "who was left alone has the pods it had");
    census.assert_never_too_many();
    let writes = audit.writes();
    println!("{} writes: {}", writes.len(), tally(&writes));
    // Four changes; and of each server, at most, that it is not ready while its node counts as lost, and then is.
    assert!(writes.len() <= 60, "{}", tally(&writes));
    let only = |children: &crate::children::Children| -> crate::children::Children {
        let steady = children.iter().filter(|(key, _)| key.contains("steady"));
        steady.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    assert_same("who was left alone is as before", &only(&children), &only(&place.children().await));
}

/// Asks etcd through its JSON gateway.
fn etcd(cluster: &Cluster, path: &str, question: &Value) -> Value {
    let door = cluster.door("127.0.0.1:2379".parse().unwrap()).unwrap();
    let mut stream = TcpStream::connect(door.address()).unwrap();
    let question = question.to_string();
    let head = format!("POST /v3/kv/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", question.len());
    stream.write_all((head + &question).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// Lets etcd forget all that was before now.
async fn compact(place: &Place) {
    let cluster = place.cluster.clone();
    let compaction = move || {
        // A key that is nowhere: what counts is the head of the answer.
        let found = etcd(&cluster, "range", &json!({"key": "AA=="}));
        let revision = found["header"]["revision"].clone();
        etcd(&cluster, "compaction", &json!({"revision": revision, "physical": true}));
    };
    tokio::task::spawn_blocking(compaction).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_was_compacted_is_read_anew() {
    let place = Place::new().await;
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    begin(&place).await;
    let before = pods(&place).await;
    let census = Census::of(&place);

    // Under watches that are open nothing is missed.
    compact(&place).await;
    place.server("robbed", &server(json!({"env": [{"name": "WHEN", "value": "between"}]}))).await;
    place.settled(all_ready).await;

    // What happened since is of no concern to the operator, so that its watches stand where they stood; then they break, and
    // where they would go on from is forgotten.
    let mut audit = None;
    for round in 0..ROUNDS {
        for number in 0..50 {
            let metadata = ObjectMeta { name: Some(format!("noise-{round}-{number}")), ..ObjectMeta::default() };
            let noise = ConfigMap { metadata, ..ConfigMap::default() };
            place.api::<ConfigMap>().create(&PostParams::default(), &noise).await.unwrap();
        }
        compact(&place).await;
        let since = place.audit();
        place.cluster.kill(Part::ApiServer).unwrap();
        place.cluster.start(Part::ApiServer).unwrap();
        is_ready(&place).await;
        if operator.ended().is_none() {
            audit = Some(since);
            break;
        }
        // On a slow machine the lease was lost meanwhile, and with the operator its watches.
        operator = place.operator("op");
        operator.until_it_leads().await;
        place.settled(all_ready).await;
    }
    let audit = audit.expect("an operator that outlives the restart of its API server");
    disturb(&place).await;
    place.settled(all_ready).await;
    answered(&place).await;
    assert_eq!(pods(&place).await, before, "who was left alone has the pods it had");
    census.assert_never_too_many();
    let writes = audit.writes();
    assert!(writes.len() <= 40, "{}", tally(&writes));
    assert!(operator.ended().is_none());
    let said = operator.said();
    assert!(said.contains("too old resource version") || said.contains("Expired"), "{said}");
}
