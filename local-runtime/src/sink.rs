//! Hubs of one machine: a gateway and a listener each, in this process.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::BoxStream;
use kube::ResourceExt;
use mcp_hub_crds::MCPHub;
use mcp_hub_dataplane_api::gateway::{GatewayConfig, GatewayStatus, UpstreamStatus};
use mcp_hub_gateway::Gateway;
use mcp_hub_reconcile::error::{Retry, SinkError};
use mcp_hub_reconcile::exposure::Exposure;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Addresses, Demand, Door, GatewaySink, HubState, SinkEvent, news};
use mcp_hub_reconcile::status::reason;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::task::JoinHandle;

use crate::port_holder;
use crate::store::DEFAULT_PORT_ANNOTATION;

/// Events that a slow listener may lag behind.
const EVENTS: usize = 1024;
/// Who holds a port is gone at some time, and nothing tells of it.
const PORT_RETRY: Duration = Duration::from_secs(5);
/// A gateway gives what is under way ten seconds; a little more, and it is cut off.
const DRAIN: Duration = Duration::from_secs(12);

/// The gateways of this process, one a hub. They listen on 127.0.0.1 only, so that a hub without authentication is never
/// seen from elsewhere.
#[derive(Debug)]
pub struct LocalSink {
    installation: Installation,
    /// Held while one hub is changed, so that two passes never bind for one hub.
    hubs: AsyncMutex<HashMap<String, Served>>,
    /// What is asked for without waiting, by the hub's uid.
    gateways: Mutex<BTreeMap<String, Gateway>>,
    events: broadcast::Sender<SinkEvent>,
}

/// A hub's gateway and where it listens.
#[derive(Debug)]
struct Served {
    name: String,
    gateway: Gateway,
    /// The configuration's upstream uids, for the task that tells of their changes.
    upstreams: watch::Sender<Vec<String>>,
    listening: Option<Listening>,
    telling: JoinHandle<()>,
}

#[derive(Debug)]
struct Listening {
    port: u16,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Takes no more connections and waits for what is under way.
    async fn end(self) {
        let Self { port: _, stop, mut task } = self;
        // An error means that it ended by itself.
        stop.send(()).ok();
        if tokio::time::timeout(DRAIN, &mut task).await.is_err() {
            task.abort();
        }
    }
}

impl Served {
    async fn end(self) {
        self.telling.abort();
        if let Some(listening) = self.listening {
            listening.end().await;
        }
    }
}

impl LocalSink {
    pub fn new(installation: Installation) -> Arc<Self> {
        Arc::new(Self {
            installation,
            hubs: AsyncMutex::default(),
            gateways: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
        })
    }

    /// Ends all endpoints; requests under way get their time, all hubs at once.
    pub async fn shutdown(&self) {
        let hubs: Vec<Served> = self.hubs.lock().await.drain().map(|(_, served)| served).collect();
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).clear();
        join_all(hubs.into_iter().map(Served::end)).await;
    }

    fn gateways(&self) -> Vec<Gateway> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn start(&self, hub: &OwnerKey, config: &GatewayConfig) -> Result<Served, SinkError> {
        let gateway =
            Gateway::new(self.installation.sealing_key(&hub.uid), config.clone()).map_err(|error| SinkError {
                reason: "GatewayFailed",
                message: format!("the gateway of hub {hub} could not be made: {error}"),
                hint: None,
                retry: Retry::Backoff,
            })?;
        let upstreams = watch::Sender::new(Vec::new());
        let telling =
            tokio::spawn(tell_of_changes(hub.clone(), gateway.clone(), upstreams.subscribe(), self.events.clone()));
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).insert(hub.uid.clone(), gateway.clone());
        Ok(Served { name: hub.to_string(), gateway, upstreams, listening: None, telling })
    }

    fn listen(&self, hub: &OwnerKey, gateway: &Gateway, listener: TcpListener, port: u16) -> Listening {
        let (stop, stopped) = oneshot::channel();
        let (gateway, hub, events) = (gateway.clone(), hub.clone(), self.events.clone());
        let task = tokio::spawn(async move {
            let stopped = async {
                // An error means that the sink is gone, which is a stop too.
                stopped.await.ok();
            };
            if let Err(error) = gateway.serve(listener, stopped).await {
                tracing::warn!(hub = %hub, error = %error, "an endpoint ended");
                // The next pass over the hub listens again.
                events.send(SinkEvent::Hub(hub)).ok();
            }
        });
        Listening { port, stop, task }
    }
}

