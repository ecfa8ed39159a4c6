//! One live connection to a server on stdio: requests of many callers multiplexed over one pipe.
//!
//! Every request gets an id of ours; the caller's id, progress token and subscription id are put back into what comes for
//! it, by splicing bytes. Nothing else of a message is touched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, splice, write_error, write_request, write_result};
use mcp_hub_mcp::framing::{LINE_MAX, Line, Lines};
use mcp_hub_mcp::{error, methods};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use crate::logs::Log;

/// Bytes that may wait for the server to read its stdin, over all callers, in KiB.
const OUTGOING_KIB: u32 = 64 << 10;
/// Messages that may wait for it, and requests under way.
const OUTGOING_MESSAGES: usize = 1024;
const PENDING_MAX: usize = 4096;
/// Notifications of one request that its caller has not taken yet; further ones are dropped, the answer never is.
const NOTIFICATIONS: usize = 256;
/// Notifications for everybody that a slow listener may lag behind.
const BROADCAST: usize = 256;

/// A connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outgoing: mpsc::Sender<(Vec<u8>, u32)>,
    budget: Arc<Semaphore>,
    routes: Mutex<Routes>,
    broadcast: broadcast::Sender<Bytes>,
    /// Where the server's own requests go when it serves a single client; a shared server's are refused.
    upward: Option<broadcast::Sender<Bytes>>,
    log: Log,
}

#[derive(Debug, Default)]
struct Routes {
    next: u64,
    pending: HashMap<u64, Pending>,
    closed: bool,
}

#[derive(Debug)]
struct Pending {
    /// The caller's id, as raw JSON.
    id: String,
    session: Option<String>,
    /// The caller's progress token, as raw JSON.
    progress: Option<String>,
    notifications: mpsc::Sender<Bytes>,
    answer: oneshot::Sender<Bytes>,
}

/// A request under way.
#[derive(Debug)]
pub struct Exchange {
    /// Notifications that belong to the request, in the caller's terms.
    pub notifications: mpsc::Receiver<Bytes>,
    /// The response; an error means that the server ended first.
    pub answer: oneshot::Receiver<Bytes>,
    /// Acts when dropped.
    _guard: Guard,
}

/// Forgets the request when its caller is gone, and tells the server where the era wants that.
#[derive(Debug)]
struct Guard {
    link: Link,
    number: u64,
    cancel: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What was answered is not pending any more.
        let pending = self.link.routes().pending.remove(&self.number);
        if self.cancel && pending.is_some() {
            let params = format!(r#"{{"requestId":{},"reason":"the client is gone"}}"#, self.number);
            self.link.try_send(write_request(None, methods::CANCELLED, Some(&params)));
        }
    }
}

/// Why a message did not reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("the server ended")]
    Closed,
    #[error("too many requests wait for the server")]
    Full,
}

/// What becomes of the request when its caller goes away (design: legacy disconnect does not cancel, modern does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    Cancel,
    Forget,
}

