//! What the bridges say: each pod's is asked when the pod starts, whenever its readiness changes, and each minute: a server
//! that dies and is back within a moment changes nothing that a kubelet sees.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Phase};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::AbortHandle;

use crate::pods::PodFacts;

/// Asks one bridge.
#[async_trait]
pub trait AskBridge: fmt::Debug + Send + Sync {
    /// The status at `http://ADDRESS:PORT/status`; `None` if nothing answers there yet.
    async fn status(&self, address: &str, port: u16, token: &SecretString) -> Option<BridgeStatus>;
}

/// Bridges asked at a time: a restarted operator asks all of them.
const AT_ONCE: usize = 64;
/// A pod that was never asked is waited for so long: what it says is better told than that nothing is known of it.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// A bridge that is not ready is asked again, at first after this time.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);
/// Thousands of bridges are a hundred small requests a second.
const EACH_MINUTE: Duration = Duration::from_secs(55);
/// A server that takes longer to start is told of as starting; most are ready before anybody has read that.
const STARTING: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Bridges(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ask: Arc<dyn AskBridge>,
    installation: Installation,
    events: broadcast::Sender<RuntimeEvent>,
    turns: Semaphore,
    attended: Mutex<HashMap<String, Pods>>,
    /// Tells that a pod was asked for the first time, or is no more.
    asked: watch::Sender<()>,
}

/// The pods of an owner, by uid. The map's keys are owners' uids: news of one look at its own pods only.
type Pods = BTreeMap<String, Box<Attended>>;

/// A pod whose bridge is asked.
#[derive(Debug)]
struct Attended {
    seen: Seen,
    status: Option<BridgeStatus>,
    /// Whether this start of its bridge was asked, with or without an answer.
    asked: bool,
    task: AbortHandle,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What makes it worth asking anew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    ip: String,
    port: u16,
    starts: i32,
    ready: bool,
}

impl Bridges {
    pub(crate) fn new(
        ask: Arc<dyn AskBridge>,
        installation: Installation,
        events: broadcast::Sender<RuntimeEvent>,
    ) -> Self {
        let turns = Semaphore::new(AT_ONCE);
        let (attended, asked) = (Mutex::default(), watch::Sender::new(()));
        Self(Arc::new(Inner { ask, installation, events, turns, attended, asked }))
    }

    /// Takes the pods that an owner has now.
    pub(crate) fn attend(&self, owner: &OwnerKey, pods: &[PodFacts]) {
        self.take(owner, pods);
        self.0.asked.send_replace(());
    }

    fn take(&self, owner: &OwnerKey, pods: &[PodFacts]) {
        let mut attended = self.0.attended();
        let alive: BTreeMap<&str, Seen> = pods
            .iter()
            .filter(|pod| !pod.ending && pod.running)
            .filter_map(|pod| {
                let (ip, port) = (pod.ip.clone()?, pod.port?);
                Some((pod.uid.as_str(), Seen { ip, port, starts: pod.starts, ready: pod.ready }))
            })
            .collect();
        if alive.is_empty() {
            attended.remove(&owner.uid);
            return;
        }
        let attended = attended.entry(owner.uid.clone()).or_default();
        attended.retain(|uid, _| alive.contains_key(uid.as_str()));
        for (uid, seen) in alive {
            let known = attended.get(uid);
            if known.is_some_and(|known| known.seen == seen) {
                continue;
            }
            // A bridge that was started anew has nothing to do with what the old one said.
            let known = known.filter(|known| known.seen.starts == seen.starts);
            let (status, asked) = known.map_or((None, false), |known| (known.status.clone(), known.asked));
            let follow = follow(self.0.clone(), owner.clone(), uid.to_owned(), seen.clone());
            let task = tokio::spawn(follow).abort_handle();
            attended.insert(uid.to_owned(), Box::new(Attended { seen, status, asked, task }));
        }
    }

