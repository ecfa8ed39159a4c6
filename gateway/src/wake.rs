//! Wakes sleeping servers for the calls that wait for them. Whoever can start them is asked; that one is awake is said by a
//! configuration.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use mcp_hub_dataplane_api::gateway::{Target, Wake};
use mcp_hub_dataplane_api::secret::SecretString;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Inner;
use crate::metrics::count;
use crate::upstream::{Endpoint, Failure, Upstream};

/// Between attempts to ask: doubled from the first to the last. The first are for an operator's replica that waits and
/// refuses: the next connection may reach the one that leads.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Whoever was asked and has brought nothing in this time is asked again: it may have been replaced, and have forgotten.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Servers that calls wait for, by uid.
#[derive(Debug, Default)]
pub(crate) struct Wakes(Mutex<HashMap<String, Weak<Waiting>>>);

/// Held by each call that waits for one server.
#[derive(Debug, Default)]
struct Waiting {
    /// Why the last attempt to ask failed.
    problem: Mutex<Option<String>>,
}

impl Inner {
    /// The server as it is when it sleeps no more: with an address, or with the reason why it has none.
    pub(crate) async fn woken(
        self: &Arc<Self>,
        sleeper: &Upstream,
        deadline: Instant,
    ) -> Result<Arc<Upstream>, Failure> {
        let mut changes = self.status.subscribe();
        let mut waiting = None;
        loop {
            changes.mark_unchanged();
            let served = self.served();
            let current = served.upstreams.get(&sleeper.config.name).map(|watched| watched.upstream.clone());
            match current.filter(|current| current.config.uid == sleeper.config.uid) {
                Some(current) if current.is_asleep() => {}
                Some(current) => return Ok(current),
                None => return Err(not_woken("it was removed while a call waited for it".to_owned())),
            }
            if served.config.wake.is_none() {
                return Err(Failure::Asleep);
            }
            let waiting = waiting.get_or_insert_with(|| self.wait_for(&sleeper.config.name, &sleeper.config.uid));
            if timeout_at(deadline, changes.changed()).await.is_err() {
                let problem = waiting.problem.lock().unwrap_or_else(PoisonError::into_inner).take();
                let problem = problem.map_or_else(String::new, |problem| format!(" ({problem})"));
                return Err(not_woken(format!("it is asleep and did not wake within the time of a call{problem}")));
            }
        }
    }

    /// Joins those who wait for the server; the first has it asked for.
    fn wait_for(self: &Arc<Self>, name: &str, uid: &str) -> Arc<Waiting> {
        let mut waited = self.wakes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = waited.get(uid).and_then(Weak::upgrade) {
            return waiting;
        }
        let waiting = Arc::new(Waiting::default());
        waited.insert(uid.to_owned(), Arc::downgrade(&waiting));
        tokio::spawn(ask(Arc::downgrade(self), Arc::downgrade(&waiting), name.to_owned(), uid.to_owned()));
        waiting
    }

    /// Whether nobody waits any more; it is forgotten then.
    fn is_forsaken(&self, uid: &str, waiting: &Weak<Waiting>) -> bool {
        let mut waited = self.wakes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let forsaken = waiting.strong_count() == 0;
        if forsaken && waited.get(uid).is_some_and(|known| Weak::ptr_eq(known, waiting)) {
            waited.remove(uid);
        }
        forsaken
    }
}

fn not_woken(message: String) -> Failure {
    let hint = "try again; if it stays so, look at the server's status".to_owned();
    Failure::Unavailable { reason: "NotWoken".to_owned(), message, hint: Some(hint) }
}

/// Asks for the server for as long as somebody waits for it.
async fn ask(inner: Weak<Inner>, waiting: Weak<Waiting>, name: String, uid: String) {
    let mut pause = BACKOFF.0;
    loop {
        let Some(inner) = inner.upgrade() else { return };
        if inner.is_forsaken(&uid, &waiting) {
            return;
        }
        let mut changes = inner.status.subscribe();
        let served = inner.served();
        let known = served.upstreams.get(&name).map(|watched| &watched.upstream);
        let sleeps = known.is_some_and(|upstream| upstream.config.uid == uid && upstream.is_asleep());
        let mut next = ASK_AGAIN;
        if sleeps && let Some(wake) = &served.config.wake {
            let problem = post(&inner, wake, &uid).await.err();
            count(&inner.metrics.wakes);
            if let Some(problem) = &problem {
                tracing::warn!(server = name, problem, "a sleeping server could not be asked for");
                next = pause;
                pause = (pause * 2).min(BACKOFF.1);
            }
            if let Some(waiting) = waiting.upgrade() {
                *waiting.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
            }
        }
        drop((inner, served));
        let again = Instant::now() + next;
        // Calls that got what they waited for are gone with the change.
        while let Ok(Ok(())) = timeout_at(again, changes.changed()).await {
            if waiting.strong_count() == 0 {
                break;
            }
        }
    }
}

async fn post(inner: &Inner, wake: &Wake, uid: &str) -> Result<(), String> {
    let bearer = SecretString::new(format!("Bearer {}", wake.token.expose_secret()));
    let headers = BTreeMap::from([("authorization".to_owned(), bearer)]);
    let endpoint = Endpoint::of(&Target::Available { url: wake.url.clone(), headers }, &inner.http)?;
    let endpoint = endpoint.ok_or("it has no address")?;
    let body = Bytes::from(serde_json::json!({ "server": uid }).to_string());
    let answer = timeout(PATIENCE, endpoint.send(Method::POST, Vec::new(), body)).await;
    let answer = answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
    let status = answer.map_err(|failure| failure.to_string())?.status();
    if status.is_success() { Ok(()) } else { Err(format!("the answer was HTTP {status}")) }
}
