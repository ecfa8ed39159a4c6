//! Resolving sources in the background: a package is installed, a command is found.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mcp_hub_crds::source::{CommandSource, Resolved, Source};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::observed::{Failure, Prepare, PrepareState};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::{Semaphore, broadcast};

use crate::host::Host;
use crate::packages::Packages;

/// Installations at a time: they are bound by network and disk, and a second one hides the waits of the first.
const PARALLEL: usize = 2;

#[derive(Debug, Clone)]
pub(super) struct Preparations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    packages: Packages,
    host: Host,
    states: Mutex<HashMap<OwnerKey, Prepare>>,
    slots: Semaphore,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Preparations {
    pub(super) fn new(packages: Packages, host: Host, events: broadcast::Sender<RuntimeEvent>) -> Self {
        let slots = Semaphore::new(PARALLEL);
        Self(Arc::new(Inner { packages, host, states: Mutex::default(), slots, events }))
    }

    pub(super) fn state(&self, owner: &OwnerKey) -> Option<Prepare> {
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()
    }

    pub(super) fn forget(&self, owner: &OwnerKey) {
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
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
            let mut states = self.0.states.lock().unwrap_or_else(PoisonError::into_inner);
            let settled = states.get(owner).is_some_and(|prepare| {
                prepare.digest == object.digest && !matches!(prepare.state, PrepareState::Failed(_))
            });
            if settled {
                return;
            }
            let state = PrepareState::Running { progress };
            states.insert(owner.clone(), Prepare { digest: object.digest.clone(), state });
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
            let state = match result {
                Ok(resolved) => PrepareState::Done(resolved),
                Err(failure) => PrepareState::Failed(failure),
            };
            {
                let mut states = inner.states.lock().unwrap_or_else(PoisonError::into_inner);
                // A changed source has started its own task, or the server is gone.
                match states.get_mut(&owner) {
                    Some(prepare) if prepare.digest == digest => prepare.state = state,
                    _ => return,
                }
            }
            // Nobody listening is no loss: who listens later looks at everything first.
            inner.events.send(RuntimeEvent::Changed(owner)).ok();
        });
    }
}

impl Inner {
    async fn resolve(&self, source: &Source, source_digest: &str, base: &Path) -> Result<Resolved, Failure> {
        match source {
            Source::Package(package) => {
                // Closed never: the semaphore lives as long as this.
                let _slot = self.slots.acquire().await;
                Ok(self.packages.resolve(package, source_digest).await?)
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
            retry: Retry::After(std::time::Duration::from_secs(30)),
        })?;
        let program = found.to_string_lossy().into_owned();
        Ok(Resolved {
            source_digest: source_digest.to_owned(),
            version: None,
            reads: Some(vec![program.clone()]),
            command: Some(vec![program]),
            env: None,
            image: None,
        })
    }
}
