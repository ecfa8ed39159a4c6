//! Calls of modern clients whose legacy server waits for something only the client can say: kept here until the client
//! calls again with its answers, or until their time is up.
//!
//! What the client carries in between (`requestState`) is sealed for its token, and names this gateway, this wait and the
//! request that it belongs to: it opens nothing for others, nothing else, and nothing twice (2026-07-28, "Multi round-trip
//! requests: Server requirements").

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mcp_hub_mcp::object::RawObject;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::guard::Principal;
use crate::peers::Home;
use crate::seal::Seal;

/// Calls that wait at a time: each holds a connection to its server.
pub(crate) const PARKED_MAX: usize = 1000;

/// Waiting calls; `R` is what a client comes back with.
#[derive(Debug)]
pub(crate) struct Parked<R> {
    seal: Seal,
    /// Of this run of the gateway: what an earlier one held is gone.
    instance: String,
    /// Where other replicas reach it.
    address: Option<SocketAddr>,
    waiting: Arc<Mutex<Waiting<R>>>,
}

#[derive(Debug)]
struct Waiting<R> {
    next: u64,
    places: HashMap<u64, oneshot::Sender<R>>,
}

/// What a `requestState` says.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    instance: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    place: u64,
    /// Seconds since the epoch.
    until: u64,
    claim: String,
}

/// What the first request and its retry have in common: server, method, name and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim(String);

/// A place among the waiting calls, given up when dropped.
#[derive(Debug)]
pub(crate) struct Place<R> {
    number: u64,
    waiting: Arc<Mutex<Waiting<R>>>,
    pub(crate) returned: oneshot::Receiver<R>,
}

/// Why a retry continues nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotWaiting {
    #[error("requestState was not made for this client, or was changed")]
    Forged,
    #[error("requestState belongs to another request")]
    OtherRequest,
    #[error("the call is not waiting any more: it was continued, ended, or its time was up; make it anew")]
    Gone,
}

impl Claim {
    /// `server` is its uid, `params` are the request's, raw.
    pub(crate) fn of(server: &str, method: &str, params: Option<&str>) -> Self {
        let mut params = params.and_then(RawObject::parse).unwrap_or_default();
        for other in ["_meta", "inputResponses", "requestState"] {
            params.remove(other);
        }
        // The same in another notation is the same.
        let mut value: Value = serde_json::from_str(&params.to_string()).unwrap_or_default();
        value.sort_all_objects();
        Self(hex::encode(Sha256::digest(format!("{server}\0{method}\0{value}"))))
    }
}

impl<R> Parked<R> {
    pub(crate) fn new(seal: Seal, instance: &str, address: Option<SocketAddr>) -> Self {
        let waiting = Waiting { next: 0, places: HashMap::new() };
        Self { seal, instance: instance.to_owned(), address, waiting: Arc::new(Mutex::new(waiting)) }
    }

    pub(crate) fn count(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).places.len()
    }

    /// A place for at most `patience`, and the state by which it is found again; `None` if all are taken.
    pub(crate) fn park(&self, principal: Principal, claim: &Claim, patience: Duration) -> Option<(Place<R>, String)> {
        let (sender, returned) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.places.len() >= PARKED_MAX {
            return None;
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.places.insert(number, sender);
        drop(waiting);
        let place = Place { number, waiting: self.waiting.clone(), returned };
        let until = now() + patience.as_secs() + 1;
        let (instance, address) = (self.instance.clone(), self.address);
        let state = State { instance, address, place: number, until, claim: claim.0.clone() };
        let text = serde_json::to_string(&state).ok()?;
        Some((place, self.seal.close(&text, &bound_to(principal))?))
    }

    fn open(&self, principal: Principal, state: &str) -> Option<State> {
        serde_json::from_str(&self.seal.open(state, &bound_to(principal))?.text).ok()
    }

    /// The replica that holds the call; `None` if the state says nothing of it.
    pub(crate) fn home(&self, principal: Principal, state: &str) -> Option<Home> {
        let State { instance, address, .. } = self.open(principal, state)?;
        Some(Home { instance, address: address? })
    }

    /// The way to the call that waits for this; it is taken once.
    pub(crate) fn find(
        &self,
        principal: Principal,
        claim: &Claim,
        state: &str,
    ) -> Result<oneshot::Sender<R>, NotWaiting> {
        let state = self.open(principal, state).ok_or(NotWaiting::Forged)?;
        if state.claim != claim.0 {
            return Err(NotWaiting::OtherRequest);
        }
        if state.instance != self.instance || state.until < now() {
            return Err(NotWaiting::Gone);
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.places.remove(&state.place).ok_or(NotWaiting::Gone)
    }
}

impl<R> Drop for Place<R> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).places.remove(&self.number);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn bound_to(principal: Principal) -> Vec<u8> {
    [b"mcp-hub parked call\0", &principal.0[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Principal = Principal([1; 32]);
    const BOB: Principal = Principal([2; 32]);
    const PATIENCE: Duration = Duration::from_secs(60);

    fn parked() -> Parked<u8> {
        run("one")
    }

    fn run(instance: &str) -> Parked<u8> {
        Parked::new(Seal::new([7; 32]), instance, None)
    }

    #[test]
    fn a_call_is_found_once_by_its_own_client_and_request() {
        let parked = parked();
        let claim = Claim::of("uid", "tools/call", Some(r#"{"name":"a","arguments":{"x":1,"y":2}}"#));
        let (mut place, state) = parked.park(ALICE, &claim, PATIENCE).unwrap();
        let rewritten =
            r#"{ "arguments":{"y":2,"x":1}, "_meta":{}, "requestState":"s", "inputResponses":{}, "name":"a"}"#;
        assert_eq!(Claim::of("uid", "tools/call", Some(rewritten)), claim);
        for (server, method, params) in
            [("other", "tools/call", rewritten), ("uid", "prompts/get", rewritten), ("uid", "tools/call", "{}")]
        {
            let other = Claim::of(server, method, Some(params));
            assert_eq!(parked.find(ALICE, &other, &state).err(), Some(NotWaiting::OtherRequest));
        }
        assert_eq!(parked.find(BOB, &claim, &state).err(), Some(NotWaiting::Forged));
        assert_eq!(parked.find(ALICE, &claim, &state[1..]).err(), Some(NotWaiting::Forged));
        assert_eq!(parked.count(), 1);
        parked.find(ALICE, &claim, &state).unwrap().send(9).unwrap();
        assert_eq!(place.returned.try_recv(), Ok(9));
        assert_eq!(parked.find(ALICE, &claim, &state).err(), Some(NotWaiting::Gone));
        assert_eq!(parked.count(), 0);
    }

    #[test]
    fn what_ended_or_was_another_gateways_is_gone() {
        let (one, other) = (run("one"), run("other"));
        let claim = Claim::of("uid", "tools/call", None);
        let (place, state) = one.park(ALICE, &claim, PATIENCE).unwrap();
        // The same key, but another run.
        assert_eq!(other.find(ALICE, &claim, &state).err(), Some(NotWaiting::Gone));
        drop(place);
        assert_eq!(one.find(ALICE, &claim, &state).err(), Some(NotWaiting::Gone));
        assert_eq!(one.count(), 0);
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let parked = parked();
        let claim = Claim::of("uid", "tools/call", None);
        let places: Vec<_> = (0..PARKED_MAX).map(|_| parked.park(ALICE, &claim, PATIENCE).unwrap()).collect();
        assert!(parked.park(ALICE, &claim, PATIENCE).is_none());
        drop(places);
        assert!(parked.park(ALICE, &claim, PATIENCE).is_some());
    }
}
