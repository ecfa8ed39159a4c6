//! One pass over one object: `observe → lower → plan → execute → observe → status`.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use mcp_hub_crds::source::{SecretKeyRef, Source};
use mcp_hub_crds::status::condition;
use mcp_hub_crds::{MCPHub, MCPServer, MCPServerStatus};
use mcp_hub_dataplane_api::secret::SecretString;

use crate::accept;
use crate::error::{Error, Retry};
use crate::gateway;
use crate::installation::Installation;
use crate::lower::{Lowered, Unsupported};
use crate::observed::{Observed, PrepareState};
use crate::owner::OwnerKey;
use crate::plan::plan;
use crate::ports::{Door, Event, EventKind, Ports, Progress, Step};
use crate::rest;
use crate::status::{self, Findings, HubFindings};
use crate::workload::{ServerWorkload, Workload, is_stopped, kept_bridge, resolution};

/// Brings one server closer to its spec, and its status up to date. Says when time alone may ask for another pass.
///
/// # Cancel safety
/// A dropped pass leaves what its steps did; the next one observes it and goes on from there.
pub async fn server(server: &MCPServer, ports: &Ports) -> Result<Option<Duration>, Error> {
    let owner = OwnerKey::of_server(ports.installation.id(), server)?;
    if server.metadata.deletion_timestamp.is_some() {
        return delete(&owner, ports).await.map(|()| None);
    }
    let mut findings = Findings { runtime: ports.runtime.info().name.clone(), ..Findings::default() };
    let mut result = converge(server, &owner, ports, &mut findings).await;
    // What is to stop stops, whatever else is wrong with its spec.
    if is_stopped(server) && (result.is_err() || !findings.unimplemented.is_empty()) {
        let halted = halt(&owner, ports, &mut findings).await;
        result = result.and_then(|look_again| halted.map(|()| look_again));
    }

    // Reported once and also on failure: a stuck object must explain itself.
    let now = Time(Timestamp::now());
    let status = status::server(server, &findings, result.as_ref().err(), &now);
    if server.status.as_ref() != Some(&status) {
        ports.store.write_server_status(server, &status).await?;
        if let Some(event) = transition(&owner, server.status.as_ref(), &status) {
            ports.store.publish(event).await;
        }
    }
    result
}

/// The steps that a pass would execute now.
pub async fn dry_run(server: &MCPServer, ports: &Ports) -> Result<Vec<Step>, Error> {
    let owner = OwnerKey::of_server(ports.installation.id(), server)?;
    let observed = ports.runtime.observe(&owner).await?;
    let secrets = if is_workable(server) { read_secrets(server, ports).await? } else { Secrets::default() };
    steps(server, &ports.installation, &observed, &secrets, |workload| ports.runtime.lower(workload))
}

/// The steps for what was observed and read. Pure.
pub fn steps(
    server: &MCPServer,
    installation: &Installation,
    observed: &Observed,
    secrets: &Secrets,
    lower: impl FnOnce(&Workload) -> Result<Lowered, Unsupported>,
) -> Result<Vec<Step>, Error> {
    if !is_workable(server) {
        let ends = server.metadata.deletion_timestamp.is_some() || is_stopped(server);
        return Ok(if ends { plan(&Lowered::default(), observed) } else { Vec::new() });
    }
    let workload = ServerWorkload::of(server, installation, &secrets.fingerprints)?;
    let lowered = lower(&Workload::Server(Box::new(workload)))?;
    Ok(due(server, plan(&lowered, observed), &secrets.missing))
}

/// Whether there is anything to lower: the server stays, and all that its spec asks for is built.
pub fn is_workable(server: &MCPServer) -> bool {
    server.metadata.deletion_timestamp.is_none() && accept::unimplemented_in_server(&server.spec).is_empty()
}

/// Without its secrets a new server cannot start, and a running one is better left alone than restarted without.
fn due(server: &MCPServer, steps: Vec<Step>, missing_secrets: &[String]) -> Vec<Step> {
    let held_back = !missing_secrets.is_empty() && !is_stopped(server);
    steps.into_iter().filter(|step| !held_back || matches!(step, Step::Prepare(_))).collect()
}

/// Removes everything of an owner whose object is gone, or about to go.
pub async fn delete(owner: &OwnerKey, ports: &Ports) -> Result<(), Error> {
    let observed = ports.runtime.observe(owner).await?;
    let mut finished = true;
    for step in plan(&Lowered::default(), &observed) {
        finished &= ports.runtime.execute(owner, &step).await? == Progress::Done;
    }
    if finished {
        ports.store.release(owner).await?;
    }
    Ok(())
}

