//! Between the protocol eras: what has to change in a request, a result or an error so that the other side understands it.
//!
//! Lists, calls, reads, gets and completions translate exactly. What has no counterpart is refused, never guessed.

use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::error::{INVALID_PARAMS, RESOURCE_NOT_FOUND_LEGACY};
use mcp_hub_mcp::methods;
use mcp_hub_mcp::object::RawObject;
use serde_json::Value;

use crate::questions;
use crate::upstream::modern_meta;

const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
/// Members of a request's `_meta` that only the modern era knows.
const MODERN_META: [&str; 4] =
    ["io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientInfo", CLIENT_CAPABILITIES, LOG_LEVEL];
/// Members of a result that only the modern era knows.
const MODERN_RESULT: [&str; 3] = ["resultType", "ttlMs", "cacheScope"];

/// Whether requests of this method mean the same in both eras.
pub(crate) fn is_translatable(method: &str) -> bool {
    methods::list_key(method).is_some()
        || matches!(method, methods::TOOLS_CALL | methods::PROMPTS_GET | methods::RESOURCES_READ | methods::COMPLETE)
}

/// Params of a request for a modern server of a legacy client with these capabilities, which wants log messages from this
/// level on.
pub(crate) fn params_to_modern(params: &mut RawObject, capabilities: Option<&str>, level: Option<usize>) {
    // Tasks of the legacy era are not offered; a request for one is a request (2025-11-25, "Tasks").
    params.remove("task");
    let mut meta = params.get("_meta").and_then(RawObject::parse).unwrap_or_default();
    if let Some(ours) = RawObject::parse(&modern_meta()) {
        for name in MODERN_META {
            if let Some(value) = ours.get(name) {
                meta.set(name, value);
            }
        }
    }
    if capabilities.is_some() {
        meta.set(CLIENT_CAPABILITIES, questions::client_capabilities(capabilities));
    }
    if let Some(level) = level.and_then(|level| LEVELS.get(level)) {
        meta.set(LOG_LEVEL, quoted(level));
    }
    params.set("_meta", meta.to_string());
}

/// Params of a modern request for a legacy server.
pub(crate) fn params_to_legacy(params: &mut RawObject) {
    params.remove("inputResponses");
    params.remove("requestState");
    let Some(mut meta) = params.get("_meta").and_then(RawObject::parse) else { return };
    for name in MODERN_META {
        meta.remove(name);
    }
    match meta.to_string() {
        empty if empty == "{}" => params.remove("_meta"),
        meta => params.set("_meta", meta),
    }
}

/// A result that the client's era has no form for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untranslatable {
    #[error("the server's result is no object")]
    NoObject,
    #[error("the server answered with a result of type `{0}`, which a legacy client cannot be given")]
    ResultType(String),
}

/// A result of a modern server for a legacy client.
pub(crate) fn result_to_legacy(result: &str) -> Result<String, Untranslatable> {
    let mut result = RawObject::parse(result).ok_or(Untranslatable::NoObject)?;
    let kind = result.get("resultType").and_then(|raw| serde_json::from_str::<String>(raw).ok());
    if let Some(kind) = kind.filter(|kind| kind != "complete") {
        return Err(Untranslatable::ResultType(kind));
    }
    for name in MODERN_RESULT {
        result.remove(name);
    }
    Ok(result.to_string())
}

/// A result of a legacy server for a modern client: nothing in it says how long it holds, or for whom else.
pub(crate) fn result_to_modern(method: &str, result: &str) -> Result<String, Untranslatable> {
    let mut result = RawObject::parse(result).ok_or(Untranslatable::NoObject)?;
    complete(method, &mut result);
    Ok(result.to_string())
}

