//! Starts that fail are tried again ever more seldom. The engine tells of every try, and what it tells asks for a pass: by
//! themselves passes would follow each other without a pause.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::owner::OwnerKey;

/// The first restart is immediate; then waits begin with this, and double.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran for so long had no trouble with its start.
const SOUND: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Pacing(Mutex<HashMap<OwnerKey, Trouble>>);

#[derive(Debug)]
struct Trouble {
    /// Of the object whose starts are counted: a changed one begins anew.
    digest: String,
    failures: u32,
    started: Option<Instant>,
    due: Instant,
    reason: &'static str,
    message: String,
    hint: Option<String>,
}

impl Pacing {
    /// What the last start failed with, as long as it is too early for the next one.
    pub(super) fn check(&self, owner: &OwnerKey, digest: &str) -> Result<(), RuntimeError> {
        let troubles = self.troubles();
        let Some(trouble) = troubles.get(owner).filter(|trouble| trouble.digest == digest) else { return Ok(()) };
        match trouble.due.checked_duration_since(Instant::now()) {
            None => Ok(()),
            Some(wait) => Err(RuntimeError {
                reason: trouble.reason,
                message: trouble.message.clone(),
                hint: trouble.hint.clone(),
                retry: Retry::After(wait),
                source: None,
            }),
        }
    }

    /// A start failed, or what was started ended by itself.
    pub(super) fn failed(&self, owner: &OwnerKey, digest: &str, why: &RuntimeError) {
        let mut troubles = self.troubles();
        let before = troubles.remove(owner).filter(|trouble| trouble.digest == digest);
        let sound = |trouble: &Trouble| trouble.started.is_some_and(|started| started.elapsed() > SOUND);
        let failures = before.filter(|trouble| !sound(trouble)).map_or(1, |trouble| trouble.failures.saturating_add(1));
        let wait = match failures {
            1 => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - 2).min(16)).min(LONGEST),
        };
        let source = why.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
        troubles.insert(
            owner.clone(),
            Trouble {
                digest: digest.to_owned(),
                failures,
                started: None,
                due: Instant::now() + wait,
                reason: why.reason,
                message: format!("{}{source}", why.message),
                hint: why.hint.clone(),
            },
        );
    }

    pub(super) fn started(&self, owner: &OwnerKey) {
        if let Some(trouble) = self.troubles().get_mut(owner) {
            trouble.started = Some(Instant::now());
        }
    }

    pub(super) fn forget(&self, owner: &OwnerKey) {
        self.troubles().remove(owner);
    }

    fn troubles(&self) -> MutexGuard<'_, HashMap<OwnerKey, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use mcp_hub_reconcile::owner::OwnerKind;

    use super::*;

    fn owner() -> OwnerKey {
        OwnerKey {
            installation: "i".to_owned(),
            kind: OwnerKind::MCPServer,
            namespace: "default".to_owned(),
            name: "github".to_owned(),
            uid: "u".to_owned(),
        }
    }

    fn why() -> RuntimeError {
        RuntimeError {
            reason: "BridgeFailed",
            message: "no".to_owned(),
            hint: None,
            retry: Retry::Backoff,
            source: None,
        }
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_next_ones_wait_longer_and_longer() {
        let pacing = Pacing::default();
        let mut waits = Vec::new();
        for _ in 0..4 {
            pacing.failed(&owner(), "one", &why());
            waits.push(match pacing.check(&owner(), "one") {
                Ok(()) => 0,
                Err(RuntimeError { reason: "BridgeFailed", retry: Retry::After(wait), .. }) => {
                    wait.as_millis().div_ceil(1000)
                }
                Err(error) => panic!("{error:?}"),
            });
        }
        assert_eq!(waits, [0, 1, 2, 4]);
    }

    #[test]
    fn a_changed_server_is_started_at_once() {
        let pacing = Pacing::default();
        (0..5).for_each(|_| pacing.failed(&owner(), "one", &why()));
        assert!(pacing.check(&owner(), "one").is_err());
        assert!(pacing.check(&owner(), "two").is_ok());
        pacing.failed(&owner(), "two", &why());
        assert!(pacing.check(&owner(), "two").is_ok());
        pacing.forget(&owner());
        assert!(pacing.check(&owner(), "one").is_ok());
    }
}
