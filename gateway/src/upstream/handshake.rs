//! Shaking hands with a server: its era, what it says of itself, and its lists.

use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::gateway::{Transport, UpstreamEra};
use mcp_hub_dataplane_api::status::{Handshake, ToolsSummary};
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS, MODERN_VERSIONS};
use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::methods;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Failure, Owner, Upstream};
use crate::param_headers;

/// Pages followed of one list; a server that has more is taken for one whose cursor goes in circles.
const PAGES_MAX: usize = 100;
/// Longest wait for one answer of a handshake. A bridge waits for its server's start, for which 60 s is the default.
pub(crate) const PATIENCE: Duration = Duration::from_secs(75);

/// A server silent on `server/discover` for that long is taken for a legacy one.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    pub(crate) era: Era,
    /// Result of `initialize` or `server/discover`.
    pub(crate) result: Value,
    pub(crate) versions: Vec<String>,
}

impl Introduction {
    pub(crate) fn capabilities(&self) -> &Value {
        &self.result["capabilities"]
    }

    pub(crate) fn info(&self) -> &Value {
        match &self.result["serverInfo"] {
            Value::Null => &self.result["_meta"]["io.modelcontextprotocol/serverInfo"],
            info => info,
        }
    }

    pub(crate) fn instructions(&self) -> Option<&str> {
        self.result["instructions"].as_str().filter(|text| !text.is_empty())
    }

    /// Whether the server offers the lists that this key stands for.
    pub(crate) fn offers(&self, list_key: &str) -> bool {
        let capability = if list_key == "resourceTemplates" { "resources" } else { list_key };
        self.capabilities().get(capability).is_some_and(|value| !value.is_null())
    }
}

/// One definition in a list, as the server wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its name; for resources the URI, for templates the URI template.
    pub(crate) key: String,
    pub(crate) raw: String,
}

/// The four lists, in the order of [`methods::LISTS`]; `None` for one that the server does not offer or could not give.
pub(crate) type ItemLists = [Option<Vec<Item>>; 4];

/// `_meta` of a modern request that is our own, or made for a client that has none.
pub(crate) fn modern_meta() -> String {
    format!(
        r#"{{"io.modelcontextprotocol/protocolVersion":"{}","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{{}}}}"#,
        MODERN_VERSIONS[0],
        client_info()
    )
}

/// Who we are towards servers.
pub(crate) fn client_info() -> String {
    format!(r#"{{"name":"mcp-hub","version":{}}}"#, quoted(env!("CARGO_PKG_VERSION")))
}

/// Params of our `initialize` with these client capabilities.
pub(crate) fn initialize_params(capabilities: &str) -> String {
    format!(
        r#"{{"protocolVersion":"{}","capabilities":{capabilities},"clientInfo":{}}}"#,
        LEGACY_VERSIONS[0],
        client_info()
    )
}

/// Finds out the era, `server/discover` first, and introduces us. A server that asks for authorization is not asked twice.
pub(crate) async fn introduce(upstream: &Upstream) -> Result<Introduction, Failure> {
    match upstream.config.era {
        UpstreamEra::Known(Era::Modern) => discover(upstream).await,
        UpstreamEra::Known(Era::Legacy) => initialize(upstream).await,
        UpstreamEra::Probe if upstream.config.transport == Transport::HttpSse => initialize(upstream).await,
        UpstreamEra::Probe => match tokio::time::timeout(PROBE_PATIENCE, discover(upstream)).await {
            // Whatever a legacy server does with a method that it does not know: it is there.
            Err(_) | Ok(Err(Failure::Refused { .. } | Failure::Unreadable(_) | Failure::Gone(_))) => {
                initialize(upstream).await
            }
            Ok(result) => result,
        },
    }
}

async fn discover(upstream: &Upstream) -> Result<Introduction, Failure> {
    let params = format!(r#"{{"_meta":{}}}"#, modern_meta());
    let result = upstream.ask(Era::Modern, Owner::Shared, methods::DISCOVER, &params, PATIENCE).await?;
    let result: Value = serde_json::from_str(&result).map_err(|error| Failure::Unreadable(error.to_string()))?;
    let strings = result["supportedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let versions: Vec<String> = strings.map(str::to_owned).collect();
    if !versions.iter().any(|version| MODERN_VERSIONS.contains(&version.as_str())) {
        let message = format!("it speaks {} only", versions.join(", "));
        return Err(Failure::Refused { code: mcp_hub_mcp::error::UNSUPPORTED_VERSION, message });
    }
    Ok(Introduction { era: Era::Modern, result, versions })
}

/// Opens a session for the watch; where everybody shares one it is everybody's.
async fn initialize(upstream: &Upstream) -> Result<Introduction, Failure> {
    let result = upstream.initialize(Owner::Shared, None).await?;
    let result: Value = serde_json::from_str(&result).map_err(|error| Failure::Unreadable(error.to_string()))?;
    let version = result["protocolVersion"].as_str().unwrap_or_default().to_owned();
    Ok(Introduction { era: Era::Legacy, result, versions: vec![version] })
}

/// How long a list holds, and whether it is the same for everybody (2026-07-28, "Caching"). A server that says nothing says
/// that it holds for now and for who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caching {
    pub(crate) until: Instant,
    pub(crate) is_public: bool,
}

impl Caching {
    pub(crate) fn none() -> Self {
        Self { until: Instant::now(), is_public: false }
    }

    fn of(result: &str) -> Self {
        #[derive(Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Hints {
            ttl_ms: Option<u32>,
            cache_scope: Option<String>,
        }
        let hints: Hints = serde_json::from_str(result).unwrap_or_default();
        let until = Instant::now() + Duration::from_millis(hints.ttl_ms.unwrap_or_default().into());
        Self { until, is_public: hints.cache_scope.as_deref() == Some("public") }
    }

    /// What holds of both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { until: self.until.min(other.until), is_public: self.is_public && other.is_public }
    }
}

