//! What another replica of the gateway holds: requests about it are passed on as they came, and served here when that
//! replica is gone.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Params, write_error};
use mcp_hub_mcp::{error, headers, sse};
use tokio::time::timeout;

use super::Ask;
use crate::body::{self, Body, EVENTS, Forwarded, JSON, full};
use crate::exchange::{INTRODUCTION, Seat};
use crate::metrics::count;
use crate::peers::{Bound, FORWARD, IF_HELD, Link, Peers, Sent, Stop};
use crate::relay::READ_FIRST;
use crate::upstream::{Owner, Upstream, is_type};

/// Connections to one replica that are tried for one request.
const ATTEMPTS_MAX: usize = 3;
/// Longest wait for another replica to hear what all are told.
const TELLING: Duration = Duration::from_secs(5);
/// Headers of the client's connection and of its token, and what only replicas say.
const NOT_FORWARDED: [HeaderName; 6] = [AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, IF_HELD];

/// A client's request on its way to another replica.
struct Forward<'a> {
    method: Method,
    message: &'a Bytes,
    /// Raw, of one that is answered.
    id: Option<&'a str>,
}

/// Why a replica has not served a request.
enum NotServed {
    Refused,
    Unsent,
}

impl Ask {
    /// The others, if this replica has any and the request may go to them.
    fn peers(&self) -> Option<&Peers> {
        self.inner.peers.as_ref().filter(|_| !self.is_forwarded)
    }

    /// What the client's session is bound to.
    fn bound(&self) -> Option<Bound<'_>> {
        let session = self.client.session.as_ref()?;
        Some(Bound { owner: Owner::Session(session.nonce), home: session.home.as_ref() })
    }

    /// The answer of the replica that holds what the client's session has asked for; `None` if that is this one.
    pub(super) async fn session_elsewhere(
        &self,
        method: Method,
        message: &Bytes,
        id: Option<&str>,
    ) -> Option<Response<Body>> {
        self.elsewhere(self.bound()?, method, message, id).await
    }

    /// The answer of the replica that has the client's session with this server, or that holds the call that the request
    /// goes on with; `None` if that is this one, or nothing is bound to any.
    pub(super) async fn upstream_elsewhere(
        &self,
        upstream: &Upstream,
        seat: &Seat,
        message: &Bytes,
        id: &str,
        params: &Params<'_>,
    ) -> Option<Response<Body>> {
        let peers = self.peers()?;
        if upstream.is_shared() || !matches!(upstream.era(INTRODUCTION).await, Ok(Era::Legacy)) {
            return None;
        }
        if let Some(state) = params.request_state.filter(|_| self.client.era == Era::Modern) {
            let state: String = serde_json::from_str(state.get()).unwrap_or_default();
            // What is not understood is refused here.
            let home = self.inner.parked.home(self.client.principal, &state)?;
            if home.instance == peers.home().instance {
                return None;
            }
            let request = Forward { method: Method::POST, message, id: Some(id) };
            if let Some(answer) = self.tried(peers, &Stop::Home(home), seat.owner, &request).await {
                return Some(answer);
            }
            // Nobody takes over a call that waits.
            let text = "the replica of the gateway that held the call is gone; make it anew";
            return Some(body::error(StatusCode::OK, Some(id), error::CALL_NOT_WAITING, text));
        }
        let bound = match seat.owner {
            Owner::Session(_) => self.bound()?,
            owner @ Owner::Principal(_) => Bound { owner, home: None },
            Owner::Shared => return None,
        };
        self.elsewhere(bound, Method::POST, message, Some(id)).await
    }

    async fn elsewhere(
        &self,
        bound: Bound<'_>,
        method: Method,
        message: &Bytes,
        id: Option<&str>,
    ) -> Option<Response<Body>> {
        let peers = self.peers()?;
        let request = Forward { method, message, id };
        if let Some(home) = bound.home {
            if home.instance == peers.home().instance {
                return None;
            }
            if let Some(answer) = self.tried(peers, &Stop::Home(home.clone()), bound.owner, &request).await {
                return Some(answer);
            }
        }
        let holds = self.inner.holds(bound.owner);
        for stop in peers.successors(bound.owner, holds, self.inner.is_draining()).await {
            if let Some(answer) = self.tried(peers, &stop, bound.owner, &request).await {
                return Some(answer);
            }
        }
        if bound.home.is_some() {
            count(&self.inner.metrics.taken_over);
        }
        None
    }

    /// The answer of this one; `None` if it is gone, or has not looked at the request.
    async fn tried(&self, peers: &Peers, stop: &Stop, owner: Owner, request: &Forward<'_>) -> Option<Response<Body>> {
        let if_held = matches!(stop, Stop::IfHeld(_)).then_some(owner);
        // A connection that is kept may be over.
        for _ in 0..ATTEMPTS_MAX {
            let link = peers.link_for(stop).await?;
            match self.forward(peers, link, request, if_held).await {
                Ok(answer) => return Some(answer),
                Err(NotServed::Refused) => return None,
                Err(NotServed::Unsent) => {}
            }
        }
        None
    }

    /// The other's answer, unless it has not looked at the request.
    async fn forward(
        &self,
        peers: &Peers,
        link: Link,
        request: &Forward<'_>,
        if_held: Option<Owner>,
    ) -> Result<Response<Body>, NotServed> {
        let Forward { method, message, id } = request;
        let mut request = self.request(method.clone(), message).ok_or(NotServed::Refused)?;
        if let Some(key) = if_held.as_ref().and_then(Owner::key) {
            let key = HeaderValue::from_str(&hex::encode(key)).map_err(|_| NotServed::Refused)?;
            request.headers_mut().insert(IF_HELD, key);
        }
        let answer = match peers.send(link, self.client.principal, request).await {
            Sent::Refused => return Err(NotServed::Refused),
            Sent::Unsent => return Err(NotServed::Unsent),
            Sent::Answered(response) => passed(response, *id).await,
            Sent::Gone(problem) => lost(*id, &problem),
        };
        count(&self.inner.metrics.forwarded);
        Ok(answer)
    }

    /// The client's request with this message.
    fn request(&self, method: Method, message: &Bytes) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(message.clone()));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{FORWARD}{}", self.scope.text()).parse().ok()?;
        *request.headers_mut() = self.headers.clone();
        for name in NOT_FORWARDED {
            request.headers_mut().remove(name);
        }
        if !self.client.takes_events {
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static(JSON));
        }
        Some(request)
    }

    /// Hands a client's answer to the replica that asked; whether another did.
    pub(super) async fn answered_elsewhere(&self, id: &str, message: &Bytes) -> bool {
        let Some(peers) = self.peers() else { return false };
        let Some(home) = self.inner.asked.home(id).filter(|home| home.instance != peers.home().instance) else {
            return false;
        };
        let request = Forward { method: Method::POST, message, id: None };
        // Who asked and is gone waits for no answer.
        self.tried(peers, &Stop::Home(home), self.client.owner(), &request).await;
        true
    }

    /// Tells every other replica; nobody waits for it.
    pub(super) fn tell_others(&self, method: Method, message: &Bytes) {
        if self.peers().is_none() {
            return;
        }
        let (ask, message) = (self.clone(), message.clone());
        tokio::spawn(async move {
            let Some(peers) = ask.peers() else { return };
            let home = ask.client.session.as_ref().and_then(|session| session.home.as_ref());
            let telling = peers.others(home).await.into_iter().map(|link| async {
                let Some(request) = ask.request(method.clone(), &message) else { return };
                let told = async {
                    if let Sent::Answered(response) = peers.send(link, ask.client.principal, request).await {
                        // Read to its end, so that the connection can be used again.
                        Limited::new(response.into_body(), 4096).collect().await.ok();
                    }
                };
                // One that is gone has nothing to be told.
                timeout(TELLING, told).await.ok();
            });
            futures::future::join_all(telling).await;
        });
    }
}

