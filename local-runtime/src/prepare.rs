//! Resolving sources in the background: what is tried, when it is tried again, and what of it shows.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mcp_hub_crds::source::{Resolved, Source};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::observed::{Failure, Prepare, PrepareState};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::broadcast;

/// Waits between tries where time may mend a failure, doubled each time: a registry that is down is not hammered, and one
/// that is up again is noticed within minutes.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// What a runtime does to find out what a source starts.
#[async_trait]
pub(crate) trait Resolve: fmt::Debug + Send + Sync {
    /// What it is about to do, for people.
    fn progress(&self, source: &Source) -> String;

    async fn resolve(&self, order: Order) -> Result<Resolved, Failure>;
}

/// What is to be resolved.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) owner: OwnerKey,
    pub(crate) source: Source,
    pub(crate) source_digest: String,
    /// Where relative paths start; empty is the user's home.
    pub(crate) base: PathBuf,
}

#[derive(Debug, Clone)]
pub(crate) struct Preparations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    resolver: Arc<dyn Resolve>,
    states: Mutex<HashMap<OwnerKey, Entry>>,
    events: broadcast::Sender<RuntimeEvent>,
}

/// The last preparation of an owner.
#[derive(Debug)]
struct Entry {
    prepare: Prepare,
    /// Failures in a row.
    failures: u32,
    /// Whether a failed one is to be tried again: then it is not shown, and the next plan starts it.
    due: bool,
}

impl Preparations {
    pub(crate) fn new(resolver: Arc<dyn Resolve>, events: broadcast::Sender<RuntimeEvent>) -> Self {
        Self(Arc::new(Inner { resolver, states: Mutex::default(), events }))
    }

    pub(crate) fn state(&self, owner: &OwnerKey) -> Option<Prepare> {
        self.0.states().get(owner).filter(|entry| !entry.due).map(|entry| entry.prepare.clone())
    }

    pub(crate) fn forget(&self, owner: &OwnerKey) {
        self.0.states().remove(owner);
    }

    /// Starts the task unless one of the same digest runs or is done.
    pub(crate) fn start(&self, owner: &OwnerKey, object: &Object) {
        let source = serde_json::from_value::<Source>(object.body["source"].clone());
        let text = |key: &str| object.body[key].as_str().unwrap_or_default().to_owned();
        let (source_digest, base) = (text("sourceDigest"), PathBuf::from(text("baseDir")));
        let progress = source.as_ref().map(|source| self.0.resolver.progress(source)).unwrap_or_default();
        {
            let mut states = self.0.states();
            match states.get_mut(owner).filter(|entry| entry.prepare.digest == object.digest) {
                Some(entry) if !entry.due => return,
                // Tried again under the failure that was shown before, so that status does not go back and forth.
                Some(entry) => entry.due = false,
                None => {
                    let state = PrepareState::Running { progress };
                    let prepare = Prepare { digest: object.digest.clone(), state };
                    states.insert(owner.clone(), Entry { prepare, failures: 0, due: false });
                }
            }
        }
        let (inner, owner, digest) = (self.0.clone(), owner.clone(), object.digest.clone());
        tokio::spawn(async move {
            let result = match source {
                Ok(source) => inner.resolver.resolve(Order { owner: owner.clone(), source, source_digest, base }).await,
                Err(error) => Err(Failure {
                    reason: "SourceUnreadable",
                    message: error.to_string(),
                    hint: None,
                    retry: Retry::OnChange,
                }),
            };
            if let Some(wait) = inner.settle(&owner, &digest, result) {
                tokio::time::sleep(wait).await;
                inner.make_due(&owner, &digest);
            }
        });
    }
}

impl Inner {
    fn states(&self) -> MutexGuard<'_, HashMap<OwnerKey, Entry>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the result; gives the wait before a failure is tried again.
    fn settle(&self, owner: &OwnerKey, digest: &str, result: Result<Resolved, Failure>) -> Option<Duration> {
        let wait = {
            let mut states = self.states();
            // A changed source has started its own task, or the server is gone.
            let entry = states.get_mut(owner).filter(|entry| entry.prepare.digest == digest)?;
            match result {
                Ok(resolved) => {
                    entry.prepare.state = PrepareState::Done(resolved);
                    None
                }
                Err(failure) => {
                    let wait = match failure.retry {
                        Retry::OnChange => None,
                        Retry::After(wait) => Some(wait),
                        Retry::Backoff => Some(RETRY_FIRST.saturating_mul(1 << entry.failures.min(16)).min(RETRY_MAX)),
                    };
                    entry.failures = entry.failures.saturating_add(1);
                    entry.prepare.state = PrepareState::Failed(failure);
                    wait
                }
            }
        };
        self.tell(owner);
        wait
    }

    fn make_due(&self, owner: &OwnerKey, digest: &str) {
        match self.states().get_mut(owner).filter(|entry| entry.prepare.digest == digest) {
            Some(entry) => entry.due = true,
            None => return,
        }
        self.tell(owner);
    }

    fn tell(&self, owner: &OwnerKey) {
        // Nobody listening is no loss: who listens later looks at everything first.
        self.events.send(RuntimeEvent::Changed(owner.clone())).ok();
    }
}
