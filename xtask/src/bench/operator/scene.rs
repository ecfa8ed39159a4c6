//! A control plane with nodes that KWOK plays, the operator in its network, and what is done to them.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mcp_hub_test_cluster::{Cluster, Door, NODE, Options, Shape};
use serde_json::Value;

use super::audit::{Audit, Counts};
use crate::bench::process;
use crate::dist;
use crate::shell::{self, Error};

/// Longest wait for any state: thousands of servers on a busy machine take minutes.
const PATIENCE: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(100);
const NAMESPACE: &str = "mcp-hub-system";
/// Port of the operator's own endpoints, and of bridges.
const HEALTH: u16 = 8081;
const BRIDGE: u16 = 7337;
/// Who wrote what; and for one server also the documents, so that the same can be written again.
const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
    - {level: Request, verbs: [create, update, patch], namespaces: [model-namespace]}\n\
    - {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}\n- {level: None}\n";

/// The programs, as built.
#[derive(Debug)]
pub(super) struct Build {
    operator: PathBuf,
    peers: PathBuf,
}

impl Build {
    /// The operator as its image has it: static, against musl.
    pub(super) fn release() -> Result<Self, Error> {
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        for package in ["mcp-hub-operator", "mcp-hub-bench-peers"] {
            let build = ["build", "--locked", "--release", "--target", &target, "--package", package];
            shell::run(&mut shell::cargo(&build))?;
        }
        Ok(Self::kept(&shell::target().join(target).join("release")))
    }

    pub(super) fn debug() -> Result<Self, Error> {
        shell::programs()?;
        Ok(Self::kept(&dist::folder("dev")))
    }

    /// Programs that were built before and kept in a folder, under their own names.
    pub(super) fn kept(folder: &Path) -> Self {
        Self { operator: folder.join("mcp-hub-operator"), peers: folder.join("bench-peers") }
    }
}

/// A process that ends with this value.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Dead already is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[derive(Debug)]
pub(super) struct Scene {
    operator: Option<Running>,
    _bridges: Running,
    health: Door,
    pub(super) audit: Audit,
    folder: PathBuf,
    programs: (PathBuf, PathBuf),
    // Last, so that everything above ends before it.
    pub(super) cluster: Cluster,
}

impl Scene {
    /// `nodes` of 1,000 pods each; no operator yet.
    pub(super) fn set(build: &Build, nodes: u32) -> Result<Self, Error> {
        crate::cluster::build()?;
        let cluster = Cluster::up(Options { audit: Some(POLICY.to_owned()), ..Options::new(Shape::ControlPlane) })?;
        let crds = shell::root().join("crds/yaml");
        cluster.kubectl(["apply", "--server-side", "--filename", &crds.to_string_lossy()])?;
        cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
        for namespace in [NAMESPACE, "model-namespace"] {
            cluster.kubectl(["create", "namespace", namespace])?;
        }
        cluster.add_fake_nodes(nodes)?;
        let folder = shell::target().join("bench-operator");
        std::fs::create_dir_all(&folder).map_err(|source| Error::File {
            action: "make",
            path: folder.clone(),
            source,
        })?;
        let mut bridges = cluster.command(&build.peers);
        bridges.args(["bridges", "--listen", &SocketAddr::from((NODE, BRIDGE)).to_string()]);
        let bridges = start(&mut bridges, &folder.join("bridges.log"))?;
        let health = cluster.door(SocketAddr::from(([127, 0, 0, 1], HEALTH)))?;
        let audit = Audit::at(cluster.audit_log());
        let programs = (build.operator.clone(), build.peers.clone());
        Ok(Self { operator: None, _bridges: bridges, health, audit, folder, programs, cluster })
    }

    /// Starts the operator and waits until it leads.
    pub(super) fn start_operator(&mut self) -> Result<(), Error> {
        let mut command = self.cluster.command(&self.programs.0);
        command.args(["--namespace", NAMESPACE, "--identity", "bench", "--health", &format!("127.0.0.1:{HEALTH}")]);
        command.args(["--bridge-image", "registry.example/bridge:1", "--gateway-image", "registry.example/gateway:1"]);
        command.args(["--runner-image", "registry.example/runner:1"]);
        self.operator = Some(start(&mut command, &self.folder.join("operator.log"))?);
        self.until("the operator leads", |scene| scene.metrics().contains("mcp_hub_operator_leader 1\n"))
    }

    /// As the kernel would for want of memory.
    pub(super) fn kill_operator(&mut self) {
        self.operator = None;
    }

    pub(super) fn rss_mb(&self) -> f64 {
        self.operator.as_ref().map_or(0.0, |operator| process::rss_mb(operator.0.id()))
    }

    pub(super) fn peak_mb(&self) -> f64 {
        self.operator.as_ref().map_or(0.0, |operator| process::peak_mb(operator.0.id()))
    }

