//! The server's log: `server.log` in the run folder, rotated, or the bridge's own stderr; and the tail for status.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mcp_hub_dataplane_api::launch::LogPolicy;
use mcp_hub_mcp::framing::{Line, Lines};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 400;
/// Longer lines are cut in the log.
const LINE_MAX: usize = 64 << 10;
/// Pieces that wait for stderr to be taken, each of a few lines. After that the server's own writes wait.
const WAITING: usize = 16;
/// Whoever reads stderr has this long to take the last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Shared by all readers of the server's output.
#[derive(Debug, Clone)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tail: Mutex<VecDeque<String>>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    File(Mutex<LogFile>),
    /// As a container's log: whoever keeps it adds the time.
    Stderr(mpsc::Sender<Piece>),
}

#[derive(Debug)]
enum Piece {
    Lines(Vec<u8>),
    /// All before it has been written.
    Written(oneshot::Sender<()>),
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    policy: LogPolicy,
    file: Option<File>,
    written: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    pub fn new(folder: &std::path::Path, policy: LogPolicy) -> Self {
        let path = folder.join("server.log");
        let file = LogFile { path, policy, file: None, written: 0 };
        Self(Arc::new(Inner { tail: Mutex::default(), place: Place::File(Mutex::new(file)) }))
    }

    /// To the bridge's own stderr. Needs a runtime.
    pub fn to_stderr() -> Self {
        let (sender, pieces) = mpsc::channel(WAITING);
        tokio::spawn(write(pieces));
        Self(Arc::new(Inner { tail: Mutex::default(), place: Place::Stderr(sender) }))
    }

    /// Logs one line. A full disk loses lines, and so does a stderr that nobody takes; never the server.
    pub fn line(&self, line: &[u8]) {
        let line = self.remember(line);
        match &self.0.place {
            Place::File(file) => lock(file).line(&line),
            Place::Stderr(sender) => sender.try_send(Piece::Lines((line + "\n").into_bytes())).unwrap_or_default(),
        }
    }

    /// Says something of the bridge's own where people look for why a container does not work. A file's readers look at
    /// the status.
    pub fn say(&self, text: &str) {
        if let Place::Stderr(sender) = &self.0.place {
            sender.try_send(Piece::Lines(format!("mcp-bridge: {text}\n").into_bytes())).unwrap_or_default();
        }
    }

    /// Keeps a line for the tail, and gives what is to be logged of it.
    fn remember(&self, line: &[u8]) -> String {
        let line = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]).trim_end().to_owned();
        let short = line[..line.floor_char_boundary(TAIL_BYTES)].to_owned();
        let mut tail = lock(&self.0.tail);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(short);
        line
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> Vec<String> {
        lock(&self.0.tail).iter().cloned().collect()
    }

    /// Copies a stream line by line until it ends.
    pub async fn copy(self, mut stream: impl AsyncRead + Unpin) {
        let mut lines = Lines::new(LINE_MAX);
        let mut buffer = vec![0; 4096];
        loop {
            let count = stream.read(&mut buffer).await.unwrap_or(0);
            // The last line may have no end.
            let bytes = if count == 0 { b"\n" } else { &buffer[..count] };
            let mut piece = Vec::new();
            lines.feed(bytes, |line| {
                let line = match line {
                    Line::Whole(line) => line,
                    Line::Oversize { head, bytes, .. } => [&head[..], format!("… ({bytes} bytes)").as_bytes()].concat(),
                };
                match &self.0.place {
                    Place::File(_) => self.line(&line),
                    Place::Stderr(_) => piece.extend((self.remember(&line) + "\n").into_bytes()),
                }
            });
            if let Place::Stderr(sender) = &self.0.place
                && !piece.is_empty()
            {
                // The server waits here when nobody takes its log, as it would without us.
                sender.send(Piece::Lines(piece)).await.unwrap_or_default();
            }
            if count == 0 {
                return;
            }
        }
    }

    /// Waits until what was logged so far has been written, if somebody takes it.
    pub async fn written(&self) {
        let Place::Stderr(sender) = &self.0.place else { return };
        let (written, done) = oneshot::channel();
        let all = async {
            sender.send(Piece::Written(written)).await.ok()?;
            done.await.ok()
        };
        tokio::time::timeout(LAST_WORDS, all).await.unwrap_or_default();
    }
}

async fn write(mut pieces: mpsc::Receiver<Piece>) {
    let mut stderr = tokio::io::stderr();
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Lines(lines) => {
                // A closed stderr leaves nobody to tell.
                stderr.write_all(&lines).await.ok();
                stderr.flush().await.ok();
            }
            Piece::Written(done) => done.send(()).unwrap_or_default(),
        }
    }
}

impl LogFile {
    /// Writes one line with the time before it.
    fn line(&mut self, line: &str) {
        if self.write(line).is_err() {
            self.file = None;
        }
    }

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
