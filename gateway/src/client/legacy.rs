//! Clients of 2025-11-25 and before: `initialize`, sessions, the GET stream.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, write_request, write_result};
use mcp_hub_mcp::{error as code, headers, methods, sse};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{Client, Scope, accepted, requests};
use crate::aggregate::instructions;
use crate::body::{self, Body, error, full};
use crate::forward::{COMMENT_EVERY, forward};
use crate::metrics::count;
use crate::session::Session;
use crate::translate;
use crate::upstream::{Owner, PATIENCE, Upstream};

/// Methods that only make sense between parties of this era, on one server's endpoint.
const OWN: [&str; 4] = [methods::SET_LEVEL, methods::RESOURCES_SUBSCRIBE, methods::RESOURCES_UNSUBSCRIBE, "tasks/list"];

pub(super) async fn post(client: &Client, message: &Bytes, envelope: &Envelope<'_>) -> Response<Body> {
    if let Some(version) = client.header(headers::PROTOCOL_VERSION)
        && !LEGACY_VERSIONS.contains(&version)
    {
        let text = format!("unknown protocol version `{version}`; spoken here: {}", LEGACY_VERSIONS.join(", "));
        return error(StatusCode::BAD_REQUEST, envelope.id.map(RawValue::get), code::INVALID_REQUEST, &text);
    }
    let method = envelope.method();
    if method == methods::INITIALIZE && envelope.kind() == Kind::Request {
        return initialize(client, envelope).await;
    }
    let session = match session(client) {
        Ok(session) => session,
        Err(refusal) => return refusal,
    };
    // Some clients leave the session id out; their requests are as good without.
    let owner = owner(client, session.as_ref());
    match envelope.kind() {
        Kind::Notification => {
            if method == methods::CANCELLED {
                if let Some(id) = Params::of(envelope.params).request_id {
                    client.inner.in_flight.cancel(owner, id.get());
                }
            } else if method != methods::INITIALIZED {
                pass_up(client, owner, message).await;
            }
            accepted()
        }
        Kind::Response => {
            pass_up(client, owner, message).await;
            accepted()
        }
        Kind::Request => {
            count(&client.inner.metrics.requests_legacy);
            let id = envelope.id.map_or("null", RawValue::get);
            if method == methods::PING {
                return body::json(write_result(id, "{}"));
            }
            if let Some(answer) = requests::answer(client, Era::Legacy, owner, envelope).await {
                return answer;
            }
            match &client.scope {
                Scope::Server(server) if OWN.contains(&&*method) || method.starts_with("tasks/") => {
                    forward(&client.inner, requests::passed_on(client, Era::Legacy, owner, envelope, server)).await
                }
                _ => error(
                    StatusCode::OK,
                    Some(id),
                    code::METHOD_NOT_FOUND,
                    &format!("there is no method {method} here"),
                ),
            }
        }
    }
}

fn owner(client: &Client, session: Option<&Session>) -> Owner {
    session.map_or(Owner::Principal(client.principal.0), |session| Owner::Session(session.nonce))
}

/// The request's session; the refusal of one that is not ours or has been closed.
#[expect(clippy::result_large_err, reason = "the response is the error")]
fn session(client: &Client) -> Result<Option<Session>, Response<Body>> {
    let Some(id) = client.header(headers::SESSION_ID) else { return Ok(None) };
    match client.inner.sessions.verify(client.principal, &client.scope.path(), id) {
        Some(session) => Ok(Some(session)),
        None => Err(full(StatusCode::NOT_FOUND, "text/plain", "no such session")),
    }
}

/// A client's answer or notification for a server that this client has a session of its own with.
async fn pass_up(client: &Client, owner: Owner, message: &Bytes) {
    let Scope::Server(server) = &client.scope else { return };
    let served = client.inner.served();
    let Some(watched) = served.upstreams.get(server).filter(|watched| !watched.upstream.is_shared()) else { return };
    if let Some(session) = watched.upstream.open_session(owner) {
        // A server that is gone by now has nothing to be told.
        watched.upstream.post(session.headers(), message.clone()).await.ok();
    }
}

async fn initialize(client: &Client, envelope: &Envelope<'_>) -> Response<Body> {
    let id = envelope.id.map_or("null", RawValue::get);
    let params: Value = envelope.params.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let wanted = params["protocolVersion"].as_str().unwrap_or_default();
    let version = LEGACY_VERSIONS.iter().find(|known| **known == wanted).copied().unwrap_or(LEGACY_VERSIONS[0]);
    let opened = client.inner.sessions.open(client.principal, &client.scope.path(), version);
    let Some((session, header)) = opened.and_then(|opened| Some((opened.1, HeaderValue::from_str(&opened.0).ok()?)))
    else {
        return error(StatusCode::OK, Some(id), code::INTERNAL_ERROR, "no random numbers for a session id");
    };
    let result = match &client.scope {
        Scope::Aggregate => aggregate(client, version),
        Scope::Server(server) => {
            let served = client.inner.served();
            let Some(watched) = served.upstreams.get(server) else {
                return full(StatusCode::NOT_FOUND, "text/plain", "this hub has no such server");
            };
            let upstream = watched.upstream.clone();
            let capabilities = params.get("capabilities").map(Value::to_string);
            match of_server(&upstream, Owner::Session(session.nonce), capabilities.as_deref(), version).await {
                Ok(result) => result,
                Err(failure) => {
                    let text = format!("server `{server}` is not available: {failure}");
                    return error(StatusCode::OK, Some(id), code::SERVER_UNAVAILABLE, &text);
                }
            }
        }
    };
    let mut response = body::json(write_result(id, &result.to_string()));
    response.headers_mut().insert(headers::SESSION_ID, header);
    response
}

