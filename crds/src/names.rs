//! Names that are parsed once and then carried as types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name of an MCP server: an RFC 1123 label, short enough for every name derived from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

/// The text is no server name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no server name (at most {max} lower-case letters, digits and inner hyphens)",
    max = ServerName::MAX
)]
pub struct InvalidServerName(String);

impl ServerName {
    /// Longest name in bytes. The CRD's schema states the same number.
    pub const MAX: usize = 40;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Children are named `mcp-{server}-{hash, 10}` and are labels themselves.
const _: () = assert!("mcp-".len() + ServerName::MAX + 1 + 10 <= 63);

impl FromStr for ServerName {
    type Err = InvalidServerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = text.len() <= Self::MAX
            && text.bytes().all(|b| label(b) || b == b'-')
            && text.bytes().next().is_some_and(label)
            && text.bytes().last().is_some_and(label);
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidServerName(text.to_owned())) }
    }
}

impl TryFrom<String> for ServerName {
    type Error = InvalidServerName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_is_a_short_dns_label() {
        for text in ["a", "github", "a-b", "1", &"x".repeat(40)] {
            assert!(text.parse::<ServerName>().is_ok(), "{text}");
        }
        for text in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"x".repeat(41)] {
            assert!(text.parse::<ServerName>().is_err(), "{text}");
        }
    }
}
