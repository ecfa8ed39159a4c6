//! What requests of our own carry, and what their answers say.

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, Response};
use mcp_hub_dataplane_api::MODERN_VERSIONS;
use mcp_hub_mcp::envelope::{Envelope, Kind};
use mcp_hub_mcp::headers;
use serde_json::Value;

use super::{Events, Failure, Said, collect, is_type};
use crate::fields::{self, Fields};

/// What every modern request carries.
pub(crate) fn modern_fields(method: &str, name: Option<&str>) -> Fields {
    let mut extra = Fields::with_capacity(3);
    extra.push((fields::PROTOCOL_VERSION.clone(), HeaderValue::from_static(MODERN_VERSIONS[0])));
    if let Ok(method) = HeaderValue::from_str(method) {
        extra.push((fields::METHOD.clone(), method));
    }
    if let Some(Ok(name)) = name.map(|name| HeaderValue::from_str(&headers::encode(name))) {
        extra.push((fields::NAME.clone(), name));
    }
    extra
}

pub(super) fn refusal(response: &Response<Said>) -> Failure {
    let status = response.status();
    let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let oauth = challenge.is_some_and(|challenge| challenge.contains("resource_metadata"));
    let asks = if oauth { "it asks for OAuth" } else { "it does not take the credentials" };
    Failure::AuthRequired(format!("the server answered {status}: {asks}"))
}

/// The answer to a request of our own, from JSON or an event stream; notifications before it are skipped.
pub(super) async fn answer(response: Response<Said>) -> Result<Bytes, Failure> {
    let status = response.status();
    if is_type(response.headers(), "text/event-stream") {
        let mut events = Events::new(response.into_body());
        while let Some(message) = events.next().await? {
            if Envelope::parse(&message).is_ok_and(|envelope| envelope.kind() == Kind::Response) {
                return Ok(message.into());
            }
        }
        return Err(Failure::Gone("the stream ended without an answer".to_owned()));
    }
    let is_json = is_type(response.headers(), "application/json");
    let body = collect(response.into_body()).await?;
    if !is_json || (!status.is_success() && Envelope::parse(&body).is_err()) {
        return Err(Failure::Unreadable(format!("HTTP {status}, and no JSON-RPC message")));
    }
    Ok(body)
}

pub(super) fn result_of(answer: Bytes) -> Result<String, Failure> {
    let envelope = Envelope::parse(&answer).map_err(|error| Failure::Unreadable(error.to_string()))?;
    match (envelope.result, envelope.error) {
        (Some(result), _) => Ok(result.get().to_owned()),
        (None, error) => {
            let error: Value = error.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
            let message = error["message"].as_str().unwrap_or("no reason given").chars().take(300).collect();
            Err(Failure::Refused { code: error["code"].as_i64().unwrap_or_default(), message })
        }
    }
}
