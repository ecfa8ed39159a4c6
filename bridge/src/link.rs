//! One live connection to a server: requests of many callers multiplexed over one channel.
//!
//! Every request gets an id of ours; the caller's id, progress token and subscription id are put back into what comes for
//! it, by splicing bytes. Nothing else of a message is touched.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mcp_hub_dataplane_api::launch::Roots;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, splice, write_error, write_request, write_result};
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::numbering::{Marks, Numbered, number};
use mcp_hub_mcp::{error, methods};
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::budget::{Buffers, Share};
use crate::logs::Log;
use crate::mailbox::Mailbox;

/// Messages that may wait for the server, and requests under way.
const OUTGOING_MESSAGES: usize = 1024;
const PENDING_MAX: usize = 4096;
/// Messages that belong to one request and that its caller has not taken yet; further notifications are dropped, the
/// answer never is.
const NOTIFICATIONS: usize = 256;
/// Notifications for everybody that a slow listener may lag behind.
const BROADCAST: usize = 256;
/// What is kept of a line in the log that is no message.
const NOISE_KEPT: usize = 400;

/// A connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outgoing: mpsc::Sender<Queued>,
    buffers: Buffers,
    routes: Mutex<Routes>,
    broadcast: broadcast::Sender<Bytes>,
    upward: Upward,
    closed: watch::Sender<bool>,
    log: Log,
}

/// A message on its way to the server, with its share of the buffers.
#[derive(Debug)]
pub struct Queued {
    pub message: Vec<u8>,
    delivered: Arc<AtomicBool>,
    _share: Share,
}

impl Queued {
    /// The server has got the message, or may have.
    pub fn delivered(self) {
        self.delivered.store(true, Ordering::Relaxed);
    }
}

/// The end from which the messages for the server are taken.
pub type Outgoing = mpsc::Receiver<Queued>;

/// Where the server's own requests go, and its notifications that belong to no call.
#[derive(Debug, Clone)]
pub enum Upward {
    /// Clients share the server: requests are refused, notifications are for everybody.
    Shared,
    /// One client has the server for itself.
    Client { mailbox: Arc<Mailbox>, roots: Roots },
}

/// What a request is to the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Of a client.
    Call(OnDisconnect),
    /// A stream without an end: no call in the sense of activity.
    Subscription,
    /// Of the bridge itself: handshake, probe, list.
    Own,
}

/// What becomes of a call when its caller goes away (design: legacy disconnect does not cancel, modern does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    Cancel,
    Forget,
}

#[derive(Debug, Default)]
struct Routes {
    pending: Numbered<Caller>,
    /// Ids of the server's requests that the client has not answered yet, as raw JSON.
    asked: HashSet<String>,
    closed: bool,
}

/// Who waits for a request.
#[derive(Debug)]
struct Caller {
    session: Option<String>,
    purpose: Purpose,
    /// The request asked for log messages (2026-07-28, "Logging").
    wants_log: bool,
    messages: mpsc::Sender<Bytes>,
    answer: oneshot::Sender<Bytes>,
}

/// A request under way.
#[derive(Debug)]
pub struct Exchange {
    /// What comes before the answer, in the caller's terms.
    pub messages: mpsc::Receiver<Bytes>,
    /// The response; an error means that the server ended first.
    pub answer: oneshot::Receiver<Bytes>,
    delivered: Arc<AtomicBool>,
    /// Acts when dropped.
    guard: Guard,
}

