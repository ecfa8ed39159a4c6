//! One request of a client, passed on to a server.
//!
//! The message is spliced, not parsed: its id where clients share a session, the name or URI that the aggregate changed,
//! and what the server's era needs. A request that may have been acted on is never sent again; the caller gets
//! [`SERVER_GONE`](error::SERVER_GONE), also for `tools/call`, because a result with `isError` would read as if the tool
//! had spoken. A call that no server has seen is answered with `isError`, reason and hint, so that a model can tell people.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Params, write_error};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error, methods, sse};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::Inner;
use crate::activity::Busy;
use crate::body::{Body, JSON, events, full, json as json_response};
use crate::client::Client;
use crate::ears::{self, Ear};
use crate::fields::Fields;
use crate::flights::{Flight, OnDrop};
use crate::metrics::count;
use crate::names;
use crate::outgoing::{Aim, Outgoing, Places};
use crate::parked::{Claim, NotWaiting};
use crate::questions;
use crate::source::Begins;
use crate::translate;
use crate::upstream::{Failure, LegacySession, Owner, Said, Upstream, collect, is_usable, list};

/// Silence after which a client is given a stream with comments, so that nothing between us takes it for dead.
pub(crate) const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// How long a request that no server has seen waits for a server that is being replaced.
const REPLACEMENT: Duration = Duration::from_secs(3);
/// Attempts at one server that it refuses without looking at the request: twice restarted, and with a changed schema.
const ATTEMPTS_MAX: usize = 4;
/// How long a request waits for the introduction of a server that it cannot do without.
pub(crate) const INTRODUCTION: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) inner: Arc<Inner>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) client: Client,
    /// The client's id, raw.
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) message: Bytes,
    /// In the message.
    pub(crate) places: Places,
    pub(crate) aim: Option<Aim>,
    /// Whether the client sees URIs of the aggregate.
    pub(crate) aggregate: bool,
    /// `Mcp-Param-*` of a modern client.
    pub(crate) param_headers: Fields,
    pub(crate) seat: Seat,
    /// With which a modern client goes on with a call, raw.
    pub(crate) request_state: Option<String>,
    /// Largest tool result in bytes.
    pub(crate) result_limit: Option<usize>,
    /// Whether this is a later round of a call, which its server must not take for the first.
    pub(crate) is_retry: bool,
    /// Held until the call ends.
    pub(crate) busy: Option<Arc<Busy>>,
}

/// Whose session with a server a request goes into, and what its client can be asked there.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    pub(crate) owner: Owner,
    /// Raw, as a server of the other era is told them if the client is modern.
    pub(crate) capabilities: Option<String>,
}

impl Seat {
    /// Modern clients have no sessions: those of one token that can be asked the same things share one, where a server
    /// has a session for each client.
    pub(crate) fn of(client: &Client, upstream: &Upstream, params: &Params<'_>) -> Self {
        let capabilities = match client.era {
            Era::Legacy => client.session.as_ref().and_then(|session| session.capabilities.clone()),
            Era::Modern if upstream.is_shared() => None,
            Era::Modern => {
                let declared = params.meta().client_capabilities.map(|raw| raw.get());
                let told = questions::client_capabilities(declared);
                let owner =
                    Owner::Principal(Sha256::digest([&client.principal.0[..], told.as_bytes()].concat()).into());
                return Self { owner, capabilities: Some(told) };
            }
        };
        Self { owner: client.owner(), capabilities }
    }
}

/// A retry that goes on with a call that waits.
#[derive(Debug)]
pub(crate) struct Return {
    pub(crate) exchange: Exchange,
    pub(crate) permit: Permit,
    pub(crate) deadline: Instant,
    pub(crate) sender: mpsc::Sender<Bytes>,
}

/// A request that a server is working on.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) outgoing: Outgoing,
    pub(crate) reply: Reply,
    pub(crate) flight: Flight,
    /// Hears what the server says outside of the call's own stream, where the session is the gateway's.
    pub(crate) ear: Option<Ear>,
}

/// What a server does with a request.
pub(crate) enum Reply {
    Begun(Response<Said>),
    /// It says something elsewhere first.
    Pending(Begins),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Begun(_) => "Begun",
            Self::Pending(_) => "Pending",
        })
    }
}

