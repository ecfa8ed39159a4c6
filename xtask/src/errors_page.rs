//! `docs/src/errors.md`: the table of our own error codes.

use mcp_hub_mcp::error::OWN_CODES;

const HEAD: &str = "\
# Error codes

JSON-RPC reserves -32768 to -32000, of which MCP uses a part; what a server itself says passes as it is. The hub's own \
codes lie outside of that and say that no server has answered. Each is the error of one request: other calls, sessions \
and servers go on.

| Code | Meaning | When | What a client does |
|---|---|---|---|
";

/// The page.
pub(crate) fn page() -> String {
    let mut page = HEAD.to_owned();
    for own in OWN_CODES {
        page += &format!("| {} | {} | {} | {} |\n", own.code, own.meaning, own.when, own.advice);
    }
    page
}