    /// Waits until each pod of an owner that runs was asked once, or seems not to answer.
    pub(crate) async fn asked(&self, owner: &OwnerKey) {
        let all = |(): &()| self.0.attended().get(&owner.uid).is_none_or(|pods| pods.values().all(|pod| pod.asked));
        // The sender lives as long as this value.
        tokio::time::timeout(FIRST_WORD, self.0.asked.subscribe().wait_for(all)).await.ok();
    }

    /// Asks every bridge of an owner at this moment; whether all of them answered.
    pub(crate) async fn ask_anew(&self, owner: &OwnerKey) -> bool {
        let pods: Vec<(String, Seen)> = {
            let attended = self.0.attended();
            let pods = attended.get(&owner.uid).into_iter().flatten();
            pods.map(|(uid, pod)| (uid.clone(), pod.seen.clone())).collect()
        };
        let token = self.0.installation.bridge_token(&owner.uid, 0);
        let answers = pods.iter().map(async |(uid, seen)| match self.0.ask(seen, &token).await {
            Some(said) => {
                self.0.note(owner, uid, said);
                true
            }
            None => false,
        });
        join_all(answers).await.into_iter().all(|answered| answered)
    }

    /// What the bridge of a pod said last.
    pub(crate) fn status(&self, owner: &OwnerKey, pod_uid: &str) -> Option<BridgeStatus> {
        self.0.attended().get(&owner.uid)?.get(pod_uid)?.status.clone()
    }
}

impl Drop for Bridges {
    fn drop(&mut self) {
        self.0.attended().clear();
    }
}

impl Inner {
    fn attended(&self) -> std::sync::MutexGuard<'_, HashMap<String, Pods>> {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, seen: &Seen, token: &SecretString) -> Option<BridgeStatus> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await.ok()?;
        self.ask.status(&seen.ip, seen.port, token).await
    }

    /// Takes what a bridge said, and tells of it if it means something else than before.
    fn note(&self, owner: &OwnerKey, pod_uid: &str, said: BridgeStatus) {
        let changed = {
            let mut attended = self.attended();
            let known = attended.get_mut(&owner.uid).and_then(|pods| pods.get_mut(pod_uid));
            let Some(known) = known else { return };
            let changed = known.status.as_ref().map(meaning) != Some(meaning(&said));
            known.status = Some(said);
            changed
        };
        if changed {
            // Nobody listening is no loss: who listens later looks at everything.
            self.events.send(RuntimeEvent::Changed(owner.clone())).ok();
        }
    }

    fn was_asked(&self, owner: &OwnerKey, pod_uid: &str) {
        let mut attended = self.attended();
        let known = attended.get_mut(&owner.uid).and_then(|pods| pods.get_mut(pod_uid));
        let first = known.is_some_and(|known| !std::mem::replace(&mut known.asked, true));
        // Those that wait look at what is locked here.
        drop(attended);
        if first {
            self.asked.send_replace(());
        }
    }
}

/// A status without what changes with each call.
fn meaning(status: &BridgeStatus) -> BridgeStatus {
    BridgeStatus { activity: Activity::default(), ..status.clone() }
}

async fn follow(inner: Arc<Inner>, owner: OwnerKey, pod_uid: String, seen: Seen) {
    let token = inner.installation.bridge_token(&owner.uid, 0);
    let begun = tokio::time::Instant::now();
    let mut wait = FIRST;
    loop {
        let said = inner.ask(&seen, &token).await;
        let settled = said.as_ref().is_some_and(|said| matches!(said.phase, Phase::Ready | Phase::Asleep));
        let early = |said: &BridgeStatus| said.phase == Phase::Starting && begun.elapsed() < STARTING;
        if let Some(said) = said.filter(|said| !early(said)) {
            inner.note(&owner, &pod_uid, said);
        }
        inner.was_asked(&owner, &pod_uid);
        if settled && seen.ready {
            // Spread by the pod, so that thousands are not asked in one second.
            let spread = pod_uid.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
            tokio::time::sleep(EACH_MINUTE + Duration::from_millis(spread % 10_000)).await;
        } else {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
        }
    }
}