    pub(super) fn cpu_seconds(&self) -> f64 {
        self.operator.as_ref().map_or(0.0, |operator| process::cpu_seconds(operator.0.id()))
    }

    /// Waits until the operator has made so many passes over servers since it was started.
    pub(super) fn passes_over(&mut self, servers: usize) -> Result<(), Error> {
        self.until("a pass over every server", |scene| {
            let metrics = scene.metrics();
            let lines = metrics.lines().filter(|line| line.starts_with("mcp_hub_passes_total{controller=\"server\""));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum::<usize>() >= servers
        })
    }

    /// Waits until the operator has written nothing for so long.
    pub(super) fn quiet(&self, time: Duration) -> Result<(), Error> {
        let (mut position, mut since) = (self.audit.position(), Instant::now());
        let deadline = Instant::now() + PATIENCE;
        while since.elapsed() < time {
            if Instant::now() > deadline {
                return Err(unexpected("the operator goes on writing".to_owned()));
            }
            std::thread::sleep(PAUSE);
            let now = self.audit.position();
            if self.audit.since(position)?.total() > 0 {
                since = Instant::now();
            }
            position = now;
        }
        Ok(())
    }

    /// What the operator writes within this time.
    pub(super) fn writes_within(&self, time: Duration) -> Result<Counts, Error> {
        let position = self.audit.position();
        std::thread::sleep(time);
        self.audit.since(position)
    }

    /// Makes servers and waits until they are Ready.
    pub(super) fn create(&self, first: usize, count: usize) -> Result<Value, Error> {
        self.people(&["create", "--first", &first.to_string(), "--count", &count.to_string()])
    }

    /// Removes all servers, and waits until nothing is left of them.
    pub(super) fn clear(&self) -> Result<Value, Error> {
        self.people(&["clear"])
    }

    pub(super) fn touch(&self, server: &str) -> Result<Value, Error> {
        self.people(&["touch", "--server", server])
    }

    /// What the operator writes for one server, in a file.
    pub(super) fn model(&self) -> Result<PathBuf, Error> {
        let position = self.audit.position();
        self.people(&["create", "--count", "1", "--namespace", "model-namespace"])?;
        self.quiet(super::QUIET)?;
        let writes = Value::from(self.audit.entries(position)?);
        let path = self.folder.join("model.json");
        let written = std::fs::write(&path, writes.to_string());
        written.map_err(|source| Error::File { action: "write", path: path.clone(), source })?;
        Ok(path)
    }

    /// Makes servers and what the operator would write for them, as fast as the API server takes it.
    pub(super) fn replay(&self, model: &Path, count: usize) -> Result<Value, Error> {
        self.people(&["replay", "--count", &count.to_string(), "--writes", &model.to_string_lossy()])
    }

    /// A hub over all servers. Nothing answers for its gateways, which changes nothing about what is written for it.
    pub(super) fn make_hub(&self) -> Result<(), Error> {
        let hub = "apiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {name: hub}\nspec: {}\n";
        self.cluster.apply(hub).map(drop)?;
        Ok(self.cluster.kubectl(["wait", "--for=create", "deployment/mcp-hub-hub", "--timeout=60s"]).map(drop)?)
    }

    pub(super) fn remove_hub(&self) -> Result<(), Error> {
        Ok(self.cluster.kubectl(["delete", "mcphub", "hub", "--timeout=60s"]).map(drop)?)
    }

    fn people(&self, arguments: &[&str]) -> Result<Value, Error> {
        let mut command = self.cluster.command(&self.programs.1);
        let told = shell::output(command.arg("cluster").args(arguments))?;
        serde_json::from_str(&told).map_err(|error| unexpected(error.to_string()))
    }

    fn metrics(&self) -> String {
        let asked = ureq::get(format!("http://{}/metrics", self.health.address())).call();
        // Not listening yet, or not any more.
        asked.ok().and_then(|mut answer| answer.body_mut().read_to_string().ok()).unwrap_or_default()
    }

    fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            if let Some(Ok(Some(status))) = self.operator.as_mut().map(|operator| operator.0.try_wait()) {
                let log = self.folder.join("operator.log");
                return Err(unexpected(format!("the operator ended ({status}); see {}", log.display())));
            }
            if Instant::now() > deadline {
                return Err(unexpected(format!("waited {} s, but not: {what}", PATIENCE.as_secs())));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

fn start(command: &mut Command, log: &Path) -> Result<Running, Error> {
    let failed = |source| Error::File { action: "open", path: log.to_owned(), source };
    let log = File::options().create(true).append(true).open(log).map_err(failed)?;
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    Ok(Running(spawned.map_err(|source| Error::Start { program, source })?))
}

fn unexpected(message: String) -> Error {
    Error::Output { command: "bench operator".to_owned(), message }
}
