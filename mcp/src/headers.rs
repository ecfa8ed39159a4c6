//! Names of MCP's HTTP headers, and the encoding of names in them.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub const SESSION_ID: &str = "mcp-session-id";
pub const PROTOCOL_VERSION: &str = "mcp-protocol-version";
pub const METHOD: &str = "mcp-method";
pub const NAME: &str = "mcp-name";

const SENTINEL: (&str, &str) = ("=?base64?", "?=");

/// A value for [`NAME`]: as it is if HTTP can carry it, else base64 between sentinels (2026-07-28, "Streamable HTTP").
pub fn encode(value: &str) -> Cow<'_, str> {
    let plain = value.bytes().all(|b| (0x21..0x7f).contains(&b) || b == b' ')
        && value.trim() == value
        && !value.starts_with(SENTINEL.0);
    if plain {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(format!("{}{}{}", SENTINEL.0, STANDARD.encode(value), SENTINEL.1))
    }
}

/// The value that a header carries; `None` if its base64 or UTF-8 is broken.
pub fn decode(header: &str) -> Option<Cow<'_, str>> {
    match header.strip_prefix(SENTINEL.0).and_then(|rest| rest.strip_suffix(SENTINEL.1)) {
        None => Some(Cow::Borrowed(header)),
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok().map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_stay_plain() {
        assert_eq!(encode("get_weather"), "get_weather");
        assert_eq!(encode("größe"), "=?base64?Z3LDtsOfZQ==?=");
    }

    proptest! {
        #[test]
        fn every_name_survives(name in ".*") {
            let encoded = encode(&name).into_owned();
            prop_assert!(encoded.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert_eq!(decode(&encoded).unwrap(), name);
        }
    }
}
