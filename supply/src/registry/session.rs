//! Questions about one image: bounded, with the right login, and the answers checked.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::challenge::Challenge;
use super::{Http, digest_of, documents};
use crate::credentials::Login;
use crate::error::RegistryError;
use crate::reference::Reference;

/// From a registry to its store and on; registries use one or two.
const REDIRECTS: usize = 5;
/// A token and what is said with it.
const TOKEN_MAX: usize = 256 << 10;
/// What is read of an error's body, and kept of the message in it.
const ERROR_MAX: usize = 64 << 10;
const SAID_MAX: usize = 200;
/// A registry that asks for more is asked again after this.
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);

const AGENT: &str = concat!("mcp-hub/", env!("CARGO_PKG_VERSION"));

pub(super) struct Session<'a> {
    http: &'a Http,
    image: &'a Reference,
    base: String,
    login: Option<&'a Login>,
    /// The answer to the registry's challenge.
    authorization: Option<HeaderValue>,
}

impl<'a> Session<'a> {
    pub(super) fn new(http: &'a Http, image: &'a Reference, is_plain: bool, login: Option<&'a Login>) -> Self {
        let scheme = if is_plain { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}", image.host(), image.repository());
        Self { http, image, base, login, authorization: None }
    }

    /// An index or a manifest, by tag or digest; checked against the digest, or against what the registry says it is.
    pub(super) async fn manifest(
        &mut self,
        version: &str,
        digest: Option<&str>,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let what = "the manifest";
        let url = format!("{}/manifests/{version}", self.base);
        let response = self.get(&url, documents::ACCEPT).await?;
        let told = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let wanted = digest.or(told.filter(|told| told.starts_with("sha256:"))).map(str::to_owned);
        let body = self.body(response, what, limit).await?;
        self.check(body, what, wanted)
    }

    pub(super) async fn blob(&mut self, digest: &str, limit: usize) -> Result<Bytes, RegistryError> {
        let what = "the configuration";
        let url = format!("{}/blobs/{digest}", self.base);
        let response = self.get(&url, "*/*").await?;
        let body = self.body(response, what, limit).await?;
        self.check(body, what, Some(digest.to_owned()))
    }

    fn check(&self, body: Bytes, what: &'static str, wanted: Option<String>) -> Result<Bytes, RegistryError> {
        let got = digest_of(&body);
        match wanted {
            Some(wanted) if wanted != got => {
                Err(RegistryError::DigestMismatch { what, image: self.image.to_string(), wanted, got })
            }
            _ => Ok(body),
        }
    }

