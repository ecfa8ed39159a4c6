//! The answer to a registry's challenge: a password, or a token that its token server gives for one.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::challenge::Challenge;
use super::full;
use super::session::{AGENT, Session, is_as_safe};
use crate::credentials::Login;
use crate::error::RegistryError;

/// A token and what is said with it.
const TOKEN_MAX: usize = 256 << 10;

impl Session<'_> {
    /// The authorization that the challenge asks for; `None` if it needs a login and there is none.
    pub(super) async fn answer(&self, challenge: Challenge) -> Result<Option<HeaderValue>, RegistryError> {
        let (realm, service, scope) = match (challenge, self.login) {
            (_, Some(Login::Access(token))) => return self.header("Bearer", token.expose_secret()).map(Some),
            (Challenge::Basic, Some(Login::Password { user, password })) => {
                return self.basic(user, password.expose_secret()).map(Some);
            }
            (Challenge::Basic, None) => return Ok(None),
            (Challenge::Basic, Some(Login::Refresh(_))) => {
                return Err(self.challenge("it takes passwords only, and the login is a token"));
            }
            (Challenge::Bearer { realm, service, scope }, _) => (realm, service, scope),
        };
        let registry = Url::parse(&self.base).map_err(|_| self.challenge("its own address is none"))?;
        let mut realm = Url::parse(&realm).map_err(|_| self.challenge("its token server's address is none"))?;
        if !is_as_safe(&registry, &realm) {
            return Err(self.challenge("its token server is not reached over https"));
        }
        // Who writes names what it needs itself: a challenge names what the one request needed that it answers.
        let scope = match (&self.scope, scope) {
            (Some(own), _) => own.clone(),
            (None, Some(asked)) => asked,
            (None, None) => format!("repository:{}:pull", self.image.repository()),
        };
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
                full(form)
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
                full(Bytes::new())
            }
        };
        let request = request.uri(realm.as_str()).body(body);
        let request = request.map_err(|_| self.challenge("its token server's address is none"))?;
        let response = self.send(request, self.patience).await?;
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
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}
