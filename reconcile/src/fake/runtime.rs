//! A runtime in memory, which a test can look into, disturb, and make break its guarantees.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use mcp_hub_crds::source::Resolved;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Handshake, Phase, ToolsSummary};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::Writes;
use super::lower::{lower, no};
use crate::error::{Retry, RuntimeError};
use crate::lower::{Lowered, Object, ObjectId, Stage, Unsupported};
use crate::observed::{Failure, Observed, ObservedObject, Prepare, PrepareState};
use crate::owner::OwnerKey;
use crate::ports::{
    Console, Enforces, ExecOutput, LogLine, LogQuery, Progress, Runtime, RuntimeEvent, RuntimeInfo, Step, hints,
};
use crate::workload::Workload;

/// What becomes of a preparation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preparing {
    /// It is done when `execute` returns.
    #[default]
    AtOnce,
    /// The test ends it, by [`FakeRuntime::finish_prepare`] or [`FakeRuntime::fail_prepare`].
    ByHand,
}

/// What a new bridge says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bridges {
    #[default]
    Ready,
    /// `Starting`, until the test says otherwise by [`FakeRuntime::set_bridge`].
    ByHand,
}

/// A guarantee of [`Runtime`] that a fake is to break, so that the contract suite can be seen to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A second `Apply` makes a second process.
    AppliesTwice,
    /// `observe` does not show what was applied until it is asked again.
    ObservesLate,
    /// Objects do not carry their digest.
    LosesDigest,
    /// Objects do not show a value that was set.
    HidesBody,
    /// `observe` repeats what was applied instead of looking.
    OverlooksDrift,
    /// `Remove` takes foreign objects of that name along.
    TouchesForeign,
    /// `Remove` takes other owners' objects along.
    TouchesOthers,
    /// `Remove` leaves the process.
    LeavesProcess,
    /// `owners` does not name an owner of which only a process is left.
    ForgetsOwners,
    /// `lower` gives other objects each time.
    LowersAtRandom,
    /// `lower` takes what it cannot honour, and leaves it out.
    DropsFields,
    /// No event is sent.
    Mute,
    /// An object is shown as made before it is, so that what a dropped `execute` left is never finished.
    StopsHalfway,
    /// A new value does not see what the one before made.
    ForgetsAtRestart,
}

/// Clones are the same value; [`FakeRuntime::restarted`] is a new one over the same place.
#[derive(Debug, Clone)]
pub struct FakeRuntime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: RuntimeInfo,
    place: Arc<Mutex<Place>>,
    /// Dies with the value, as a background task does.
    preparations: Mutex<HashMap<OwnerKey, Preparation>>,
    events: broadcast::Sender<RuntimeEvent>,
    writes: Writes,
    fault: Option<Fault>,
    silence: SilentConsole,
}

#[derive(Debug)]
struct Preparation {
    digest: String,
    source_digest: String,
    state: PrepareState,
}

/// What outlives a daemon.
#[derive(Debug, Default)]
struct Place {
    objects: Vec<Made>,
    processes: Vec<Process>,
    next_pid: u32,
    preparing: Preparing,
    bridges: Bridges,
    failure: Option<Failure>,
    /// The next call of `observe` fails.
    blind: bool,
    lowered: u32,
}

#[derive(Debug, Clone, PartialEq)]
struct Made {
    /// `None` for what is not ours.
    owner: Option<OwnerKey>,
    id: ObjectId,
    stage: Stage,
    digest: Option<String>,
    body: Value,
    /// What was applied, whatever happened to it since.
    told: Value,
    bridge: Option<BridgeStatus>,
    seen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: u32,
    owner: Option<OwnerKey>,
}

impl FakeRuntime {
    pub const NAME: &'static str = "fake";

    pub fn new(writes: Writes) -> Self {
        Self::over(Arc::default(), writes, None)
    }

