//! Who may talk to the gateway: the token, and the `Host` and `Origin` that keep web pages out (2025-11-25, "Streamable
//! HTTP: Security Warning").

use std::sync::{Mutex, PoisonError};

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

/// What a connection showed last. A client shows the same token with every request, and hashing it is a good part of what a
/// short call costs here.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<Option<Hashed>>);

#[derive(Debug, Clone)]
struct Hashed {
    authorization: HeaderValue,
    hash: [u8; 32],
    /// The hash in lower-case hexadecimal digits.
    digits: [u8; 64],
}

impl Shown {
    /// The hash of the token in this header.
    fn hash(&self, authorization: &HeaderValue) -> Option<Hashed> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A proxy may send the requests of several clients over one connection.
        let same = |last: &&Hashed| last.authorization.as_bytes().ct_eq(authorization.as_bytes()).into();
        if let Some(hashed) = last.as_ref().filter(same) {
            return Some(hashed.clone());
        }
        let hash: [u8; 32] = Sha256::digest(bearer(authorization.to_str().ok()?)?).into();
        let mut digits = [0; 64];
        hex::encode_to_slice(hash, &mut digits).ok()?;
        Some(last.insert(Hashed { authorization: authorization.clone(), hash, digits }).clone())
    }
}

/// The principal behind a request, or the refusal. No RFC 9728 document is served: some clients take any 401 with one for
/// an invitation to OAuth.
#[expect(clippy::result_large_err, reason = "the response is the error")]
pub(crate) fn authenticate(
    headers: &HeaderMap,
    config: &GatewayConfig,
    shown: &Shown,
) -> Result<Principal, Response<Body>> {
    let ClientAuth::Bearer { tokens_sha256 } = &config.auth else { return Ok(Principal([0; 32])) };
    if let Some(hashed) = headers.get(AUTHORIZATION).and_then(|value| shown.hash(value)) {
        // Every token is compared, so that the time says nothing about which one was near.
        let known = tokens_sha256
            .iter()
            .fold(subtle::Choice::from(0), |found, wanted| found | hashed.digits.ct_eq(wanted.as_bytes()));
        if known.into() {
            return Ok(Principal(hashed.hash));
        }
    }
    let text = "a bearer token is needed; `mcpctl endpoint -o token` prints it";
    let mut refusal = full(StatusCode::UNAUTHORIZED, "text/plain", text);
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Err(refusal)
}

pub(crate) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use mcp_hub_dataplane_api::gateway::{GatewayLimits, HubRef, Naming, NamingMode};

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
    fn a_connection_is_let_in_by_each_token_that_it_shows_and_by_no_other() {
        let tokens = ["one", "two"].map(|token| hex::encode(Sha256::digest(token)));
        let config = |tokens: &[String]| GatewayConfig {
            version: String::new(),
            sequence: 0,
            hub: HubRef { namespace: String::new(), name: String::new(), uid: String::new() },
            upstreams: Vec::new(),
            naming: Naming { mode: NamingMode::Bare, separator: String::new(), max_length: 48 },
            auth: ClientAuth::Bearer { tokens_sha256: tokens.to_vec() },
            limits: GatewayLimits { message_bytes: 1, concurrent_calls: 1, stale_for_ms: 1, result_bytes: None },
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            wake: None,
        };
        let shown = Shown::default();
        let ask = |value: &'static str, tokens: &[String]| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            authenticate(&headers, &config(tokens), &shown).ok()
        };
        let one = Some(Principal(Sha256::digest("one").into()));
        let two = Some(Principal(Sha256::digest("two").into()));
        for (value, wanted) in
            [("Bearer one", one), ("Bearer one", one), ("Bearer three", None), ("bearer two", two), ("Bearer one", one)]
        {
            assert_eq!(ask(value, &tokens), wanted, "{value}");
        }
        // A token that the configuration has no more is refused at once.
        assert_eq!(ask("Bearer one", &tokens[1..]), None);
        assert_eq!(ask("one", &tokens), None);
    }

    #[test]
    fn an_allowed_host_without_a_port_allows_every_port() {
        assert!(matches_host("hub.example", "hub.example:8080") && matches_host("hub.example", "HUB.example"));
        assert!(matches_host("hub.example:1", "hub.example:1") && !matches_host("hub.example:1", "hub.example:2"));
        assert!(!matches_host("hub.example", "evil.hub.example"));
    }
}
