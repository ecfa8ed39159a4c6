//! Logs of process servers: the bridge's `server.log` and its rotated files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use mcp_hub_reconcile::error::RuntimeError;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Console, ExecOutput, LogLine, LogQuery};
use tokio::sync::mpsc;

use super::ProcessError;
use super::folder::RunFolder;

/// Files looked at for past lines: the current one and what rotation keeps.
const ROTATED: u32 = 3;
/// Longer lines are cut.
const LINE_MAX: usize = 64 << 10;
/// Most past lines that are given.
const TAIL_MAX: usize = 100_000;
/// New lines show this much later at most.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct ProcessConsole {
    run_dir: PathBuf,
}

impl ProcessConsole {
    pub(super) fn new(run_dir: PathBuf) -> Self {
        Self { run_dir }
    }
}

#[async_trait]
impl Console for ProcessConsole {
    async fn logs(&self, owner: &OwnerKey, query: LogQuery) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        let folder = RunFolder::of(&self.run_dir, owner);
        if !folder.exists() {
            return Err(ProcessError::Unknown { owner: owner.to_string() }.into());
        }
        let (lines, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            let path = folder.server_log();
            let mut tail = VecDeque::new();
            for number in (1..=ROTATED).rev() {
                past(&path.with_extension(format!("log.{number}")), query.tail, &mut tail);
            }
            let mut file = inode(&path);
            let mut position = past(&path, query.tail, &mut tail);
            for line in tail {
                if lines.send(line).await.is_err() {
                    return;
                }
            }
            while query.follow && folder.exists() {
                let mut new = Vec::new();
                let current = inode(&path);
                if current != file {
                    // Rotated since the last look: first the rest of the old file, then the new one from its beginning.
                    let old = path.with_extension("log.1");
                    if file.is_some() && inode(&old) == file {
                        new = from(&old, position).0;
                    }
                    (file, position) = (current, 0);
                }
                let (more, end) = from(&path, position);
                // Rotated between the two looks: the next round reads it under its new name.
                if inode(&path) == file {
                    new.extend(more);
                    position = end;
                }
                for line in new {
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(POLL) => {}
                    () = lines.closed() => return,
                }
            }
        });
        Ok(futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }).boxed())
    }

    async fn exec(&self, _: &OwnerKey, _: &[String]) -> Result<ExecOutput, RuntimeError> {
        Err(ProcessError::NoExec.into())
    }
}

/// Which file is behind a path, whatever it is called later.
fn inode(path: &std::path::Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|file| file.ino())
}

/// Adds a file's lines to `tail`, of which the last ones are kept; gives the file's end.
fn past(path: &std::path::Path, keep: usize, tail: &mut VecDeque<LogLine>) -> u64 {
    let (lines, end) = from(path, 0);
    for line in lines {
        tail.push_back(line);
        if tail.len() > keep.min(TAIL_MAX) {
            tail.pop_front();
        }
    }
    end
}

/// Whole lines from `position` on, and the position after the last of them. A rotated file is 10 MiB at most.
fn from(path: &std::path::Path, position: u64) -> (Vec<LogLine>, u64) {
    let mut end = position;
    let mut lines = Vec::new();
    let Ok(mut file) = File::open(path) else { return (lines, end) };
    if file.seek(SeekFrom::Start(position)).is_err() {
        return (lines, end);
    }
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while let Ok(count @ 1..) = reader.read_until(b'\n', &mut line) {
        if line.last() != Some(&b'\n') {
            break;
        }
        end += count as u64;
        lines.push(String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]).trim_end().to_owned());
        line.clear();
    }
    (lines, end)
}
