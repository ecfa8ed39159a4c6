//! The programs that a benchmark needs, built and running: servers, what stands in front of them, and the load.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::gateway::{
    ClientAuth, GatewayConfig, GatewayLimits, HubRef, Naming, NamingMode, Target, ToolRules, Transport, Upstream,
    UpstreamEra,
};
use mcp_hub_dataplane_api::launch::{
    Child as Program, ChildTransport, Drain, EraChoice, Health, LaunchSpec, Lifecycle, Limits, LogPolicy, Owner,
    Restart, RestartPolicy, Roots, Sessions, Timeouts,
};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::{Era, SessionMode};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::dist;
use crate::shell::{self, Error};

/// Opens every endpoint here: a bridge's and a gateway's check costs the same whatever the token.
pub(super) const TOKEN: &str = "of-the-benchmarks";
/// Longest start of a program.
const START: Duration = Duration::from_secs(20);

/// A process that ends with this value.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Dead already is what is wanted. A bridge's server reads the end of its stdin.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A running program and where it answers.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) process: Running,
    pub(super) address: SocketAddr,
}

/// What is measured, as built.
#[derive(Debug, Clone)]
pub(super) struct Build {
    gateway: PathBuf,
    bridge: PathBuf,
}

/// The folder of the run, and the programs in it.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) peers: PathBuf,
    folder: PathBuf,
}

impl Build {
    /// The working tree, as it is shipped.
    pub(super) fn now() -> Result<Self, Error> {
        shell::run(shell::cargo(&["build", "--locked", "--release"]).args(["--package", "mcp-hub-gateway"]))?;
        Ok(Self { gateway: shell::target().join("release/mcp-hub-gateway"), bridge: dist::own_bridge()? })
    }

    /// The working tree, as tests use it.
    pub(super) fn debug() -> Result<Self, Error> {
        shell::programs()?;
        Ok(Self::kept(&shell::target().join("debug")))
    }

    /// Programs that were built before and kept in a folder, under their own names.
    pub(super) fn kept(folder: &Path) -> Self {
        Self { gateway: folder.join("mcp-hub-gateway"), bridge: folder.join("mcp-bridge") }
    }
}

impl Stage {
    pub(super) fn set() -> Result<Self, Error> {
        shell::run(&mut shell::cargo(&["build", "--locked", "--package", "mcp-hub-bench-peers", "--release"]))?;
        Self::of("release")
    }

    /// With programs of this profile that are built.
    pub(super) fn of(profile: &str) -> Result<Self, Error> {
        let folder = shell::target().join("bench-gateway");
        let failed = |source| Error::File { action: "make", path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self { peers: dist::folder(profile).join("bench-peers"), folder })
    }

    /// The echo server on HTTP; `port` 0 takes a free one.
    pub(super) fn backend(&self, port: u16) -> Result<Served, Error> {
        let address = SocketAddr::from(([127, 0, 0, 1], if port == 0 { free_port()? } else { port }));
        serve(Command::new(&self.peers).args(["backend", "--port", &address.port().to_string()]), address)
    }

    /// The bare pass-through.
    pub(super) fn through(&self, to: SocketAddr) -> Result<Served, Error> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let port = address.port().to_string();
        serve(Command::new(&self.peers).args(["through", "--port", &port, "--to", &to.to_string()]), address)
    }

    /// A gateway that knows all its servers.
    pub(super) fn gateway(&self, build: &Build, name: &str, upstreams: Vec<Upstream>) -> Result<Served, Error> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let all = upstreams.len();
        let config = self.write(&format!("{name}.json"), json(&config(upstreams))?)?;
        let key = self.write(&format!("{name}.key"), "00".repeat(32))?;
        let mut command = Command::new(&build.gateway);
        command.args(["--listen", &address.to_string()]).arg("--config").arg(config).arg("--sealing-key").arg(key);
        // As the detached daemon has it, of which the gateway is a part.
        command.env("MALLOC_ARENA_MAX", "1");
        let served = serve(&mut command, address)?;
        let wanted = format!("mcp_hub_gateway_servers_ready {all}\n");
        until("the gateway to reach every server", || {
            let mut response = ureq::get(format!("http://{address}/metrics"))
                .header("authorization", format!("Bearer {TOKEN}"))
                .call()
                .ok()?;
            response.body_mut().read_to_string().ok().filter(|text| text.contains(&wanted)).map(drop)
        })?;
        Ok(served)
    }

    /// A bridge in front of the echo server on stdio.
    pub(super) fn bridge(&self, build: &Build, name: &str, era: Era) -> Result<Served, Error> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let folder = self.folder.join(name);
        let failed = |source| Error::File { action: "make", path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        self.write(&format!("{name}/launch.json"), json(&launch(&self.peers, address, era))?)?;
        let served = serve(Command::new(&build.bridge).arg(&folder).env_clear(), address)?;
        until("the bridge to shake hands", || ureq::get(format!("http://{address}/readyz")).call().ok().map(drop))?;
        Ok(served)
    }

    fn write(&self, name: &str, text: String) -> Result<PathBuf, Error> {
        let path = self.folder.join(name);
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        std::fs::write(&path, text).map_err(failed)?;
        Ok(path)
    }
}

