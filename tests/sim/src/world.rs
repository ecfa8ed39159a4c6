//! A cluster in which everything but the operator is played.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::{Request, StatusCode, header};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::client::ClientBuilder;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_fakeapi::{Entry, FakeApi, PodState};
use mcp_hub_operator::relay::Relay;
use mcp_hub_operator::runtime::{Askers, KubeRuntime};
use mcp_hub_operator::sink::KubeSink;
use mcp_hub_operator::store::KubeStore;
use mcp_hub_operator::wake::Wakes;
use mcp_hub_operator::{ClusterSettings, PackageSettings, Scope, client};
use mcp_hub_reconcile::controller;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::ports::Ports;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::bridges::{self, Bridges, Fate};
use crate::gateways::{self, Gateways};
use crate::oracle;
use crate::registry::{self, Registry};
use crate::specs::NAMESPACE;
use crate::wire::Line;

/// Where gateways would reach the operator.
const WAKE: &str = "http://operator.mcp-hub-system.svc:8082";
/// User agents of operators begin so.
pub const OPERATOR: &str = "operator-";
/// Controllers and nodes take so long for a step.
const PACE: Duration = Duration::from_millis(200);
/// Without a write for so long, all is done that is done soon: longer than a bridge or a watch waits at most.
pub const QUIET: Duration = Duration::from_secs(45);
/// Longer than any pass waits to be tried again (five minutes and a quarter of them).
pub const LONG_QUIET: Duration = Duration::from_secs(400);
/// Nothing takes longer than this to become quiet.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

#[derive(Debug)]
pub struct World {
    pub api: FakeApi,
    pub bridges: Bridges,
    pub gateways: Gateways,
    pub registry: Registry,
    /// What must never happen and did.
    breaches: Arc<Mutex<Vec<String>>>,
    /// Values that must be nowhere but in Secrets.
    secrets: Arc<Mutex<Vec<String>>>,
    cluster: JoinHandle<()>,
}

/// An operator at work; it dies with the value.
#[derive(Debug)]
pub struct Operator {
    pub line: Line,
    /// What listens to gateways, once it has started.
    wakes: Arc<OnceLock<Wakes>>,
    task: JoinHandle<()>,
}

