//! Status as a pure function of what a pass found.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use mcp_hub_crds::hub::{GatewayState, NamingMode, ServerCount};
use mcp_hub_crds::source::{Resolved, Source};
use mcp_hub_crds::status::{Phase, ServerInfo, ToolsStatus, condition};
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::UpstreamStatus;
use mcp_hub_dataplane_api::status::{BridgeStatus, Handshake, Phase as BridgePhase};

use crate::error::{Error, Retry};
use crate::lower::{Degraded, LOWER_REVISION};
use crate::observed::{Failure, Observed, PrepareState};
use crate::ports::{Door, HubState};
use crate::rest;
use crate::workload::{RESTARTED_AT_ANNOTATION, is_stopped};

/// Annotation with which a store tells that the manifest of an object cannot be read: `REASON: MESSAGE`.
pub const MANIFEST_PROBLEM_ANNOTATION: &str = "mcphub.io/manifest-problem";

/// Reasons of conditions: constant, so that programs may rely on them.
pub mod reason {
    pub const ACCEPTED: &str = "Accepted";
    pub const NOT_IMPLEMENTED: &str = "NotImplemented";
    pub const UNSUPPORTED: &str = "Unsupported";
    pub const RESOLVED: &str = "Resolved";
    pub const PREPARING: &str = "Preparing";
    pub const SECRET_MISSING: &str = "SecretMissing";
    pub const RUNNING: &str = "Running";
    pub const REMOTE: &str = "Remote";
    pub const PENDING: &str = "Pending";
    pub const READY: &str = "Ready";
    pub const ASLEEP: &str = "Asleep";
    pub const WAKING: &str = "Waking";
    pub const STARTING: &str = "Starting";
    pub const BACKOFF: &str = "Backoff";
    pub const CRASH_LOOP: &str = "CrashLoop";
    pub const EXITED: &str = "Exited";
    pub const PAUSED: &str = "Paused";
    pub const SUPPORTED: &str = "Supported";
    pub const DEGRADED: &str = "Degraded";
    pub const AUTH_REQUIRED: &str = "AuthRequired";
    pub const AUTHORIZED: &str = "Authorized";
    pub const UNREACHABLE: &str = "Unreachable";
    pub const NOT_SELECTED: &str = "NotSelected";
    pub const SYNCED: &str = "Synced";
    pub const OUT_OF_SYNC: &str = "OutOfSync";
    pub const MANIFEST_INVALID: &str = "ManifestInvalid";
    pub const MANIFEST_MISSING: &str = "ManifestMissing";
    pub const NAME_COLLISIONS: &str = "NameCollisions";
    pub const EXPOSED: &str = "Exposed";
}

/// What a pass over a server found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that are not built yet.
    pub unimplemented: Vec<&'static str>,
    /// Secrets that do not exist, as `name/key`.
    pub missing_secrets: Vec<String>,
    pub degraded: Vec<Degraded>,
    pub resolved: Option<Resolved>,
    /// Whether there is anything to resolve that is not resolved yet.
    pub unresolved: bool,
    pub observed: Observed,
    /// What gateways found of a remote server.
    pub upstream: Option<UpstreamStatus>,
    pub runtime: String,
    /// The bridge that the objects were made with.
    pub bridge: Option<String>,
    /// Whether nothing is to run for want of calls.
    pub at_rest: bool,
    /// Why something runs though nobody calls.
    pub obstacle: Option<String>,
}

