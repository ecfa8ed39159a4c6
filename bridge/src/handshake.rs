//! Finding out which era a server speaks, shaking hands with it, and learning its lists.

use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::launch::EraChoice;
use mcp_hub_dataplane_api::status::{Handshake, ToolsSummary};
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS, MODERN_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, write_request};
use mcp_hub_mcp::methods;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::link::{Link, OnDisconnect};
use crate::status::now;

/// A server that does not answer `server/discover` within this is taken for a legacy one that ignores what it does not
/// know.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// Pages followed of one list.
const PAGES_MAX: usize = 100;

/// What a finished handshake leaves behind.
#[derive(Debug, Clone)]
pub struct Introduction {
    pub era: Era,
    /// Raw result of `initialize` or `server/discover`, from which clients' own are answered.
    pub result: String,
    /// Pages of each list the server offers: method, cursor as raw JSON if any, raw result.
    pub lists: Vec<(String, Option<String>, String)>,
    pub summary: Handshake,
}

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the server ended during the handshake")]
    Ended,
    #[error("the server did not answer {method} within {seconds} s")]
    Silent { method: &'static str, seconds: u64 },
    #[error("the server refused {method}: {message}")]
    Refused { method: &'static str, message: String },
    /// To be tried again in a fresh process, straight into `initialize`.
    #[error("the server does not speak the modern era")]
    NotModern,
}

/// Shakes hands in the era asked for. `Auto` tries `server/discover` first; where the server answers with an error, it
/// goes on with `initialize` in the same process, where it ends or stays silent the caller starts it anew as `Legacy`.
pub async fn shake(
    link: &Link,
    era: EraChoice,
    initialize: Option<&str>,
    started: Instant,
    patience: Duration,
) -> Result<Introduction, HandshakeError> {
    let deadline = started + patience;
    match era {
        EraChoice::Legacy => legacy(link, initialize, started, deadline).await,
        EraChoice::Modern => modern(link, started, deadline).await,
        EraChoice::Auto => {
            let probe = (Instant::now() + PROBE_PATIENCE).min(deadline);
            match modern(link, started, probe).await {
                Err(HandshakeError::Refused { .. }) => legacy(link, initialize, started, deadline).await,
                Err(HandshakeError::Ended | HandshakeError::Silent { .. }) => Err(HandshakeError::NotModern),
                result => result,
            }
        }
    }
}

async fn legacy(
    link: &Link,
    initialize: Option<&str>,
    started: Instant,
    deadline: Instant,
) -> Result<Introduction, HandshakeError> {
    // No capabilities: clients share the server, so it may ask nobody for anything.
    let ours = json!({
        "protocolVersion": LEGACY_VERSIONS[0],
        "capabilities": {},
        "clientInfo": {"name": "mcp-hub", "version": crate::VERSION},
    });
    let params = initialize.map_or_else(|| ours.to_string(), str::to_owned);
    let result = ask(link, methods::INITIALIZE, &params, deadline).await?;
    let parsed: Value = serde_json::from_str(&result).unwrap_or_default();
    let ready = write_request(None, methods::INITIALIZED, None);
    if let Ok(envelope) = Envelope::parse(&ready) {
        link.notify(&ready, &envelope, None).await.map_err(|_| HandshakeError::Ended)?;
    }
    let lists = lists(link, &parsed["capabilities"], None, deadline).await?;
    let version = parsed["protocolVersion"].as_str().unwrap_or_default().to_owned();
    Ok(introduce(Era::Legacy, result, &parsed["serverInfo"], vec![version], lists, started))
}

async fn modern(link: &Link, started: Instant, deadline: Instant) -> Result<Introduction, HandshakeError> {
    let result = ask(link, methods::DISCOVER, &json!({"_meta": modern_meta()}).to_string(), deadline).await?;
    let parsed: Value = serde_json::from_str(&result).unwrap_or_default();
    let offered = strings(&parsed["supportedVersions"]);
    if !offered.iter().any(|version| MODERN_VERSIONS.contains(&version.as_str())) {
        let message = format!("it offers {} only", offered.join(", "));
        return Err(HandshakeError::Refused { method: methods::DISCOVER, message });
    }
    let lists = lists(link, &parsed["capabilities"], Some(modern_meta()), deadline).await?;
    let info = match &parsed["serverInfo"] {
        Value::Null => &parsed["_meta"]["io.modelcontextprotocol/serverInfo"],
        info => info,
    };
    Ok(introduce(Era::Modern, result.clone(), info, offered, lists, started))
}

/// `_meta` of the bridge's own modern requests.
pub fn modern_meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": MODERN_VERSIONS[0],
        "io.modelcontextprotocol/clientInfo": {"name": "mcp-hub", "version": crate::VERSION},
        "io.modelcontextprotocol/clientCapabilities": {},
    })
}

