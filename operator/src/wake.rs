//! Where gateways ask for servers at rest.
//!
//! Only the operator that leads listens here: a replica that waits refuses the connection, which tells a gateway at once to
//! try again, and the Service leads it elsewhere. A gateway shows the token of its hub, and can ask for that hub's servers
//! only. A request changes nothing by itself: a pass decides, so that asking often costs little.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::ResourceExt;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::gateway::selects;
use mcp_hub_reconcile::installation::{Installation, token_sha256};
use mcp_hub_reconcile::ports::ResourceStore;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::BoxError;

use crate::sink::KubeSink;

/// Followed by the uid of the hub whose gateway asks.
pub(crate) const PATH: &str = "/wake/";
/// Connections at a time.
const CONNECTIONS: usize = 1024;
/// A uid and some JSON around it.
const BODY_MAX: usize = 1 << 10;
/// Requests are rare and short, and come within a pod network: who connects has something to say.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Deserialize)]
struct Wanted {
    server: String,
}

/// What takes the requests of gateways.
#[derive(Debug, Clone)]
pub struct Wakes {
    pub store: Arc<dyn ResourceStore>,
    pub sink: Arc<KubeSink>,
    pub installation: Installation,
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, wakes: Wakes) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "a connection of a gateway could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let wakes = wakes.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let wakes = wakes.clone();
                async move {
                    let mut response = Response::new(Empty::<Bytes>::new());
                    *response.status_mut() = wakes.answer(request).await;
                    Ok::<_, Infallible>(response)
                }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10).keep_alive(false);
            // Whoever went away is no failure.
            http.serve_connection(TokioIo::new(stream), service).await.ok();
            drop(turn);
        });
    }
}

impl Wakes {
    /// 202 if a pass will see to it, 401 without the hub's token, 404 for a server that the hub does not offer.
    pub async fn answer<B: Body<Error: Into<BoxError>>>(&self, request: Request<B>) -> StatusCode {
        let (parts, body) = request.into_parts();
        let Some(hub_uid) = parts.uri.path().strip_prefix(PATH).filter(|_| parts.method == Method::POST) else {
            return StatusCode::NOT_FOUND;
        };
        let shown = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(shown) = shown.and_then(|value| value.strip_prefix("Bearer ")) else {
            return StatusCode::UNAUTHORIZED;
        };
        // Hashes, so that the time that comparing takes tells nothing.
        if token_sha256(&SecretString::new(shown)) != token_sha256(&self.installation.wake_token(hub_uid)) {
            return StatusCode::UNAUTHORIZED;
        }
        let body = tokio::time::timeout(PATIENCE, Limited::new(body, BODY_MAX).collect()).await;
        let wanted = match body {
            Ok(Ok(body)) => serde_json::from_slice::<Wanted>(&body.to_bytes()),
            Ok(Err(_)) | Err(_) => return StatusCode::BAD_REQUEST,
        };
        let Ok(Wanted { server }) = wanted else { return StatusCode::BAD_REQUEST };
        let (hubs, servers) = (self.store.hubs(), self.store.servers());
        let listed = async { (hubs.wait_until_ready().await, servers.wait_until_ready().await) };
        let Ok((Ok(()), Ok(()))) = tokio::time::timeout(PATIENCE, listed).await else {
            return StatusCode::SERVICE_UNAVAILABLE;
        };
        let hub = hubs.find(|hub| hub.uid().as_deref() == Some(hub_uid));
        let known = servers.find(|known| known.uid().as_ref() == Some(&server));
        match (hub, known) {
            (Some(hub), Some(known)) if selects(&hub, &known) => {
                tracing::info!(server = %known.name_any(), namespace = known.namespace(), "asked for by a gateway");
                self.sink.ask_for(&server);
                StatusCode::ACCEPTED
            }
            _ => StatusCode::NOT_FOUND,
        }
    }
}
