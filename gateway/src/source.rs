//! Where a server's words in a conversation come from.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Response;

use crate::body::{EVENTS, JSON};
use crate::questions::InputRequired;
use crate::upstream::{Events, Failure, Said, collect, is_type};

/// Resolves when a response begins.
pub(crate) type Begins = BoxFuture<'static, Result<Response<Said>, Failure>>;

pub(crate) enum Source {
    Pending(Begins),
    Stream(Events),
    Whole(BoxFuture<'static, Result<Bytes, Failure>>),
    /// They were read already.
    Wanted(InputRequired),
    Ended,
}

impl Source {
    pub(crate) fn of(response: Response<Said>) -> Result<Self, Failure> {
        let (parts, body) = response.into_parts();
        if is_type(&parts.headers, EVENTS) {
            return Ok(Self::Stream(Events::new(body)));
        }
        if is_type(&parts.headers, JSON) {
            return Ok(Self::Whole(collect(body).boxed()));
        }
        Err(Failure::Unreadable(format!("HTTP {}, and no JSON", parts.status)))
    }

    /// The next message; `None` at the end.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self {
                Self::Pending(begins) => *self = Self::of(begins.await?)?,
                Self::Stream(messages) => return Ok(messages.next().await?.map(Bytes::from)),
                Self::Whole(body) => {
                    let message = body.await?;
                    *self = Self::Ended;
                    return Ok(Some(message));
                }
                Self::Wanted(_) | Self::Ended => return Ok(None),
            }
        }
    }
}
