//! One request taken to its server and its answer brought back, in the client's terms.
//!
//! A request that the server has not seen is sent again: to a session opened anew when the server forgot the old one, to a
//! new address when its bridge was replaced. One that it may have seen never is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, quoted, splice, write_error, write_request, write_result};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error as code, methods, sse};
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::body::{self, Body, json};
use crate::metrics::count;
use crate::upstream::{Events, Failure, LegacySession, Owner, Upstream, collect, is_type, modern_headers};
use crate::{Inner, translate, uris};

/// A server whose bridge is being replaced is waited for this long.
const REACH: Duration = Duration::from_secs(10);
const REACH_AGAIN: Duration = Duration::from_millis(20);
/// Silence on a stream after which a comment is sent.
pub(crate) const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Messages that may wait for the client to read them.
const AHEAD: usize = 64;
/// Reasons of an unavailable server that pass by themselves within moments.
const PASSING: [&str; 3] = ["Pending", "Starting", "BridgeMute"];

/// A client's request, addressed.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) server: String,
    pub(crate) client_era: Era,
    pub(crate) method: String,
    /// Raw, as the client gave it.
    pub(crate) id: String,
    /// Raw, with the server's own names.
    pub(crate) params: Option<String>,
    /// The server's own name of what is asked for: tool, prompt or URI.
    pub(crate) name: Option<String>,
    /// Whose request it is.
    pub(crate) owner: Owner,
    /// Whether URIs in the result get the server's prefix.
    pub(crate) outward: bool,
    /// Whether the server may ask the client back.
    pub(crate) interactive: bool,
}

/// What the client gets, in order.
enum Part {
    Notification(Vec<u8>),
    Answer(Vec<u8>),
}

/// Requests under way, by their client and its id, so that the client can cancel them.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<(Owner, String), Arc<Notify>>>);

impl InFlight {
    fn enter(&self, owner: Owner, id: &str) -> Arc<Notify> {
        let cancel = Arc::new(Notify::new());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((owner, id.to_owned()), cancel.clone());
        cancel
    }

    fn leave(&self, owner: Owner, id: &str, cancel: &Arc<Notify>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (owner, id.to_owned());
        // A client that used its id twice has another entry here by now.
        if all.get(&key).is_some_and(|current| Arc::ptr_eq(current, cancel)) {
            all.remove(&key);
        }
    }

    /// Ends the request of this owner and raw id, if it is under way.
    pub(crate) fn cancel(&self, owner: Owner, id: &str) {
        if let Some(cancel) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(owner, id.to_owned())) {
            cancel.notify_one();
        }
    }
}

/// The answer as JSON if it comes first, else a stream of what comes before it.
pub(crate) async fn forward(inner: &Arc<Inner>, call: Call) -> Response<Body> {
    count(&inner.metrics.calls);
    let (parts, mut received) = mpsc::channel(AHEAD);
    tokio::spawn(run(inner.clone(), call, parts));
    let first = match tokio::time::timeout(COMMENT_EVERY, received.recv()).await {
        Ok(Some(Part::Answer(answer))) => return json(answer),
        Ok(Some(Part::Notification(notification))) => sse::event(&notification),
        // Cancelled: there is no answer, and the stream just ends.
        Ok(None) => return body::events().1,
        Err(_) => Bytes::from_static(sse::COMMENT),
    };
    let (sender, response) = body::events();
    tokio::spawn(async move {
        let mut next = first;
        loop {
            if sender.send(next).await.is_err() {
                return;
            }
            next = tokio::select! {
                part = received.recv() => match part {
                    Some(Part::Notification(notification)) => sse::event(&notification),
                    Some(Part::Answer(answer)) => {
                        // A client that is gone misses it.
                        sender.send(sse::event(&answer)).await.ok();
                        return;
                    }
                    None => return,
                },
                () = tokio::time::sleep(COMMENT_EVERY) => Bytes::from_static(sse::COMMENT),
                () = sender.closed() => return,
            };
        }
    });
    response
}