impl Operator {
    /// What it answers to whoever asks for a server with this token, as a gateway of the hub.
    pub async fn wake(&self, hub_uid: &str, token: &SecretString, server_uid: &str) -> StatusCode {
        let wakes = loop {
            match self.wakes.get() {
                Some(wakes) => break wakes,
                None => tokio::time::sleep(PACE).await,
            }
        };
        let request = Request::post(format!("{WAKE}/wake/{hub_uid}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()))
            .body(json!({"server": server_uid}).to_string())
            .expect("a request");
        wakes.answer(request).await
    }

    /// As `kill -9`: nothing of it reaches anybody any more.
    pub async fn kill(mut self) {
        self.line.kill();
        self.task.abort();
        (&mut self.task).await.ok();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.line.kill();
        self.task.abort();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cluster.abort();
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

pub fn installation() -> Installation {
    Installation::new("sim", [7; 32])
}

impl World {
    /// An empty cluster whose controllers and nodes work.
    pub fn new() -> Self {
        let api = FakeApi::new();
        api.namespace(NAMESPACE);
        let bridges = Bridges::new(api.clone());
        let breaches: Arc<Mutex<Vec<String>>> = Arc::default();
        let cluster = tokio::spawn(play(api.clone(), bridges.clone(), breaches.clone()));
        Self {
            gateways: Gateways::new(api.clone()),
            registry: Registry::default(),
            secrets: Arc::default(),
            api,
            bridges,
            breaches,
            cluster,
        }
    }

    /// Starts an operator, which goes by this name in the log of requests.
    pub fn operator(&self, name: &str) -> Operator {
        let line = self.line();
        self.operator_on(name, line)
    }

    fn operator_on(&self, name: &str, line: Line) -> Operator {
        let client =
            client::patient(ClientBuilder::new(line.wire(self.api.service(&format!("{OPERATOR}{name}"))), "default"));
        let settings = ClusterSettings {
            namespace: "mcp-hub-system".to_owned(),
            bridge_image: "registry.example.com/mcp-bridge:1".to_owned(),
            runner_image: "registry.example.com/mcp-runner:1".to_owned(),
            packages: PackageSettings::default(),
            gateway_image: "registry.example.com/mcp-gateway:1".to_owned(),
            network_policies_enforced: true,
            relay: Some(Relay {
                address: SocketAddr::from(([10, 96, 0, 7], 3128)),
                pod_port: IntOrString::Int(3128),
                key: installation().permit_key(),
            }),
        };
        let askers = Askers {
            bridges: Arc::new(bridges::Way { bridges: self.bridges.clone(), line: line.clone() }),
            images: Arc::new(registry::Way { registry: self.registry.clone(), line: line.clone() }),
        };
        let ask = Arc::new(gateways::Way { gateways: self.gateways.clone(), line: line.clone() });
        let name = name.to_owned();
        let wakes = Arc::new(OnceLock::new());
        let taking = wakes.clone();
        let task = tokio::spawn(async move {
            let (scope, installation) = (Scope::default(), installation());
            let runtime = KubeRuntime::start(&client, &scope, settings, &installation, askers);
            let sink = KubeSink::start(runtime.clone(), installation.clone(), ask, Some(WAKE.to_owned()));
            let store = KubeStore::start(&client, &scope, &name);
            let taken = Wakes { store: store.clone(), sink: sink.clone(), installation: installation.clone() };
            taking.set(taken).expect("an operator starts once");
            let ports = Ports { store, runtime, sink, installation };
            controller::run(ports, Arc::default(), std::future::pending()).await;
        });
        Operator { line, wakes, task }
    }

    /// A line whose writes are looked at as they go out.
    fn line(&self) -> Line {
        let (bridges, gateways, api) = (self.bridges.clone(), self.gateways.clone(), self.api.clone());
        let (secrets, breaches) = (self.secrets.clone(), self.breaches.clone());
        Line::new(Arc::new(move |path, body| {
            let mut found = Vec::from_iter(oracle::unfounded_ready(path, body, &api, &bridges, &gateways));
            found.extend(oracle::exposed(path, body, &secrets.lock().unwrap()));
            breaches.lock().unwrap().extend(found);
        }))
    }

    /// Creates an object, or gives it another spec, as a person does with a manifest.
    pub fn apply(&self, object: &Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let kind = object["kind"].as_str().unwrap();
        let result = match self.api.get(kind, &text("namespace"), &text("name")) {
            None => self.api.create(object),
            Some(_) => self.api.edit(kind, &text("namespace"), &text("name"), |known| {
                for field in ["spec", "data", "stringData"] {
                    if !object[field].is_null() {
                        known[field] = object[field].clone();
                    }
                }
            }),
        };
        result.unwrap_or_else(|refusal| panic!("{object} was refused: {refusal}"));
    }

    /// Creates a Secret whose value must be nowhere else.
    pub fn secret(&self, name: &str, key: &str, value: &str) {
        self.secrets.lock().unwrap().push(value.to_owned());
        self.apply(&crate::specs::secret(name, key, value));
    }

    /// `server`: a name in [`NAMESPACE`].
    pub fn fate(&self, server: &str, fate: Fate) {
        self.bridges.set(&format!("{NAMESPACE}/{server}"), fate);
        // Nodes look at once.
        self.nudge();
    }

    /// Makes the cluster take a step though no object changed.
    fn nudge(&self) {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nudge", "namespace": "kube-system"},
        });
        if self.api.get("ConfigMap", "kube-system", "nudge").is_none() {
            self.api.create(&map).unwrap();
        }
        let revision = self.api.revision().to_string();
        self.api.edit("ConfigMap", "kube-system", "nudge", |map| map["data"]["at"] = revision.into()).unwrap();
    }

    /// Waits until nobody has written anything for `quiet`.
    pub async fn settle(&self, quiet: Duration) {
        let begun = tokio::time::Instant::now();
        loop {
            let (revision, writes) = (self.api.revision(), self.api.writes());
            tokio::time::sleep(quiet).await;
            if (self.api.revision(), self.api.writes()) == (revision, writes) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "it does not settle: {:#?}", tail(&self.writes()));
        }
    }

    /// What operators wrote since the log was cleared.
    pub fn writes(&self) -> Vec<Entry> {
        let ours = |entry: &Entry| entry.is_write() && entry.user_agent.starts_with(OPERATOR);
        self.api.log().into_iter().filter(ours).collect()
    }

    /// Fails if anything happened that must never happen.
    pub fn assert_clean(&self) {
        let breaches = self.breaches.lock().unwrap();
        assert!(breaches.is_empty(), "{breaches:#?}");
    }

    pub fn secrets(&self) -> Vec<String> {
        self.secrets.lock().unwrap().clone()
    }
}

/// The last writes, a line each.
pub fn tail(entries: &[Entry]) -> Vec<String> {
    let line = |entry: &Entry| {
        let Entry { at, verb, kind, namespace, name, subresource, status, revision, user_agent, .. } = entry;
        format!("{at:?} {user_agent} {verb:?} {kind} {namespace}/{name} {subresource} -> {status:?} {revision:?}")
    };
    entries.iter().skip(entries.len().saturating_sub(40)).map(line).collect()
}

/// Controllers, nodes and the garbage collector: a step after each change.
async fn play(api: FakeApi, bridges: Bridges, breaches: Arc<Mutex<Vec<String>>>) {
    let mut most = BTreeMap::new();
    loop {
        let before = api.revision();
        api.step_workloads(&states(&bridges));
        api.collect_garbage();
        breaches.lock().unwrap().extend(oracle::too_many_pods(&api, &mut most));
        if api.revision() == before {
            // The limit only bounds a test that forgot to end.
            api.wait_until(Duration::from_secs(u64::from(u32::MAX)), |api| api.revision() != before).await.ok();
        }
        tokio::time::sleep(PACE).await;
    }
}

/// How nodes see the pods of servers.
fn states(bridges: &Bridges) -> BTreeMap<String, PodState> {
    let state = |(server, fate): (String, Fate)| {
        let (namespace, name) = server.split_once('/')?;
        let state = match fate {
            Fate::Ready | Fate::Asleep => PodState::Ready,
            Fate::Starting | Fate::CrashLoop => PodState::Running,
            Fate::NoImage => {
                PodState::Waiting { reason: "ImagePullBackOff".to_owned(), message: "no such image".to_owned() }
            }
            Fate::NoRoom => PodState::Unschedulable { message: "0/1 nodes are available".to_owned() },
        };
        Some((format!("{namespace}/mcp-{name}"), state))
    };
    bridges.fates().into_iter().filter_map(state).collect()
}
