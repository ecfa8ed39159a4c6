//! How a bridge is driven: over its control socket, whose file mode is the authentication, or, by whoever has the bridge's
//! token, where it listens.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::launch::control;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::body::{Body, full, streamed};
use crate::server::Server;

/// Largest set of secrets.
const BODY_MAX: usize = 4 << 20;
/// At most ten status lines a second: a server in a fast crash loop must not flood its watcher.
const PACE: std::time::Duration = std::time::Duration::from_millis(100);

/// Serves until everything has ended. A clone of `owing` lives until the last answer has left.
pub async fn run(listener: UnixListener, server: Arc<Server>, owing: mpsc::Sender<Infallible>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.stopped() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors: what is open now will close.
            tokio::time::sleep(PACE).await;
            continue;
        };
        tokio::spawn(connection(stream, server.clone(), owing.clone()));
    }
}

/// Drops `_owing` when the connection is over.
async fn connection(stream: UnixStream, server: Arc<Server>, _owing: mpsc::Sender<Infallible>) {
    let service = service_fn(|request| answer(request, server.clone()));
    let mut connection =
        pin!(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    // A watcher that went away is no failure.
    tokio::select! {
        served = &mut connection => return served.unwrap_or_default(),
        () = server.stopped() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.ok();
}

async fn answer(request: Request<Incoming>, server: Arc<Server>) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    Ok(match (&method, path.as_str()) {
        (&Method::GET, control::STATUS) => json(&server),
        (&Method::GET, control::EVENTS) => events(&server),
        (&Method::PUT, control::SECRETS) => take_secrets(request, &server).await,
        (&Method::POST, control::RESTART) => {
            server.restart();
            full(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
        }
        (&Method::POST, control::STOP) => {
            server.stop();
            server.stopped().await;
            full(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
        }
        _ => full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
    })
}

/// Takes the values of secret environment variables.
pub async fn take_secrets(request: Request<Incoming>, server: &Server) -> Response<Body> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let values = body.ok().and_then(|body| serde_json::from_slice::<BTreeMap<String, String>>(&body.to_bytes()).ok());
    match values {
        Some(values) => {
            server.push_secrets(values);
            full(StatusCode::NO_CONTENT, "text/plain", Bytes::new())
        }
        None => full(StatusCode::BAD_REQUEST, "text/plain", "expected a JSON object of strings"),
    }
}

/// The status document.
pub fn json(server: &Server) -> Response<Body> {
    server.board.active(|activity| {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        activity.sessions = count(server.sessions.count() + server.clients.count());
        let shared = server.current().map_or(0, |running| running.upstream.in_flight());
        activity.calls_in_flight = count(shared + server.clients.in_flight());
    });
    match serde_json::to_vec(&*server.board.watch().borrow()) {
        Ok(json) => full(StatusCode::OK, "application/json", json),
        Err(error) => full(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

/// A line for each status, see [`control::EVENTS`]: the status now and after each change, the last one included.
pub fn events(server: &Arc<Server>) -> Response<Body> {
    let (sender, response) = streamed("application/x-ndjson");
    let (mut status, server) = (server.board.watch(), server.clone());
    tokio::spawn(async move {
        loop {
            let line = serde_json::to_vec(&*status.borrow_and_update()).map(|mut line| {
                line.push(b'\n');
                Bytes::from(line)
            });
            let Ok(line) = line else { return };
            if sender.send(line).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = server.stopped() => {}
            }
            tokio::select! {
                biased;
                changed = status.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
                () = server.stopped() => return,
            }
        }
    });
    response
}
