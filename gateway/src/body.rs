//! Response bodies: a buffer, a stream fed by a task, or an upstream's own body passed through.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep};

#[derive(Debug)]
pub(crate) enum Body {
    Full(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
    Upstream(Upstream),
}

/// A server's body on its way to the client; cut when the server says nothing more for as long as a call may take. Its
/// headers are sent by then, so that no other answer is left.
#[derive(Debug)]
pub(crate) struct Upstream {
    body: Incoming,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    /// The silence is the server's: before, the client may have been the one who took nothing.
    waits: bool,
    /// The place among the calls in flight that it holds until it ends.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Upstream {
    pub(crate) fn new(body: Incoming, permit: Option<OwnedSemaphorePermit>, patience: Duration) -> Self {
        Self { body, patience, silence: Box::pin(tokio::time::sleep(patience)), waits: false, _permit: permit }
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
            Self::Full(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Stream(receiver) => receiver.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
            Self::Upstream(upstream) => upstream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(_) => false,
            Self::Upstream(upstream) => upstream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Full(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) => http_body::SizeHint::default(),
            Self::Upstream(upstream) => upstream.body.size_hint(),
        }
    }
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const EVENTS: &str = "text/event-stream";

/// A whole response.
pub(crate) fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(body.into())));
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
    let (sender, receiver) = mpsc::channel(64);
    let mut response = Response::new(Body::Stream(receiver));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    (sender, response)
}
