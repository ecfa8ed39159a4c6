//! `mcpctl stdio`: a hub's endpoint on stdin and stdout, for clients that start programs and know no HTTP.
//!
//! Messages pass as they are; only what HTTP wants in headers is taken from them (session, protocol version, method,
//! name). A client of the stateless era cancels with a notification on stdio and by closing the stream on HTTP.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, string, write_error};
use mcp_hub_mcp::framing::{LINE_MAX, Line, Lines};
use mcp_hub_mcp::{error as code, headers, methods, sse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::args::Stdio;
use crate::error::{Error, Exit};
use crate::mcp_client::McpClient;
use crate::output;
use crate::target::Target;

/// Answers that may wait for the client to read stdout.
const OUTGOING: usize = 64;
/// Between two attempts to open the stream of notifications.
const AGAIN: Duration = Duration::from_secs(1);
/// A hub that was just started needs a moment to bind its port.
const HUB_START: Duration = Duration::from_secs(20);

pub(crate) async fn run(target: &dyn Target, args: &Stdio) -> Result<(), Error> {
    target.wake(&args.start).await?;
    let hub = target.hub(&args.hub);
    let start = std::time::Instant::now();
    let client = loop {
        match McpClient::of(target, &hub, args.server.as_deref()).await {
            Ok(client) => break client,
            // Only what has no endpoint yet may have one soon.
            Err(error) if error.exit() != Exit::Failed || start.elapsed() > HUB_START => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let (lines, outgoing) = mpsc::channel(OUTGOING);
    let relay = Relay(Arc::new(Inner { client, lines, session: Mutex::default(), running: Mutex::default() }));
    let writer = tokio::spawn(write(outgoing));
    let result = relay.read().await;
    drop(relay);
    // Everything that was answered is written before the program ends.
    writer.await.map_err(|error| Error::Output(error.into()))?;
    result
}

async fn write(mut lines: mpsc::Receiver<Bytes>) {
    let mut stdout = tokio::io::stdout();
    while let Some(line) = lines.recv().await {
        // A client that went away ends stdin too.
        if stdout.write_all(&line).await.is_err()
            || stdout.write_all(b"\n").await.is_err()
            || stdout.flush().await.is_err()
        {
            return;
        }
    }
}

#[derive(Debug, Clone)]
struct Relay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: McpClient,
    lines: mpsc::Sender<Bytes>,
    session: Mutex<Session>,
    /// Requests under way by their raw id, for cancellation.
    running: Mutex<HashMap<String, AbortHandle>>,
}

/// What `initialize` settled.
#[derive(Debug, Default, Clone)]
struct Session {
    id: Option<String>,
    version: Option<String>,
}

impl Relay {
    /// Takes messages from stdin until it ends; then requests under way are given up.
    async fn read(&self) -> Result<(), Error> {
        let mut stdin = tokio::io::stdin();
        let (mut lines, mut buffer) = (Lines::new(LINE_MAX), vec![0; 64 << 10]);
        let mut tasks = JoinSet::new();
        loop {
            let count = stdin.read(&mut buffer).await.map_err(Error::file("read", "stdin"))?;
            if count == 0 {
                break;
            }
            let mut messages = Vec::new();
            lines.feed(&buffer[..count], |line| messages.push(line));
            for message in messages {
                match message {
                    Line::Whole(message) => self.take(message, &mut tasks).await,
                    Line::Oversize { bytes, .. } => {
                        let text = format!("a message of {bytes} bytes is over the limit of {LINE_MAX}");
                        self.put(write_error(None, code::MESSAGE_TOO_LARGE, &text).into()).await;
                    }
                }
            }
            while tasks.try_join_next().is_some() {}
        }
        tasks.shutdown().await;
        Ok(())
    }

    async fn take(&self, message: Vec<u8>, tasks: &mut JoinSet<()>) {
        let envelope = match Envelope::parse(&message) {
            Ok(envelope) => envelope,
            Err(problem) => {
                let answer = write_error(None, code::INVALID_REQUEST, &problem.to_string());
                return self.put(answer.into()).await;
            }
        };
        let method = envelope.method().into_owned();
        let id = envelope.id.map(|id| id.get().to_owned());
        let modern = modern_version(&envelope);
        if method == methods::CANCELLED && self.is_modern() {
            let cancelled = Params::of(envelope.params).request_id.map(|id| id.get().to_owned());
            let running = cancelled.and_then(|id| self.running().remove(&id));
            if let Some(task) = running {
                task.abort();
            }
            return;
        }
        let mut extra = vec![];
        if let Some(version) = &modern {
            extra.push((headers::PROTOCOL_VERSION, version.clone()));
            extra.push((headers::METHOD, method.clone()));
            let params = Params::of(envelope.params);
            let named = match &*method {
                methods::TOOLS_CALL | methods::PROMPTS_GET => params.name.and_then(string),
                methods::RESOURCES_READ => params.uri.and_then(string),
                _ => None,
            };
            extra.extend(named.map(|name| (headers::NAME, headers::encode(&name).into_owned())));
        } else {
            let session = self.0.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
            extra.extend(session.id.map(|id| (headers::SESSION_ID, id)));
            extra.extend(session.version.map(|version| (headers::PROTOCOL_VERSION, version)));
        }
        let kind = envelope.kind();
        let body = String::from_utf8_lossy(&message).into_owned();
        let relay = self.clone();
        if method == methods::INITIALIZE || kind != Kind::Request {
            // In order: what follows `initialize` needs its session, and a notification may belong to what follows it.
            relay.exchange(body, extra, id, &method).await;
            if method == methods::INITIALIZED {
                tasks.spawn(relay.notifications());
            }
            return;
        }
        let key = id.clone().unwrap_or_default();
        let task = tasks.spawn({
            let key = key.clone();
            async move {
                relay.exchange(body, extra, id, &method).await;
                relay.running().remove(&key);
            }
        });
        self.running().insert(key, task);
    }

    /// Sends one message and writes what comes back; a failure becomes the answer.
    async fn exchange(&self, body: String, extra: Vec<(&str, String)>, id: Option<String>, method: &str) {
        let failed = match self.0.client.send(Method::POST, &extra, body).await {
            Ok(response) => {
                if method == methods::INITIALIZE {
                    let session = response.headers().get(headers::SESSION_ID).and_then(|id| id.to_str().ok());
                    self.0.session.lock().unwrap_or_else(PoisonError::into_inner).id = session.map(str::to_owned);
                }
                match self.deliver(response, method == methods::INITIALIZE).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        match id {
            Some(id) => self.put(write_error(Some(&id), code::SERVER_UNAVAILABLE, &failed.to_string()).into()).await,
            // Notifications have no answer.
            None => output::say(&format!("a message was lost: {failed}")),
        }
    }

    async fn deliver(&self, response: Response<Incoming>, initializes: bool) -> Result<(), Error> {
        let status = response.status();
        let kind = response.headers().get("content-type").map(|kind| kind.as_bytes().to_vec()).unwrap_or_default();
        let mut body = response.into_body();
        if kind.starts_with(b"text/event-stream") {
            let mut decoder = sse::Decoder::new(LINE_MAX);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.0.client.lost(&error))?;
                let mut events = Vec::new();
                decoder
                    .feed(frame.data_ref().unwrap_or(&Bytes::new()), |event| events.push(event))
                    .map_err(|error| self.0.client.lost(&error))?;
                for event in events.into_iter().filter(|event| !event.is_empty()) {
                    self.note(&event, initializes);
                    self.put(event.into()).await;
                }
            }
            return Ok(());
        }
        let bytes = body.collect().await.map_err(|error| self.0.client.lost(&error))?.to_bytes();
        if bytes.is_empty() || status == http::StatusCode::ACCEPTED {
            return Ok(());
        }
        if Envelope::parse(&bytes).is_err() {
            let message = String::from_utf8_lossy(&bytes).chars().take(300).collect();
            return Err(Error::Http { status: status.as_u16(), message });
        }
        self.note(&bytes, initializes);
        self.put(bytes).await;
        Ok(())
    }

    /// Remembers the version that `initialize` settled.
    fn note(&self, message: &[u8], initializes: bool) {
        if initializes && let Ok(message) = serde_json::from_slice::<serde_json::Value>(message) {
            let version = message["result"]["protocolVersion"].as_str().map(str::to_owned);
            self.0.session.lock().unwrap_or_else(PoisonError::into_inner).version = version;
        }
    }

    /// The stream of what belongs to no request, opened again whenever it ends.
    async fn notifications(self) {
        loop {
            let session = self.0.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(id) = session.id else { return };
            let mut extra = vec![(headers::SESSION_ID, id)];
            extra.extend(session.version.map(|version| (headers::PROTOCOL_VERSION, version)));
            if let Ok(response) = self.0.client.send(Method::GET, &extra, String::new()).await {
                match response.status() {
                    http::StatusCode::METHOD_NOT_ALLOWED | http::StatusCode::NOT_FOUND => return,
                    // A broken stream is opened again below.
                    status if status.is_success() => self.deliver(response, false).await.unwrap_or_default(),
                    _ => {}
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// One line to stdout. Pretty-printed JSON is legal on HTTP, and a line break would cut it here.
    async fn put(&self, message: Bytes) {
        let line = match message.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            true => message.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect(),
            false => message,
        };
        // The writer ends when the client is gone.
        self.0.lines.send(line).await.ok();
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, AbortHandle>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has not initialised a session.
    fn is_modern(&self) -> bool {
        self.0.session.lock().unwrap_or_else(PoisonError::into_inner).version.is_none()
    }
}

fn modern_version(envelope: &Envelope<'_>) -> Option<String> {
    Params::of(envelope.params).meta().protocol_version.and_then(string).map(std::borrow::Cow::into_owned)
}
