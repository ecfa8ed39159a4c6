//! Clients of either era: which one a request is of, and where it goes.

mod elsewhere;
mod legacy;
mod modern;
mod streams;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use mcp_hub_dataplane_api::{Era, MODERN_VERSIONS};
use mcp_hub_mcp::envelope::{Envelope, MalformedMessage, Params, quoted, string};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error, methods};

use crate::aggregate;
use crate::body::{self, Body, JSON, full, in_parts};
use crate::cursors;
use crate::exchange::{Exchange, INTRODUCTION, Seat};
use crate::fields::{self, Fields};
use crate::guard::Principal;
use crate::names;
use crate::outgoing::{Aim, Places};
use crate::param_headers::{self, Mismatch};
use crate::serve::Ending;
use crate::session::{LastSession, Session};
use crate::translate;
use crate::upstream::{Owner, Upstream, list};
use crate::{Inner, Served};

/// What the aggregate offers to every client, whatever its servers offer now.
const CAPABILITIES: &str = r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"completions":{},"logging":{}}"#;

/// A client that has not sent its message by then is not going to; 32 MiB in it are less than 5 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// One of the gateway's MCP endpoints.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    Aggregate,
    Server(Arc<Upstream>),
}

impl Scope {
    /// What session ids are bound to.
    fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Aggregate => "/mcp".into(),
            Self::Server(upstream) => format!("/servers/{}/mcp", upstream.config.name).into(),
        }
    }
}

/// Who sends a request, and how it speaks.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) era: Era,
    pub(crate) principal: Principal,
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) takes_events: bool,
    /// Of the listener that the request came by.
    pub(crate) ending: Arc<Ending>,
}

/// Who a connection lets in.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) principal: Principal,
    /// Of the connection.
    pub(crate) last_session: Arc<LastSession>,
    /// Of its listener.
    pub(crate) ending: Arc<Ending>,
    /// Whether another replica sends it, and is the one that let the client in.
    pub(crate) is_forwarded: bool,
}

impl Client {
    /// Whose session with a server the client's requests go into, where a server has one for each client.
    pub(crate) fn owner(&self) -> Owner {
        match &self.session {
            Some(session) => Owner::Session(session.nonce),
            None => Owner::Principal(self.principal.0),
        }
    }
}

/// Everything that a request is answered from.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) inner: Arc<Inner>,
    pub(crate) served: Arc<Served>,
    pub(crate) scope: Scope,
    pub(crate) client: Client,
    pub(crate) headers: HeaderMap,
    /// Of the connection.
    pub(crate) last_session: Arc<LastSession>,
    /// Whether it came from another replica, and so goes to no other.
    pub(crate) is_forwarded: bool,
}

pub(crate) async fn answer(
    request: Request<Incoming>,
    inner: Arc<Inner>,
    served: Arc<Served>,
    scope: Scope,
    sender: Sender,
) -> Response<Body> {
    let Sender { principal, last_session, ending, is_forwarded } = sender;
    let (http::request::Parts { method, headers, .. }, body) = request.into_parts();
    let takes_events = headers
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("text/event-stream") || value.contains("*/*")));
    let client = Client { era: Era::Legacy, principal, session: None, takes_events, ending };
    let mut ask = Ask { inner, served, scope, client, headers, last_session, is_forwarded };
    match method {
        Method::POST => ask.post(body).await,
        Method::GET | Method::DELETE => {
            if let Err(refusal) = ask.legacy_session(None) {
                return refusal;
            }
            if method == Method::GET { Box::pin(ask.stream()).await } else { Box::pin(ask.close()).await }
        }
        _ => {
            let mut refusal = full(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::new());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            refusal
        }
    }
}

