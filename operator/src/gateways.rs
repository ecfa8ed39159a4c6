//! What the replicas of gateways say, followed as they say it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mcp_hub_dataplane_api::control::ControlKeys;
use mcp_hub_dataplane_api::gateway::{Definitions, InForce, ReplicaStatus, UpstreamStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Demand, SinkEvent};
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::lower::CONTROL_PORT;
use crate::pods::PodFacts;

/// Speaks to the control listener of one replica.
#[async_trait]
pub trait AskGateway: fmt::Debug + Send + Sync {
    /// Hands over a sealed configuration; what is in force then, `None` if nothing answers or it was not taken.
    async fn push(&self, address: &str, port: u16, sealed: Vec<u8>) -> Option<InForce>;

    /// What the replica knows of the server with this uid; `None` if it knows nothing, or does not answer.
    async fn definitions(&self, address: &str, port: u16, token: &SecretString, server: &str) -> Option<Definitions>;

    /// The replica's status, now and whenever it changes, until the connection ends.
    async fn events(&self, address: &str, port: u16, token: &SecretString) -> BoxStream<'static, ReplicaStatus>;
}

/// A replica that has said nothing for so long is not waited for.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// A server that was asked for counts as called for so long; whoever still waits then has asked again.
const ASKED_FOR: Duration = Duration::from_secs(30);
/// Replicas that are asked what they know of one server.
const ASKED_OF: usize = 3;
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Gateways(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ask: Arc<dyn AskGateway>,
    installation: Installation,
    events: broadcast::Sender<SinkEvent>,
    replicas: Mutex<HashMap<String, Replica>>,
    /// When servers, by uid, were last asked for.
    asked_for: Mutex<HashMap<String, Instant>>,
    /// Tells that a replica has said something for the first time, did not answer, or is no more.
    heard: watch::Sender<()>,
}

