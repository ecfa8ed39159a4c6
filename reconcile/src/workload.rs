//! `Workload`: the runtime-neutral description of one server after defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use kube::ResourceExt;
use mcp_hub_crds::hub::Tls;
use mcp_hub_crds::server::{
    EraChoice, LifecycleMode, Permissions, Resources, RestartPolicy, Roots, RunAs, RuntimeChoice, SessionsMode,
    TransportType, Volume,
};
use mcp_hub_crds::source::{Resolved, SecretKeyRef, Source};
use mcp_hub_crds::{MCPServer, MCPServerSpec};
use mcp_hub_dataplane_api::launch::{Child, Drain, LaunchSpec, LogPolicy};
use mcp_hub_dataplane_api::{SessionMode, launch};
use serde_json::Value;

use crate::exposure::Exposure;
use crate::installation::{Installation, token_sha256};
use crate::owner::{OwnerKey, Unstored};
use crate::rest;

/// Annotation by which `mcpctl stop` keeps a server stopped without touching its manifest.
pub const STOPPED_ANNOTATION: &str = "mcphub.io/stopped";
/// Annotation whose change restarts a server, as `kubectl rollout restart` does.
pub const RESTARTED_AT_ANNOTATION: &str = "mcphub.io/restarted-at";
/// Annotation with the folder that relative paths of a manifest start from.
pub const BASE_DIR_ANNOTATION: &str = "mcphub.io/base-dir";

/// What a runtime is asked to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Workload {
    Server(Box<ServerWorkload>),
    /// The data plane of a hub, where it is a workload of its own (clusters).
    Gateway(Box<GatewayWorkload>),
}

/// One server with every default applied. A runtime destructures it without `..`, so that a new field does not compile
/// until it is decided.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerWorkload {
    pub owner: OwnerKey,
    pub source: Source,
    pub source_digest: String,
    /// What resolving found; present only if it belongs to this very source.
    pub resolved: Option<Resolved>,
    pub runtime: Option<RuntimeChoice>,
    /// Folder that relative paths start from; empty in a cluster.
    pub base_dir: String,
    pub transport: launch::ChildTransport,
    pub era: launch::EraChoice,
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<EnvValue>,
    pub volumes: Vec<Volume>,
    pub resources: Option<Resources>,
    pub run_as: Option<RunAs>,
    /// 0 while paused or stopped.
    pub replicas: i32,
    /// Nothing is to run for want of calls, and what makes it run is to stay.
    pub at_rest: bool,
    pub lifecycle: launch::Lifecycle,
    pub sessions: launch::Sessions,
    pub roots: launch::Roots,
    pub health: launch::Health,
    pub restart: launch::Restart,
    pub timeouts: launch::Timeouts,
    pub permissions: Option<Permissions>,
    pub pod_template: Option<Value>,
    pub token_sha256: String,
    /// A new value asks for a restart.
    pub restarted_at: Option<String>,
    /// Namespaces whose gateways may call the server, besides its own.
    pub expose_to: Vec<String>,
    /// The bridge that its objects were made with, if its spec has not changed since: a new release rolls nothing.
    pub bridge: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GatewayWorkload {
    pub owner: OwnerKey,
    pub replicas: i32,
    pub port: u16,
    /// Where the certificate comes from that the gateways show; without, they speak plain HTTP.
    pub tls: Option<Tls>,
    pub exposure: Option<Exposure>,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    Plain { name: String, value: String },
    Secret { name: String, key: SecretKeyRef, fingerprint: Option<String> },
}

impl EnvValue {
    pub fn name(&self) -> &str {
        match self {
            Self::Plain { name, .. } | Self::Secret { name, .. } => name,
        }
    }
}

const DEFAULT_IDLE: Duration = Duration::from_mins(10);
const DEFAULT_SESSIONS: i32 = 20;
const DEFAULT_PROBE_PERIOD: Duration = Duration::from_secs(30);
const DEFAULT_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_FAILURES: i32 = 3;
const DEFAULT_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
const DEFAULT_CALL: Duration = Duration::from_mins(10);
/// The slowest start seen of a published server was 1.5 s warm; a cold disk and an interpreter's first compile multiply it.
const DEFAULT_START: Duration = Duration::from_secs(60);

