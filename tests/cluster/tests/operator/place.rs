//! A control plane of the test's own with fake nodes, the project's resources, and operators that can be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderValue, header};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams, ValidationDirective};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource, ResourceExt};
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_test_cluster::{Cluster, NODE, Options, Shape};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::audit::Audit;
use crate::bridges::Bridges;
use crate::registry;
use crate::stand_in::StandIn;

/// Longest wait for any state. Far longer than the slowest seen, because timing decides no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// So long has an operator to write nothing before it counts as settled: longer than any of its short waits.
const QUIET: Duration = Duration::from_millis(2_500);
/// Namespace of operators, and that of the resources they look after.
pub(crate) const SYSTEM: &str = "mcp-hub-system";
pub(crate) const NAMESPACE: &str = "team";
/// As many lines of an operator's log are shown when a test fails.
const LAST: usize = 40;
/// Has every image.
pub(crate) const REGISTRY: SocketAddr = SocketAddr::new(NODE, 5000);
/// By which the audit log tells the tests' own writes.
pub(crate) const AGENT: &str = "mcp-hub-test";

/// A cluster without an operator.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) client: Administrator,
    pub(crate) bridges: Bridges,
    _registry: StandIn,
}

/// A client with all rights.
#[derive(Clone)]
pub(crate) struct Administrator(pub(crate) Client);

impl Debug for Administrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Administrator").finish_non_exhaustive()
    }
}

impl Place {
    pub(crate) async fn new() -> Self {
        let cluster = tokio::task::spawn_blocking(|| {
            let audit = Some(Options::AUDIT_WRITES.to_owned());
            let cluster = Cluster::up(Options { audit, ..Options::new(Shape::ControlPlane) }).unwrap();
            cluster.add_fake_nodes(1).unwrap();
            let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/yaml");
            cluster.kubectl(["apply", "--server-side", "--filename", crds.to_str().unwrap()]).unwrap();
            cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).unwrap();
            cluster
        });
        let cluster = Arc::new(cluster.await.unwrap());
        let config = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        config.headers.push((header::USER_AGENT, HeaderValue::from_static(AGENT)));
        let client = Client::try_from(config).unwrap();
        for name in [SYSTEM, NAMESPACE] {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        let bridges = Bridges::listen(cluster.listen((NODE, 7337).into()).unwrap());
        let registry = registry::listen(cluster.listen(REGISTRY).unwrap());
        Self { cluster, client: Administrator(client), bridges, _registry: registry }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.0.clone(), NAMESPACE)
    }

    /// Starts an operator of this identity. It does not take part in an election with one of the same identity.
    pub(crate) fn operator(&self, identity: &str) -> Operator {
        Operator::start(&self.cluster, identity)
    }

    pub(crate) fn audit(&self) -> Audit {
        Audit::of(self.cluster.audit_log())
    }

    /// Applies a server of this spec.
    pub(crate) async fn server(&self, name: &str, spec: &Value) -> MCPServer {
        self.put("MCPServer", name, spec).await.unwrap_or_else(|error| panic!("{error}\n{name}: {spec:#}"))
    }

    /// Applies a hub of this spec.
    pub(crate) async fn hub(&self, name: &str, spec: &Value) -> MCPHub {
        self.put("MCPHub", name, spec).await.unwrap_or_else(|error| panic!("{error}\n{name}: {spec:#}"))
    }

    /// Makes an object with exactly this spec, as `kubectl apply` does.
    pub(crate) async fn put<K>(&self, kind: &str, name: &str, spec: &Value) -> Result<K, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let params =
            PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply("test").force() };
        let object = json!({
            "apiVersion": "mcphub.io/v1alpha1", "kind": kind,
            "metadata": {"name": name, "labels": {"test": "yes"}}, "spec": spec,
        });
        self.api::<K>().patch(name, &params, &Patch::Apply(&object)).await
    }

    /// All objects of a kind in the namespace.
    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items
    }

    /// Waits until the operator has looked at every spec, what nobody owns any more was taken away, every Deployment has the pods it wants and no others, `wanted`
    /// holds, and nothing was written for a while.
    pub(crate) async fn settled(&self, wanted: impl Fn(&[MCPServer], &[MCPHub]) -> Result<(), String>) {
        let audit = self.audit();
        let mut calm: Option<(usize, Instant)> = None;
        eventually("everything to settle", async || {
            let count = audit.writes().len();
            let (servers, hubs) = (self.list::<MCPServer>().await, self.list::<MCPHub>().await);
            let state = servers
                .iter()
                .try_for_each(|server| looked_at(server, server.status.as_ref().and_then(|s| s.observed_generation)))
                .and_then(|()| {
                    hubs.iter()
                        .try_for_each(|hub| looked_at(hub, hub.status.as_ref().and_then(|s| s.observed_generation)))
                })
                .and_then(|()| wanted(&servers, &hubs))
                .and(self.is_collected(&servers, &hubs).await)
                .and(self.rolled_out().await);
            if let Err(state) = state {
                calm = None;
                return Err(state);
            }
            match calm {
                Some((before, since)) if before == count && since.elapsed() >= QUIET => Ok(()),
                Some((before, _)) if before == count => Err("it is quiet, but not for long".to_owned()),
                _ => {
                    calm = Some((count, Instant::now()));
                    Err(format!("{count} writes, and more may come"))
                }
            }
        })
        .await;
    }

    /// Nothing is left of owners that are gone: the garbage collector learns of new kinds twice a minute.
    async fn is_collected(&self, servers: &[MCPServer], hubs: &[MCPHub]) -> Result<(), String> {
        let owners: BTreeSet<String> =
            servers.iter().filter_map(ResourceExt::uid).chain(hubs.iter().filter_map(ResourceExt::uid)).collect();
        for (name, object) in self.children().await {
            let owner = object.pointer("/metadata/ownerReferences/0/uid").and_then(Value::as_str);
            if owner.is_some_and(|uid| !owners.contains(uid)) {
                return Err(format!("{name} is still there, and its owner is not"));
            }
        }
        Ok(())
    }

    async fn rolled_out(&self) -> Result<(), String> {
        let mut wanted = 0;
        for deployment in self.list::<Deployment>().await {
            let spec = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = deployment.status.clone().unwrap_or_default();
            let counts =
                [status.replicas, status.updated_replicas, status.ready_replicas].map(Option::unwrap_or_default);
            if status.observed_generation != deployment.metadata.generation || counts != [spec; 3] {
                return Err(format!("Deployment {} of {spec} has {status:?}", deployment.name_any()));
            }
            wanted += usize::try_from(spec).unwrap();
        }
        let pods = self.list::<Pod>().await;
        if pods.len() != wanted {
            let names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
            return Err(format!("{wanted} pods are wanted, and there are {names:?}"));
        }
        Ok(())
    }
}

