//! The MCP side: Streamable HTTP in the server's own era (specification, "Transports: Streamable HTTP").

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, write_error, write_result};
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::{error, headers, methods, sse};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};

use crate::control;
use crate::handshake::Introduction;
use crate::link::{Exchange, LinkError, OnDisconnect};
use crate::supervise::{Server, Unavailable};

/// Silence on a stream after which a comment is sent.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// A client that has not sent its headers by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Response bodies: a buffer, or a stream fed by a task.
#[derive(Debug)]
pub enum Body {
    Full(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Stream(receiver) => receiver.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Full(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) => http_body::SizeHint::default(),
        }
    }
}

/// A whole response.
pub fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response whose body is what the sender sends, at most this many parts ahead of the reader.
pub fn streamed(content_type: &'static str) -> (mpsc::Sender<Bytes>, Response<Body>) {
    let (sender, receiver) = mpsc::channel(64);
    let mut response = Response::new(Body::Stream(receiver));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    (sender, response)
}

/// Serves until the process ends.
pub async fn run(listener: TcpListener, server: Arc<Server>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: what is open now will close.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(connection(stream, server.clone()));
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>) {
    // Small answers must not wait for more; a socket that refuses is served all the same.
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(answer(request, &server).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 << 10);
    // A client that went away is no failure.
    http.serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn answer(request: Request<Incoming>, server: &Arc<Server>) -> Response<Body> {
    match request.uri().path() {
        "/healthz" => return full(StatusCode::OK, "text/plain", "ok"),
        "/readyz" => {
            return match server.board.phase() {
                Phase::Ready | Phase::Asleep => full(StatusCode::OK, "text/plain", "ok"),
                _ => full(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "no MCP handshake"),
            };
        }
        "/status" | "/mcp" => {}
        _ => return full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
    }
    if !is_authorized(request.headers(), &server.spec.token_sha256) {
        let mut refusal = full(StatusCode::UNAUTHORIZED, "text/plain", "the bridge's token is needed");
        refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return refusal;
    }
    match (request.uri().path(), request.method()) {
        ("/status", &Method::GET) => control::json(server),
        ("/mcp", &Method::POST) => post(request, server).await,
        ("/mcp", &Method::GET) => get(&request, server),
        ("/mcp", &Method::DELETE) => match session_of(request.headers()) {
            Some(id) if server.sessions.close(id) => full(StatusCode::NO_CONTENT, "text/plain", Bytes::new()),
            _ => full(StatusCode::NOT_FOUND, "text/plain", "no such session"),
        },
        _ => {
            let mut refusal = full(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::new());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            refusal
        }
    }
}

fn is_authorized(request: &HeaderMap, wanted: &str) -> bool {
    let token = request.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    token.is_some_and(|token| hex::encode(Sha256::digest(token)).as_bytes().ct_eq(wanted.as_bytes()).into())
}

fn session_of(request: &HeaderMap) -> Option<&str> {
    request.get(headers::SESSION_ID)?.to_str().ok()
}

/// The stream of notifications that belong to no request.
fn get(request: &Request<Incoming>, server: &Arc<Server>) -> Response<Body> {
    match session_of(request.headers()) {
        Some(id) if server.sessions.touch(id) => {}
        Some(_) => return full(StatusCode::NOT_FOUND, "text/plain", "no such session"),
        None => return full(StatusCode::BAD_REQUEST, "text/plain", "a stream needs a session"),
    }
    let (sender, response) = streamed("text/event-stream");
    tokio::spawn(forward_broadcasts(server.clone(), sender));
    response
}

/// Follows the server over restarts until the client is gone.
async fn forward_broadcasts(server: Arc<Server>, sender: mpsc::Sender<Bytes>) {
    let mut status = server.board.watch();
    loop {
        let link = server.current().map(|running| running.link);
        let mut notifications = link.as_ref().map(crate::link::Link::listen);
        loop {
            let next = async {
                match &mut notifications {
                    Some(notifications) => notifications.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = next => match received {
                    Ok(message) => if sender.send(sse::event(&message)).await.is_err() { return },
                    // A slow client misses some; they only say that something changed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => notifications = None,
                },
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() { return }
                }
                () = sender.closed() => return,
                changed = status.changed() => {
                    if changed.is_err() { return }
                    break;
                }
            }
        }
    }
}

async fn post(request: Request<Incoming>, server: &Arc<Server>) -> Response<Body> {
    let session = session_of(request.headers()).map(str::to_owned);
    let message = match Limited::new(request.into_body(), LINE_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let text = format!("the message could not be read or is over {LINE_MAX} bytes");
            return json(StatusCode::PAYLOAD_TOO_LARGE, write_error(None, error::MESSAGE_TOO_LARGE, &text));
        }
    };
    let envelope = match Envelope::parse(&message) {
        Ok(envelope) => envelope,
        Err(problem) => {
            return json(StatusCode::BAD_REQUEST, write_error(None, error::INVALID_REQUEST, &problem.to_string()));
        }
    };
    if let Some(id) = &session
        && !server.sessions.touch(id)
    {
        return full(StatusCode::NOT_FOUND, "text/plain", "no such session");
    }
    match envelope.kind() {
        Kind::Notification | Kind::Response => {
            if envelope.method() != methods::INITIALIZED
                && let Some(running) = server.current()
            {
                // A server that ended in the meantime has nothing to be told.
                running.link.notify(&message, &envelope, session.as_deref()).await.ok();
            }
            full(StatusCode::ACCEPTED, "text/plain", Bytes::new())
        }
        Kind::Request => request_of(&message, &envelope, session, server).await,
    }
}

