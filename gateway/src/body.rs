//! Response bodies: what lies ready, a stream fed by a task, or an upstream's own body passed through.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep};

use crate::activity::Busy;
use crate::upstream::{Broken, Said};

/// Up to two pieces that follow each other, so that a long one need not be copied behind a short one.
#[derive(Debug, Default)]
pub(crate) struct Parts([Bytes; 2]);

impl Parts {
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        self.0.iter_mut().find(|part| !part.is_empty()).map(std::mem::take)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|part| part.len() as u64).sum()
    }

    /// All of them in one piece.
    pub(crate) fn joined(mut self) -> Bytes {
        let first = self.next().unwrap_or_default();
        match self.next() {
            None => first,
            Some(second) => [first, second].concat().into(),
        }
    }
}

/// A server's body, whose beginning may have been read already.
#[derive(Debug)]
pub(crate) struct Passed {
    read: Parts,
    rest: Said,
}

impl Passed {
    pub(crate) fn new(rest: Said) -> Self {
        Self { read: Parts::default(), rest }
    }

    /// Puts the id `to` in the place of `from`, both raw, if the body begins as most servers write the result of a request;
    /// whether it does. Whatever it begins with is still to be read.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it loses nothing.
    pub(crate) async fn renumber(&mut self, from: &str, to: &str) -> Result<bool, Broken> {
        let Some(frame) = self.rest.frame().await.transpose()? else { return Ok(false) };
        let Ok(mut first) = frame.into_data() else { return Ok(false) };
        let is_result = first.strip_prefix(BEFORE_ID).and_then(|rest| rest.strip_prefix(from.as_bytes()));
        let is_result = is_result.is_some_and(|rest| rest.starts_with(AFTER_ID));
        let mut head = Bytes::new();
        if is_result {
            first.advance(BEFORE_ID.len() + from.len());
            head = [BEFORE_ID, to.as_bytes()].concat().into();
        }
        self.read = Parts([head, first]);
        Ok(is_result)
    }
}

/// What most servers write around the id of a result.
const BEFORE_ID: &[u8] = br#"{"jsonrpc":"2.0","id":"#;
const AFTER_ID: &[u8] = br#","result":"#;

impl http_body::Body for Passed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        match this.read.next() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let (read, rest) = (self.read.len(), self.rest.size_hint());
        let mut hint = http_body::SizeHint::new();
        hint.set_lower(read + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(read + upper);
        }
        hint
    }
}

#[derive(Debug)]
pub(crate) enum Body {
    Ready(Parts),
    Stream(mpsc::Receiver<Bytes>),
    Upstream(Upstream),
    Forwarded(Forwarded),
}

impl Body {
    pub(crate) fn ready(bytes: Bytes) -> Self {
        Self::Ready(Parts([bytes, Bytes::new()]))
    }
}

/// The body of another replica's answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Forwarded {
    body: Incoming,
    /// What is said in its place if it breaks off.
    last: Option<Bytes>,
    broken: bool,
}

impl Forwarded {
    pub(crate) fn new(body: Incoming, last: Option<Bytes>) -> Self {
        Self { body, last, broken: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.broken {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx).map(|frame| match frame? {
            Ok(frame) => Some(Ok(frame)),
            Err(error) => {
                self.broken = true;
                match self.last.take() {
                    Some(last) => Some(Ok(Frame::data(last))),
                    None => Some(Err(io::Error::other(error))),
                }
            }
        })
    }
}

/// A server's body on its way to the client; cut when the server says nothing more for as long as a call may take. Its
/// headers are sent by then, so that no other answer is left.
#[derive(Debug)]
pub(crate) struct Upstream {
    body: Passed,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    /// The silence is the server's: before, the client may have been the one who took nothing.
    waits: bool,
    /// What it holds until it ends: the place among the calls in flight, and its server's being used.
    _held: Held,
}

type Held = (Option<OwnedSemaphorePermit>, Option<Arc<Busy>>);

impl Upstream {
    pub(crate) fn new(body: Passed, held: Held, patience: Duration) -> Self {
        Self { body, patience, silence: Box::pin(tokio::time::sleep(patience)), waits: false, _held: held }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.waits = false;
                Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
            }
            Poll::Pending => {
                if !std::mem::replace(&mut self.waits, true) {
                    self.silence.as_mut().reset(Instant::now() + self.patience);
                }
                self.silence.as_mut().poll(cx).map(|()| Some(Err(io::Error::from(io::ErrorKind::TimedOut))))
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Ready(parts) => Poll::Ready(parts.next().map(|part| Ok(Frame::data(part)))),
            Self::Stream(receiver) => receiver.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
            Self::Upstream(upstream) => upstream.poll_frame(cx),
            Self::Forwarded(forwarded) => forwarded.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ready(parts) => parts.is_empty(),
            Self::Stream(_) => false,
            Self::Upstream(upstream) => upstream.body.is_end_stream(),
            Self::Forwarded(forwarded) => forwarded.broken || forwarded.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Ready(parts) => http_body::SizeHint::with_exact(parts.len()),
            Self::Stream(_) => http_body::SizeHint::default(),
            Self::Upstream(upstream) => upstream.body.size_hint(),
            // Not with what may be added to it.
            Self::Forwarded(forwarded) if forwarded.last.is_some() => http_body::SizeHint::default(),
            Self::Forwarded(forwarded) => forwarded.body.size_hint(),
        }
    }
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const EVENTS: &str = "text/event-stream";

/// A whole response.
pub(crate) fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    in_parts(status, content_type, [body.into(), Bytes::new()])
}

/// A whole response in two pieces.
pub(crate) fn in_parts(status: StatusCode, content_type: &'static str, parts: [Bytes; 2]) -> Response<Body> {
    let mut response = Response::new(Body::Ready(Parts(parts)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn json(body: impl Into<Bytes>) -> Response<Body> {
    full(StatusCode::OK, JSON, body)
}

/// A JSON-RPC error for this request.
pub(crate) fn error(status: StatusCode, id: Option<&str>, code: i64, message: &str) -> Response<Body> {
    full(status, JSON, mcp_hub_mcp::envelope::write_error(id, code, message))
}

/// An event stream fed by the sender, at most this many events ahead of the reader.
pub(crate) fn events() -> (mpsc::Sender<Bytes>, Response<Body>) {
    let (sender, mut response) = streamed(EVENTS, 64);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    (sender, response)
}

/// A response of this type fed by the sender, at most so many parts ahead of the reader.
pub(crate) fn streamed(content_type: &'static str, ahead: usize) -> (mpsc::Sender<Bytes>, Response<Body>) {
    let (sender, receiver) = mpsc::channel(ahead);
    let mut response = Response::new(Body::Stream(receiver));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    (sender, response)
}
