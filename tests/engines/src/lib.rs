//! A container engine of a test's own with images of ours on it, and the runtime that drives it.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{
    ImportImageOptions, ListContainersOptions, ListImagesOptions, ListNetworksOptions, ListVolumesOptions,
};
use futures::StreamExt;
use mcp_hub_crds::MCPServer;
use mcp_hub_dataplane_api::status::{BridgeStatus, Phase};
use mcp_hub_e2e::Hub;
use mcp_hub_local_runtime::docker::{
    Bridges, DIGITS, DockerConfig, DockerRuntime, EngineKind, Ledger, Program, ProgramImage, Surroundings,
};
use mcp_hub_local_runtime::host::Host;
use mcp_hub_local_runtime::process::{ProcessConfig, ProcessRuntime};
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_local_runtime::secret_source::Given;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::observed::PrepareState;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::plan::plan;
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};
use mcp_hub_test_cluster::{Engine, EngineKind as Engines};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Far longer than anything here takes; reached only by a bug.
pub const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// Folder of the images of `cargo xtask images --tag test`.
pub const IMAGES: &str = "MCP_HUB_TEST_IMAGES";
/// The static bridge of this machine.
pub const BRIDGE: &str = "MCP_HUB_TEST_BRIDGE";
/// The static relay of this machine.
pub const RELAY: &str = "MCP_HUB_TEST_RELAY";
/// An `mcpctl` that carries both.
pub const MCPCTL: &str = "MCP_HUB_TEST_MCPCTL";

/// The example server, whose program is all that its image has.
pub const UNITS: &str = "localhost/mcp-hub/units:test";
/// The server of the tests, with faults on demand.
pub const FIXTURE: &str = "localhost/mcp-hub/fixture:test";

/// A path that the level's set-up gives.
pub fn given(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{variable} is not set; `cargo xtask test --level engines` sets it"))
}

/// A static program of this machine's, whose path the set-up gives.
fn program(variable: &str) -> Program {
    let path = given(variable);
    let mut digest = hex::encode(Sha256::digest(std::fs::read(&path).expect("a static program")));
    digest.truncate(DIGITS);
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    Program { architecture: architecture.to_owned(), digest, image: ProgramImage::Kept(path) }
}

/// An engine with images, and what drives it.
#[derive(Debug)]
pub struct Scene {
    pub engine: Engine,
    pub api: Docker,
    pub installation: Installation,
    pub secrets: Arc<Given>,
    pub folder: tempfile::TempDir,
}

impl Scene {
    /// As [`Scene::empty`], with the example server's image.
    pub async fn up(kind: Engines) -> Self {
        Self::on(Engine::up(kind).expect("an engine")).await
    }

    /// As [`Scene::up`], on an engine that was started already.
    pub async fn on(engine: Engine) -> Self {
        let scene = Self::of(engine).await;
        scene.load("units").await;
        scene
    }

    /// Starts the engine, which has no image, and moves this thread to where its published ports are.
    pub async fn empty(kind: Engines) -> Self {
        Self::of(Engine::up(kind).expect("an engine")).await
    }

    async fn of(engine: Engine) -> Self {
        engine.enter().expect("its network");
        let api = Docker::connect_with_unix(&engine.address(), 60, bollard::API_DEFAULT_VERSION).expect("a client");
        let api = api.negotiate_version().await.expect("an engine that says its version");
        Self {
            installation: Installation::new(format!("test-{}", std::process::id()), [7; 32]),
            secrets: Arc::default(),
            folder: tempfile::tempdir().expect("a folder"),
            engine,
            api,
        }
    }

    /// Loads an image of ours by its name.
    pub async fn load(&self, name: &str) {
        let archive = std::fs::read(given(IMAGES).join(format!("{name}.tar"))).expect("the image's archive");
        let body = bollard::body_full(archive.into());
        let mut steps = self.api.import_image(ImportImageOptions::default(), body, None);
        while let Some(step) = steps.next().await {
            let step = step.expect("a loaded image");
            assert!(step.error_detail.is_none(), "{step:?}");
        }
    }

    pub fn kind(&self) -> EngineKind {
        match self.engine.kind() {
            Engines::Docker => EngineKind::Docker,
            Engines::Podman => EngineKind::Podman,
        }
    }

