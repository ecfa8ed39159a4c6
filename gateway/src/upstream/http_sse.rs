//! Servers that speak HTTP+SSE of 2024-11-05: a session is one stream, on which the server says everything. What it says
//! for a request is picked out of it, so that to the rest of the gateway it answers as a server of Streamable HTTP does:
//! with JSON, with an event stream if something comes first, and with 404 once the session is over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::FusedFuture;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, splice, write_error, write_result};
use mcp_hub_mcp::numbering::{Marks, Numbered, number};
use mcp_hub_mcp::{error, methods};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::http::Endpoint;
use super::messages::refusal;
use super::{Events, Failure, Said, is_type};
use crate::body::{EVENTS, JSON};
use crate::fields::Fields;

/// A server that has not named its address by then speaks something else.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(10);
/// Requests under way in one session.
const PENDING_MAX: usize = 4096;
/// Messages that wait for one caller beside its answer; notifications beyond are dropped, questions refused.
const WAITING: usize = 64;
/// Bytes of such messages in one session; answers are counted by the calls that they belong to.
const WAITING_BYTES: usize = 32 << 20;
/// Replies of our own that wait to be sent.
const REPLIES: usize = 16;
/// How long a message waits for its refusal when the stream is over.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// What is read of the page with which a server takes a message.
const RECEIPT_MAX: usize = 64 << 10;

/// A session. Its stream ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Arc<Wire>,
    routes: Arc<Routes>,
    reading: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// The way to the server.
#[derive(Debug)]
struct Wire {
    endpoint: Arc<Endpoint>,
    address: Uri,
    patience: Duration,
}

#[derive(Debug)]
struct Routes {
    /// Clients share the session, so that it is nobody's to be asked in.
    shared: bool,
    waiting_bytes: Arc<AtomicUsize>,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    pending: Numbered<Caller>,
    /// Takes what belongs to no call.
    beside: mpsc::Sender<Bytes>,
    /// Its other end, until somebody listens.
    unheard: Option<mpsc::Receiver<Bytes>>,
    ended: bool,
}

#[derive(Debug)]
struct Caller {
    messages: mpsc::Sender<Bytes>,
    /// A place behind all messages, which a slow reader cannot take away.
    answer: mpsc::OwnedPermit<Bytes>,
    is_call: bool,
}

