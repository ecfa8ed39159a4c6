//! The MCP data plane: one endpoint over many servers.
//!
//! `/mcp` offers all servers of a hub under prefixed names ([`aggregate`]), `/servers/NAME/mcp` one server under its own.
//! Clients and servers of either era meet here, and only here are eras translated ([`translate`]). Calls pass as raw JSON:
//! an envelope and a name are looked at, the rest is bytes.

mod activity;
mod aggregate;
mod asked;
mod body;
mod client;
mod control;
mod conversation;
mod cursors;
mod ears;
mod exchange;
mod failures;
mod fields;
mod flights;
mod forwarded;
mod guard;
mod handover;
mod interests;
mod metrics;
mod names;
mod outgoing;
mod param_headers;
mod parked;
mod peers;
mod questions;
mod relay;
mod result_limit;
mod rouse;
mod seal;
mod serve;
mod session;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod told;
mod translate;
mod upstream;
mod uris;
mod wake;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use mcp_hub_dataplane_api::control::{ControlKeys, Push};
use mcp_hub_dataplane_api::gateway::{GatewayConfig, GatewayStatus, InForce, ReplicaStatus, UpstreamStatus};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast, watch as changes};

use crate::aggregate::Lists;
use crate::asked::Asked;
use crate::ears::Hearers;
use crate::exchange::Return;
use crate::flights::Flights;
use crate::interests::Interests;
use crate::metrics::Metrics;
use crate::parked::Parked;
use crate::peers::Peers;
pub use crate::peers::Replicas;
use crate::seal::Seal;
pub use crate::serve::Drain;
use crate::serve::Ending;
use crate::session::SessionKeys;
pub use crate::tls::{Certificate, CertificateError};
use crate::told::Told;
use crate::upstream::{HttpClient, Watched};
use crate::wake::Wakes;

/// A gateway; cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    served: ArcSwap<Served>,
    /// Held while a configuration is taken, so that each is compared with the one that it replaces.
    applying: Mutex<Newest>,
    /// Of the configuration in force.
    sequence: AtomicU64,
    draining: AtomicBool,
    /// Of the listener that [`Gateway::operate`] serves.
    pub(crate) ending: Arc<Ending>,
    /// `None` for a gateway without replicas.
    pub(crate) peers: Option<Peers>,
    pub(crate) keys: ControlKeys,
    pub(crate) seal: Seal,
    sessions: SessionKeys,
    http: HttpClient,
    flights: Flights,
    pub(crate) asked: Asked,
    pub(crate) hearers: Hearers,
    pub(crate) interests: Interests,
    /// What servers say outside of calls, besides that lists changed.
    pub(crate) told: broadcast::Sender<Told>,
    pub(crate) parked: Parked<Return>,
    wakes: Wakes,
    pub(crate) metrics: Metrics,
    /// Methods of `list_changed` notifications of the merged lists.
    outdated: broadcast::Sender<&'static str>,
    status: changes::Sender<u64>,
}

/// One configuration with what belongs to it; replaced as a whole.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) config: GatewayConfig,
    pub(crate) upstreams: BTreeMap<String, Arc<Watched>>,
    pub(crate) lists: Lists,
    pub(crate) calls: Arc<Semaphore>,
}

/// When the newest configuration that was pushed was sealed, in milliseconds since the epoch.
#[derive(Debug, Default)]
struct Newest(u64);

/// A configuration that is older than the one in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration is older than the one in force, {} (sequence {})", .in_force.version, .in_force.sequence)]
pub struct Superseded {
    pub in_force: InForce,
}

/// What is under way gets this long when a listener ends that nobody drains.
const GRACE: Duration = Duration::from_secs(10);

/// A gateway that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("no TLS for upstream connections: {0}")]
    Tls(String),
    #[error("the system gives no random numbers")]
    Random,
}

impl Gateway {
    /// `sealing_key` seals what clients keep for the gateway (session ids, cursors, request states): with the same key the
    /// sessions of an earlier gateway go on. Needs a tokio runtime.
    pub fn new(sealing_key: [u8; 32], config: GatewayConfig) -> Result<Self, GatewayError> {
        Self::with(sealing_key, config, None)
    }

