//! Logs and commands of servers in pods.

use std::fmt;

use async_trait::async_trait;
use futures::io::AsyncBufReadExt;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, ListParams, LogParams};
use kube::{Api, Client, ResourceExt};
use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Console, ExecOutput, LogLine, LogQuery};
use tokio::io::AsyncReadExt;

use crate::labels;
use crate::pods::SERVER;

/// Longest line that is shown whole.
const LINE: usize = 64 << 10;
/// Most output of a command that is kept.
const OUTPUT: u64 = 4 << 20;

/// Reads pods' logs and runs commands in them, with the rights of whoever asks.
#[derive(Clone)]
pub struct PodConsole {
    client: Client,
}

impl fmt::Debug for PodConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodConsole").finish_non_exhaustive()
    }
}

impl PodConsole {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn names(&self, namespace: &str, uid: &str) -> Result<Vec<String>, RuntimeError> {
        let selector = format!("{}={uid}", labels::OWNER_UID);
        let pods = self.pods(namespace).list_metadata(&ListParams::default().labels(&selector)).await;
        let pods = pods.map_err(|source| failed(format!("could not list pods in namespace {namespace}"), source))?;
        Ok(pods
            .items
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(ResourceExt::name_any)
            .collect())
    }

    /// The logs of the pods of the server with this uid, for those who know no installation: as
    /// [`logs`](Console::logs).
    pub async fn follow(
        &self,
        namespace: &str,
        uid: &str,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        let names = self.names(namespace, uid).await?;
        let several = names.len() > 1;
        let mut all = Vec::new();
        for name in names {
            let params = LogParams {
                container: Some(SERVER.to_owned()),
                follow: query.follow,
                tail_lines: i64::try_from(query.tail).ok(),
                ..LogParams::default()
            };
            let lines = match self.pods(namespace).log_stream(&name, &params).await {
                Ok(lines) => lines.lines(),
                // It has said nothing yet.
                Err(kube::Error::Api(status)) if status.code == 400 && status.message.contains("waiting to start") => {
                    continue;
                }
                Err(source) => return Err(failed(format!("could not read the log of pod {name}"), source)),
            };
            let shown = move |mut line: String| {
                line.truncate(line.floor_char_boundary(LINE));
                if several { format!("{name} {line}") } else { line }
            };
            // A log that breaks off has ended.
            all.push(
                lines
                    .into_stream()
                    .take_while(|line| std::future::ready(line.is_ok()))
                    .filter_map(|line| std::future::ready(line.ok()))
                    .map(shown)
                    .boxed(),
            );
        }
        Ok(stream::select_all(all).boxed())
    }
}

fn failed(message: String, source: kube::Error) -> RuntimeError {
    RuntimeError { reason: "ApiFailed", message, hint: None, retry: Retry::Backoff, source: Some(Box::new(source)) }
}

#[async_trait]
impl Console for PodConsole {
    async fn logs(&self, owner: &OwnerKey, query: LogQuery) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        self.follow(&owner.namespace, &owner.uid, query).await
    }

    async fn exec(&self, owner: &OwnerKey, argv: &[String]) -> Result<ExecOutput, RuntimeError> {
        let Some(name) = self.names(&owner.namespace, &owner.uid).await?.into_iter().next() else {
            return Err(RuntimeError {
                reason: "NoPod",
                message: format!("{owner} has no pod to run a command in"),
                hint: None,
                retry: Retry::OnChange,
                source: None,
            });
        };
        let params = AttachParams::default().container(SERVER).stdout(true).stderr(true);
        let failed = |source| failed(format!("could not run a command in pod {name}"), source);
        let mut running = self.pods(&owner.namespace).exec(&name, argv.iter(), &params).await.map_err(failed)?;
        let (out, err) = (running.stdout(), running.stderr());
        let status = running.take_status();
        let (stdout, stderr) = tokio::join!(read_all(out), read_all(err));
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        let code = status.and_then(|status| match status.status.as_deref() {
            Some("Success") => Some(0),
            _ => {
                let causes = status.details.into_iter().flat_map(|details| details.causes.unwrap_or_default());
                causes
                    .filter(|cause| cause.reason.as_deref() == Some("ExitCode"))
                    .find_map(|cause| cause.message?.parse().ok())
            }
        });
        Ok(ExecOutput { code, stdout, stderr })
    }
}

async fn read_all(from: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What was read until it broke is what there is.
        from.take(OUTPUT).read_to_end(&mut bytes).await.ok();
    }
    bytes
}
