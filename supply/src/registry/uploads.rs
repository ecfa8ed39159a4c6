//! Blobs and documents as a registry takes them (distribution specification, "Pushing").

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use url::Url;

use super::session::{Ask, Session, told_digest};
use super::{Body, Cause};
use crate::content::{Blob, Check, Named};
use crate::error::RegistryError;
use crate::progress::{Event, Tell};

/// Pieces between whoever gives a blob and the registry that takes it; of up to some 100 KB each.
const PIECES: usize = 4;
/// A registry puts a large blob together, or moves it within its store, after the last byte came: so many times the usual
/// patience.
const TO_STORE: u32 = 10;

/// How an upload begins.
pub(crate) enum Begun {
    /// The registry has the blob in another repository, and now in this one, too.
    Mounted,
    At(Url),
}

/// Why a blob did not arrive.
pub(crate) enum SendError<E> {
    /// Whoever was to give it did not, or gave something else.
    Source(E),
    Registry(RegistryError),
    /// The token expired since the upload began. Its body cannot be sent a second time, so the upload begins anew.
    Expired(RegistryError),
}

impl Session<'_> {
    pub(crate) async fn has(&self, digest: &str) -> Result<bool, RegistryError> {
        let url = format!("{}/blobs/{digest}", self.base);
        let response = self.ask(&self.plain(Method::HEAD, &url, None)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.refused(response).await),
        }
    }

    /// `from`: a repository of the same registry that has the blob.
    pub(crate) async fn begin(&self, digest: &str, from: Option<&str>) -> Result<Begun, RegistryError> {
        let mut url = self.url(&format!("{}/blobs/uploads/", self.base))?;
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", digest).append_pair("from", from);
        }
        let response = self.succeed(&self.plain(Method::POST, url.as_str(), None)).await?;
        match response.status() {
            StatusCode::CREATED if from.is_some() => Ok(Begun::Mounted),
            _ => self.location(response.headers(), &url).map(Begun::At),
        }
    }

    /// Sends a blob, whose last bytes go only if it is what its digest says, and has it stored.
    pub(crate) async fn send_blob<E: From<RegistryError>>(
        &self,
        at: &Url,
        blob: &Blob,
        content: BoxStream<'_, Result<Bytes, E>>,
        tell: Tell<'_>,
    ) -> Result<(), SendError<E>> {
        let response = self.stream(at, blob, content, tell).await?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED => return Err(SendError::Expired(self.refused(response).await)),
            _ => return Err(SendError::Registry(self.refused(response).await)),
        }
        self.store(&response, at, blob).await.map_err(SendError::Registry)
    }

    async fn stream<E: From<RegistryError>>(
        &self,
        at: &Url,
        blob: &Blob,
        content: BoxStream<'_, Result<Bytes, E>>,
        tell: Tell<'_>,
    ) -> Result<Response<Incoming>, SendError<E>> {
        let (give, pieces) = mpsc::channel(PIECES);
        let request = self.upload(at, blob, pieces).map_err(SendError::Registry)?;
        let unreachable = |source: hyper_util::client::legacy::Error| {
            SendError::Registry(RegistryError::Interrupted {
                host: self.image.registry().to_owned(),
                source: Box::new(source),
            })
        };
        let mut answer = pin!(self.http.request(request));
        let mut fed = pin!(self.feed(blob, content, give, tell));
        tokio::select! {
            biased;
            fed = &mut fed => fed?,
            // A registry that answers before it has all of it has refused it.
            early = &mut answer => return early.map_err(unreachable),
        }
        let patience = self.patience * TO_STORE;
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(SendError::Registry(self.timed_out(patience))),
        }
    }

    /// Hands pieces on until there are none any more, or nobody takes them: then the request itself says why.
    async fn feed<E: From<RegistryError>>(
        &self,
        blob: &Blob,
        mut content: BoxStream<'_, Result<Bytes, E>>,
        give: mpsc::Sender<Bytes>,
        tell: Tell<'_>,
    ) -> Result<(), SendError<E>> {
        let mut check = Check::new(self.image, blob);
        let not_it = |error: RegistryError| SendError::Source(error.into());
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(SendError::Source)?;
            check.take(&piece).map_err(not_it)?;
            let length = piece.len() as u64;
            match tokio::time::timeout(self.patience, give.send(piece)).await {
                Ok(Ok(())) => tell(Event::Moved(length)),
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(SendError::Registry(self.timed_out(self.patience))),
            }
        }
        check.end().map_err(not_it)
    }

    fn upload(&self, at: &Url, blob: &Blob, pieces: mpsc::Receiver<Bytes>) -> Result<Request<Body>, RegistryError> {
        let authorization = self.authorization().clone();
        let mut request = self.request(&Method::PATCH, at, authorization.as_ref())?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
        *request.body_mut() = Pieces { left: blob.size, pieces }.boxed_unsync();
        Ok(request)
    }

    async fn store(&self, sent: &Response<Incoming>, at: &Url, blob: &Blob) -> Result<(), RegistryError> {
        // Registries may answer with another place after each part.
        let mut at = match sent.headers().contains_key(http::header::LOCATION) {
            true => self.location(sent.headers(), at)?,
            false => at.clone(),
        };
        at.query_pairs_mut().append_pair("digest", &blob.digest);
        let patience = self.patience * TO_STORE;
        let ask = Ask { patience, ..self.plain(Method::PUT, at.as_str(), None) };
        self.succeed(&ask).await.map(drop)
    }

    /// Stores an index or a manifest under a tag or its digest.
    pub(crate) async fn put(&self, document: &Named, version: &str) -> Result<(), RegistryError> {
        let url = format!("{}/manifests/{version}", self.base);
        let header = Some((CONTENT_TYPE, document.media_type.clone()));
        let ask = Ask { body: document.body.clone(), ..self.plain(Method::PUT, &url, header) };
        let response = self.succeed(&ask).await?;
        match told_digest(response.headers()) {
            Some(told) if told != document.digest => Err(RegistryError::DigestMismatch {
                what: "what was stored",
                image: self.image.to_string(),
                wanted: document.digest.clone(),
                got: told.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn url(&self, text: &str) -> Result<Url, RegistryError> {
        let host = self.image.registry().to_owned();
        Url::parse(text).map_err(|_| RegistryError::Redirect { host, problem: "from an address that is none" })
    }
}

/// A body of a known length that comes in pieces.
struct Pieces {
    left: u64,
    pieces: mpsc::Receiver<Bytes>,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(context));
        self.left = self.left.saturating_sub(piece.as_ref().map_or(0, |piece| piece.len() as u64));
        // A body that ends too early ends the connection, so that a part is not taken for the whole.
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
