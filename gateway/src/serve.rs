//! The HTTP server: connections, paths, and who is let in.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};

use crate::Inner;
use crate::body::{Body, full};
use crate::client::{self, Scope};
use crate::guard::{self, Shown};
use crate::metrics::count;
use crate::rouse::Rousing;
use crate::session::LastSession;

/// A client that has not sent its headers by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes nothing of what it is sent for so long is gone: its call's place and what waits for it are needed.
#[cfg(target_os = "linux")]
const STALLED_MS: u32 = 30_000;
/// What is under way when the gateway stops gets this long.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn run(
    listener: TcpListener,
    inner: Arc<Inner>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    let mut connections = tokio::task::JoinSet::new();
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
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = &mut shutdown => break,
        };
        connections.spawn(connection(stream, inner.clone(), graceful.watcher()));
    }
    drop(listener);
    // Streams never end by themselves: those of idle clients are cut with the last of the grace.
    tokio::time::timeout(GRACE, graceful.shutdown()).await.ok();
    connections.shutdown().await;
    Ok(())
}

async fn connection(stream: TcpStream, inner: Arc<Inner>, watcher: hyper_util::server::graceful::Watcher) {
    // Small answers must not wait for more; a socket that refuses is served all the same.
    stream.set_nodelay(true).ok();
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(&stream, STALLED_MS).ok();
    let remembered = Arc::new(Remembered::default());
    let service = service_fn(move |request| {
        let (inner, remembered) = (inner.clone(), remembered.clone());
        async move { Ok::<_, Infallible>(answer(request, inner, &remembered).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 << 10);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    // A client that went away is no failure.
    Rousing::new(watcher.watch(serving)).await.ok();
}

/// What a connection showed last.
#[derive(Debug, Default)]
struct Remembered {
    token: Shown,
    session: Arc<LastSession>,
}

async fn answer(request: Request<Incoming>, inner: Arc<Inner>, remembered: &Remembered) -> Response<Body> {
    let served = inner.served();
    // Before anything: a web page must not even find out what is served here.
    if let Err(refusal) = guard::check_origin(request.headers(), &served.config) {
        count(&inner.metrics.refused_origins);
        return refusal;
    }
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/readyz") {
        return full(StatusCode::OK, "text/plain", "ok");
    }
    let principal = match guard::authenticate(request.headers(), &served.config, &remembered.token) {
        Ok(principal) => principal,
        Err(refusal) => {
            count(&inner.metrics.unauthorized);
            return refusal;
        }
    };
    if path == "/metrics" {
        let ready = served.upstreams.values().filter(|watched| watched.upstream.is_ready()).count();
        let metrics = inner.metrics.render(served.upstreams.len(), ready, inner.parked.count());
        return full(StatusCode::OK, "text/plain; version=0.0.4", metrics);
    }
    let scope = match path.strip_prefix("/servers/").and_then(|rest| rest.strip_suffix("/mcp")) {
        Some(name) => served.upstreams.get(name).map(|watched| Scope::Server(watched.upstream.clone())),
        None => (path == "/mcp").then_some(Scope::Aggregate),
    };
    match scope {
        Some(scope) => client::answer(request, inner, served, scope, principal, remembered.session.clone()).await,
        None => full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
    }
}
