//! How a bridge runs its MCP server.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::SessionMode;

/// All that a bridge is told when it starts. It holds no secret: secret environment variables are named here and their
/// values pushed over the control socket, and the bearer token is present as its SHA-256 only.
///
/// A process-runtime bridge reads it from `RUN_DIR/launch.json`, where `RUN_DIR` is its one command-line argument.
/// In that folder it keeps:
/// - `lock`: locked (`flock`, exclusive) as long as the bridge lives;
/// - `bridge.json`: a [`BridgeRecord`], written after the lock is held and before the child is spawned;
/// - `control.sock`: the control socket (mode 0600), HTTP/1.1 on a Unix socket, see [`control`];
/// - `server.log`, `server.log.1`, …: the child's stderr, and what it writes to stdout that is no JSON-RPC.
///
/// A container's bridge (`mcp-bridge pod RUN_DIR`) reads it from [`LAUNCH_ENV`]. It has no control socket and no log file:
/// what [`control`] has of status, events and secrets is at `listen`, for whoever has the token, and its log is the
/// container's stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchSpec {
    /// Whose server this is; the child gets `id` as [`OWNER_ENV`], by which its strays are found.
    pub owner: Owner,
    /// Digest of this document as lowered (without this field), reported back in the status.
    pub digest: String,
    /// Where the bridge listens; port 0 takes a free one, which the status reports.
    pub listen: SocketAddr,
    /// Lower-case hex SHA-256 of the bearer token that callers must present.
    pub token_sha256: String,
    pub child: Child,
    pub transport: ChildTransport,
    pub era: EraChoice,
    pub sessions: Sessions,
    pub roots: Roots,
    pub lifecycle: Lifecycle,
    pub health: Health,
    pub restart: Restart,
    pub timeouts: Timeouts,
    pub log: LogPolicy,
    #[serde(default, skip_serializing_if = "Drain::is_none")]
    pub drain: Drain,
}

/// Environment variable of a pod's container with the [`LaunchSpec`] of its bridge, see [`in_pod_env`].
pub const LAUNCH_ENV: &str = "MCP_BRIDGE_LAUNCH";

/// Environment variable of a container with a folder that holds a file for each of [`Child::secret_env`], where secrets are
/// neither pushed nor part of the container's environment. A line end after the value does not count.
pub const SECRETS_ENV: &str = "MCP_BRIDGE_SECRETS";

/// A JSON document as the value of a pod's environment variable. A kubelet replaces `$(NAME)` and `$$` in such values, so
/// each `$`, which JSON has in strings only, is written as its escape.
pub fn in_pod_env(json: &str) -> String {
    json.replace('$', "\\u0024")
}

/// Environment variable that marks every process of a server with its owner's id.
pub const OWNER_ENV: &str = "MCP_HUB_OWNER";

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// `INSTALLATION/UID`: unique over installations that share a machine.
    pub id: String,
    pub namespace: String,
    pub name: String,
}

/// The program to run. Its environment is exactly what `inherit_env` says, `env`, the pushed secrets and [`OWNER_ENV`], and
/// with a process for each client also `MCP_BRIDGE_RUN`, by which the strays of one client's process are told from
/// another's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Child {
    /// Absolute path of the program, a path relative to `working_dir`, or a bare name, which is looked up in the PATH of
    /// its environment.
    pub program: String,
    pub args: Vec<String>,
    /// Empty is the bridge's own: in a pod the container's.
    pub working_dir: String,
    /// Whether the program gets the bridge's own environment too, except [`LAUNCH_ENV`] and [`SECRETS_ENV`]: in a pod what
    /// image and pod say, secrets among it. `env` wins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherit_env: bool,
    pub env: BTreeMap<String, String>,
    /// Names of environment variables whose values are pushed, or in a container read as [`SECRETS_ENV`] says; the child
    /// starts when all have arrived.
    pub secret_env: Vec<String>,
    pub limits: Limits,
    /// File-system confinement (Landlock); `None` leaves the child as free as its user.
    pub filesystem: Option<FilesystemAccess>,
}

impl Child {
    /// The program of a container, which has limits, files and an environment of its own.
    pub fn of_container(program: String, args: Vec<String>, secret_env: Vec<String>) -> Self {
        Self {
            program,
            args,
            working_dir: String::new(),
            inherit_env: true,
            env: BTreeMap::new(),
            secret_env,
            limits: Limits::default(),
            filesystem: None,
        }
    }
}