impl Ask {
    async fn post(mut self, incoming: Incoming) -> Response<Body> {
        let limit = usize::try_from(self.served.config.limits.message_bytes).unwrap_or(usize::MAX);
        let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(incoming, limit).collect());
        let Ok(body) = body.await else {
            let text = format!("the message did not arrive within {} s", BODY_TIMEOUT.as_secs());
            return body::error(StatusCode::REQUEST_TIMEOUT, None, error::INVALID_REQUEST, &text);
        };
        let message = match body {
            Ok(body) => body.to_bytes(),
            Err(problem) if problem.downcast_ref::<http_body_util::LengthLimitError>().is_some() => {
                let text = format!("the message is over {limit} bytes; spec.limits.messageBytes of the hub says so");
                return body::error(StatusCode::PAYLOAD_TOO_LARGE, None, error::MESSAGE_TOO_LARGE, &text);
            }
            Err(problem) => {
                let text = format!("the message could not be read: {problem}");
                return body::error(StatusCode::BAD_REQUEST, None, error::PARSE_ERROR, &text);
            }
        };
        let envelope = match Envelope::parse(&message) {
            Ok(envelope) => envelope,
            Err(MalformedMessage::Batch) => return Box::pin(self.batch(&message)).await,
            Err(problem @ MalformedMessage::Json(_)) => {
                return body::error(StatusCode::BAD_REQUEST, None, error::PARSE_ERROR, &problem.to_string());
            }
            Err(problem @ MalformedMessage::Shape) => {
                return body::error(StatusCode::BAD_REQUEST, None, error::INVALID_REQUEST, &problem.to_string());
            }
        };
        let params = Params::of(envelope.params);
        self.client.era = self.era_of(&envelope, &params);
        match self.client.era {
            Era::Modern => self.modern(&message, &envelope, &params).await,
            Era::Legacy => {
                let initializes = envelope.method() == methods::INITIALIZE;
                if !initializes && let Err(refusal) = self.legacy_session(envelope.id.map(|id| id.get())) {
                    return refusal;
                }
                self.legacy(&message, &envelope, &params).await
            }
        }
    }

    /// Modern requests say so in a header and in themselves; whichever says so is held to both.
    fn era_of(&self, envelope: &Envelope<'_>, params: &Params<'_>) -> Era {
        let shown = self.headers.get(&fields::PROTOCOL_VERSION).and_then(|value| value.to_str().ok());
        let modern = shown.is_some_and(|version| MODERN_VERSIONS.contains(&version))
            || params.meta().protocol_version.is_some()
            || envelope.method() == methods::DISCOVER;
        if modern { Era::Modern } else { Era::Legacy }
    }

    /// A request that goes to a server, or is answered from what is known of several.
    async fn pass(self, message: &Bytes, envelope: &Envelope<'_>, params: &Params<'_>) -> Response<Body> {
        let id = envelope.id.map_or("null", |id| id.get());
        let method = envelope.method().into_owned();
        let (upstream, aim, aggregate) = match &self.scope {
            Scope::Server(upstream) => {
                let aim = if method == methods::TOOLS_CALL && !names::are_open(&upstream.config.tools) {
                    let name = params.name.and_then(string).unwrap_or_default();
                    let Some(own) = names::own(&upstream.config.tools, &name) else { return self.unknown(id, &method) };
                    (own != name).then(|| Aim::Name(own.to_owned()))
                } else {
                    None
                };
                if !self.translates(upstream, &method).await {
                    let text = format!("{method} cannot be translated between the eras of client and server");
                    return body::error(StatusCode::OK, Some(id), error::NOT_TRANSLATABLE, &text);
                }
                (upstream.clone(), aim, false)
            }
            Scope::Aggregate => {
                if let Some(place) = methods::LISTS.iter().position(|(list, _)| *list == method) {
                    return self.list(id, place, params).await;
                }
                match self.served.route(&method, params).await {
                    Some(route) => (route.upstream, Some(route.aim), true),
                    None => return self.unknown(id, &method),
                }
            }
        };
        let seat = Seat::of(&self.client, &upstream, params);
        if let Some(answer) = self.upstream_elsewhere(&upstream, &seat, message, id, params).await {
            return answer;
        }
        if self.client.era == Era::Modern
            && method == methods::TOOLS_CALL
            && let Err(mismatch) = self.check_arguments(&upstream, aim.as_ref(), envelope, params).await
        {
            return body::error(StatusCode::BAD_REQUEST, Some(id), error::HEADER_MISMATCH, &mismatch.to_string());
        }
        let shown = |name: &HeaderName| name.as_str().starts_with("mcp-param-");
        let param_headers = if self.client.era == Era::Modern {
            self.headers
                .iter()
                .filter(|(name, _)| shown(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        } else {
            Fields::new()
        };
        let busy = methods::is_call(&method).then(|| Arc::new(upstream.activity.begin()));
        let exchange = Exchange {
            seat,
            request_state: params.request_state.map(|raw| raw.get().to_owned()),
            is_retry: false,
            result_limit: self.served.config.limits.result_bytes.and_then(|bytes| usize::try_from(bytes).ok()),
            inner: self.inner,
            upstream,
            client: self.client,
            id: id.to_owned(),
            method,
            message: message.clone(),
            places: Places::of(message, envelope, params),
            aim,
            aggregate,
            param_headers,
            busy,
        };
        exchange.run().await
    }

    /// A merged list. The list itself is the same for everybody and lies ready, so the rest of the result stands before it.
    async fn list(&self, id: &str, place: usize, params: &Params<'_>) -> Response<Body> {
        self.served.settle().await;
        let (method, member) = methods::LISTS[place];
        let (principal, seal) = (self.client.principal, &self.inner.seal);
        let after = match params.cursor.filter(|raw| raw.get() != "null") {
            None => None,
            Some(raw) => {
                let cursor = string(raw).unwrap_or_default();
                let Some(last) = cursors::open(seal, principal, method, &cursor) else { return wrong_cursor(id) };
                Some(last)
            }
        };
        let merged = self.served.merged(place);
        let Some((page, goes_on)) = merged.page(after.as_deref()) else { return wrong_cursor(id) };
        let mut result = RawObject::default();
        if goes_on && let Some(next) = cursors::close(seal, principal, method, &page.last) {
            result.set("nextCursor", quoted(&next));
        }
        if self.client.era == Era::Modern {
            let caching = self.served.caching(place);
            let left = caching.until.saturating_duration_since(std::time::Instant::now());
            result.set("ttlMs", left.as_millis().to_string());
            result.set("cacheScope", if caching.is_public { r#""public""# } else { r#""private""# });
            translate::complete(method, &mut result);
        }
        let mut head = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"#);
        for (name, value) in result.members() {
            head.push_str(&format!("{}:{value},", quoted(name)));
        }
        head.push_str(&format!("{}:", quoted(member)));
        in_parts(StatusCode::OK, JSON, [head.into(), page.items.clone()])
    }

    /// Holds `Mcp-Param-*` against the arguments of a call. What disagrees with a schema that may be an old one is looked at
    /// again with the newest.
    async fn check_arguments(
        &self,
        upstream: &Upstream,
        aim: Option<&Aim>,
        envelope: &Envelope<'_>,
        params: &Params<'_>,
    ) -> Result<(), Mismatch> {
        // So it is with most servers.
        if upstream.catalog().annotations.is_empty() {
            return Ok(());
        }
        let name = match aim {
            Some(Aim::Name(own)) => own.clone(),
            _ => params.name.and_then(string).unwrap_or_default().into_owned(),
        };
        let check = || {
            let catalog = upstream.catalog();
            let Some(annotations) = catalog.annotations.get(&name) else { return Ok(()) };
            let object = envelope.params.and_then(|raw| RawObject::parse(raw.get()));
            let arguments = object.as_ref().and_then(|object| object.get("arguments"));
            param_headers::check(annotations, arguments, &self.headers)
        };
        let Err(mismatch) = check() else { return Ok(()) };
        let Some(era) = upstream.known_era() else { return Err(mismatch) };
        if let Ok(tools) = Box::pin(list(upstream, era, methods::TOOLS_LIST, "tools")).await {
            upstream.learn_tools(tools);
        }
        check()
    }

    async fn translates(&self, upstream: &Upstream, method: &str) -> bool {
        if translate::is_translatable(method) {
            return true;
        }
        // A server whose era is not known is away: the request fails by itself, and says why.
        let era = upstream.era(INTRODUCTION).await;
        era.is_err() || era.is_ok_and(|era| era == self.client.era)
    }

    fn unknown(&self, id: &str, method: &str) -> Response<Body> {
        let problem = aggregate::unknown(method);
        let code = match (self.client.era, method) {
            (Era::Legacy, methods::RESOURCES_READ) => error::RESOURCE_NOT_FOUND_LEGACY,
            _ => error::INVALID_PARAMS,
        };
        body::error(StatusCode::OK, Some(id), code, problem)
    }
}

fn wrong_cursor(id: &str) -> Response<Body> {
    let text = "the cursor is none of this list, or the list has changed: begin anew";
    body::error(StatusCode::OK, Some(id), error::INVALID_PARAMS, text)
}

/// Our own name towards clients of the aggregate.
fn server_info() -> String {
    format!(r#"{{"name":"mcp-hub","version":{}}}"#, mcp_hub_mcp::envelope::quoted(env!("CARGO_PKG_VERSION")))
}
