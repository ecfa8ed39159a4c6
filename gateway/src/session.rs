//! Session ids towards legacy clients: sealed tokens, so that a session costs no memory, survives a restart of the
//! gateway, and is of no use to anybody else.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;

use crate::guard::Principal;
use crate::peers::Home;
use crate::seal::{NONCE, Seal};

/// Closed sessions remembered; a client that uses an older one after closing it is let in again, which harms nobody but
/// itself.
const CLOSED_MAX: usize = 10_000;

#[derive(Debug)]
pub(crate) struct SessionKeys {
    seal: Seal,
    /// Where sessions that are opened here live.
    home: Option<Home>,
    closed: Mutex<Closed>,
}

/// Nonces of ended sessions, and the order in which they ended.
#[derive(Debug, Default)]
struct Closed(HashSet<[u8; NONCE]>, VecDeque<[u8; NONCE]>);

/// A session that was verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) nonce: [u8; NONCE],
    /// Negotiated protocol version.
    pub(crate) version: String,
    /// What the client can do, raw.
    pub(crate) capabilities: Option<String>,
    /// The replica that opened it, where there are several.
    pub(crate) home: Option<Home>,
}

/// The session that a connection showed last. A client shows the same one with every request, and opening what is sealed
/// is a good part of what a short call costs here.
#[derive(Debug, Default)]
pub(crate) struct LastSession(Mutex<Option<Opened>>);

/// An id that was opened, with what it is bound to.
#[derive(Debug)]
struct Opened {
    principal: Principal,
    scope: String,
    id: HeaderValue,
    session: Arc<Session>,
}

impl SessionKeys {
    pub(crate) fn new(seal: Seal, home: Option<Home>) -> Self {
        Self { seal, home, closed: Mutex::default() }
    }

    /// A new session of this principal at this endpoint (`scope`), or `None` if there are no random numbers.
    pub(crate) fn open(
        &self,
        principal: Principal,
        scope: &str,
        version: &str,
        capabilities: Option<&str>,
    ) -> Option<String> {
        let home = self.home.as_ref().map_or_else(String::new, |home| format!(" {home}"));
        let text = format!("{version}{home}\n{}", capabilities.unwrap_or_default());
        self.seal.close(&text, &bound_to(principal, scope))
    }

    /// The session behind an id, if it was made for this principal and endpoint and has not been closed.
    pub(crate) fn verify(
        &self,
        principal: Principal,
        scope: &str,
        id: &HeaderValue,
        last: &LastSession,
    ) -> Option<Arc<Session>> {
        let session = {
            let mut last = last.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A proxy may send the requests of several clients over one connection.
            let same = |last: &&Opened| last.id == *id && last.principal == principal && last.scope == scope;
            match last.as_ref().filter(same) {
                Some(opened) => opened.session.clone(),
                None => {
                    let session = Arc::new(self.unseal(principal, scope, id.to_str().ok()?)?);
                    let (scope, id) = (scope.to_owned(), id.clone());
                    last.insert(Opened { principal, scope, id, session }).session.clone()
                }
            }
        };
        let is_closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&session.nonce);
        (!is_closed).then_some(session)
    }

    fn unseal(&self, principal: Principal, scope: &str, id: &str) -> Option<Session> {
        let opened = self.seal.open(id, &bound_to(principal, scope))?;
        let (first, capabilities) = opened.text.split_once('\n')?;
        let (version, home) = match first.split_once(' ') {
            Some((version, home)) => (version, Some(home.parse().ok()?)),
            None => (first, None),
        };
        let capabilities = (!capabilities.is_empty()).then(|| capabilities.to_owned());
        Some(Session { nonce: opened.nonce, version: version.to_owned(), capabilities, home })
    }

    pub(crate) fn close(&self, session: &Session) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.0.insert(session.nonce) {
            closed.1.push_back(session.nonce);
        }
        if closed.1.len() > CLOSED_MAX
            && let Some(oldest) = closed.1.pop_front()
        {
            closed.0.remove(&oldest);
        }
    }
}

