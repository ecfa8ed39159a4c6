//! What a server says to one request, on the request's own connection or picked out of a stream of everything.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use mcp_hub_mcp::sse;
use tokio::sync::mpsc;

/// Why it broke off.
pub(crate) type Broken = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug)]
pub(crate) enum Said {
    Http(Incoming),
    /// One message; nothing when it was read.
    Whole(Bytes),
    /// Messages, read as events.
    Picked {
        first: Option<Bytes>,
        rest: mpsc::Receiver<Bytes>,
    },
}

impl Body for Said {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Http(body) => Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Whole(message) if message.is_empty() => Poll::Ready(None),
            Self::Whole(message) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(message))))),
            Self::Picked { first, rest } => match first.take() {
                Some(first) => Poll::Ready(Some(Ok(Frame::data(sse::event(&first))))),
                None => rest.poll_recv(cx).map(|message| Some(Ok(Frame::data(sse::event(&message?))))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Whole(message) => message.is_empty(),
            Self::Picked { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Whole(message) => SizeHint::with_exact(message.len() as u64),
            Self::Picked { .. } => SizeHint::default(),
        }
    }
}
