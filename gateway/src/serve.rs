//! Connections, and which path is whose.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use mcp_hub_mcp::error::MESSAGE_TOO_LARGE;
use tokio::net::TcpListener;

use crate::Inner;
use crate::body::{Body, error, full};
use crate::client::{self, Client, Scope};
use crate::guard::{authenticate, check_origin};
use crate::metrics::count;

/// A client that has not sent its headers by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that has not sent its message by then is not going to.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest header section.
const HEADERS_MAX: usize = 64 << 10;
/// What is under way when the gateway ends gets this long.
const DRAIN: Duration = Duration::from_secs(10);

pub(crate) async fn run(
    listener: TcpListener,
    inner: Arc<Inner>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // Out of descriptors: what is open now will close.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        // Small answers must not wait for more; a socket that refuses is served all the same.
        stream.set_nodelay(true).ok();
        let inner = inner.clone();
        let service = service_fn(move |request| {
            let inner = inner.clone();
            async move { Ok::<_, Infallible>(answer(request, &inner).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADERS_MAX);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that went away is no failure.
            connection.await.ok();
        });
    }
    drop(listener);
    // Streams for notifications have no end of their own.
    inner.ending.send_replace(true);
    tokio::time::timeout(DRAIN, graceful.shutdown()).await.ok();
    Ok(())
}

async fn answer(request: Request<Incoming>, inner: &Arc<Inner>) -> Response<Body> {
    let served = inner.served();
    if request.uri().path() == "/healthz" {
        return full(StatusCode::OK, "text/plain", "ok");
    }
    if let Err(refusal) = check_origin(request.headers(), &served.config) {
        count(&inner.metrics.refused_origins);
        return refusal;
    }
    if request.uri().path() == "/readyz" {
        return full(StatusCode::OK, "text/plain", "ok");
    }
    let principal = match authenticate(request.headers(), &served.config) {
        Ok(principal) => principal,
        Err(refusal) => {
            count(&inner.metrics.unauthorized);
            return refusal;
        }
    };
    let path = request.uri().path();
    if path == "/metrics" {
        let ready = served.upstreams.values().filter(|watched| watched.upstream.is_ready()).count();
        return full(StatusCode::OK, "text/plain; version=0.0.4", inner.metrics.render(served.upstreams.len(), ready));
    }
    let scope = match path {
        "/mcp" => Scope::Aggregate,
        _ => match path.strip_prefix("/servers/").and_then(|rest| rest.strip_suffix("/mcp")) {
            Some(name) if served.upstreams.contains_key(name) => Scope::Server(name.to_owned()),
            Some(_) => return full(StatusCode::NOT_FOUND, "text/plain", "this hub has no such server"),
            None => return full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
        },
    };
    let limit = usize::try_from(served.config.limits.message_bytes).unwrap_or(usize::MAX);
    let (head, body) = request.into_parts();
    let client = Client { inner: inner.clone(), principal, scope, headers: head.headers };
    match head.method {
        Method::POST => match read(body, limit).await {
            Ok(message) => client::post(client, message).await,
            Err(refusal) => refusal,
        },
        Method::GET => client::get(&client),
        Method::DELETE => client::delete(&client).await,
        _ => {
            let mut refusal = full(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::new());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            refusal
        }
    }
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, Response<Body>> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(problem)) if problem.downcast_ref::<LengthLimitError>().is_some() => {
            let text = format!("the message is over the hub's limit of {limit} bytes");
            Err(error(StatusCode::PAYLOAD_TOO_LARGE, None, MESSAGE_TOO_LARGE, &text))
        }
        Ok(Err(_)) => Err(full(StatusCode::BAD_REQUEST, "text/plain", "the message could not be read")),
        Err(_) => Err(full(StatusCode::REQUEST_TIMEOUT, "text/plain", "the message did not come")),
    }
}
