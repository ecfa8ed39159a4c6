//! Clients of the modern era: stateless requests whose headers say what their bodies say.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS, MODERN_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, quoted, string, write_error_with, write_result};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error, headers, methods};
use serde_json::{Value, json};

use super::{Ask, CAPABILITIES, Scope, server_info};
use crate::body::{self, Body, full};
use crate::exchange::{INTRODUCTION, whole};
use crate::fields;
use crate::metrics::count;
use crate::translate;
use crate::upstream::{Failure, Upstream};

impl Ask {
    pub(super) async fn modern(self, message: &Bytes, envelope: &Envelope<'_>, params: &Params<'_>) -> Response<Body> {
        if envelope.kind() != Kind::Request {
            // Clients of this era cancel by closing the stream, and are asked nothing.
            return full(StatusCode::ACCEPTED, "text/plain", Bytes::new());
        }
        count(&self.inner.metrics.requests_modern);
        let id = envelope.id.map_or("null", |id| id.get());
        let method = envelope.method();
        if let Err(refusal) = self.check(id, &method, params) {
            return refusal;
        }
        match (&*method, &self.scope) {
            (methods::DISCOVER, _) => Box::pin(self.discover(id)).await,
            (methods::LISTEN, _) => Box::pin(self.listen(message, envelope, params)).await,
            (methods::INITIALIZE | methods::PING | methods::SET_LEVEL, _)
            | (methods::RESOURCES_SUBSCRIBE | methods::RESOURCES_UNSUBSCRIBE, _) => no_method(id, &method),
            (method, Scope::Aggregate) if !translate::is_translatable(method) => no_method(id, method),
            (method, Scope::Server(upstream)) if !translate::is_translatable(method) => {
                // Methods of extensions are the server's own matter, where it speaks the same era.
                match upstream.era(INTRODUCTION).await {
                    Ok(Era::Legacy) => no_method(id, method),
                    Ok(Era::Modern) | Err(_) => self.pass(message, envelope, params).await,
                }
            }
            (_, Scope::Aggregate | Scope::Server(_)) => self.pass(message, envelope, params).await,
        }
    }

    /// Version and headers (2026-07-28, "Streamable HTTP: Standard request headers").
    #[expect(clippy::result_large_err, reason = "the response is the error")]
    fn check(&self, id: &str, method: &str, params: &Params<'_>) -> Result<(), Response<Body>> {
        let header =
            |name: &HeaderName| self.headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
        let mismatch = |text: &str| Err(body::error(StatusCode::BAD_REQUEST, Some(id), error::HEADER_MISMATCH, text));
        let lacks = |name: &str| {
            let text = format!("params._meta lacks io.modelcontextprotocol/{name}");
            Err(body::error(StatusCode::BAD_REQUEST, Some(id), error::INVALID_PARAMS, &text))
        };
        let meta = params.meta();
        let in_body = meta.protocol_version.and_then(string);
        let version = header(&fields::PROTOCOL_VERSION);
        if let (Some(in_body), Some(version)) = (&in_body, version)
            && in_body != version
        {
            return mismatch("header MCP-Protocol-Version differs from params._meta");
        }
        let asked = in_body.as_deref().or(version).unwrap_or_default();
        if !MODERN_VERSIONS.contains(&asked) {
            let supported: Vec<&str> = MODERN_VERSIONS.iter().chain(LEGACY_VERSIONS).copied().collect();
            let data = json!({"supported": supported, "requested": asked}).to_string();
            let text = format!("protocol version `{asked}` is not spoken here");
            let refusal = write_error_with(Some(id), error::UNSUPPORTED_VERSION, &text, Some(&data));
            return Err(whole(StatusCode::BAD_REQUEST, refusal));
        }
        if in_body.is_none() {
            return lacks("protocolVersion");
        }
        if meta.client_capabilities.is_none() {
            return lacks("clientCapabilities");
        }
        if version.is_none() {
            return mismatch("header MCP-Protocol-Version is missing");
        }
        if header(&fields::METHOD) != Some(method) {
            return mismatch("header Mcp-Method is missing or differs from method");
        }
        let named = match method {
            methods::TOOLS_CALL | methods::PROMPTS_GET => params.name,
            methods::RESOURCES_READ => params.uri,
            _ => return Ok(()),
        };
        let shown = header(&fields::NAME).and_then(headers::decode);
        match named.and_then(string) {
            None => Err(body::error(StatusCode::OK, Some(id), error::INVALID_PARAMS, "params lack name or uri")),
            wanted if wanted != shown => mismatch("header Mcp-Name is missing or differs from params"),
            Some(_) => Ok(()),
        }
    }

    async fn discover(self, id: &str) -> Response<Body> {
        let mut result = RawObject::default();
        match &self.scope {
            Scope::Aggregate => {
                self.served.settle().await;
                result.set("capabilities", CAPABILITIES);
                result.set("_meta", format!(r#"{{"io.modelcontextprotocol/serverInfo":{}}}"#, server_info()));
                if let Some(instructions) = self.served.instructions() {
                    result.set("instructions", quoted(&instructions));
                }
            }
            Scope::Server(upstream) => {
                if let Err(failure) = introduced(upstream, &mut result).await {
                    let text = format!("server `{}`: {failure}", upstream.config.name);
                    return body::error(StatusCode::OK, Some(id), error::SERVER_UNAVAILABLE, &text);
                }
            }
        }
        let versions: Vec<&str> = MODERN_VERSIONS.iter().chain(LEGACY_VERSIONS).copied().collect();
        result.set("supportedVersions", json!(versions).to_string());
        translate::complete(methods::DISCOVER, &mut result);
        whole(StatusCode::OK, write_result(id, &result.to_string()))
    }
}

fn no_method(id: &str, method: &str) -> Response<Body> {
    body::error(StatusCode::NOT_FOUND, Some(id), error::METHOD_NOT_FOUND, &format!("{method} is not offered here"))
}

/// What one server says of itself, for a modern client.
async fn introduced(upstream: &Upstream, result: &mut RawObject) -> Result<(), Failure> {
    let introduction = upstream.introduction(INTRODUCTION).await?;
    let capabilities = match introduction.era {
        Era::Modern => introduction.capabilities().clone(),
        Era::Legacy => translate::capabilities(introduction.capabilities()),
    };
    result.set("capabilities", capabilities.to_string());
    let info = match introduction.info() {
        Value::Null => json!({"name": upstream.config.name, "version": "unknown"}),
        info => info.clone(),
    };
    result.set("_meta", json!({"io.modelcontextprotocol/serverInfo": info}).to_string());
    if let Some(instructions) = introduction.instructions() {
        result.set("instructions", quoted(instructions));
    }
    Ok(())
}