fn json(document: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(document).map_err(|error| unexpected(error.to_string()))
}

fn unexpected(message: String) -> Error {
    Error::Output { command: "bench".to_owned(), message }
}

/// A server as a gateway reaches it.
pub(super) fn upstream(name: &str, url: String, era: Era) -> Upstream {
    let headers = BTreeMap::from([("authorization".to_owned(), SecretString::new(format!("Bearer {TOKEN}")))]);
    Upstream {
        name: name.to_owned(),
        uid: name.to_owned(),
        target: Target::Available { url, headers },
        era: UpstreamEra::Known(era),
        transport: Transport::StreamableHttp,
        sessions: SessionMode::Shared,
        tools: ToolRules::default(),
        call_timeout_ms: 600_000,
        definitions: None,
    }
}

/// What a hub gets that says nothing but which servers it has.
fn config(upstreams: Vec<Upstream>) -> GatewayConfig {
    let name = |text: &str| text.to_owned();
    GatewayConfig {
        version: name("1"),
        sequence: 0,
        hub: HubRef { namespace: name("default"), name: name("default"), uid: name("bench") },
        upstreams,
        naming: Naming { mode: NamingMode::Prefix, separator: name("_"), max_length: 48 },
        auth: ClientAuth::Bearer { tokens_sha256: vec![hex::encode(Sha256::digest(TOKEN))] },
        limits: GatewayLimits {
            message_bytes: 4 << 20,
            concurrent_calls: 512,
            stale_for_ms: 600_000,
            result_bytes: None,
        },
        allowed_hosts: Vec::new(),
        allowed_origins: Vec::new(),
        wake: None,
    }
}

/// The echo server as the process runtime would have it run, but for room for more sessions than clients have.
fn launch(peers: &Path, listen: SocketAddr, era: Era) -> LaunchSpec {
    let name = |text: &str| text.to_owned();
    LaunchSpec {
        owner: Owner { id: name("bench/echo"), namespace: name("default"), name: name("echo") },
        digest: name("bench"),
        listen,
        token_sha256: hex::encode(Sha256::digest(TOKEN)),
        child: Program {
            program: peers.to_string_lossy().into_owned(),
            args: vec![name("stdio")],
            working_dir: name("/"),
            inherit_env: false,
            env: BTreeMap::new(),
            secret_env: Vec::new(),
            limits: Limits::default(),
            filesystem: None,
        },
        transport: ChildTransport::Stdio,
        era: if era == Era::Legacy { EraChoice::Legacy } else { EraChoice::Modern },
        sessions: Sessions { mode: SessionMode::Shared, max: 1000 },
        roots: Roots::Deny,
        lifecycle: Lifecycle::AlwaysOn,
        health: Health { period_ms: 30_000, timeout_ms: 5_000, failure_threshold: 3 },
        restart: Restart { policy: RestartPolicy::Always, initial_ms: 1_000, max_ms: 300_000 },
        timeouts: Timeouts { call_ms: 600_000, start_ms: 60_000 },
        log: LogPolicy { max_bytes: 1 << 20, files: 2 },
        drain: Drain::default(),
    }
}

/// Starts a program and waits until it takes connections.
fn serve(command: &mut Command, address: SocketAddr) -> Result<Served, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
    let process = Running(spawned.map_err(|source| Error::Start { program: program.clone(), source })?);
    until(&format!("{program} to listen"), || TcpStream::connect(address).ok().map(drop))?;
    Ok(Served { process, address })
}

fn until(what: &str, mut is_so: impl FnMut() -> Option<()>) -> Result<(), Error> {
    let started = Instant::now();
    while is_so().is_none() {
        if started.elapsed() > START {
            return Err(unexpected(format!("waited {} s for {what}", START.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn free_port() -> Result<u16, Error> {
    mcp_hub_test_port::free_port().map_err(|error| unexpected(error.to_string()))
}