/// The port that a hub asks for, or the daemon's.
fn port_of(hub: &OwnerKey, spec: &MCPHub) -> Result<u16, SinkError> {
    let asked = spec.spec.gateway.as_ref().and_then(|gateway| gateway.port);
    let port = match asked {
        Some(port) => u16::try_from(port).ok(),
        None => spec.annotations().get(DEFAULT_PORT_ANNOTATION).and_then(|port| port.parse().ok()),
    };
    port.filter(|port| *port != 0).ok_or_else(|| SinkError {
        reason: "PortUnknown",
        message: format!("hub {hub} names no port"),
        hint: Some("set spec.gateway.port".to_owned()),
        retry: Retry::OnChange,
    })
}

/// What a hub asks for that only a cluster has: a certificate is refused, because to leave it out would weaken the hub; what
/// leads to it from outside is left out, and said so, so that a cluster's manifest serves on a laptop too.
fn door_of(hub_spec: &MCPHub) -> Result<Door, SinkError> {
    let gateway = hub_spec.spec.gateway.as_ref();
    if gateway.is_some_and(|gateway| gateway.tls.is_some()) {
        return Err(SinkError {
            reason: reason::UNSUPPORTED,
            message: "spec.gateway.tls: an endpoint of this machine is on 127.0.0.1 only and has no certificate"
                .to_owned(),
            hint: Some("leave it out here, or run the hub on a cluster".to_owned()),
            retry: Retry::OnChange,
        });
    }
    let exposure = gateway.and_then(Exposure::of).map(|exposure| {
        Err(Failure {
            reason: reason::UNSUPPORTED,
            message: format!("{}: only a cluster has it; the hub is served on 127.0.0.1", exposure.field()),
            hint: None,
            retry: Retry::OnChange,
        })
    });
    Ok(Door { certificate: None, exposure })
}

/// Why a port could not be had. `others` are the ports of this daemon's own hubs.
async fn bind_error(error: io::Error, port: u16, others: &[(u16, String)]) -> SinkError {
    if error.kind() != io::ErrorKind::AddrInUse {
        return SinkError {
            reason: "ListenFailed",
            message: format!("127.0.0.1:{port} cannot be listened on: {error}"),
            hint: (port < 1024).then(|| "ports below 1024 need privileges: set spec.gateway.port".to_owned()),
            retry: Retry::Backoff,
        };
    }
    let other = "set spec.gateway.port of the hub to a free port";
    let (holder, hint) = match others.iter().find(|(taken, _)| *taken == port) {
        Some((_, hub)) => (format!("hub {hub}"), other.to_owned()),
        // An error is a panic of the search: then nobody is named.
        None => match tokio::task::spawn_blocking(move || port_holder::find(port)).await.ok().flatten() {
            Some(holder) => (holder.to_string(), format!("end it, or {other}")),
            None => ("a program of another user".to_owned(), format!("end it, or {other}")),
        },
    };
    SinkError {
        reason: "PortInUse",
        message: format!("port {port} is in use by {holder}"),
        hint: Some(hint),
        retry: Retry::After(PORT_RETRY),
    }
}

