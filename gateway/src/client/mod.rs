//! Clients: what they are told, and where their requests go. Both eras meet here ([`legacy`], [`modern`]); what both ask
//! for the same way, lists and calls, is in [`requests`].

mod legacy;
mod modern;
mod requests;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Params, string};
use mcp_hub_mcp::{error as code, headers, methods};

use crate::Inner;
use crate::body::{Body, error, full};
use crate::guard::Principal;

/// What a client has connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All servers, under prefixed names.
    Aggregate,
    /// One server, under its own names.
    Server(String),
}

impl Scope {
    /// What session ids are bound to.
    fn path(&self) -> String {
        match self {
            Self::Aggregate => "/mcp".to_owned(),
            Self::Server(name) => format!("/servers/{name}/mcp"),
        }
    }
}

/// One HTTP request's client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) inner: Arc<Inner>,
    pub(crate) principal: Principal,
    pub(crate) scope: Scope,
    pub(crate) headers: HeaderMap,
}

impl Client {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) async fn post(client: Client, message: Bytes) -> Response<Body> {
    let envelope = match Envelope::parse(&message) {
        Ok(envelope) => envelope,
        Err(problem) => {
            let number = match &problem {
                mcp_hub_mcp::envelope::MalformedMessage::Json(_) => code::PARSE_ERROR,
                mcp_hub_mcp::envelope::MalformedMessage::Batch | mcp_hub_mcp::envelope::MalformedMessage::Shape => {
                    code::INVALID_REQUEST
                }
            };
            return error(StatusCode::BAD_REQUEST, None, number, &problem.to_string());
        }
    };
    match era_of(&client, &envelope) {
        Era::Modern => modern::post(&client, &envelope).await,
        Era::Legacy => legacy::post(&client, &message, &envelope).await,
    }
}

/// A modern request says so in its header, in its `_meta`, or by its method.
fn era_of(client: &Client, envelope: &Envelope<'_>) -> Era {
    let in_header = client.header(headers::PROTOCOL_VERSION).map(is_modern);
    let in_body =
        Params::of(envelope.params).meta().protocol_version.and_then(string).map(|version| is_modern(&version));
    let by_method = [methods::DISCOVER, methods::LISTEN].contains(&&*envelope.method());
    if in_header == Some(true) || in_body.is_some() || by_method { Era::Modern } else { Era::Legacy }
}

/// Whether a version is of the modern era, known or not: versions are dates, and the first modern one is known.
fn is_modern(version: &str) -> bool {
    version >= mcp_hub_dataplane_api::MODERN_VERSIONS[mcp_hub_dataplane_api::MODERN_VERSIONS.len() - 1]
}

pub(crate) fn get(client: &Client) -> Response<Body> {
    legacy::stream(client)
}

pub(crate) async fn delete(client: &Client) -> Response<Body> {
    legacy::close(client).await
}

fn accepted() -> Response<Body> {
    full(StatusCode::ACCEPTED, "text/plain", Bytes::new())
}