    /// A successful response, after the registry was told who asks if it wants to know.
    async fn get(&mut self, url: &str, accept: &'static str) -> Result<Response<Incoming>, RegistryError> {
        let mut response = self.follow(url, accept).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
            if let Some(challenge) = Challenge::of(headers.filter_map(|value| value.to_str().ok()))
                && let Some(answer) = self.answer(challenge).await?
            {
                self.authorization = Some(answer);
                response = self.follow(url, accept).await?;
            }
        }
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }

    /// Follows redirects. The registry's token stays with the registry, and what was encrypted stays so.
    async fn follow(&self, url: &str, accept: &'static str) -> Result<Response<Incoming>, RegistryError> {
        let redirect = |problem| RegistryError::Redirect { host: self.image.registry().to_owned(), problem };
        let first = Url::parse(url).map_err(|_| redirect("from an address that is none"))?;
        let mut at = first.clone();
        for _ in 0..=REDIRECTS {
            let mut request = Request::get(at.as_str()).header(ACCEPT, accept).header(USER_AGENT, AGENT);
            if at.origin() == first.origin()
                && let Some(authorization) = &self.authorization
            {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(Full::default()).map_err(|_| redirect("to an address that is none"))?;
            let response = self.send(request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| at.join(location).ok());
            at = next.ok_or_else(|| redirect("to nowhere"))?;
            if !is_as_safe(&first, &at) {
                return Err(redirect("from https to something else"));
            }
        }
        Err(redirect("again and again"))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RegistryError> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        self.http.request(request).await.map_err(|source| RegistryError::Unreachable { host, source: Box::new(source) })
    }

    /// The whole body, if it is not too large.
    async fn body(
        &self,
        response: Response<Incoming>,
        what: &'static str,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(RegistryError::TooLarge { what, image: self.image.to_string(), limit })
            }
            Err(source) => Err(RegistryError::Unreachable { host: self.image.registry().to_owned(), source }),
        }
    }

    /// The authorization that the challenge asks for; `None` if it needs a login and there is none.
    async fn answer(&self, challenge: Challenge) -> Result<Option<HeaderValue>, RegistryError> {
        let (realm, service, scope) = match (challenge, self.login) {
            (_, Some(Login::Access(token))) => return self.header("Bearer", token.expose_secret()).map(Some),
            (Challenge::Basic, Some(Login::Password { user, password })) => {
                return self.basic(user, password.expose_secret()).map(Some);
            }
            (Challenge::Basic, None) => return Ok(None),
            (Challenge::Basic, Some(Login::Refresh(_))) => {
                return Err(self.challenge("it takes passwords only, and the pull secret has a token"));
            }
            (Challenge::Bearer { realm, service, scope }, _) => (realm, service, scope),
        };
        let registry = Url::parse(&self.base).map_err(|_| self.challenge("its own address is none"))?;
        let mut realm = Url::parse(&realm).map_err(|_| self.challenge("its token server's address is none"))?;
        if !is_as_safe(&registry, &realm) {
            return Err(self.challenge("its token server is not reached over https"));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.image.repository()));
        let mut request = Request::builder().header(ACCEPT, "application/json").header(USER_AGENT, AGENT);
        let body = match self.login {
            Some(Login::Refresh(token)) => {
                let form = Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "mcp-hub")
                    .append_pair("service", service.as_deref().unwrap_or_default())
                    .append_pair("scope", &scope)
                    .append_pair("refresh_token", token.expose_secret())
                    .finish();
                request = request.method(Method::POST).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                Full::from(form)
            }
            login => {
                {
                    let mut query = realm.query_pairs_mut();
                    query.extend_pairs(service.iter().map(|service| ("service", service)));
                    // Some servers want each scope by itself.
                    query.extend_pairs(scope.split(' ').map(|scope| ("scope", scope)));
                }
                if let Some(Login::Password { user, password }) = login {
                    request = request.header(AUTHORIZATION, self.basic(user, password.expose_secret())?);
                }
                Full::default()
            }
        };
        let request = request.uri(realm.as_str()).body(body);
        let request = request.map_err(|_| self.challenge("its token server's address is none"))?;
        let response = self.send(request).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let body = self.body(response, "the token", TOKEN_MAX).await?;
        // What stands there is a secret, so it is not told what is wrong with it.
        let token = serde_json::from_slice::<Token>(&body).ok().and_then(|answer| answer.token.or(answer.access_token));
        match token {
            Some(token) => self.header("Bearer", &token).map(Some),
            None => Err(self.challenge("its token server gave no token")),
        }
    }

    fn basic(&self, user: &str, password: &str) -> Result<HeaderValue, RegistryError> {
        self.header("Basic", &BASE64_STANDARD.encode(format!("{user}:{password}")))
    }

    fn header(&self, scheme: &str, secret: &str) -> Result<HeaderValue, RegistryError> {
        let mut value = HeaderValue::from_str(&format!("{scheme} {secret}"))
            .map_err(|_| self.challenge("the token has characters that no header may have"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn challenge(&self, problem: &'static str) -> RegistryError {
        RegistryError::Challenge { registry: self.image.registry().to_owned(), problem }
    }

    async fn refused(&self, response: Response<Incoming>) -> RegistryError {
        let (image, registry) = (self.image.to_string(), self.image.registry().to_owned());
        let (head, body) = response.into_parts();
        let said = Limited::new(body, ERROR_MAX).collect().await.ok().and_then(|body| said(&body.to_bytes()));
        match head.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
                image,
                registry,
                status: head.status.as_u16(),
                with_credentials: self.login.is_some(),
                said,
            },
            StatusCode::NOT_FOUND => RegistryError::NotFound { image, registry, said },
            StatusCode::TOO_MANY_REQUESTS => {
                let after = head.headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
                RegistryError::RateLimited { registry, retry_after: after }
            }
            status => RegistryError::Status { image, registry, status: status.as_u16(), said },
        }
    }
}

/// What was asked for over https is not taken from anywhere else.
fn is_as_safe(first: &Url, next: &Url) -> bool {
    next.scheme() == "https" || (next.scheme() == "http" && first.scheme() == "http")
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str) -> Option<Duration> {
    let wait = match value.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(value).ok()?;
            date.timestamp().duration_since(jiff::Timestamp::now()).try_into().unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_MAX))
}

/// The first message of an error, on one line: it ends up in a status that people read.
fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    let first = serde_json::from_slice::<Errors>(body).ok()?.errors.into_iter().next()?;
    let line: String = first.message.chars().filter(|letter| !letter.is_control()).take(SAID_MAX).collect();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_says_in_seconds_or_by_the_clock_when_to_come_again() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(" 0 "), Some(Duration::ZERO));
        assert_eq!(retry_after("99999999999"), Some(RETRY_MAX));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO), "long over");
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let date = at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = retry_after(&date).unwrap();
        assert!((90..=100).contains(&wait.as_secs()), "{date}: {wait:?}");
    }

    #[test]
    fn nobody_is_led_from_https_to_something_else() {
        for (first, next, is_followed) in [
            ("https://a.io", "https://b.io", true),
            ("https://a.io", "http://a.io", false),
            ("http://localhost", "http://127.0.0.1:1", true),
            ("http://localhost", "https://b.io", true),
            ("http://localhost", "file:///etc/passwd", false),
        ] {
            let url = |text: &str| Url::parse(text).unwrap();
            assert_eq!(is_as_safe(&url(first), &url(next)), is_followed, "{first} to {next}");
        }
    }

    #[test]
    fn what_a_registry_says_is_one_short_line() {
        assert_eq!(
            said(br#"{"errors":[{"code":"X","message":"no\nsuch \u001b[31mimage"}]}"#).unwrap(),
            "nosuch [31mimage"
        );
        assert_eq!(
            said(format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(1000)).as_bytes()).unwrap().len(),
            200
        );
        for other in ["<html>", "{}", r#"{"errors":[]}"#, r#"{"errors":[{"message":""}]}"#] {
            assert_eq!(said(other.as_bytes()), None, "{other}");
        }
    }
}
