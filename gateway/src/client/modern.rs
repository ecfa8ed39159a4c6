//! Clients of 2026-07-28: no sessions, everything in the request itself.

use bytes::Bytes;
use http::{Response, StatusCode};
use mcp_hub_dataplane_api::{Era, MODERN_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, string, write_error_with, write_request, write_result};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error as code, headers, methods, sse};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Client, Scope, accepted, requests};
use crate::aggregate::instructions;
use crate::body::{self, Body, JSON, error, full};
use crate::forward::COMMENT_EVERY;
use crate::metrics::count;
use crate::translate;
use crate::upstream::{Owner, PATIENCE};

/// What the aggregate offers in both eras.
pub(super) const AGGREGATE_CAPABILITIES: [&str; 3] = ["prompts", "resources", "tools"];
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

pub(super) fn server_info() -> Value {
    json!({"name": "mcp-hub", "title": "MCP Hub", "version": env!("CARGO_PKG_VERSION")})
}

pub(super) async fn post(client: &Client, envelope: &Envelope<'_>) -> Response<Body> {
    if envelope.kind() != Kind::Request {
        // The era has no notifications of clients on HTTP: closing a stream is the cancellation.
        return accepted();
    }
    count(&client.inner.metrics.requests_modern);
    let id = envelope.id.map_or("null", RawValue::get);
    if let Err(refusal) = check(client, envelope, id) {
        return refusal;
    }
    let method = envelope.method();
    let owner = Owner::Principal(client.principal.0);
    match &*method {
        methods::DISCOVER => discover(client, id).await,
        methods::LISTEN => listen(client, envelope, id),
        _ => match requests::answer(client, Era::Modern, owner, envelope).await {
            Some(answer) => answer,
            None => {
                let text = format!("there is no method {method} here");
                error(StatusCode::NOT_FOUND, Some(id), code::METHOD_NOT_FOUND, &text)
            }
        },
    }
}

/// The headers repeat what the body says, so that proxies need not read it; whoever reads both must compare them.
#[expect(clippy::result_large_err, reason = "the response is the error")]
fn check(client: &Client, envelope: &Envelope<'_>, id: &str) -> Result<(), Response<Body>> {
    let params = Params::of(envelope.params);
    let refuse = |message: String| error(StatusCode::BAD_REQUEST, Some(id), code::HEADER_MISMATCH, &message);
    let in_body = params.meta().protocol_version.and_then(string);
    let in_header = client.header(headers::PROTOCOL_VERSION);
    let (Some(version), Some(header)) = (in_body, in_header) else {
        return Err(refuse(format!(
            "a protocol version is needed in _meta and in the header {}",
            headers::PROTOCOL_VERSION
        )));
    };
    if version != header {
        return Err(refuse(format!("the header says version {header}, the message {version}")));
    }
    if !MODERN_VERSIONS.contains(&&*version) {
        let data = json!({"supported": MODERN_VERSIONS, "requested": version}).to_string();
        let text = format!("protocol version {version} is not spoken here");
        let refusal = write_error_with(Some(id), code::UNSUPPORTED_VERSION, &text, Some(&data));
        return Err(full(StatusCode::BAD_REQUEST, JSON, refusal));
    }
    let method = envelope.method();
    if client.header(headers::METHOD) != Some(&*method) {
        return Err(refuse(format!("the header {} does not say {method}", headers::METHOD)));
    }
    let named = match &*method {
        methods::TOOLS_CALL | methods::PROMPTS_GET => params.name.and_then(string),
        methods::RESOURCES_READ => params.uri.and_then(string),
        _ => return Ok(()),
    };
    let header = client.header(headers::NAME).and_then(headers::decode);
    if named.is_some() && named != header {
        return Err(refuse(format!("the header {} does not say what the message asks for", headers::NAME)));
    }
    Ok(())
}

