//! What the replicas of gateways say, followed as they say it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mcp_hub_dataplane_api::control::ControlKeys;
use mcp_hub_dataplane_api::gateway::{InForce, ReplicaStatus, UpstreamStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::SinkEvent;
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;

use crate::lower::CONTROL_PORT;
use crate::pods::PodFacts;

/// Speaks to the control listener of one replica.
#[async_trait]
pub trait AskGateway: fmt::Debug + Send + Sync {
    /// Hands over a sealed configuration; what is in force then, `None` if nothing answers or it was not taken.
    async fn push(&self, address: &str, port: u16, sealed: Vec<u8>) -> Option<InForce>;

    /// The replica's status, now and whenever it changes, until the connection ends.
    async fn events(&self, address: &str, port: u16, token: &SecretString) -> BoxStream<'static, ReplicaStatus>;
}

/// A replica that has said nothing for so long is not waited for.
const FIRST_WORD: Duration = Duration::from_secs(5);
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
    /// Tells that a replica has said something for the first time, did not answer, or is no more.
    heard: watch::Sender<()>,
}

#[derive(Debug)]
struct Replica {
    hub: OwnerKey,
    /// Where it listens, and which start of its container: another one is followed anew.
    at: (String, i32),
    status: Option<ReplicaStatus>,
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
        let (replicas, heard) = (Mutex::default(), watch::Sender::new(()));
        Self(Arc::new(Inner { ask, installation, events, replicas, heard }))
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
            replicas.insert(uid.to_owned(), Replica { hub: hub.clone(), at, status: None, heard: false, task });
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

impl Inner {
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
        news
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
    let token = ControlKeys::of(&inner.installation.sealing_key(&hub.uid)).token().clone();
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
        inner.was_heard(pod_uid);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
}