impl Exchange {
    /// Whether the server may have seen the request. If it ended without, another one may be asked.
    pub fn was_delivered(&self) -> bool {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Nobody waits any more, and the server is told.
    pub fn give_up(mut self) {
        self.guard.cancel = true;
    }
}

/// Forgets the request when its caller is gone, and tells the server where that is wanted.
#[derive(Debug)]
struct Guard {
    link: Link,
    number: u64,
    cancel: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What was answered is not pending any more.
        let pending = self.link.routes().pending.remove(self.number);
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

impl Link {
    /// A connection whose channel is served by whoever has the other end: it feeds [`Self::on_message`], and calls
    /// [`Self::close`] when the channel ends.
    pub fn new(buffers: Buffers, log: Log, upward: Upward) -> (Self, Outgoing) {
        let (outgoing, queue) = mpsc::channel(OUTGOING_MESSAGES);
        let link = Self(Arc::new(Inner {
            outgoing,
            buffers,
            routes: Mutex::default(),
            broadcast: broadcast::Sender::new(BROADCAST),
            upward,
            closed: watch::Sender::new(false),
            log,
        }));
        (link, queue)
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        self.0.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_closed(&self) -> bool {
        self.routes().closed
    }

    /// Resolves when the connection is closed.
    pub async fn closed(&self) {
        // The sender lives as long as we do.
        self.0.closed.subscribe().wait_for(|closed| *closed).await.ok();
    }

    /// Calls of clients under way.
    pub fn in_flight(&self) -> usize {
        self.routes().pending.callers().filter(|caller| matches!(caller.purpose, Purpose::Call(_))).count()
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
        purpose: Purpose,
    ) -> Result<Exchange, LinkError> {
        let Some(marks) = Marks::of(envelope) else { return Err(LinkError::Closed) };
        let (notify, messages) = mpsc::channel(NOTIFICATIONS);
        let (respond, answer) = oneshot::channel();
        let number = {
            let mut routes = self.routes();
            if routes.closed {
                return Err(LinkError::Closed);
            }
            if routes.pending.len() >= PENDING_MAX {
                return Err(LinkError::Full);
            }
            let caller = Caller {
                session: session.map(str::to_owned),
                purpose,
                wants_log: envelope.params.is_some_and(|params| {
                    memchr::memmem::find(params.get().as_bytes(), b"io.modelcontextprotocol/logLevel").is_some()
                }),
                messages: notify,
                answer: respond,
            };
            routes.pending.add(&marks, caller)
        };
        // Forgotten without a word if it is not even sent.
        let mut guard = Guard { link: self.clone(), number, cancel: false };
        let delivered = Arc::new(AtomicBool::new(false));
        self.queue(marks.numbered(message, number), delivered.clone()).await?;
        guard.cancel = match purpose {
            Purpose::Call(OnDisconnect::Cancel) | Purpose::Subscription => true,
            Purpose::Call(OnDisconnect::Forget) | Purpose::Own => false,
        };
        Ok(Exchange { messages, answer, delivered, guard })
    }

    /// Sends a notification of a client. A cancellation is readdressed.
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
        let is_theirs = |caller: &Caller| caller.session.as_deref() == session;
        let number = self.routes().pending.number_of(request_id.get(), is_theirs);
        match number {
            Some(number) => {
                let ours = number.to_string();
                self.send(splice(message, &[(request_id, ours.as_bytes())])).await
            }
            // It was answered already.
            None => Ok(()),
        }
    }

    /// Sends a client's answer to a request of the server; one that nobody asked for is dropped.
    pub async fn answer(&self, message: &[u8], envelope: &Envelope<'_>) -> Result<(), LinkError> {
        let was_asked = envelope.id.is_some_and(|id| self.routes().asked.remove(id.get()));
        if was_asked { self.send(message.to_vec()).await } else { Ok(()) }
    }

    async fn send(&self, message: Vec<u8>) -> Result<(), LinkError> {
        self.queue(message, Arc::default()).await
    }

    async fn queue(&self, message: Vec<u8>, delivered: Arc<AtomicBool>) -> Result<(), LinkError> {
        let queued = async {
            let share = self.0.buffers.requests.take(message.len()).await.ok_or(LinkError::Closed)?;
            self.0.outgoing.send(Queued { message, delivered, _share: share }).await.map_err(|_| LinkError::Closed)
        };
        tokio::select! {
            biased;
            result = queued => result,
            () = self.closed() => Err(LinkError::Closed),
        }
    }

    /// Sends what may be lost if the server does not read.
    fn try_send(&self, message: Vec<u8>) {
        if let Some(share) = self.0.buffers.requests.try_take(message.len()) {
            // A full queue loses it, which is what this is for.
            self.0.outgoing.try_send(Queued { message, delivered: Arc::default(), _share: share }).ok();
        }
    }

    /// Ends the connection: whoever waits for an answer is told.
    pub fn close(&self) {
        {
            let mut routes = self.routes();
            routes.closed = true;
            routes.pending.clear();
            routes.asked.clear();
        }
        self.0.closed.send_replace(true);
    }

    /// Memory in which the server's next message may be read.
    pub fn spare(&self) -> Vec<u8> {
        self.0.buffers.spares.take()
    }

    /// Takes a message of the server. Waits while clients have not taken what came before.
    pub async fn on_message(&self, bytes: Vec<u8>) {
        let Ok(envelope) = Envelope::parse(&bytes) else { return self.on_unreadable(&bytes) };
        match envelope.kind() {
            Kind::Response => {
                let ids = envelope.id.map(|id| (number(id), place(&bytes, id)));
                let Some((number, at)) = ids else { return self.0.log.line(b"stdout: an error without an id") };
                let subscription = subscription_in(envelope.result).map(|raw| place(&bytes, raw));
                self.on_response(bytes, number, [Some(at), subscription]).await;
            }
            Kind::Notification => self.on_notification(&bytes, &envelope),
            Kind::Request => self.on_request(&bytes, &envelope),
        }
    }

