//! Resolving of sources: once for each change of a server's source, in the background. A registry is asked what an image
//! is; of a package the runner image is kept, so that a new operator rolls no server.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mcp_hub_crds::source::{ImageSource, Resolved, ResolvedImage, Source};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::observed::{Failure, Prepare, PrepareState};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Progress, RuntimeEvent};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::AbortHandle;

/// Asks a registry what an image is.
#[async_trait]
pub trait ResolveImage: fmt::Debug + Send + Sync {
    /// `namespace` holds the Secret that the source may refer to.
    async fn resolve(&self, image: &ImageSource, namespace: &str) -> Result<ResolvedImage, ResolveError>;
}

/// Why a registry did not tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    pub message: String,
    pub hint: Option<String>,
    /// Whether the same question may be answered later.
    pub passing: bool,
}

/// Registries throttle; thousands of servers are resolved a few at a time.
const AT_ONCE: usize = 8;
/// A pass waits so long for an answer, so that most servers need no second one.
const PATIENCE: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(crate) struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<dyn ResolveImage>,
    events: broadcast::Sender<RuntimeEvent>,
    turns: Semaphore,
    known: Mutex<HashMap<String, Known>>,
}

/// The resolution of an owner's image.
#[derive(Debug)]
struct Known {
    digest: String,
    state: watch::Receiver<PrepareState>,
    failures: u32,
    task: AbortHandle,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Images {
    pub(crate) fn new(registry: Arc<dyn ResolveImage>, events: broadcast::Sender<RuntimeEvent>) -> Self {
        Self(Arc::new(Inner { registry, events, turns: Semaphore::new(AT_ONCE), known: Mutex::default() }))
    }

    pub(crate) fn observe(&self, owner: &OwnerKey) -> Option<Prepare> {
        let known = self.0.known();
        let known = known.get(&owner.uid).filter(|known| !known.state.borrow().eq(&due()))?;
        let state = known.state.borrow().clone();
        Some(Prepare { digest: known.digest.clone(), state })
    }

    /// Starts or joins the resolution.
    pub(crate) async fn prepare(&self, owner: &OwnerKey, object: &Object) -> Progress {
        let mut state = self.begin(owner, object);
        let ended = state.wait_for(|state| !matches!(state, PrepareState::Running { .. }));
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(_) => Progress::Done,
            Err(_) => Progress::Pending,
        }
    }

    /// What was found is in the owner's objects, or nobody wants it any more.
    pub(crate) fn forget(&self, owner: &OwnerKey) {
        self.0.known().remove(&owner.uid);
    }

    fn begin(&self, owner: &OwnerKey, object: &Object) -> watch::Receiver<PrepareState> {
        let mut known = self.0.known();
        // An owner that is gone asks no more; of those that are not, the count of failures is lost at worst.
        known.retain(|uid, known| *uid == owner.uid || !known.task.is_finished() || !known.state.borrow().eq(&due()));
        let old = known.get(&owner.uid).filter(|known| known.digest == object.digest);
        if let Some(old) = old.filter(|old| !old.state.borrow().eq(&due())) {
            return old.state.clone();
        }
        let failures = old.map_or(0, |old| old.failures + 1);
        let progress = PrepareState::Running { progress: "asking the registry what the image is".to_owned() };
        let (tell, state) = watch::channel(progress);
        let task = tokio::spawn(resolve(self.0.clone(), owner.clone(), object.clone(), failures, tell)).abort_handle();
        known.insert(owner.uid.clone(), Known { digest: object.digest.clone(), state: state.clone(), failures, task });
        state
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        self.0.known().clear();
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A failure whose time has come: it is shown no more.
fn due() -> PrepareState {
    PrepareState::Running { progress: String::new() }
}

async fn resolve(inner: Arc<Inner>, owner: OwnerKey, object: Object, failures: u32, tell: watch::Sender<PrepareState>) {
    let changed = || {
        inner.events.send(RuntimeEvent::Changed(owner.clone())).ok();
    };
    let digest = object.body["sourceDigest"].as_str().unwrap_or_default().to_owned();
    let source = serde_json::from_value(object.body["source"].clone());
    let version = match &source {
        Ok(Source::Package(package)) => package.version.clone(),
        _ => None,
    };
    let runner = object.body["runner"].as_str().map(str::to_owned);
    let found = |image: Option<ResolvedImage>| {
        PrepareState::Done(Resolved {
            source_digest: digest.clone(),
            version: version.clone(),
            command: None,
            env: None,
            reads: None,
            image,
            runner: runner.clone(),
        })
    };
    let Ok(Source::Image(image)) = source else {
        // Of a package everything is known: pods install it.
        tell.send_replace(found(None));
        return changed();
    };
    // What is given needs no registry.
    if image.command.is_some() && image.pin_digest == Some(false) {
        tell.send_replace(found(None));
        return changed();
    }
    let answer = match inner.turns.acquire().await {
        Ok(_turn) => inner.registry.resolve(&image, &owner.namespace).await,
        // The semaphore is never closed.
        Err(_) => return,
    };
    let error = match answer {
        Ok(facts) => {
            tell.send_replace(found(Some(facts)));
            return changed();
        }
        // It can run by its tag; the lowering says that it is not pinned.
        Err(_) if image.command.is_some() => {
            tell.send_replace(found(None));
            return changed();
        }
        Err(error) => error,
    };
    let hint = error.hint.unwrap_or_else(|| "or set spec.source.image.command, which needs no registry".to_owned());
    tell.send_replace(PrepareState::Failed(Failure {
        reason: "ImageUnresolved",
        message: format!("what image {} runs is not known: {}", image.r#ref, error.message),
        hint: Some(hint),
        retry: if error.passing { Retry::Backoff } else { Retry::OnChange },
    }));
    changed();
    // Also what seems final is looked at again, rarely: an image may be pushed late.
    let wait = if error.passing { FIRST_RETRY.saturating_mul(1 << failures.min(8)) } else { LONGEST_RETRY };
    tokio::time::sleep(wait.min(LONGEST_RETRY)).await;
    tell.send_replace(due());
    changed();
}