/// The status of a server after a pass. `failure` is the error that ended the pass early. Transition times move to `now`
/// only where a condition's status flipped, so that an unchanged meaning gives an equal status.
pub fn server(server: &MCPServer, findings: &Findings, failure: Option<&Error>, now: &Time) -> MCPServerStatus {
    let previous = server.status.as_ref();
    // What ends for want of calls may still say something.
    let bridge = findings.observed.bridge.as_ref().filter(|_| !findings.at_rest);
    let remote = is_remote(server);
    let verdict = verdict(server, findings, failure);
    // Whoever calls the server goes on.
    let still_called = failure.is_some() || [reason::ASLEEP, reason::WAKING].contains(&verdict.reason);

    let mut conditions = vec![
        accepted(findings, failure),
        resolved(server, findings),
        available(server, findings, failure),
        Verdict::to_condition(&verdict),
        supported(findings, failure, previous.filter(|_| bridge.is_none() && still_called)),
    ];
    if remote {
        conditions.push(authorization(findings.upstream.as_ref()));
    }
    conditions.extend(manifest_problem(server));
    let handshake = match (bridge, &findings.upstream) {
        (Some(bridge), _) => bridge.handshake.as_ref(),
        (None, Some(UpstreamStatus::Ready { handshake })) => Some(handshake),
        (None, _) => None,
    };
    let info = handshake.map(server_info).or_else(|| previous.and_then(|status| status.server.clone()));
    let tools = handshake
        .and_then(|h| h.tools.as_ref())
        .map(|tools| ToolsStatus {
            count: i32::try_from(tools.count).unwrap_or(i32::MAX),
            digest: tools.digest.clone(),
        })
        .or_else(|| previous.and_then(|status| status.tools.clone()));

    MCPServerStatus {
        observed_generation: server.metadata.generation,
        phase: Some(verdict.phase),
        conditions: Some(finish(
            conditions,
            previous.and_then(|s| s.conditions.as_deref()),
            server.metadata.generation,
            now,
        )),
        endpoint: match &server.spec.source {
            Source::Remote(remote) => Some(remote.url.clone()),
            Source::Image(_) | Source::Package(_) | Source::Command(_) => match bridge {
                Some(bridge) => Some(bridge.endpoint.clone()),
                // Not seen is not gone.
                None if still_called => previous.and_then(|status| status.endpoint.clone()),
                None => None,
            },
        },
        runtime: Some(findings.runtime.clone()).filter(|name| !name.is_empty()),
        replicas: (!remote).then(|| i32::from(bridge.is_some())),
        resolved: findings.resolved.clone(),
        server: info,
        tools,
        restarts: bridge.map(|bridge| i64::try_from(bridge.restarts).unwrap_or(i64::MAX)),
        last_error: bridge.and_then(last_error).or_else(|| failure.map(Error::chain)),
        restarted_at: restarted_at(server, findings, failure),
        bridge: findings.bridge.clone(),
        lower_revision: Some(LOWER_REVISION),
    }
}

/// A pass that did all its steps has carried out the request to restart that its object bore.
fn restarted_at(server: &MCPServer, findings: &Findings, failure: Option<&Error>) -> Option<String> {
    let done = failure.is_none() && findings.unimplemented.is_empty() && findings.missing_secrets.is_empty();
    match done {
        true => server.annotations().get(RESTARTED_AT_ANNOTATION).cloned(),
        false => server.status.as_ref().and_then(|previous| previous.restarted_at.clone()),
    }
}

/// The answer to "can it be called?", as condition `Ready` and as phase.
struct Verdict {
    ready: bool,
    phase: Phase,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn no(phase: Phase, reason: &'static str, message: impl Into<String>) -> Self {
        Self { ready: false, phase, reason, message: message.into() }
    }

    fn yes(phase: Phase, reason: &'static str, message: impl Into<String>) -> Self {
        Self { ready: true, phase, reason, message: message.into() }
    }

    fn to_condition(&self) -> Draft {
        Draft::new(condition::READY, self.ready, self.reason, self.message.clone())
    }
}