async fn halt(owner: &OwnerKey, ports: &Ports, findings: &mut Findings) -> Result<(), Error> {
    for step in plan(&Lowered::default(), &ports.runtime.observe(owner).await?) {
        ports.runtime.execute(owner, &step).await?;
    }
    findings.observed = ports.runtime.observe(owner).await?;
    Ok(())
}

async fn converge(
    server: &MCPServer,
    owner: &OwnerKey,
    ports: &Ports,
    findings: &mut Findings,
) -> Result<Option<Duration>, Error> {
    // First, so that a pass that ends early does not make status forget which version was found, nor that all rests.
    findings.resolved = resolution(server);
    findings.at_rest = rest::is_at_rest(server);
    findings.observed = ports.runtime.observe(owner).await?;
    let remote = matches!(server.spec.source, Source::Remote(_));
    if remote {
        findings.upstream = ports.sink.upstream(&owner.uid).await;
    } else {
        findings.bridge = kept_bridge(server);
    }
    findings.unimplemented = accept::unimplemented_in_server(&server.spec);
    if !findings.unimplemented.is_empty() {
        return Ok(None);
    }
    let secrets = read_secrets(server, ports).await?;
    findings.missing_secrets = secrets.missing;
    let mut workload = ServerWorkload::of(server, &ports.installation, &secrets.fingerprints)?;
    let info = ports.runtime.info_for(&workload);
    findings.runtime.clone_from(&info.name);
    if !remote {
        findings.bridge = workload.bridge.clone().or_else(|| info.bridge.clone());
    }

    let rest = rest::decide(server, owner, findings.observed.sleeps, ports).await;
    workload.at_rest = rest.rests;
    // Whoever is woken is at rest no more, also if that fails; whoever goes to rest is there when it is done.
    findings.at_rest &= rest.rests;
    findings.obstacle = rest.obstacle;

    // Twice at most: what the first round resolves, the second one runs.
    for _ in 0..2 {
        findings.resolved = workload.resolved.clone();
        let lowered = ports.runtime.lower(&Workload::Server(Box::new(workload.clone())))?;
        let steps = due(server, plan(&lowered, &findings.observed), &findings.missing_secrets);
        findings.unresolved = lowered.objects.iter().any(|object| object.stage == crate::lower::Stage::Prepare);
        findings.degraded = lowered.degraded;
        for step in &steps {
            tracing::debug!(owner = %owner, step = crate::plan::render(std::slice::from_ref(step)).trim_end(), "execute");
            ports.runtime.execute(owner, step).await?;
        }
        if !steps.is_empty() {
            findings.observed = ports.runtime.observe(owner).await?;
        }
        match newly_resolved(&findings.observed, &workload) {
            Some(resolved) if findings.unresolved => workload.resolved = Some(resolved),
            _ => break,
        }
    }
    findings.at_rest = rest.rests;
    // A failure that may pass counts in full when its time is over, of which no event tells.
    let failure = findings.observed.failure.as_ref().and_then(|failure| match failure.retry {
        Retry::After(time) => Some(time),
        Retry::Backoff | Retry::OnChange => None,
    });
    Ok([rest.look_again, failure].into_iter().flatten().min())
}

fn newly_resolved(observed: &Observed, workload: &ServerWorkload) -> Option<mcp_hub_crds::source::Resolved> {
    match &observed.prepare.as_ref()?.state {
        PrepareState::Done(resolved) if resolved.source_digest == workload.source_digest => Some(resolved.clone()),
        _ => None,
    }
}

/// What a pass needs to know of a server's secrets: never their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    fingerprints: BTreeMap<SecretKeyRef, String>,
    /// `NAME/KEY`, ordered.
    missing: Vec<String>,
}

impl Secrets {
    /// Takes note of what was found under a key.
    pub fn note(&mut self, key: &SecretKeyRef, value: Option<&SecretString>, installation: &Installation) {
        match value {
            Some(value) => {
                self.fingerprints.insert(key.clone(), installation.fingerprint(value.expose_secret()));
            }
            None => {
                self.missing.push(format!("{}/{}", key.name, key.key));
                self.missing.sort();
                self.missing.dedup();
            }
        }
    }
}

