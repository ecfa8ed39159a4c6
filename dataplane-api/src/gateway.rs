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
    /// Digest over all other fields but `sequence`; equal configurations have equal versions.
    pub version: String,
    /// Order of the configurations of a hub, which may reach a gateway by two ways: one with a lower number than that in
    /// force is not taken. Whoever distributes configurations raises it with each new version; 0 where there is one way.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u64,
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
    /// Who wakes sleeping servers; without, calls to them are answered as to unavailable ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<Wake>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where a gateway asks for a sleeping server: `POST` of `{"server": UID}` with `Authorization: Bearer TOKEN`, answered with
/// any status of success; the server is awake when a configuration says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wake {
    pub url: String,
    pub token: SecretString,
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
    /// What the server offered when it was last awake, for a gateway that has not met it; what a gateway has learned itself
    /// counts more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definitions: Option<Definitions>,
}

/// What a server says of itself and offers; each is raw JSON as the server wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Definitions {
    pub era: Era,
    /// Result of `initialize` or `server/discover`.
    pub introduction: String,
    /// Arrays of definitions; `None` for what the server does not offer.
    pub tools: Option<String>,
    pub prompts: Option<String>,
    pub resources: Option<String>,
    pub resource_templates: Option<String>,
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
    /// Nothing runs, for want of calls. Definitions stay listed. A call asks for the server and is held until it is
    /// `Available`, so this remains its state while it wakes; `Unavailable` ends what is held.
    Asleep,
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
    /// By the server's uid.
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

impl UpstreamStatus {
    /// The best of what several gateways found of one server.
    pub fn best(found: impl IntoIterator<Item = Self>) -> Option<Self> {
        found.into_iter().max_by_key(|status| match status {
            Self::Ready { .. } => 3,
            Self::AuthRequired { .. } => 2,
            Self::Failed { .. } => 1,
            Self::Unknown => 0,
        })
    }
}

/// What one replica of a gateway tells on its control listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    #[serde(flatten)]
    pub status: GatewayStatus,
    /// Of the configuration in force.
    pub sequence: u64,
    /// Whether the replica is about to end: it takes no new connections, or will not for long.
    pub draining: bool,
    /// By the server's uid.
    pub activity: BTreeMap<String, UpstreamActivity>,
}

/// How much a server is used through one replica. Lists, probes and streams of notifications are no use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamActivity {
    /// Calls under way, those that wait for their client or for the server to wake among them.
    pub calls_in_flight: u32,
    /// Milliseconds since a call last ended; `None` if this replica has made none.
    pub idle_ms: Option<u64>,
}

/// The answer to a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    pub version: String,
    pub sequence: u64,
}

#[cfg(all(test, feature = "control"))]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config() -> GatewayConfig {
        GatewayConfig {
            version: "v1".to_owned(),
            sequence: 3,
            hub: HubRef { namespace: "default".to_owned(), name: "default".to_owned(), uid: "hub".to_owned() },
            upstreams: Vec::new(),
            naming: Naming { mode: NamingMode::Prefix, separator: "_".to_owned(), max_length: 48 },
            auth: ClientAuth::None,
            limits: GatewayLimits { message_bytes: 1, result_bytes: None, concurrent_calls: 1, stale_for_ms: 1 },
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            wake: Some(Wake { url: "http://operator".to_owned(), token: SecretString::new("secret") }),
        }
    }

    #[test]
    fn a_configuration_of_an_earlier_release_is_read() {
        let mut old = serde_json::to_value(config()).unwrap();
        for new in ["sequence", "wake"] {
            assert!(old.as_object_mut().unwrap().remove(new).is_some(), "{new}");
        }
        let read: GatewayConfig = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(read, GatewayConfig { sequence: 0, wake: None, ..config() });
        assert_eq!(serde_json::to_value(read).unwrap(), old, "what is not used changes no digest");
    }
}
