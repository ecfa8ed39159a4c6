//! JSON-RPC 2.0 envelopes over raw JSON (MCP specification, "Base Protocol: Messages").

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

/// One JSON-RPC message, borrowed from its bytes. Members may come in any order: the TypeScript SDK writes the id last.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Envelope<'a> {
    #[serde(borrow, default)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub error: Option<&'a RawValue>,
}

/// The bytes are no JSON-RPC message.
#[derive(Debug, thiserror::Error)]
pub enum MalformedMessage {
    #[error("the message is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the message is a batch, which only protocol version 2025-03-26 knows")]
    Batch,
    #[error("the message is neither request, notification nor response")]
    Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Notification,
    /// A result or an error.
    Response,
}

impl<'a> Envelope<'a> {
    /// Parses the outermost level of one message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MalformedMessage> {
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(MalformedMessage::Batch);
        }
        // Checked at once, so that it need not be checked for each value; the refusal is the parser's.
        let envelope: Self = match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text)?,
            Err(_) => serde_json::from_slice(bytes)?,
        };
        let id_fits = envelope.id.is_none_or(|id| id.get().starts_with(['"', '-']) || starts_with_digit(id.get()));
        let null_id = envelope.id.is_some_and(|id| id.get() == "null");
        let method_fits = envelope.method.is_none_or(|method| method.get().starts_with('"'));
        let shaped = match (envelope.method, envelope.result, envelope.error) {
            (Some(_), None, None) => id_fits,
            (None, Some(_), None) => envelope.id.is_some() && id_fits,
            // An error about a message whose id could not be read carries a null id.
            (None, None, Some(_)) => envelope.id.is_none() || id_fits || null_id,
            _ => false,
        };
        if shaped && method_fits { Ok(envelope) } else { Err(MalformedMessage::Shape) }
    }

    pub fn kind(&self) -> Kind {
        match (self.method.is_some(), self.id.is_some()) {
            (true, true) => Kind::Request,
            (true, false) => Kind::Notification,
            (false, _) => Kind::Response,
        }
    }

    /// The method, unescaped; empty for a response.
    pub fn method(&self) -> Cow<'a, str> {
        let Some(raw) = self.method else { return Cow::Borrowed("") };
        string(raw).unwrap_or_default()
    }
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// A JSON string, borrowed unless it holds escapes; `None` if the value is no string.
pub fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    text(raw.get())
}

/// As [`string`], of a raw value.
pub fn text(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(raw).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// The members of `params` by which messages are routed.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub struct Params<'a> {
    #[serde(borrow, default)]
    pub name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub uri: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub cursor: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "requestId")]
    pub request_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "progressToken")]
    pub progress_token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "ref")]
    pub reference: Option<&'a RawValue>,
    /// What a server gave the client to send again (2026-07-28, "Multi round-trip requests").
    #[serde(borrow, default, rename = "requestState")]
    pub request_state: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    pub meta: Option<&'a RawValue>,
    #[serde(skip)]
    known_meta: Meta<'a>,
}

/// The members of `_meta` that the protocol gives a meaning (2026-07-28, "General fields").
#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken")]
    pub progress_token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion")]
    pub protocol_version: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/clientInfo")]
    pub client_info: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/clientCapabilities")]
    pub client_capabilities: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/subscriptionId")]
    pub subscription_id: Option<&'a RawValue>,
}

impl<'a> Params<'a> {
    /// A shallow parse; `params` that are no object have no such members.
    pub fn of(raw: Option<&'a RawValue>) -> Self {
        let mut params: Self = raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        params.known_meta = params.meta.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        params
    }

    /// What `_meta` holds that has a meaning.
    pub fn meta(&self) -> &Meta<'a> {
        &self.known_meta
    }
}

/// Where a value stands in a message: so that one that is kept need not be parsed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    start: u32,
    end: u32,
}

impl Place {
    /// `raw` is borrowed from the message, which is far smaller than 4 GiB; what is not in it has a place in no message.
    pub fn of(message: &[u8], raw: &RawValue) -> Self {
        let start = (raw.get().as_ptr() as usize).wrapping_sub(message.as_ptr() as usize);
        let at = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        Self { start: at(start), end: at(start.wrapping_add(raw.get().len())) }
    }

