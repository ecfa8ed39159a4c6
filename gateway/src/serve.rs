//! The HTTP server: connections, paths, and who is let in.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::body::{Body, full};
use crate::client::{self, Scope, Sender};
use crate::guard::{self, Shown};
use crate::metrics::count;
use crate::rouse::Rousing;
use crate::session::LastSession;
use crate::tls::{Certificate, Secured};
use crate::{Inner, Served};

/// A client that has not sent its headers by then is not going to.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes nothing of what it is sent for so long is gone: its call's place and what waits for it are needed.
#[cfg(target_os = "linux")]
const STALLED_MS: u32 = 30_000;

/// How a listener ends.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long connections are still taken: in a cluster, clients are sent here for a while after the end was announced.
    pub delay: Duration,
    /// How long what is under way then may take.
    pub limit: Duration,
}

/// Tells streams that end only with their listener that it ends, so that clients open them elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Ending(watch::Sender<bool>);

impl Ending {
    pub(crate) fn begin(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn is_begun(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn begun(&self) {
        // The sender is ours, so that there is no error.
        self.0.subscribe().wait_for(|ends| *ends).await.ok();
    }
}

pub(crate) async fn run(
    listener: TcpListener,
    certificate: Option<Certificate>,
    inner: Arc<Inner>,
    shutdown: impl Future<Output = ()>,
    drain: Drain,
    ending: Arc<Ending>,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let until = async {
        shutdown.await;
        tokio::time::sleep(drain.delay).await;
    };
    accept(&listener, &mut connections, until, |stream| {
        connection(stream, certificate.clone(), inner.clone(), graceful.watcher(), ending.clone())
    })
    .await;
    drop(listener);
    ending.begin();
    // Conversations of idle clients are cut with the last of the time.
    tokio::time::timeout(drain.limit, graceful.shutdown()).await.ok();
    connections.shutdown().await;
    Ok(())
}

/// Takes connections until something else is due.
pub(crate) async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    until: impl Future<Output = ()>,
    serve: impl Fn(TcpStream) -> F,
) {
    tokio::pin!(until);
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
            () = &mut until => return,
        };
        connections.spawn(serve(stream));
    }
}

/// What every connection gets.
pub(crate) fn tune(stream: &TcpStream) {
    // Small answers must not wait for more; a socket that refuses is served all the same.
    stream.set_nodelay(true).ok();
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(stream, STALLED_MS).ok();
}

/// Whether clients should be sent here.
pub(crate) fn readiness(inner: &Inner) -> Response<Body> {
    if inner.is_draining() {
        return full(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining");
    }
    full(StatusCode::OK, "text/plain", "ok")
}

pub(crate) fn metrics(inner: &Inner) -> Response<Body> {
    let served = inner.served();
    let ready = served.upstreams.values().filter(|watched| watched.upstream.is_ready()).count();
    let metrics = inner.metrics.render(served.upstreams.len(), ready, inner.parked.count());
    full(StatusCode::OK, "text/plain; version=0.0.4", metrics)
}

async fn connection(
    stream: TcpStream,
    certificate: Option<Certificate>,
    inner: Arc<Inner>,
    watcher: Watcher,
    ending: Arc<Ending>,
) {
    tune(&stream);
    let Some(certificate) = certificate else { return speak(stream, inner, watcher, ending).await };
    match certificate.accept(stream).await {
        Ok(Secured::Tls(stream)) => speak(*stream, inner, watcher, ending).await,
        Ok(Secured::Plain(stream)) => speak(stream, inner, watcher, ending).await,
        // Whoever speaks no TLS is told so by an alert.
        Err(error) => tracing::debug!(error = %error, "a handshake failed"),
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    inner: Arc<Inner>,
    watcher: Watcher,
    ending: Arc<Ending>,
) {
    let remembered = Arc::new(Remembered { token: Shown::default(), session: Arc::default(), ending });
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
#[derive(Debug)]
struct Remembered {
    token: Shown,
    session: Arc<LastSession>,
    /// Of the listener.
    ending: Arc<Ending>,
}

async fn answer(request: Request<Incoming>, inner: Arc<Inner>, remembered: &Remembered) -> Response<Body> {
    let served = inner.served();
    // Before anything: a web page must not even find out what is served here.
    if let Err(refusal) = guard::check_origin(request.headers(), &served.config) {
        count(&inner.metrics.refused_origins);
        return refusal;
    }
    let path = request.uri().path();
    match path {
        "/healthz" => return full(StatusCode::OK, "text/plain", "ok"),
        "/readyz" => return readiness(&inner),
        _ => {}
    }
    let principal = match guard::authenticate(request.headers(), &served.config, &remembered.token) {
        Ok(principal) => principal,
        Err(refusal) => {
            count(&inner.metrics.unauthorized);
            return refusal;
        }
    };
    if path == "/metrics" {
        return metrics(&inner);
    }
    match scope(path, &served) {
        Some(scope) => {
            let sender = Sender {
                principal,
                last_session: remembered.session.clone(),
                ending: remembered.ending.clone(),
                is_forwarded: false,
            };
            client::answer(request, inner, served, scope, sender).await
        }
        None => full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
    }
}

/// The endpoint of this path.
pub(crate) fn scope(path: &str, served: &Served) -> Option<Scope> {
    match path.strip_prefix("/servers/").and_then(|rest| rest.strip_suffix("/mcp")) {
        Some(name) => served.upstreams.get(name).map(|watched| Scope::Server(watched.upstream.clone())),
        None => (path == "/mcp").then_some(Scope::Aggregate),
    }
}