impl ServerWorkload {
    /// Applies the defaults. `fingerprints` holds one entry for each secret that could be read, see
    /// [`Installation::fingerprint`].
    pub fn of(
        server: &MCPServer,
        installation: &Installation,
        fingerprints: &BTreeMap<SecretKeyRef, String>,
    ) -> Result<Self, Unstored> {
        let owner = OwnerKey::of_server(installation.id(), server)?;
        let annotation = |name: &str| server.annotations().get(name).cloned();
        // Destructured so that a new field of the spec does not compile until this function decides it.
        let MCPServerSpec {
            source,
            runtime,
            transport,
            args,
            working_dir,
            env,
            volumes,
            resources,
            run_as,
            replicas,
            lifecycle,
            sessions,
            roots,
            health,
            restart,
            timeouts,
            // Applied by the gateway, see `gateway::compose`.
            tools: _,
            permissions,
            expose_to,
            // Read by `is_stopped`.
            paused: _,
            kubernetes,
        } = server.spec.clone();

        let source_digest = source_digest(&source);

        Ok(Self {
            transport: child_transport(transport.as_ref()),
            era: match transport.as_ref().and_then(|t| t.era) {
                None | Some(EraChoice::Auto) => launch::EraChoice::Auto,
                Some(EraChoice::Modern) => launch::EraChoice::Modern,
                Some(EraChoice::Legacy) => launch::EraChoice::Legacy,
            },
            args: args.unwrap_or_default(),
            env: env
                .unwrap_or_default()
                .into_iter()
                .map(|var| match var.secret_ref {
                    Some(key) => {
                        let fingerprint = fingerprints.get(&key).cloned();
                        EnvValue::Secret { name: var.name, key, fingerprint }
                    }
                    None => EnvValue::Plain { name: var.name, value: var.value.unwrap_or_default() },
                })
                .collect(),
            volumes: volumes.unwrap_or_default(),
            replicas: if is_stopped(server) { 0 } else { replicas.unwrap_or(1) },
            at_rest: rest::is_at_rest(server),
            lifecycle: match lifecycle.and_then(|l| l.mode) {
                None | Some(LifecycleMode::AlwaysOn) => launch::Lifecycle::AlwaysOn,
                Some(LifecycleMode::OnDemand) => {
                    launch::Lifecycle::OnDemand { idle_timeout_ms: millis(idle_timeout(server)) }
                }
            },
            sessions: launch::Sessions {
                mode: session_mode(sessions.as_ref().and_then(|s| s.mode)),
                max: positive(sessions.as_ref().and_then(|s| s.max).unwrap_or(DEFAULT_SESSIONS)),
            },
            roots: match roots {
                None | Some(Roots::Deny) => launch::Roots::Deny,
                Some(Roots::Forward) => launch::Roots::Forward,
            },
            health: {
                let health = health.as_ref();
                launch::Health {
                    period_ms: millis(health.and_then(|h| h.period).map_or(DEFAULT_PROBE_PERIOD, |d| d.get())),
                    timeout_ms: millis(health.and_then(|h| h.timeout).map_or(DEFAULT_PROBE_TIMEOUT, |d| d.get())),
                    failure_threshold: positive(health.and_then(|h| h.failure_threshold).unwrap_or(DEFAULT_FAILURES)),
                }
            },
            restart: {
                let backoff = restart.as_ref().and_then(|r| r.backoff.as_ref());
                launch::Restart {
                    policy: match restart.as_ref().and_then(|r| r.policy) {
                        None | Some(RestartPolicy::Always) => launch::RestartPolicy::Always,
                        Some(RestartPolicy::OnFailure) => launch::RestartPolicy::OnFailure,
                        Some(RestartPolicy::Never) => launch::RestartPolicy::Never,
                    },
                    initial_ms: millis(backoff.and_then(|b| b.initial).map_or(DEFAULT_BACKOFF.0, |d| d.get())),
                    max_ms: millis(backoff.and_then(|b| b.max).map_or(DEFAULT_BACKOFF.1, |d| d.get())),
                }
            },
            timeouts: launch::Timeouts {
                call_ms: call_timeout_ms(server),
                start_ms: millis(timeouts.as_ref().and_then(|t| t.start).map_or(DEFAULT_START, |d| d.get())),
            },
            token_sha256: token_sha256(&installation.bridge_token(&owner.uid, 0)),
            restarted_at: annotation(RESTARTED_AT_ANNOTATION),
            expose_to: expose_to.unwrap_or_default(),
            bridge: kept_bridge(server),
            base_dir: annotation(BASE_DIR_ANNOTATION).unwrap_or_default(),
            pod_template: kubernetes.and_then(|k| k.pod_template),
            owner,
            source,
            source_digest,
            resolved: resolution(server),
            runtime,
            working_dir,
            resources,
            run_as,
            permissions,
        })
    }