/// Another replica's answer as the client gets it.
async fn passed(response: Response<Incoming>, id: Option<&str>) -> Response<Body> {
    let (parts, incoming) = response.into_parts();
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let is_stream = is_type(&parts.headers, EVENTS);
    let body = if !is_stream && length.is_some_and(|length| length <= READ_FIRST) {
        match incoming.collect().await {
            Ok(collected) => Body::ready(collected.to_bytes()),
            Err(problem) => return lost(id, &problem.to_string()),
        }
    } else {
        let last = id.filter(|_| is_stream).map(|id| sse::event(&lost_message(id, "its stream broke off")));
        Body::Forwarded(Forwarded::new(incoming, last))
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = parts.status;
    for name in [CONTENT_TYPE, CACHE_CONTROL, HeaderName::from_static(headers::SESSION_ID)] {
        if let Some(value) = parts.headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

/// The answer to a request that another replica may have acted on.
fn lost(id: Option<&str>, problem: &str) -> Response<Body> {
    match id {
        Some(id) => full(StatusCode::OK, JSON, lost_message(id, problem)),
        None => full(StatusCode::BAD_GATEWAY, "text/plain", format!("the replica that holds this is gone: {problem}")),
    }
}

fn lost_message(id: &str, problem: &str) -> Vec<u8> {
    let text = format!(
        "the replica of the gateway that worked on the request ended; its server may have acted on it ({problem})"
    );
    write_error(Some(id), error::SERVER_GONE, &text)
}
