//! What a replica that ends gives to those who take over from it, so that its clients' sessions with servers go on, with
//! what was asked for in them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt;
use http::HeaderValue;
use mcp_hub_dataplane_api::Era;
use serde::{Deserialize, Serialize};

use crate::Inner;
use crate::exchange::Seat;
use crate::interests::Wanted;
use crate::metrics::count;
use crate::upstream::{LegacySession, Owner};

/// Clients in one message.
const BATCH: usize = 1000;
/// Subscriptions asked for at a time.
const SUBSCRIBED_AT_ONCE: usize = 64;

/// What one client's session, or all requests of one token, have here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Handed {
    sessions: Vec<HandedSession>,
    /// Log level.
    level: Option<usize>,
    /// Resources subscribed to: server and URI.
    topics: Vec<(String, String)>,
}

/// A session with a legacy server.
#[derive(Debug, Serialize, Deserialize)]
struct HandedSession {
    /// The server's uid.
    server: String,
    id: String,
    version: String,
}

type Batch = Vec<(Owner, Handed)>;

impl Inner {
    /// Gives each client's state to the replica on which the others agree.
    pub(crate) async fn hand_over(&self) {
        let Some(peers) = &self.peers else { return };
        let mut batches: HashMap<SocketAddr, Batch> = HashMap::new();
        for (owner, handed) in self.held() {
            let Some(key) = owner.key() else { continue };
            if let Some(successor) = peers.successor(key).await {
                batches.entry(successor).or_default().push((owner, handed));
            }
        }
        // At once, so that one that is slow takes nothing from the others' time.
        let handing = batches.iter().map(async |(successor, batch)| {
            for part in batch.chunks(BATCH) {
                let taken = match serde_json::to_string(part) {
                    Ok(text) => peers.hand(*successor, &text).await,
                    Err(_) => false,
                };
                if !taken {
                    // Whoever serves these clients next opens their sessions anew.
                    tracing::warn!(%successor, clients = part.len(), "what clients had here was not taken over");
                }
            }
        });
        futures::future::join_all(handing).await;
    }

    /// Whether there is something here of this owner's. A log level is no sign of it: others keep it too.
    pub(crate) fn holds(&self, owner: Owner) -> bool {
        let has_session = || {
            let served = self.served();
            served
                .upstreams
                .values()
                .any(|watched| !watched.upstream.is_shared() && watched.upstream.open_session(owner).is_some())
        };
        matches!(owner, Owner::Session(nonce) if self.interests.has_topics(nonce)) || has_session()
    }

    fn held(&self) -> HashMap<Owner, Handed> {
        let mut held: HashMap<Owner, Handed> = HashMap::new();
        for watched in self.served().upstreams.values() {
            for (owner, session) in watched.upstream.open_sessions() {
                let id = session.id.as_ref().and_then(|id| id.to_str().ok());
                let (Some(id), Ok(version)) = (id, session.version.to_str()) else { continue };
                let server = watched.upstream.config.uid.clone();
                let session = HandedSession { server, id: id.to_owned(), version: version.to_owned() };
                held.entry(owner).or_default().sessions.push(session);
            }
        }
        for Wanted { session, level, topics } in self.interests.all() {
            let handed = held.entry(Owner::Session(session)).or_default();
            (handed.level, handed.topics) = (level, topics);
        }
        held
    }

    /// Goes on with what another replica had; whether it could be read.
    pub(crate) async fn adopt(self: &Arc<Self>, text: &str) -> bool {
        let Ok(batch) = serde_json::from_str::<Batch>(text) else { return false };
        let served = self.served();
        let mut wanted = Vec::new();
        for (owner, handed) in batch {
            count(&self.metrics.adopted);
            for session in handed.sessions {
                let mut upstreams = served.upstreams.values().map(|watched| &watched.upstream);
                let upstream = upstreams.find(|upstream| upstream.config.uid == session.server);
                let id = HeaderValue::from_str(&session.id).ok();
                if let (Some(upstream), Some(id), Ok(version)) = (upstream, id, HeaderValue::from_str(&session.version))
                {
                    upstream.adopt(owner, LegacySession::new(Some(id), version, None)).await;
                }
            }
            let Owner::Session(nonce) = owner else { continue };
            if let Some(level) = handed.level {
                self.interests.set_level(nonce, level);
            }
            wanted.extend(handed.topics.into_iter().map(|(server, uri)| (owner, nonce, server, uri)));
        }
        // When all sessions are here, and side by side: a server that is slow to answer costs nobody else's.
        let subscribe = async |(owner, nonce, server, uri): (Owner, _, String, String)| {
            let Some(watched) = served.upstreams.get(&server) else { return };
            let seat = Seat { owner, capabilities: None };
            let own = watched.upstream.known_era() == Some(Era::Legacy) && !watched.upstream.is_shared();
            if own && watched.upstream.open_session(owner).is_none() {
                return;
            }
            // A server that does not answer is asked by the client's next subscription.
            if let Ok(topic) = watched.upstream.subscribe(self, &seat, &uri).await {
                self.interests.subscribe(nonce, &server, &uri, topic);
            }
        };
        futures::stream::iter(wanted).for_each_concurrent(SUBSCRIBED_AT_ONCE, subscribe).await;
        true
    }
}
