//! The proxy itself: connections, who is let in, and what becomes of a request.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use mcp_hub_dataplane_api::egress;
use mcp_hub_dataplane_api::permit::{Permit, PermitKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::Bounds;
use crate::dial::{self, Network};
use crate::idle::Watched;
use crate::refusal::Refusal;
use crate::slots::{Holder, Slot, Slots};
use crate::told::Told;
use crate::wish::{self, Destination};

type Body = Either<Full<Bytes>, Incoming>;

/// Largest head of a request: the longest permit, twice encoded, and as much again.
const HEAD_MAX: usize = 32 << 10;
/// Whoever takes nothing of what it is sent for so long is gone.
#[cfg(target_os = "linux")]
const STALLED_MS: u32 = 30_000;

/// How a relay ends.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long connections are still taken: they come here for a while after the end was announced.
    pub delay: Duration,
    /// How long what is under way then may take.
    pub limit: Duration,
}

/// An allow-list proxy.
#[derive(Debug)]
pub struct Relay {
    key: RwLock<PermitKey>,
    network: Arc<dyn Network>,
    bounds: Bounds,
    local: Vec<egress::Network>,
    places: Arc<Semaphore>,
    slots: Slots,
    told: Told,
    /// No request is taken any more.
    closing: watch::Sender<bool>,
}

impl Relay {
    /// `local`: networks that names alone do not open, though they look like the internet's.
    pub fn new(
        key: PermitKey,
        network: impl Network + 'static,
        bounds: Bounds,
        local: Vec<egress::Network>,
    ) -> Arc<Self> {
        Arc::new(Self {
            key: RwLock::new(key),
            network: Arc::new(network),
            bounds,
            local,
            places: Arc::new(Semaphore::new(bounds.connections)),
            slots: Slots::default(),
            told: Told::default(),
            closing: watch::Sender::new(false),
        })
    }

