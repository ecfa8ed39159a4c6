//! Hubs of one machine: a gateway and a listener each, in this process.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use mcp_hub_crds::MCPHub;
use mcp_hub_dataplane_api::gateway::{GatewayConfig, UpstreamStatus};
use mcp_hub_gateway::Gateway;
use mcp_hub_reconcile::error::{Retry, SinkError};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{GatewaySink, HubState, SinkEvent};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::port_holder;

/// A port may become free at any time, and nothing tells of that.
const PORT_AGAIN: Duration = Duration::from_secs(3);
const BACKLOG: u32 = 1024;
/// Events that a slow listener may lag behind.
const EVENTS: usize = 1024;

/// The gateways of this process.
#[derive(Debug)]
pub struct LocalSink {
    installation: Installation,
    /// Port of hubs that name none.
    default_port: u16,
    hubs: Mutex<HashMap<OwnerKey, Served>>,
    events: broadcast::Sender<SinkEvent>,
}

/// A hub that is being served.
#[derive(Debug)]
struct Served {
    gateway: Gateway,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl LocalSink {
    pub fn new(installation: Installation, default_port: u16) -> Arc<Self> {
        Arc::new(Self { installation, default_port, hubs: Mutex::default(), events: broadcast::Sender::new(EVENTS) })
    }

    /// Ends every gateway; calls under way get their time to finish.
    pub async fn shutdown(&self) {
        let all: Vec<Served> = self.hubs().drain().map(|(_, served)| served).collect();
        for served in &all {
            served.stop.send_replace(true);
        }
        for served in all {
            // A panic in there ended the gateway too.
            served.task.await.ok();
        }
    }

    fn hubs(&self) -> MutexGuard<'_, HashMap<OwnerKey, Served>> {
        self.hubs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, hub: &OwnerKey, gateway: Gateway, listener: TcpListener, address: SocketAddr) -> Served {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn({
            let (gateway, hub) = (gateway.clone(), hub.clone());
            async move {
                let stop = async {
                    // The sender is gone when the hub is.
                    stopped.wait_for(|stop| *stop).await.ok();
                };
                if let Err(error) = gateway.serve(listener, stop).await {
                    tracing::error!(%hub, %error, "the gateway ended");
                }
            }
        });
        self.follow(hub.clone(), &gateway);
        Served { gateway, address, stop, task }
    }

    /// Tells of what the gateway learns of its upstreams, until it is gone.
    fn follow(&self, hub: OwnerKey, gateway: &Gateway) {
        let mut changes = gateway.status_changes();
        let (gateway, events) = (gateway.clone(), self.events.clone());
        let mut known: HashMap<String, UpstreamStatus> = HashMap::new();
        let mut collisions = gateway.status().collisions;
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let status = gateway.status();
                // Nobody listening is no loss: who listens later looks at everything first.
                for (name, upstream) in &status.upstreams {
                    if known.get(name) != Some(upstream) {
                        if let Some(uid) = gateway.uid_of(name) {
                            events.send(SinkEvent::Upstream(uid)).ok();
                        }
                        known.insert(name.clone(), upstream.clone());
                    }
                }
                known.retain(|name, _| status.upstreams.contains_key(name));
                if status.collisions != collisions {
                    collisions = status.collisions;
                    events.send(SinkEvent::Hub(hub.clone())).ok();
                }
            }
        });
    }
}

/// Binds loopback; a local hub is on no network.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // A daemon that was just ended leaves connections in TIME_WAIT, which are in nobody's way.
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(BACKLOG)
}

fn failed(reason: &'static str, message: String, hint: Option<&str>, retry: Retry) -> SinkError {
    SinkError { reason, message, hint: hint.map(str::to_owned), retry }
}

#[async_trait]
impl GatewaySink for LocalSink {
    async fn apply(&self, hub: &OwnerKey, hub_spec: &MCPHub, config: &GatewayConfig) -> Result<(), SinkError> {
        let gateway = hub_spec.spec.gateway.as_ref();
        let port = gateway.and_then(|gateway| gateway.port).and_then(|port| u16::try_from(port).ok());
        let port = port.unwrap_or(self.default_port);
        let moved = {
            let mut hubs = self.hubs();
            match hubs.get(hub) {
                Some(served) if served.address.port() == port && !served.task.is_finished() => {
                    served.gateway.apply(config.clone());
                    return Ok(());
                }
                Some(_) => hubs.remove(hub),
                None => None,
            }
        };
        if let Some(old) = moved {
            old.stop.send_replace(true);
        }
        let listener = listen(port).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                let holder = port_holder::holder(port).unwrap_or_else(|| "another program".to_owned());
                let message = format!("port {port} is held by {holder}");
                let hint = "end it, or give the hub another port: spec.gateway.port, or `mcpctl up --port`";
                failed("PortInUse", message, Some(hint), Retry::After(PORT_AGAIN))
            }
            _ => failed("PortFailed", format!("could not listen on port {port}: {error}"), None, Retry::Backoff),
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| failed("PortFailed", format!("port {port}: {error}"), None, Retry::Backoff))?;
        let gateway = Gateway::new(self.installation.sealing_key(&hub.uid), config.clone())
            .map_err(|error| failed("GatewayFailed", error.to_string(), None, Retry::Backoff))?;
        let served = self.serve(hub, gateway, listener, address);
        self.hubs().insert(hub.clone(), served);
        Ok(())
    }

    async fn remove(&self, hub: &OwnerKey) -> Result<(), SinkError> {
        let removed = self.hubs().remove(hub);
        if let Some(served) = removed {
            served.stop.send_replace(true);
        }
        Ok(())
    }

    async fn observe(&self, hub: &OwnerKey) -> Result<Option<HubState>, SinkError> {
        let hubs = self.hubs();
        Ok(hubs.get(hub).filter(|served| !served.task.is_finished()).map(|served| {
            let status = served.gateway.status();
            HubState {
                endpoint: format!("http://{}/mcp", served.address),
                replicas: 1,
                synced: 1,
                version: status.version,
                collisions: status.collisions,
            }
        }))
    }

    /// The best answer over all hubs: one that reached the server knows more than one that has not tried.
    fn upstream(&self, server_uid: &str) -> Option<UpstreamStatus> {
        let hubs = self.hubs();
        let answers = hubs.values().filter_map(|served| served.gateway.upstream(server_uid));
        answers.max_by_key(|status| match status {
            UpstreamStatus::Ready { .. } => 3,
            UpstreamStatus::AuthRequired { .. } => 2,
            UpstreamStatus::Failed { .. } => 1,
            UpstreamStatus::Unknown => 0,
        })
    }

    fn events(&self) -> BoxStream<'static, SinkEvent> {
        let receiver = self.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(event) => return Some((event, receiver)),
                    // What was missed shows with the next change; the hourly look finds the rest.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}
