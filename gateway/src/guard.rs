//! Who may talk to the gateway: the token, and the `Host` and `Origin` that keep web pages out (2025-11-25, "Streamable
//! HTTP: Security Warning").

use http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use mcp_hub_dataplane_api::gateway::{ClientAuth, GatewayConfig};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::body::{Body, full};

/// Whose request it is: the hash of the token, or of nothing where none is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Principal(pub(crate) [u8; 32]);

/// Checks `Host` and `Origin`; the refusal if they are not ours. A web page can make a browser call any address, but not
/// forge these.
#[expect(clippy::result_large_err, reason = "the response is the error")]
pub(crate) fn check_origin(headers: &HeaderMap, config: &GatewayConfig) -> Result<(), Response<Body>> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(HOST).unwrap_or_default();
    if !is_loopback(host) && !config.allowed_hosts.iter().any(|allowed| matches_host(allowed, host)) {
        return Err(full(
            StatusCode::FORBIDDEN,
            "text/plain",
            "this Host is not allowed; add it to spec.gateway.allowedHosts",
        ));
    }
    let Some(origin) = text(ORIGIN) else { return Ok(()) };
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    if is_loopback(authority) || config.allowed_origins.iter().any(|allowed| allowed == origin) {
        return Ok(());
    }
    Err(full(StatusCode::FORBIDDEN, "text/plain", "this Origin is not allowed; add it to spec.gateway.allowedOrigins"))
}

/// `localhost`, 127.0.0.1 or [::1], with any port.
fn is_loopback(authority: &str) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

fn matches_host(allowed: &str, host: &str) -> bool {
    allowed.eq_ignore_ascii_case(host)
        || (!allowed.contains(':') && host.rsplit_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(allowed)))
}

/// The principal behind a request, or the refusal. No RFC 9728 document is served: some clients take any 401 with one for
/// an invitation to OAuth.
#[expect(clippy::result_large_err, reason = "the response is the error")]
pub(crate) fn authenticate(headers: &HeaderMap, config: &GatewayConfig) -> Result<Principal, Response<Body>> {
    let ClientAuth::Bearer { tokens_sha256 } = &config.auth else { return Ok(Principal([0; 32])) };
    let token = headers.get(AUTHORIZATION).and_then(|value| bearer(value.to_str().ok()?));
    if let Some(token) = token {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let shown = hex::encode(hash);
        // Every token is compared, so that the time says nothing about which one was near.
        let known = tokens_sha256
            .iter()
            .fold(subtle::Choice::from(0), |found, wanted| found | shown.as_bytes().ct_eq(wanted.as_bytes()));
        if known.into() {
            return Ok(Principal(hash));
        }
    }
    let text = "a bearer token is needed; `mcpctl endpoint -o token` prints it";
    let mut refusal = full(StatusCode::UNAUTHORIZED, "text/plain", text);
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Err(refusal)
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_names_only() {
        for name in ["localhost", "LOCALHOST:80", "127.0.0.1:7337", "[::1]", "[::1]:7337"] {
            assert!(is_loopback(name), "{name}");
        }
        for name in ["", "evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "localhost:evil.com", "evil.com:80"] {
            assert!(!is_loopback(name), "{name}");
        }
    }

    #[test]
    fn an_allowed_host_without_a_port_allows_every_port() {
        assert!(matches_host("hub.example", "hub.example:8080") && matches_host("hub.example", "HUB.example"));
        assert!(matches_host("hub.example:1", "hub.example:1") && !matches_host("hub.example:1", "hub.example:2"));
        assert!(!matches_host("hub.example", "evil.hub.example"));
    }
}