fn looked_at(object: &impl Resource, observed: Option<i64>) -> Result<(), String> {
    let meta = object.meta();
    match observed.is_some() && observed == meta.generation {
        true => Ok(()),
        false => Err(format!("{:?} of generation {:?} was looked at in {observed:?}", meta.name, meta.generation)),
    }
}

/// Status, reason and message of a condition.
pub(crate) fn condition<'a>(
    conditions: Option<&'a Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>>,
    type_: &str,
) -> Option<(&'a str, &'a str, &'a str)> {
    let found = conditions?.iter().find(|condition| condition.type_ == type_)?;
    Some((&found.status, &found.reason, &found.message))
}

/// Status, reason and message of a server's condition `Ready`.
pub(crate) fn ready(server: &MCPServer) -> Option<(&str, &str, &str)> {
    condition(server.status.as_ref()?.conditions.as_ref(), "Ready")
}

/// Every server is ready, or paused if it is to be.
pub(crate) fn all_ready(servers: &[MCPServer], hubs: &[MCPHub]) -> Result<(), String> {
    for server in servers {
        let stopped = server.spec.paused == Some(true) || server.spec.replicas == Some(0);
        let wanted = if stopped { "Paused" } else { "Ready" };
        if ready(server).map(|(_, reason, _)| reason) != Some(wanted) {
            return Err(format!("{} is {:?}", server.name_any(), ready(server)));
        }
    }
    for hub in hubs {
        let found = condition(hub.status.as_ref().and_then(|status| status.conditions.as_ref()), "Ready");
        if found.map(|(status, ..)| status) != Some("True") {
            return Err(format!("{} is {found:?}", hub.name_any()));
        }
    }
    Ok(())
}

/// Waits for a state.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) if begun.elapsed() > PATIENCE => panic!("waited {PATIENCE:?} for {what}; last: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A program built by cargo, beside this test.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(path.exists(), "{} is missing; run `cargo build --package {name}` first", path.display());
    path
}

/// An operator's process in the cluster's network. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Operator {
    child: Child,
    log: tempfile::NamedTempFile,
    begun: Instant,
}

impl Operator {
    fn start(cluster: &Cluster, identity: &str) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command: Command = cluster.command(binary("mcp-hub-operator"));
        command.args(["--namespace", SYSTEM, "--identity", identity, "--health", "127.0.0.1:0"]);
        command.args(["--bridge-image", "example.org/bridge:1", "--gateway-image", "example.org/gateway:1"]);
        command.args(["--runner-image", "example.org/runner:1"]);
        command.args(["--plain-http-registries", &REGISTRY.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log.path()).unwrap());
        Self { child: command.spawn().unwrap(), log, begun: Instant::now() }
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    pub(crate) fn leads(&self) -> bool {
        self.said().contains("\"message\":\"leading\"")
    }

    /// Waits until it leads; the time since it was started.
    pub(crate) async fn until_it_leads(&mut self) -> Duration {
        eventually("the operator to lead", async || match (self.leads(), self.ended()) {
            (true, _) => Ok(()),
            (false, ended) => Err(format!("{ended:?} {}", self.said())),
        })
        .await;
        self.begun.elapsed()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// As a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, as a kubelet ends a pod; how it ended.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        eventually("the operator to end", async || self.ended().ok_or_else(|| self.said())).await
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

/// An operator that is started anew whenever it ends, as a kubelet does it. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Kept {
    /// How often it ended.
    pub(crate) ends: Arc<AtomicUsize>,
    keeping: JoinHandle<()>,
}

impl Kept {
    pub(crate) fn start(place: &Place) -> Self {
        let ends = Arc::new(AtomicUsize::new(0));
        let keeping = tokio::spawn({
            let (cluster, ends) = (place.cluster.clone(), ends.clone());
            async move {
                loop {
                    let mut operator = Operator::start(&cluster, "kept");
                    while operator.ended().is_none() {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    println!("ended: {}", operator.said().lines().last().unwrap_or_default());
                    ends.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { ends, keeping }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // One that ended already, or was killed.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            println!("the operator said last:\n{}", lines[lines.len().saturating_sub(LAST)..].join("\n"));
        }
    }
}

/// Spec of a server that needs no registry, with these fields besides.
pub(crate) fn server(more: Value) -> Value {
    let mut spec = json!({
        "source": {"image": {"ref": "example.org/server:1", "command": ["/server"], "pinDigest": false}},
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Living pods by owner.
pub(crate) fn living(pods: &[Pod]) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        *count.entry(pod.labels().get("mcphub.io/owner-name").cloned().unwrap_or_default()).or_default() += 1;
    }
    count
}