fn verdict(server: &MCPServer, findings: &Findings, failure: Option<&Error>) -> Verdict {
    let stopped = is_stopped(server);
    let bridge = findings.observed.bridge.as_ref();
    let startable = findings.missing_secrets.is_empty() && findings.unimplemented.is_empty();
    if findings.at_rest && startable && !stopped {
        return Verdict::yes(Phase::Asleep, reason::ASLEEP, "nothing runs for want of calls; the next call starts it");
    }
    // A running server that answers is ready, whatever stands in the way of its next version.
    if let Some(bridge) = bridge
        && matches!(bridge.phase, BridgePhase::Ready | BridgePhase::Asleep)
        && !stopped
    {
        return by_bridge(bridge, findings);
    }
    if !findings.unimplemented.is_empty() {
        return Verdict::no(Phase::Failed, reason::NOT_IMPLEMENTED, not_implemented(findings));
    }
    if stopped {
        return match &findings.observed.objects[..] {
            [] => Verdict::no(Phase::Paused, reason::PAUSED, "stopped on request"),
            _ => Verdict::no(Phase::Paused, reason::PAUSED, "stopping on request"),
        };
    }
    if let Some(error) = failure {
        if error.retry() == Retry::Backoff && rest::holds_calls(server) {
            // Tried again in a moment, for which the calls can wait.
            return Verdict::no(Phase::Starting, reason::WAKING, with_hint(&error.chain(), error.hint().as_deref()));
        }
        return Verdict::no(Phase::Failed, error.reason(), with_hint(&error.chain(), error.hint().as_deref()));
    }
    if !findings.missing_secrets.is_empty() {
        return Verdict::no(Phase::Pending, reason::SECRET_MISSING, missing(findings));
    }
    if let Source::Remote(_) = server.spec.source {
        return by_gateway(findings.upstream.as_ref());
    }
    match prepare_state(findings) {
        Some(PrepareState::Failed(failure)) => return failed(failure),
        Some(PrepareState::Running { progress }) => {
            return Verdict::no(Phase::Preparing, reason::PREPARING, progress.clone());
        }
        Some(PrepareState::Done(_)) | None => {}
    }
    if findings.unresolved {
        return Verdict::no(Phase::Preparing, reason::PREPARING, "the source is being resolved");
    }
    if let Some(failure) = &findings.observed.failure {
        if matches!(failure.retry, Retry::After(_)) && rest::holds_calls(server) {
            // It may be over in a moment.
            return Verdict::no(Phase::Starting, reason::WAKING, failure_text(failure));
        }
        return failed(failure);
    }
    let coming = bridge.is_none_or(|bridge| {
        matches!(
            bridge.phase,
            BridgePhase::WaitingForSecrets { .. } | BridgePhase::Starting | BridgePhase::Backoff { .. }
        )
    });
    if coming && rest::holds_calls(server) {
        return Verdict::yes(Phase::Starting, reason::WAKING, "it is being started; calls wait for it");
    }
    match bridge {
        Some(bridge) => by_bridge(bridge, findings),
        None => Verdict::no(Phase::Pending, reason::PENDING, "waiting for the server's bridge"),
    }
}

fn failed(failure: &Failure) -> Verdict {
    Verdict::no(Phase::Failed, failure.reason, failure_text(failure))
}

fn by_bridge(bridge: &BridgeStatus, findings: &Findings) -> Verdict {
    let why = || last_error(bridge).unwrap_or_else(|| "no reason known".to_owned());
    match &bridge.phase {
        BridgePhase::Ready => Verdict::yes(Phase::Ready, reason::READY, "the MCP handshake succeeded"),
        BridgePhase::Asleep => {
            let stopped = "stopped while idle; the next call starts it";
            let message = match &findings.obstacle {
                Some(obstacle) => format!("{stopped}. Its place is kept: {obstacle}"),
                None => stopped.to_owned(),
            };
            Verdict::yes(Phase::Asleep, reason::ASLEEP, message)
        }
        BridgePhase::WaitingForSecrets { missing } => {
            Verdict::no(Phase::Starting, reason::STARTING, format!("waiting for secrets: {}", missing.join(", ")))
        }
        BridgePhase::Starting => Verdict::no(Phase::Starting, reason::STARTING, "the MCP handshake has not finished"),
        BridgePhase::Backoff { .. } => Verdict::no(Phase::Starting, reason::BACKOFF, why()),
        BridgePhase::CrashLoop { .. } => Verdict::no(Phase::CrashLoop, reason::CRASH_LOOP, why()),
        BridgePhase::Exited => Verdict::no(Phase::Failed, reason::EXITED, why()),
    }
}

fn by_gateway(upstream: Option<&UpstreamStatus>) -> Verdict {
    match upstream {
        Some(UpstreamStatus::Ready { .. }) => Verdict::yes(Phase::Ready, reason::READY, "the MCP handshake succeeded"),
        Some(UpstreamStatus::AuthRequired { message }) => {
            Verdict::no(Phase::Failed, reason::AUTH_REQUIRED, message.clone())
        }
        Some(UpstreamStatus::Failed { message }) => Verdict::no(Phase::Failed, reason::UNREACHABLE, message.clone()),
        Some(UpstreamStatus::Unknown) => {
            Verdict::no(Phase::Starting, reason::STARTING, "the gateway has not reached the server yet")
        }
        None => Verdict::no(Phase::Pending, reason::NOT_SELECTED, "no hub offers this server, so nothing calls it"),
    }
}

