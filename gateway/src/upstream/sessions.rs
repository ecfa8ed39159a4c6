//! Sessions with legacy servers: opened when first needed, shared or one per client, and opened again when the server has
//! forgotten them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::http_sse::Link;
use crate::fields;

/// Sessions kept with one server that wants one per client; the one unused for longest makes room.
const SESSIONS_MAX: usize = 1024;
/// A session of clients that have none themselves, and so never end it, is ended when it was unused for so long.
const IDLE_MAX: Duration = Duration::from_secs(1800);

/// Whose session with a server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Owner {
    /// Everybody's.
    Shared,
    /// One client session's, by its nonce.
    Session([u8; 24]),
    /// All requests without a session that carry one token.
    Principal([u8; 32]),
}

impl Owner {
    /// By which replicas agree on who holds what is the owner's; `None` for everybody.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Shared => None,
            Self::Session(nonce) => Some(nonce),
            Self::Principal(hash) => Some(hash),
        }
    }
}

/// An open session with a legacy server.
#[derive(Debug)]
pub(crate) struct LegacySession {
    /// Servers need not give one.
    pub(crate) id: Option<HeaderValue>,
    /// The version that was negotiated.
    pub(crate) version: HeaderValue,
    /// Its stream, with a server that speaks HTTP+SSE.
    pub(super) link: Option<Link>,
    /// Whether somebody listens to its stream for the gateway.
    pub(crate) heard: AtomicBool,
    /// The least urgent log level that the server was asked for in it.
    pub(crate) level: AtomicUsize,
}

/// No level was asked for yet; more urgent than any.
const NO_LEVEL: usize = usize::MAX;

impl LegacySession {
    pub(crate) fn new(id: Option<HeaderValue>, version: HeaderValue, link: Option<Link>) -> Self {
        Self { id, version, link, heard: AtomicBool::new(false), level: AtomicUsize::new(NO_LEVEL) }
    }

    /// Whether 404 says that the server does not know it any more.
    pub(crate) fn may_be_forgotten(&self) -> bool {
        self.id.is_some() || self.link.is_some()
    }

    /// What each of its requests carries.
    pub(super) fn fields(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let id = self.id.iter().map(|id| (fields::SESSION_ID.clone(), id.clone()));
        id.chain([(fields::PROTOCOL_VERSION.clone(), self.version.clone())])
    }
}

/// A place for one owner's session.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) current: ArcSwapOption<LegacySession>,
    /// Held while a session is being opened, so that one is opened and not one a request.
    pub(crate) opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<Owner, (Arc<Slot>, Instant)>>);

impl Sessions {
    /// The owner's slot, and the session that had to go for it.
    pub(crate) fn slot(&self, owner: Owner) -> (Arc<Slot>, Option<Arc<LegacySession>>) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((slot, used)) = slots.get_mut(&owner) {
            *used = now;
            return (slot.clone(), None);
        }
        let mut evicted = None;
        if slots.len() >= SESSIONS_MAX
            && let Some(oldest) = slots.iter().min_by_key(|(_, (_, used))| *used).map(|(owner, _)| *owner)
        {
            evicted = slots.remove(&oldest).and_then(|(slot, _)| slot.current.load_full());
        }
        let slot = Arc::new(Slot::default());
        slots.insert(owner, (slot.clone(), now));
        (slot, evicted)
    }

    /// The owner's session, if one is open, which is used now.
    pub(crate) fn used(&self, owner: Owner) -> Option<Arc<LegacySession>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, used) = slots.get_mut(&owner)?;
        let session = slot.current.load_full()?;
        *used = Instant::now();
        Some(session)
    }

    /// The owner's session, if one is open.
    pub(crate) fn open(&self, owner: Owner) -> Option<Arc<LegacySession>> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&owner)?.0.current.load_full()
    }

    /// Those of single clients.
    pub(crate) fn of_clients(&self) -> Vec<(Owner, Arc<LegacySession>)> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = slots.iter().filter(|(owner, _)| **owner != Owner::Shared);
        own.filter_map(|(owner, (slot, _))| Some((*owner, slot.current.load_full()?))).collect()
    }

    /// Forgets sessions that nobody ends and nobody has used since then.
    pub(crate) fn take_idle(&self, now: Instant) -> Vec<Arc<LegacySession>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = Vec::new();
        slots.retain(|owner, (slot, used)| {
            let Some(session) = slot.current.load_full() else { return true };
            // Slot and we; a call under way is one more.
            let is_used = Arc::strong_count(&session) > 2;
            let ends = matches!(owner, Owner::Principal(_)) && !is_used && now.duration_since(*used) > IDLE_MAX;
            if ends {
                idle.push(session);
            }
            !ends
        });
        idle
    }

    /// Forgets the owner's session.
    pub(crate) fn take(&self, owner: Owner) -> Option<Arc<LegacySession>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.remove(&owner)?.0.current.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_unused_for_longest_makes_room() {
        let sessions = Sessions::default();
        let owner = |n: usize| Owner::Session(std::array::from_fn(|i| n.to_le_bytes().get(i).copied().unwrap_or(0)));
        let open = || LegacySession::new(None, HeaderValue::from_static("2025-11-25"), None);
        for n in 0..SESSIONS_MAX {
            sessions.slot(owner(n)).0.current.store(Some(Arc::new(open())));
        }
        sessions.slot(owner(0));
        let (_, evicted) = sessions.slot(owner(SESSIONS_MAX));
        assert!(evicted.is_some() && sessions.open(owner(0)).is_some() && sessions.open(owner(1)).is_none());
    }

    #[test]
    fn a_session_that_nobody_ends_ends_when_it_is_idle_and_not_while_it_is_used() {
        let sessions = Sessions::default();
        let owners = [Owner::Shared, Owner::Principal([1; 32]), Owner::Principal([2; 32])];
        for owner in owners {
            let open = LegacySession::new(None, HeaderValue::from_static("2025-11-25"), None);
            sessions.slot(owner).0.current.store(Some(Arc::new(open)));
        }
        let _calling = sessions.open(owners[2]);
        let now = Instant::now();
        assert!(sessions.take_idle(now + IDLE_MAX / 2).is_empty());
        assert_eq!(sessions.take_idle(now + IDLE_MAX * 2).len(), 1);
        assert!(sessions.open(owners[0]).is_some() && sessions.open(owners[1]).is_none());
        assert!(sessions.open(owners[2]).is_some());
    }
}
