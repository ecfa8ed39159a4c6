//! What a bridge knows of its MCP server.

use serde::{Deserialize, Serialize};

use crate::Era;

/// The bridge's `/status` document: the only source of what status says of a server's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BridgeStatus {
    pub bridge_version: String,
    /// Digest of the launch specification this bridge runs.
    pub digest: String,
    /// `http://HOST:PORT/mcp` of the bridge.
    pub endpoint: String,
    pub phase: Phase,
    /// The last handshake that succeeded; kept while the child is away.
    pub handshake: Option<Handshake>,
    /// Restarts by supervision since the bridge started; wake-ups and requested restarts are not counted.
    pub restarts: u64,
    pub last_exit: Option<Exit>,
    /// Why the child is not ready, for people; `None` while it is ready or asleep.
    pub last_error: Option<String>,
    /// The child's last stderr lines, at most 20 of at most 400 bytes.
    pub stderr_tail: Vec<String>,
    /// What works less than the specification might suggest.
    pub notices: Vec<Notice>,
    pub activity: Activity,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "name")]
pub enum Phase {
    /// Secret environment variables whose values have not been pushed yet.
    WaitingForSecrets {
        missing: Vec<String>,
    },
    /// Spawned, handshake not finished.
    Starting,
    Ready,
    /// Stopped for want of calls; the next call starts it.
    Asleep,
    /// Exited; the next start is due at `retry_at` (RFC 3339).
    #[serde(rename_all = "camelCase")]
    Backoff {
        retry_at: String,
    },
    /// Exited five times in a row without a successful handshake, or within a minute of it each time.
    #[serde(rename_all = "camelCase")]
    CrashLoop {
        retry_at: String,
    },
    /// Ended and not to be started again (restart policy, or stopped).
    Exited,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handshake {
    pub era: Era,
    pub server_name: String,
    pub server_version: String,
    /// Versions the child offers, newest first; for a legacy child the one that was negotiated.
    pub protocol_versions: Vec<String>,
    /// Tools listed at the handshake or since; `None` if the child offers no tools or its list failed.
    pub tools: Option<ToolsSummary>,
    /// Milliseconds from spawn to the end of the handshake.
    pub duration_ms: u64,
    /// RFC 3339.
    pub at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolsSummary {
    pub count: u32,
    /// Lower-case hex SHA-256 over the tools' definitions, ordered by name.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out_of_memory: bool,
    /// RFC 3339.
    pub at: String,
}

/// A degradation with the reason under which it is shown as a condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// CamelCase, constant, such as `InteractiveFeaturesOff`.
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    pub calls_in_flight: u32,
    pub sessions: u32,
    /// RFC 3339 time of the last call's end.
    pub last_call_at: Option<String>,
    /// Process id of the (shared) child while it runs.
    pub child_pid: Option<u32>,
}
