//! What a request asks for: where to, and what of its headers is for the way and not for the other end.

use std::fmt;
use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use mcp_hub_dataplane_api::egress::HostName;

use crate::refusal::Refusal;

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Name(HostName),
    Address(IpAddr),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

impl Destination {
    /// Where a proxied request goes: `CONNECT HOST:PORT`, or an `http` URL as the request's target.
    pub(crate) fn of<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let uri = request.uri();
        let authority = uri.authority().ok_or(Refusal::NoProxyRequest)?;
        // Credentials for the other end belong into a header of their own; here they only hide what follows.
        if authority.as_str().contains('@') {
            return Err(Refusal::NoHost);
        }
        // One that is no number would look as if it was left out.
        let names_port = authority.as_str() != authority.host();
        let port = match uri.scheme() {
            None if request.method() == Method::CONNECT => authority.port_u16(),
            Some(scheme) if *scheme == Scheme::HTTP && !names_port => Some(80),
            Some(scheme) if *scheme == Scheme::HTTP => authority.port_u16(),
            Some(_) | None => return Err(Refusal::OtherScheme),
        };
        let port = port.filter(|port| *port != 0).ok_or(Refusal::NoPort)?;
        Ok(Self { host: host(authority)?, port })
    }
}

fn host(authority: &Authority) -> Result<Host, Refusal> {
    let text = authority.host();
    let inner = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    match inner.parse::<IpAddr>() {
        Ok(address) => Ok(Host::Address(address.to_canonical())),
        Err(_) => text.parse().map(Host::Name).map_err(|_| Refusal::NoHost),
    }
}

/// Headers of one hop (RFC 9110, section 7.6.1), and what only the proxy is to see.
const OF_THE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out what is meant for the next hop only.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_THE_HOP) {
        headers.remove(name);
    }
}

/// Makes of a proxied request the one that the other end is to see: of its own path, under the host's name that was judged.
pub(crate) fn forward<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    let authority = request.uri().authority().ok_or(Refusal::NoProxyRequest)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::NoHost)?;
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    strip(request.headers_mut());
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().append(header::VIA, HeaderValue::from_static("1.1 mcp-hub-relay"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = http::Version::HTTP_11;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str) -> Request<()> {
        Request::builder().method(method).uri(uri).body(()).unwrap()
    }

    #[test]
    fn the_other_end_is_read_from_both_forms() {
        for (method, uri, shown) in [
            ("CONNECT", "API.example.com:443", "api.example.com:443"),
            ("CONNECT", "10.0.0.1:5432", "10.0.0.1:5432"),
            ("CONNECT", "[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("CONNECT", "[::ffff:127.0.0.1]:443", "127.0.0.1:443"),
            ("GET", "http://example.com/a?b", "example.com:80"),
            ("POST", "http://example.com.:8080", "example.com:8080"),
        ] {
            assert_eq!(Destination::of(&request(method, uri)).unwrap().to_string(), shown);
        }
        for (method, uri) in [
            ("CONNECT", "example.com"),
            ("CONNECT", "user@example.com:443"),
            ("CONNECT", "127.1:443"),
            ("CONNECT", "0x7f000001:443"),
            ("CONNECT", "2130706433:443"),
            ("CONNECT", "a..b:443"),
            ("CONNECT", "example.com:0"),
            ("GET", "/path"),
            ("GET", "https://example.com/"),
            ("GET", "http://example.com@10.0.0.1/"),
            ("GET", "http://example.com:99999/"),
        ] {
            assert!(Destination::of(&request(method, uri)).is_err(), "{method} {uri}");
        }
    }

    #[test]
    fn nothing_of_the_hop_goes_further() {
        let mut request = request("GET", "http://example.com:8080/a?b");
        for (name, value) in [
            ("host", "elsewhere.example.net"),
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("proxy-authorization", "Basic abc"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer theirs"),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        forward(&mut request).unwrap();
        let left: Vec<String> =
            request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        assert_eq!(left, ["host: example.com:8080", "authorization: Bearer theirs", "via: 1.1 mcp-hub-relay"]);
        assert_eq!(request.uri(), "/a?b");
    }
}
