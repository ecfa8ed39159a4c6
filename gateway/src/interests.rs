//! What legacy clients asked to be told, beyond what their sealed session ids say: the log level, and resources. It is
//! kept while there is room, and lost with the gateway.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::seal::NONCE;
use crate::upstream::Topic;

/// Sessions remembered; the one that asked for something longest ago makes room.
const SESSIONS_MAX: usize = 10_000;
/// Resources of one session.
const TOPICS_MAX: usize = 256;

pub(crate) type Nonce = [u8; NONCE];

#[derive(Debug, Default)]
pub(crate) struct Interests {
    sessions: Mutex<HashMap<Nonce, Interest>>,
    /// So that calls of sessions that asked for nothing, which is most, take no lock.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Interest {
    level: Option<usize>,
    /// By server and URI.
    topics: HashMap<(String, String), Topic>,
    since: Instant,
}

/// What one session asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) session: Nonce,
    pub(crate) level: Option<usize>,
    /// Server and URI.
    pub(crate) topics: Vec<(String, String)>,
}

impl Interests {
    fn with<T>(&self, session: Nonce, change: impl FnOnce(&mut Interest) -> T) -> T {
        let mut evicted = None;
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX
            && !sessions.contains_key(&session)
            && let Some(oldest) = sessions.iter().min_by_key(|(_, known)| known.since).map(|(nonce, _)| *nonce)
        {
            evicted = sessions.remove(&oldest);
        }
        let now = Instant::now();
        let interest =
            sessions.entry(session).or_insert_with(|| Interest { level: None, topics: HashMap::new(), since: now });
        interest.since = now;
        let result = change(interest);
        self.count.store(sessions.len(), Ordering::Relaxed);
        drop(sessions);
        // Outside of the lock: its subscriptions end.
        drop(evicted);
        result
    }

    pub(crate) fn set_level(&self, session: Nonce, level: usize) {
        self.with(session, |interest| interest.level = Some(level));
    }

    /// The least urgent level that the session wants; `None` if it has not said.
    pub(crate) fn level(&self, session: Nonce) -> Option<usize> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&session)?.level
    }

    /// Whether there is room for it.
    pub(crate) fn subscribe(&self, session: Nonce, server: &str, uri: &str, topic: Topic) -> bool {
        self.with(session, |interest| {
            let key = (server.to_owned(), uri.to_owned());
            let fits = interest.topics.len() < TOPICS_MAX || interest.topics.contains_key(&key);
            if fits {
                interest.topics.insert(key, topic);
            }
            fits
        })
    }

    pub(crate) fn unsubscribe(&self, session: Nonce, server: &str, uri: &str) {
        let topic = self.with(session, |interest| interest.topics.remove(&(server.to_owned(), uri.to_owned())));
        drop(topic);
    }

    pub(crate) fn is_subscribed(&self, session: Nonce, server: &str, uri: &str) -> bool {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (server.to_owned(), uri.to_owned());
        sessions.get(&session).is_some_and(|interest| interest.topics.contains_key(&key))
    }

    /// Whether the session has subscriptions here.
    pub(crate) fn has_topics(&self, session: Nonce) -> bool {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&session).is_some_and(|interest| !interest.topics.is_empty())
    }

    /// What every session asked for.
    pub(crate) fn all(&self) -> Vec<Wanted> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |(session, interest): (&Nonce, &Interest)| Wanted {
            session: *session,
            level: interest.level,
            topics: interest.topics.keys().cloned().collect(),
        };
        sessions.iter().map(wanted).collect()
    }

    /// The session ended.
    pub(crate) fn forget(&self, session: Nonce) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = sessions.remove(&session);
        self.count.store(sessions.len(), Ordering::Relaxed);
        drop(sessions);
        drop(ended);
    }
}