    /// A message that was too long to be kept; its beginning and end are left.
    pub fn on_oversize(&self, head: &[u8], tail: &[u8], bytes: u64) {
        self.0.log.line(format!("stdout: a message of {bytes} bytes is over the limit of {LINE_MAX}").as_bytes());
        self.fail(head, tail, &format!("the server's answer of {bytes} bytes is over the limit of {LINE_MAX}"));
    }

    /// A line that is no message: noise, unless it was meant to be an answer.
    fn on_unreadable(&self, line: &[u8]) {
        self.0.log.line(&[b"stdout: ", &line[..line.len().min(NOISE_KEPT)]].concat());
        let names = |member: &str| memchr::memmem::find(line, member.as_bytes()).is_some();
        if names(r#""jsonrpc""#) && (names(r#""result""#) || names(r#""error""#)) {
            self.fail(line, line, "the server's answer is no valid JSON in UTF-8");
        }
    }

    /// Fails the request whose answer had this beginning and end.
    fn fail(&self, head: &[u8], tail: &[u8], text: &str) {
        // The id stands before the result or after it; what looks like one inside it is the server's own matter.
        let number = id_before_result(head).or_else(|| last_id(tail));
        if let Some(pending) = number.and_then(|number| self.routes().pending.remove(number)) {
            let answer = write_error(Some(&pending.id), error::ANSWER_UNREADABLE, text);
            // The caller may be gone.
            pending.caller.answer.send(answer.into()).ok();
        }
    }

    /// An answer to the request of this number, with the places in which the caller's id belongs.
    async fn on_response(&self, mut message: Vec<u8>, number: Option<u64>, ids: [Option<Range<usize>>; 2]) {
        let is_awaited = number.is_some_and(|number| self.routes().pending.get(number).is_some());
        let (Some(number), true) = (number, is_awaited) else {
            return self.0.log.line(b"stdout: an answer that nobody waits for");
        };
        let share = self.0.buffers.answers.take(message.len()).await;
        // The caller may have gone while we waited.
        let (Some(share), Some(pending)) = (share, self.routes().pending.remove(number)) else { return };
        // In its own memory, and from behind, so that what was not yet replaced stays where it is.
        let mut ids: Vec<Range<usize>> = ids.into_iter().flatten().collect();
        ids.sort_by_key(|at| Reverse(at.start));
        for at in ids {
            drop(message.splice(at, pending.id.bytes()));
        }
        let answer = share.hold(message, self.0.buffers.spares.clone());
        pending.caller.answer.send(answer).ok();
    }

    fn on_notification(&self, message: &[u8], envelope: &Envelope<'_>) {
        let params = Params::of(envelope.params);
        let method = envelope.method();
        let token = match &*method {
            methods::PROGRESS => params.progress_token,
            _ => params.meta().subscription_id,
        };
        let Some(token) = token else { return self.on_loose_notification(message, &method) };
        let routes = self.routes();
        let Some(pending) = routes.pending.named(token) else { return };
        let theirs = match &*method {
            methods::PROGRESS => pending.progress.as_ref(),
            _ => Some(&pending.id),
        };
        if let Some(theirs) = theirs {
            let message = splice(message, &[(token, theirs.as_bytes())]);
            // A full queue drops progress; the answer has a way of its own.
            pending.caller.messages.try_send(message.into()).ok();
        }
    }

    /// A notification that names no request: it belongs to a call only where there is no doubt about which.
    fn on_loose_notification(&self, message: &[u8], method: &str) {
        let message = Bytes::copy_from_slice(message);
        let routes = self.routes();
        let mut calls = routes.pending.callers().filter(|caller| matches!(caller.purpose, Purpose::Call(_))).fuse();
        let only_call = match &self.0.upward {
            Upward::Client { .. } => calls.next().filter(|_| calls.next().is_none()),
            // Log messages are sent for a request that asked for them, in the modern era.
            Upward::Shared if method == methods::MESSAGE => {
                let mut asking = calls.filter(|caller| caller.wants_log);
                asking.next().filter(|_| asking.next().is_none())
            }
            Upward::Shared => None,
        };
        match (only_call, &self.0.upward) {
            // Notifications may be missed.
            (Some(call), _) => drop(call.messages.try_send(message)),
            (None, Upward::Client { mailbox, .. }) => {
                // The bridge itself listens too: lists change.
                self.0.broadcast.send(message.clone()).ok();
                mailbox.post(message);
            }
            (None, Upward::Shared) => drop(self.0.broadcast.send(message)),
        }
    }

