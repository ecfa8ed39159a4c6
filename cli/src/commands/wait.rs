//! `--wait`: until servers have settled.

use futures::StreamExt;
use kube::ResourceExt;
use mcp_hub_crds::MCPServer;

use crate::admin::Name;
use crate::args::Wait;
use crate::error::Error;
use crate::summary::{Settled, row, settled};
use crate::target::{Scope, Target};

/// Which servers a command waits for.
#[derive(Debug, Clone)]
pub(crate) enum Of {
    All,
    Named(Vec<Name>),
}

impl Of {
    fn scope(&self) -> Scope {
        match self {
            Self::All => Scope::Usual,
            Self::Named(names) => Scope::In(names.iter().map(|name| name.namespace.clone()).collect()),
        }
    }

    fn covers(&self, server: &MCPServer) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name.is_of(&server.metadata)),
        }
    }

    fn is_complete(&self, servers: &[&MCPServer]) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().all(|name| servers.iter().any(|server| name.is_of(&server.metadata))),
        }
    }
}

/// Waits if asked to. Names that no server bears yet are waited for too.
pub(crate) async fn settle(target: &dyn Target, wait: Wait, of: &Of) -> Result<(), Error> {
    if !wait.wait {
        return Ok(());
    }
    let mut waiting = Vec::new();
    let watch = async {
        let mut snapshots = target.watch(&of.scope()).await?;
        while let Some(servers) = snapshots.next().await {
            let servers = servers?;
            let concerned: Vec<&MCPServer> = servers.iter().filter(|server| of.covers(server)).collect();
            waiting = concerned
                .iter()
                .filter(|server| settled(server) == Settled::Not)
                .map(|server| server.name_any())
                .collect();
            if of.is_complete(&concerned) && waiting.is_empty() {
                let failed = concerned.iter().filter(|server| settled(server) == Settled::NotReady);
                let failed: Vec<String> = failed.map(|server| line_of(server)).collect();
                return if failed.is_empty() { Ok(()) } else { Err(Error::NotReady(failed.join("\n"))) };
            }
        }
        Ok(())
    };
    let result = tokio::time::timeout(wait.timeout.get(), watch).await;
    result
        .unwrap_or_else(|_| Err(Error::TimedOut(format!("not ready within {}: {}", wait.timeout, waiting.join(", ")))))
}

fn line_of(server: &MCPServer) -> String {
    let row = row(server);
    format!("{} is not ready ({}): {}", row.name, row.reason, row.note)
}
