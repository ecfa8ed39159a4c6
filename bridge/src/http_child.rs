//! A server that speaks Streamable HTTP itself: clients' requests pass through as they are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mcp_hub_dataplane_api::MODERN_VERSIONS;
use mcp_hub_mcp::envelope::{Envelope, Kind};
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::{headers, methods, sse};
use tokio::sync::watch;

use crate::handshake::HandshakeError;

/// Pause between two tries to reach a server that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);
/// Headers that concern one connection only (RFC 9110, 7.6.1), and our own token, which is nobody else's business.
const OURS: &[HeaderName] = &[AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE];

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpChild(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client<HttpConnector, Full<Bytes>>,
    port: u16,
    uri: String,
    /// Headers of the bridge's own legacy session, once there is one.
    session: Mutex<Option<HeaderMap>>,
    calls: AtomicUsize,
    closed: watch::Sender<bool>,
}

/// A call under way; counted until dropped.
#[derive(Debug)]
pub struct Call(HttpChild);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HttpChild {
    pub fn new(port: u16, path: &str) -> Self {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .build_http();
        Self(Arc::new(Inner {
            client,
            port,
            uri: format!("http://127.0.0.1:{port}{path}"),
            session: Mutex::default(),
            calls: AtomicUsize::new(0),
            closed: watch::Sender::new(false),
        }))
    }

    pub fn is_closed(&self) -> bool {
        *self.0.closed.borrow()
    }

    pub fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Resolves when the server has ended.
    pub async fn closed(&self) {
        // The sender lives as long as we do.
        self.0.closed.subscribe().wait_for(|closed| *closed).await.ok();
    }

    pub fn in_flight(&self) -> usize {
        self.0.calls.load(Ordering::Relaxed)
    }

    pub fn call(&self) -> Call {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        Call(self.clone())
    }

    /// Waits until something listens on the port.
    pub async fn listening(&self) {
        // A port that is about to be bound gives no event.
        while tokio::net::TcpStream::connect(("127.0.0.1", self.0.port)).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A client's request, passed on with its headers.
    pub async fn pass(
        &self,
        method: Method,
        from: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.0.uri.parse().unwrap_or_default();
        *request.headers_mut() = from.clone();
        for header in OURS {
            request.headers_mut().remove(header);
        }
        self.0.client.request(request).await
    }

    /// Sends a request of the bridge's own and waits for the response message.
    pub async fn ask(&self, message: &[u8], method: &'static str) -> Result<Bytes, HandshakeError> {
        let own = self.own_headers(method);
        let response = self.pass(Method::POST, &own, Bytes::copy_from_slice(message)).await;
        let response = response.map_err(|_| HandshakeError::Ended)?;
        let status = response.status();
        let session = response.headers().get(headers::SESSION_ID).cloned();
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.to_str().is_ok_and(|value| value.starts_with("text/event-stream")));
        let answer = if is_stream { first_response(response.into_body()).await } else { whole(response).await };
        let answer = answer.ok_or(HandshakeError::NotMcp { status: status.as_u16() })?;
        if method == methods::INITIALIZE {
            let mut own = HeaderMap::new();
            own.extend(session.map(|session| (HeaderName::from_static(headers::SESSION_ID), session)));
            let parsed: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
            let version =
                parsed["result"]["protocolVersion"].as_str().and_then(|text| HeaderValue::from_str(text).ok());
            own.extend(version.map(|version| (HeaderName::from_static(headers::PROTOCOL_VERSION), version)));
            *self.0.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
        }
        Ok(answer)
    }

    /// Sends a notification of the bridge's own.
    pub async fn tell(&self, message: &[u8], method: &str) -> Result<(), HandshakeError> {
        let response = self.pass(Method::POST, &self.own_headers(method), Bytes::copy_from_slice(message)).await;
        response.map(drop).map_err(|_| HandshakeError::Ended)
    }

    fn own_headers(&self, method: &str) -> HeaderMap {
        let mut own = HeaderMap::new();
        own.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        own.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        match &*self.0.session.lock().unwrap_or_else(PoisonError::into_inner) {
            _ if method == methods::INITIALIZE => {}
            Some(session) => own.extend(session.clone()),
            None => {
                own.insert(headers::PROTOCOL_VERSION, HeaderValue::from_static(MODERN_VERSIONS[0]));
                own.extend(
                    HeaderValue::from_str(method).map(|method| (HeaderName::from_static(headers::METHOD), method)),
                );
            }
        }
        own
    }
}

/// The body as a message, if it is one.
async fn whole(response: Response<Incoming>) -> Option<Bytes> {
    let body = Limited::new(response.into_body(), LINE_MAX).collect().await.ok()?.to_bytes();
    is_response(&body).then_some(body)
}

/// The first response on a stream; what comes before it is for nobody.
async fn first_response(mut body: Incoming) -> Option<Bytes> {
    let mut decoder = sse::Decoder::new(LINE_MAX);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        let mut found = None;
        decoder.feed(&data, |event| found = found.take().or(is_response(&event).then_some(event))).ok()?;
        if let Some(found) = found {
            return Some(found.into());
        }
    }
    None
}

fn is_response(message: &[u8]) -> bool {
    Envelope::parse(message).is_ok_and(|envelope| envelope.kind() == Kind::Response)
}
