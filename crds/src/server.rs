//! `MCPServer`: one MCP server.

#![expect(unreachable_pub, reason = "KubeSchema nests a public copy of each struct it derives for")]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_with::skip_serializing_none;

use crate::source::{SecretKeyRef, Source};
use crate::{Duration, MCPServerStatus, Quantity};

/// What runs, how, and what it may do.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, CustomResource, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "mcphub.io",
    version = "v1alpha1",
    kind = "MCPServer",
    plural = "mcpservers",
    singular = "mcpserver",
    shortname = "mcps",
    category = "mcp",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "MCPServerStatus",
    doc = "One MCP server: where it comes from, how it runs, what it may do.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("a name has at most 40 lower-case letters, digits and inner hyphens"),
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.tools.count"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.runtime"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.lastError", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.source.remote) || !(has(self.args) || has(self.env) || has(self.volumes) || has(self.workingDir) || has(self.resources) || has(self.runAs) || has(self.replicas) || has(self.lifecycle) || has(self.permissions) || has(self.runtime))").message("a remote server runs elsewhere: args, env, volumes, workingDir, resources, runAs, replicas, lifecycle, permissions and runtime cannot be set"),
    validation = Rule::new("!has(self.transport) || !has(self.transport.type) || self.transport.type == 'stdio' || has(self.transport.port) || has(self.source.remote)").message("an HTTP transport needs its port"),
    validation = Rule::new("!has(self.source.remote) || !has(self.transport) || !(has(self.transport.port) || has(self.transport.path) || (has(self.transport.type) && self.transport.type == 'stdio'))").message("a remote server is reached by its url: transport.type is streamable-http or sse, and port and path cannot be set"),
    validation = Rule::new("!has(self.roots) || self.roots != 'Forward' || (has(self.sessions) && has(self.sessions.mode) && self.sessions.mode == 'perClient')").message("roots: Forward needs sessions.mode: perClient"),
    validation = Rule::new("!has(self.runtime) || self.runtime != 'process' || !has(self.source.image)").message("an image cannot run as a process; leave runtime empty or name a container engine")
)]
pub struct MCPServerSpec {
    /// Where the server comes from: exactly one of image, package, command and remote.
    pub source: Source,
    /// Where it runs in local mode; by the source if not set.
    pub runtime: Option<RuntimeChoice>,
    /// How the server is spoken to (default: stdio, its era found out).
    pub transport: Option<Transport>,
    /// Arguments; they replace an image's CMD.
    #[schemars(length(max = 256))]
    pub args: Option<Vec<String>>,
    /// Folder it starts in (default: the image's, or one of its own).
    #[schemars(length(min = 1, max = 4096))]
    pub working_dir: Option<String>,
    /// Environment variables, by name.
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub env: Option<Vec<EnvVar>>,
    /// Folders it sees, by name.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub volumes: Option<Vec<Volume>>,
    /// CPU and memory.
    pub resources: Option<Resources>,
    /// User and group it runs as.
    pub run_as: Option<RunAs>,
    /// Copies of the server (default 1).
    #[schemars(range(min = 0, max = 100))]
    pub replicas: Option<i32>,
    /// Whether it runs always or when called.
    pub lifecycle: Option<Lifecycle>,
    /// Whether clients share one process of it.
    pub sessions: Option<Sessions>,
    /// Whether a client's roots reach the server (default Deny).
    pub roots: Option<Roots>,
    /// How it is found out whether the server is alive.
    pub health: Option<Health>,
    /// What follows when it ends.
    pub restart: Option<Restart>,
    /// How long a start and a call may take.
    pub timeouts: Option<Timeouts>,
    /// Which of its tools are offered, under which names.
    pub tools: Option<Tools>,
    /// What it may reach and touch.
    pub permissions: Option<Permissions>,
    /// Other namespaces whose hubs may select this server.
    #[schemars(length(max = 64), inner(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    pub expose_to: Option<Vec<String>>,
    /// Keep the server stopped (default false).
    pub paused: Option<bool>,
    /// What only a cluster has.
    pub kubernetes: Option<KubernetesOptions>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeChoice {
    Process,
    Docker,
    Podman,
    Vessel,
    Swarm,
}

impl RuntimeChoice {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Vessel => "vessel",
            Self::Swarm => "swarm",
        }
    }
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.type) || self.type == 'stdio' ? !has(self.port) && !has(self.path) : true").message("port and path belong to HTTP transports"),
    validation = Rule::new("!has(self.type) || self.type != 'sse' || !has(self.era) || self.era != 'modern'").message("a server on sse speaks the legacy era")
)]
pub struct Transport {
    /// What the server speaks (default stdio; of a remote server: streamable-http, and sse if it refuses that).
    pub r#type: Option<TransportType>,
    /// Port the server listens on (HTTP transports).
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Path of the endpoint (default `/mcp`, for sse `/sse`).
    #[schemars(length(min = 1, max = 512), regex(pattern = r#"^/[!-"$->@-~]*$"#))]
    pub path: Option<String>,
    /// Protocol era (default auto: found out by a probe).
    pub era: Option<EraChoice>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransportType {
    #[serde(rename = "stdio")]
    Stdio,
    #[serde(rename = "streamable-http")]
    StreamableHttp,
    #[serde(rename = "sse")]
    Sse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EraChoice {
    Auto,
    Modern,
    Legacy,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.value) && has(self.secretRef))").message("at most one of `value` and `secretRef` may be set"))]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// Its value, in clear.
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// Its value, from a secret.
    pub secret_ref: Option<SecretKeyRef>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.hostPath), has(self.emptyDir), has(self.pvc), has(self.configMap)].filter(x, x).size() == 1").message("exactly one of hostPath, emptyDir, pvc and configMap must be set"))]
