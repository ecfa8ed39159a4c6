//! Clients of the legacy era: `initialize`, sessions, notifications, batches.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, quoted, string, write_error, write_result};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error, methods};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Ask, CAPABILITIES, Scope, server_info};
use crate::body::{self, Body, full, json};
use crate::exchange::{INTRODUCTION, Seat, whole};
use crate::fields::{self, Fields};
use crate::metrics::count;
use crate::translate;
use crate::upstream::{Failure, Upstream};

/// Client capabilities that are kept in a session id; a client with more is taken for one that can do nothing special.
const CAPABILITIES_MAX: usize = 2048;
/// Messages of one batch.
const BATCH_MAX: usize = 100;

impl Ask {
    /// Takes the session from the header, and checks the version that it goes with. Without a session is served too.
    #[expect(clippy::result_large_err, reason = "the response is the error")]
    pub(super) fn legacy_session(&mut self, id: Option<&str>) -> Result<(), Response<Body>> {
        if let Some(version) = self.headers.get(&fields::PROTOCOL_VERSION) {
            let known = version.to_str().is_ok_and(|version| Era::of_version(version).is_some());
            if !known {
                let text =
                    format!("unknown MCP-Protocol-Version; legacy versions here: {}", LEGACY_VERSIONS.join(", "));
                return Err(body::error(StatusCode::BAD_REQUEST, id, error::INVALID_REQUEST, &text));
            }
        }
        let Some(shown) = self.headers.get(&fields::SESSION_ID) else { return Ok(()) };
        match self.inner.sessions.verify(self.client.principal, &self.scope.text(), shown, &self.last_session) {
            Some(session) => self.client.session = Some(session),
            None => return Err(body::error(StatusCode::NOT_FOUND, id, error::INVALID_REQUEST, "no such session")),
        }
        Ok(())
    }

    pub(super) async fn legacy(self, message: &Bytes, envelope: &Envelope<'_>, params: &Params<'_>) -> Response<Body> {
        let Some(id) = envelope.id.map(RawValue::get).filter(|_| envelope.kind() == Kind::Request) else {
            return Box::pin(self.notified(message, envelope, params)).await;
        };
        count(&self.inner.metrics.requests_legacy);
        let method = envelope.method();
        match (&*method, &self.scope) {
            (methods::INITIALIZE, _) => Box::pin(self.initialize(id, envelope)).await,
            (methods::PING, _) => json(write_result(id, "{}")),
            (methods::DISCOVER | methods::LISTEN, _) => no_method(id, &method),
            (methods::RESOURCES_SUBSCRIBE | methods::RESOURCES_UNSUBSCRIBE, _) if !self.has_own_session() => {
                Box::pin(self.subscribe(id, message, &method, params)).await
            }
            (methods::SET_LEVEL, _) if !self.has_own_session() => Box::pin(self.set_level(id, message, envelope)).await,
            (method, Scope::Aggregate) if !translate::is_translatable(method) => no_method(id, method),
            (_, Scope::Aggregate | Scope::Server(_)) => self.pass(message, envelope, params).await,
        }
    }

    async fn initialize(self, id: &str, envelope: &Envelope<'_>) -> Response<Body> {
        let params = envelope.params.and_then(|raw| RawObject::parse(raw.get())).unwrap_or_default();
        let wanted: String =
            params.get("protocolVersion").and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
        let version = LEGACY_VERSIONS.iter().find(|known| **known == wanted).unwrap_or(&LEGACY_VERSIONS[0]);
        let mut result = RawObject::default();
        result.set("protocolVersion", quoted(version));
        match &self.scope {
            Scope::Aggregate => {
                self.served.settle().await;
                result.set("capabilities", CAPABILITIES);
                result.set("serverInfo", server_info());
                if let Some(instructions) = self.served.instructions() {
                    result.set("instructions", quoted(&instructions));
                }
            }
            Scope::Server(upstream) => match introduced(upstream, &mut result).await {
                Ok(()) => {}
                Err(failure) => {
                    let text = format!("server `{}`: {failure}", upstream.config.name);
                    return body::error(StatusCode::OK, Some(id), error::SERVER_UNAVAILABLE, &text);
                }
            },
        }
        let capabilities = params.get("capabilities").filter(|raw| raw.len() <= CAPABILITIES_MAX);
        let session = self.inner.sessions.open(self.client.principal, &self.scope.text(), version, capabilities);
        let Some(Ok(session)) = session.map(|session| HeaderValue::from_str(&session)) else {
            let text = "no random numbers for a session id";
            return body::error(StatusCode::OK, Some(id), error::INTERNAL_ERROR, text);
        };
        let mut response = json(write_result(id, &result.to_string()));
        response.headers_mut().insert(&fields::SESSION_ID, session);
        response
    }

    /// Whether the client speaks with a legacy server in a session of its own, so that the server itself keeps what the
    /// client asked for.
    fn has_own_session(&self) -> bool {
        match &self.scope {
            Scope::Aggregate => false,
            Scope::Server(upstream) => !upstream.is_shared() && upstream.known_era() == Some(Era::Legacy),
        }
    }

