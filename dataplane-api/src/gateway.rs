//! What a gateway serves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::secret::SecretString;
use crate::{Era, SessionMode};

/// The whole configuration of one hub's gateway: a pure function of the hub, its servers and where they run.
///
/// It holds secrets (upstream headers); `Debug` hides them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayConfig {
    /// Digest over all other fields; equal configurations have equal versions.
    pub version: String,
    pub hub: HubRef,
    /// Sorted by name; names are unique.
    pub upstreams: Vec<Upstream>,
    pub naming: Naming,
    pub auth: ClientAuth,
    pub limits: GatewayLimits,
    /// `Host` values accepted besides loopback names (`localhost`, `127.0.0.1`, `[::1]`, any port): `host` or `host:port`.
    pub allowed_hosts: Vec<String>,
    /// `Origin` values accepted besides loopback origins.
    pub allowed_origins: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// One MCP server as the gateway reaches it: a bridge, or a remote server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// Name in paths, prefixes and URIs.
    pub name: String,
    pub uid: String,
    pub target: Target,
    pub era: UpstreamEra,
    /// How messages travel; configurations of before do not say.
    #[serde(default)]
    pub transport: Transport,
    pub sessions: SessionMode,
    pub tools: ToolRules,
    /// Longest call in milliseconds.
    pub call_timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Target {
    Available {
        /// Streamable HTTP endpoint, or the stream of HTTP+SSE.
        url: String,
        /// Sent with each request (the bridge's bearer token, a remote server's headers).
        headers: BTreeMap<String, SecretString>,
    },
    /// Calls are answered with `isError`, this reason and this hint; definitions stay for `stale_for_ms`.
    Unavailable { reason: String, message: String, hint: Option<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamEra {
    /// A bridge has already found out.
    Known(Era),
    /// Remote server: the gateway probes.
    Probe,
}

/// What a server speaks on HTTP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// Streamable HTTP; a bridge speaks nothing else.
    #[default]
    StreamableHttp,
    /// HTTP+SSE of 2024-11-05, which is legacy; the URL is that of its stream.
    HttpSse,
    /// Remote server: Streamable HTTP, or HTTP+SSE if it refuses that.
    Probe,
}

/// Which tools of a server are offered, and under which names. Patterns are globs with `*` and `?`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolRules {
    /// Empty allows all.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// The server's own name to the name offered.
    pub rename: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Naming {
    pub mode: NamingMode,
    pub separator: String,
    /// Longest name in characters; a longer one is cut and ends in a stable hash.
    pub max_length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NamingMode {
    /// Always `SERVER` + separator + name.
    Prefix,
    /// Never; a name that two servers offer is left out.
    Bare,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "mode")]
pub enum ClientAuth {
    /// Lower-case hex SHA-256 of each token accepted in `Authorization: Bearer`.
    #[serde(rename_all = "camelCase")]
    Bearer { tokens_sha256: Vec<String> },
    /// Loopback listeners only.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayLimits {
    /// Largest request body in bytes.
    pub message_bytes: u64,
    /// Largest tool result in bytes; the text of a larger one is cut, visibly. `None` bounds nothing.
    pub result_bytes: Option<u64>,
    /// Calls in flight over all clients; more wait their turn up to the call's timeout.
    pub concurrent_calls: u32,
    /// How long an unavailable server's definitions stay listed.
    pub stale_for_ms: u64,
}

/// What a gateway found; the sink reads it for the status of hub and remote servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Version of the configuration being served.
    pub version: String,
    pub upstreams: BTreeMap<String, UpstreamStatus>,
    /// Tools left out of a `Bare` hub because several servers offer them: tool name to server names.
    pub collisions: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum UpstreamStatus {
    /// Not tried yet, or nothing to reach.
    Unknown,
    Ready {
        handshake: crate::status::Handshake,
    },
    /// The server answered 401 or 403 and asks for OAuth.
    #[serde(rename_all = "camelCase")]
    AuthRequired {
        message: String,
    },
    Failed {
        message: String,
    },
}
