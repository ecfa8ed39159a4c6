//! Resource URIs on the aggregate endpoint: `SERVER+scheme:…`, so that a URI says whose it is. For MCP Apps the scheme must
//! stay `ui`, so there the server is put into the path: `ui://SERVER+…`.

use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::object::RawObject;
use serde_json::value::RawValue;

const UI: &str = "ui://";

/// The URI as clients of the aggregate see it. What has no scheme is no URI and stays as it is.
pub(crate) fn outward(server: &str, uri: &str) -> String {
    match (uri.strip_prefix(UI), has_scheme(uri)) {
        (Some(rest), _) => format!("{UI}{server}+{rest}"),
        (None, true) => format!("{server}+{uri}"),
        (None, false) => uri.to_owned(),
    }
}

/// Server and URI behind what a client of the aggregate sent.
pub(crate) fn inward(uri: &str) -> Option<(&str, String)> {
    match uri.strip_prefix(UI) {
        Some(rest) => rest.split_once('+').map(|(server, rest)| (server, format!("{UI}{rest}"))),
        None => {
            uri.split_once('+').filter(|(_, rest)| has_scheme(rest)).map(|(server, rest)| (server, rest.to_owned()))
        }
    }
}

/// RFC 3986: a letter, then letters, digits, `+`, `-` and `.`, then a colon.
fn has_scheme(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

/// Values deeper than this are passed on as they are: no result of MCP has URIs there, and depth is the sender's choice.
const DEPTH_MAX: usize = 32;

/// Rewrites every resource URI in a raw result: `uri` of links, embedded resources and contents, `uriTemplate`, and
/// `resourceUri` of MCP Apps. Members of other names, a tool's `structuredContent` among them, are data and stay as they
/// were written.
pub(crate) fn rewrite(server: &str, raw: &str) -> String {
    let mut out = String::with_capacity(raw.len() + 64);
    write(server, raw, &mut out, 0);
    out
}

fn write(server: &str, raw: &str, out: &mut String, depth: usize) {
    let unchanged = depth > DEPTH_MAX || !raw.contains("uri") && !raw.contains("Uri");
    let object = if unchanged || !raw.starts_with('{') { None } else { RawObject::parse(raw) };
    if let Some(object) = object {
        for (place, (name, value)) in object.members().enumerate() {
            out.push(if place == 0 { '{' } else { ',' });
            out.push_str(&quoted(name));
            out.push(':');
            match name {
                "uri" | "uriTemplate" | "resourceUri" if value.starts_with('"') => {
                    match serde_json::from_str::<String>(value) {
                        Ok(uri) => out.push_str(&quoted(&outward(server, &uri))),
                        Err(_) => out.push_str(value),
                    }
                }
                "structuredContent" | "inputSchema" | "outputSchema" => out.push_str(value),
                _ => write(server, value, out, depth + 1),
            }
        }
        return out.push('}');
    }
    let array =
        if unchanged || !raw.starts_with('[') { None } else { serde_json::from_str::<Vec<&RawValue>>(raw).ok() };
    if let Some(items) = array.filter(|items| !items.is_empty()) {
        for (place, item) in items.iter().enumerate() {
            out.push(if place == 0 { '[' } else { ',' });
            write(server, item.get(), out, depth + 1);
        }
        return out.push(']');
    }
    out.push_str(raw);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_uri_finds_its_way_back() {
        for uri in ["file:///a b", "demo://x+y", "ui://app/main", "test://template/{id}/data", "urn:x:y"] {
            let seen = outward("files", uri);
            assert_eq!(inward(&seen), Some(("files", uri.to_owned())), "{seen}");
        }
        assert_eq!(outward("files", "ui://app/main"), "ui://files+app/main");
        assert_eq!(outward("files", "no uri"), "no uri");
        for foreign in ["file:///a", "files", "a+b", "ui://app"] {
            assert_eq!(inward(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_uris_of_resources_are_rewritten() {
        let result = json!({
            "content": [{"type": "resource_link", "uri": "a:1", "name": "uri"}, {"type": "resource", "resource": {"uri": "a:2", "text": "uri: a:3"}}],
            "structuredContent": {"uri": "a:4"}, "empty": [], "_meta": {"ui": {"resourceUri": "ui://app"}},
        });
        let rewritten: serde_json::Value = serde_json::from_str(&rewrite("s", &result.to_string())).unwrap();
        assert_eq!(
            rewritten,
            json!({
                "content": [{"type": "resource_link", "uri": "s+a:1", "name": "uri"}, {"type": "resource", "resource": {"uri": "s+a:2", "text": "uri: a:3"}}],
                "structuredContent": {"uri": "a:4"}, "empty": [], "_meta": {"ui": {"resourceUri": "ui://s+app"}},
            })
        );
        let deep = format!("{}{}", r#"{"uri":["#.repeat(10_000), "]}".repeat(10_000));
        assert_eq!(rewrite("s", &deep), deep);
    }
}