    /// What the server's bridge is told: `child` to run, and where the runtime has it listen and log. The rest is the same
    /// wherever it runs. Without a digest, which is of what this becomes.
    pub fn launch(&self, child: Child, listen: SocketAddr, log: LogPolicy, drain: Drain) -> LaunchSpec {
        let OwnerKey { namespace, name, .. } = &self.owner;
        LaunchSpec {
            owner: launch::Owner { id: self.owner.id(), namespace: namespace.clone(), name: name.clone() },
            digest: String::new(),
            listen,
            token_sha256: self.token_sha256.clone(),
            child,
            transport: self.transport.clone(),
            era: self.era,
            sessions: self.sessions,
            roots: self.roots,
            lifecycle: self.lifecycle,
            health: self.health,
            restart: self.restart,
            timeouts: self.timeouts,
            log,
            drain,
        }
    }

    /// Why roots cannot be forwarded to this server, if they are to be. The schema says the same; a runtime does not rely on
    /// it.
    pub fn unforwardable_roots(&self) -> Option<&'static str> {
        match self.roots {
            launch::Roots::Deny => None,
            launch::Roots::Forward if self.sessions.mode != SessionMode::PerClient => {
                Some("a server that clients share cannot be given one client's roots: set sessions.mode to perClient")
            }
            launch::Roots::Forward if self.transport != launch::ChildTransport::Stdio => {
                Some("roots are forwarded to stdio servers only; one on HTTP asks its clients itself")
            }
            launch::Roots::Forward => None,
        }
    }

    /// Secrets that the server itself needs.
    pub fn secret_env(&self) -> impl Iterator<Item = (&str, &SecretKeyRef)> {
        self.env.iter().filter_map(|var| match var {
            EnvValue::Secret { name, key, .. } => Some((name.as_str(), key)),
            EnvValue::Plain { .. } => None,
        })
    }
}

/// Whether nothing of the server is to run: paused in its spec, scaled to none, or stopped by `mcpctl stop`.
pub fn is_stopped(server: &MCPServer) -> bool {
    let spec = &server.spec;
    spec.paused.unwrap_or(false) || spec.replicas == Some(0) || server.annotations().contains_key(STOPPED_ANNOTATION)
}

/// The bridge that status names, if the spec is still the one it speaks of.
pub fn kept_bridge(server: &MCPServer) -> Option<String> {
    let status = server.status.as_ref()?;
    let same_spec = status.observed_generation.is_some() && status.observed_generation == server.metadata.generation;
    status.bridge.clone().filter(|_| same_spec)
}

/// What resolving found of the server's source, if status keeps it and the source is still the same.
pub fn resolution(server: &MCPServer) -> Option<Resolved> {
    let resolved = server.status.as_ref()?.resolved.clone()?;
    (resolved.source_digest == source_digest(&server.spec.source)).then_some(resolved)
}

fn source_digest(source: &Source) -> String {
    crate::digest(&serde_json::to_value(source).unwrap_or_default())
}

/// How long an `onDemand` server may have no call before it sleeps.
pub(crate) fn idle_timeout(server: &MCPServer) -> Duration {
    server.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.idle_timeout).map_or(DEFAULT_IDLE, |d| d.get())
}

/// Longest call of a server in milliseconds.
pub fn call_timeout_ms(server: &MCPServer) -> u64 {
    millis(server.spec.timeouts.as_ref().and_then(|t| t.call).map_or(DEFAULT_CALL, |d| d.get()))
}

/// `auto` is shared: a child a client costs 60–85 MB with the published servers, and most have no use for it.
pub fn session_mode(mode: Option<SessionsMode>) -> SessionMode {
    match mode {
        None | Some(SessionsMode::Auto | SessionsMode::Shared) => SessionMode::Shared,
        Some(SessionsMode::PerClient) => SessionMode::PerClient,
    }
}

/// What a server speaks towards its bridge.
pub fn child_transport(transport: Option<&mcp_hub_crds::server::Transport>) -> launch::ChildTransport {
    let port = || u16::try_from(transport.and_then(|t| t.port).unwrap_or_default()).unwrap_or_default();
    let path = |default: &str| transport.and_then(|t| t.path.clone()).unwrap_or_else(|| default.to_owned());
    match transport.and_then(|t| t.r#type) {
        None | Some(TransportType::Stdio) => launch::ChildTransport::Stdio,
        Some(TransportType::StreamableHttp) => {
            launch::ChildTransport::StreamableHttp { port: port(), path: path("/mcp") }
        }
        Some(TransportType::Sse) => launch::ChildTransport::Sse { port: port(), path: path("/sse") },
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The schema holds these fields at one or more.
fn positive(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(1)
}
