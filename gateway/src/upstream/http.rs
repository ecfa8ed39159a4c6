//! HTTP towards servers, and what it means when no answer comes.
//!
//! Bridges speak plain HTTP/1.1, and every call goes through one: their connections are kept here, which costs a call less
//! than the general client does (benchmarks: gateway). That one is for `https`.

use std::collections::VecDeque;
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, PROXY_AUTHORIZATION};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mcp_hub_dataplane_api::gateway::Target;
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::http_sse::{self, Address};
use mcp_hub_mcp::sse::Decoder;
use rustls::crypto::ring::default_provider;
use tokio::net::TcpStream;

use super::proxy::{Connector, Proxies};
use super::said::Broken;
use super::{Failure, Said};
use crate::GatewayError;
use crate::fields::Fields;

type TlsClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// What requests to all servers share.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    tls: TlsClient,
    proxies: Proxies,
}

/// A host that takes longer to accept a connection is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers close idle connections too; most wait at least this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// After which a host that says nothing is asked whether it is there, and how often without an answer: a stream from one
/// that is not would never end.
const SILENCE: Duration = Duration::from_secs(30);
const PROBES: u32 = 3;
/// Bytes read ahead on a connection, so that an answer of 75 KB comes with one read: hyper's 400 KB would stay with each
/// connection that has once had a large answer.
const BUFFER_MAX: usize = 80 << 10;
/// Headers that a request has beside those that are configured.
const REQUESTS_OWN: usize = 8;
/// Connections kept to one server.
const IDLE_MAX: usize = 64;

pub(crate) fn http_client() -> Result<HttpClient, GatewayError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(SILENCE));
    tcp.set_keepalive_retries(Some(PROBES));
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
    let proxies = Proxies::of_environment();
    let connector = Connector { tcp, proxies: proxies.clone() };
    let tls = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_MAX)
        .build(tls.https_or_http().enable_all_versions().wrap_connector(connector));
    Ok(HttpClient { tls, proxies })
}

/// Where a server is, and what every request to it carries.
#[derive(Debug)]
pub(crate) struct Endpoint {
    way: Way,
    /// As it was configured.
    url: Uri,
    /// As a request names it.
    uri: Uri,
    headers: HeaderMap,
}

#[derive(Debug)]
enum Way {
    Plain(Pool),
    Tls(Box<TlsClient>),
}

/// Connections to one server, the one used last at the end.
#[derive(Debug)]
struct Pool {
    host: String,
    port: u16,
    kept: Mutex<Vec<Kept>>,
}

/// A connection that takes another request as soon as its last answer has been read.
#[derive(Debug)]
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    used: Instant,
}

#[cfg(target_os = "linux")]
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)
}

impl Pool {
    /// A connection that takes a request now.
    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.last().is_some_and(|last| last.used.elapsed() > IDLE_TIMEOUT) {
            kept.clear();
        }
        let place = kept.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(kept.remove(place).sender)
    }

    /// Keeps a connection whose answer is under way. One too many ends with its answer.
    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let used = Instant::now();
        if kept.len() == IDLE_MAX || kept.first().is_some_and(|first| used - first.used > IDLE_TIMEOUT) {
            kept.retain(|kept| !kept.sender.is_closed() && used - kept.used <= IDLE_TIMEOUT);
        }
        if kept.len() < IDLE_MAX {
            kept.push(Kept { sender, used });
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((&*self.host, self.port))).await;
        let stream = match connected {
            Ok(connected) => connected.map_err(|error| Failure::Unreachable(error.to_string()))?,
            Err(_) => return Err(Failure::Unreachable("it does not take the connection".to_owned())),
        };
        // Small requests must not wait for more; a socket that refuses is used all the same.
        stream.set_nodelay(true).ok();
        #[cfg(target_os = "linux")]
        keep_alive(&stream).ok();
        let made = http1::Builder::new().max_buf_size(BUFFER_MAX).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|error| Failure::Unreachable(chain(&error)))?;
        // Ends with the server, or when the sender is dropped and the last answer read.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        loop {
            let (mut sender, is_fresh) = match self.take() {
                Some(sender) => (sender, false),
                None => (self.connect().await?, true),
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.keep(sender);
                    return Ok(response);
                }
                Err(mut failed) => match (failed.take_message(), is_fresh) {
                    // The server closed the connection before a byte of the request was written.
                    (Some(unsent), false) => request = unsent,
                    (Some(_), true) => return Err(Failure::Unreachable(chain(failed.error()))),
                    (None, _) => return Err(Failure::Gone(chain(failed.error()))),
                },
            }
        }
    }
}

