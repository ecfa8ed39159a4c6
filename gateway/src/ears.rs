//! The stream of a session that the gateway itself has with a legacy server for one client: what the server says there
//! goes to the client's streams, and what it asks there to the client's newest call in that session.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mcp_hub_mcp::envelope::{Envelope, Kind, write_error, write_result};
use mcp_hub_mcp::{error, methods};
use tokio::sync::mpsc;

use crate::Inner;
use crate::fields::Fields;
use crate::told::{News, Told};
use crate::upstream::{Events, LegacySession, Owner, Upstream, is_type};

/// Messages that wait for a call; a server that says more at once is refused.
const WAITING: usize = 16;

/// A session that the gateway has with a server, by the server's uid.
type Key = (String, Owner);

/// Calls that hear what comes in their sessions outside of their own streams, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Hearers(Mutex<HashMap<Key, Vec<mpsc::Sender<Bytes>>>>);

/// One call's ear; closed when dropped.
#[derive(Debug)]
pub(crate) struct Ear {
    inner: Arc<Inner>,
    key: Key,
    sender: mpsc::Sender<Bytes>,
    messages: mpsc::Receiver<Bytes>,
    /// Received, but not taken yet.
    first: Option<Bytes>,
}

impl Ear {
    pub(crate) fn new(inner: &Arc<Inner>, upstream: &Upstream, owner: Owner) -> Self {
        let (sender, messages) = mpsc::channel(WAITING);
        let key = (upstream.config.uid.clone(), owner);
        let mut hearers = inner.hearers.0.lock().unwrap_or_else(PoisonError::into_inner);
        hearers.entry(key.clone()).or_default().push(sender.clone());
        drop(hearers);
        Self { inner: inner.clone(), key, sender, messages, first: None }
    }

    /// # Cancel safety
    /// Dropped before it returns, it loses nothing.
    pub(crate) async fn heard(&mut self) -> Bytes {
        self.listen().await;
        match self.first.take() {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }

    /// Resolves when there is something to hear.
    pub(crate) async fn listen(&mut self) {
        if self.first.is_none() {
            self.first = self.messages.recv().await;
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut hearers = self.inner.hearers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = hearers.get_mut(&self.key) {
            calls.retain(|call| !call.same_channel(&self.sender));
            if calls.is_empty() {
                hearers.remove(&self.key);
            }
        }
    }
}

impl Hearers {
    /// Whether a call took the message.
    fn tell(&self, key: &Key, message: &Bytes) -> bool {
        let hearers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = hearers.get(key).and_then(|calls| calls.last());
        newest.is_some_and(|call| call.try_send(message.clone()).is_ok())
    }
}

/// Listens to the session until it ends, unless that is done already.
pub(crate) fn open(inner: &Arc<Inner>, upstream: &Arc<Upstream>, owner: Owner, session: &Arc<LegacySession>) {
    if session.heard.swap(true, Ordering::Relaxed) {
        return;
    }
    let (inner, upstream, session) = (inner.clone(), upstream.clone(), Arc::downgrade(session));
    tokio::spawn(async move {
        let Some(open) = session.upgrade() else { return };
        let response = upstream.stream(&open).await;
        // Not held on to: a session that nobody uses is ended, and its stream with it.
        drop(open);
        let Ok(response) = response else { return };
        if !is_type(response.headers(), "text/event-stream") {
            return;
        }
        let key = (upstream.config.uid.clone(), owner);
        let server: Arc<str> = upstream.config.name.as_str().into();
        let mut messages = Events::new(response.into_body());
        while let Ok(Some(message)) = messages.next().await {
            let message = Bytes::from(message);
            let Ok(envelope) = Envelope::parse(&message) else { continue };
            match (envelope.kind(), envelope.id) {
                (Kind::Request, Some(id)) => {
                    let reply = if envelope.method() == methods::PING {
                        write_result(id.get(), "{}")
                    } else if inner.hearers.tell(&key, &message) {
                        continue;
                    } else {
                        let text = "no call is under way for which the client could be asked";
                        write_error(Some(id.get()), error::NOT_TRANSLATABLE, text)
                    };
                    // A server that does not take the answer ends its own request.
                    if let Some(open) = session.upgrade() {
                        upstream.post(Some(&open), Fields::new(), reply.into()).await.ok();
                    }
                }
                (Kind::Notification, _) => {
                    let Some(news) = News::of(&envelope) else { continue };
                    // A log message is most likely one of the newest call's.
                    if matches!(news, News::Log(_)) && inner.hearers.tell(&key, &message) {
                        continue;
                    }
                    // Nobody listens, nobody has to be told.
                    inner.told.send(Told { server: server.clone(), owner, news, message }).ok();
                }
                (Kind::Request | Kind::Response, _) => {}
            }
        }
    });
}