async fn run(inner: Arc<Inner>, call: Call, parts: mpsc::Sender<Part>) {
    let served = inner.served();
    let limit = served
        .upstreams
        .get(&call.server)
        .map_or(REACH, |watched| Duration::from_millis(watched.upstream.config.call_timeout_ms));
    let cancel = inner.in_flight.enter(call.owner, &call.id);
    let mut exchange = Exchange { inner: &inner, call: &call, parts: &parts, sent: None };
    let deadline = Instant::now() + limit;
    let work = async {
        // Closed never: the semaphore lives as long as the configuration.
        let waited = tokio::time::timeout_at(deadline, served.calls.acquire()).await;
        let Ok(_permit) = waited else {
            return Some(call.error(code::OVERLOADED, "the hub has too many calls under way"));
        };
        Some(match exchange.run().await {
            Ok(answer) => answer,
            Err(failure) => {
                count(&inner.metrics.calls_unavailable);
                call.failed(&failure)
            }
        })
    };
    let outcome = tokio::select! {
        answer = work => answer,
        () = tokio::time::sleep_until(deadline) => {
            Some(call.error(code::CALL_TIMEOUT, &format!("the server did not answer within {} s", limit.as_secs_f64())))
        }
        () = cancel.notified() => None,
        // Legacy clients may disconnect and mean nothing by it; a modern client cancels that way.
        () = parts.closed(), if call.client_era == Era::Modern => None,
    };
    match outcome {
        Some(answer) => {
            // A client that is gone misses it.
            parts.send(Part::Answer(answer)).await.ok();
        }
        None => {
            if let Some((upstream, session, number)) = exchange.sent.take() {
                cancel_at(&upstream, &session, number).await;
            }
        }
    }
    inner.in_flight.leave(call.owner, &call.id, &cancel);
}