/// Limits that the bridge puts its server under. A runtime that has limits of its own (containers, pods) leaves these empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Of each process: `RLIMIT_DATA` in bytes, heap and private writable mappings, which is close to what users mean by
    /// memory. (`RLIMIT_AS` would kill every Node program, which reserves address space by the gigabyte.)
    pub memory_bytes: Option<u64>,
    /// Of all processes together.
    pub cgroup: Option<Cgroup>,
}

/// A control group (cgroup v2) of the server's own, below one that was delegated to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cgroup {
    /// Absolute path of its folder. The bridge makes it before the first process and removes it when it stops.
    pub path: String,
    /// `memory.max`; nothing of it is swapped out.
    pub memory_bytes: Option<u64>,
    /// `cpu.max`, in thousandths of a processor.
    pub cpu_millis: Option<u64>,
}

/// What the child may reach in the file system; everything else is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemAccess {
    /// Paths readable and executable, with all below them.
    pub read: Vec<String>,
    /// Paths readable, executable and writable, with all below them.
    pub write: Vec<String>,
}

/// What the child speaks towards the bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum ChildTransport {
    Stdio,
    /// MCP Streamable HTTP on 127.0.0.1.
    StreamableHttp {
        port: u16,
        path: String,
    },
    /// HTTP+SSE of 2024-11-05 on 127.0.0.1; the bridge turns it into Streamable HTTP.
    Sse {
        port: u16,
        path: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EraChoice {
    /// `server/discover` first; if the child exits, is silent for five seconds or knows no such method, `initialize`.
    Auto,
    Legacy,
    Modern,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sessions {
    pub mode: SessionMode,
    /// Most legacy sessions at a time.
    pub max: u32,
}

/// What a child learns of a client's roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Roots {
    Deny,
    /// Only with [`SessionMode::PerClient`].
    Forward,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "mode")]
pub enum Lifecycle {
    AlwaysOn,
    /// Started once for its handshake, stopped after `idle_timeout_ms` without a call, started by the next call.
    #[serde(rename_all = "camelCase")]
    OnDemand {
        idle_timeout_ms: u64,
    },
}

/// The MCP probe: legacy `ping`, modern `server/discover`; any answer is alive. Skipped when traffic was answered within
/// the period, and a child is never restarted while a call is within its timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub period_ms: u64,
    pub timeout_ms: u64,
    pub failure_threshold: u32,
}

/// The first restart is immediate, the next wait `initial_ms`, doubled each time up to `max_ms`; a run of one minute
/// resets the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    pub policy: RestartPolicy,
    pub initial_ms: u64,
    pub max_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Longest call before its caller gets a timeout error.
    pub call_ms: u64,
    /// Longest time from spawn to a finished handshake.
    pub start_ms: u64,
}

/// How a bridge ends on SIGTERM. With neither time it ends the server at once, which is right for a bridge that is stopped
/// over its control socket. After both the server's processes have five seconds between SIGTERM and SIGKILL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// How long new calls are still taken, at most one on each connection, while `/readyz` says no: callers hear of the
    /// end a moment after it began.
    pub accept_ms: u64,
    /// How long after that calls under way may take to finish. Streams without an end are ended first.
    pub finish_ms: u64,
}

impl Drain {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// When `server.log` is rotated, and how many rotated files are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPolicy {
    pub max_bytes: u64,
    pub files: u32,
}

/// `bridge.json`: who holds the run directory. A reader trusts it only while `lock` is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BridgeRecord {
    pub pid: u32,
    /// Start time of `pid` in clock ticks since boot (`/proc/PID/stat`, field 22), so that a reused id is not mistaken.
    pub start_ticks: u64,
    pub bridge_version: String,
    /// [`LaunchSpec::digest`] that this bridge runs.
    pub digest: String,
}

/// Paths of the control socket's HTTP API. The socket's file mode is its authentication.
pub mod control {
    /// `GET`: the [`BridgeStatus`](crate::status::BridgeStatus).
    pub const STATUS: &str = "/status";
    /// `GET`: newline-delimited JSON, the status at once and again whenever its meaning changes, at most ten a second.
    pub const EVENTS: &str = "/events";
    /// `PUT`: JSON object, environment variable to value, of all `secret_env`. Changed values restart the child.
    pub const SECRETS: &str = "/secrets";
    /// `POST`: restart the child at once, uncounted; leaves a crash loop.
    pub const RESTART: &str = "/restart";
    /// `POST`: stop the child's whole tree, answer when it is gone, then exit.
    pub const STOP: &str = "/stop";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_finds_nothing_to_replace_in_a_document() {
        assert_eq!(in_pod_env(r#"{"args":["$(HOME)","$$"]}"#), r#"{"args":["\u0024(HOME)","\u0024\u0024"]}"#);
    }
}
