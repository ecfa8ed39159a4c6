//! Finding out which era a server speaks, shaking hands with it, and learning its lists.

use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::launch::EraChoice;
use mcp_hub_dataplane_api::status::{Handshake, ToolsSummary};
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS, MODERN_VERSIONS};
use mcp_hub_mcp::methods;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::status::now;
use crate::upstream::Upstream;

/// A server that does not answer `server/discover` within this is taken for a legacy one that ignores what it does not
/// know.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// Pause before a server that answers, but not with MCP, is asked again.
const NOT_MCP_PAUSE: Duration = Duration::from_millis(200);
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
    #[error("nothing listened on the server's port within {seconds} s")]
    NotListening { seconds: u64 },
    #[error("the server answered with HTTP status {status} and no MCP message")]
    NotMcp { status: u16 },
    /// To be tried again in a fresh process, straight into `initialize`.
    #[error("the server does not speak the modern era")]
    NotModern,
}

/// Shakes hands in the era asked for. `Auto` tries `server/discover` first; where the server answers with an error, it
/// goes on with `initialize` in the same process, where it ends or stays silent the caller starts it anew as `Legacy`.
pub async fn shake(
    upstream: &Upstream,
    era: EraChoice,
    started: Instant,
    patience: Duration,
) -> Result<Introduction, HandshakeError> {
    let deadline = started + patience;
    if let Upstream::Http(child) = upstream {
        let listening = tokio::time::timeout_at(deadline.into(), child.listening()).await;
        listening.map_err(|_| HandshakeError::NotListening { seconds: patience.as_secs() })?;
    }
    loop {
        match in_era(upstream, era, started, deadline).await {
            // A web framework may listen before its routes are there.
            Err(HandshakeError::NotMcp { .. }) if Instant::now() + NOT_MCP_PAUSE < deadline => {
                tokio::time::sleep(NOT_MCP_PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn in_era(
    upstream: &Upstream,
    era: EraChoice,
    started: Instant,
    deadline: Instant,
) -> Result<Introduction, HandshakeError> {
    match era {
        EraChoice::Legacy => legacy(upstream, started, deadline).await,
        EraChoice::Modern => modern(upstream, started, deadline).await,
        EraChoice::Auto => {
            let probe = (Instant::now() + PROBE_PATIENCE).min(deadline);
            match modern(upstream, started, probe).await {
                Err(HandshakeError::Refused { .. } | HandshakeError::NotMcp { .. }) => {
                    legacy(upstream, started, deadline).await
                }
                Err(HandshakeError::Ended | HandshakeError::Silent { .. }) => Err(HandshakeError::NotModern),
                result => result,
            }
        }
    }
}

async fn legacy(upstream: &Upstream, started: Instant, deadline: Instant) -> Result<Introduction, HandshakeError> {
    // No capabilities: clients share the server, so it may ask nobody for anything.
    let params = json!({
        "protocolVersion": LEGACY_VERSIONS[0],
        "capabilities": {},
        "clientInfo": {"name": "mcp-hub", "version": crate::VERSION},
    });
    let result = upstream.ask(methods::INITIALIZE, &params.to_string(), deadline).await?;
    let parsed: Value = serde_json::from_str(&result).unwrap_or_default();
    upstream.tell(methods::INITIALIZED).await?;
    let lists = lists(upstream, &parsed["capabilities"], None, deadline).await?;
    let version = parsed["protocolVersion"].as_str().unwrap_or_default().to_owned();
    Ok(introduce(Era::Legacy, result, &parsed["serverInfo"], vec![version], lists, started))
}

async fn modern(upstream: &Upstream, started: Instant, deadline: Instant) -> Result<Introduction, HandshakeError> {
    let result = upstream.ask(methods::DISCOVER, &json!({"_meta": modern_meta()}).to_string(), deadline).await?;
    let parsed: Value = serde_json::from_str(&result).unwrap_or_default();
    let offered = strings(&parsed["supportedVersions"]);
    if !offered.iter().any(|version| MODERN_VERSIONS.contains(&version.as_str())) {
        let message = format!("it offers {} only", offered.join(", "));
        return Err(HandshakeError::Refused { method: methods::DISCOVER, message });
    }
    let lists = lists(upstream, &parsed["capabilities"], Some(modern_meta()), deadline).await?;
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

/// Every page of every list that the server offers. A list that fails is left out: the server says so again when asked.
async fn lists(
    upstream: &Upstream,
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
            let result = match upstream.ask(method, &Value::Object(params).to_string(), deadline).await {
                Ok(result) => result,
                Err(HandshakeError::Refused { .. } | HandshakeError::NotMcp { .. }) => break,
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

impl Introduction {
    /// The same with its lists as they are now.
    pub async fn renewed(&self, upstream: &Upstream, deadline: Instant) -> Result<Self, HandshakeError> {
        let parsed: Value = serde_json::from_str(&self.result).unwrap_or_default();
        let meta = (self.era == Era::Modern).then(modern_meta);
        let lists = lists(upstream, &parsed["capabilities"], meta, deadline).await?;
        let summary = Handshake { tools: tools_summary(&lists), ..self.summary.clone() };
        Ok(Self { era: self.era, result: self.result.clone(), lists, summary })
    }

    /// Whether the server tells of changes of its lists.
    pub fn tells_changes(&self) -> bool {
        let parsed: Value = serde_json::from_str(&self.result).unwrap_or_default();
        ["tools", "prompts", "resources"].iter().any(|list| parsed["capabilities"][list]["listChanged"] == true)
    }
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
