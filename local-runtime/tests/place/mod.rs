//! A machine of one test: folders, real bridges, a tiny real MCP server. Whatever happens, nothing of it is left.

#![allow(dead_code, unreachable_pub, reason = "each test binary includes it and uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use mcp_hub_crds::MCPServer;
use mcp_hub_crds::source::Resolved;
use mcp_hub_dataplane_api::status::{BridgeStatus, Phase};
use mcp_hub_local_runtime::host::Host;
use mcp_hub_local_runtime::process::{ProcessConfig, ProcessRuntime};
use mcp_hub_local_runtime::secret_source::Given;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::observed::{Observed, PrepareState};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::plan::plan;
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Far longer than anything here takes; reached only by a bug.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The bridge, built from what is there now.
pub static BRIDGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let target = profile.parent().expect("target/PROFILE");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "mcp-hub-bridge", "--target-dir"]).arg(target);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo runs");
    assert!(status.success(), "the bridge does not build");
    profile.join("mcp-bridge")
});

/// The interpreter itself: a version manager's shim would be a process more, and slow.
pub static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let output = output.expect("the tiny server needs python3 in PATH");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
});

#[derive(Debug)]
pub struct Place {
    folder: tempfile::TempDir,
    pub installation: String,
    pub host: Host,
    pub secrets: Arc<Given>,
}

static PLACES: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub fn new() -> Self {
        // Directly below /tmp: a control socket's path is limited.
        let folder = tempfile::Builder::new().prefix("mh").tempdir_in("/tmp").expect("a temporary folder");
        std::fs::write(folder.path().join("server.py"), include_str!("server.py")).expect("the server's script");
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        Self {
            folder,
            installation: format!("test-{}-{number}", std::process::id()),
            host: Host::of_this_process(),
            secrets: Arc::default(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn script(&self) -> String {
        self.path().join("server.py").to_string_lossy().into_owned()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    pub fn config(&self) -> ProcessConfig {
        ProcessConfig {
            run_dir: self.run_dir(),
            cache_dir: self.path().join("cache"),
            bridge: BRIDGE.clone(),
            installation: self.installation.clone(),
            host: self.host.clone(),
        }
    }

    /// A new value over this place, as a new daemon has it.
    pub fn runtime(&self) -> Arc<ProcessRuntime> {
        ProcessRuntime::new(self.config(), self.secrets.clone()).expect("a runtime")
    }

    /// An `MCPServer` that runs the tiny server with these arguments.
    pub fn server(&self, name: &str, args: &[&str]) -> MCPServer {
        self.server_with(name, args, json!({}))
    }

    /// The same with more in its spec.
    pub fn server_with(&self, name: &str, args: &[&str], more: Value) -> MCPServer {
        let script = self.script();
        let args: Vec<&str> = [script.as_str()].into_iter().chain(args.iter().copied()).collect();
        let mut spec = json!({
            "source": {"command": {"path": PYTHON.to_string_lossy()}},
            "args": args,
            "transport": {"era": "legacy"},
            "restart": {"backoff": {"initial": "100ms"}},
        });
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more);
        }
        let mut server = MCPServer::new(name, serde_json::from_value(spec).expect("a spec"));
        server.metadata.namespace = Some("default".to_owned());
        server.metadata.uid = Some(format!("uid-{name}"));
        server
    }

    /// A server as the runtime is given it, not resolved.
    pub fn workload(&self, server: &MCPServer) -> ServerWorkload {
        let fingerprints = server.spec.env.iter().flatten().filter_map(|variable| variable.secret_ref.clone());
        let fingerprints = fingerprints.map(|key| (key, "fingerprint".to_owned())).collect();
        let installation = Installation::new(&self.installation, [7; 32]);
        ServerWorkload::of(server, &installation, &fingerprints).expect("a uid")
    }

    /// As [`Place::workload`], with what a preparation would find.
    pub fn resolved(&self, server: &MCPServer) -> ServerWorkload {
        let workload = self.workload(server);
        let python = PYTHON.to_string_lossy().into_owned();
        let prefix = PYTHON.parent().and_then(Path::parent).expect("PREFIX/bin/python").to_string_lossy().into_owned();
        let resolved = Resolved {
            source_digest: workload.source_digest.clone(),
            version: None,
            command: Some(vec![python]),
            env: None,
            reads: Some(vec![prefix, self.script()]),
            image: None,
            runner: None,
        };
        ServerWorkload { resolved: Some(resolved), ..workload }
    }

    /// Plans and executes.
    pub async fn apply(&self, runtime: &dyn Runtime, workload: &ServerWorkload) {
        let lowered = runtime.lower(&Workload::Server(Box::new(workload.clone()))).expect("a workload it can run");
        let observed = runtime.observe(&workload.owner).await.expect("observed");
        for step in plan(&lowered, &observed) {
            runtime.execute(&workload.owner, &step).await.expect("executed");
        }
    }

    pub async fn remove(&self, runtime: &dyn Runtime, owner: &OwnerKey) {
        let observed = runtime.observe(owner).await.expect("observed");
        for step in plan(&Default::default(), &observed) {
            runtime.execute(owner, &step).await.expect("executed");
        }
    }

    /// The folder of a server, found by what it says of itself.
    pub fn folder_of(&self, owner: &OwnerKey) -> Option<PathBuf> {
        let wanted = serde_json::to_value(owner).expect("a document");
        self.folders().into_iter().find(|folder| {
            let found = std::fs::read(folder.join("owner.json")).unwrap_or_default();
            serde_json::from_slice::<Value>(&found).is_ok_and(|found| found == wanted)
        })
    }

    fn folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.run_dir()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Everything there is of an owner, found without the runtime: one line for each folder, bridge and process.
    pub fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        let mut found: Vec<String> = marked(&owner.id()).iter().map(|_| "process".to_owned()).collect();
        if let Some(folder) = self.folder_of(owner) {
            found.push("folder".to_owned());
            found.extend(bridges_on(&folder).iter().map(|_| "bridge".to_owned()));
        }
        found.sort();
        found
    }

    /// Everything of this place, whoever owns it.
    pub fn everything(&self) -> Vec<String> {
        let mut found: Vec<String> = marked(&self.installation).iter().map(|_| "process".to_owned()).collect();
        for folder in self.folders() {
            found.push(format!("folder {}", folder.display()));
        }
        found.extend(bridges_below(&self.run_dir()).iter().map(|_| "bridge".to_owned()));
        found.sort();
        found
    }
}

