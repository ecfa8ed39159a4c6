//! `mcpctl logs`: what a server wrote.

use futures::StreamExt;
use mcp_hub_reconcile::ports::LogQuery;
use regex::Regex;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Logs;
use crate::error::Error;
use crate::output;
use crate::target::Target;

pub(crate) async fn run(target: &dyn Target, args: &Logs) -> Result<(), Error> {
    let pattern =
        args.grep.as_deref().map(Regex::new).transpose().map_err(|error| Error::Invalid {
            message: format!("--grep is no regular expression: {error}"),
            hint: None,
        })?;
    let query = LogQuery { tail: args.tail, follow: args.follow };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|source| Error::File {
        action: "watch for",
        path: "signals".into(),
        source,
    })?;
    let mut lines = target.logs(&target.named(&args.namespace, &args.name), query).await?;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = interrupt.recv() => return Ok(()),
        };
        let Some(line) = line.transpose()? else { return Ok(()) };
        if pattern.as_ref().is_none_or(|pattern| pattern.is_match(&line)) {
            output::data(&(line + "\n"))?;
        }
    }
}