#[async_trait]
impl GatewaySink for LocalSink {
    async fn apply(&self, hub: &OwnerKey, hub_spec: &MCPHub, config: &GatewayConfig) -> Result<Door, SinkError> {
        let door = door_of(hub_spec)?;
        let port = port_of(hub, hub_spec)?;
        let mut hubs = self.hubs.lock().await;
        let others: Vec<(u16, String)> = hubs
            .iter()
            .filter(|(uid, _)| **uid != hub.uid)
            .filter_map(|(_, served)| Some((served.listening.as_ref()?.port, served.name.clone())))
            .collect();
        if !hubs.contains_key(&hub.uid) {
            // A port that cannot be had leaves nothing behind, so that nothing claims to serve the hub.
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| (error, port, &others));
            let listener = match listener {
                Ok(listener) => listener,
                Err((error, port, others)) => return Err(bind_error(error, port, others).await),
            };
            let mut served = self.start(hub, config)?;
            served.listening = Some(self.listen(hub, &served.gateway, listener, port));
            served.upstreams.send_replace(uids(config));
            hubs.insert(hub.uid.clone(), served);
            return Ok(door);
        }
        let Some(served) = hubs.get_mut(&hub.uid) else { return Ok(door) };
        served.upstreams.send_replace(uids(config));
        if served.gateway.status().version != config.version {
            served.gateway.apply(config.clone());
        }
        let stands = served.listening.as_ref().is_some_and(|l| l.port == port && !l.task.is_finished());
        if stands {
            return Ok(door);
        }
        // The old port is served until the new one is there.
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => {
                let new = self.listen(hub, &served.gateway, listener, port);
                if let Some(old) = served.listening.replace(new) {
                    drop(hubs);
                    old.end().await;
                }
                Ok(door)
            }
            Err(error) => Err(bind_error(error, port, &others).await),
        }
    }

    async fn remove(&self, hub: &OwnerKey) -> Result<(), SinkError> {
        let served = self.hubs.lock().await.remove(&hub.uid);
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).remove(&hub.uid);
        if let Some(served) = served {
            served.end().await;
        }
        Ok(())
    }

    fn addresses(&self, _: &OwnerKey) -> Addresses {
        Addresses::default()
    }

    async fn observe(&self, hub: &OwnerKey) -> Result<Option<HubState>, SinkError> {
        let hubs = self.hubs.lock().await;
        let Some(served) = hubs.get(&hub.uid) else { return Ok(None) };
        let Some(listening) = &served.listening else { return Ok(None) };
        let GatewayStatus { version, upstreams: _, collisions } = served.gateway.status();
        let serving = i32::from(!listening.task.is_finished());
        Ok(Some(HubState {
            endpoint: format!("http://127.0.0.1:{}/mcp", listening.port),
            replicas: 1,
            serving,
            problem: None,
            synced: serving,
            version,
            collisions,
        }))
    }

    async fn upstream(&self, server_uid: &str) -> Option<UpstreamStatus> {
        UpstreamStatus::best(self.gateways().iter().filter_map(|gateway| gateway.upstream(server_uid)))
    }

    /// A bridge here costs too little to be put to rest.
    async fn demand(&self, _: &str, _: &[OwnerKey]) -> Demand {
        Demand::Unwakeable
    }

    async fn keep_definitions(&self, _: &str, _: &[OwnerKey]) -> Result<(), SinkError> {
        Ok(())
    }

    fn events(&self) -> BoxStream<'static, SinkEvent> {
        news(&self.events)
    }
}

fn uids(config: &GatewayConfig) -> Vec<String> {
    config.upstreams.iter().map(|upstream| upstream.uid.clone()).collect()
}

/// Tells what the gateway learns: of servers whose status changed, and of the hub when names collide or no longer do.
async fn tell_of_changes(
    hub: OwnerKey,
    gateway: Gateway,
    mut upstreams: watch::Receiver<Vec<String>>,
    events: broadcast::Sender<SinkEvent>,
) {
    let mut changes = gateway.status_changes();
    let mut known: BTreeMap<String, UpstreamStatus> = BTreeMap::new();
    let mut collisions = BTreeMap::new();
    loop {
        let now: BTreeMap<String, UpstreamStatus> = upstreams
            .borrow_and_update()
            .iter()
            .filter_map(|uid| Some((uid.clone(), gateway.upstream(uid)?)))
            .collect();
        let changed = now.iter().filter(|(uid, status)| known.get(*uid) != Some(*status));
        for (uid, _) in changed {
            // Nobody listening is no loss: who listens later asks.
            events.send(SinkEvent::Upstream(uid.clone())).ok();
        }
        known = now;
        let found = gateway.status().collisions;
        if found != collisions {
            events.send(SinkEvent::Hub(hub.clone())).ok();
            collisions = found;
        }
        // Either ends only with the gateway, and this task is ended before that.
        let ended = tokio::select! {
            result = changes.changed() => result.is_err(),
            result = upstreams.changed() => result.is_err(),
        };
        if ended {
            return;
        }
    }
}
