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
    /// When the same question may be answered.
    pub retry: Retry,
}

/// Registries throttle; thousands of servers are resolved a few at a time.
const AT_ONCE: usize = 8;
/// A pass waits so long for an answer, so that most servers need no second one.
const PATIENCE: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// What was found is kept for so long unless it was put to use before: its owner may be gone. By then it is in the status.
const KEPT: Duration = Duration::from_secs(600);

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
        // What is due and was not asked for again belongs to an owner that is gone; else the count of failures is lost.
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

/// What becomes of a preparation.
enum Outcome {
    Found(Resolved),
    Failed(String, ResolveError),
}

async fn resolve(inner: Arc<Inner>, owner: OwnerKey, object: Object, failures: u32, tell: watch::Sender<PrepareState>) {
    let changed = || {
        // Nobody listening is no loss: who listens later looks at everything.
        inner.events.send(RuntimeEvent::Changed(owner.clone())).ok();
    };
    match look(&inner, &owner, &object).await {
        Outcome::Found(resolved) => {
            tell.send_replace(PrepareState::Done(resolved));
            changed();
            tokio::time::sleep(KEPT).await;
            tell.send_replace(due());
        }
        Outcome::Failed(image, error) => {
            let wait = wait(error.retry, failures);
            let hint = error.hint;
            tell.send_replace(PrepareState::Failed(Failure {
                reason: "ImageUnresolved",
                message: format!("what image {image} runs is not known: {}", error.message),
                hint: hint.or_else(|| Some("or set spec.source.image.command, which needs no registry".to_owned())),
                retry: error.retry,
            }));
            changed();
            tokio::time::sleep(wait).await;
            tell.send_replace(due());
            changed();
        }
    }
}

/// How long a failure is shown until the registry is asked again.
fn wait(retry: Retry, failures: u32) -> Duration {
    match retry {
        Retry::Backoff => FIRST_RETRY.saturating_mul(1 << failures.min(8)).min(LONGEST_RETRY),
        Retry::After(time) => time.max(FIRST_RETRY),
        // Also what seems final is looked at again, rarely: an image may be pushed late.
        Retry::OnChange => LONGEST_RETRY,
    }
}

async fn look(inner: &Inner, owner: &OwnerKey, object: &Object) -> Outcome {
    let source = serde_json::from_value(object.body["source"].clone());
    let version = match &source {
        Ok(Source::Package(package)) => package.version.clone(),
        _ => None,
    };
    let found = |image: Option<ResolvedImage>| {
        Outcome::Found(Resolved {
            source_digest: object.body["sourceDigest"].as_str().unwrap_or_default().to_owned(),
            version,
            command: None,
            env: None,
            reads: None,
            image,
            runner: object.body["runner"].as_str().map(str::to_owned),
        })
    };
    // Of a package everything is known: pods install it.
    let Ok(Source::Image(image)) = source else { return found(None) };
    // What is given needs no registry.
    if image.command.is_some() && image.pin_digest == Some(false) {
        return found(None);
    }
    // The semaphore is never closed.
    let _turn = inner.turns.acquire().await;
    match inner.registry.resolve(&image, &owner.namespace).await {
        Ok(facts) => found(Some(facts)),
        // It can run by its tag; the lowering says that it is not pinned.
        Err(_) if image.command.is_some() => found(None),
        Err(error) => Outcome::Failed(image.r#ref, error),
    }
}

#[cfg(test)]
mod tests {
    use mcp_hub_reconcile::lower::{Change, ObjectId, Stage};
    use mcp_hub_reconcile::owner::OwnerKind;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    /// Says these one after the other, then what every image is, and notes when it was asked.
    #[derive(Debug)]
    struct Registry {
        refusals: Mutex<Vec<Retry>>,
        asked: Mutex<Vec<u64>>,
        begun: Instant,
    }

    #[async_trait]
    impl ResolveImage for Registry {
        async fn resolve(&self, _: &ImageSource, _: &str) -> Result<ResolvedImage, ResolveError> {
            self.asked.lock().unwrap().push(self.begun.elapsed().as_secs());
            match self.refusals.lock().unwrap().pop() {
                Some(retry) => Err(ResolveError { message: "not now".to_owned(), hint: None, retry }),
                None => Ok(ResolvedImage {
                    index: "sha256:0".to_owned(),
                    id: None,
                    entrypoint: None,
                    cmd: None,
                    user: None,
                }),
            }
        }
    }

    fn owner(uid: &str) -> OwnerKey {
        let (installation, namespace, name) = ("i".to_owned(), "team".to_owned(), "github".to_owned());
        OwnerKey { installation, kind: OwnerKind::MCPServer, namespace, name, uid: uid.to_owned() }
    }

    fn object() -> Object {
        let body = json!({"sourceDigest": "d", "source": {"image": {"ref": "r.example.com/one:1"}}});
        Object::new(ObjectId::new("prepare", "github"), Stage::Prepare, Change::InPlace, body)
    }

    fn images(mut refusals: Vec<Retry>) -> (Images, Arc<Registry>, broadcast::Sender<RuntimeEvent>) {
        refusals.reverse();
        let registry = Registry { refusals: Mutex::new(refusals), asked: Mutex::default(), begun: Instant::now() };
        let (registry, events) = (Arc::new(registry), broadcast::Sender::new(64));
        (Images::new(registry.clone(), events.clone()), registry, events)
    }

    /// As passes do: asks whenever it is told of something and nothing is under way.
    async fn until_done(images: &Images, events: &broadcast::Sender<RuntimeEvent>) {
        let mut told = events.subscribe();
        loop {
            match images.observe(&owner("u")).map(|prepare| prepare.state) {
                Some(PrepareState::Done(_)) => return,
                Some(_) => drop(told.recv().await.unwrap()),
                None => {
                    images.prepare(&owner("u"), &object()).await;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_left_alone_for_as_long_as_it_wants() {
        let (images, registry, events) =
            images(vec![Retry::Backoff, Retry::Backoff, Retry::After(Duration::from_secs(900)), Retry::OnChange]);
        until_done(&images, &events).await;
        assert_eq!(*registry.asked.lock().unwrap(), [0, 5, 15, 915, 1215]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_for_owners_that_are_gone_is_kept_for_a_while_only() {
        let (images, ..) = images(Vec::new());
        for number in 0..100 {
            images.prepare(&owner(&number.to_string()), &object()).await;
        }
        assert_eq!(images.0.known().len(), 100);
        tokio::time::sleep(KEPT * 2).await;
        images.prepare(&owner("u"), &object()).await;
        assert_eq!(images.0.known().len(), 1);
    }
}