fn accepted(findings: &Findings, failure: Option<&Error>) -> Draft {
    if !findings.unimplemented.is_empty() {
        return Draft::new(condition::ACCEPTED, false, reason::NOT_IMPLEMENTED, not_implemented(findings));
    }
    match failure {
        Some(error @ Error::Unsupported(_)) => Draft::new(
            condition::ACCEPTED,
            false,
            reason::UNSUPPORTED,
            with_hint(&error.to_string(), error.hint().as_deref()),
        ),
        _ if !findings.degraded.is_empty() => {
            Draft::new(condition::ACCEPTED, true, reason::ACCEPTED, "every field is honoured, some only in part")
        }
        _ => Draft::new(condition::ACCEPTED, true, reason::ACCEPTED, "every field is honoured"),
    }
}

fn resolved(server: &MCPServer, findings: &Findings) -> Draft {
    if !findings.missing_secrets.is_empty() {
        return Draft::new(condition::RESOLVED, false, reason::SECRET_MISSING, missing(findings));
    }
    match prepare_state(findings) {
        Some(PrepareState::Failed(failure)) => {
            Draft::new(condition::RESOLVED, false, failure.reason, with_hint(&failure.message, failure.hint.as_deref()))
        }
        Some(PrepareState::Running { progress }) => {
            Draft::new(condition::RESOLVED, false, reason::PREPARING, progress.clone())
        }
        _ if findings.unresolved => {
            Draft::new(condition::RESOLVED, false, reason::PREPARING, "the source is being resolved")
        }
        // A pass that ended early, or a server that never was to run.
        Some(PrepareState::Done(_)) | None if findings.resolved.is_none() && !is_remote(server) => {
            Draft::new(condition::RESOLVED, false, reason::PENDING, "the source was not looked at yet")
        }
        Some(PrepareState::Done(_)) | None => {
            Draft::new(condition::RESOLVED, true, reason::RESOLVED, "the source and its secrets are there")
        }
    }
}

fn available(server: &MCPServer, findings: &Findings, failure: Option<&Error>) -> Draft {
    let no = |reason, message: String| Draft::new(condition::AVAILABLE, false, reason, message);
    if is_remote(server) {
        return Draft::new(condition::AVAILABLE, true, reason::REMOTE, "the server runs elsewhere");
    }
    if findings.at_rest {
        return Draft::new(condition::AVAILABLE, true, reason::ASLEEP, "nothing is to run for want of calls");
    }
    match (&findings.observed.failure, &findings.observed.bridge, failure) {
        (Some(failure), _, _) => no(failure.reason, with_hint(&failure.message, failure.hint.as_deref())),
        (None, Some(_), _) => Draft::new(condition::AVAILABLE, true, reason::RUNNING, "the server's bridge answers"),
        (None, None, Some(error)) => no(error.reason(), with_hint(&error.chain(), error.hint().as_deref())),
        (None, None, None) => no(reason::PENDING, "nothing of the server runs".to_owned()),
    }
}

/// `previous`: the status whose notices hold while no bridge can tell.
fn supported(findings: &Findings, failure: Option<&Error>, previous: Option<&MCPServerStatus>) -> Draft {
    if let Some(error @ Error::Unsupported(_)) = failure {
        let message = with_hint(&error.chain(), error.hint().as_deref());
        return Draft::new(condition::RUNTIME_SUPPORTED, false, reason::UNSUPPORTED, message);
    }
    if !findings.degraded.is_empty() {
        let lines: Vec<String> = findings.degraded.iter().map(|d| format!("{}: {}", d.field, d.message)).collect();
        return Draft::new(condition::RUNTIME_SUPPORTED, false, reason::DEGRADED, lines.join("; "));
    }
    let known = previous
        .and_then(|status| status.conditions.iter().flatten().find(|c| c.type_ == condition::RUNTIME_SUPPORTED));
    if let Some(known) = known.filter(|known| known.status == "True") {
        return Draft::new(condition::RUNTIME_SUPPORTED, true, reason::SUPPORTED, known.message.clone());
    }
    let notices = findings.observed.bridge.iter().flat_map(|bridge| &bridge.notices);
    let notices: Vec<String> = notices.map(|n| format!("{}: {}", n.reason, n.message)).collect();
    let message =
        if notices.is_empty() { "the runtime honours the spec in full".to_owned() } else { notices.join("; ") };
    Draft::new(condition::RUNTIME_SUPPORTED, true, reason::SUPPORTED, message)
}