/// Tells a legacy server that nobody waits any more. A modern one notices by the closed stream.
async fn cancel_at(upstream: &Upstream, session: &LegacySession, number: u64) {
    let params = format!(r#"{{"requestId":{number},"reason":"the client cancelled"}}"#);
    let message = write_request(None, methods::CANCELLED, Some(&params));
    let sent = upstream.post(session.headers(), message.into());
    tokio::time::timeout(Duration::from_secs(5), sent).await.ok();
}

impl Call {
    fn error(&self, code: i64, message: &str) -> Vec<u8> {
        write_error(Some(&self.id), code, message)
    }

    /// The answer for a server that gave none. A tool call ends as the tool's own error, so that the model reads it.
    fn failed(&self, failure: &Failure) -> Vec<u8> {
        let (number, reason, hint) = match failure {
            Failure::Unavailable { reason, hint, .. } => (code::SERVER_UNAVAILABLE, reason.as_str(), hint.as_deref()),
            Failure::Unreachable(_) => (code::SERVER_UNAVAILABLE, "Unreachable", None),
            Failure::AuthRequired(_) => (code::SERVER_UNAVAILABLE, "AuthRequired", None),
            Failure::Gone(_) => return self.error(code::SERVER_GONE, &failure.to_string()),
            Failure::Unreadable(_) => return self.error(code::ANSWER_UNREADABLE, &failure.to_string()),
            Failure::Timeout(_) => return self.error(code::CALL_TIMEOUT, &failure.to_string()),
            Failure::Refused { code, message } => return self.error(*code, message),
        };
        let hint = hint.unwrap_or("`mcpctl status` says why, `mcpctl logs` shows what the server wrote");
        let text = format!("server `{}` is not available ({reason}): {failure}\nhint: {hint}", self.server);
        if self.method != methods::TOOLS_CALL {
            return self.error(number, &text);
        }
        let kind = if self.client_era == Era::Modern { r#","resultType":"complete""# } else { "" };
        let result = format!(r#"{{"content":[{{"type":"text","text":{}}}],"isError":true{kind}}}"#, quoted(&text));
        write_result(&self.id, &result)
    }
}

struct Exchange<'a> {
    inner: &'a Arc<Inner>,
    call: &'a Call,
    parts: &'a mpsc::Sender<Part>,
    /// Where the request went, if it went to a legacy server: what a cancellation needs.
    sent: Option<(Arc<Upstream>, Arc<LegacySession>, u64)>,
}

impl Exchange<'_> {
    async fn run(&mut self) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + REACH;
        let mut forgotten = None;
        loop {
            // Looked up each time: a bridge that was replaced has another address.
            let served = self.inner.served();
            let Some(watched) = served.upstreams.get(&self.call.server) else {
                let message = "the hub does not offer it any more".to_owned();
                return Err(Failure::Unavailable { reason: "Removed".to_owned(), message, hint: None });
            };
            let upstream = watched.upstream.clone();
            let attempt = self.attempt(&upstream, forgotten.as_ref()).await;
            let (era, response) = match attempt {
                Ok(sent) => sent,
                Err(failure) if passes(&failure) && Instant::now() < deadline => {
                    tokio::time::sleep(REACH_AGAIN).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let session = self.sent.as_ref().map(|(_, session, _)| session.clone());
            if response.status() == StatusCode::NOT_FOUND
                && forgotten.is_none()
                && let Some(session) = session.filter(|session| session.id.is_some())
            {
                forgotten = Some(session);
                continue;
            }
            return self.answer(&upstream, era, response).await;
        }
    }

    /// Sends the request once.
    async fn attempt(
        &mut self,
        upstream: &Arc<Upstream>,
        forgotten: Option<&Arc<LegacySession>>,
    ) -> Result<(Era, Response<Incoming>), Failure> {
        let call = self.call;
        upstream.endpoint()?;
        let era = upstream.era(REACH).await?;
        if era != call.client_era && !translate::is_translatable(&call.method) {
            let message = format!("{} cannot be translated for this server, which speaks another era", call.method);
            return Err(Failure::Refused { code: code::NOT_TRANSLATABLE, message });
        }
        let params = match (call.client_era, era) {
            (Era::Legacy, Era::Modern) => Some(changed(call.params.as_deref(), translate::params_to_modern)),
            (Era::Modern, Era::Legacy) => Some(changed(call.params.as_deref(), translate::params_to_legacy)),
            (Era::Legacy, Era::Legacy) | (Era::Modern, Era::Modern) => call.params.clone(),
        };
        match era {
            Era::Modern => {
                let mut extra = modern_headers(&call.method, call.name.as_deref());
                self.param_headers(upstream, params.as_deref(), &mut extra);
                let message = write_request(Some(&call.id), &call.method, params.as_deref());
                self.sent = None;
                Ok((era, upstream.post(extra, message.into()).await?))
            }
            Era::Legacy => {
                let session = upstream.session(call.owner, None, forgotten).await?;
                // Clients share the session, so ids and progress tokens are made different.
                let number = upstream.next_id();
                let ours = number.to_string();
                let params = params.map(|params| with_progress_token(&params, &ours));
                let message = write_request(Some(&ours), &call.method, params.as_deref());
                self.sent = Some((upstream.clone(), session.clone(), number));
                Ok((era, upstream.post(session.headers(), message.into()).await?))
            }
        }
    }

    /// `Mcp-Param-*` of a tool whose schema asks for them.
    fn param_headers(&self, upstream: &Upstream, params: Option<&str>, extra: &mut HeaderMap) {
        if self.call.method != methods::TOOLS_CALL {
            return;
        }
        let catalog = upstream.catalog();
        let tool = catalog.lists[0].iter().flatten().find(|item| Some(&item.key) == self.call.name.as_ref());
        let Some(tool) = tool else { return };
        let arguments = params.and_then(RawObject::parse);
        let arguments = arguments.as_ref().and_then(|params| params.get("arguments"));
        for (name, value) in translate::param_headers(&tool.raw, arguments) {
            let value = mcp_hub_mcp::headers::encode(&value).into_owned();
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
                extra.insert(name, value);
            }
        }
    }

    async fn answer(
        &mut self,
        upstream: &Arc<Upstream>,
        era: Era,
        response: Response<Incoming>,
    ) -> Result<Vec<u8>, Failure> {
        if is_type(response.headers(), body::EVENTS) {
            let mut events = Events::new(response.into_body());
            while let Some(message) = events.next().await? {
                if let Some(answer) = self.message(upstream, era, &message).await? {
                    return Ok(answer);
                }
            }
            return Err(Failure::Gone("the stream ended without an answer".to_owned()));
        }
        let status = response.status();
        let message = collect(response.into_body()).await?;
        match self.message(upstream, era, &message).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => Err(Failure::Unreadable(format!("HTTP {status}, and no JSON-RPC answer"))),
        }
    }

    /// Passes one message of the server on; the answer is given back.
    async fn message(
        &mut self,
        upstream: &Arc<Upstream>,
        era: Era,
        message: &[u8],
    ) -> Result<Option<Vec<u8>>, Failure> {
        let envelope = Envelope::parse(message).map_err(|error| Failure::Unreadable(error.to_string()))?;
        match envelope.kind() {
            Kind::Response => self.translated(era, message, &envelope).map(Some),
            Kind::Notification => {
                if let Some(notification) = self.notification(era, message, &envelope) {
                    // Progress may be missed; a client that does not read must not hold up its answer.
                    self.parts.try_send(Part::Notification(notification)).ok();
                }
                Ok(None)
            }
            Kind::Request => {
                if self.call.interactive && era == Era::Legacy && self.call.client_era == Era::Legacy {
                    self.parts.send(Part::Notification(message.to_vec())).await.ok();
                } else if let (Some(id), Some((_, session, _))) = (envelope.id, &self.sent) {
                    let text = format!("{} cannot be passed on to this client", envelope.method());
                    let refusal = write_error(Some(id.get()), code::NOT_TRANSLATABLE, &text);
                    // A server that is gone by now has its own way to tell.
                    upstream.post(session.headers(), refusal.into()).await.ok();
                }
                Ok(None)
            }
        }
    }

    fn notification(&self, era: Era, message: &[u8], envelope: &Envelope<'_>) -> Option<Vec<u8>> {
        let call = self.call;
        let meta = call.params.as_deref().and_then(RawObject::parse);
        let meta = meta.as_ref().and_then(|params| params.get("_meta"));
        match &*envelope.method() {
            methods::PROGRESS => {
                let token = Params::of(envelope.params).progress_token?;
                let wanted = meta.and_then(RawObject::parse)?;
                let theirs = wanted.get("progressToken")?;
                Some(splice(message, &mut [(token, theirs.as_bytes())]))
            }
            methods::MESSAGE if call.client_era == Era::Modern => {
                let from = translate::log_level(meta)?;
                translate::is_wanted(envelope.params.map(RawValue::get), from).then(|| message.to_vec())
            }
            _ if era == call.client_era => Some(message.to_vec()),
            methods::MESSAGE => Some(message.to_vec()),
            _ => None,
        }
    }

    /// The answer under the client's id and in its era.
    fn translated(&self, era: Era, message: &[u8], envelope: &Envelope<'_>) -> Result<Vec<u8>, Failure> {
        let call = self.call;
        let crosses = era != call.client_era;
        if let Some(error) = envelope.error {
            let error = match crosses {
                true => translate::error(call.client_era, &call.method, error.get()),
                false => error.get().to_owned(),
            };
            return Ok(format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, call.id).into_bytes());
        }
        let (Some(id), Some(result)) = (envelope.id, envelope.result) else {
            return Err(Failure::Unreadable("it is no answer".to_owned()));
        };
        let has_uris = call.outward
            && (memchr::memmem::find(message, b"\"uri").is_some()
                || memchr::memmem::find(message, b"resourceUri").is_some());
        if !crosses && !has_uris {
            // Byte by byte, whatever is in it.
            return Ok(splice(message, &mut [(id, call.id.as_bytes())]));
        }
        let mut text = match (crosses, call.client_era) {
            (false, _) => result.get().to_owned(),
            (true, Era::Legacy) => translate::result_to_legacy(result.get()).map_err(|error| untranslatable(&error))?,
            (true, Era::Modern) => {
                translate::result_to_modern(&call.method, result.get()).map_err(|error| untranslatable(&error))?
            }
        };
        if has_uris {
            let mut value: serde_json::Value =
                serde_json::from_str(&text).map_err(|error| Failure::Unreadable(error.to_string()))?;
            uris::rewrite(&call.server, &mut value);
            text = value.to_string();
        }
        Ok(write_result(&call.id, &text))
    }
}

fn untranslatable(error: &translate::Untranslatable) -> Failure {
    Failure::Refused { code: code::NOT_TRANSLATABLE, message: error.to_string() }
}

/// Whether the server has not seen the request and will be there in a moment.
fn passes(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable(_) => true,
        Failure::Unavailable { reason, .. } => PASSING.contains(&reason.as_str()),
        Failure::AuthRequired(_)
        | Failure::Gone(_)
        | Failure::Unreadable(_)
        | Failure::Refused { .. }
        | Failure::Timeout(_) => false,
    }
}

fn changed(params: Option<&str>, change: fn(&mut RawObject)) -> String {
    let mut object = params.and_then(RawObject::parse).unwrap_or_default();
    change(&mut object);
    object.to_string()
}

/// The params with this progress token, if they hold one.
fn with_progress_token(params: &str, token: &str) -> String {
    let Ok(raw) = serde_json::from_str::<&RawValue>(params) else { return params.to_owned() };
    match Params::of(Some(raw)).meta().progress_token {
        Some(theirs) => {
            String::from_utf8_lossy(&splice(raw.get().as_bytes(), &mut [(theirs, token.as_bytes())])).into_owned()
        }
        None => params.to_owned(),
    }
}
