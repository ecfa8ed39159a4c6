//! Resources of a server that somebody wants to hear of: asked for with the first who does, and given up with the last.
//!
//! A legacy server is told each one (`resources/subscribe`) in the session of those who share it; a modern one is told all
//! in the watch's stream (`subscriptions/listen`), which is opened anew when they change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::methods;
use tokio::sync::watch;

use super::{Failure, Owner, Upstream};
use crate::Inner;
use crate::ears;
use crate::exchange::Seat;

/// Longest wait for a server to take or give up a subscription.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wanted of one server; outlives changes of its configuration.
#[derive(Debug)]
pub(crate) struct Topics {
    /// Session of a legacy server and URI to the number of those who want it.
    wanted: Mutex<HashMap<(Owner, String), usize>>,
    /// Held while a legacy server is told, so that it hears of beginnings and ends in their order.
    telling: tokio::sync::Mutex<()>,
    /// Counts the changes of what the shared stream has to bring.
    pub(crate) changes: watch::Sender<u64>,
    /// The change up to which a modern server has acknowledged.
    pub(crate) acknowledged: watch::Sender<u64>,
}

impl Default for Topics {
    fn default() -> Self {
        let (wanted, telling) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { wanted, telling, changes: watch::Sender::new(0), acknowledged: watch::Sender::new(0) }
    }
}

/// One client's share in a topic; given up when dropped.
#[derive(Debug)]
pub(crate) struct Topic {
    /// Weak, as the gateway itself keeps topics for its clients.
    inner: Weak<Inner>,
    topics: Arc<Topics>,
    server: String,
    era: Era,
    key: (Owner, String),
}

impl Topics {
    /// The topics of everybody's session.
    pub(crate) fn shared(&self) -> Vec<String> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut uris: Vec<String> =
            wanted.keys().filter(|(owner, _)| *owner == Owner::Shared).map(|(_, uri)| uri.clone()).collect();
        uris.sort();
        uris
    }

    /// Whether this is the first who wants it.
    fn add(&self, key: &(Owner, String)) -> bool {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let count = wanted.entry(key.clone()).or_default();
        *count += 1;
        *count == 1
    }

    fn is_wanted(&self, key: &(Owner, String)) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Whether that was the last who wanted it.
    fn remove(&self, key: &(Owner, String)) -> bool {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = wanted.get_mut(key) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            wanted.remove(key);
        }
        last
    }
}

impl Upstream {
    /// Tells of changes of this resource from now on, in the session of this seat.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        seat: &Seat,
        uri: &str,
    ) -> Result<Topic, Failure> {
        // One that is not there takes none.
        self.endpoint()?;
        let introduction = self.introduction(PATIENCE).await?;
        if introduction.capabilities()["resources"]["subscribe"] != true {
            let message = "it does not tell of changed resources".to_owned();
            return Err(Failure::Refused { code: mcp_hub_mcp::error::METHOD_NOT_FOUND, message });
        }
        let shared = introduction.era == Era::Modern || self.is_shared();
        let key = (if shared { Owner::Shared } else { seat.owner }, uri.to_owned());
        let _telling = match introduction.era {
            Era::Legacy => Some(self.topics.telling.lock().await),
            Era::Modern => None,
        };
        let first = self.topics.add(&key);
        // From here on dropping it takes it back.
        let topic = Topic {
            inner: Arc::downgrade(inner),
            topics: self.topics.clone(),
            server: self.config.name.clone(),
            era: introduction.era,
            key: key.clone(),
        };
        match introduction.era {
            Era::Legacy if shared && first => {
                let params = format!(r#"{{"uri":{}}}"#, quoted(uri));
                self.ask(Era::Legacy, Owner::Shared, methods::RESOURCES_SUBSCRIBE, &params, PATIENCE).await?;
            }
            Era::Legacy if shared => {}
            Era::Legacy => {
                let session = self.session(seat.owner, seat.capabilities.as_deref(), None).await?;
                ears::open(inner, self, seat.owner, &session);
                let params = format!(r#"{{"uri":{}}}"#, quoted(uri));
                self.ask(Era::Legacy, seat.owner, methods::RESOURCES_SUBSCRIBE, &params, PATIENCE).await?;
            }
            Era::Modern => {
                if first {
                    self.topics.changes.send_modify(|count| *count += 1);
                }
                let wanted = *self.topics.changes.borrow();
                let mut acknowledged = self.topics.acknowledged.subscribe();
                let told = acknowledged.wait_for(|count| *count >= wanted);
                tokio::time::timeout(PATIENCE, told).await.map_err(|_| Failure::Timeout(PATIENCE))?.ok();
            }
        }
        Ok(topic)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        if !self.topics.remove(&self.key) {
            return;
        }
        if self.era == Era::Modern {
            return self.topics.changes.send_modify(|count| *count += 1);
        }
        let served = self.inner.upgrade().map(|inner| inner.served());
        let upstream = served.and_then(|served| Some(served.upstreams.get(&self.server)?.upstream.clone()));
        let (Some(upstream), Ok(runtime)) = (upstream, tokio::runtime::Handle::try_current()) else { return };
        let (topics, key) = (self.topics.clone(), self.key.clone());
        runtime.spawn(async move {
            let _telling = topics.telling.lock().await;
            // Somebody else may have come in the meantime.
            if topics.is_wanted(&key) {
                return;
            }
            let (owner, params) = (key.0, format!(r#"{{"uri":{}}}"#, quoted(&key.1)));
            // Without the session there is nothing to give up; a server that is gone has nothing to be told.
            if upstream.open_session(owner).is_some() {
                upstream.ask(Era::Legacy, owner, methods::RESOURCES_UNSUBSCRIBE, &params, PATIENCE).await.ok();
            }
        });
    }
}