impl Link {
    /// Takes over the server's pipes. The connection is closed when either ends.
    pub fn new(stdin: ChildStdin, stdout: ChildStdout, log: Log, upward: Option<broadcast::Sender<Bytes>>) -> Self {
        let (outgoing, queue) = mpsc::channel(OUTGOING_MESSAGES);
        let link = Self(Arc::new(Inner {
            outgoing,
            budget: Arc::new(Semaphore::new(OUTGOING_KIB as usize)),
            routes: Mutex::default(),
            broadcast: broadcast::Sender::new(BROADCAST),
            upward,
            log,
        }));
        tokio::spawn(write(link.clone(), stdin, queue));
        tokio::spawn(read(link.clone(), stdout));
        link
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        self.0.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_closed(&self) -> bool {
        self.routes().closed
    }

    pub fn in_flight(&self) -> usize {
        self.routes().pending.len()
    }

    /// Notifications that belong to no request.
    pub fn listen(&self) -> broadcast::Receiver<Bytes> {
        self.0.broadcast.subscribe()
    }

    /// Sends a request under an id of ours. Waits while too many bytes are queued.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the request was not sent.
    pub async fn request(
        &self,
        message: &[u8],
        envelope: &Envelope<'_>,
        session: Option<&str>,
        on_disconnect: OnDisconnect,
    ) -> Result<Exchange, LinkError> {
        let Some(id) = envelope.id else { return Err(LinkError::Closed) };
        let params = Params::of(envelope.params);
        let progress = params.meta().progress_token;
        let (notify, notifications) = mpsc::channel(NOTIFICATIONS);
        let (respond, answer) = oneshot::channel();
        let number = {
            let mut routes = self.routes();
            if routes.closed {
                return Err(LinkError::Closed);
            }
            if routes.pending.len() >= PENDING_MAX {
                return Err(LinkError::Full);
            }
            routes.next += 1;
            let number = routes.next;
            let pending = Pending {
                id: id.get().to_owned(),
                session: session.map(str::to_owned),
                progress: progress.map(|token| token.get().to_owned()),
                notifications: notify,
                answer: respond,
            };
            routes.pending.insert(number, pending);
            number
        };
        // Forgotten without a word if it is not even sent.
        let mut guard = Guard { link: self.clone(), number, cancel: false };
        let ours = number.to_string();
        let mut replacements = vec![(id, ours.as_bytes())];
        replacements.extend(progress.map(|token| (token, ours.as_bytes())));
        self.send(splice(message, &mut replacements)).await?;
        guard.cancel = on_disconnect == OnDisconnect::Cancel;
        Ok(Exchange { notifications, answer, _guard: guard })
    }

    /// Sends a notification of a client, or its answer to a request of the server. A cancellation is readdressed.
    pub async fn notify(
        &self,
        message: &[u8],
        envelope: &Envelope<'_>,
        session: Option<&str>,
    ) -> Result<(), LinkError> {
        if envelope.method() != methods::CANCELLED {
            return self.send(message.to_vec()).await;
        }
        let Some(request_id) = Params::of(envelope.params).request_id else { return Ok(()) };
        let number = self.routes().pending.iter().find_map(|(number, pending)| {
            (pending.id == request_id.get() && pending.session.as_deref() == session).then_some(*number)
        });
        match number {
            Some(number) => {
                let ours = number.to_string();
                self.send(splice(message, &mut [(request_id, ours.as_bytes())])).await
            }
            // It was answered already.
            None => Ok(()),
        }
    }

    async fn send(&self, message: Vec<u8>) -> Result<(), LinkError> {
        let kib = weight(&message);
        let permit = self.0.budget.acquire_many(kib).await.map_err(|_| LinkError::Closed)?;
        self.0.outgoing.send((message, kib)).await.map_err(|_| LinkError::Closed)?;
        // The writer gives them back when the bytes are in the pipe.
        permit.forget();
        Ok(())
    }

    /// Sends what may be lost if the server does not read.
    fn try_send(&self, message: Vec<u8>) {
        let kib = weight(&message);
        if let Ok(permit) = self.0.budget.try_acquire_many(kib)
            && self.0.outgoing.try_send((message, kib)).is_ok()
        {
            permit.forget();
        }
    }

    /// Ends the connection: whoever waits for an answer is told.
    pub fn close(&self) {
        self.0.budget.close();
        let mut routes = self.routes();
        routes.closed = true;
        routes.pending.clear();
    }

    fn on_line(&self, line: Line) {
        match line {
            Line::Whole(bytes) => match Envelope::parse(&bytes) {
                Ok(envelope) => self.on_message(&bytes, &envelope),
                Err(_) => self.0.log.line(&[b"stdout: ", &bytes[..bytes.len().min(400)]].concat()),
            },
            Line::Oversize { head, tail, bytes } => {
                self.0
                    .log
                    .line(format!("stdout: a message of {bytes} bytes is over the limit of {LINE_MAX}").as_bytes());
                let number = id_in(&head).or_else(|| id_in(&tail));
                if let Some(pending) = number.and_then(|number| self.routes().pending.remove(&number)) {
                    let text = format!("the server's answer of {bytes} bytes is over the limit of {LINE_MAX}");
                    let answer = write_error(Some(&pending.id), error::ANSWER_UNREADABLE, &text);
                    // The caller may be gone.
                    pending.answer.send(answer.into()).ok();
                }
            }
        }
    }

    fn on_message(&self, message: &[u8], envelope: &Envelope<'_>) {
        match envelope.kind() {
            Kind::Response => {
                let Some(id) = envelope.id else { return self.0.log.line(b"stdout: an error without an id") };
                let number = id.get().parse::<u64>().ok();
                match number.and_then(|number| self.routes().pending.remove(&number)) {
                    Some(pending) => {
                        let mut replacements = vec![(id, pending.id.as_bytes())];
                        let subscription = subscription_in(envelope.result);
                        replacements.extend(subscription.map(|raw| (raw, pending.id.as_bytes())));
                        let answer = splice(message, &mut replacements);
                        pending.answer.send(answer.into()).ok();
                    }
                    None => self.0.log.line(b"stdout: an answer that nobody waits for"),
                }
            }
            Kind::Notification => self.on_notification(message, envelope),
            Kind::Request => self.on_request(message, envelope),
        }
    }

    fn on_notification(&self, message: &[u8], envelope: &Envelope<'_>) {
        let params = Params::of(envelope.params);
        let token = match &*envelope.method() {
            methods::PROGRESS => params.progress_token,
            _ => params.meta().subscription_id,
        };
        let Some(token) = token else {
            // Nobody listening is no loss: notifications of this kind may be missed.
            self.0.broadcast.send(Bytes::copy_from_slice(message)).ok();
            return;
        };
        let routes = self.routes();
        let Some(pending) = token.get().parse::<u64>().ok().and_then(|number| routes.pending.get(&number)) else {
            return;
        };
        let theirs = match &*envelope.method() {
            methods::PROGRESS => pending.progress.as_ref(),
            _ => Some(&pending.id),
        };
        if let Some(theirs) = theirs {
            let message = splice(message, &mut [(token, theirs.as_bytes())]);
            // A full queue drops progress; the answer has a way of its own.
            pending.notifications.try_send(message.into()).ok();
        }
    }

    fn on_request(&self, message: &[u8], envelope: &Envelope<'_>) {
        let Some(id) = envelope.id else { return };
        let method = envelope.method();
        if method == methods::PING {
            return self.try_send(write_result(id.get(), "{}"));
        }
        let delivered =
            self.0.upward.as_ref().is_some_and(|upward| upward.send(Bytes::copy_from_slice(message)).is_ok());
        if !delivered {
            // Clients share the server, so nobody can be asked in anybody's name.
            let text = format!("{method} is not offered to a server that clients share");
            self.try_send(write_error(Some(id.get()), error::METHOD_NOT_FOUND, &text));
        }
    }
}

fn weight(message: &[u8]) -> u32 {
    u32::try_from(message.len() / 1024 + 1).unwrap_or(u32::MAX).min(OUTGOING_KIB)
}

/// The subscription id that ends a `subscriptions/listen`.
fn subscription_in(result: Option<&serde_json::value::RawValue>) -> Option<&serde_json::value::RawValue> {
    let text = result?.get();
    memchr::memmem::find(text.as_bytes(), b"subscriptionId")?;
    Params::of(result).meta().subscription_id
}

/// The number after an `"id":` at one end of a line that could not be kept.
fn id_in(part: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(part);
    let (_, rest) = text.rsplit_once(r#""id":"#)?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

async fn write(link: Link, mut stdin: ChildStdin, mut queue: mpsc::Receiver<(Vec<u8>, u32)>) {
    while let Some((mut message, kib)) = queue.recv().await {
        // A line break inside a message is legal JSON and would cut the line: it can only stand between tokens, where a
        // space means the same.
        for byte in message.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
        message.push(b'\n');
        if stdin.write_all(&message).await.is_err() || stdin.flush().await.is_err() {
            break;
        }
        link.0.budget.add_permits(kib as usize);
    }
    link.close();
}

async fn read(link: Link, mut stdout: ChildStdout) {
    let mut lines = Lines::new(LINE_MAX);
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        lines.feed(&buffer[..count], |line| link.on_line(line));
    }
    link.close();
}
