//! Response bodies.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use mcp_hub_mcp::sse;
use tokio::sync::mpsc;

/// Messages up to this size are copied into one event; larger ones are sent as they are, between its two ends.
const COPIED: usize = 16 << 10;

/// Response bodies: a buffer, or a stream fed by a task.
#[derive(Debug)]
pub enum Body {
    Full(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Stream(receiver) => receiver.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Full(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) => http_body::SizeHint::default(),
        }
    }
}

/// A whole response.
pub fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response whose body is what the sender sends, at most this many parts ahead of the reader.
pub fn streamed(content_type: &'static str) -> (mpsc::Sender<Bytes>, Response<Body>) {
    let (sender, receiver) = mpsc::channel(64);
    let mut response = Response::new(Body::Stream(receiver));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    (sender, response)
}

/// A whole response with a message.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    full(status, "application/json", body)
}

/// Sends a message as an event. An error means that the client is gone.
pub async fn send_event(sender: &mpsc::Sender<Bytes>, message: Bytes) -> Result<(), mpsc::error::SendError<Bytes>> {
    if message.len() <= COPIED || memchr::memchr2(b'\n', b'\r', &message).is_some() {
        return sender.send(sse::event(&message)).await;
    }
    sender.send(Bytes::from_static(b"event: message\ndata: ")).await?;
    sender.send(message).await?;
    sender.send(Bytes::from_static(b"\n\n")).await
}