impl Link {
    /// Opens a stream and waits for the address that it names. `patience` bounds the sending of one message.
    pub(super) async fn open(endpoint: &Arc<Endpoint>, shared: bool, patience: Duration) -> Result<Self, Failure> {
        let accept = vec![(ACCEPT, HeaderValue::from_static(EVENTS))];
        let response = endpoint.send(Method::GET, accept, Bytes::new()).await?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(refusal(&response.map(Said::Http)));
        }
        if !status.is_success() || !is_type(response.headers(), EVENTS) {
            return Err(Failure::Unreadable(format!("HTTP {status} to a GET, and no event stream")));
        }
        let mut events = Events::new(Said::Http(response.into_body()));
        let named = tokio::time::timeout(ADDRESS_PATIENCE, events.endpoint()).await;
        let named = named.unwrap_or_else(|_| {
            let seconds = ADDRESS_PATIENCE.as_secs();
            Err(Failure::Unreadable(format!("its event stream named no endpoint within {seconds} s")))
        })?;
        let address = endpoint.address(&named).map_err(Failure::Unreadable)?;
        let wire = Arc::new(Wire { endpoint: endpoint.clone(), address, patience });
        let (beside, unheard) = mpsc::channel(WAITING);
        let open = Open { pending: Numbered::default(), beside, unheard: Some(unheard), ended: false };
        let routes = Arc::new(Routes { shared, waiting_bytes: Arc::default(), open: Mutex::new(open) });
        let reading = tokio::spawn(read(events, routes.clone(), wire.clone()));
        Ok(Self { wire, routes, reading })
    }

    /// Sends one message; what the server says to it if it is a request.
    pub(super) async fn post(&self, body: Bytes) -> Result<Response<Said>, Failure> {
        let envelope = Envelope::parse(&body).map_err(|error| Failure::Unreadable(error.to_string()))?;
        if envelope.kind() == Kind::Request
            && let Some(marks) = Marks::of(&envelope)
        {
            return self.request(&body, &envelope, marks).await;
        }
        let mut message = body.clone();
        if envelope.method() == methods::CANCELLED
            && let Some(request) = Params::of(envelope.params).request_id
        {
            let known = self.routes.open().pending.number_of(request.get(), |_| true);
            // It was answered already.
            let Some(number) = known else { return Ok(whole(StatusCode::ACCEPTED, Bytes::new())) };
            message = splice(&body, &[(request, number.to_string().as_bytes())]).into();
        }
        if self.routes.open().ended {
            return Ok(whole(StatusCode::NOT_FOUND, Bytes::new()));
        }
        Ok(self.wire.post(message).await?.map(Said::Http))
    }

    async fn request(&self, body: &[u8], envelope: &Envelope<'_>, marks: Marks<'_>) -> Result<Response<Said>, Failure> {
        let (messages, mut said) = mpsc::channel(WAITING + 1);
        let number = {
            let mut open = self.routes.open();
            if open.ended {
                return Ok(whole(StatusCode::NOT_FOUND, Bytes::new()));
            }
            if open.pending.len() >= PENDING_MAX {
                open.pending.retain(|caller| !caller.messages.is_closed());
            }
            let answer = messages.clone().try_reserve_owned();
            let (Ok(answer), true) = (answer, open.pending.len() < PENDING_MAX) else {
                let id = envelope.id.map(|id| id.get());
                let refusal = write_error(id, error::OVERLOADED, "too many requests are under way with the server");
                return Ok(whole(StatusCode::OK, refusal.into()));
            };
            let is_call = methods::is_call(&envelope.method());
            open.pending.add(&marks, Caller { messages, answer, is_call })
        };
        // On its own: servers may answer on the stream before they have taken the message, or after.
        let (refuse, refused) = oneshot::channel();
        let (wire, message) = (self.wire.clone(), Bytes::from(marks.numbered(body, number)));
        tokio::spawn(async move {
            match wire.post(message).await {
                Ok(taken) if taken.status().is_success() => {}
                // Whoever is gone misses it.
                refusal => drop(refuse.send(refusal.map(|response| response.map(Said::Http)))),
            }
        });
        let mut refused = refused.fuse();
        let first = tokio::select! {
            first = said.recv() => first,
            Ok(refusal) = &mut refused => {
                self.routes.open().pending.remove(number);
                return refusal;
            }
        };
        let Some(first) = first else {
            // A server that refuses a message of a session that is over has not acted on it.
            if !refused.is_terminated()
                && let Ok(Ok(refusal)) = tokio::time::timeout(REFUSAL_PATIENCE, refused).await
            {
                return refusal;
            }
            return Err(Failure::Gone("its event stream ended".to_owned()));
        };
        if Envelope::parse(&first).is_ok_and(|envelope| envelope.kind() == Kind::Response) {
            return Ok(whole(StatusCode::OK, first));
        }
        Ok(events(Some(first), said))
    }

    /// What the server says that belongs to no call, from now on; whoever listened before hears no more.
    pub(super) fn beside(&self) -> Response<Said> {
        let mut open = self.routes.open();
        if open.ended {
            return whole(StatusCode::NOT_FOUND, Bytes::new());
        }
        let kept = open.unheard.take().unwrap_or_else(|| {
            let (beside, messages) = mpsc::channel(WAITING);
            open.beside = beside;
            messages
        });
        events(None, kept)
    }
}

impl Wire {
    /// One message; only what went wrong is left to be read of the response.
    async fn post(&self, message: Bytes) -> Result<Response<Incoming>, Failure> {
        let posting = async {
            let response = self.endpoint.send_to(self.address.clone(), Method::POST, Fields::new(), message).await?;
            if !response.status().is_success() {
                return Ok(response);
            }
            let (parts, mut body) = response.into_parts();
            // The connection serves the next message when this was read; a longer page costs it.
            Limited::new(&mut body, RECEIPT_MAX).collect().await.ok();
            Ok(Response::from_parts(parts, body))
        };
        let posted = tokio::time::timeout(self.patience, posting).await;
        posted.unwrap_or_else(|_| Err(Failure::Gone("it did not take the message in time".to_owned())))
    }
}