impl Exchange {
    /// The response for the client. After a long silence it becomes a stream.
    pub(crate) async fn run(self) -> Response<Body> {
        count(&self.inner.metrics.calls);
        let streams = self.client.takes_events;
        let (id, failed) = (self.id.clone(), self.id.clone());
        // A legacy client that goes away cancels nothing; a modern server takes the end of the connection for that.
        let detached = self.client.era == Era::Legacy && self.upstream.known_era() != Some(Era::Legacy);
        let mut driving = Box::pin(async move {
            if !detached {
                return self.drive().await;
            }
            tokio::spawn(self.drive()).await.unwrap_or_else(|_| {
                crate::body::error(StatusCode::OK, Some(&failed), error::INTERNAL_ERROR, "the gateway failed")
            })
        });
        if !streams {
            return driving.await;
        }
        tokio::select! {
            response = &mut driving => return response,
            () = tokio::time::sleep(COMMENT_EVERY) => {}
        }
        let (sender, response) = events();
        tokio::spawn(async move {
            let driven = loop {
                if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() {
                    return;
                }
                tokio::select! {
                    driven = &mut driving => break driven,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(COMMENT_EVERY) => {}
                }
            };
            match driven.into_body() {
                Body::Ready(parts) => {
                    // Whoever is gone misses it.
                    sender.send(sse::event(&parts.joined())).await.ok();
                }
                Body::Stream(mut messages) => {
                    while let Some(part) = messages.recv().await {
                        if sender.send(part).await.is_err() {
                            return;
                        }
                    }
                }
                body @ (Body::Upstream(_) | Body::Forwarded(_)) => {
                    let message = collect(body).await;
                    let broken = |failure: Failure| write_error(Some(&id), error::SERVER_GONE, &failure.to_string());
                    sender.send(sse::event(&message.unwrap_or_else(|failure| broken(failure).into()))).await.ok();
                }
            }
        });
        response
    }

    async fn drive(self) -> Response<Body> {
        let deadline = Instant::now() + self.limit();
        let permit = match self.permit(deadline).await {
            Ok(permit) => permit,
            Err(refusal) => return json_response(refusal),
        };
        if let Some(state) = &self.request_state
            && self.upstream.known_era() == Some(Era::Legacy)
        {
            let state: String = serde_json::from_str(state).unwrap_or_default();
            return self.resume(&state, permit, deadline);
        }
        match self.open(Some(deadline).filter(|_| !self.is_subscription())).await {
            Ok(opened) => self.relay(opened, permit, deadline).await,
            // A request that its client has cancelled is not answered (2025-11-25, "Cancellation").
            Err(Failure::Cancelled) => events().1,
            Err(failure) => json_response(self.failure(&failure)),
        }
    }

