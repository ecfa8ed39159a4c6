//! Resource URIs on the aggregate endpoint: `SERVER+scheme:…`, so that a URI says whose it is. For MCP Apps the scheme must
//! stay `ui`, so there the server is put into the path: `ui://SERVER+…`.

use serde_json::Value;

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

/// Rewrites every resource URI in a result: `uri` of links, embedded resources and contents, `uriTemplate`, and
/// `resourceUri` of MCP Apps. Members of other names, a tool's `structuredContent` among them, are data and stay.
pub(crate) fn rewrite(server: &str, value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, member) in members.iter_mut() {
                match member {
                    Value::String(text) if matches!(key.as_str(), "uri" | "uriTemplate" | "resourceUri") => {
                        *text = outward(server, text);
                    }
                    Value::Object(_) | Value::Array(_)
                        if key != "structuredContent" && key != "inputSchema" && key != "outputSchema" =>
                    {
                        rewrite(server, member);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(server, item)),
        _ => {}
    }
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
        let mut result = json!({
            "content": [{"type": "resource_link", "uri": "a:1", "name": "uri"}, {"type": "resource", "resource": {"uri": "a:2", "text": "uri: a:3"}}],
            "structuredContent": {"uri": "a:4"},
        });
        rewrite("s", &mut result);
        assert_eq!(
            result,
            json!({
                "content": [{"type": "resource_link", "uri": "s+a:1", "name": "uri"}, {"type": "resource", "resource": {"uri": "s+a:2", "text": "uri: a:3"}}],
                "structuredContent": {"uri": "a:4"},
            })
        );
    }
}
