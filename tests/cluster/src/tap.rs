//! A socket before an engine's own, which writes down what is asked and can lose it.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::engine::Engine;
use crate::error::Error;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The engine never gets it, and the connection ends.
    LoseRequest,
    /// The engine does it, and the connection ends instead of an answer.
    LoseAnswer,
}

/// Asked for each request, named `METHOD /PATH?QUERY` without the API's version; may take its time.
type Gate = dyn Fn(&str) -> Verdict + Send + Sync;

/// A second socket of an engine. Dropped, it and all connections through it end.
pub struct Tap {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    engine: PathBuf,
    gate: Box<Gate>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    closed: bool,
    asked: Vec<Asked>,
    /// How many of them count no more.
    forgotten: usize,
    /// Both ends of what is open, by number.
    open: HashMap<usize, [UnixStream; 2]>,
    connections: usize,
}

struct Asked {
    line: String,
    begun: Instant,
    /// When the first bytes of its answer came, or its connection ended.
    answered: Option<Instant>,
}

impl Log {
    fn counted(&self) -> impl Iterator<Item = &Asked> {
        self.asked.iter().skip(self.forgotten)
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Tap {
    /// Listens in the engine's folder.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn before(engine: &Engine, gate: impl Fn(&str) -> Verdict + Send + Sync + 'static) -> Result<Self, Error> {
        let path = engine.socket().with_file_name("tap.sock");
        let listener = UnixListener::bind(&path).map_err(Error::file("listen at", &path))?;
        let shared = Arc::new(Shared { engine: engine.socket(), gate: Box::new(gate), log: Mutex::default() });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.log().closed {
                    return;
                }
                // An engine that is away is for the client to see.
                if let Ok(client) = client
                    && let Ok(engine) = UnixStream::connect(&accepting.engine)
                {
                    accepting.clone().carry(client, engine);
                }
            }
        });
        Ok(Self { path, shared })
    }

    /// `unix://PATH` for clients.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// All requests since the beginning, or since [`Tap::forget`].
    pub fn asked(&self) -> Vec<String> {
        self.shared.log().counted().map(|asked| asked.line.clone()).collect()
    }

    pub fn forget(&self) {
        let mut log = self.shared.log();
        log.forgotten = log.asked.len();
    }

    /// The most requests with this in their line that were under way at one time.
    pub fn at_once(&self, part: &str) -> usize {
        let log = self.shared.log();
        let these: Vec<&Asked> = log.counted().filter(|asked| asked.line.contains(part)).collect();
        let under_way = |at: Instant| {
            let is = |asked: &&&Asked| asked.begun <= at && asked.answered.is_none_or(|answered| answered > at);
            these.iter().filter(is).count()
        };
        these.iter().map(|asked| under_way(asked.begun)).max().unwrap_or(0)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let open = {
            let mut log = self.shared.log();
            log.closed = true;
            std::mem::take(&mut log.open)
        };
        open.values().flatten().for_each(end);
        // Wakes the listener, which then ends. The engine's folder goes with the engine, and this file with it.
        UnixStream::connect(&self.path).map(drop).unwrap_or_default();
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// One that has ended already is what was wanted.
fn end(stream: &UnixStream) {
    stream.shutdown(Shutdown::Both).unwrap_or_default();
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries bytes both ways until one of them ends.
    fn carry(self: Arc<Self>, client: UnixStream, engine: UnixStream) {
        let copies = || Some([client.try_clone().ok()?, engine.try_clone().ok()?]);
        let (Some(ends), Some([to_client, from_engine])) = (copies(), copies()) else { return };
        let number = {
            let mut log = self.log();
            log.connections += 1;
            let number = log.connections;
            log.open.insert(number, ends);
            number
        };
        // The request that waits for its answer: its place in the log, and whether the answer is to be lost.
        let waiting: Arc<Mutex<Option<(usize, Verdict)>>> = Arc::default();
        let answers = (self.clone(), waiting.clone());
        thread::spawn(move || answers.0.answers(number, from_engine, to_client, &answers.1));
        thread::spawn(move || self.requests(number, client, engine, &waiting));
    }

    /// A client waits for its answer before it asks again, so that a request always begins what is read at once.
    fn requests(
        &self,
        number: usize,
        mut client: UnixStream,
        mut engine: UnixStream,
        waiting: &Mutex<Option<(usize, Verdict)>>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            if let Some(line) = request_line(&buffer[..length]) {
                let place = {
                    let mut log = self.log();
                    log.asked.push(Asked { line: line.clone(), begun: Instant::now(), answered: None });
                    log.asked.len() - 1
                };
                let verdict = (self.gate)(&line);
                *waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, verdict));
                if verdict == Verdict::LoseRequest {
                    break;
                }
            }
            if engine.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        self.close(number);
    }

    fn answers(
        &self,
        number: usize,
        mut engine: UnixStream,
        mut client: UnixStream,
        waiting: &Mutex<Option<(usize, Verdict)>>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = engine.read(&mut buffer);
            let answered = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((place, _)) = answered {
                self.log().asked[place].answered = Some(Instant::now());
            }
            let is_lost = answered.is_some_and(|(_, verdict)| verdict == Verdict::LoseAnswer);
            match read {
                Ok(length @ 1..) if !is_lost && client.write_all(&buffer[..length]).is_ok() => {}
                _ => break,
            }
        }
        self.close(number);
    }

    fn close(&self, number: usize) {
        let ends = self.log().open.remove(&number);
        ends.iter().flatten().for_each(end);
    }
}

/// `METHOD /PATH` of what begins with a request.
fn request_line(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_suffix(" HTTP/1.1")?;
    let (method, path) = line.split_once(' ')?;
    let rest = path.strip_prefix("/v1.").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    Some(format!("{method} {}", rest.unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_from_the_rest_of_one() {
        let head = b"POST /v1.47/containers/create?name=a HTTP/1.1\r\nhost: engine\r\n\r\n{}";
        assert_eq!(request_line(head).as_deref(), Some("POST /containers/create?name=a"));
        assert_eq!(request_line(b"GET /_ping HTTP/1.1\r\n\r\n").as_deref(), Some("GET /_ping"));
        assert_eq!(request_line(b"{\"Image\": \"a\"}"), None);
    }
}
