//! Servers in a line each: what `status`, `up` and `get servers` show. Pure.

use anstyle::AnsiColor;
use kube::ResourceExt;
use mcp_hub_crds::source::Source;
use mcp_hub_crds::status::{Phase, condition};
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_reconcile::workload::{RESTARTED_AT_ANNOTATION, is_stopped};

use crate::error::{Error, Exit};
use crate::output::painted;
use crate::target::Scope;

/// A server as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) ready: bool,
    pub(crate) reason: String,
    /// What to know or to do next; empty for a server that is well.
    pub(crate) note: String,
    pub(crate) tools: Option<i32>,
    /// From its start to the end of its handshake.
    pub(crate) start_millis: Option<i64>,
    pub(crate) restarts: i64,
    pub(crate) source: String,
}

/// Whether a wait for the server is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Ready,
    NotReady,
    /// It may still become ready by itself.
    Not,
}

pub(crate) fn row(server: &MCPServer) -> Row {
    let status = server.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == condition::READY);
    let is_ready = ready.is_some_and(|c| c.status == "True");
    let short = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    // A manifest that cannot be read matters also while its last good version runs.
    let problem = conditions.iter().find(|c| c.type_ == condition::MANIFEST_SYNCED && c.status == "False");
    let degraded = conditions.iter().find(|c| c.type_ == condition::RUNTIME_SUPPORTED && c.status == "False");
    let note = match (problem, ready, is_ready, degraded) {
        (Some(problem), ..) => short(&problem.message),
        (None, Some(ready), false, _) => short(&ready.message),
        (None, _, _, Some(degraded)) => short(&degraded.message),
        (None, Some(_), true, None) | (None, None, ..) => String::new(),
    };
    Row {
        namespace: server.namespace().unwrap_or_default(),
        name: server.name_any(),
        phase: status.and_then(|status| status.phase).unwrap_or(Phase::Pending),
        ready: is_ready,
        reason: ready.map_or_else(|| "Pending".to_owned(), |c| c.reason.clone()),
        note,
        tools: status.and_then(|s| Some(s.tools.as_ref()?.count)),
        start_millis: status.and_then(|s| s.server.as_ref()?.start_millis),
        restarts: status.and_then(|s| s.restarts).unwrap_or_default(),
        source: source(server),
    }
}

fn source(server: &MCPServer) -> String {
    match &server.spec.source {
        Source::Image(image) => image.r#ref.clone(),
        Source::Package(package) => {
            let resolved = server.status.as_ref().and_then(|status| status.resolved.as_ref()?.version.clone());
            let version = resolved.or_else(|| package.version.clone());
            format!(
                "{}:{}{}",
                package.registry.as_str(),
                package.name,
                version.map(|v| format!("@{v}")).unwrap_or_default()
            )
        }
        Source::Command(command) => command.path.clone(),
        Source::Remote(remote) => remote.url.clone(),
    }
}

pub(crate) fn settled(server: &MCPServer) -> Settled {
    // A status of an older spec says nothing of this one.
    let row = row(server);
    let generation = server.status.as_ref().and_then(|status| status.observed_generation);
    // Nor does one from before `start`, which changes no spec.
    let started = row.phase == Phase::Paused && !is_stopped(server);
    // Nor one from before `restart`, which changes no spec either.
    let asked = server.annotations().get(RESTARTED_AT_ANNOTATION);
    let restarted = asked == server.status.as_ref().and_then(|status| status.restarted_at.as_ref());
    let current = generation == server.metadata.generation && !started && restarted;
    match row.phase {
        _ if !current => Settled::Not,
        Phase::Ready | Phase::Asleep | Phase::Degraded if row.ready => Settled::Ready,
        Phase::Paused | Phase::Failed | Phase::CrashLoop => Settled::NotReady,
        Phase::Pending if row.reason == "SecretMissing" || row.reason == "NotSelected" => Settled::NotReady,
        Phase::Pending | Phase::Preparing | Phase::Starting | Phase::Ready | Phase::Asleep | Phase::Degraded => {
            Settled::Not
        }
    }
}

impl Row {
    pub(crate) fn tools(&self) -> String {
        self.tools.map_or_else(|| "-".to_owned(), |count| count.to_string())
    }

    pub(crate) fn start(&self) -> String {
        self.start_millis
            .map_or_else(|| "-".to_owned(), |millis| format!("{}.{:02} s", millis / 1000, millis % 1000 / 10))
    }