/// Constant for the era, so that clients may keep it: what a hub offers comes and goes.
fn aggregate(client: &Client, version: &str) -> Value {
    let served = client.inner.served();
    let mut result = json!({
        "protocolVersion": version,
        "capabilities": super::modern::AGGREGATE_CAPABILITIES.iter().map(|name| ((*name).to_owned(), json!({"listChanged": true}))).collect::<serde_json::Map<_, _>>(),
        "serverInfo": super::modern::server_info(),
    });
    if let Some(text) = instructions(&served) {
        result["instructions"] = text.into();
    }
    result
}

/// What the server itself says, in the client's version.
async fn of_server(
    upstream: &Upstream,
    owner: Owner,
    capabilities: Option<&str>,
    version: &str,
) -> Result<Value, crate::upstream::Failure> {
    let era = upstream.era(PATIENCE).await?;
    let mut result = if era == Era::Legacy && !upstream.is_shared() {
        // A session of its own with the server, in the client's own name.
        let result = upstream.initialize(owner, capabilities).await?;
        serde_json::from_str(&result).unwrap_or_default()
    } else {
        let introduction = upstream.introduction(PATIENCE).await?;
        let mut result = match introduction.era {
            Era::Legacy => introduction.result.clone(),
            Era::Modern => {
                let mut result = json!({
                    "capabilities": translate::capabilities(introduction.capabilities()),
                    "serverInfo": introduction.info(),
                });
                if let Some(text) = introduction.instructions() {
                    result["instructions"] = text.into();
                }
                result
            }
        };
        for name in ["tools", "prompts", "resources"] {
            // Changes are noticed here, whether the server says so or not.
            if let Some(Value::Object(member)) = result["capabilities"].get_mut(name) {
                member.insert("listChanged".to_owned(), Value::Bool(true));
            }
        }
        result
    };
    result["protocolVersion"] = version.into();
    Ok(result)
}

/// The stream of notifications that belong to no request.
pub(super) fn stream(client: &Client) -> Response<Body> {
    match session(client) {
        Ok(Some(_)) => {}
        Ok(None) => return full(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "a stream needs a session"),
        Err(refusal) => return refusal,
    }
    let (sender, response) = body::events();
    let mut ending = client.inner.ending.subscribe();
    let mut messages = match &client.scope {
        Scope::Aggregate => Messages::Merged(client.inner.outdated.subscribe()),
        Scope::Server(server) => {
            let served = client.inner.served();
            let Some(watched) = served.upstreams.get(server) else {
                return full(StatusCode::NOT_FOUND, "text/plain", "this hub has no such server");
            };
            Messages::Server(watched.upstream.notifications.subscribe())
        }
    };
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                message = messages.next() => match message {
                    Some(message) => sse::event(&message),
                    None => return,
                },
                () = tokio::time::sleep(COMMENT_EVERY) => Bytes::from_static(sse::COMMENT),
                () = sender.closed() => return,
                () = super::modern::ended(&mut ending) => return,
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });
    response
}

enum Messages {
    Merged(broadcast::Receiver<&'static str>),
    Server(broadcast::Receiver<Bytes>),
}

impl Messages {
    /// `None` when nothing will come any more. A slow client misses some; they only say that something changed.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let received = match self {
                Self::Merged(receiver) => {
                    receiver.recv().await.map(|method| Bytes::from(write_request(None, method, None)))
                }
                Self::Server(receiver) => receiver.recv().await,
            };
            match received {
                Ok(message) => return Some(message),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

pub(super) async fn close(client: &Client) -> Response<Body> {
    match session(client) {
        Ok(Some(session)) => {
            client.inner.sessions.close(&session);
            if let Scope::Server(server) = &client.scope
                && let Some(watched) = client.inner.served().upstreams.get(server)
                && !watched.upstream.is_shared()
                && let Some(own) = watched.upstream.take_session(Owner::Session(session.nonce))
            {
                watched.upstream.end(&own).await;
            }
            full(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
        }
        Ok(None) => full(StatusCode::BAD_REQUEST, "text/plain", "no session is named"),
        Err(refusal) => refusal,
    }
}
