//! `--wait`: until servers have settled.

use futures::StreamExt;
use kube::ResourceExt;
use mcp_hub_crds::MCPServer;

use crate::admin::client::Admin;
use crate::admin::{Objects, path};
use crate::args::Wait;
use crate::error::Error;
use crate::summary::{Settled, row, settled};

/// Which servers a command waits for.
#[derive(Debug, Clone)]
pub(crate) enum Of {
    All,
    Named(Vec<String>),
}

impl Of {
    fn covers(&self, server: &MCPServer) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(&server.name_any()),
        }
    }
}

/// Waits if asked to. Names that no server bears yet are waited for too.
pub(crate) async fn settle(admin: &Admin, wait: Wait, of: &Of) -> Result<(), Error> {
    if !wait.wait {
        return Ok(());
    }
    let mut waiting = Vec::new();
    let watch = async {
        let mut snapshots = admin.lines(path::WATCH, &()).await?;
        while let Some(line) = snapshots.next().await {
            let objects: Objects = serde_json::from_str(&line?)
                .map_err(|error| Error::Silent { request: path::WATCH.to_owned(), problem: error.to_string() })?;
            let concerned: Vec<&MCPServer> = objects.servers.iter().filter(|server| of.covers(server)).collect();
            let complete = match of {
                Of::All => true,
                Of::Named(names) => names.iter().all(|name| concerned.iter().any(|server| server.name_any() == *name)),
            };
            waiting = concerned
                .iter()
                .filter(|server| settled(server) == Settled::Not)
                .map(|server| server.name_any())
                .collect();
            if complete && waiting.is_empty() {
                let failed = concerned.iter().filter(|server| settled(server) == Settled::NotReady);
                let failed: Vec<String> = failed.map(|server| line_of(server)).collect();
                return if failed.is_empty() { Ok(()) } else { Err(Error::NotReady(failed.join("\n"))) };
            }
        }
        Err(Error::NoDaemon)
    };
    let result = tokio::time::timeout(wait.timeout.get(), watch).await;
    result
        .unwrap_or_else(|_| Err(Error::TimedOut(format!("not ready within {}: {}", wait.timeout, waiting.join(", ")))))
}

fn line_of(server: &MCPServer) -> String {
    let row = row(server);
    format!("{} is not ready ({}): {}", row.name, row.reason, row.note)
}
