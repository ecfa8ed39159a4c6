//! Servers in containers, on an engine that speaks the Docker API.
//!
//! A server is one container: its image, with the bridge as first process. All there is to know of it is on the engine: the
//! container's labels say whose it is and what it was made of, so a new daemon adopts what runs by looking at it. The engine
//! restarts nothing; a container that ended is seen by the engine's events and made anew by the next pass.

mod carry;
mod console;
mod container;
mod detect;
mod engine;
mod image;
mod ledger;
mod life;
mod look;
mod lower;
mod names;
mod pacing;
mod place;
mod pull;
mod relay;
mod shared;
mod stock;
mod tidy;
mod vessel;
mod watch;
mod way_in;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::lower::{Lowered, Object, ObjectId, Stage, Unsupported};
use mcp_hub_reconcile::observed::{Failure, Observed, ObservedObject};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Console, Progress, Runtime, RuntimeEvent, RuntimeInfo, Step, hints};
use mcp_hub_reconcile::workload::Workload;
use serde_json::Value;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::AbortHandle;

use crate::control::Control;
use crate::follow;
use crate::host::Host;
use crate::prepare::Preparations;
use crate::secret_source::SecretSource;

pub use carry::{Bridges, DIGITS, Program, ProgramImage};
use console::ContainerConsole;
use container::{Container, is_running, label, published};
pub use detect::{Candidate, EngineKind, NotFound, Surroundings, candidates, find};
pub use engine::{Engine, EngineError, Facts};
use image::{Images, Logins};
pub use ledger::Ledger;
use look::Found;
use pacing::Pacing;
use place::EnginePlace;
pub use pull::Refusal;
use relay::{Relays, Way};
use shared::Shared;
pub use stock::{Brought, LoadError};
pub use tidy::{Needed, Stays, Tidied};
use way_in::{Route, WaysIn};

/// Longest wait at the start for what runs already; a list takes milliseconds.
const ADOPTION: Duration = Duration::from_secs(5);
/// Containers made at a time. An engine serialises much of it, and one that is asked for fifty at once answers none in time.
const PARALLEL: usize = 8;
/// Events that a slow listener may lag behind before it is told to look at everything.
const EVENTS: usize = 256;

/// What an engine is used for.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    pub kind: EngineKind,
    pub around: Surroundings,
    /// Only owners of this installation are seen.
    pub installation: Installation,
    pub host: Host,
    pub bridges: Bridges,
    /// One for each architecture.
    pub relays: Vec<Program>,
    /// Where it is written down which images we brought.
    pub ledger: Ledger,
}

#[derive(Debug)]
pub struct DockerRuntime {
    config: DockerConfig,
    place: Arc<EnginePlace>,
    secrets: Arc<dyn SecretSource>,
    logins: Logins,
    preparations: Preparations,
    /// Owners that have something on the engine: of others it is not asked.
    known: Mutex<HashSet<OwnerKey>>,
    followers: Mutex<HashMap<OwnerKey, (SocketAddr, AbortHandle)>>,
    shared: Shared,
    ways_in: WaysIn,
    turns: Semaphore,
    pacing: Pacing,
    /// Of the ways through relays.
    ways_pacing: Pacing,
    events: broadcast::Sender<RuntimeEvent>,
    console: ContainerConsole,
    watcher: OnceLock<AbortHandle>,
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        let followers = self.followers.get_mut().unwrap_or_else(PoisonError::into_inner);
        followers.values().for_each(|(_, follower)| follower.abort());
        self.watcher.get().into_iter().for_each(AbortHandle::abort);
    }
}