impl Endpoint {
    /// `None` for a target that cannot be reached; an error for one that is written wrongly.
    pub(crate) fn of(target: &Target, client: &HttpClient) -> Result<Option<Self>, String> {
        let Target::Available { url, headers: wanted } = target else { return Ok(None) };
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        // With room for what a request adds, so that its copy is not arranged anew.
        let mut headers = HeaderMap::with_capacity(wanted.len() + REQUESTS_OWN);
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
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority().cloned()) else {
            return Ok(Some(Self { way: Way::Tls(Box::new(client.tls.clone())), url: uri.clone(), uri, headers }));
        };
        let host = HeaderValue::from_str(without_user(authority.as_str()));
        headers.insert(HOST, host.map_err(|error| format!("`{url}` is no URL: {error}"))?);
        let pool = |authority: &Authority| Pool {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            kept: Mutex::default(),
        };
        let Some(proxy) = client.proxies.of(&uri) else {
            let path = uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
            return Ok(Some(Self { way: Way::Plain(pool(&authority)), url: uri, uri: path, headers }));
        };
        // A proxy is told the whole URL (RFC 9112, "absolute-form").
        let (Some("http"), Some(address)) = (proxy.uri().scheme_str(), proxy.uri().authority()) else {
            return Err(format!("`{url}` lies behind a proxy that does not speak plain HTTP"));
        };
        headers.extend(proxy.basic_auth().map(|authorization| (PROXY_AUTHORIZATION, authorization.clone())));
        Ok(Some(Self { way: Way::Plain(pool(address)), url: uri.clone(), uri, headers }))
    }

    /// One request. [`Failure::Unreachable`] says that the server has not seen it, [`Failure::Gone`] that it may have.
    pub(crate) fn send(
        &self,
        method: Method,
        extra: Fields,
        body: Bytes,
    ) -> impl Future<Output = Result<Response<Incoming>, Failure>> {
        self.send_to(self.uri.clone(), method, extra, body)
    }

    /// As a request names the address that an `endpoint` event names; why there is none. What is configured for this
    /// server, its credentials too, goes nowhere else, whatever a server says.
    pub(super) fn address(&self, event: &[u8]) -> Result<Uri, String> {
        let unreadable = || "its `endpoint` event names no address".to_owned();
        let address = Address::read(event, self.url.path()).ok_or_else(unreadable)?;
        let authority = self.url.authority().map(Authority::as_str).unwrap_or_default();
        if let Some(origin) = address.elsewhere(self.url.scheme_str().unwrap_or_default(), without_user(authority)) {
            return Err(format!("its `endpoint` event names another origin, {origin}, where nothing is sent"));
        }
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(address.path().parse().map_err(|_| unreadable())?);
        Uri::from_parts(parts).map_err(|_| unreadable())
    }

    /// The same at an address from [`Self::address`].
    pub(super) async fn send_to(
        &self,
        uri: Uri,
        method: Method,
        extra: Fields,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        for (name, value) in extra {
            request.headers_mut().insert(name, value);
        }
        let client = match &self.way {
            Way::Plain(pool) => return pool.send(request).await,
            Way::Tls(client) => client,
        };
        client.request(request).await.map_err(|error| {
            let text = chain(&error);
            if error.is_connect() || is_canceled(&error) { Failure::Unreachable(text) } else { Failure::Gone(text) }
        })
    }
}

/// `HOST:PORT` of `USER@HOST:PORT`.
fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
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
    B: Body<Data = Bytes, Error: Into<Broken>>,
{
    let too_long = || Failure::Unreadable(format!("its answer is over {LINE_MAX} bytes"));
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > LINE_MAX {
        return Err(too_long());
    }
    let mut body = std::pin::pin!(body);
    // A short answer comes in one piece, which is not copied.
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| Failure::Gone(error.into().to_string()))?.into_data() else { continue };
        if whole.len() + first.len() + data.len() > LINE_MAX {
            return Err(too_long());
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(announced.max(first.len() + data.len()));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// The messages of an event stream.
#[derive(Debug)]
pub(crate) struct Events {
    body: Said,
    decoder: Decoder,
    ready: VecDeque<Event>,
}

#[derive(Debug)]
struct Event {
    /// It is called so, and is no message.
    is_endpoint: bool,
    data: Vec<u8>,
}

impl Events {
    pub(crate) fn new(body: Said) -> Self {
        Self { body, decoder: Decoder::new(LINE_MAX), ready: VecDeque::new() }
    }

    /// The next message; `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            match self.event().await? {
                // Servers open resumable streams with an event without data.
                Some(event) if event.is_endpoint || event.data.iter().all(u8::is_ascii_whitespace) => {}
                event => return Ok(event.map(|event| event.data)),
            }
        }
    }

    /// What the `endpoint` event says with which a stream of HTTP+SSE begins.
    pub(super) async fn endpoint(&mut self) -> Result<Vec<u8>, Failure> {
        match self.event().await? {
            Some(Event { is_endpoint: true, data }) => Ok(data),
            _ => Err(Failure::Unreadable("its event stream does not begin with an `endpoint` event".to_owned())),
        }
    }

    async fn event(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| Failure::Gone(chain(&*error)))?;
            if let Ok(data) = frame.into_data() {
                let ready = &mut self.ready;
                let fed = self.decoder.feed_named(&data, |name, data| {
                    ready.push_back(Event { is_endpoint: name == http_sse::ENDPOINT.as_bytes(), data });
                });
                fed.map_err(|error| Failure::Unreadable(error.to_string()))?;
            }
        }
    }
}