    /// One that breaks a guarantee.
    pub fn broken(writes: Writes, fault: Fault) -> Self {
        Self::over(Arc::default(), writes, Some(fault))
    }

    /// A new value over the same place, as a new daemon has it.
    pub fn restarted(&self) -> Self {
        let place = match self.0.fault {
            Some(Fault::ForgetsAtRestart) => Arc::default(),
            _ => self.0.place.clone(),
        };
        Self::over(place, self.0.writes.clone(), self.0.fault)
    }

    fn over(place: Arc<Mutex<Place>>, writes: Writes, fault: Option<Fault>) -> Self {
        Self(Arc::new(Inner {
            info: RuntimeInfo {
                name: Self::NAME.to_owned(),
                version: "1".to_owned(),
                enforces: Enforces { memory_limit: true, cpu_limit: true, filesystem: true, egress: true, user: true },
                collects_garbage: false,
                bridge: None,
            },
            place,
            preparations: Mutex::default(),
            events: broadcast::Sender::new(1024),
            writes,
            fault,
            silence: SilentConsole,
        }))
    }

    pub fn set_preparing(&self, preparing: Preparing) {
        self.place().preparing = preparing;
    }

    pub fn set_bridges(&self, bridges: Bridges) {
        self.place().bridges = bridges;
    }

    /// Ends the running preparation of the server of this name well, with this version.
    pub fn finish_prepare(&self, server: &str, version: &str) {
        self.end_prepare(server, |source_digest| PrepareState::Done(resolved(source_digest, server, version)));
    }

    pub fn fail_prepare(&self, server: &str, failure: Failure) {
        self.end_prepare(server, |_| PrepareState::Failed(failure));
    }

    /// The time has come to try a failed preparation again.
    pub fn let_prepare_retry(&self, server: &str) {
        self.preparations()
            .retain(|owner, preparation| owner.name != server || !matches!(preparation.state, PrepareState::Failed(_)));
        self.tell(RuntimeEvent::Resync);
    }

    fn end_prepare(&self, server: &str, state: impl FnOnce(&str) -> PrepareState) {
        if let Some((_, preparation)) = self.preparations().iter_mut().find(|(owner, _)| owner.name == server)
            && matches!(preparation.state, PrepareState::Running { .. })
        {
            preparation.state = state(&preparation.source_digest);
        }
        self.tell_of(server);
    }

    /// What the bridge of the server of this name says from now on.
    pub fn set_bridge(&self, server: &str, change: impl FnOnce(&mut BridgeStatus)) {
        let mut place = self.place();
        let bridge = place.objects.iter_mut().filter(|made| is_of(made, server)).find_map(|made| made.bridge.as_mut());
        if let Some(bridge) = bridge {
            change(bridge);
        }
        drop(place);
        self.tell_of(server);
    }

    /// A failure of the runtime itself, shown with every server, or its end.
    pub fn set_failure(&self, failure: Option<Failure>) {
        self.place().failure = failure;
        self.tell(RuntimeEvent::Resync);
    }

    /// The next `observe` fails.
    pub fn blind_once(&self) {
        self.place().blind = true;
    }

    /// Someone changes the server's objects behind our back.
    pub fn drift(&self, server: &str) {
        for made in self.place().objects.iter_mut().filter(|made| is_of(made, server)) {
            if let Some(body) = made.body.as_object_mut() {
                body.values_mut().for_each(|value| *value = json!("drifted"));
            }
        }
        self.tell_of(server);
    }

    /// Someone removes the server's objects behind our back; processes die with them.
    pub fn lose(&self, server: &str) {
        let mut place = self.place();
        place.objects.retain(|made| !is_of(made, server));
        place.processes.retain(|process| process.owner.as_ref().is_none_or(|owner| owner.name != server));
        drop(place);
        self.tell_of(server);
    }