async fn discover(client: &Client, id: &str) -> Response<Body> {
    let served = client.inner.served();
    let (capabilities, info, text) = match &client.scope {
        Scope::Aggregate => {
            let names = AGGREGATE_CAPABILITIES.iter();
            let capabilities = names.map(|name| ((*name).to_owned(), json!({"listChanged": true}))).collect();
            (Value::Object(capabilities), server_info(), instructions(&served))
        }
        Scope::Server(server) => {
            let Some(watched) = served.upstreams.get(server) else {
                return full(StatusCode::NOT_FOUND, "text/plain", "this hub has no such server");
            };
            let introduction = match watched.upstream.introduction(PATIENCE).await {
                Ok(introduction) => introduction,
                Err(failure) => {
                    let text = format!("server `{server}` is not available: {failure}");
                    return error(StatusCode::OK, Some(id), code::SERVER_UNAVAILABLE, &text);
                }
            };
            // Of a modern server everything holds but what is done here: changes are told by this hub.
            let capabilities = match introduction.era {
                Era::Legacy => translate::capabilities(introduction.capabilities()),
                Era::Modern => introduction.capabilities().clone(),
            };
            (capabilities, introduction.info().clone(), introduction.instructions().map(str::to_owned))
        }
    };
    let mut result = json!({
        "supportedVersions": MODERN_VERSIONS,
        "capabilities": capabilities,
        "serverInfo": info,
        "_meta": {SERVER_INFO: info},
    });
    if let Some(text) = text {
        result["instructions"] = text.into();
    }
    let mut result = RawObject::parse(&result.to_string()).unwrap_or_default();
    translate::complete(methods::DISCOVER, &mut result);
    body::json(write_result(id, &result.to_string()))
}

/// Resolves when the gateway ends.
pub(super) async fn ended(ending: &mut tokio::sync::watch::Receiver<bool>) {
    // The sender is gone with the gateway, which is an end too.
    ending.wait_for(|ending| *ending).await.ok();
}

/// One long stream: an acknowledgement first, then what changes, each message tagged with the request's id.
fn listen(client: &Client, envelope: &Envelope<'_>, id: &str) -> Response<Body> {
    let params: Value = envelope.params.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let offered = [
        ("toolsListChanged", methods::TOOLS_CHANGED),
        ("promptsListChanged", methods::PROMPTS_CHANGED),
        ("resourcesListChanged", methods::RESOURCES_CHANGED),
    ];
    let wanted: Vec<(&str, &'static str)> =
        offered.into_iter().filter(|(name, _)| params["notifications"][name] == Value::Bool(true)).collect();
    let tag = format!(r#"{{"io.modelcontextprotocol/subscriptionId":{id}}}"#);
    let granted: serde_json::Map<String, Value> =
        wanted.iter().map(|(name, _)| ((*name).to_owned(), Value::Bool(true))).collect();
    let acknowledgement = write_request(
        None,
        methods::ACKNOWLEDGED,
        Some(&format!(r#"{{"notifications":{},"_meta":{tag}}}"#, Value::Object(granted))),
    );
    let (sender, response) = body::events();
    let mut outdated = client.inner.outdated.subscribe();
    let mut ending = client.inner.ending.subscribe();
    let end = write_result(id, &format!(r#"{{"resultType":"complete","_meta":{tag}}}"#));
    tokio::spawn(async move {
        let mut next = sse::event(&acknowledgement);
        loop {
            if sender.send(next).await.is_err() {
                return;
            }
            next = loop {
                tokio::select! {
                    received = outdated.recv() => match received {
                        Ok(method) if wanted.iter().any(|(_, wanted)| *wanted == method) => {
                            break sse::event(&write_request(None, method, Some(&format!(r#"{{"_meta":{tag}}}"#))));
                        }
                        // Not asked for, or missed: the next change says the same.
                        Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                    },
                    () = tokio::time::sleep(COMMENT_EVERY) => break Bytes::from_static(sse::COMMENT),
                    () = sender.closed() => return,
                    () = ended(&mut ending) => {
                        // A client that is gone misses it.
                        sender.send(sse::event(&end)).await.ok();
                        return;
                    }
                }
            };
        }
    });
    response
}
