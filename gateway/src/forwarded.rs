//! Requests that another replica forwards, because this one holds what they are about. They are served here, whatever else
//! is believed of where they belong, so that none goes round in circles.

use std::sync::{Arc, OnceLock};

use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::Inner;
use crate::body::{Body, full};
use crate::client::{self, Sender};
use crate::peers::{ADOPT, FORWARD, FORWARDED, HELLO, IF_HELD, NONCE, NOT_TAKEN};
use crate::serve;
use crate::session::LastSession;
use crate::upstream::Owner;

/// Largest part of what a replica that ends hands over, in bytes.
const HANDED_MAX: usize = 8 << 20;

/// What a connection of another replica has shown.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// What both sides said in the greeting.
    greeting: OnceLock<Arc<str>>,
    session: Arc<LastSession>,
}

pub(crate) async fn answer(mut request: Request<Incoming>, inner: &Arc<Inner>, caller: &Caller) -> Response<Body> {
    let not_taken = || full(NOT_TAKEN, "text/plain", "not forwarded by a replica of this hub to what it serves");
    let Some(peers) = &inner.peers else { return not_taken() };
    let path = request.uri().path().to_owned();
    if path == HELLO {
        let nonce = request.headers().get(NONCE).and_then(|nonce| nonce.to_str().ok());
        let Some((answer, greeting)) = nonce.and_then(|nonce| peers.greet(nonce)) else { return not_taken() };
        // Once: what was sealed for one greeting is not to open after another.
        if caller.greeting.set(greeting).is_err() {
            return not_taken();
        }
        return full(StatusCode::OK, "text/plain", answer);
    }
    let header = request.headers_mut().remove(FORWARDED);
    let principal = caller.greeting.get().and_then(|greeting| {
        let header = header.as_ref()?.to_str().ok()?;
        peers.open(greeting, request.method(), &path, header)
    });
    if path == ADOPT {
        let Some((greeting, _)) = caller.greeting.get().zip(principal) else { return not_taken() };
        // Its own hand-over may be over already.
        if inner.is_draining() {
            return not_taken();
        }
        let body = Limited::new(request.into_body(), HANDED_MAX).collect().await;
        let handed =
            body.ok().and_then(|body| peers.open_handed(greeting, std::str::from_utf8(&body.to_bytes()).ok()?));
        let Some(handed) = handed else { return not_taken() };
        return match inner.adopt(&handed).await {
            true => full(StatusCode::NO_CONTENT, "text/plain", ""),
            false => not_taken(),
        };
    }
    if let Some(key) = request.headers_mut().remove(IF_HELD)
        && !owner(&key).is_some_and(|owner| inner.holds(owner))
    {
        return not_taken();
    }
    let served = inner.served();
    // A replica with another configuration may know servers that this one does not.
    let scope = path.strip_prefix(FORWARD).and_then(|path| serve::scope(path, &served));
    let (Some(principal), Some(scope)) = (principal, scope) else { return not_taken() };
    // Streams of a replica that ends belong elsewhere.
    if request.method() == Method::GET && inner.ending.is_begun() {
        return not_taken();
    }
    let sender =
        Sender { principal, last_session: caller.session.clone(), ending: inner.ending.clone(), is_forwarded: true };
    client::answer(request, inner.clone(), served, scope, sender).await
}

/// The owner with this key: those of sessions are shorter than those of tokens.
fn owner(key: &HeaderValue) -> Option<Owner> {
    let key = hex::decode(key).ok()?;
    let session = key.as_slice().try_into().map(Owner::Session);
    session.or_else(|_| key.as_slice().try_into().map(Owner::Principal)).ok()
}
