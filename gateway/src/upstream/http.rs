//! HTTP towards servers: one pooled client, and what it means when no answer comes.

use std::collections::VecDeque;
use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mcp_hub_dataplane_api::gateway::Target;
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::sse::Decoder;
use rustls::crypto::ring::default_provider;

use super::Failure;
use crate::GatewayError;

pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A host that takes longer to accept a connection is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers close idle connections too; most wait at least this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle connections kept to one server.
const IDLE_MAX: usize = 64;

pub(crate) fn http_client() -> Result<HttpClient, GatewayError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let tls = match HttpsConnectorBuilder::new().with_provider_and_native_roots(default_provider()) {
        Ok(tls) => tls,
        Err(error) => {
            // A machine without certificates still reaches its own servers; `https` ones fail by name.
            tracing::warn!(%error, "no root certificates found: https servers cannot be verified");
            let config = rustls::ClientConfig::builder_with_provider(default_provider().into())
                .with_safe_default_protocol_versions()
                .map_err(|error| GatewayError::Tls(error.to_string()))?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        }
    };
    let connector = tls.https_or_http().enable_all_versions().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_MAX)
        .build(connector))
}

/// Where a server is, and what every request to it carries.
#[derive(Debug)]
pub(crate) struct Endpoint {
    client: HttpClient,
    uri: Uri,
    headers: HeaderMap,
}

impl Endpoint {
    /// `None` for a target that cannot be reached; an error for one that is written wrongly.
    pub(crate) fn of(target: &Target, client: &HttpClient) -> Result<Option<Self>, String> {
        let Target::Available { url, headers: wanted } = target else { return Ok(None) };
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in wanted {
            let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
            let value = HeaderValue::from_str(value.expose_secret()).ok();
            let (Some(name), Some(mut value)) = (parsed, value) else {
                return Err(format!("header `{name}` has a name or value that HTTP cannot carry"));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Some(Self { client: client.clone(), uri, headers }))
    }

    /// One request. [`Failure::Unreachable`] says that the server has not seen it, [`Failure::Gone`] that it may have.
    pub(crate) async fn send(
        &self,
        method: Method,
        extra: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().extend(extra);
        self.client.request(request).await.map_err(|error| {
            let text = chain(&error);
            if error.is_connect() || is_canceled(&error) { Failure::Unreachable(text) } else { Failure::Gone(text) }
        })
    }
}

/// hyper gives a request back as canceled if its connection ended before a byte of it was written.
fn is_canceled(error: &hyper_util::client::legacy::Error) -> bool {
    error.source().and_then(|source| source.downcast_ref::<hyper::Error>()).is_some_and(hyper::Error::is_canceled)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// Whether a response is of this media type, whatever parameters follow it.
pub(crate) fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    value.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(wanted))
}

/// The whole body, up to the largest message there is.
pub(crate) async fn collect<B>(body: B) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    match Limited::new(body, LINE_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<http_body_util::LengthLimitError>().is_some() => {
            Err(Failure::Unreadable(format!("its answer is over {LINE_MAX} bytes")))
        }
        Err(error) => Err(Failure::Gone(error.to_string())),
    }
}

/// The messages of an event stream.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    decoder: Decoder,
    ready: VecDeque<Vec<u8>>,
}

impl Events {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, decoder: Decoder::new(LINE_MAX), ready: VecDeque::new() }
    }

    /// The next message; `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                // Servers open resumable streams with an event without data.
                if event.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| Failure::Gone(chain(&error)))?;
            if let Ok(data) = frame.into_data() {
                let ready = &mut self.ready;
                let fed = self.decoder.feed(&data, |event| ready.push_back(event));
                fed.map_err(|error| Failure::Unreadable(error.to_string()))?;
            }
        }
    }
}
