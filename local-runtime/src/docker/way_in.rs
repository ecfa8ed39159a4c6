//! The way in to servers that no port is published of: a port of this process for each, whose connections go on through the
//! relay. It is opened with a permit for that server's address, as the relay's other clients show one.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::permit::{Permit, PermitKey};
use mcp_hub_reconcile::owner::OwnerKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::relay::CONNECTIONS;

/// The relay itself gives up a connection after ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Without descriptors nothing can be taken; what is open now will close.
const BREATH: Duration = Duration::from_millis(100);

/// Where a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The relay's published port.
    pub(super) relay: SocketAddr,
    /// The server's bridge, as the relay reaches it.
    pub(super) bridge: SocketAddr,
}

/// The ways in of a runtime.
#[derive(Debug)]
pub(super) struct WaysIn {
    key: PermitKey,
    open: Mutex<HashMap<OwnerKey, WayIn>>,
}

#[derive(Debug)]
struct WayIn {
    address: SocketAddr,
    route: watch::Sender<Route>,
    task: AbortHandle,
}

impl Drop for WayIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WaysIn {
    pub(super) fn new(key: PermitKey) -> Self {
        Self { key, open: Mutex::default() }
    }

    /// The address on this machine that leads to a server. It stays the same as long as this process lives; what comes from
    /// now on takes the new route.
    ///
    /// # Errors
    /// No port is free.
    pub(super) fn lead(&self, owner: &OwnerKey, route: Route) -> io::Result<SocketAddr> {
        let mut open = self.open();
        if let Some(way) = open.get(owner) {
            way.route.send_if_modified(|known| std::mem::replace(known, route) != route);
            return Ok(way.address);
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let (sender, known) = watch::channel(route);
        let server = format!("in.{}.{}", owner.namespace, owner.name);
        let task = tokio::spawn(serve(listener, known, server, self.key.clone())).abort_handle();
        open.insert(owner.clone(), WayIn { address, route: sender, task });
        Ok(address)
    }

    pub(super) fn close(&self, owner: &OwnerKey) {
        self.open().remove(owner);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<OwnerKey, WayIn>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped, it cuts every connection.
async fn serve(listener: TcpListener, route: watch::Receiver<Route>, server: String, key: PermitKey) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Closed never: this holds it.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let route = *route.borrow();
        let permit = permit(&server, route.bridge, &key);
        connections.spawn(async move {
            if let Err(error) = carry(client, route, permit).await {
                tracing::debug!(relay = %route.relay, bridge = %route.bridge, %error, "connection lost");
            }
            drop(place);
        });
    }
}

/// For this address and no other.
fn permit(server: &str, bridge: SocketAddr, key: &PermitKey) -> Option<HeaderValue> {
    let targets = vec![bridge.to_string().parse().ok()?];
    let shown = Permit { server: server.to_owned(), targets }.header(key).ok()?;
    let mut value = HeaderValue::from_str(shown.expose_secret()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn carry(mut client: TcpStream, route: Route, permit: Option<HeaderValue>) -> io::Result<()> {
    let opened = tokio::time::timeout(PATIENCE, open(route, permit)).await;
    let mut tunnel = opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    client.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut tunnel).await.map(drop)
}

async fn open(route: Route, permit: Option<HeaderValue>) -> io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    let stream = TcpStream::connect(route.relay).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the tunnel.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(route.bridge.to_string()).header(HOST, route.bridge.to_string());
    if let Some(permit) = permit {
        request = request.header(PROXY_AUTHORIZATION, permit);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!("the relay answered {}", response.status())));
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(io::Error::other)
}