    /// Someone else's object and process, of the name that ours would have.
    pub fn plant_foreign(&self, name: &str) {
        let mut place = self.place();
        place.next_pid += 1;
        let pid = place.next_pid;
        place.processes.push(Process { pid, owner: None });
        place.objects.push(Made {
            owner: None,
            id: ObjectId::new("bridge", name),
            stage: Stage::Workload,
            digest: None,
            body: json!({"whose": "someone else's"}),
            told: Value::Null,
            bridge: None,
            seen: true,
        });
    }

    /// Number of foreign objects and processes.
    pub fn foreign(&self) -> usize {
        let place = self.place();
        place.objects.iter().filter(|made| made.owner.is_none()).count()
            + place.processes.iter().filter(|process| process.owner.is_none()).count()
    }

    /// All that is there of an owner, found without its help, as lines.
    pub fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        let place = self.place();
        let objects = place.objects.iter().filter(|made| made.owner.as_ref() == Some(owner));
        let processes = place.processes.iter().filter(|process| process.owner.as_ref() == Some(owner));
        let mut lines: Vec<String> = objects.map(|made| made.id.to_string()).collect();
        lines.extend(processes.map(|_| format!("process of {owner}")));
        lines.sort();
        lines
    }

    /// All that there is, as lines that do not depend on the order of events.
    pub fn inventory(&self) -> Vec<String> {
        let place = self.place();
        let whose = |owner: &Option<OwnerKey>| owner.as_ref().map_or("someone else".to_owned(), OwnerKey::to_string);
        let objects = place.objects.iter().map(|made| format!("{} of {}: {}", made.id, whose(&made.owner), made.body));
        let processes = place.processes.iter().map(|process| format!("process of {}", whose(&process.owner)));
        let mut lines: Vec<String> = objects.chain(processes).collect();
        lines.sort();
        lines
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn preparations(&self) -> MutexGuard<'_, HashMap<OwnerKey, Preparation>> {
        self.0.preparations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, fault: Fault) -> bool {
        self.0.fault == Some(fault)
    }

    fn tell(&self, event: RuntimeEvent) {
        if !self.has(Fault::Mute) {
            // Nobody listening is no loss: who listens later looks at everything first.
            self.0.events.send(event).ok();
        }
    }

    fn tell_of(&self, server: &str) {
        let place = self.place();
        let owners = place.objects.iter().filter_map(|made| made.owner.clone());
        let mut owners: Vec<OwnerKey> = owners.chain(self.preparations().keys().cloned()).collect();
        drop(place);
        owners.retain(|owner| owner.name == server);
        owners.sort();
        owners.dedup();
        owners.into_iter().for_each(|owner| self.tell(RuntimeEvent::Changed(owner)));
    }

    fn prepare(&self, owner: &OwnerKey, object: &Object) {
        let settled = self
            .preparations()
            .get(owner)
            .is_some_and(|found| found.digest == object.digest && !matches!(found.state, PrepareState::Failed(_)));
        if settled {
            return;
        }
        let source = object.body["sourceDigest"].as_str().unwrap_or_default();
        let state = match self.place().preparing {
            Preparing::AtOnce => PrepareState::Done(resolved(source, &owner.name, "1.0.0")),
            Preparing::ByHand => PrepareState::Running { progress: format!("fetching {}", owner.name) },
        };
        let preparation = Preparation { digest: object.digest.clone(), source_digest: source.to_owned(), state };
        self.preparations().insert(owner.clone(), preparation);
    }

    fn make(&self, owner: &OwnerKey, object: &Object) {
        let mut place = self.place();
        let is_bridge = object.stage == Stage::Workload;
        let ours = |made: &Made| made.owner.as_ref() == Some(owner) && made.id == object.id;
        let before = place.objects.iter().position(ours).map(|at| place.objects.remove(at));
        if is_bridge && (before.is_none() || self.has(Fault::AppliesTwice)) {
            place.next_pid += 1;
            let pid = place.next_pid;
            place.processes.push(Process { pid, owner: Some(owner.clone()) });
        }
        let mut body = object.body.clone();
        if self.has(Fault::HidesBody)
            && let Some(body) = body.as_object_mut()
        {
            body.remove("restartedAt");
            body.remove("args");
        }
        if let Some(body) = body.as_object_mut() {
            body.insert("addedByTheRuntime".to_owned(), json!(true));
        }
        let phase = match place.bridges {
            Bridges::Ready => Phase::Ready,
            Bridges::ByHand => Phase::Starting,
        };
        let kept = before.and_then(|before| before.bridge).filter(|bridge| bridge.digest == object.digest);
        place.objects.push(Made {
            owner: Some(owner.clone()),
            id: object.id.clone(),
            stage: object.stage,
            digest: Some(object.digest.clone()).filter(|_| !self.has(Fault::LosesDigest)),
            body,
            told: object.body.clone(),
            bridge: is_bridge.then(|| kept.unwrap_or_else(|| new_bridge(owner, &object.digest, phase))),
            seen: !self.has(Fault::ObservesLate),
        });
    }

    fn unmake(&self, owner: &OwnerKey, id: &ObjectId) {
        let mut place = self.place();
        place.objects.retain(|made| match &made.owner {
            Some(whose) if whose == owner => made.id != *id,
            Some(_) => !self.has(Fault::TouchesOthers),
            None => !self.has(Fault::TouchesForeign),
        });
        let left = place.objects.iter().any(|made| made.owner.as_ref() == Some(owner) && made.stage == Stage::Workload);
        if !left && !self.has(Fault::LeavesProcess) && !self.has(Fault::ForgetsOwners) {
            place.processes.retain(|process| process.owner.as_ref() != Some(owner));
        }
    }
}