/// Adds what modern results must say.
pub(crate) fn complete(method: &str, result: &mut RawObject) {
    result.set_default("resultType", r#""complete""#);
    if methods::list_key(method).is_some() || matches!(method, methods::RESOURCES_READ | methods::DISCOVER) {
        result.set_default("ttlMs", "0");
        result.set_default("cacheScope", r#""private""#);
    }
}

/// An error object for a client of this era.
pub(crate) fn error(client: Era, method: &str, error: &str) -> String {
    let (from, to) = match client {
        Era::Modern => (RESOURCE_NOT_FOUND_LEGACY, INVALID_PARAMS),
        Era::Legacy => (INVALID_PARAMS, RESOURCE_NOT_FOUND_LEGACY),
    };
    let Some(mut object) = RawObject::parse(error).filter(|_| method == methods::RESOURCES_READ) else {
        return error.to_owned();
    };
    if object.get("code") == Some(&from.to_string()) {
        object.set("code", to.to_string());
    }
    object.to_string()
}

/// Log levels, the least urgent first.
pub(crate) const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// The level from which on a modern client wants log messages of its request; `None` if it wants none.
pub(crate) fn log_level(meta: Option<&str>) -> Option<usize> {
    let meta = meta.filter(|meta| meta.contains(LOG_LEVEL)).and_then(RawObject::parse)?;
    let level: String = serde_json::from_str(meta.get(LOG_LEVEL)?).ok()?;
    level_named(&level)
}

/// The level of this name.
pub(crate) fn level_named(name: &str) -> Option<usize> {
    LEVELS.iter().position(|known| *known == name)
}

/// How urgent a log message is, by its params; one of an unknown level is as urgent as can be.
pub(crate) fn level_of(message_params: Option<&str>) -> usize {
    let params: Value = message_params.and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    params["level"].as_str().and_then(level_named).unwrap_or(LEVELS.len() - 1)
}

/// Capabilities of a server of one era for a client of the other: what would be refused is not advertised.
pub(crate) fn capabilities(capabilities: &Value) -> Value {
    let mut translated = capabilities.clone();
    let Some(members) = translated.as_object_mut() else { return Value::Object(serde_json::Map::new()) };
    members.retain(|name, _| name != "tasks");
    if let Some(extensions) = members.get_mut("extensions").and_then(Value::as_object_mut) {
        extensions.remove("io.modelcontextprotocol/tasks");
    }
    // Changes are noticed here, whether the server says so or not.
    for name in ["tools", "prompts", "resources"] {
        if let Some(Value::Object(member)) = members.get_mut(name) {
            member.insert("listChanged".to_owned(), Value::Bool(true));
        }
    }
    translated
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_crosses_over_and_back_unchanged() {
        for params in [r#"{"name":"a","arguments":{"x":1.0}}"#, r#"{"_meta":{"progressToken":7},"name":"a"}"#, "{}"] {
            let mut object = RawObject::parse(params).unwrap();
            params_to_modern(&mut object, None, None);
            let there: Value = serde_json::from_str(&object.to_string()).unwrap();
            assert_eq!(there["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
            assert_eq!(there["_meta"]["io.modelcontextprotocol/clientCapabilities"], json!({}));
            params_to_legacy(&mut object);
            let back: Value = serde_json::from_str(&object.to_string()).unwrap();
            assert_eq!(back, serde_json::from_str::<Value>(params).unwrap());
        }
    }

    #[test]
    fn a_question_to_the_client_is_refused_and_not_taken_for_an_answer() {
        assert_eq!(
            result_to_legacy(r#"{"resultType":"input_required","inputRequests":{}}"#),
            Err(Untranslatable::ResultType("input_required".to_owned()))
        );
        assert_eq!(result_to_legacy(r#"{"content":[],"resultType":"complete"}"#).unwrap(), r#"{"content":[]}"#);
        assert_eq!(
            result_to_modern(methods::TOOLS_LIST, r#"{"tools":[]}"#).unwrap(),
            r#"{"tools":[],"resultType":"complete","ttlMs":0,"cacheScope":"private"}"#
        );
        assert_eq!(result_to_modern(methods::TOOLS_CALL, "[]"), Err(Untranslatable::NoObject));
    }

    #[test]
    fn a_missing_resource_has_the_code_of_the_clients_era() {
        let legacy = r#"{"code":-32002,"message":"m","data":{"uri":"a:b"}}"#;
        let modern = r#"{"code":-32602,"message":"m","data":{"uri":"a:b"}}"#;
        assert_eq!(error(Era::Modern, methods::RESOURCES_READ, legacy), modern);
        assert_eq!(error(Era::Legacy, methods::RESOURCES_READ, modern), legacy);
        assert_eq!(error(Era::Legacy, methods::TOOLS_CALL, modern), modern);
    }

    proptest! {
        #[test]
        fn a_result_crosses_over_and_back_unchanged(text in ".*", number in any::<f64>()) {
            let result = json!({"content": [{"type": "text", "text": text}], "structuredContent": {"n": number}}).to_string();
            let there = result_to_modern(methods::TOOLS_CALL, &result).unwrap();
            prop_assert_eq!(result_to_legacy(&there).unwrap(), result);
        }
    }
}
