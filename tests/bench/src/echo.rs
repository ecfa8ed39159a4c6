//! What the echo server answers, whatever it is asked over.

use std::fmt::Write;

use bytes::Bytes;
use mcp_hub_dataplane_api::{LEGACY_VERSIONS, MODERN_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, Kind, write_error};
use mcp_hub_mcp::{error, methods};

/// Largest text of a result, in bytes.
const TEXT_MAX: usize = 4 << 20;
/// Texts up to this size are copied into the answer; larger ones are sent as they lie.
const COPIED: usize = 16 << 10;

/// A server that offers a number of tools, of which `echo` answers with as many bytes as it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Echo {
    text: Bytes,
    /// Result of `tools/list`, raw.
    list: Bytes,
}

/// An answer in parts that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) parts: Vec<Bytes>,
    /// Whether it is one to `initialize`.
    pub(crate) opens_session: bool,
}

impl Echo {
    pub(crate) fn new(tools: usize) -> Self {
        let all: Vec<String> = (0..tools).map(definition).collect();
        let list =
            format!(r#"{{"tools":[{}],"resultType":"complete","ttlMs":60000,"cacheScope":"private"}}"#, all.join(","));
        Self { text: vec![b'x'; TEXT_MAX].into(), list: list.into() }
    }

    /// The answer to a message; `None` for what wants none.
    pub(crate) fn answer(&self, message: &[u8]) -> Option<Answer> {
        let whole = |text: Vec<u8>| Answer { parts: vec![text.into()], opens_session: false };
        let envelope = match Envelope::parse(message) {
            Ok(envelope) if envelope.kind() == Kind::Request => envelope,
            Ok(_) => return None,
            Err(problem) => return Some(whole(write_error(None, error::INVALID_REQUEST, &problem.to_string()))),
        };
        let id = envelope.id.map_or("null", |id| id.get());
        let mut out = String::with_capacity(256);
        // Writing to a String cannot fail.
        write!(out, r#"{{"jsonrpc":"2.0","id":{id},"result":"#).unwrap_or_default();
        match &*envelope.method() {
            methods::TOOLS_CALL => {
                let size = envelope.params.and_then(|params| bytes_wanted(params.get())).unwrap_or_default();
                out.push_str(r#"{"content":[{"type":"text","text":""#);
                let text = self.text.slice(..size.min(TEXT_MAX));
                return Some(Answer {
                    parts: joined(out, &text, r#""}],"isError":false,"resultType":"complete"}}"#),
                    opens_session: false,
                });
            }
            methods::TOOLS_LIST => {
                return Some(Answer { parts: joined(out, &self.list, "}"), opens_session: false });
            }
            methods::PING => out.push_str("{}}"),
            methods::INITIALIZE => {
                let about = r#""capabilities":{"tools":{}},"serverInfo":{"name":"echo","version":"1"}"#;
                write!(out, r#"{{"protocolVersion":"{}",{about}}}}}"#, LEGACY_VERSIONS[0]).unwrap_or_default();
                return Some(Answer { parts: vec![out.into()], opens_session: true });
            }
            methods::DISCOVER => {
                let about = r#""capabilities":{"tools":{}},"resultType":"complete","ttlMs":0,"cacheScope":"private""#;
                let meta = r#""_meta":{"io.modelcontextprotocol/serverInfo":{"name":"echo","version":"1"}}"#;
                write!(out, r#"{{"supportedVersions":["{}"],{about},{meta}}}}}"#, MODERN_VERSIONS[0])
                    .unwrap_or_default();
            }
            other => return Some(whole(write_error(Some(id), error::METHOD_NOT_FOUND, other))),
        }
        Some(whole(out.into()))
    }
}

fn joined(mut before: String, middle: &Bytes, after: &'static str) -> Vec<Bytes> {
    if middle.len() > COPIED {
        return vec![before.into(), middle.clone(), Bytes::from_static(after.as_bytes())];
    }
    // The text is ASCII.
    before.push_str(std::str::from_utf8(middle).unwrap_or_default());
    before.push_str(after);
    vec![before.into()]
}

/// The number after `"bytes":`.
fn bytes_wanted(params: &str) -> Option<usize> {
    let (_, rest) = params.split_once(r#""bytes":"#)?;
    let digits = rest.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A tool of the usual size, about 350 bytes.
fn definition(place: usize) -> String {
    let name = if place == 0 { "echo".to_owned() } else { format!("echo_{place}") };
    let about =
        "Answers with as many letters as it is asked for, so that nothing is measured but the way to it and back.";
    let bytes = r#"{"type":"integer","minimum":0,"description":"Length of the text in bytes"}"#;
    let note = r#"{"type":"string","description":"Read by nobody"}"#;
    format!(
        r#"{{"name":"{name}","description":"{about}","inputSchema":{{"type":"object","properties":{{"bytes":{bytes},"note":{note}}},"required":["bytes"]}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn answered(message: &str) -> Value {
        serde_json::from_slice(&Echo::new(3).answer(message.as_bytes()).unwrap().parts.concat()).unwrap()
    }

    #[test]
    fn a_call_gets_as_many_bytes_as_it_wants_under_its_id() {
        for size in [0, 200, 9_000, 75_000] {
            let call = format!(
                r#"{{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{{"name":"echo","arguments":{{"bytes":{size}}}}}}}"#
            );
            let answer = answered(&call);
            assert_eq!(answer["id"], "a");
            assert_eq!(answer["result"]["content"][0]["text"].as_str().unwrap().len(), size);
        }
    }

    #[test]
    fn lists_handshakes_and_what_is_unknown_are_answered() {
        assert_eq!(answered(r#"{"id":1,"method":"tools/list"}"#)["result"]["tools"].as_array().unwrap().len(), 3);
        assert_eq!(answered(r#"{"id":1,"method":"initialize"}"#)["result"]["serverInfo"]["name"], "echo");
        assert_eq!(answered(r#"{"id":1,"method":"server/discover"}"#)["result"]["supportedVersions"][0], "2026-07-28");
        assert_eq!(answered(r#"{"id":1,"method":"prompts/list"}"#)["error"]["code"], -32601);
        assert_eq!(Echo::new(1).answer(br#"{"method":"notifications/initialized"}"#), None);
    }
}