    fn on_request(&self, message: &[u8], envelope: &Envelope<'_>) {
        let Some(id) = envelope.id else { return };
        let method = envelope.method();
        if method == methods::PING {
            return self.try_send(write_result(id.get(), "{}"));
        }
        let refuse = |text: String| self.try_send(write_error(Some(id.get()), error::METHOD_NOT_FOUND, &text));
        let Upward::Client { mailbox, roots } = &self.0.upward else {
            // Clients share the server, so nobody can be asked in anybody's name.
            return refuse(format!("{method} is not offered to a server that clients share"));
        };
        if method == methods::ROOTS_LIST && *roots == Roots::Deny {
            return refuse("this server is not given its clients' roots".to_owned());
        }
        let message = Bytes::copy_from_slice(message);
        let delivered = {
            let mut routes = self.routes();
            routes.asked.insert(id.get().to_owned());
            let mut calls = routes.pending.callers().filter(|caller| matches!(caller.purpose, Purpose::Call(_)));
            match (calls.next(), calls.next()) {
                // The only call under way is the one for which the server asks.
                (Some(call), None) => call.messages.try_send(message).is_ok(),
                _ => mailbox.post(message),
            }
        };
        if !delivered {
            self.routes().asked.remove(id.get());
            refuse(format!("{method} could not be taken to the client"));
        }
    }
}

/// The subscription id that ends a `subscriptions/listen`.
fn subscription_in(result: Option<&RawValue>) -> Option<&RawValue> {
    let text = result?.get();
    memchr::memmem::find(text.as_bytes(), b"subscriptionId")?;
    Params::of(result).meta().subscription_id
}

/// Where a value that was borrowed from the message stands in it.
fn place(message: &[u8], raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - message.as_ptr() as usize;
    start..start + raw.get().len()
}

fn id_before_result(head: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(head);
    let before = text.split_once(r#""result""#).map_or(&*text, |(before, _)| before);
    last_id(before.as_bytes())
}

/// The number after the last `"id":`.
fn last_id(part: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(part);
    let (_, rest) = text.rsplit_once(r#""id":"#)?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use mcp_hub_dataplane_api::launch::LogPolicy;

    use super::*;

    #[tokio::test]
    async fn an_answer_carries_the_callers_id_wherever_ours_stood_and_is_otherwise_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), LogPolicy { max_bytes: 1000, files: 1 });
        let (link, mut outgoing) = Link::new(Buffers::new(), log, Upward::Shared);
        let name = "io.modelcontextprotocol/subscriptionId";
        let long = "x".repeat(100_000);
        for theirs in ["7", r#""of the caller's, and long: it does not fit into the memory of the line""#] {
            // Twice, the second time in memory that was used before.
            for number in ["first", "second"] {
                let first_to_last = |id: &str, second: &str| {
                    format!(r#"{{"id":{id},"result":{{"_meta":{{"{name}":{second}}},"n":1.0,"t":"{long}"}}}}"#)
                };
                let last_to_first = |id: &str, second: &str| {
                    format!(r#"{{"result":{{"t":"{long}","_meta":{{"{name}":{second}}}}},"id":{id}}}"#)
                };
                for written in [&first_to_last as &dyn Fn(&str, &str) -> String, &last_to_first] {
                    let message = format!(r#"{{"jsonrpc":"2.0","id":{theirs},"method":"m"}}"#);
                    let envelope = Envelope::parse(message.as_bytes()).unwrap();
                    let asked = link.request(message.as_bytes(), &envelope, None, Purpose::Subscription).await.unwrap();
                    let sent = outgoing.recv().await.unwrap().message;
                    let ours = Envelope::parse(&sent).unwrap().id.unwrap().get().to_owned();
                    let mut line = link.spare();
                    line.extend_from_slice(written(&ours, &ours).as_bytes());
                    link.on_message(line).await;
                    assert!(asked.answer.await.unwrap() == written(theirs, theirs), "{number} {theirs}");
                }
            }
        }
    }

    #[test]
    fn the_id_of_an_answer_that_was_too_long_is_found_at_either_end() {
        assert_eq!(id_before_result(br#"{"jsonrpc":"2.0","id": 12,"result":{"content":[{"id":99,"#), Some(12));
        assert_eq!(id_before_result(br#"{"result":{"id":99,"#), None);
        assert_eq!(last_id(br#""id":3}],"jsonrpc":"2.0","id":7}"#), Some(7));
    }
}