impl DockerRuntime {
    /// Looks for the engine, and adopts what runs on it. Without one it goes on looking in the background, and tells when one
    /// is there.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn start(config: DockerConfig, secrets: Arc<dyn SecretSource>) -> Arc<Self> {
        let kind = config.kind;
        let events = broadcast::Sender::new(EVENTS);
        let place = Arc::new(EnginePlace::new(kind));
        let docker_config = config.around.docker_config().join("config.json");
        let logins = Logins { docker_config, secrets: secrets.clone() };
        let runtime = Arc::new(Self {
            preparations: Preparations::new(
                Arc::new(Images { kind, place: place.clone(), logins: logins.clone(), ledger: config.ledger.clone() }),
                events.clone(),
            ),
            logins,
            console: ContainerConsole::new(place.clone()),
            place,
            secrets,
            known: Mutex::default(),
            followers: Mutex::default(),
            shared: Shared::new(
                kind,
                config.bridges.clone(),
                Relays::new(kind, config.installation.clone(), config.relays.clone()),
            ),
            ways_in: WaysIn::new(config.installation.permit_key()),
            turns: Semaphore::new(PARALLEL),
            pacing: Pacing::default(),
            ways_pacing: Pacing::default(),
            events,
            watcher: OnceLock::new(),
            config,
        });
        runtime.place.look(&runtime.config).await;
        // One that hangs is asked again by the watcher; a daemon has more to do than to wait for it.
        tokio::time::timeout(ADOPTION, runtime.adopt()).await.unwrap_or_default();
        let watcher = tokio::spawn(watch::run(Arc::downgrade(&runtime))).abort_handle();
        runtime.watcher.set(watcher).unwrap_or_default();
        runtime
    }

    /// Whether there is an engine, else what was tried.
    pub fn engine(&self) -> Result<Engine, NotFound> {
        self.place.engine()
    }

    /// Takes note of what runs on the engine. An engine that does not say it now is asked again.
    async fn adopt(&self) -> bool {
        let Ok(engine) = self.place.engine() else { return false };
        match self.listed(&engine).await {
            Ok(owners) => {
                self.known().extend(owners);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "containers not listed");
                false
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashSet<OwnerKey>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: RuntimeEvent) {
        // Nobody listening is no loss: who listens later looks at everything first.
        self.events.send(event).ok();
    }

    /// All owners of this installation with a container.
    async fn listed(&self, engine: &Engine) -> Result<Vec<OwnerKey>, EngineError> {
        let found = engine.labels(&self.marks()).await?;
        let mut owners: Vec<OwnerKey> = found.iter().filter_map(container::owner).collect();
        owners.sort();
        owners.dedup();
        Ok(owners)
    }

    fn marks(&self) -> Vec<String> {
        self.shared.marks()
    }

    /// The owner's container, if there is one with its mark.
    async fn inspect(&self, engine: &Engine, owner: &OwnerKey) -> Result<Option<Found>, EngineError> {
        let found = engine.container(&names::container(owner)).await?;
        Ok(found.filter(|found| self.is_of(found, owner)))
    }

    fn is_of(&self, found: &Found, owner: &OwnerKey) -> bool {
        labels_of(found).is_some_and(|labels| {
            let engine = labels.get(label::ENGINE).map(String::as_str);
            container::owner(labels).as_ref() == Some(owner) && engine == Some(self.config.kind.as_str())
        })
    }

    fn control(&self, owner: &OwnerKey, address: SocketAddr) -> Control {
        Control::at_port(address, self.config.installation.bridge_token(&owner.uid, 0))
    }

    /// One follower an owner; another address means another bridge.
    fn follow(&self, engine: &Engine, owner: &OwnerKey, address: SocketAddr, enclosed: bool) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if followers.get(owner).is_some_and(|(known, task)| *known == address && !task.is_finished()) {
            return;
        }
        let relay = enclosed.then(|| self.shared.relays.name(&owner.namespace));
        let place = watch::Held { engine: engine.clone(), name: names::container(owner), relay };
        let task = tokio::spawn(follow::run(owner.clone(), self.control(owner, address), place, self.events.clone()));
        if let Some((_, predecessor)) = followers.insert(owner.clone(), (address, task.abort_handle())) {
            predecessor.abort();
        }
    }

    /// The relay by which an enclosed container is reached, if it is there.
    async fn relay_of(
        &self,
        engine: &Engine,
        owner: &OwnerKey,
        wanted: &Container,
    ) -> Result<Option<Found>, EngineError> {
        match wanted.enclosed {
            true => self.shared.relays.find(engine, &owner.namespace).await,
            false => Ok(None),
        }
    }

    /// Where the bridge of a running container is reached; `None` while it cannot be.
    fn address(
        &self,
        owner: &OwnerKey,
        found: &Found,
        wanted: &Container,
        relay: Option<&Found>,
    ) -> Result<Option<SocketAddr>, EngineError> {
        if !wanted.enclosed {
            return Ok(published(found, wanted.port));
        }
        let settings = &found.network_settings;
        let (Some(relay), Some(bridge)) = (relay.and_then(relay::door), settings.address_on(&wanted.network)) else {
            return Ok(None);
        };
        let led = self.ways_in.lead(owner, Route { relay, bridge: (bridge, wanted.port).into() });
        led.map(Some).map_err(|source| EngineError::NoPort { owner: owner.to_string(), source })
    }

    /// Removes what no server of ours needs.
    async fn tidy(&self, engine: &Engine) -> Result<(), EngineError> {
        let mut owners = self.listed(engine).await?;
        owners.extend(self.known().iter().cloned());
        let used = owners.iter().map(names::inner).collect();
        self.shared.tidy(engine, &used).await
    }

    /// Opens a server's way through the relay. One that ended by itself is made anew ever more seldom.
    async fn open_way(&self, engine: &Engine, owner: &OwnerKey, object: &Object) -> Result<(), RuntimeError> {
        let way: Way = serde_json::from_value(object.body.clone()).map_err(|source| EngineError::Malformed {
            what: object.id.to_string(),
            wanted: "way",
            source,
        })?;
        // From now on it is not to be tidied away.
        self.known().insert(owner.clone());
        self.ways_pacing.check(owner, &object.digest)?;
        loop {
            let error = match self.shared.open(engine, &owner.namespace, &way).await {
                Ok(()) => {
                    self.ways_pacing.started(owner);
                    // Who waited for it is reached now.
                    self.tell(RuntimeEvent::Changed(owner.clone()));
                    return Ok(());
                }
                Err(error) => error,
            };
            let ended = matches!(error, EngineError::RelayEnded { .. });
            let error = RuntimeError::from(error);
            self.ways_pacing.failed(owner, &object.digest, &error);
            if !ended {
                return Err(error);
            }
            self.ways_pacing.check(owner, &object.digest)?;
        }
    }

    /// Whatever there is of a server's way is removed.
    async fn close_way(&self, engine: &Engine, owner: &OwnerKey) -> Result<(), EngineError> {
        self.ways_in.close(owner);
        self.shared.close(engine, &owner.namespace, &names::inner(owner)).await?;
        self.tidy(engine).await
    }

    async fn remove(&self, engine: &Engine, owner: &OwnerKey) -> Result<(), EngineError> {
        self.end(engine, owner).await?;
        self.preparations.forget(owner);
        self.pacing.forget(owner);
        self.ways_pacing.forget(owner);
        let follower = self.followers.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
        follower.into_iter().for_each(|(_, follower)| follower.abort());
        self.ways_in.close(owner);
        self.tidy(engine).await?;
        self.tell(RuntimeEvent::Changed(owner.clone()));
        Ok(())
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn info(&self) -> &RuntimeInfo {
        self.place.info()
    }

    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported> {
        let kind = self.config.kind;
        match self.place.wanted() {
            Ok(engine) => {
                let DockerConfig { host, bridges, .. } = &self.config;
                lower::lower(workload, kind, engine.facts(), host, bridges, &self.shared.relays)
            }
            Err(missing) => Err(Unsupported {
                runtime: kind.as_str().to_owned(),
                field: "spec.source.image".to_owned(),
                message: missing.to_string(),
                hint: Some(missing.hint().to_owned()),
            }),
        }
    }

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError> {
        // Without an engine there is nothing that could be an orphan.
        let Ok(engine) = self.place.engine() else { return Ok(Vec::new()) };
        let owners = self.listed(&engine).await?;
        self.known().extend(owners.iter().cloned());
        // What a daemon left that was killed in the middle of a removal.
        self.tidy(&engine).await?;
        Ok(owners)
    }

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError> {
        let mut observed = Observed { prepare: self.preparations.state(owner), ..Observed::default() };
        if !self.known().contains(owner) {
            return Ok(observed);
        }
        let engine = self.place.here()?;
        let relay = self.shared.relays.find(&engine, &owner.namespace).await?;
        let network = names::inner(owner);
        let way = relay.as_ref().and_then(|relay| self.shared.relays.way(relay, &network));
        observed.objects.extend(way.map(|body| ObservedObject {
            id: lower::way_id(self.config.kind.as_str(), owner),
            stage: Stage::Network,
            digest: Some(mcp_hub_reconcile::digest(&body)),
            body,
        }));
        let Some(found) = self.inspect(&engine, owner).await? else {
            if observed.objects.is_empty() {
                match engine.network(&network).await? {
                    // Its way was closed by halves.
                    Some(_) => observed.objects.push(ObservedObject {
                        id: lower::way_id(self.config.kind.as_str(), owner),
                        stage: Stage::Network,
                        digest: None,
                        body: Value::Null,
                    }),
                    None => drop(self.known().remove(owner)),
                }
            }
            return Ok(observed);
        };
        let labels = found.config.labels.clone().unwrap_or_default();
        let mut body = container::body(&labels).unwrap_or_default();
        let wanted = container_of(&names::container(owner), &body);
        let mut digest = labels.get(label::DIGEST).cloned();
        match wanted {
            Ok(wanted) => {
                let address = match is_running(&found) {
                    true => self.address(owner, &found, &wanted, relay.as_ref())?,
                    false => None,
                };
                if let Some(address) = address {
                    self.follow(&engine, owner, address, wanted.enclosed);
                    match self.control(owner, address).status().await {
                        Ok(mut status) => {
                            // One that waits for its secrets was left by a daemon that died before it could push them.
                            if matches!(status.phase, Phase::WaitingForSecrets { .. }) {
                                digest = None;
                            }
                            // What the bridge knows is its address in the container.
                            status.endpoint = format!("http://{address}/mcp");
                            observed.bridge = Some(status);
                        }
                        Err(_) if wanted.enclosed && !is_heard(relay.as_ref()).await => {
                            // Brought again, it is made anew.
                            observed.objects.iter_mut().for_each(|way| way.digest = None);
                            observed.failure = Some(cut_off());
                        }
                        Err(_) => observed.failure = Some(mute()),
                    }
                } else if is_running(&found) && wanted.enclosed {
                    observed.failure = Some(cut_off());
                } else {
                    observed.failure = Some(life::ended(&found));
                }
                body["container"] = serde_json::to_value(wanted.now(&found)).unwrap_or_default();
            }
            // The mark was lost.
            Err(_) => digest = None,
        }
        observed.objects.push(ObservedObject {
            id: lower::container_id(self.config.kind.as_str(), owner),
            stage: Stage::Workload,
            digest,
            body,
        });
        Ok(observed)
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError> {
        if let Step::Prepare(object) = step {
            self.preparations.start(owner, object);
            return Ok(Progress::Pending);
        }
        let engine = self.place.here()?;
        match step {
            Step::Prepare(_) => {}
            Step::Apply(object) | Step::Replace(object) if is_way(&object.id) => {
                self.open_way(&engine, owner, object).await?;
            }
            Step::Remove(id) if is_way(id) => self.close_way(&engine, owner).await?,
            Step::Apply(object) => self.bring(&engine, owner, object, false).await?,
            Step::Replace(object) => self.bring(&engine, owner, object, true).await?,
            Step::Remove(_) => self.remove(&engine, owner).await?,
        }
        Ok(Progress::Done)
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        hints(&self.events)
    }

    fn console(&self) -> &dyn Console {
        &self.console
    }
}

/// Whether an engine of this kind makes objects of this id: its containers, and what it resolves for them.
pub(crate) fn makes(kind: EngineKind, id: &ObjectId) -> bool {
    id.kind
        .split_once(' ')
        .is_some_and(|(engine, what)| engine == kind.as_str() && matches!(what, "container" | "image" | "way"))
}

fn is_way(id: &ObjectId) -> bool {
    id.kind.ends_with(" way")
}

fn container_of(what: &str, body: &Value) -> Result<Container, EngineError> {
    serde_json::from_value(body["container"].clone()).map_err(|source| EngineError::Malformed {
        what: what.to_owned(),
        wanted: "container",
        source,
    })
}

fn labels_of(found: &Found) -> Option<&HashMap<String, String>> {
    found.config.labels.as_ref()
}

fn digest_of(found: &Found) -> Option<&str> {
    labels_of(found)?.get(label::DIGEST).map(String::as_str)
}

fn mute() -> Failure {
    Failure {
        reason: "BridgeMute",
        message: "the server's bridge does not answer".to_owned(),
        hint: None,
        retry: Retry::Backoff,
    }
}

/// Whether there is a relay that answers.
async fn is_heard(relay: Option<&Found>) -> bool {
    match relay {
        Some(relay) => relay::answers(relay).await,
        None => false,
    }
}

fn cut_off() -> Failure {
    Failure {
        reason: "RelayEnded",
        message: "the relay that leads to the server does not run, or does not answer".to_owned(),
        hint: None,
        retry: Retry::Backoff,
    }
}