    /// `resources/subscribe` and `resources/unsubscribe`, which the gateway keeps for the client.
    async fn subscribe(self, id: &str, message: &Bytes, method: &str, params: &Params<'_>) -> Response<Body> {
        let refuse = |code, text: &str| body::error(StatusCode::OK, Some(id), code, text);
        let Some(session) = self.client.session.as_ref().map(|session| session.nonce) else {
            return refuse(error::INVALID_REQUEST, "a subscription needs a session");
        };
        // Where the session's stream is.
        if let Some(answer) = self.session_elsewhere(Method::POST, message, Some(id)).await {
            return answer;
        }
        let Some(shown) = params.uri.and_then(string) else {
            return refuse(error::INVALID_PARAMS, "params lack uri");
        };
        let Some((upstream, uri)) = self.locate(&shown).await else {
            return refuse(error::RESOURCE_NOT_FOUND_LEGACY, "there is no such resource");
        };
        let (interests, server) = (&self.inner.interests, &upstream.config.name);
        if method == methods::RESOURCES_UNSUBSCRIBE {
            interests.unsubscribe(session, server, &uri);
            return json(write_result(id, "{}"));
        }
        let seat = Seat::of(&self.client, &upstream, params);
        match upstream.subscribe(&self.inner, &seat, &uri).await {
            Ok(topic) => match interests.subscribe(session, server, &uri, topic) {
                true => json(write_result(id, "{}")),
                false => refuse(error::OVERLOADED, "the session has too many subscriptions"),
            },
            Err(Failure::Refused { code, message }) => refuse(code, &format!("server `{server}`: {message}")),
            Err(failure) => refuse(error::SERVER_UNAVAILABLE, &format!("server `{server}`: {failure}")),
        }
    }

    /// `logging/setLevel`: kept for the session; servers are asked for what the most curious of their clients wants, modern
    /// ones with each request.
    async fn set_level(self, id: &str, message: &Bytes, envelope: &Envelope<'_>) -> Response<Body> {
        let refuse = |code, text: &str| body::error(StatusCode::OK, Some(id), code, text);
        let Some(session) = self.client.session.as_ref().map(|session| session.nonce) else {
            return refuse(error::INVALID_REQUEST, "a log level needs a session");
        };
        let params = envelope.params.and_then(|raw| RawObject::parse(raw.get()));
        let name = params.and_then(|params| serde_json::from_str::<String>(params.get("level")?).ok());
        let Some(level) = name.as_deref().and_then(translate::level_named) else {
            return refuse(error::INVALID_PARAMS, "params name no log level");
        };
        // Also here: the client's next calls are likely to come this way too.
        self.inner.interests.set_level(session, level);
        if let Some(answer) = self.session_elsewhere(Method::POST, message, Some(id)).await {
            return answer;
        }
        let owner = self.client.owner();
        let concerned: Vec<_> = match &self.scope {
            Scope::Server(upstream) => vec![upstream.clone()],
            Scope::Aggregate => self.served.upstreams.values().map(|watched| watched.upstream.clone()).collect(),
        };
        let tuning = concerned.iter().map(|upstream| async move {
            // Others are told with the first call that opens a session.
            if let Some(session) = upstream.open_session(owner) {
                upstream.tune(owner, &session, level).await;
            }
        });
        futures::future::join_all(tuning).await;
        json(write_result(id, "{}"))
    }