    /// Takes permits of this key from now on, and no others.
    pub fn rekey(&self, key: PermitKey) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// Serves until `shutdown`, then as `drain` says.
    ///
    /// # Cancel safety
    /// Dropped, it cuts every connection.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: impl Future<Output = ()>, drain: Drain) {
        let mut connections = JoinSet::new();
        let until = async {
            shutdown.await;
            tokio::time::sleep(drain.delay).await;
        };
        tokio::pin!(until);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
                    Err(_) => {
                        // Out of descriptors: what is open now will close.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                () = &mut until => break,
            };
            match self.admitted(peer) {
                Some((place, slot)) => {
                    let client = Arc::new(Client { peer, slot: Mutex::new(slot), tunnel: Mutex::new(None) });
                    let relay = self.clone();
                    connections.spawn(async move {
                        relay.converse(stream, &client).await;
                        drop(place);
                    });
                }
                None => self.turn_away(&stream, peer),
            }
        }
        drop(listener);
        self.closing.send_replace(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        // What is not done by then is cut.
        tokio::time::timeout(drain.limit, ended).await.ok();
        connections.shutdown().await;
    }

    fn admitted(&self, peer: IpAddr) -> Option<(OwnedSemaphorePermit, Slot)> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some((place, self.slots.take(Holder::Peer(peer), self.bounds.unproven)?))
    }

    fn turn_away(&self, stream: &TcpStream, peer: IpAddr) {
        let text = Refusal::Full.to_string();
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: \
             {}\r\n\r\n{text}\n",
            text.len() + 1
        );
        // A new connection has room for it; one that has not is gone.
        stream.try_write(answer.as_bytes()).ok();
        self.told.refused(&peer.to_string(), None, &Refusal::Full);
    }

    /// The requests of a connection, and the tunnel that it may become.
    async fn converse(self: Arc<Self>, stream: TcpStream, client: &Arc<Client>) {
        tune(&stream);
        let service = service_fn(|request| {
            let (relay, client) = (self.clone(), client.clone());
            async move { Ok::<_, Infallible>(relay.answer(request, &client).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.bounds.head).max_buf_size(HEAD_MAX);
        let serving = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(serving);
        let mut closing = self.closing.subscribe();
        // The sender is ours, so that there is no error.
        let closed = async { closing.wait_for(|closing| *closing).await.is_ok() };
        // Whoever went away is no failure.
        tokio::select! {
            served = serving.as_mut() => served.ok(),
            _ = closed => {
                serving.as_mut().graceful_shutdown();
                serving.await.ok()
            }
        };
        let tunnel = client.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tunnel) = tunnel {
            tunnel.run(self.bounds.idle).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: &Client) -> Response<Body> {
        let refusal = match self.permit(&request, client) {
            Err(refusal) => {
                self.told.refused(&client.peer.to_string(), None, &refusal);
                refusal
            }
            Ok(permit) => match Destination::of(&request) {
                Err(refusal) => {
                    self.told.refused(&permit.server, None, &refusal);
                    refusal
                }
                Ok(destination) => match self.carry_out(request, client, &permit, &destination).await {
                    Ok(response) => return response,
                    Err(refusal) => {
                        self.told.refused(&permit.server, Some(&destination.to_string()), &refusal);
                        refusal
                    }
                },
            },
        };
        refused(&refusal)
    }

    /// What the client may do, and with that its connection is counted as its server's.
    fn permit(&self, request: &Request<Incoming>, client: &Client) -> Result<Permit, Refusal> {
        if request.uri().authority().is_none() {
            return Err(Refusal::NoProxyRequest);
        }
        let shown = request.headers().get(header::PROXY_AUTHORIZATION).ok_or(Refusal::NoPermit)?;
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner).clone();
        let permit = Permit::read(shown.as_bytes(), &key).map_err(|_| Refusal::NoPermit)?;
        let holder = Holder::Server(permit.server.clone());
        let mut slot = client.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.holder != holder {
            let most = self.bounds.of_a_server;
            *slot = self
                .slots
                .take(holder, most)
                .ok_or_else(|| Refusal::TooMany { server: permit.server.clone(), most })?;
        }
        Ok(permit)
    }

    async fn carry_out(
        &self,
        mut request: Request<Incoming>,
        client: &Client,
        permit: &Permit,
        destination: &Destination,
    ) -> Result<Response<Body>, Refusal> {
        let upstream = dial::dial(&self.network, &self.slots, &self.bounds, &self.local, permit, destination).await?;
        tune(&upstream);
        if request.method() != Method::CONNECT {
            return self.forward(request, upstream, destination).await;
        }
        let tunnel = Tunnel { client: hyper::upgrade::on(&mut request), upstream };
        *client.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
        Ok(Response::new(Either::Left(Full::default())))
    }

    /// A plain HTTP request, on a connection of its own.
    async fn forward(
        &self,
        mut request: Request<Incoming>,
        upstream: TcpStream,
        destination: &Destination,
    ) -> Result<Response<Body>, Refusal> {
        wish::forward(&mut request)?;
        let idle = self.bounds.idle;
        let (upstream, movement) = Watched::new(upstream);
        let broken = |_| Refusal::BrokenAnswer { destination: destination.to_string() };
        let mut http = hyper::client::conn::http1::Builder::new();
        let opened = http.max_buf_size(HEAD_MAX).handshake(TokioIo::new(upstream)).await;
        let (mut sender, connection) = opened.map_err(broken)?;
        let moving = movement.clone();
        // It ends with the answer's body, or with the client, who then takes no more of it.
        tokio::spawn(async move {
            tokio::select! {
                _ = connection => {}
                () = moving.ceased(idle) => {}
            }
        });
        let mut response = tokio::select! {
            response = sender.send_request(request) => response.map_err(broken)?,
            () = movement.ceased(idle) => {
                return Err(Refusal::SlowAnswer { destination: destination.to_string(), within: idle });
            }
        };
        // Nobody was asked to switch.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Refusal::BrokenAnswer { destination: destination.to_string() });
        }
        wish::strip(response.headers_mut());
        Ok(response.map(Either::Right))
    }
}

/// The other end of a connection to the relay.
#[derive(Debug)]
struct Client {
    peer: IpAddr,
    slot: Mutex<Slot>,
    /// Set by a `CONNECT` that was granted.
    tunnel: Mutex<Option<Tunnel>>,
}

#[derive(Debug)]
struct Tunnel {
    client: OnUpgrade,
    upstream: TcpStream,
}

impl Tunnel {
    async fn run(self, idle: Duration) {
        let Ok(client) = self.client.await else { return };
        let mut client = TokioIo::new(client);
        let (mut upstream, movement) = Watched::new(self.upstream);
        tokio::select! {
            // Either side's failure ends both.
            _ = tokio::io::copy_bidirectional(&mut client, &mut upstream) => {}
            () = movement.ceased(idle) => {}
        }
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(format!("mcp-hub-relay: {refusal}\n"))));
    *response.status_mut() = refusal.status();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if refusal.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        let challenge = HeaderValue::from_static("Basic realm=\"mcp-hub-relay\"");
        response.headers_mut().insert(header::PROXY_AUTHENTICATE, challenge);
    }
    response
}

/// What every connection gets.
fn tune(stream: &TcpStream) {
    // Small answers must not wait for more; a socket that refuses is served all the same.
    stream.set_nodelay(true).ok();
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(stream, STALLED_MS).ok();
}
