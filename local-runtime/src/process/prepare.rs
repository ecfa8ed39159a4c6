//! Resolving sources in the background: a package is installed, a command is found.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mcp_hub_crds::source::{CommandSource, Resolved, Source};
use mcp_hub_packages::{PackageError, Packages};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::observed::{Failure, Prepare, PrepareState};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::{Semaphore, broadcast};

use crate::host::Host;

/// Installations at a time: they are bound by network and disk, and a second one hides the waits of the first.
const PARALLEL: usize = 2;
/// Waits between tries where time may mend a failure, doubled each time: a registry that is down is not hammered, and one
/// that is up again is noticed within minutes.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
pub(super) struct Preparations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    packages: Packages,
    host: Host,
    states: Mutex<HashMap<OwnerKey, Entry>>,
    slots: Semaphore,
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
    pub(super) fn new(packages: Packages, host: Host, events: broadcast::Sender<RuntimeEvent>) -> Self {
        let slots = Semaphore::new(PARALLEL);
        Self(Arc::new(Inner { packages, host, states: Mutex::default(), slots, events }))
    }

    pub(super) fn state(&self, owner: &OwnerKey) -> Option<Prepare> {
        self.0.states().get(owner).filter(|entry| !entry.due).map(|entry| entry.prepare.clone())
    }

    pub(super) fn forget(&self, owner: &OwnerKey) {
        self.0.states().remove(owner);
    }

    /// Starts the task unless one of the same digest runs or is done.
    pub(super) fn start(&self, owner: &OwnerKey, object: &Object) {
        let source = serde_json::from_value::<Source>(object.body["source"].clone());
        let text = |key: &str| object.body[key].as_str().unwrap_or_default().to_owned();
        let (source_digest, base) = (text("sourceDigest"), text("baseDir"));
        let progress = match &source {
            Ok(Source::Package(package)) => {
                let version = package.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
                format!("installing {}{version} from {}", package.name, package.registry.as_str())
            }
            _ => "looking for the program".to_owned(),
        };
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
                Ok(source) => inner.resolve(&source, &source_digest, Path::new(&base)).await,
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

    async fn resolve(&self, source: &Source, source_digest: &str, base: &Path) -> Result<Resolved, Failure> {
        match source {
            Source::Package(package) => {
                // Closed never: the semaphore lives as long as this.
                let _slot = self.slots.acquire().await;
                let installed = self.packages.install(package).await.map_err(failed)?;
                Ok(Resolved {
                    source_digest: source_digest.to_owned(),
                    version: Some(installed.version),
                    command: Some(installed.command),
                    env: None,
                    reads: Some(installed.reads),
                    image: None,
                    runner: None,
                })
            }
            Source::Command(command) => self.find(command, source_digest, base),
            Source::Image(_) | Source::Remote(_) => Err(Failure {
                reason: "Unsupported",
                message: format!("a source of kind {} is not resolved here", source.kind()),
                hint: None,
                retry: Retry::OnChange,
            }),
        }
    }

    fn find(&self, command: &CommandSource, source_digest: &str, base: &Path) -> Result<Resolved, Failure> {
        let base = if base.as_os_str().is_empty() { &self.host.home } else { base };
        let named = if command.path.contains('/') || command.path == "~" {
            self.host.absolute(base, &command.path)
        } else {
            Path::new(&command.path).to_owned()
        };
        let found = which::which_in(&named, Some(self.host.path()), base).map_err(|_| Failure {
            reason: "CommandNotFound",
            message: format!("there is no program {}", named.display()),
            hint: Some("check spec.source.command.path; relative paths start from the manifest's folder".to_owned()),
            // It may be built or installed at any time, and nothing tells of that.
            retry: Retry::After(Duration::from_secs(30)),
        })?;
        let program = found.to_string_lossy().into_owned();
        Ok(Resolved {
            source_digest: source_digest.to_owned(),
            version: None,
            reads: Some(vec![program.clone()]),
            command: Some(vec![program]),
            env: None,
            image: None,
            runner: None,
        })
    }
}

fn failed(error: PackageError) -> Failure {
    let retry = match &error {
        // It may be installed while the daemon runs, which nothing tells of.
        PackageError::InterpreterMissing { .. } => Retry::After(Duration::from_secs(60)),
        error if error.is_passing() => Retry::Backoff,
        _ => Retry::OnChange,
    };
    Failure { reason: error.reason().as_str(), message: error.chain(), hint: error.hint(), retry }
}