/// Sends a request and waits for its raw result.
pub async fn ask(link: &Link, method: &'static str, params: &str, deadline: Instant) -> Result<String, HandshakeError> {
    let seconds = deadline.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
    let exchange = async {
        let message = write_request(Some("0"), method, Some(params));
        let envelope = Envelope::parse(&message).map_err(|_| HandshakeError::Ended)?;
        let exchange = link.request(&message, &envelope, None, OnDisconnect::Forget).await;
        let exchange = exchange.map_err(|_| HandshakeError::Ended)?;
        exchange.answer.await.map_err(|_| HandshakeError::Ended)
    };
    let answer = tokio::time::timeout_at(deadline.into(), exchange).await.map_err(|_| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds of a timeout")]
        HandshakeError::Silent { method, seconds: seconds as u64 }
    })??;
    let refused = |message: String| HandshakeError::Refused { method, message };
    let envelope = Envelope::parse(&answer).map_err(|error| refused(error.to_string()))?;
    match (envelope.result, envelope.error) {
        (Some(result), _) => Ok(result.get().to_owned()),
        (None, error) => {
            let error: Value = error.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
            let message = error["message"].as_str().unwrap_or("no reason given");
            Err(refused(message.chars().take(300).collect()))
        }
    }
}

/// Every page of every list that the server offers. A list that fails is left out: the server says so again when asked.
async fn lists(
    link: &Link,
    capabilities: &Value,
    meta: Option<Value>,
    deadline: Instant,
) -> Result<Vec<(String, Option<String>, String)>, HandshakeError> {
    let mut pages = Vec::new();
    for (method, key) in methods::LISTS {
        let capability = if key == "resourceTemplates" { "resources" } else { key };
        if capabilities.get(capability).is_none() {
            continue;
        }
        let mut cursor: Option<Value> = None;
        for _ in 0..PAGES_MAX {
            let mut params = serde_json::Map::new();
            params.extend(meta.clone().map(|meta| ("_meta".to_owned(), meta)));
            params.extend(cursor.clone().map(|cursor| ("cursor".to_owned(), cursor)));
            let result = match ask(link, method, &Value::Object(params).to_string(), deadline).await {
                Ok(result) => result,
                Err(HandshakeError::Refused { .. }) => break,
                Err(error) => return Err(error),
            };
            let parsed: Value = serde_json::from_str(&result).unwrap_or_default();
            pages.push((method.to_owned(), cursor.map(|cursor| cursor.to_string()), result));
            match parsed.get("nextCursor") {
                Some(next @ Value::String(_)) => cursor = Some(next.clone()),
                _ => break,
            }
        }
    }
    Ok(pages)
}

fn introduce(
    era: Era,
    result: String,
    info: &Value,
    versions: Vec<String>,
    lists: Vec<(String, Option<String>, String)>,
    started: Instant,
) -> Introduction {
    let text = |value: &Value| value.as_str().unwrap_or_default().chars().take(200).collect::<String>();
    let summary = Handshake {
        era,
        server_name: text(&info["name"]),
        server_version: text(&info["version"]),
        protocol_versions: versions,
        tools: tools_summary(&lists),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        at: now(),
    };
    Introduction { era, result, lists, summary }
}

/// Count and digest over the tools' definitions, ordered by name.
fn tools_summary(lists: &[(String, Option<String>, String)]) -> Option<ToolsSummary> {
    let mut listed = false;
    let mut tools: Vec<Value> = Vec::new();
    for (_, _, page) in lists.iter().filter(|(method, _, _)| method == methods::TOOLS_LIST) {
        listed = true;
        let mut page: Value = serde_json::from_str(page).unwrap_or_default();
        if let Some(Value::Array(items)) = page.get_mut("tools").map(Value::take) {
            tools.extend(items);
        }
    }
    tools.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let mut hash = Sha256::new();
    for tool in &tools {
        hash.update(tool.to_string());
        hash.update(b"\n");
    }
    listed.then(|| ToolsSummary {
        count: u32::try_from(tools.len()).unwrap_or(u32::MAX),
        digest: hex::encode(hash.finalize()),
    })
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
