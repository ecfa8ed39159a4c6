//! Questions about one image: bounded, with the right login, and the answers checked.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use url::Url;

use super::challenge::Challenge;
use super::{Body, Http, digest_of, full};
use crate::credentials::Login;
use crate::documents;
use crate::error::RegistryError;
use crate::reference::Reference;

/// From a registry to its store and on; registries use one or two.
const REDIRECTS: usize = 5;
/// What is read of an error's body, and kept of the message in it.
const ERROR_MAX: usize = 64 << 10;
const SAID_MAX: usize = 200;
/// A registry that asks for more is asked again after this.
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);

pub(super) const AGENT: &str = concat!("mcp-hub/", env!("CARGO_PKG_VERSION"));

/// What is asked of one repository. May be asked several things at once.
pub(crate) struct Session<'a> {
    pub(super) http: &'a Http,
    pub(crate) image: &'a Reference,
    pub(super) base: String,
    pub(super) login: Option<&'a Login>,
    /// What a token is to allow; `None`: what the registry names.
    pub(super) scope: Option<String>,
    /// Longest time for one answer, and longest time in which nothing of a body moves.
    pub(super) patience: Duration,
    /// The answer to the registry's challenge.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A request that can be made again: with a token, or at the place that it is redirected to.
pub(super) struct Ask<'r> {
    pub(super) method: Method,
    pub(super) url: &'r str,
    pub(super) header: Option<(HeaderName, String)>,
    pub(super) body: Bytes,
    pub(super) patience: Duration,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        (http, patience): (&'a Http, Duration),
        image: &'a Reference,
        is_plain: bool,
        login: Option<&'a Login>,
        scope: Option<String>,
    ) -> Self {
        let scheme = if is_plain { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}", image.host(), image.repository());
        Self { http, image, base, login, scope, patience, authorization: Mutex::default() }
    }

    /// An index or a manifest, by tag or digest; checked against the digest, or against what the registry says it is.
    pub(crate) async fn manifest(
        &self,
        version: &str,
        digest: Option<&str>,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let what = "the manifest";
        let url = format!("{}/manifests/{version}", self.base);
        let accept = Some((ACCEPT, documents::ACCEPT.to_owned()));
        let response = self.succeed(&self.plain(Method::GET, &url, accept)).await?;
        let wanted = digest.or(told_digest(response.headers())).map(str::to_owned);
        let body = self.body(response, what, limit).await?;
        self.check(body, what, wanted)
    }

    pub(super) async fn blob(&self, digest: &str, limit: usize) -> Result<Bytes, RegistryError> {
        let what = "the configuration";
        let url = format!("{}/blobs/{digest}", self.base);
        let response = self.succeed(&self.plain(Method::GET, &url, None)).await?;
        let body = self.body(response, what, limit).await?;
        self.check(body, what, Some(digest.to_owned()))
    }

    /// The bytes of a blob from an offset on, or from its beginning if the registry does not know of offsets.
    pub(super) async fn open(&self, digest: &str, offset: u64) -> Result<(Incoming, u64), RegistryError> {
        let url = format!("{}/blobs/{digest}", self.base);
        let range = (offset > 0).then(|| (RANGE, format!("bytes={offset}-")));
        let response = self.succeed(&self.plain(Method::GET, &url, range)).await?;
        let begins = if response.status() == StatusCode::PARTIAL_CONTENT { offset } else { 0 };
        Ok((response.into_body(), begins))
    }

    pub(super) fn plain<'r>(&self, method: Method, url: &'r str, header: Option<(HeaderName, String)>) -> Ask<'r> {
        Ask { method, url, header, body: Bytes::new(), patience: self.patience }
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

    /// A successful answer.
    pub(super) async fn succeed(&self, ask: &Ask<'_>) -> Result<Response<Incoming>, RegistryError> {
        let response = self.ask(ask).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }

    /// The answer, whatever it is, after the registry was told who asks if it wants to know. A token that has expired is
    /// renewed. Where the registry only leads to, nobody is told who asks, or hears where a login is to go.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Response<Incoming>, RegistryError> {
        let used = self.authorization().clone();
        let (response, from) = self.follow(ask, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_home(&from) {
            return Ok(response);
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let Some(challenge) = Challenge::of(headers.filter_map(|value| value.to_str().ok())) else {
            return Ok(response);
        };
        match self.answer(challenge).await? {
            answer if answer == used => Ok(response),
            answer => {
                self.authorization().clone_from(&answer);
                self.follow(ask, answer.as_ref()).await.map(|(response, _)| response)
            }
        }
    }

    pub(super) fn authorization(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows redirects, and says where the answer is from. The registry's token stays with the registry, and what was
    /// encrypted stays so.
    async fn follow(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response<Incoming>, Url), RegistryError> {
        let mut at = Url::parse(ask.url).map_err(|_| self.redirect("from an address that is none"))?;
        for _ in 0..=REDIRECTS {
            let mut request = self.request(&ask.method, &at, authorization)?;
            if let Some((name, value)) = &ask.header {
                let value = HeaderValue::from_str(value).map_err(|_| self.redirect("with a header that is none"))?;
                request.headers_mut().insert(name, value);
            }
            *request.body_mut() = full(ask.body.clone());
            let response = self.send(request, ask.patience).await?;
            if !response.status().is_redirection() {
                return Ok((response, at));
            }
            if !ask.method.is_safe() {
                return Err(self.redirect("what is to be stored"));
            }
            at = self.location(response.headers(), &at)?;
        }
        Err(self.redirect("again and again"))
    }

    /// A request without a body, with the login if it goes to the registry itself.
    pub(super) fn request(
        &self,
        method: &Method,
        at: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Body>, RegistryError> {
        let mut request = Request::builder().method(method).uri(at.as_str()).header(USER_AGENT, AGENT);
        if let Some(authorization) = authorization.filter(|_| self.is_home(at)) {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(full(Bytes::new())).map_err(|_| self.redirect("to an address that is none"))
    }

    /// Whether a place is the registry's own: the same scheme, host and port.
    fn is_home(&self, at: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|home| home.origin() == at.origin())
    }

    /// Where an answer leads.
    pub(super) fn location(&self, headers: &HeaderMap, from: &Url) -> Result<Url, RegistryError> {
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let next = location.and_then(|location| from.join(location).ok());
        let next = next.ok_or_else(|| self.redirect("to nowhere"))?;
        let home = Url::parse(&self.base).map_err(|_| self.redirect("from an address that is none"))?;
        if is_as_safe(&home, &next) { Ok(next) } else { Err(self.redirect("from https to something else")) }
    }

    fn redirect(&self, problem: &'static str) -> RegistryError {
        RegistryError::Redirect { host: self.image.registry().to_owned(), problem }
    }

    pub(super) async fn send(
        &self,
        request: Request<Body>,
        patience: Duration,
    ) -> Result<Response<Incoming>, RegistryError> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        match tokio::time::timeout(patience, self.http.request(request)).await {
            Ok(answer) => answer.map_err(|source| RegistryError::Unreachable { host, source: Box::new(source) }),
            Err(_) => Err(self.timed_out(patience)),
        }
    }

    /// The whole body, if it is not too large.
    pub(super) async fn body(
        &self,
        response: Response<Incoming>,
        what: &'static str,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let body = tokio::time::timeout(self.patience, Limited::new(response.into_body(), limit).collect()).await;
        match body.map_err(|_| self.timed_out(self.patience))? {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(RegistryError::TooLarge { what, image: self.image.to_string(), limit })
            }
            Err(source) => Err(RegistryError::Unreachable { host: self.image.registry().to_owned(), source }),
        }
    }

    pub(super) fn timed_out(&self, patience: Duration) -> RegistryError {
        RegistryError::TimedOut { image: self.image.to_string(), registry: self.image.registry().to_owned(), patience }
    }

    pub(super) async fn refused(&self, response: Response<Incoming>) -> RegistryError {
        let (image, registry) = (self.image.to_string(), self.image.registry().to_owned());
        let (head, body) = response.into_parts();
        let said = tokio::time::timeout(self.patience, Limited::new(body, ERROR_MAX).collect()).await;
        let said = said.ok().and_then(Result::ok).and_then(|body| said_in(&body.to_bytes()));
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        match head.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
                image,
                registry,
                status: head.status.as_u16(),
                with_credentials: self.login.is_some(),
                said,
            },
            StatusCode::NOT_FOUND => RegistryError::NotFound { image, registry, said },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { registry, retry_after },
            status => RegistryError::Status { image, registry, status: status.as_u16(), said, retry_after },
        }
    }
}

/// What the registry says the digest of its answer is.
pub(super) fn told_digest(headers: &HeaderMap) -> Option<&str> {
    let told = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
    told.filter(|told| told.starts_with("sha256:"))
}

/// What was asked for over https is not taken from anywhere else.
pub(super) fn is_as_safe(first: &Url, next: &Url) -> bool {
    next.scheme() == "https" || (next.scheme() == "http" && first.scheme() == "http")
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
fn said_in(body: &[u8]) -> Option<String> {
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
            said_in(br#"{"errors":[{"code":"X","message":"no\nsuch \u001b[31mimage"}]}"#).unwrap(),
            "nosuch [31mimage"
        );
        assert_eq!(
            said_in(format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(1000)).as_bytes()).unwrap().len(),
            200
        );
        for other in ["<html>", "{}", r#"{"errors":[]}"#, r#"{"errors":[{"message":""}]}"#] {
            assert_eq!(said_in(other.as_bytes()), None, "{other}");
        }
    }
}
