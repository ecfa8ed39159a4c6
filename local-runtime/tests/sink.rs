//! The local sink: one endpoint a hub, on the port that was asked for or on none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use futures::StreamExt;
use kube::ResourceExt;
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_local_runtime::sink::LocalSink;
use mcp_hub_local_runtime::store::LocalStore;
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::gateway::compose;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::{Addresses, GatewaySink, HubState, Ports, ResourceStore, SinkEvent};
use mcp_hub_secrets::Environment;
use mcp_hub_test_port::free_port;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn installation() -> Installation {
    Installation::new("test", [7; 32])
}

fn hub(name: &str, port: u16) -> (OwnerKey, MCPHub) {
    let hub: MCPHub = serde_json::from_value(json!({
        "apiVersion": "mcphub.io/v1alpha1",
        "kind": "MCPHub",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"gateway": {"port": port}},
    }))
    .unwrap();
    (OwnerKey::of_hub("test", &hub).unwrap(), hub)
}

fn remote(name: &str, url: &str) -> Arc<MCPServer> {
    let server = json!({
        "apiVersion": "mcphub.io/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"source": {"remote": {"url": url}}},
    });
    Arc::new(serde_json::from_value(server).unwrap())
}

/// Tries free ports until none was taken by another program in between.
async fn applied(sink: &LocalSink, name: &str, servers: &[Arc<MCPServer>]) -> (OwnerKey, MCPHub) {
    for _ in 0..10 {
        let (owner, hub) = hub(name, free_port().unwrap());
        let config = compose(&hub, servers, &BTreeMap::new(), &Addresses::default(), &installation());
        if sink.apply(&owner, &hub, &config).await.is_ok() {
            return (owner, hub);
        }
    }
    unreachable!("ten free ports in a row were taken by others");
}

fn port_of(hub: &MCPHub) -> u16 {
    u16::try_from(hub.spec.gateway.as_ref().unwrap().port.unwrap()).unwrap()
}

async fn healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return false };
    let request = format!("GET /healthz HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.starts_with("HTTP/1.1 200")
}

#[tokio::test]
async fn a_hub_is_served_on_its_port_until_it_is_removed() {
    let sink = LocalSink::new(installation());
    let (owner, _) = hub("one", 1);
    assert_eq!(sink.observe(&owner).await.unwrap(), None);
    let (owner, one) = applied(&sink, "one", &[]).await;
    let config = compose(&one, &[] as &[Arc<MCPServer>], &BTreeMap::new(), &Addresses::default(), &installation());
    let wanted = HubState {
        endpoint: format!("http://127.0.0.1:{}/mcp", port_of(&one)),
        replicas: 1,
        serving: 1,
        problem: None,
        synced: 1,
        version: config.version.clone(),
        collisions: BTreeMap::new(),
    };
    assert_eq!(sink.observe(&owner).await.unwrap(), Some(wanted.clone()));
    assert!(healthy(port_of(&one)).await);

    // Applied again it is the same; a changed configuration is served on the same port.
    sink.apply(&owner, &one, &config).await.unwrap();
    assert_eq!(sink.observe(&owner).await.unwrap(), Some(wanted));
    let more = compose(
        &one,
        &[remote("r", "http://127.0.0.1:1/mcp")],
        &BTreeMap::new(),
        &Addresses::default(),
        &installation(),
    );
    sink.apply(&owner, &one, &more).await.unwrap();
    assert_eq!(sink.observe(&owner).await.unwrap().unwrap().version, more.version);

    sink.remove(&owner).await.unwrap();
    sink.remove(&owner).await.unwrap();
    assert_eq!(sink.observe(&owner).await.unwrap(), None);
    assert!(!healthy(port_of(&one)).await, "the port is still served");
}

#[tokio::test]
async fn what_only_a_cluster_has_is_left_out_and_told_but_a_certificate_is_refused() {
    let sink = LocalSink::new(installation());
    let (owner, mut one) = applied(&sink, "one", &[]).await;
    let config = compose(&one, &[] as &[Arc<MCPServer>], &BTreeMap::new(), &Addresses::default(), &installation());
    let mut gateway = json!({"port": port_of(&one), "ingress": {"host": "hub.example.com"}});
    one.spec.gateway = serde_json::from_value(gateway.clone()).unwrap();
    let door = sink.apply(&owner, &one, &config).await.unwrap();
    let left_out = door.exposure.unwrap().unwrap_err();
    assert_eq!((left_out.reason, left_out.retry), ("Unsupported", Retry::OnChange));
    assert!(left_out.message.starts_with("spec.gateway.ingress: "), "{}", left_out.message);
    assert!(healthy(port_of(&one)).await);

    gateway["tls"] = json!({"secretRef": {"name": "cert"}});
    one.spec.gateway = serde_json::from_value(gateway).unwrap();
    let refused = sink.apply(&owner, &one, &config).await.unwrap_err();
    assert_eq!(refused.reason, "Unsupported");
    assert!(refused.message.starts_with("spec.gateway.tls: "), "{}", refused.message);
}