fn authorization(upstream: Option<&UpstreamStatus>) -> Draft {
    match upstream {
        Some(UpstreamStatus::AuthRequired { message }) => {
            Draft::new(condition::AUTH_REQUIRED, true, reason::AUTH_REQUIRED, message.clone())
        }
        _ => Draft::new(condition::AUTH_REQUIRED, false, reason::AUTHORIZED, "the server asked for no authorization"),
    }
}

/// There only while something is wrong: in a cluster no object has a manifest that could be.
fn manifest_problem(object: &impl ResourceExt) -> Option<Draft> {
    let text = object.annotations().get(MANIFEST_PROBLEM_ANNOTATION)?;
    let (reason, message) = text.split_once(": ").unwrap_or((reason::MANIFEST_INVALID, text));
    let known = if reason == reason::MANIFEST_MISSING { reason::MANIFEST_MISSING } else { reason::MANIFEST_INVALID };
    Some(Draft::new(condition::MANIFEST_SYNCED, false, known, format!("{message}; the last good version stands")))
}

fn is_remote(server: &MCPServer) -> bool {
    matches!(server.spec.source, Source::Remote(_))
}

fn prepare_state(findings: &Findings) -> Option<&PrepareState> {
    findings.observed.prepare.as_ref().filter(|_| findings.unresolved).map(|prepare| &prepare.state)
}

fn last_error(bridge: &BridgeStatus) -> Option<String> {
    // A server that is back after such a kill will be killed again.
    let killed = bridge.last_exit.as_ref().filter(|exit| exit.out_of_memory && bridge.last_error.is_none());
    if let Some(exit) = killed {
        let hint = "raise spec.resources.limits.memory";
        return Some(format!("killed for want of memory at {}, and started again (hint: {hint})", exit.at));
    }
    let error = bridge.last_error.as_ref()?;
    match bridge.stderr_tail.last() {
        Some(line) if !error.contains(line.as_str()) => Some(format!("{error}; last line of stderr: {line}")),
        _ => Some(error.clone()),
    }
}

fn server_info(handshake: &Handshake) -> ServerInfo {
    ServerInfo {
        name: handshake.server_name.clone(),
        version: handshake.server_version.clone(),
        protocol_versions: handshake.protocol_versions.clone(),
        era: Some(
            match handshake.era {
                Era::Legacy => "legacy",
                Era::Modern => "modern",
            }
            .to_owned(),
        ),
        start_millis: i64::try_from(handshake.duration_ms).ok(),
    }
}

fn not_implemented(findings: &Findings) -> String {
    format!("not implemented yet: {}", findings.unimplemented.join(", "))
}

fn missing(findings: &Findings) -> String {
    format!("no value for secret {}", findings.missing_secrets.join(", "))
}

fn with_hint(message: &str, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{message} (hint: {hint})"),
        None => message.to_owned(),
    }
}

/// What a pass over a hub found.
#[derive(Debug, Default)]
pub struct HubFindings {
    pub unimplemented: Vec<&'static str>,
    pub ready: usize,
    pub total: usize,
    /// Version of the configuration that was composed.
    pub version: String,
    pub state: Option<HubState>,
    /// `None` if the pass ended before it was looked at.
    pub door: Option<Door>,
}