    /// Ends the session, and a server's that was opened for it.
    pub(super) async fn close(self) -> Response<Body> {
        let Some(session) = &self.client.session else {
            return full(StatusCode::BAD_REQUEST, "text/plain", "there is no session to end");
        };
        self.inner.sessions.close(session);
        self.inner.interests.forget(session.nonce);
        self.tell_others(Method::DELETE, &Bytes::new());
        let owner = self.client.owner();
        for watched in self.served.upstreams.values() {
            if let Some(open) = watched.upstream.take_session(owner) {
                watched.upstream.end(&open).await;
            }
        }
        full(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
    }

    /// Notifications, and answers to a server's requests: taken, and passed on where there is one who waits for them.
    async fn notified(self, message: &Bytes, envelope: &Envelope<'_>, params: &Params<'_>) -> Response<Body> {
        let method = envelope.method();
        let owner = self.client.owner();
        let taken = || full(StatusCode::ACCEPTED, "text/plain", Bytes::new());
        if envelope.kind() == Kind::Response
            && let Some(id) = envelope.id
            && (self.inner.asked.answer(owner, id.get(), message) || self.answered_elsewhere(id.get(), message).await)
        {
            return taken();
        }
        if method == methods::CANCELLED {
            let cancelled =
                params.request_id.is_some_and(|request| self.inner.flights.cancel(&(owner, request.get().to_owned())));
            if !cancelled {
                // Any replica may have the request.
                self.tell_others(Method::POST, message);
            }
        } else if method != methods::INITIALIZED {
            let has_own =
                self.has_own_session() || method == methods::ROOTS_CHANGED && matches!(self.scope, Scope::Aggregate);
            if has_own && let Some(answer) = self.session_elsewhere(Method::POST, message, None).await {
                return answer;
            }
            let concerned: Vec<&Arc<Upstream>> = match &self.scope {
                Scope::Server(upstream) => vec![upstream],
                // Of what a client says to nobody in particular, this is meant for every server.
                Scope::Aggregate if method == methods::ROOTS_CHANGED => {
                    self.served.upstreams.values().map(|watched| &watched.upstream).collect()
                }
                Scope::Aggregate => Vec::new(),
            };
            let telling = concerned.into_iter().filter(|upstream| !upstream.is_shared()).map(|upstream| async move {
                if let Some(session) = upstream.open_session(owner) {
                    // A server that is gone has nothing to be told.
                    upstream.post(Some(&session), Fields::new(), message.clone()).await.ok();
                }
            });
            futures::future::join_all(telling).await;
        }
        full(StatusCode::ACCEPTED, "text/plain", Bytes::new())
    }

    /// Batches exist in 2025-03-26 only; their messages are answered one after the other.
    pub(super) async fn batch(mut self, message: &Bytes) -> Response<Body> {
        if let Err(refusal) = self.legacy_session(None) {
            return refusal;
        }
        let shown = self.headers.get(&fields::PROTOCOL_VERSION).and_then(|value| value.to_str().ok());
        let version = self.client.session.as_ref().map(|session| session.version.as_str()).or(shown);
        let messages: Vec<&RawValue> = match serde_json::from_slice(message) {
            Ok(messages) => messages,
            Err(problem) => {
                return body::error(StatusCode::BAD_REQUEST, None, error::PARSE_ERROR, &problem.to_string());
            }
        };
        if version != Some("2025-03-26") || messages.is_empty() || messages.len() > BATCH_MAX {
            let text = format!("batches of 1 to {BATCH_MAX} messages are for clients of 2025-03-26");
            return body::error(StatusCode::BAD_REQUEST, None, error::INVALID_REQUEST, &text);
        }
        let mut answers: Vec<String> = Vec::new();
        for raw in messages {
            let single = Bytes::copy_from_slice(raw.get().as_bytes());
            let Ok(envelope) = Envelope::parse(&single) else {
                let problem = write_error(None, error::INVALID_REQUEST, "no JSON-RPC message");
                answers.extend(String::from_utf8(problem));
                continue;
            };
            if envelope.method() == methods::INITIALIZE {
                let text = "initialize may not be part of a batch";
                let id = envelope.id.map(|id| id.get());
                answers.extend(String::from_utf8(write_error(id, error::INVALID_REQUEST, text)));
                continue;
            }
            let mut ask = self.clone();
            // The answers become one JSON text, so none of them may be a stream.
            ask.client.takes_events = false;
            let params = Params::of(envelope.params);
            let response = Box::pin(ask.legacy(&single, &envelope, &params)).await;
            if envelope.kind() != Kind::Request {
                continue;
            }
            let events = response.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| kind == body::EVENTS);
            let Ok(collected) = response.into_body().collect().await else { continue };
            let answer = collected.to_bytes();
            let answer = if events { last_event(&answer) } else { answer.to_vec() };
            answers.extend(String::from_utf8(answer));
        }
        if answers.is_empty() {
            return full(StatusCode::ACCEPTED, "text/plain", Bytes::new());
        }
        whole(StatusCode::OK, format!("[{}]", answers.join(",")))
    }
}

/// The answer in a finished event stream.
fn last_event(stream: &[u8]) -> Vec<u8> {
    let mut last = Vec::new();
    let mut decoder = mcp_hub_mcp::sse::Decoder::new(mcp_hub_mcp::framing::LINE_MAX);
    // What cannot be decoded was no answer.
    decoder.feed(stream, |event| last = event).ok();
    last
}

fn no_method(id: &str, method: &str) -> Response<Body> {
    body::error(StatusCode::OK, Some(id), error::METHOD_NOT_FOUND, &format!("{method} is not offered here"))
}

/// What one server says of itself, for a legacy client.
async fn introduced(upstream: &Upstream, result: &mut RawObject) -> Result<(), Failure> {
    let introduction = upstream.introduction(INTRODUCTION).await?;
    let capabilities = match introduction.era {
        Era::Legacy => introduction.capabilities().clone(),
        Era::Modern => translate::capabilities(introduction.capabilities()),
    };
    result.set("capabilities", capabilities.to_string());
    let info = match introduction.info() {
        Value::Null => format!(r#"{{"name":{},"version":"unknown"}}"#, quoted(&upstream.config.name)),
        info => info.to_string(),
    };
    result.set("serverInfo", info);
    if let Some(instructions) = introduction.instructions() {
        result.set("instructions", quoted(instructions));
    }
    Ok(())
}
