//! Status of an `MCPServer`, and the condition types and reasons of both resources.

#![expect(unreachable_pub, reason = "KubeSchema nests a public copy of each struct it derives for")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::source::Resolved;

#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MCPServerStatus {
    /// Generation of the spec that this status speaks of.
    pub observed_generation: Option<i64>,
    /// Summary for people; programs read the conditions.
    pub phase: Option<Phase>,
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Option<Vec<Condition>>,
    /// Where gateways reach the server.
    pub endpoint: Option<String>,
    /// Runtime that runs it.
    pub runtime: Option<String>,
    pub replicas: Option<i32>,
    pub resolved: Option<Resolved>,
    pub server: Option<ServerInfo>,
    pub tools: Option<ToolsStatus>,
    /// Restarts by supervision.
    pub restarts: Option<i64>,
    pub last_error: Option<String>,
    /// The request to restart (annotation `mcphub.io/restarted-at`) that was last carried out.
    pub restarted_at: Option<String>,
    /// The bridge that its objects were made with (clusters); kept until the spec changes, so that a new release rolls
    /// nothing.
    pub bridge: Option<String>,
    /// Version of the lowering that its objects were made by; kept until the spec changes.
    pub lower_revision: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    Pending,
    Preparing,
    Starting,
    Ready,
    Asleep,
    Degraded,
    CrashLoop,
    Paused,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Preparing => "Preparing",
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Asleep => "Asleep",
            Self::Degraded => "Degraded",
            Self::CrashLoop => "CrashLoop",
            Self::Paused => "Paused",
            Self::Failed => "Failed",
        }
    }
}

/// What the server said of itself in its handshake.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    pub name: String,
    pub version: String,
    /// Newest first.
    pub protocol_versions: Vec<String>,
    /// `legacy` or `modern`.
    pub era: Option<String>,
    /// Milliseconds from spawn to the end of the handshake.
    pub start_millis: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolsStatus {
    pub count: i32,
    /// SHA-256 over the definitions, ordered by name.
    pub digest: String,
}

/// Condition types of both resources.
pub mod condition {
    /// The spec is valid and every field of it is honoured or named as degraded.
    pub const ACCEPTED: &str = "Accepted";
    /// The source is installed or pulled and its secrets are there; of a hub that names a certificate: it is there.
    pub const RESOLVED: &str = "Resolved";
    /// The runtime runs what was asked of it.
    pub const AVAILABLE: &str = "Available";
    /// An MCP handshake succeeded and stands.
    pub const READY: &str = "Ready";
    /// The runtime honours the spec in full; False names what is degraded.
    pub const RUNTIME_SUPPORTED: &str = "RuntimeSupported";
    /// The server asks for an authorization that the hub does not have.
    pub const AUTH_REQUIRED: &str = "AuthRequired";
    /// The object's file says something else by now, which cannot be read; absent while all is well (local mode only).
    pub const MANIFEST_SYNCED: &str = "ManifestSynced";
    /// The gateway serves the newest configuration (hubs only).
    pub const CONFIG_SYNCED: &str = "ConfigSynced";
    /// Clients come in from outside by what the spec asks for; absent if it asks for nothing (hubs only).
    pub const EXPOSED: &str = "Exposed";
}