/// All pages of a list; how long they hold is noted.
pub(crate) async fn list(upstream: &Upstream, era: Era, method: &str, key: &str) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let mut caching: Option<Caching> = None;
    let mut cursor: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut params = Vec::new();
        params.extend(cursor.as_ref().map(|cursor| format!(r#""cursor":{}"#, quoted(cursor))));
        params.extend((era == Era::Modern).then(|| format!(r#""_meta":{}"#, modern_meta())));
        let params = format!("{{{}}}", params.join(","));
        let result = upstream.ask(era, Owner::Shared, method, &params, PATIENCE).await?;
        let (page, next) = page(&result, key).ok_or_else(|| Failure::Unreadable(format!("{method}: no {key}")))?;
        let holds = Caching::of(&result);
        caching = Some(caching.map_or(holds, |before| before.and(holds)));
        items.extend(page.into_iter().filter(|item| is_usable(era, method, item)));
        match next {
            Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
            _ => break,
        }
    }
    upstream.note_caching(method, caching.unwrap_or_else(Caching::none));
    Ok(items)
}

/// Whether HTTP clients may offer this: tools of modern servers with invalid annotations are none (2026-07-28, "Streamable
/// HTTP: Schema extension").
pub(crate) fn is_usable(era: Era, method: &str, item: &Item) -> bool {
    if era == Era::Legacy || method != methods::TOOLS_LIST {
        return true;
    }
    match param_headers::annotations(&item.raw) {
        Ok(_) => true,
        Err(problem) => {
            tracing::warn!(tool = item.key, %problem, "tool left out");
            false
        }
    }
}

/// Items and next cursor of one page.
fn page(result: &str, key: &str) -> Option<(Vec<Item>, Option<String>)> {
    let result: std::collections::HashMap<&str, &RawValue> = serde_json::from_str(result).ok()?;
    let items: Vec<&RawValue> = serde_json::from_str(result.get(key)?.get()).ok()?;
    let next =
        result.get("nextCursor").and_then(|raw| serde_json::from_str::<Option<String>>(raw.get()).ok()).flatten();
    let named = items.into_iter().filter_map(|raw| item(key, raw)).collect();
    Some((named, next))
}

/// The item with the member by which it is asked for; `None` for one without.
pub(crate) fn item(list_key: &str, raw: &RawValue) -> Option<Item> {
    #[derive(serde::Deserialize)]
    struct Keys {
        name: Option<String>,
        uri: Option<String>,
        #[serde(rename = "uriTemplate")]
        template: Option<String>,
    }
    let keys: Keys = serde_json::from_str(raw.get()).ok()?;
    let key = match list_key {
        "resources" => keys.uri,
        "resourceTemplates" => keys.template,
        _ => keys.name,
    }?;
    Some(Item { key, raw: raw.get().to_owned() })
}

pub(crate) fn summary(introduction: &Introduction, lists: &ItemLists, started: Instant) -> Handshake {
    let text = |value: &Value| value.as_str().unwrap_or_default().chars().take(200).collect::<String>();
    let info = introduction.info();
    Handshake {
        era: introduction.era,
        server_name: text(&info["name"]),
        server_version: text(&info["version"]),
        protocol_versions: introduction.versions.clone(),
        tools: lists[0].as_deref().map(tools_summary),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        at: format!("{:.3}", jiff::Timestamp::now()),
    }
}

/// Count and digest over the tools' definitions, ordered by name, as a bridge makes them.
pub(crate) fn tools_summary(tools: &[Item]) -> ToolsSummary {
    let mut ordered: Vec<&Item> = tools.iter().collect();
    ordered.sort_by(|a, b| a.key.cmp(&b.key));
    let mut hash = Sha256::new();
    for tool in ordered {
        let value: Value = serde_json::from_str(&tool.raw).unwrap_or_else(|_| json!({}));
        hash.update(value.to_string());
        hash.update(b"\n");
    }
    ToolsSummary { count: u32::try_from(tools.len()).unwrap_or(u32::MAX), digest: hex::encode(hash.finalize()) }
}
