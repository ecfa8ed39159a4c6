//! The server's log: `server.log` in the run folder, rotated, and the tail for status.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mcp_hub_dataplane_api::launch::LogPolicy;
use tokio::io::{AsyncRead, AsyncReadExt};

const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 400;
/// Longer lines are cut in the log.
const LINE_MAX: usize = 64 << 10;

/// Shared by all readers of the server's output.
#[derive(Debug, Clone)]
pub struct Log(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    policy: LogPolicy,
    file: Option<File>,
    written: u64,
    tail: VecDeque<String>,
}

impl Log {
    pub fn new(folder: &std::path::Path, policy: LogPolicy) -> Self {
        let path = folder.join("server.log");
        Self(Arc::new(Mutex::new(State { path, policy, file: None, written: 0, tail: VecDeque::new() })))
    }

    /// Writes one line with the time before it. A full disk loses lines, never the server.
    pub fn line(&self, line: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]);
        let line = line.trim_end();
        let mut short = line.to_owned();
        short.truncate(short.floor_char_boundary(TAIL_BYTES));
        if state.tail.len() == TAIL_LINES {
            state.tail.pop_front();
        }
        state.tail.push_back(short);
        if state.write(line).is_err() {
            state.file = None;
        }
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tail.iter().cloned().collect()
    }

    /// Copies a stream line by line until it ends.
    pub async fn copy(self, mut stream: impl AsyncRead + Unpin) {
        let mut lines = mcp_hub_mcp::framing::Lines::new(LINE_MAX);
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            lines.feed(&buffer[..count], |line| match line {
                mcp_hub_mcp::framing::Line::Whole(line) => self.line(&line),
                mcp_hub_mcp::framing::Line::Oversize { head, bytes, .. } => {
                    self.line(&[&head[..], format!("… ({bytes} bytes)").as_bytes()].concat());
                }
            });
        }
    }
}

impl State {
    fn write(&mut self, line: &str) -> io::Result<()> {
        let text = format!("{:.3} {line}\n", jiff::Timestamp::now());
        if self.written + text.len() as u64 > self.policy.max_bytes && self.written > 0 {
            self.rotate()?;
        }
        if self.file.is_none() {
            let file = File::options().create(true).append(true).open(&self.path)?;
            self.written = file.metadata()?.len();
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            file.write_all(text.as_bytes())?;
            self.written += text.len() as u64;
        }
        Ok(())
    }

    /// `server.log` becomes `server.log.1`, that `.2`, and the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.written = 0;
        let numbered = |number: u32| self.path.with_extension(format!("log.{number}"));
        for number in (1..self.policy.files).rev() {
            if numbered(number).exists() {
                std::fs::rename(numbered(number), numbered(number + 1))?;
            }
        }
        match self.policy.files {
            0 => std::fs::remove_file(&self.path),
            _ => std::fs::rename(&self.path, numbered(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_rotated_and_only_so_many_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), LogPolicy { max_bytes: 200, files: 2 });
        for number in 0..50 {
            log.line(format!("line {number}").as_bytes());
        }
        let mut names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["server.log", "server.log.1", "server.log.2"]);
        for name in names {
            assert!(std::fs::metadata(folder.path().join(name)).unwrap().len() <= 200);
        }
        assert!(std::fs::read_to_string(folder.path().join("server.log")).unwrap().contains("line 49"));
        assert_eq!((log.tail().len(), log.tail().last().unwrap().as_str()), (20, "line 49"));
    }
}
