//! Session ids towards legacy clients: sealed tokens, so that a session costs no memory, survives a restart of the
//! gateway, and is of no use to anybody else.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::guard::Principal;
use crate::seal::{NONCE, Seal};

/// Closed sessions remembered; a client that uses an older one after closing it is let in again, which harms nobody but
/// itself.
const CLOSED_MAX: usize = 10_000;

#[derive(Debug)]
pub(crate) struct SessionKeys {
    seal: Seal,
    closed: Mutex<Closed>,
}

/// Nonces of ended sessions, and the order in which they ended.
#[derive(Debug, Default)]
struct Closed(HashSet<[u8; NONCE]>, VecDeque<[u8; NONCE]>);

/// A session that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) nonce: [u8; NONCE],
    /// Negotiated protocol version.
    pub(crate) version: String,
    /// What the client can do, raw.
    pub(crate) capabilities: Option<String>,
}

impl SessionKeys {
    pub(crate) fn new(seal: Seal) -> Self {
        Self { seal, closed: Mutex::default() }
    }

    /// A new session of this principal at this endpoint (`scope`), or `None` if there are no random numbers.
    pub(crate) fn open(
        &self,
        principal: Principal,
        scope: &str,
        version: &str,
        capabilities: Option<&str>,
    ) -> Option<String> {
        self.seal.close(&format!("{version}\n{}", capabilities.unwrap_or_default()), &bound_to(principal, scope))
    }

    /// The session behind an id, if it was made for this principal and endpoint and has not been closed.
    pub(crate) fn verify(&self, principal: Principal, scope: &str, id: &str) -> Option<Session> {
        let opened = self.seal.open(id, &bound_to(principal, scope))?;
        let (version, capabilities) = opened.text.split_once('\n')?;
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&opened.nonce);
        let capabilities = (!capabilities.is_empty()).then(|| capabilities.to_owned());
        (!closed).then(|| Session { nonce: opened.nonce, version: version.to_owned(), capabilities })
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

    #[test]
    fn a_session_outlives_the_gateway_that_opened_it() {
        let id =
            SessionKeys::new(Seal::new([7; 32])).open(ALICE, "/mcp", "2025-11-25", Some(r#"{"roots":{}}"#)).unwrap();
        let session = SessionKeys::new(Seal::new([7; 32])).verify(ALICE, "/mcp", &id).unwrap();
        assert_eq!(session.version, "2025-11-25");
        assert_eq!(session.capabilities.as_deref(), Some(r#"{"roots":{}}"#));
    }

    #[test]
    fn a_session_is_of_no_use_to_others_elsewhere_or_after_its_end() {
        let keys = SessionKeys::new(Seal::new([7; 32]));
        let id = keys.open(ALICE, "/mcp", "2025-11-25", None).unwrap();
        assert_eq!(keys.verify(BOB, "/mcp", &id), None);
        assert_eq!(keys.verify(ALICE, "/servers/a/mcp", &id), None);
        assert_eq!(SessionKeys::new(Seal::new([8; 32])).verify(ALICE, "/mcp", &id), None);
        for broken in ["", "x", "AAAA", &id[1..], &id.replace(&id[40..41], if &id[40..41] == "A" { "B" } else { "A" })]
        {
            assert_eq!(keys.verify(ALICE, "/mcp", broken), None, "{broken}");
        }
        keys.close(&keys.verify(ALICE, "/mcp", &id).unwrap());
        assert_eq!(keys.verify(ALICE, "/mcp", &id), None);
    }
}