fn is_of(made: &Made, server: &str) -> bool {
    made.owner.as_ref().is_some_and(|owner| owner.name == server)
}

fn resolved(source_digest: &str, name: &str, version: &str) -> Resolved {
    Resolved {
        source_digest: source_digest.to_owned(),
        version: Some(version.to_owned()),
        command: Some(vec![format!("/opt/{name}/{version}/run")]),
        env: None,
        reads: None,
        image: None,
        runner: None,
    }
}

/// A status that ends no pass: what a bridge says after a handshake.
pub fn ready() -> Handshake {
    Handshake {
        era: Era::Modern,
        server_name: "fake-server".to_owned(),
        server_version: "1.2.3".to_owned(),
        protocol_versions: vec!["2026-07-28".to_owned()],
        tools: Some(ToolsSummary { count: 3, digest: "d0".to_owned() }),
        duration_ms: 42,
        at: "2026-08-01T00:00:00Z".to_owned(),
    }
}

fn new_bridge(owner: &OwnerKey, digest: &str, phase: Phase) -> BridgeStatus {
    BridgeStatus {
        bridge_version: "1".to_owned(),
        digest: digest.to_owned(),
        endpoint: format!("http://127.0.0.1/{}", owner.name),
        handshake: (phase == Phase::Ready).then(ready),
        phase,
        restarts: 0,
        last_exit: None,
        last_error: None,
        stderr_tail: Vec::new(),
        notices: Vec::new(),
        activity: Activity::default(),
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.0.info
    }

    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported> {
        let Workload::Server(server) = workload else {
            return Err(no("MCPHub", "gateways are elsewhere"));
        };
        let mut lowered = lower(server, self.has(Fault::DropsFields))?;
        if self.has(Fault::LowersAtRandom) {
            self.place().lowered += 1;
            let count = self.place().lowered;
            lowered.objects = lowered
                .objects
                .into_iter()
                .map(|object| {
                    let mut body = object.body;
                    body["count"] = json!(count);
                    Object::new(object.id, object.stage, object.change, body)
                })
                .collect();
        }
        Ok(lowered)
    }

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError> {
        let place = self.place();
        let objects = place.objects.iter().filter_map(|made| made.owner.clone());
        let processes = place.processes.iter().filter_map(|process| process.owner.clone());
        let mut owners: Vec<OwnerKey> =
            if self.has(Fault::ForgetsOwners) { objects.collect() } else { objects.chain(processes).collect() };
        owners.sort();
        owners.dedup();
        Ok(owners)
    }

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError> {
        let mut place = self.place();
        if std::mem::take(&mut place.blind) {
            return Err(RuntimeError {
                reason: "Blind",
                message: "the runtime does not answer".to_owned(),
                hint: Some("wait".to_owned()),
                retry: Retry::Backoff,
                source: None,
            });
        }
        let mut observed = Observed { failure: place.failure.clone(), ..Observed::default() };
        for made in place.objects.iter_mut().filter(|made| made.owner.as_ref() == Some(owner)) {
            if !std::mem::replace(&mut made.seen, true) {
                continue;
            }
            observed.objects.push(ObservedObject {
                id: made.id.clone(),
                stage: made.stage,
                digest: made.digest.clone(),
                body: if self.has(Fault::OverlooksDrift) { made.told.clone() } else { made.body.clone() },
            });
            observed.bridge = observed.bridge.or_else(|| made.bridge.clone());
        }
        observed.sleeps = observed.bridge.as_ref().is_some_and(|bridge| bridge.phase == Phase::Asleep);
        let process = place.processes.iter().any(|process| process.owner.as_ref() == Some(owner));
        if process && observed.bridge.is_none() && !self.has(Fault::LeavesProcess) && !self.has(Fault::ForgetsOwners) {
            // A process without its object: known, but in nobody's sense in sync.
            let id = ObjectId::new("bridge", &owner.name);
            if !observed.objects.iter().any(|found| found.id == id) {
                let body = Value::Null;
                observed.objects.push(ObservedObject { id, stage: Stage::Workload, digest: None, body });
            }
        }
        let preparations = self.preparations();
        let found = preparations.get(owner);
        observed.prepare = found.map(|found| Prepare { digest: found.digest.clone(), state: found.state.clone() });
        Ok(observed)
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError> {
        let writes = &self.0.writes;
        match step {
            Step::Prepare(object) => {
                writes.write(format!("prepare {}", object.id), || self.prepare(owner, object))?;
                self.tell(RuntimeEvent::Changed(owner.clone()));
                return Ok(Progress::Pending);
            }
            Step::Apply(object) => {
                writes.write(format!("make {}", object.id), || self.make(owner, object))?;
            }
            Step::Replace(object) => {
                writes.write(format!("remove {}", object.id), || self.unmake(owner, &object.id))?;
                if self.has(Fault::StopsHalfway) {
                    // The object is shown as made before it is.
                    self.make(owner, object);
                    self.place().processes.retain(|process| process.owner.as_ref() != Some(owner));
                }
                // Here a caller may drop us.
                tokio::task::yield_now().await;
                if self.has(Fault::StopsHalfway) {
                    self.unmake(owner, &object.id);
                }
                writes.write(format!("make {}", object.id), || self.make(owner, object))?;
            }
            Step::Remove(id) => {
                writes.write(format!("remove {id}"), || self.unmake(owner, id))?;
            }
        }
        self.tell(RuntimeEvent::Changed(owner.clone()));
        Ok(Progress::Done)
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        hints(&self.0.events)
    }

    fn console(&self) -> &dyn Console {
        &self.0.silence
    }
}

#[derive(Debug)]
struct SilentConsole;

#[async_trait]
impl Console for SilentConsole {
    async fn logs(&self, _: &OwnerKey, _: LogQuery) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        Ok(futures::stream::empty().boxed())
    }

    async fn exec(&self, _: &OwnerKey, _: &[String]) -> Result<ExecOutput, RuntimeError> {
        Ok(ExecOutput { code: Some(0), stdout: Vec::new(), stderr: Vec::new() })
    }
}