pub struct Volume {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Where the server sees it.
    #[schemars(length(min = 1, max = 4096))]
    pub mount_path: String,
    /// Default false.
    pub read_only: Option<bool>,
    /// A folder of the machine; `~/` is the user's home.
    #[schemars(length(min = 1, max = 4096))]
    pub host_path: Option<String>,
    /// A folder that lives as long as the server's object.
    pub empty_dir: Option<EmptyDir>,
    /// Name of a PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub pvc: Option<String>,
    /// Name of a ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub config_map: Option<String>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDir {
    /// Most it may hold (default: no limit).
    pub size_limit: Option<Quantity>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Most it may use.
    pub limits: Option<ResourceAmounts>,
    /// What is set aside for it (cluster only).
    pub requests: Option<ResourceAmounts>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// Cores, such as `500m`.
    pub cpu: Option<Quantity>,
    /// Bytes, such as `256Mi`.
    pub memory: Option<Quantity>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.user) || self.user != 0 || (has(self.allowRoot) && self.allowRoot)").message("user 0 is root and needs allowRoot: true"))]
pub struct RunAs {
    /// Numeric user id.
    #[schemars(range(min = 0, max = 4294967294_i64))]
    pub user: Option<i64>,
    /// Numeric group id.
    #[schemars(range(min = 0, max = 4294967294_i64))]
    pub group: Option<i64>,
    /// Default false.
    pub allow_root: Option<bool>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.idleTimeout) || (has(self.mode) && self.mode == 'onDemand')").message("idleTimeout needs mode: onDemand"))]
pub struct Lifecycle {
    /// Default alwaysOn.
    pub mode: Option<LifecycleMode>,
    /// Time without a call after which an onDemand server is stopped (default 10m).
    pub idle_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LifecycleMode {
    AlwaysOn,
    OnDemand,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sessions {
    /// Default auto, which is shared.
    pub mode: Option<SessionsMode>,
    /// Most legacy sessions at a time (default 20).
    #[schemars(range(min = 1, max = 10000))]
    pub max: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SessionsMode {
    Auto,
    Shared,
    PerClient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Roots {
    Deny,
    Forward,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.http) && has(self.exec))").message("at most one of `http` and `exec` may be set"))]
pub struct Health {
    /// Time between two MCP probes (default 30s).
    pub period: Option<Duration>,
    /// Time for an answer (default 5s).
    pub timeout: Option<Duration>,
    /// Failures in a row after which the server is restarted (default 3).
    #[schemars(range(min = 1, max = 100))]
    pub failure_threshold: Option<i32>,
    /// HTTP path probed in addition.
    #[schemars(length(min = 1, max = 512))]
    pub http: Option<String>,
    /// Command run in addition; exit code 0 is healthy.
    #[schemars(length(min = 1, max = 64))]
    pub exec: Option<Vec<String>>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Default Always.
    pub policy: Option<RestartPolicy>,
    /// Waits between restarts.
    pub backoff: Option<Backoff>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Wait before the second restart (default 1s); the first is immediate.
    pub initial: Option<Duration>,
    /// Longest wait (default 5m).
    pub max: Option<Duration>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Longest call (default 10m).
    pub call: Option<Duration>,
    /// Longest start, from spawn to handshake (default 60s).
    pub start: Option<Duration>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tools {
    /// Globs of tools offered; none means all.
    #[schemars(length(max = 256))]
    pub allow: Option<Vec<String>>,
    /// Globs of tools never offered.
    #[schemars(length(max = 256))]
    pub deny: Option<Vec<String>>,
    /// The server's name of a tool to the name offered.
    pub rename: Option<BTreeMap<String, String>>,
    /// Guards against definitions that change behind your back.
    pub lock: Option<ToolLock>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolLock {
    /// What happens when a tool's definition changes.
    pub on_change: ToolLockAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ToolLockAction {
    Block,
    Warn,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permissions {
    /// What the server may reach.
    pub network: Option<NetworkPermissions>,
    /// What the server may do in the file system outside its volumes.
    pub filesystem: Option<FilesystemPermission>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPermissions {
    /// `host:port` that the server may reach; no list means unrestricted, an empty list means nothing.
    #[schemars(length(max = 256))]
    pub egress: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FilesystemPermission {
    /// Reads everything its user may, writes only into its volumes and a temporary folder of its own.
    ReadOnly,
    /// Reads its program and its volumes, writes its volumes and a temporary folder of its own.
    Volumes,
    /// As its user.
    Unrestricted,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesOptions {
    /// Merged strategically over the generated pod template; it cannot weaken security fields.
    #[schemars(schema_with = "any_object")]
    pub pod_template: Option<Value>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