    /// Longest time of one round.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_millis(self.upstream.config.call_timeout_ms)
    }

    /// A place among the calls in flight; the refusal for the client if there is none in time.
    pub(crate) async fn permit(&self, deadline: Instant) -> Result<Permit, Bytes> {
        if self.is_subscription() {
            return Ok(None);
        }
        let calls = self.inner.served().calls.clone();
        match tokio::time::timeout_at(deadline, calls.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => {
                let text = "too many calls at a time; this one waited its whole time and was not made";
                Err(write_error(Some(&self.id), error::OVERLOADED, text).into())
            }
        }
    }

    /// What a call that waits and its retry have in common.
    pub(crate) fn claim(&self) -> Claim {
        let envelope = Envelope::parse(&self.message).ok();
        let params = envelope.and_then(|envelope| envelope.params).map(|raw| raw.get());
        Claim::of(&self.upstream.config.uid, &self.method, params)
    }

    /// Goes on with the call that waits for this request.
    fn resume(self, state: &str, permit: Permit, deadline: Instant) -> Response<Body> {
        let id = self.id.clone();
        let found = self.inner.parked.find(self.client.principal, &self.claim(), state);
        let gone = found.and_then(|call| {
            let (sender, response) = events();
            let back = Return { exchange: self, permit, deadline, sender };
            call.send(back).map(|()| response).map_err(|_| NotWaiting::Gone)
        });
        gone.unwrap_or_else(|problem| {
            let code = match problem {
                NotWaiting::Forged | NotWaiting::OtherRequest => error::INVALID_PARAMS,
                NotWaiting::Gone => error::CALL_NOT_WAITING,
            };
            crate::body::error(StatusCode::OK, Some(&id), code, &problem.to_string())
        })
    }

    pub(crate) fn is_subscription(&self) -> bool {
        self.method == methods::LISTEN
    }

    /// Sends the request, again only if it is certain that no server has worked on it.
    pub(crate) async fn open(&self, deadline: Option<Instant>) -> Result<Opened, Failure> {
        let mut upstream = self.upstream.clone();
        // What was there when the wait began.
        let mut first = upstream.clone();
        let until = |from: Instant| deadline.map_or(from + REPLACEMENT, |deadline| deadline.min(from + REPLACEMENT));
        let mut patience = until(Instant::now());
        let mut pause = Duration::from_millis(25);
        loop {
            match self.open_at(&upstream, deadline).await {
                Err(Failure::Asleep) if methods::is_call(&self.method) => {
                    let Some(deadline) = deadline else { return Err(Failure::Asleep) };
                    first = Box::pin(self.inner.woken(&upstream, deadline)).await?;
                    upstream = first.clone();
                    patience = until(Instant::now());
                    continue;
                }
                Err(failure @ (Failure::Unreachable(_) | Failure::Unavailable { .. })) => {
                    upstream.refresh.notify_one();
                    // What was not there from the beginning is not waited for.
                    let waits = first.endpoint().is_ok() && !first.is_long_away();
                    if !waits || Instant::now() + pause >= patience {
                        return Err(failure);
                    }
                }
                result => {
                    // What the watch believes of the server is wrong.
                    if upstream.is_ready() == matches!(result, Err(Failure::AuthRequired(_))) {
                        upstream.refresh.notify_one();
                    }
                    return result;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(400));
            let served = self.inner.served();
            if let Some(current) = served.upstreams.get(&self.upstream.config.name)
                && current.upstream.config.uid == self.upstream.config.uid
            {
                upstream = current.upstream.clone();
            }
        }
    }

    async fn open_at(&self, upstream: &Arc<Upstream>, deadline: Option<Instant>) -> Result<Opened, Failure> {
        upstream.endpoint()?;
        let era = match upstream.known_era() {
            Some(era) => era,
            // What is rare is boxed here and elsewhere: the future of a call is moved several times, as a whole.
            None => Box::pin(self.in_time(deadline, upstream.era(INTRODUCTION))).await?,
        };
        let mut forgotten: Option<Arc<LegacySession>> = None;
        let mut renewed = false;
        for _ in 0..ATTEMPTS_MAX {
            let session = match era {
                Era::Modern => None,
                Era::Legacy => Some(match self.open_session(upstream, forgotten.as_ref()) {
                    Some(session) => session,
                    None => Box::pin(self.in_time(deadline, self.session(upstream, forgotten.as_ref()))).await?,
                }),
            };
            let (outgoing, extra) = self.outgoing(upstream, era);
            // Before it is sent, so that there is no moment in which it cannot be cancelled.
            let flight = Flight::new(
                &self.inner,
                upstream,
                (self.seat.owner, self.id.clone()),
                session.clone(),
                outgoing.id.clone(),
                if self.client.era == Era::Modern { OnDrop::Cancel } else { OnDrop::Forget },
            );
            let is_heard = era == Era::Legacy && self.is_heard(upstream);
            let mut ear = is_heard.then(|| Ear::new(&self.inner, upstream, self.seat.owner));
            let sending = async {
                let Some(ear) = &mut ear else {
                    return upstream.post(session.as_deref(), extra, outgoing.body.clone()).await.map(Reply::Begun);
                };
                let (upstream, session, body) = (upstream.clone(), session.clone(), outgoing.body.clone());
                let mut begins: Begins = async move { upstream.post(session.as_deref(), extra, body).await }.boxed();
                tokio::select! {
                    response = &mut begins => response.map(Reply::Begun),
                    () = ear.listen() => Ok(Reply::Pending(begins)),
                }
            };
            let sent = tokio::select! {
                sent = sending => sent,
                () = flight.cancelled() => Err(Failure::Cancelled),
                () = at(deadline) => {
                    flight.abandon();
                    return Err(Failure::Timeout(self.limit()));
                }
            };
            let response = match sent {
                Ok(Reply::Begun(response)) => response,
                Ok(reply @ Reply::Pending(_)) => return Ok(Opened { outgoing, reply, flight, ear }),
                Err(failure) => {
                    flight.landed();
                    return Err(failure);
                }
            };
            if response.status() == StatusCode::NOT_FOUND
                && session.as_ref().is_some_and(|open| open.may_be_forgotten())
            {
                // The server does not know the session, so it has not looked at the request.
                flight.landed();
                forgotten = session;
                continue;
            }
            let made_here = era == Era::Modern && self.client.era == Era::Legacy && self.method == methods::TOOLS_CALL;
            if response.status() == StatusCode::BAD_REQUEST && made_here && !renewed {
                // Refused for its headers, which were made from a schema that may have changed; it was not looked at.
                flight.landed();
                renewed = true;
                let listing = self.in_time(deadline, list(upstream, era, methods::TOOLS_LIST, "tools"));
                if let Ok(tools) = Box::pin(listing).await {
                    upstream.learn_tools(tools);
                }
                continue;
            }
            return Ok(Opened { outgoing, reply: Reply::Begun(response), flight, ear });
        }
        Err(Failure::Unreachable("it forgets every session at once".to_owned()))
    }

    /// The session in which a legacy server gets the request, if there is one and nothing has to be done in it first.
    fn open_session(&self, upstream: &Upstream, forgotten: Option<&Arc<LegacySession>>) -> Option<Arc<LegacySession>> {
        let waits = self.is_heard(upstream) || self.log_level().is_some();
        upstream.usable_session(self.seat.owner, forgotten).filter(|_| !waits)
    }

    /// The same, opened if need be.
    async fn session(
        &self,
        upstream: &Arc<Upstream>,
        forgotten: Option<&Arc<LegacySession>>,
    ) -> Result<Arc<LegacySession>, Failure> {
        let capabilities = self.seat.capabilities.as_deref().filter(|_| !upstream.is_shared());
        let session = upstream.session(self.seat.owner, capabilities, forgotten).await.map_err(not_begun)?;
        if self.is_heard(upstream) {
            ears::open(&self.inner, upstream, self.seat.owner, &session);
        }
        if let Some(level) = self.log_level() {
            upstream.tune(self.seat.owner, &session, level).await;
        }
        Ok(session)
    }

    /// What comes before the request is sent has no more time than the request.
    async fn in_time<T>(
        &self,
        deadline: Option<Instant>,
        coming: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match deadline {
            None => coming.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline, coming).await.unwrap_or_else(|_| Err(Failure::Timeout(self.limit())))
            }
        }
    }

    /// Whether the session with the server is the gateway's own, for this client, so that it listens to its stream.
    pub(crate) fn is_heard(&self, upstream: &Upstream) -> bool {
        !upstream.is_shared() && (self.aggregate || self.client.era == Era::Modern)
    }

    /// The level from which on the client wants log messages; `None` if it has not said.
    pub(crate) fn log_level(&self) -> Option<usize> {
        match (self.client.era, &self.client.session) {
            (Era::Legacy, Some(session)) => self.inner.interests.level(session.nonce),
            (Era::Legacy, None) => None,
            (Era::Modern, _) => {
                let envelope = Envelope::parse(&self.message).ok()?;
                translate::log_level(Params::of(envelope.params).meta.map(|raw| raw.get()))
            }
        }
    }

    /// What the client can be asked in the middle of the call, raw. A legacy client is asked on a stream.
    pub(crate) fn capabilities(&self) -> Option<&str> {
        let can_be_asked = self.client.era == Era::Modern || self.client.takes_events;
        self.seat.capabilities.as_deref().filter(|_| can_be_asked)
    }

    /// Whether a list of tools is not passed on as it is: for the rules, or because some of them may not be offered.
    pub(crate) fn is_picked(&self, era: Era) -> bool {
        self.method == methods::TOOLS_LIST && (era == Era::Modern || !names::are_open(&self.upstream.config.tools))
    }

    /// A list of tools of a server of this era with only what the rules offer, under the names that they give.
    pub(crate) fn picked(&self, era: Era, result: &str) -> String {
        let rules = &self.upstream.config.tools;
        let annotated = || memchr::memmem::find(result.as_bytes(), b"x-mcp-header").is_some();
        if !self.is_picked(era) || names::are_open(rules) && !annotated() {
            return result.to_owned();
        }
        let Some(mut object) = RawObject::parse(result) else { return result.to_owned() };
        let items: Vec<&serde_json::value::RawValue> =
            object.get("tools").and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
        let mut kept = Vec::with_capacity(items.len());
        for raw in items {
            let Some(item) = crate::upstream::item("tools", raw) else { continue };
            let Some(name) = names::offered(rules, &item.key) else { continue };
            if !is_usable(era, &self.method, &item) {
                continue;
            }
            kept.push(if name == item.key {
                item.raw.clone()
            } else {
                crate::aggregate::renamed(&item.raw, "name", name)
            });
        }
        object.set("tools", format!("[{}]", kept.join(",")));
        object.to_string()
    }

    /// Whether an answer of so many bytes may pass as it is.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.method != methods::TOOLS_CALL || self.result_limit.is_none_or(|limit| bytes <= limit as u64)
    }

    /// Whether the result that the server answers is what the client gets, byte by byte.
    pub(crate) fn is_verbatim(&self, outgoing: &Outgoing) -> bool {
        outgoing.era == self.client.era && !self.aggregate && !self.is_picked(outgoing.era)
    }
}

/// Whatever went wrong while the session was opened, the request itself has not been sent.
fn not_begun(failure: Failure) -> Failure {
    match failure {
        Failure::Gone(text) => Failure::Unreachable(text),
        Failure::Refused { message, .. } => {
            Failure::Unavailable { reason: "NoSession".to_owned(), message, hint: None }
        }
        failure => failure,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A whole JSON response with this status.
pub(crate) fn whole(status: StatusCode, message: impl Into<Bytes>) -> Response<Body> {
    full(status, JSON, message)
}

pub(crate) type Permit = Option<OwnedSemaphorePermit>;
