//! Logs of servers in containers, kept by the engine, and commands run in them.

use std::sync::Arc;

use async_trait::async_trait;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::query_parameters::LogsOptions;
use bytes::BytesMut;
use futures::stream::{BoxStream, StreamExt};
use mcp_hub_reconcile::error::RuntimeError;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Console, ExecOutput, LogLine, LogQuery};
use tokio::sync::mpsc;

use super::engine::{Engine, EngineError};
use super::names;
use super::place::EnginePlace;

/// Longer lines are cut.
const LINE_MAX: usize = 64 << 10;
/// Most past lines that are given.
const TAIL_MAX: usize = 100_000;
/// What of a dead bridge's output is shown.
const LAST_LINES: usize = 5;
/// Most that a command may say; more is cut.
const OUTPUT_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct ContainerConsole {
    place: Arc<EnginePlace>,
}

impl ContainerConsole {
    pub(super) fn new(place: Arc<EnginePlace>) -> Self {
        Self { place }
    }
}

/// The end of what a container said, for an error.
pub(super) async fn last_lines(engine: &Engine, name: &str) -> String {
    let lines = lines(engine, name, LogQuery { tail: LAST_LINES, follow: false });
    lines.take(LAST_LINES).collect::<Vec<_>>().await.join("\n")
}

#[async_trait]
impl Console for ContainerConsole {
    async fn logs(&self, owner: &OwnerKey, query: LogQuery) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        let (engine, name) = (self.place.here()?, names::container(owner));
        match engine.container(&name).await? {
            Some(_) => Ok(lines(&engine, &name, query)),
            None => Err(EngineError::NotRunning { owner: owner.to_string() }.into()),
        }
    }

    async fn exec(&self, owner: &OwnerKey, argv: &[String]) -> Result<ExecOutput, RuntimeError> {
        let (engine, name) = (self.place.here()?, names::container(owner));
        let failed = |error| RuntimeError::from(engine.failed("run a command in", &name, error));
        let options = CreateExecOptions {
            cmd: Some(argv.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let made = engine.api.create_exec(&name, options).await.map_err(failed)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let StartExecResults::Attached { mut output, .. } =
            engine.api.start_exec(&made.id, None).await.map_err(failed)?
        {
            while let Some(part) = output.next().await {
                use bollard::container::LogOutput::{Console, StdErr, StdIn, StdOut};
                let (into, message) = match part.map_err(failed)? {
                    StdOut { message } | Console { message } => (&mut stdout, message),
                    StdErr { message } => (&mut stderr, message),
                    StdIn { .. } => continue,
                };
                let room = OUTPUT_MAX.saturating_sub(into.len());
                into.extend_from_slice(&message[..message.len().min(room)]);
            }
        }
        let ended = engine.api.inspect_exec(&made.id).await.map_err(failed)?;
        Ok(ExecOutput { code: ended.exit_code.and_then(|code| i32::try_from(code).ok()), stdout, stderr })
    }
}

/// The lines of a container's log; ends with the container.
fn lines(engine: &Engine, name: &str, query: LogQuery) -> BoxStream<'static, LogLine> {
    let options = LogsOptions {
        follow: query.follow,
        stdout: true,
        stderr: true,
        tail: query.tail.min(TAIL_MAX).to_string(),
        ..LogsOptions::default()
    };
    let (engine, name) = (engine.clone(), name.to_owned());
    let (sender, receiver) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut parts = engine.api.logs(&name, Some(options));
        let mut rest = BytesMut::new();
        while let Some(Ok(part)) = parts.next().await {
            rest.extend_from_slice(part.as_ref());
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1);
                if sender.send(shown(&line)).await.is_err() {
                    return;
                }
            }
            if rest.len() > LINE_MAX {
                let line = rest.split();
                if sender.send(shown(&line)).await.is_err() {
                    return;
                }
            }
        }
        if !rest.is_empty() {
            // Nobody listening is no loss.
            sender.send(shown(&rest)).await.ok();
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }).boxed()
}

fn shown(line: &[u8]) -> LogLine {
    String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]).trim_end().to_owned()
}