    /// As [`new`](Self::new), for one replica of several, which share the key.
    pub fn replica(sealing_key: [u8; 32], config: GatewayConfig, replicas: Replicas) -> Result<Self, GatewayError> {
        Self::with(sealing_key, config, Some(replicas))
    }

    fn with(sealing_key: [u8; 32], config: GatewayConfig, replicas: Option<Replicas>) -> Result<Self, GatewayError> {
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(|_| GatewayError::Random)?;
        let instance = hex::encode(instance);
        let keys = ControlKeys::of(&sealing_key);
        let peers = replicas.map(|replicas| Peers::new(&instance, replicas, keys.forward_key()));
        let home = peers.as_ref().map(|peers| peers.home().clone());
        let calls = Arc::new(Semaphore::new(config.limits.concurrent_calls as usize));
        let seal = Seal::new(sealing_key);
        let empty = GatewayConfig { upstreams: Vec::new(), ..config.clone() };
        let gateway = Self(Arc::new(Inner {
            served: ArcSwap::from_pointee(Served {
                config: empty,
                upstreams: BTreeMap::new(),
                lists: Lists::default(),
                calls,
            }),
            applying: Mutex::default(),
            sequence: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ending: Arc::default(),
            peers,
            keys,
            sessions: SessionKeys::new(seal.clone(), home.clone()),
            http: upstream::http_client()?,
            flights: Flights::default(),
            asked: Asked::new(seal.clone(), home.as_ref()),
            hearers: Hearers::default(),
            interests: Interests::default(),
            told: broadcast::Sender::new(told::BACKLOG),
            parked: Parked::new(seal.clone(), &instance, home.map(|home| home.address)),
            wakes: Wakes::default(),
            seal,
            metrics: Metrics::default(),
            outdated: broadcast::Sender::new(64),
            status: changes::Sender::new(0),
        }));
        gateway.apply(config);
        Ok(gateway)
    }

    /// Serves this configuration from now on. What was learned of upstreams that stay the same is kept; requests under
    /// way end with the configuration that they began with.
    pub fn apply(&self, config: GatewayConfig) {
        self.replace(config, &self.0.newest());
    }

    /// As [`apply`](Self::apply), unless the configuration has a lower sequence than that in force.
    pub fn offer(&self, config: GatewayConfig) -> Result<(), Superseded> {
        let newest = self.0.newest();
        self.replace_older(config, &newest)
    }

    /// As [`offer`](Self::offer), unless one that was sealed later has been taken.
    pub(crate) fn offer_pushed(&self, push: Push) -> Result<(), Superseded> {
        let mut newest = self.0.newest();
        if push.at_ms < newest.0 {
            return Err(self.superseded());
        }
        self.replace_older(push.config, &newest)?;
        newest.0 = push.at_ms;
        Ok(())
    }

    fn replace_older(&self, config: GatewayConfig, held: &MutexGuard<'_, Newest>) -> Result<(), Superseded> {
        if config.sequence < self.in_force().sequence {
            return Err(self.superseded());
        }
        metrics::count(&self.0.metrics.configs_taken);
        self.replace(config, held);
        Ok(())
    }

    fn superseded(&self) -> Superseded {
        metrics::count(&self.0.metrics.configs_superseded);
        Superseded { in_force: self.in_force() }
    }

    /// What is served now.
    pub fn in_force(&self) -> InForce {
        let version = self.0.served.load().config.version.clone();
        InForce { version, sequence: self.0.sequence.load(Ordering::Relaxed) }
    }

