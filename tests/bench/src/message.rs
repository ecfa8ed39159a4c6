//! The request that is sent again and again: written once, only the digits of its id change.

use clap::ValueEnum;
use mcp_hub_dataplane_api::{LEGACY_VERSIONS, MODERN_VERSIONS};
use mcp_hub_mcp::{headers, methods};

/// Ids have this many digits, so that the message never changes its length.
const FIRST_ID: u64 = 1_000_000_000;
/// How far from either end of an answer its id may stand; long results lie between.
const ENDS: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Era {
    Legacy,
    Modern,
}

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Question {
    /// Call a tool for this many bytes; without it, list the tools
    #[arg(long, value_name = "BYTES")]
    pub(crate) call: Option<usize>,
    /// Name of the tool
    #[arg(long, default_value = "echo")]
    pub(crate) tool: String,
    #[arg(long, value_enum, default_value_t = Era::Legacy)]
    pub(crate) era: Era,
}

/// A request, ready to be sent.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    id_at: usize,
    id: u64,
    /// Bytes that an answer has at least.
    least: usize,
}

impl Question {
    fn method(&self) -> &'static str {
        if self.call.is_some() { methods::TOOLS_CALL } else { methods::TOOLS_LIST }
    }

    fn json(&self) -> String {
        let meta = match self.era {
            Era::Legacy => String::new(),
            Era::Modern => format!(
                r#""_meta":{{"io.modelcontextprotocol/protocolVersion":"{}","io.modelcontextprotocol/clientInfo":{{"name":"bench","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}"#,
                MODERN_VERSIONS[0]
            ),
        };
        let params = match (self.call, meta.is_empty()) {
            (Some(bytes), empty) => {
                let comma = if empty { "" } else { "," };
                format!(r#""name":"{}","arguments":{{"bytes":{bytes}}}{comma}{meta}"#, self.tool)
            }
            (None, _) => meta,
        };
        format!(r#"{{"jsonrpc":"2.0","id":{FIRST_ID},"method":"{}","params":{{{params}}}}}"#, self.method())
    }

    /// As a line of a stdio stream.
    pub(crate) fn line(&self) -> Message {
        self.message(format!("{}\n", self.json()).into_bytes())
    }

    /// As an HTTP request, with the head of every request and the session, if there is one.
    pub(crate) fn http(&self, head: &str, session: Option<&str>) -> Message {
        let mut head = head.to_owned();
        let version = if self.era == Era::Modern { MODERN_VERSIONS[0] } else { LEGACY_VERSIONS[0] };
        head.push_str(&format!("{}: {version}\r\n", headers::PROTOCOL_VERSION));
        if self.era == Era::Modern {
            head.push_str(&format!("{}: {}\r\n", headers::METHOD, self.method()));
            if self.call.is_some() {
                head.push_str(&format!("{}: {}\r\n", headers::NAME, self.tool));
            }
        }
        if let Some(session) = session {
            head.push_str(&format!("{}: {session}\r\n", headers::SESSION_ID));
        }
        self.message(post(&head, &self.json()))
    }

    fn message(&self, bytes: Vec<u8>) -> Message {
        let digits = FIRST_ID.to_string();
        let id_at = memchr::memmem::find(&bytes, digits.as_bytes()).unwrap_or_default();
        Message { bytes, id_at, id: FIRST_ID, least: self.call.unwrap_or_default() }
    }
}

impl Message {
    /// The message under its next id.
    pub(crate) fn next(&mut self) -> &[u8] {
        self.id = if self.id == 10 * FIRST_ID - 1 { FIRST_ID } else { self.id + 1 };
        let digits = self.id.to_string();
        self.bytes[self.id_at..self.id_at + digits.len()].copy_from_slice(digits.as_bytes());
        &self.bytes
    }

    /// Whether this is the answer to the message as it was last sent.
    pub(crate) fn is_answered_by(&self, answer: &[u8]) -> bool {
        self.is_result(answer) && ends_hold(answer, format!(r#""id":{}"#, self.id).as_bytes())
    }

    /// Whether this is an answer to such a message, under whichever id.
    pub(crate) fn is_result(&self, answer: &[u8]) -> bool {
        answer.len() >= self.least && ends_hold(answer, br#""result""#)
    }
}

fn ends_hold(answer: &[u8], text: &[u8]) -> bool {
    let (start, end) = (&answer[..answer.len().min(ENDS)], &answer[answer.len().saturating_sub(ENDS)..]);
    memchr::memmem::find(start, text).or_else(|| memchr::memmem::find(end, text)).is_some()
}

/// An HTTP request with this body.
pub(crate) fn post(head: &str, body: &str) -> Vec<u8> {
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::Echo;

    #[test]
    fn every_question_is_answered_under_its_id_only() {
        let echo = Echo::new(10);
        for era in [Era::Legacy, Era::Modern] {
            for call in [None, Some(200), Some(75_000)] {
                let mut message = Question { call, tool: "echo".to_owned(), era }.line();
                let first = echo.answer(message.next()).unwrap().parts.concat();
                assert!(message.is_answered_by(&first), "{era:?} {call:?}");
                let second = echo.answer(message.next()).unwrap().parts.concat();
                assert!(message.is_answered_by(&second) && !message.is_answered_by(&first), "{era:?} {call:?}");
            }
        }
    }

    #[test]
    fn an_error_is_no_answer() {
        let mut message = Question { call: Some(0), tool: "echo".to_owned(), era: Era::Legacy }.line();
        message.next();
        let error = format!(r#"{{"id":{},"error":{{}}}}"#, message.id);
        assert!(!message.is_answered_by(error.as_bytes()));
    }
}
