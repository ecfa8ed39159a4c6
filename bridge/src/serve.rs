//! The MCP side: Streamable HTTP in the server's own era (specification, "Transports: Streamable HTTP").

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONNECTION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::launch::{self, ChildTransport};
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_mcp::headers;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::alarm::Alarm;
use crate::body::{Body, full};
use crate::server::Server;
use crate::{calls, control, pass, streams};

/// A client that has not sent its headers by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes nothing of what it is sent for so long is gone: what waits for it fills the buffers of all.
const STALLED_MS: u32 = 30_000;

/// Serves until the bridge is closing and the last answer has left. Holds `_owing` until then.
pub async fn run(listener: TcpListener, server: Arc<Server>, _owing: mpsc::Sender<Infallible>) {
    let (alive, mut gone) = mpsc::channel(1);
    let mut closing = pin!(server.closing());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closing => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors: what is open now will close.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(connection(stream, server.clone(), alive.clone()));
    }
    drop((listener, alive));
    gone.recv().await;
}

/// Drops `_alive` when the connection is over.
async fn connection(stream: TcpStream, server: Arc<Server>, _alive: mpsc::Sender<Infallible>) {
    // Small answers must not wait for more; a socket that refuses is served all the same.
    stream.set_nodelay(true).ok();
    rustix::net::sockopt::set_tcp_user_timeout(&stream, STALLED_MS).ok();
    let service = service_fn(|request| async {
        let mut response = answer(request, &server).await;
        if server.is_draining() {
            // The next call is better made on a new connection, to whoever is there then.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok::<_, Infallible>(response)
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(Alarm::default()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 << 10);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // A client that went away is no failure.
    tokio::select! {
        served = &mut connection => return served.unwrap_or_default(),
        () = server.closing() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.ok();
}

async fn answer(request: Request<Incoming>, server: &Arc<Server>) -> Response<Body> {
    match request.uri().path() {
        "/healthz" => return full(StatusCode::OK, "text/plain", "ok"),
        "/readyz" => {
            return match server.board.phase() {
                _ if server.is_draining() => full(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "being stopped"),
                Phase::Ready | Phase::Asleep => full(StatusCode::OK, "text/plain", "ok"),
                _ => full(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "no MCP handshake"),
            };
        }
        launch::control::STATUS | launch::control::EVENTS | launch::control::SECRETS | "/mcp" => {}
        _ => return full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
    }
    if !is_authorized(request.headers(), &server.spec.token_sha256) {
        let mut refusal = full(StatusCode::UNAUTHORIZED, "text/plain", "the bridge's token is needed");
        refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return refusal;
    }
    let speaks_http = matches!(server.spec.transport, ChildTransport::StreamableHttp { .. });
    match (request.uri().path(), request.method()) {
        (launch::control::STATUS, &Method::GET) => control::json(server),
        (launch::control::EVENTS, &Method::GET) => control::events(server),
        (launch::control::SECRETS, &Method::PUT) => control::take_secrets(request, server).await,
        ("/mcp", _) if speaks_http => pass::on(request, server).await,
        ("/mcp", &Method::POST) => calls::post(request, server).await,
        ("/mcp", &Method::GET) => streams::get(session_of(request.headers()), server),
        ("/mcp", &Method::DELETE) => match session_of(request.headers()) {
            Some(id) if server.sessions.close(id) || server.clients.close(id) => {
                full(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
            }
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

pub fn session_of(request: &HeaderMap) -> Option<&str> {
    request.get(headers::SESSION_ID)?.to_str().ok()
}