async fn request_of(
    message: &Bytes,
    envelope: &Envelope<'_>,
    session: Option<String>,
    server: &Arc<Server>,
) -> Response<Body> {
    let id = envelope.id.map_or("null", |id| id.get());
    let method = envelope.method();
    let legacy = server.introduction().is_none_or(|introduction| introduction.era == Era::Legacy);
    // Answered from what is known, also while the server sleeps.
    let known = server.introduction();
    let sleeping = server.board.phase() == Phase::Asleep;
    if legacy && method == methods::INITIALIZE {
        return initialize(id, server).await;
    }
    if legacy && method == methods::PING {
        return json(StatusCode::OK, write_result(id, "{}"));
    }
    if let (true, Some(introduction)) = (sleeping, &known)
        && let Some(result) = remembered(introduction, &method, envelope)
    {
        return json(StatusCode::OK, write_result(id, result));
    }
    let running = match server.awake().await {
        Ok(running) => running,
        Err(problem) => return unavailable(id, &problem),
    };
    let on_disconnect = if legacy { OnDisconnect::Forget } else { OnDisconnect::Cancel };
    let exchange = match running.link.request(message, envelope, session.as_deref(), on_disconnect).await {
        Ok(exchange) => exchange,
        Err(LinkError::Full) => {
            return json(
                StatusCode::OK,
                write_error(Some(id), error::OVERLOADED, "too many requests wait for the server"),
            );
        }
        Err(LinkError::Closed) => return json(StatusCode::OK, gone(id)),
    };
    respond(exchange, id.to_owned(), method == methods::LISTEN, server.clone()).await
}

/// A client's own `initialize` is answered from the server's.
async fn initialize(id: &str, server: &Arc<Server>) -> Response<Body> {
    let introduction = match server.introduction() {
        Some(introduction) => introduction,
        None => match server.awake().await {
            Ok(running) => running.introduction,
            Err(problem) => return unavailable(id, &problem),
        },
    };
    if introduction.era == Era::Modern {
        let text = "this server speaks the stateless era only: use server/discover";
        return json(StatusCode::OK, write_error(Some(id), error::METHOD_NOT_FOUND, text));
    }
    let session = match server.sessions.open().map(|session| HeaderValue::from_str(&session)) {
        Ok(Ok(session)) => session,
        _ => {
            return json(
                StatusCode::OK,
                write_error(Some(id), error::INTERNAL_ERROR, "no random numbers for a session id"),
            );
        }
    };
    let mut response = json(StatusCode::OK, write_result(id, &introduction.result));
    response.headers_mut().insert(headers::SESSION_ID, session);
    response
}

/// The remembered result of a list or of `server/discover`: a sleeping server is not woken for it.
fn remembered<'a>(introduction: &'a Introduction, method: &str, envelope: &Envelope<'_>) -> Option<&'a str> {
    if method == methods::DISCOVER && introduction.era == Era::Modern {
        return Some(&introduction.result);
    }
    let cursor = Params::of(envelope.params).cursor.map(serde_json::value::RawValue::get);
    let page = introduction.lists.iter().find(|(list, at, _)| list == method && at.as_deref() == cursor);
    page.map(|(_, _, result)| result.as_str())
}

fn unavailable(id: &str, problem: &Unavailable) -> Response<Body> {
    json(StatusCode::OK, write_error(Some(id), error::SERVER_UNAVAILABLE, &problem.to_string()))
}

fn gone(id: &str) -> Vec<u8> {
    write_error(
        Some(id),
        error::SERVER_GONE,
        "the server ended while it worked on the request; it may have acted on it",
    )
}

/// JSON if the answer comes first, else a stream of what comes before it.
async fn respond(mut exchange: Exchange, id: String, is_subscription: bool, server: Arc<Server>) -> Response<Body> {
    let limit = Duration::from_millis(server.spec.timeouts.call_ms);
    let deadline = tokio::time::Instant::now() + limit;
    let late = || {
        let text = format!("the server did not answer within {} s", limit.as_secs());
        Bytes::from(write_error(Some(&id), error::CALL_TIMEOUT, &text))
    };
    let first = tokio::select! {
        biased;
        Some(notification) = exchange.notifications.recv() => Some(notification),
        answer = &mut exchange.answer => {
            server.answered();
            return json(StatusCode::OK, answer.unwrap_or_else(|_| gone(&id).into()));
        }
        () = tokio::time::sleep_until(deadline), if !is_subscription => return json(StatusCode::OK, late()),
    };
    let (sender, response) = streamed("text/event-stream");
    tokio::spawn(async move {
        let mut next = first;
        loop {
            if let Some(notification) = next.take()
                && sender.send(sse::event(&notification)).await.is_err()
            {
                return;
            }
            tokio::select! {
                biased;
                Some(notification) = exchange.notifications.recv() => next = Some(notification),
                answer = &mut exchange.answer => {
                    server.answered();
                    let answer = answer.unwrap_or_else(|_| gone(&id).into());
                    // Whoever is gone misses it.
                    sender.send(sse::event(&answer)).await.ok();
                    return;
                }
                () = sender.closed() => return,
                () = tokio::time::sleep_until(deadline), if !is_subscription => {
                    let text = format!("the server did not answer within {} s", limit.as_secs());
                    let answer = write_error(Some(&id), error::CALL_TIMEOUT, &text);
                    sender.send(sse::event(&answer)).await.ok();
                    return;
                }
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() { return }
                }
            }
        }
    });
    response
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    full(status, "application/json", body)
}