    fn replace(&self, mut config: GatewayConfig, _held: &MutexGuard<'_, Newest>) {
        // Kept beside it: equal configurations may differ in it.
        self.0.sequence.store(std::mem::take(&mut config.sequence), Ordering::Relaxed);
        let before = self.0.served.load_full();
        if before.config == config {
            return;
        }
        let upstreams: BTreeMap<String, Arc<Watched>> = config
            .upstreams
            .iter()
            .map(|wanted| {
                let same_limits = before.config.limits.stale_for_ms == config.limits.stale_for_ms;
                let old = before.upstreams.get(&wanted.name);
                let kept = old.filter(|old| old.upstream.config == *wanted && same_limits).cloned();
                let upstream = kept.unwrap_or_else(|| {
                    let predecessor = old.filter(|old| old.upstream.config.uid == wanted.uid);
                    let stale_for = Duration::from_millis(config.limits.stale_for_ms);
                    Watched::start(wanted.clone(), stale_for, &self.0, predecessor.map(|old| old.upstream.as_ref()))
                });
                (wanted.name.clone(), upstream)
            })
            .collect();
        let calls = Arc::new(Semaphore::new(config.limits.concurrent_calls as usize));
        self.0.served.store(Arc::new(Served { config, upstreams, lists: Lists::default(), calls }));
        self.0.all_outdated();
        self.0.status_changed();
    }

    /// What the gateway found of its upstreams.
    pub fn status(&self) -> GatewayStatus {
        let served = self.0.served.load();
        let upstreams =
            served.upstreams.values().map(|it| (it.upstream.config.uid.clone(), it.upstream.status())).collect();
        let collisions = served.merged(0).collisions.clone();
        GatewayStatus { version: served.config.version.clone(), upstreams, collisions }
    }

    /// Status of the upstream with this uid.
    pub fn upstream(&self, uid: &str) -> Option<UpstreamStatus> {
        let served = self.0.served.load();
        let mut upstreams = served.upstreams.values().map(|watched| &watched.upstream);
        upstreams.find(|upstream| upstream.config.uid == uid).map(|upstream| upstream.status())
    }

    /// Told whenever [`status`](Self::status) may have changed.
    pub fn status_changes(&self) -> changes::Receiver<u64> {
        self.0.status.subscribe()
    }

    /// What this replica tells an operator.
    pub fn replica_status(&self) -> ReplicaStatus {
        let served = self.0.served.load();
        let upstreams = served.upstreams.values().map(|watched| &watched.upstream);
        ReplicaStatus {
            status: self.status(),
            sequence: self.0.sequence.load(Ordering::Relaxed),
            draining: self.0.is_draining(),
            activity: upstreams.map(|upstream| (upstream.config.uid.clone(), upstream.activity.told())).collect(),
        }
    }

    /// Serves until `shutdown` resolves; then no connection is taken, and what is under way gets ten seconds.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let drain = Drain { delay: Duration::ZERO, limit: GRACE };
        serve::run(listener, None, self.0.clone(), shutdown, drain, Arc::default()).await
    }

    /// As [`serve`](Self::serve), for a gateway of a cluster, which ends with its listener: says so as soon as `shutdown`
    /// resolves, and gives clients time to go elsewhere. With a certificate clients are served by TLS. `control` is for an
    /// operator and for other replicas.
    pub async fn operate(
        &self,
        listener: TcpListener,
        certificate: Option<Certificate>,
        control: Option<TcpListener>,
        shutdown: impl Future<Output = ()>,
        drain: Drain,
    ) -> io::Result<()> {
        let shutdown = async {
            shutdown.await;
            self.0.draining.store(true, Ordering::Relaxed);
            self.0.status_changed();
        };
        let served = serve::run(listener, certificate, self.0.clone(), shutdown, drain, self.0.ending.clone());
        let controlled = async {
            match control {
                Some(control) => control::run(control, self.clone(), drain.limit).await,
                None => Ok(()),
            }
        };
        futures::future::try_join(served, controlled).await.map(drop)
    }
}

impl Inner {
    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    /// A list of an upstream changed: merged lists are made anew, and clients are told.
    pub(crate) fn outdated(&self, notification: &'static str) {
        self.served.load().lists.forget();
        // Without listeners nobody has to be told.
        self.outdated.send(notification).ok();
    }

    fn all_outdated(&self) {
        use mcp_hub_mcp::methods::{PROMPTS_CHANGED, RESOURCES_CHANGED, TOOLS_CHANGED};
        for notification in [TOOLS_CHANGED, PROMPTS_CHANGED, RESOURCES_CHANGED] {
            self.outdated(notification);
        }
    }

    pub(crate) fn status_changed(&self) {
        self.status.send_modify(|count| *count = count.wrapping_add(1));
    }
}