#[tokio::test]
async fn a_busy_port_names_its_holder_and_is_never_left_for_another() {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port();
    let sink = LocalSink::new(installation());
    let (owner, one) = hub("one", port);
    let config = compose(&one, &[] as &[Arc<MCPServer>], &BTreeMap::new(), &Addresses::default(), &installation());
    let refusal = sink.apply(&owner, &one, &config).await.unwrap_err();
    assert_eq!(refusal.reason, "PortInUse");
    assert!(refusal.message.contains(&format!("port {port}")), "{}", refusal.message);
    assert!(refusal.message.contains(&format!("process {}", std::process::id())), "{}", refusal.message);
    assert!(refusal.hint.as_ref().unwrap().contains("spec.gateway.port"), "{:?}", refusal.hint);
    assert!(matches!(refusal.retry, Retry::After(_)));
    assert_eq!(sink.observe(&owner).await.unwrap(), None);

    drop(holder);
    sink.apply(&owner, &one, &config).await.unwrap();
    assert!(healthy(port).await);

    // A second hub on that port is told which hub has it; the first is unharmed.
    let (second, two) = hub("two", port);
    let refusal = sink.apply(&second, &two, &config).await.unwrap_err();
    assert_eq!(refusal.message, format!("port {port} is in use by hub default/one"));
    assert!(healthy(port).await);
    sink.shutdown().await;
}

#[tokio::test]
async fn a_hub_that_moves_keeps_its_old_port_until_it_has_the_new_one() {
    let sink = LocalSink::new(installation());
    let (owner, one) = applied(&sink, "one", &[]).await;
    let old = port_of(&one);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let new = taken.local_addr().unwrap().port();
    let (_, moved) = hub("one", new);
    let config = compose(
        &moved,
        &[remote("r", "http://127.0.0.1:1/mcp")],
        &BTreeMap::new(),
        &Addresses::default(),
        &installation(),
    );
    assert_eq!(sink.apply(&owner, &moved, &config).await.unwrap_err().reason, "PortInUse");
    assert!(healthy(old).await);
    assert_eq!(sink.observe(&owner).await.unwrap().unwrap().version, config.version);
    drop(taken);
    sink.apply(&owner, &moved, &config).await.unwrap();
    assert!(healthy(new).await);
    assert!(!healthy(old).await);
    sink.shutdown().await;
    assert!(!healthy(new).await);
    assert_eq!(sink.observe(&owner).await.unwrap(), None);
}

#[tokio::test]
async fn what_a_gateway_learns_of_a_server_is_told() {
    let sink = LocalSink::new(installation());
    let mut events = sink.events();
    assert_eq!(sink.upstream("uid-r").await, None);
    let (owner, _) = applied(&sink, "one", &[remote("r", "http://127.0.0.1:1/mcp")]).await;
    loop {
        let event = tokio::time::timeout(std::time::Duration::from_secs(20), events.next()).await.unwrap().unwrap();
        if event == SinkEvent::Upstream("uid-r".to_owned()) {
            break;
        }
    }
    assert!(sink.upstream("uid-r").await.is_some());
    sink.remove(&owner).await.unwrap();
    assert_eq!(sink.upstream("uid-r").await, None);
}

/// The whole way of a hub that nobody wrote: store, pass, sink, status, and its end.
#[tokio::test]
async fn the_implicit_hub_gets_an_endpoint_by_a_pass_over_it() {
    let state = tempfile::tempdir().unwrap();
    let store = LocalStore::open(state.path(), Arc::new(Environment::new([])), free_port().unwrap()).unwrap();
    let sink = LocalSink::new(store.installation());
    let runtime = Arc::new(mcp_hub_local_runtime::runtime_set::RuntimeSet::new(
        mcp_hub_local_runtime::process::ProcessRuntime::new(
            mcp_hub_local_runtime::process::ProcessConfig {
                run_dir: state.path().join("run"),
                cache_dir: state.path().join("cache"),
                bridge: state.path().join("no-bridge"),
                installation: store.installation().id().to_owned(),
                host: mcp_hub_local_runtime::host::Host::of_this_process(),
            },
            Arc::new(mcp_hub_local_runtime::secret_source::Backends(Arc::new(Environment::new([])))),
        )
        .unwrap(),
        Vec::new(),
        None,
    ));
    let ports = Ports { installation: store.installation(), store: store.clone(), runtime, sink: sink.clone() };
    let hub = || store.hubs().state().into_iter().find(|hub| hub.name_any() == "default").unwrap();
    pass::hub(&hub(), &ports).await.unwrap();
    let endpoint = hub().status.clone().unwrap().endpoint.unwrap();
    let port = hub().spec.gateway.as_ref().unwrap().port.unwrap();
    assert_eq!(endpoint, format!("http://127.0.0.1:{port}/mcp"));
    let revision = hub().resource_version();
    pass::hub(&hub(), &ports).await.unwrap();
    assert_eq!(hub().resource_version(), revision, "a settled hub was written");

    // A hub that names no port takes the daemon's.
    let text = "apiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {name: default}\nspec: {}\n";
    let documents = mcp_hub_crds::manifest::parse(text, std::path::Path::new("/m/hub.yaml")).unwrap();
    store.sync(std::path::Path::new("/m/hub.yaml"), &documents).unwrap();
    pass::hub(&hub(), &ports).await.unwrap();
    assert_eq!(hub().status.clone().unwrap().endpoint.unwrap(), endpoint);
    sink.shutdown().await;
}
