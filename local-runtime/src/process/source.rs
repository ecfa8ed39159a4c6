//! What a source starts on this machine: a package is installed, a command is found.

use std::path::Path;

use async_trait::async_trait;
use mcp_hub_crds::source::{CommandSource, Resolved, Source};
use mcp_hub_packages::{PackageError, Packages};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::observed::Failure;
use std::time::Duration;
use tokio::sync::Semaphore;

use crate::host::Host;
use crate::prepare::{Order, Resolve};

/// Installations at a time: they are bound by network and disk, and a second one hides the waits of the first.
const PARALLEL: usize = 2;

#[derive(Debug)]
pub(super) struct Sources {
    packages: Packages,
    host: Host,
    slots: Semaphore,
}

impl Sources {
    pub(super) fn new(packages: Packages, host: Host) -> Self {
        Self { packages, host, slots: Semaphore::new(PARALLEL) }
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

#[async_trait]
impl Resolve for Sources {
    fn progress(&self, source: &Source) -> String {
        match source {
            Source::Package(package) => {
                let version = package.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
                format!("installing {}{version} from {}", package.name, package.registry.as_str())
            }
            _ => "looking for the program".to_owned(),
        }
    }

    async fn resolve(&self, order: Order) -> Result<Resolved, Failure> {
        match &order.source {
            Source::Package(package) => {
                // Closed never: the semaphore lives as long as this.
                let _slot = self.slots.acquire().await;
                let installed = self.packages.install(package).await.map_err(failed)?;
                Ok(Resolved {
                    source_digest: order.source_digest,
                    version: Some(installed.version),
                    command: Some(installed.command),
                    env: None,
                    reads: Some(installed.reads),
                    image: None,
                    runner: None,
                })
            }
            Source::Command(command) => self.find(command, &order.source_digest, &order.base),
            Source::Image(_) | Source::Remote(_) => Err(Failure {
                reason: "Unsupported",
                message: format!("a source of kind {} is not resolved here", order.source.kind()),
                hint: None,
                retry: Retry::OnChange,
            }),
        }
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
