//! HTTP+SSE, the transport of 2024-11-05: a server says everything on one stream, whose first event names the address for
//! messages to it.

use std::borrow::Cow;

/// Name of the event that names the address.
pub const ENDPOINT: &str = "endpoint";

/// Where a server wants messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Scheme and authority, where the server names them; the scheme may be missing.
    origin: Option<(Option<String>, String)>,
    /// Path and query.
    path: String,
}

impl Address {
    /// What an `endpoint` event says, a URL that may be relative to the stream's path; `None` if it says nothing of the
    /// kind.
    pub fn read(event: &[u8], stream_path: &str) -> Option<Self> {
        let text = std::str::from_utf8(event).ok()?.trim();
        let text = text.split('#').next().unwrap_or_default();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (origin, reference) = match (text.split_once("://"), text.strip_prefix("//")) {
            (Some((scheme, rest)), _) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (Some((Some(scheme.to_ascii_lowercase()), authority.to_ascii_lowercase())), path)
            }
            (_, Some(rest)) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (Some((None, authority.to_ascii_lowercase())), path)
            }
            _ => (None, text),
        };
        let stream_path = stream_path.split('?').next().unwrap_or_default();
        let folder = stream_path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let path: Cow<'_, str> = match (reference, origin.is_some()) {
            (absolute, _) if absolute.starts_with('/') => absolute.into(),
            (query, true) => format!("/{query}").into(),
            (query, false) if query.starts_with('?') => format!("{stream_path}{query}").into(),
            (relative, false) => format!("{folder}/{}", relative.strip_prefix("./").unwrap_or(relative)).into(),
        };
        Some(Self { origin, path: path.into_owned() })
    }

    /// Path and query, at the server itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The origin that it names, if that is not the one of these; nothing may be sent there.
    pub fn elsewhere(&self, scheme: &str, authority: &str) -> Option<String> {
        let (named, at) = self.origin.as_ref()?;
        let named = named.as_deref().unwrap_or(scheme);
        let same = named.eq_ignore_ascii_case(scheme)
            && with_port(named, at) == with_port(named, &authority.to_ascii_lowercase());
        (!same).then(|| format!("{named}://{at}"))
    }
}

/// The authority with the port that its scheme has by itself.
fn with_port<'a>(scheme: &str, authority: &'a str) -> Cow<'a, str> {
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    match scheme {
        "http" if !has_port => format!("{authority}:80").into(),
        "https" if !has_port => format!("{authority}:443").into(),
        _ => authority.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(event: &str) -> Address {
        Address::read(event.as_bytes(), "/v1/sse?key=1").unwrap_or_else(|| panic!("{event}"))
    }

    #[test]
    fn an_address_may_be_absolute_or_relative_to_the_stream() {
        for (event, path) in [
            ("/messages?session=a%20b", "/messages?session=a%20b"),
            ("messages/7", "/v1/messages/7"),
            ("./messages", "/v1/messages"),
            ("?session=1", "/v1/sse?session=1"),
            (" https://Host.test/m/?a=b#c\n", "/m/?a=b"),
            ("https://host.test", "/"),
            ("https://host.test?a", "/?a"),
            ("//host.test/m", "/m"),
        ] {
            let address = read(event);
            assert_eq!(address.path(), path, "{event}");
            assert_eq!(address.elsewhere("https", "host.test"), None, "{event}");
        }
        for event in ["", " ", "#a", "/a b", "/größe", "/a\r\nb", "/a\nHost: evil"] {
            assert_eq!(Address::read(event.as_bytes(), "/sse"), None, "{event}");
        }
    }

    #[test]
    fn an_address_of_another_origin_is_told_apart() {
        for event in [
            "https://evil.test/m",
            "https://host.test.evil.test/m",
            "https://host.test@evil.test/m",
            "https://evil.test@host.test/m",
            "https://host.test:444/m",
            "http://host.test:443/m",
            "//evil.test/m",
            "ftp://host.test/m",
        ] {
            assert!(read(event).elsewhere("https", "host.test").is_some(), "{event}");
        }
        for event in ["https://HOST.test:443/m", "//host.test", "https://host.test/m"] {
            assert_eq!(read(event).elsewhere("https", "host.test"), None, "{event}");
            assert_eq!(read(event).elsewhere("https", "Host.test:443"), None, "{event}");
        }
        assert_eq!(read("http://[::1]/m").elsewhere("http", "[::1]:80"), None);
        assert!(read("http://[::1]:81/m").elsewhere("http", "[::1]").is_some());
    }
}