fn bound_to(principal: Principal, scope: &str) -> Vec<u8> {
    [b"mcp-hub session\0", &principal.0[..], scope.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Principal = Principal([1; 32]);
    const BOB: Principal = Principal([2; 32]);

    /// As a new connection shows it.
    fn verify(keys: &SessionKeys, principal: Principal, scope: &str, id: &str) -> Option<Arc<Session>> {
        keys.verify(principal, scope, &HeaderValue::from_str(id).unwrap(), &LastSession::default())
    }

    #[test]
    fn a_session_outlives_the_gateway_that_opened_it() {
        let id = SessionKeys::new(Seal::new([7; 32]), None)
            .open(ALICE, "/mcp", "2025-11-25", Some(r#"{"roots":{}}"#))
            .unwrap();
        let session = verify(&SessionKeys::new(Seal::new([7; 32]), None), ALICE, "/mcp", &id).unwrap();
        assert_eq!(session.version, "2025-11-25");
        assert_eq!(session.capabilities.as_deref(), Some(r#"{"roots":{}}"#));
    }

    #[test]
    fn a_session_says_which_replica_opened_it() {
        let home = Home { instance: "abc".to_owned(), address: "10.0.0.1:9000".parse().unwrap() };
        let keys = SessionKeys::new(Seal::new([7; 32]), Some(home.clone()));
        for capabilities in [None, Some(r#"{"roots": {}}"#)] {
            let id = keys.open(ALICE, "/mcp", "2025-11-25", capabilities).unwrap();
            let session = verify(&SessionKeys::new(Seal::new([7; 32]), None), ALICE, "/mcp", &id).unwrap();
            assert_eq!((session.home.as_ref(), &*session.version), (Some(&home), "2025-11-25"));
            assert_eq!(session.capabilities.as_deref(), capabilities);
        }
    }

    #[test]
    fn a_session_is_of_no_use_to_others_elsewhere_or_after_its_end() {
        let keys = SessionKeys::new(Seal::new([7; 32]), None);
        let id = keys.open(ALICE, "/mcp", "2025-11-25", None).unwrap();
        assert_eq!(verify(&keys, BOB, "/mcp", &id), None);
        assert_eq!(verify(&keys, ALICE, "/servers/a/mcp", &id), None);
        assert_eq!(verify(&SessionKeys::new(Seal::new([8; 32]), None), ALICE, "/mcp", &id), None);
        for broken in ["", "x", "AAAA", &id[1..], &id.replace(&id[40..41], if &id[40..41] == "A" { "B" } else { "A" })]
        {
            assert_eq!(verify(&keys, ALICE, "/mcp", broken), None, "{broken}");
        }
        keys.close(&verify(&keys, ALICE, "/mcp", &id).unwrap());
        assert_eq!(verify(&keys, ALICE, "/mcp", &id), None);
    }

    #[test]
    fn a_connection_that_showed_a_session_opens_it_to_nobody_else_and_not_after_its_end() {
        let keys = SessionKeys::new(Seal::new([7; 32]), None);
        let open = |capabilities| {
            let id = keys.open(ALICE, "/mcp", "2025-11-25", Some(capabilities)).unwrap();
            HeaderValue::from_str(&id).unwrap()
        };
        let (one, other) = (open("{}"), open(r#"{"roots":{}}"#));
        let last = LastSession::default();
        let session = keys.verify(ALICE, "/mcp", &one, &last).unwrap();
        assert!(Arc::ptr_eq(&session, &keys.verify(ALICE, "/mcp", &one, &last).unwrap()), "opened once");
        assert_eq!(keys.verify(BOB, "/mcp", &one, &last), None);
        assert_eq!(keys.verify(ALICE, "/servers/a/mcp", &one, &last), None);
        assert_ne!(keys.verify(ALICE, "/mcp", &other, &last).unwrap().nonce, session.nonce);
        assert_eq!(keys.verify(ALICE, "/mcp", &one, &last).unwrap().nonce, session.nonce);
        keys.close(&session);
        assert_eq!(keys.verify(ALICE, "/mcp", &one, &last), None);
    }
}