    /// For programs.
    pub(crate) fn document(&self) -> serde_json::Value {
        serde_json::json!({
            "namespace": self.namespace, "name": self.name, "phase": self.phase, "ready": self.ready, "reason": self.reason, "note": self.note,
            "tools": self.tools, "startMillis": self.start_millis, "restarts": self.restarts,
        })
    }

    /// The state in its colour.
    pub(crate) fn state(&self) -> String {
        let colour = match self.phase {
            Phase::Ready | Phase::Asleep => AnsiColor::Green,
            Phase::Pending | Phase::Preparing | Phase::Starting | Phase::Paused | Phase::Degraded => AnsiColor::Yellow,
            Phase::CrashLoop | Phase::Failed => AnsiColor::Red,
        };
        painted(colour, self.phase.as_str())
    }
}

/// Where clients reach the hub, or why they do not.
pub(crate) fn hub_line(hub: &MCPHub) -> String {
    let status = hub.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == condition::READY);
    let servers = status.and_then(|s| s.servers.as_ref()).map(|servers| servers.summary.clone()).unwrap_or_default();
    match (status.and_then(|status| status.endpoint.as_ref()), ready) {
        (Some(url), Some(ready)) if ready.status == "True" => {
            format!("{}  {url}  {servers} servers ready", hub.name_any())
        }
        (_, Some(ready)) => format!("{}  not ready: {}", hub.name_any(), ready.message),
        (_, None) => format!("{}  starting", hub.name_any()),
    }
}

/// [`hub_line`] of each, with its namespace where hubs of several may be among them.
pub(crate) fn hub_lines(hubs: &[MCPHub], scope: &Scope) -> Vec<String> {
    let line = |hub: &MCPHub| match (scope, hub.namespace()) {
        (Scope::All, Some(namespace)) => format!("{namespace}/{}", hub_line(hub)),
        _ => hub_line(hub),
    };
    hubs.iter().map(line).collect()
}

/// Why nobody reaches the hub.
pub(crate) fn no_endpoint(hub: &MCPHub) -> Error {
    let conditions = hub.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == condition::READY);
    let why = ready.map_or("it has not started yet", |ready| &ready.message);
    let message = format!("hub `{}` has no endpoint: {why}", hub.name_any());
    Error::Refused { exit: Exit::Failed, message, hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status: serde_json::Value) -> MCPServer {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
            "metadata": {"name": "a", "namespace": "default", "generation": 2},
            "spec": {"source": {"command": {"path": "x"}}},
            "status": status,
        }))
        .unwrap()
    }

    fn status(phase: &str, ready: &str, reason: &str, generation: i64) -> serde_json::Value {
        serde_json::json!({
            "observedGeneration": generation, "phase": phase,
            "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": "as it\n is", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "server": {"name": "x", "version": "1", "protocolVersions": [], "startMillis": 1234},
        })
    }

    #[test]
    fn a_wait_ends_when_nothing_happens_by_itself_any_more() {
        for (phase, ready, reason, generation, wanted) in [
            ("Ready", "True", "Ready", 2, Settled::Ready),
            ("Asleep", "True", "Asleep", 2, Settled::Ready),
            ("Ready", "True", "Ready", 1, Settled::Not),
            ("Preparing", "False", "Preparing", 2, Settled::Not),
            ("Starting", "False", "Backoff", 2, Settled::Not),
            ("CrashLoop", "False", "CrashLoop", 2, Settled::NotReady),
            ("Pending", "False", "SecretMissing", 2, Settled::NotReady),
            ("Pending", "False", "Pending", 2, Settled::Not),
        ] {
            assert_eq!(
                settled(&server(status(phase, ready, reason, generation))),
                wanted,
                "{phase} {reason} {generation}"
            );
        }
    }

    #[test]
    fn a_status_from_before_a_restart_ends_no_wait() {
        let mut server = server(status("Ready", "True", "Ready", 2));
        server.annotations_mut().insert(RESTARTED_AT_ANNOTATION.to_owned(), "2026-01-01T00:00:01Z".to_owned());
        assert_eq!(settled(&server), Settled::Not);
        server.status.as_mut().unwrap().restarted_at = Some("2026-01-01T00:00:01Z".to_owned());
        assert_eq!(settled(&server), Settled::Ready);
    }

    #[test]
    fn a_note_stands_where_something_is_to_be_known_and_in_one_line() {
        assert_eq!(row(&server(status("Ready", "True", "Ready", 2))).note, "");
        let row = row(&server(status("CrashLoop", "False", "CrashLoop", 2)));
        assert_eq!((row.note.as_str(), row.start().as_str()), ("as it is", "1.23 s"));
    }
}