/// The status of a hub after a pass.
pub fn hub(hub: &MCPHub, findings: &HubFindings, failure: Option<&Error>, now: &Time) -> MCPHubStatus {
    let previous = hub.status.as_ref();
    let state = findings.state.as_ref();
    let synced = state.is_some_and(|s| s.synced == s.replicas && s.version == findings.version);
    let explain = |error: &Error| with_hint(&error.chain(), error.hint().as_deref());

    let door = findings.door.as_ref();
    let certificate = door.and_then(|door| door.certificate.as_ref());
    let exposure = door.and_then(|door| door.exposure.as_ref());
    let accepted = match (&findings.unimplemented[..], failure, exposure) {
        ([], Some(error), _) if error.reason() == reason::UNSUPPORTED => {
            Draft::new(condition::ACCEPTED, false, reason::UNSUPPORTED, explain(error))
        }
        ([], _, Some(Err(failure))) if failure.reason == reason::UNSUPPORTED => {
            Draft::new(condition::ACCEPTED, true, reason::ACCEPTED, "every field is honoured, some only in part")
        }
        ([], ..) => Draft::new(condition::ACCEPTED, true, reason::ACCEPTED, "every field is honoured"),
        (unimplemented, ..) => Draft::new(
            condition::ACCEPTED,
            false,
            reason::NOT_IMPLEMENTED,
            format!("not implemented yet: {}", unimplemented.join(", ")),
        ),
    };
    let ready = match (failure, state) {
        (Some(error), _) => Draft::new(condition::READY, false, error.reason(), explain(error)),
        (None, Some(state)) if state.serving == 0 => {
            let problem = state.problem.as_deref().unwrap_or("no gateway takes calls yet");
            Draft::new(condition::READY, false, reason::PENDING, problem)
        }
        (None, Some(state))
            if !state.collisions.is_empty()
                && hub.spec.naming.as_ref().and_then(|n| n.mode) == Some(NamingMode::Bare) =>
        {
            let names: Vec<String> =
                state.collisions.iter().map(|(tool, servers)| format!("{tool} ({})", servers.join(", "))).collect();
            let message = format!("left out because several servers offer them: {}", names.join(", "));
            Draft::new(condition::READY, true, reason::NAME_COLLISIONS, message)
        }
        (None, Some(_)) => Draft::new(condition::READY, true, reason::READY, "the endpoint answers"),
        (None, None) => match certificate {
            Some(Err(failure)) => Draft::new(condition::READY, false, failure.reason, failure_text(failure)),
            _ => Draft::new(condition::READY, false, reason::PENDING, "no gateway serves the hub yet"),
        },
    };
    let config_synced = match synced {
        true => {
            Draft::new(condition::CONFIG_SYNCED, true, reason::SYNCED, "every gateway serves the newest configuration")
        }
        false => {
            Draft::new(condition::CONFIG_SYNCED, false, reason::OUT_OF_SYNC, "a gateway serves an older configuration")
        }
    };
    let mut conditions = vec![accepted, ready, config_synced];
    conditions.extend(certificate.map(|found| found_or_wrong(condition::RESOLVED, reason::RESOLVED, found)));
    conditions.extend(exposure.map(|found| found_or_wrong(condition::EXPOSED, reason::EXPOSED, found)));
    conditions.extend(manifest_problem(hub));
    let before = previous.and_then(|status| status.conditions.as_deref());
    let mut conditions = finish(conditions, before, hub.metadata.generation, now);
    if door.is_none() {
        // Not looked at is neither mended nor broken.
        let doors = [condition::RESOLVED, condition::EXPOSED];
        conditions.extend(before.into_iter().flatten().filter(|c| doors.contains(&c.type_.as_str())).cloned());
    }
    MCPHubStatus {
        observed_generation: hub.metadata.generation,
        conditions: Some(conditions),
        endpoint: state.map(|state| state.endpoint.clone()),
        servers: Some(ServerCount {
            ready: count(findings.ready),
            total: count(findings.total),
            summary: format!("{}/{}", findings.ready, findings.total),
        }),
        gateway: state.map(|state| GatewayState {
            replicas: state.replicas,
            synced: state.synced,
            version: state.version.clone(),
        }),
    }
}

fn found_or_wrong(type_: &'static str, good: &'static str, found: &Result<String, Failure>) -> Draft {
    match found {
        Ok(message) => Draft::new(type_, true, good, message),
        Err(failure) => Draft::new(type_, false, failure.reason, failure_text(failure)),
    }
}

fn failure_text(failure: &Failure) -> String {
    with_hint(&failure.message, failure.hint.as_deref())
}

/// Whether condition `Ready` is true.
pub fn is_ready(server: &MCPServer) -> bool {
    let conditions = server.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == condition::READY && c.status == "True")
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A condition without the fields that depend on the past.
struct Draft {
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

impl Draft {
    fn new(type_: &'static str, status: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status, reason, message: message.into() }
    }
}

/// The API server refuses longer messages of a condition.
const MESSAGE_MAX: usize = 32_768;

fn finish(drafts: Vec<Draft>, previous: Option<&[Condition]>, generation: Option<i64>, now: &Time) -> Vec<Condition> {
    drafts
        .into_iter()
        .map(|draft| {
            let status = if draft.status { "True" } else { "False" };
            let before = previous.into_iter().flatten().find(|c| c.type_ == draft.type_ && c.status == status);
            let mut message = draft.message;
            message.truncate(message.floor_char_boundary(MESSAGE_MAX));
            Condition {
                type_: draft.type_.to_owned(),
                status: status.to_owned(),
                reason: draft.reason.to_owned(),
                message,
                observed_generation: generation,
                last_transition_time: before.map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}
