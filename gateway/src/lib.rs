//! The MCP data plane: one endpoint over many servers.
//!
//! `/mcp` offers all servers of a hub under prefixed names ([`aggregate`]), `/servers/NAME/mcp` one server under its own.
//! Clients and servers of either era meet here, and only here are eras translated ([`translate`]). Calls pass as raw JSON:
//! an envelope and a name are looked at, the rest is bytes.

mod aggregate;
mod asked;
mod body;
mod client;
mod conversation;
mod cursors;
mod ears;
mod exchange;
mod failures;
mod fields;
mod flights;
mod guard;
mod interests;
mod metrics;
mod names;
mod outgoing;
mod param_headers;
mod parked;
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
mod told;
mod translate;
mod upstream;
mod uris;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mcp_hub_dataplane_api::gateway::{GatewayConfig, GatewayStatus, UpstreamStatus};
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
use crate::seal::Seal;
use crate::session::SessionKeys;
use crate::told::Told;
use crate::upstream::{HttpClient, Watched};

/// A gateway; cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    served: ArcSwap<Served>,
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
            sessions: SessionKeys::new(seal.clone()),
            http: upstream::http_client()?,
            flights: Flights::default(),
            asked: Asked::default(),
            hearers: Hearers::default(),
            interests: Interests::default(),
            told: broadcast::Sender::new(told::BACKLOG),
            parked: Parked::new(seal.clone()).ok_or(GatewayError::Random)?,
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
            served.upstreams.iter().map(|(name, upstream)| (name.clone(), upstream.upstream.status())).collect();
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

    /// Serves until `shutdown` resolves; then no connection is taken, and what is under way gets ten seconds.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        serve::run(listener, self.0.clone(), shutdown).await
    }
}

impl Inner {
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