/// Hands out what the server says until its stream ends.
async fn read(mut events: Events, routes: Arc<Routes>, wire: Arc<Wire>) {
    let (reply, mut replies) = mpsc::channel::<Vec<u8>>(REPLIES);
    let reading = async {
        let ended = loop {
            match events.next().await {
                Ok(Some(message)) => {
                    if let Some(said) = routes.take(&message) {
                        // One that does not read its answers misses some.
                        reply.try_send(said).ok();
                    }
                }
                Ok(None) => break None,
                Err(failure) => break Some(failure),
            }
        };
        tracing::debug!(?ended, "event stream over");
    };
    let replying = async {
        while let Some(said) = replies.recv().await {
            wire.post(said.into()).await.ok();
        }
    };
    tokio::select! {
        () = reading => {}
        () = replying => {}
    }
    routes.end();
}

impl Routes {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever waits is told by the end of its messages.
    fn end(&self) {
        let mut open = self.open();
        open.ended = true;
        open.pending.clear();
        open.unheard = None;
        open.beside = mpsc::channel(1).0;
    }

    /// Takes a message of the server; what it is to be told at once.
    fn take(&self, message: &[u8]) -> Option<Vec<u8>> {
        let envelope = Envelope::parse(message).ok()?;
        match (envelope.kind(), envelope.id) {
            (Kind::Response, id) => {
                let id = id?;
                // What nobody waits for is dropped.
                let pending = self.open().pending.remove(number(id)?)?;
                pending.caller.answer.send(splice(message, &[(id, pending.id.as_bytes())]).into());
                None
            }
            (Kind::Request, Some(id)) => self.question(message, id.get(), &envelope.method()),
            (Kind::Request | Kind::Notification, _) => {
                self.notification(message, &envelope);
                None
            }
        }
    }

    fn notification(&self, message: &[u8], envelope: &Envelope<'_>) {
        let open = self.open();
        match &*envelope.method() {
            methods::PROGRESS => {
                let Some(token) = Params::of(envelope.params).progress_token else { return };
                let pending = open.pending.named(token);
                if let Some((pending, theirs)) = pending.and_then(|pending| Some((pending, pending.progress.as_ref()?)))
                {
                    self.give(&pending.caller.messages, &splice(message, &[(token, theirs.as_bytes())]));
                }
            }
            methods::TOOLS_CHANGED
            | methods::PROMPTS_CHANGED
            | methods::RESOURCES_CHANGED
            | methods::RESOURCE_UPDATED => {
                self.give(&open.beside, message);
            }
            _ => {
                self.give(self.only_call(&open).unwrap_or(&open.beside), message);
            }
        }
    }

    fn question(&self, message: &[u8], id: &str, method: &str) -> Option<Vec<u8>> {
        if method == methods::PING {
            return Some(write_result(id, "{}"));
        }
        let refuse = |text: &str| Some(write_error(Some(id), error::METHOD_NOT_FOUND, &format!("{method} {text}")));
        if self.shared {
            return refuse("is not offered to a server that clients share");
        }
        let open = self.open();
        let asked = self.give(self.only_call(&open).unwrap_or(&open.beside), message);
        if asked { None } else { refuse("could not be taken to the client") }
    }

    /// Where there is no doubt about it, the call that something belongs to.
    fn only_call<'a>(&self, open: &'a Open) -> Option<&'a mpsc::Sender<Bytes>> {
        let is_waited_for = |caller: &&Caller| caller.is_call && !caller.messages.is_closed();
        let mut calls = open.pending.callers().filter(is_waited_for).fuse();
        let only = calls.next().filter(|_| calls.next().is_none() && !self.shared)?;
        Some(&only.messages)
    }

    /// Whether there was room for it.
    fn give(&self, to: &mpsc::Sender<Bytes>, message: &[u8]) -> bool {
        let waiting = self.waiting_bytes.fetch_add(message.len(), Ordering::Relaxed) + message.len();
        let waits = Waiting { message: message.to_vec(), of: self.waiting_bytes.clone() };
        waiting <= WAITING_BYTES && to.try_send(Bytes::from_owner(waits)).is_ok()
    }
}

/// A message that waits, counted until the last copy of it is gone.
struct Waiting {
    message: Vec<u8>,
    of: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.of.fetch_sub(self.message.len(), Ordering::Relaxed);
    }
}

fn whole(status: StatusCode, message: Bytes) -> Response<Said> {
    typed(status, JSON, Said::Whole(message))
}

fn events(first: Option<Bytes>, rest: mpsc::Receiver<Bytes>) -> Response<Said> {
    typed(StatusCode::OK, EVENTS, Said::Picked { first, rest })
}

fn typed(status: StatusCode, media: &'static str, said: Said) -> Response<Said> {
    let mut response = Response::new(said);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