/// The secrets that a server's environment or headers refer to.
pub fn secrets_of(server: &MCPServer) -> impl Iterator<Item = &SecretKeyRef> {
    let env = server.spec.env.iter().flatten().filter_map(|var| var.secret_ref.as_ref());
    env.chain(gateway::header_secrets(server))
}

async fn read_secrets(server: &MCPServer, ports: &Ports) -> Result<Secrets, Error> {
    let namespace = server.namespace().unwrap_or_default();
    let mut read = Secrets::default();
    for key in secrets_of(server) {
        let value = ports.store.secret(&namespace, key).await?;
        read.note(key, value.as_ref(), &ports.installation);
    }
    Ok(read)
}

/// Brings one hub's gateway up to date with the hub and the servers it selects.
pub async fn hub(hub: &MCPHub, ports: &Ports) -> Result<(), Error> {
    let owner = OwnerKey::of_hub(ports.installation.id(), hub)?;
    if hub.metadata.deletion_timestamp.is_some() {
        ports.sink.remove(&owner).await?;
        return Ok(ports.store.release(&owner).await?);
    }
    let mut findings = HubFindings::default();
    let result = deliver(hub, &owner, ports, &mut findings).await;
    let now = Time(Timestamp::now());
    let status = status::hub(hub, &findings, result.as_ref().err(), &now);
    if hub.status.as_ref() != Some(&status) {
        ports.store.write_hub_status(hub, &status).await?;
    }
    result?;
    // What stands in nobody's way is tried again all the same.
    match findings.door.as_ref().and_then(Door::open_failure) {
        Some(failure) => Err(Error::Sink(failure.clone().into())),
        None => Ok(()),
    }
}

async fn deliver(hub: &MCPHub, owner: &OwnerKey, ports: &Ports, findings: &mut HubFindings) -> Result<(), Error> {
    findings.unimplemented = accept::unimplemented_in_hub(&hub.spec);
    // A configuration of those servers that happened to be listed first would take the others from their clients. A store
    // that was dropped has nothing more to list, and its controller is ending.
    ports.store.servers().wait_until_ready().await.ok();
    let all = ports.store.servers().state();
    let selected: Vec<_> = all
        .into_iter()
        .filter(|server| server.metadata.deletion_timestamp.is_none() && gateway::selects(hub, server))
        .collect();
    findings.total = selected.len();
    findings.ready = selected.iter().filter(|server| status::is_ready(server)).count();
    if findings.unimplemented.is_empty() {
        let mut secrets: BTreeMap<(String, SecretKeyRef), SecretString> = BTreeMap::new();
        for server in selected.iter().filter(|server| matches!(server.spec.source, Source::Remote(_))) {
            let namespace = server.namespace().unwrap_or_default();
            for key in gateway::header_secrets(server) {
                if let Some(value) = ports.store.secret(&namespace, key).await? {
                    secrets.insert((namespace.clone(), key.clone()), value);
                }
            }
        }
        let config = gateway::compose(hub, &selected, &secrets, &ports.sink.addresses(owner), &ports.installation);
        findings.version.clone_from(&config.version);
        findings.door = Some(ports.sink.apply(owner, hub, &config).await?);
    }
    findings.state = ports.sink.observe(owner).await?;
    Ok(())
}

/// The Event for a change of condition `Ready`, or of its reason.
fn transition(owner: &OwnerKey, before: Option<&MCPServerStatus>, after: &MCPServerStatus) -> Option<Event> {
    let ready = |status: &MCPServerStatus| {
        let conditions = status.conditions.iter().flatten();
        conditions.into_iter().find(|c| c.type_ == condition::READY).cloned()
    };
    let new = ready(after)?;
    let old = before.and_then(ready);
    if old.is_some_and(|old| old.status == new.status && old.reason == new.reason) {
        return None;
    }
    let known = [
        status::reason::READY,
        status::reason::ASLEEP,
        status::reason::WAKING,
        status::reason::STARTING,
        status::reason::PREPARING,
        status::reason::PAUSED,
        status::reason::PENDING,
    ];
    match known.into_iter().find(|reason| *reason == new.reason) {
        Some(reason) => Some(Event { owner: owner.clone(), kind: EventKind::Normal, reason, message: new.message }),
        // Reasons of failures come from runtimes; one constant reason with the detail in the message keeps events bounded.
        None => Some(Event {
            owner: owner.clone(),
            kind: EventKind::Warning,
            reason: "NotReady",
            message: format!("{}: {}", new.reason, new.message),
        }),
    }
}