#[derive(Debug)]
struct Replica {
    hub: OwnerKey,
    /// Where it listens, and which start of its container: another one is followed anew.
    at: (String, i32),
    status: Option<ReplicaStatus>,
    /// When it said this; `None` if it may have something else to say by now that does not get through.
    said: Option<Instant>,
    /// Whether it has said something, or was asked in vain.
    heard: bool,
    task: AbortHandle,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateways {
    pub(crate) fn new(
        ask: Arc<dyn AskGateway>,
        installation: Installation,
        events: broadcast::Sender<SinkEvent>,
    ) -> Self {
        let (replicas, asked_for, heard) = (Mutex::default(), Mutex::default(), watch::Sender::new(()));
        Self(Arc::new(Inner { ask, installation, events, replicas, asked_for, heard }))
    }

    /// Takes the pods that a hub's gateway has now.
    pub(crate) fn attend(&self, hub: &OwnerKey, pods: &[PodFacts]) {
        let alive: BTreeMap<&str, (String, i32)> = pods
            .iter()
            .filter(|pod| !pod.ending && pod.running)
            .filter_map(|pod| Some((pod.uid.as_str(), (pod.ip.clone()?, pod.starts))))
            .collect();
        let mut replicas = self.0.replicas();
        replicas.retain(|uid, known| known.hub != *hub || alive.contains_key(uid.as_str()));
        for (uid, at) in alive {
            if replicas.get(uid).is_some_and(|known| known.at == at) {
                continue;
            }
            let task = tokio::spawn(follow(self.0.clone(), hub.clone(), uid.to_owned(), at.0.clone())).abort_handle();
            let hub = hub.clone();
            replicas.insert(uid.to_owned(), Replica { hub, at, status: None, said: None, heard: false, task });
        }
        // Those that wait look at what is locked here.
        drop(replicas);
        self.0.heard.send_replace(());
    }

    /// Waits until each replica of this hub, or of all, has said something or has been silent for a few seconds.
    pub(crate) async fn heard(&self, hub: Option<&OwnerKey>) {
        let meant = |replica: &&Replica| hub.is_none_or(|hub| replica.hub == *hub);
        let all = |(): &()| self.0.replicas().values().filter(meant).all(|replica| replica.heard);
        // The sender lives as long as this value.
        self.0.heard.subscribe().wait_for(all).await.ok();
    }

    /// What the replicas of a hub said last, by the pod's uid.
    pub(crate) fn of(&self, hub: &OwnerKey) -> BTreeMap<String, ReplicaStatus> {
        let replicas = self.0.replicas();
        let mine = replicas.iter().filter(|(_, replica)| replica.hub == *hub);
        mine.filter_map(|(uid, replica)| Some((uid.clone(), replica.status.clone()?))).collect()
    }

    /// The best that any replica found of a server.
    pub(crate) fn upstream(&self, server_uid: &str) -> Option<UpstreamStatus> {
        let replicas = self.0.replicas();
        let statuses = replicas.values().filter_map(|replica| replica.status.as_ref());
        UpstreamStatus::best(statuses.filter_map(|status| status.status.upstreams.get(server_uid)).cloned())
    }

    /// A gateway asks for a server.
    pub(crate) fn ask_for(&self, server_uid: &str) {
        let mut asked_for = self.0.asked_for.lock().unwrap_or_else(PoisonError::into_inner);
        asked_for.retain(|_, at| at.elapsed() < ASKED_FOR);
        asked_for.insert(server_uid.to_owned(), Instant::now());
        drop(asked_for);
        // Nobody listening is no loss: the gateway asks again.
        self.0.events.send(SinkEvent::Upstream(server_uid.to_owned())).ok();
    }

    /// Whether the replicas of these hubs call the server.
    pub(crate) fn demand(&self, server_uid: &str, hubs: &[OwnerKey]) -> Demand {
        let asked_for = self.0.asked_for.lock().unwrap_or_else(PoisonError::into_inner).get(server_uid).copied();
        if asked_for.is_some_and(|at| at.elapsed() < ASKED_FOR) {
            return Demand::Called;
        }
        let replicas = self.0.replicas();
        let (mut idle, mut all_told) = (Duration::MAX, true);
        for hub in hubs {
            let mut of_hub = replicas.values().filter(|replica| replica.hub == *hub).peekable();
            all_told &= of_hub.peek().is_some();
            for replica in of_hub {
                match replica.use_of(server_uid) {
                    Some((calls, _)) if calls > 0 => return Demand::Called,
                    Some((_, since)) => idle = idle.min(since),
                    None => all_told = false,
                }
            }
        }
        if all_told { Demand::Idle(idle) } else { Demand::Unknown }
    }

    /// What some replica knows of the server.
    pub(crate) async fn definitions(&self, server_uid: &str) -> Option<Definitions> {
        let knowing: Vec<(String, OwnerKey)> = {
            let replicas = self.0.replicas();
            let offer = |replica: &&Replica| replica.use_of(server_uid).is_some();
            replicas.values().filter(offer).map(|replica| (replica.at.0.clone(), replica.hub.clone())).collect()
        };
        for (address, hub) in knowing.into_iter().take(ASKED_OF) {
            let token = self.0.token(&hub);
            let found = self.0.ask.definitions(&address, CONTROL_PORT, &token, server_uid).await;
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Uids of the servers that replicas of a hub offer.
    pub(crate) fn offered(&self, hub: &OwnerKey) -> BTreeSet<String> {
        let replicas = self.0.replicas();
        let statuses = replicas.values().filter(|replica| replica.hub == *hub).filter_map(|r| r.status.as_ref());
        statuses.flat_map(|status| status.activity.keys().cloned()).collect()
    }

    /// Hands a sealed configuration to a replica; whether this version is in force there now.
    pub(crate) async fn push(&self, pod: &PodFacts, sealed: Vec<u8>, version: &str) -> bool {
        let Some(ip) = &pod.ip else { return false };
        let answer = self.0.ask.push(ip, CONTROL_PORT, sealed).await;
        let taken = answer.as_ref().is_some_and(|in_force| in_force.version == version);
        if let Some(in_force) = answer
            && let Some(status) = self.0.replicas().get_mut(&pod.uid).and_then(|replica| replica.status.as_mut())
        {
            status.status.version = in_force.version;
            status.sequence = in_force.sequence;
        }
        taken
    }
}

impl Drop for Gateways {
    fn drop(&mut self) {
        self.0.replicas().clear();
    }
}

impl Replica {
    /// Calls under way to a server, and how long there has been none; `None` if the replica did not tell.
    fn use_of(&self, server_uid: &str) -> Option<(u32, Duration)> {
        let told = self.status.as_ref()?.activity.get(server_uid)?;
        let since = told.idle_ms.map_or(Duration::MAX, Duration::from_millis);
        Some((told.calls_in_flight, since.saturating_add(self.said?.elapsed())))
    }
}

impl Inner {
    fn token(&self, hub: &OwnerKey) -> SecretString {
        ControlKeys::of(&self.installation.sealing_key(&hub.uid)).token().clone()
    }

    fn replicas(&self) -> MutexGuard<'_, HashMap<String, Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a replica said; what there is to tell of it.
    fn take(&self, pod_uid: &str, said: ReplicaStatus) -> Vec<SinkEvent> {
        let mut replicas = self.replicas();
        let Some(replica) = replicas.get_mut(pod_uid) else { return Vec::new() };
        let old = replica.status.as_ref();
        let of_hub = |status: &ReplicaStatus| (status.status.version.clone(), status.status.collisions.clone());
        let mut news = Vec::new();
        if old.map(of_hub) != Some(of_hub(&said)) {
            news.push(SinkEvent::Hub(replica.hub.clone()));
        }
        let before = old.map(|status| &status.status.upstreams);
        let uids: BTreeSet<&String> =
            before.into_iter().flatten().chain(&said.status.upstreams).map(|(uid, _)| uid).collect();
        for uid in uids {
            if before.and_then(|before| before.get(uid)) != said.status.upstreams.get(uid) {
                news.push(SinkEvent::Upstream(uid.clone()));
            }
        }
        replica.status = Some(said);
        replica.said = Some(Instant::now());
        news
    }

    /// Notes that nothing that a replica has to say gets through.
    fn is_silent(&self, pod_uid: &str) {
        if let Some(replica) = self.replicas().get_mut(pod_uid) {
            replica.said = None;
        }
    }

    fn was_heard(&self, pod_uid: &str) {
        let mut replicas = self.replicas();
        let first = replicas.get_mut(pod_uid).is_some_and(|replica| !std::mem::replace(&mut replica.heard, true));
        // Those that wait look at what is locked here.
        drop(replicas);
        if first {
            self.heard.send_replace(());
        }
    }
}

async fn follow(inner: Arc<Inner>, hub: OwnerKey, pod_uid: String, ip: String) {
    let listen = listen(&inner, &hub, &pod_uid, &ip);
    tokio::pin!(listen);
    if tokio::time::timeout(FIRST_WORD, &mut listen).await.is_err() {
        inner.was_heard(&pod_uid);
        listen.await;
    }
}

/// Takes for ever what a replica says.
async fn listen(inner: &Inner, hub: &OwnerKey, pod_uid: &str, ip: &str) {
    let token = inner.token(hub);
    let mut wait = FIRST;
    loop {
        let mut statuses = inner.ask.events(ip, CONTROL_PORT, &token).await;
        while let Some(said) = statuses.next().await {
            wait = FIRST;
            let news = inner.take(pod_uid, said);
            inner.was_heard(pod_uid);
            for event in news {
                // Nobody listening is no loss: who listens later looks at everything.
                inner.events.send(event).ok();
            }
        }
        inner.is_silent(pod_uid);
        inner.was_heard(pod_uid);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use mcp_hub_dataplane_api::gateway::{GatewayStatus, UpstreamActivity};
    use mcp_hub_reconcile::owner::OwnerKind;

    use super::*;

    /// Gateways that offer one server and have called it a minute ago, as long as they can be reached.
    #[derive(Debug)]
    struct Reachable(watch::Sender<bool>);

    #[async_trait]
    impl AskGateway for Reachable {
        async fn push(&self, _: &str, _: u16, _: Vec<u8>) -> Option<InForce> {
            None
        }

        async fn definitions(&self, _: &str, _: u16, _: &SecretString, _: &str) -> Option<Definitions> {
            None
        }

        async fn events(&self, _: &str, _: u16, _: &SecretString) -> BoxStream<'static, ReplicaStatus> {
            let mut reachable = self.0.subscribe();
            let said = reachable.borrow_and_update().then(|| ReplicaStatus {
                status: GatewayStatus {
                    version: String::new(),
                    upstreams: BTreeMap::new(),
                    collisions: BTreeMap::new(),
                },
                sequence: 1,
                draining: false,
                activity: BTreeMap::from([(
                    "server".to_owned(),
                    UpstreamActivity { calls_in_flight: 0, idle_ms: Some(60_000) },
                )]),
            });
            let end = async move { reachable.changed().await.ok() };
            stream::iter(said).chain(stream::once(end).filter_map(|_| async { None })).boxed()
        }
    }

    fn hub(uid: &str) -> OwnerKey {
        let text = str::to_owned;
        let (installation, namespace, name) = (text("test"), text("team"), text(uid));
        OwnerKey { installation, kind: OwnerKind::MCPHub, namespace, name, uid: text(uid) }
    }

    fn pod(hub: &OwnerKey) -> PodFacts {
        let (name, uid) = (format!("{}-0", hub.name), format!("pod of {}", hub.uid));
        let (owner, ip, port) = (hub.clone(), Some("10.0.0.1".to_owned()), Some(8080));
        PodFacts { owner, name, uid, ip, port, ready: true, ending: false, starts: 0, running: true, failure: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_idle_when_every_gateway_of_every_hub_that_offers_it_says_so_now() {
        let reachable = watch::Sender::new(true);
        let ask = Arc::new(Reachable(reachable.clone()));
        let gateways = Gateways::new(ask, Installation::new("test", [7; 32]), broadcast::Sender::new(16));
        let (one, other) = (hub("one"), hub("other"));
        let both = [one.clone(), other.clone()];
        gateways.attend(&one, &[pod(&one)]);
        gateways.heard(None).await;
        let idle = |demand| matches!(demand, Demand::Idle(idle) if idle >= Duration::from_secs(60));
        assert!(idle(gateways.demand("server", &both[..1])));
        assert_eq!(gateways.demand("unknown", &both[..1]), Demand::Unknown);
        assert_eq!(gateways.demand("server", &both), Demand::Unknown, "the other hub has no gateway yet");
        gateways.attend(&other, &[pod(&other)]);
        gateways.heard(None).await;
        assert!(idle(gateways.demand("server", &both)));

        reachable.send_replace(false);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(gateways.demand("server", &both), Demand::Unknown, "who is not reached may be calling it");
        reachable.send_replace(true);
        tokio::time::sleep(LONGEST).await;
        assert!(idle(gateways.demand("server", &both)));

        gateways.ask_for("server");
        assert_eq!(gateways.demand("server", &both), Demand::Called);
        tokio::time::sleep(ASKED_FOR).await;
        assert!(idle(gateways.demand("server", &both)));
    }
}