    /// The variable that names the engine's address.
    fn variable(&self) -> &'static str {
        match self.kind() {
            EngineKind::Podman => "CONTAINER_HOST",
            EngineKind::Docker | EngineKind::Vessel => "DOCKER_HOST",
        }
    }

    /// A hub whose images run on the engine that answers at this address, with no daemon yet.
    pub fn hub(&self, address: &str) -> Hub {
        let mut hub = Hub::new();
        hub.set_env(self.variable(), address);
        hub.set_env("MCPHUB_RUNTIME", self.kind().as_str());
        hub.set_env("MCPHUB_SECRETS_PASSPHRASE", "a passphrase of the test");
        hub
    }

    /// Over the engine's own socket.
    pub fn config(&self) -> DockerConfig {
        self.config_at(self.engine.address())
    }

    pub fn config_at(&self, address: String) -> DockerConfig {
        DockerConfig {
            kind: self.kind(),
            around: Surroundings {
                env: BTreeMap::from([(self.variable().to_owned(), address)]),
                ..Surroundings::default()
            },
            installation: self.installation.clone(),
            host: Host::of_this_process(),
            bridges: Bridges::new(vec![program(BRIDGE)], self.folder.path().join("bridges")),
            relays: vec![program(RELAY)],
            ledger: Ledger::new(self.folder.path().join("images")),
        }
    }

    /// A new value over this engine, as a new daemon has it.
    pub async fn runtime(&self) -> Arc<DockerRuntime> {
        let runtime = DockerRuntime::start(self.config(), self.secrets.clone()).await;
        if let Err(missing) = runtime.engine() {
            panic!("{missing}");
        }
        runtime
    }

    /// All runtimes of a machine with this engine.
    pub async fn machine(&self) -> Arc<RuntimeSet> {
        let config = ProcessConfig {
            run_dir: self.folder.path().join("run"),
            cache_dir: self.folder.path().join("cache"),
            bridge: given(BRIDGE),
            installation: self.installation.id().to_owned(),
            host: Host::of_this_process(),
        };
        let process = ProcessRuntime::new(config, self.secrets.clone()).expect("a process runtime");
        Arc::new(RuntimeSet::new(process, vec![(self.kind(), self.runtime().await)], None))
    }

    /// An `MCPServer` of the example image, with more in its spec.
    pub fn server(&self, name: &str, more: Value) -> MCPServer {
        let mut spec = json!({"source": {"image": {"ref": UNITS}}, "restart": {"backoff": {"initial": "100ms"}}});
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
        ServerWorkload::of(server, &self.installation, &fingerprints).expect("a uid")
    }

    /// As [`Scene::workload`], with what the preparation finds.
    pub async fn resolved(&self, runtime: &dyn Runtime, server: &MCPServer) -> ServerWorkload {
        let mut workload = self.workload(server);
        self.apply(runtime, &workload).await;
        let found = until("the image is resolved", async || {
            match runtime.observe(&workload.owner).await.unwrap().prepare?.state {
                PrepareState::Done(resolved) => Some(resolved),
                PrepareState::Running { .. } => None,
                PrepareState::Failed(failure) => panic!("{failure:?}"),
            }
        });
        workload.resolved = Some(found.await);
        workload
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

    /// Containers by name with their states, of this label only if one is given.
    pub async fn containers(&self, label: Option<String>) -> Vec<String> {
        let filters = label.map(|label| HashMap::from([("label".to_owned(), vec![label])]));
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let deadline = Instant::now() + PATIENCE;
        let found = loop {
            match self.api.list_containers(Some(options.clone())).await {
                Ok(found) => break found,
                // Podman has a state between running and exited that the library does not know.
                Err(bollard::errors::Error::JsonDataError { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|container| {
                let name = container.names.and_then(|names| names.first().cloned()).unwrap_or_default();
                format!("{} {:?}", name.trim_start_matches('/'), container.state)
            })
            .collect();
        lines.sort();
        lines
    }

    /// Everything on the engine that bears our installation's mark: containers, networks, volumes.
    pub async fn everything(&self) -> Vec<String> {
        self.marked(format!("mcphub.io/installation={}", self.installation.id())).await
    }

    /// As [`Scene::everything`], of whichever installation.
    pub async fn everybodys(&self) -> Vec<String> {
        self.marked("mcphub.io/installation".to_owned()).await
    }

    async fn marked(&self, label: String) -> Vec<String> {
        let filters = Some(HashMap::from([("label".to_owned(), vec![label.clone()])]));
        let mut all = self.containers(Some(label)).await;
        let networks = self.api.list_networks(Some(ListNetworksOptions { filters: filters.clone() })).await.unwrap();
        all.extend(networks.into_iter().filter_map(|network| network.name));
        let volumes = self.api.list_volumes(Some(ListVolumesOptions { filters: filters.clone() })).await.unwrap();
        all.extend(volumes.volumes.into_iter().flatten().map(|volume| volume.name));
        let options = ListImagesOptions { filters, ..ListImagesOptions::default() };
        let images = self.api.list_images(Some(options)).await.unwrap();
        all.extend(images.into_iter().flat_map(|image| image.repo_tags));
        all
    }
}

/// A manifest of a server of this image, with more in its spec.
pub fn manifest(name: &str, image: &str, more: &Value) -> String {
    let mut spec = json!({"source": {"image": {"ref": image}}});
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
        spec.extend(more.clone());
    }
    let object =
        json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": name}, "spec": spec});
    format!("---\n{object}\n")
}

/// Waits for a state.
pub async fn until<T>(what: &str, mut reached: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = reached().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the server's handshake succeeded.
pub async fn until_ready(runtime: &DockerRuntime, owner: &OwnerKey) -> BridgeStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // An engine that is busy may fail a look; the next one tells.
        let bridge = runtime.observe(owner).await.ok().and_then(|observed| observed.bridge);
        if let Some(bridge) = bridge.filter(|bridge| matches!(bridge.phase, Phase::Ready)) {
            return bridge;
        }
        assert!(Instant::now() < deadline, "{owner} is not ready in time");
        tokio::time::sleep(PAUSE).await;
    }
}
