//! The runtimes of one machine as one runtime: each workload goes to the one that fits its source.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_hub_crds::server::RuntimeChoice;
use mcp_hub_crds::source::Source;
use mcp_hub_reconcile::error::RuntimeError;
use mcp_hub_reconcile::lower::{Lowered, Unsupported};
use mcp_hub_reconcile::observed::Observed;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Console, Progress, Runtime, RuntimeEvent, RuntimeInfo, Step};
use mcp_hub_reconcile::workload::Workload;

use crate::process::ProcessRuntime;

/// Packages and commands become processes, remote servers become nothing; images need a container engine, which this
/// release does not drive.
#[derive(Debug)]
pub struct RuntimeSet {
    process: Arc<ProcessRuntime>,
}

impl RuntimeSet {
    pub fn new(process: Arc<ProcessRuntime>) -> Self {
        Self { process }
    }
}

#[async_trait]
impl Runtime for RuntimeSet {
    fn info(&self) -> &RuntimeInfo {
        self.process.info()
    }

    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported> {
        let Workload::Server(server) = workload else { return self.process.lower(workload) };
        match (&server.source, server.runtime) {
            (Source::Remote(_), _) => Ok(Lowered::default()),
            (Source::Package(_) | Source::Command(_), None | Some(RuntimeChoice::Process)) => {
                self.process.lower(workload)
            }
            (Source::Image(_), None | Some(RuntimeChoice::Process)) => Err(Unsupported {
                runtime: "this machine".to_owned(),
                field: "spec.source.image".to_owned(),
                message: "images need a container engine, and this release drives none".to_owned(),
                hint: Some("use a package or a command as source".to_owned()),
            }),
            (_, Some(other)) => Err(Unsupported {
                runtime: "this machine".to_owned(),
                field: "spec.runtime".to_owned(),
                message: format!("this release does not drive {}", other.as_str()),
                hint: Some("leave spec.runtime out to run the server as a process".to_owned()),
            }),
        }
    }

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError> {
        self.process.owners().await
    }

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError> {
        self.process.observe(owner).await
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError> {
        self.process.execute(owner, step).await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        self.process.events()
    }

    fn console(&self) -> &dyn Console {
        self.process.console()
    }
}