impl Drop for Place {
    /// Bridges first: they would start their servers again.
    fn drop(&mut self) {
        for pid in bridges_below(&self.run_dir()).into_iter().chain(marked(&self.installation)) {
            kill(pid);
        }
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let left = marked(&self.installation);
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(kill);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Processes whose owner mark is `id`, or begins with `id/`.
pub fn marked(id: &str) -> Vec<u32> {
    pids_where("environ", |word| {
        word.strip_prefix("MCP_HUB_OWNER=").is_some_and(|owner| owner == id || owner.starts_with(&format!("{id}/")))
    })
}

/// Bridges with this run folder.
pub fn bridges_on(folder: &Path) -> Vec<u32> {
    pids_where("cmdline", |word| Path::new(word) == folder)
}

fn bridges_below(run_dir: &Path) -> Vec<u32> {
    pids_where("cmdline", |word| Path::new(word).parent() == Some(run_dir))
}

fn pids_where(file: &str, holds: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let words = std::fs::read(entry.path().join(file)).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|word| std::str::from_utf8(word).is_ok_and(&holds)) {
            found.push(pid);
        }
    }
    found
}

/// Only of recorded processes of this place.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// From now on the process does nothing and answers nobody.
pub fn suspend(pid: u32) {
    signal(pid, Signal::STOP);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // Gone already is what is wanted.
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Waits until the owner's observed state satisfies `holds`; gives it.
pub async fn until(runtime: &dyn Runtime, owner: &OwnerKey, what: &str, holds: impl Fn(&Observed) -> bool) -> Observed {
    let started = Instant::now();
    loop {
        let observed = runtime.observe(owner).await.expect("observed");
        if holds(&observed) {
            return observed;
        }
        assert!(started.elapsed() < PATIENCE, "never {what}: {observed:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn is_ready(observed: &Observed) -> bool {
    observed.bridge.as_ref().is_some_and(|bridge| bridge.phase == Phase::Ready)
}

pub async fn until_ready(runtime: &dyn Runtime, owner: &OwnerKey) -> BridgeStatus {
    until(runtime, owner, "ready", is_ready).await.bridge.expect("a bridge")
}

/// Waits for the end of a preparation.
pub async fn until_prepared(runtime: &dyn Runtime, owner: &OwnerKey) -> PrepareState {
    let ended = |observed: &Observed| {
        observed.prepare.as_ref().is_some_and(|prepare| !matches!(prepare.state, PrepareState::Running { .. }))
    };
    until(runtime, owner, "prepared", ended).await.prepare.expect("a preparation").state
}