    /// The value, raw; empty in a message that is not the one of the place.
    pub fn text(self, message: &[u8]) -> &str {
        let bytes = message.get(self.range());
        bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// `message` with the bytes of values that are borrowed from it replaced. Nothing else is touched, so key order, number
/// notation and unknown members survive.
pub fn splice(message: &[u8], replacements: &[(&RawValue, &[u8])]) -> Vec<u8> {
    let mut places: Vec<(Place, &[u8])> =
        replacements.iter().map(|(raw, with)| (Place::of(message, raw), *with)).collect();
    splice_at(message, &mut places)
}

/// As [`splice`], with the places of the values.
pub fn splice_at(message: &[u8], replacements: &mut [(Place, &[u8])]) -> Vec<u8> {
    replacements.sort_unstable_by_key(|(place, _)| place.start);
    let grown: usize = replacements.iter().map(|(_, with)| with.len()).sum();
    let mut out = Vec::with_capacity(message.len() + grown);
    let mut copied = 0;
    for (place, with) in replacements.iter() {
        let Range { start, end } = place.range();
        // A value of another buffer would make nonsense of the bytes; it is left out instead.
        let (Some(before), true) = (message.get(copied..start), start <= end && end <= message.len()) else { continue };
        out.extend_from_slice(before);
        out.extend_from_slice(with);
        copied = end;
    }
    out.extend_from_slice(&message[copied..]);
    out
}

/// A request, or without `id` a notification.
pub fn write_request(id: Option<&str>, method: &str, params: Option<&str>) -> Vec<u8> {
    let mut out = String::with_capacity(64 + params.map_or(0, str::len));
    out.push_str(r#"{"jsonrpc":"2.0""#);
    if let Some(id) = id {
        out.push_str(r#","id":"#);
        out.push_str(id);
    }
    out.push_str(r#","method":"#);
    out.push_str(&quoted(method));
    if let Some(params) = params {
        out.push_str(r#","params":"#);
        out.push_str(params);
    }
    out.push('}');
    out.into_bytes()
}

/// A response with this raw result.
pub fn write_result(id: &str, result: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).into_bytes()
}

/// An error response; without `id` one about a message whose id could not be read.
pub fn write_error(id: Option<&str>, code: i64, message: &str) -> Vec<u8> {
    write_error_with(id, code, message, None)
}

/// As [`write_error`], with raw `data`.
pub fn write_error_with(id: Option<&str>, code: i64, message: &str, data: Option<&str>) -> Vec<u8> {
    let (id, message) = (id.unwrap_or("null"), quoted(message));
    match data {
        None => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#),
        Some(data) => {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message},"data":{data}}}}}"#)
        }
    }
    .into_bytes()
}

/// The text as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_are_told_apart_wherever_the_id_stands() {
        for (message, kind) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, Kind::Request),
            (r#"{"method":"ping","params":{"deep":[[{}]]},"id":"a"}"#, Kind::Request),
            (r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, Kind::Notification),
            (r#"{"result":{},"jsonrpc":"2.0","id":7}"#, Kind::Response),
            (r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}"#, Kind::Response),
        ] {
            assert_eq!(Envelope::parse(message.as_bytes()).unwrap().kind(), kind, "{message}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in [
            "",
            "{}",
            "1",
            "[]",
            "null",
            r#"{"id":1}"#,
            r#"{"method":1,"id":1}"#,
            r#"{"id":{},"method":"a"}"#,
            r#"{"id":1,"method":"a","result":{}}"#,
            r#"{"id":1,"result":{},"error":{}}"#,
            "{\"id\":1,\"method\":\"\u{1}",
        ] {
            assert!(Envelope::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Envelope::parse(b"{\"id\":1,\"method\":\"\xff\"}").is_err());
    }

    #[test]
    fn deep_nesting_is_skipped_without_recursion() {
        let deep = format!(r#"{{"id":1,"method":"a","params":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(Envelope::parse(deep.as_bytes()).unwrap().params.unwrap().get().len(), 2_000_000);
    }

    #[test]
    fn an_escaped_method_is_unescaped() {
        assert_eq!(Envelope::parse(br#"{"id":1,"method":"a\/b"}"#).unwrap().method(), "a/b");
    }

    proptest! {
        #[test]
        fn splicing_an_id_changes_nothing_else(key in "[a-z]{1,8}", text in ".*", number in any::<i64>()) {
            let params = serde_json::json!({ &key: text, "id": number, "_meta": {"id": 1} });
            let message = format!(r#"{{"params": {params}, "method":"m","id":{number} ,"jsonrpc":"2.0"}}"#);
            let envelope = Envelope::parse(message.as_bytes()).unwrap();
            let spliced = splice(message.as_bytes(), &[(envelope.id.unwrap(), b"\"new\"")]);
            let mut wanted: serde_json::Value = serde_json::from_str(&message).unwrap();
            wanted["id"] = "new".into();
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&spliced).unwrap(), wanted);
        }
    }
}
