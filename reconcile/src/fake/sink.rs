//! A gateway sink that remembers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use kube::ResourceExt;
use mcp_hub_crds::MCPHub;
use mcp_hub_dataplane_api::gateway::{GatewayConfig, UpstreamStatus};
use tokio::sync::broadcast;

use super::Writes;
use crate::error::{Retry, SinkError};
use crate::exposure::Exposure;
use crate::owner::OwnerKey;
use crate::ports::{Addresses, Demand, Door, GatewaySink, HubState, SinkEvent, news};

/// Clones are the same sink.
#[derive(Debug, Clone)]
pub struct FakeSink {
    gateways: Arc<Mutex<Gateways>>,
    events: broadcast::Sender<SinkEvent>,
    writes: Writes,
}

#[derive(Debug, Default)]
struct Gateways {
    served: BTreeMap<OwnerKey, Served>,
    upstreams: BTreeMap<String, UpstreamStatus>,
    collisions: BTreeMap<String, Vec<String>>,
    pace: Duration,
    demand: Option<Demand>,
    definitions_lost: bool,
}

#[derive(Debug, Clone)]
struct Served {
    config: GatewayConfig,
    port: i32,
    replicas: i32,
}

impl FakeSink {
    pub fn new(writes: Writes) -> Self {
        Self { gateways: Arc::default(), events: broadcast::Sender::new(64), writes }
    }

    /// The configuration in force for the hub of this name.
    pub fn config(&self, hub: &str) -> Option<GatewayConfig> {
        self.gateways().served.iter().find(|(owner, _)| owner.name == hub).map(|(_, served)| served.config.clone())
    }

    /// Forgets everything, as gateways do that live in a daemon which died.
    pub fn forget(&self) {
        *self.gateways() = Gateways::default();
    }

    /// A gateway learns something of the remote server with this uid.
    pub fn set_upstream(&self, server_uid: &str, status: UpstreamStatus) {
        self.gateways().upstreams.insert(server_uid.to_owned(), status);
        // Nobody listening is no loss.
        self.events.send(SinkEvent::Upstream(server_uid.to_owned())).ok();
    }

    /// Tools that the gateways leave out of a `Bare` hub.
    pub fn set_collisions(&self, collisions: BTreeMap<String, Vec<String>>) {
        self.gateways().collisions = collisions;
    }

    /// What gateways say of the demand for every server from now on, as a sink whose gateways can have servers woken.
    pub fn set_demand(&self, server_uid: &str, demand: Demand) {
        self.gateways().demand = Some(demand);
        self.events.send(SinkEvent::Upstream(server_uid.to_owned())).ok();
    }

    /// Whether what servers offer cannot be kept.
    pub fn lose_definitions(&self, lost: bool) {
        self.gateways().definitions_lost = lost;
    }

    /// As a sink for which each configuration is a write.
    pub fn set_pace(&self, pace: Duration) {
        self.gateways().pace = pace;
    }

    fn gateways(&self) -> std::sync::MutexGuard<'_, Gateways> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl GatewaySink for FakeSink {
    async fn apply(&self, hub: &OwnerKey, hub_spec: &MCPHub, config: &GatewayConfig) -> Result<Door, SinkError> {
        let gateway = hub_spec.spec.gateway.as_ref();
        let door = Door {
            certificate: gateway.and_then(|g| g.tls.as_ref()).map(|tls| Ok(format!("{tls:?}"))),
            exposure: gateway.and_then(Exposure::of).map(|exposure| Ok(format!("{exposure:?}"))),
        };
        let served = Served {
            config: config.clone(),
            port: gateway.and_then(|g| g.port).unwrap_or(7337),
            replicas: gateway.and_then(|g| g.replicas).unwrap_or(1),
        };
        let same = |old: &Served| {
            old.config.version == config.version && old.port == served.port && old.replicas == served.replicas
        };
        if self.gateways().served.get(hub).is_some_and(same) {
            return Ok(door);
        }
        self.writes.write(format!("sink: apply {}", hub_spec.name_any()), || {
            self.gateways().served.insert(hub.clone(), served);
        })?;
        self.events.send(SinkEvent::Hub(hub.clone())).ok();
        Ok(door)
    }

    async fn remove(&self, hub: &OwnerKey) -> Result<(), SinkError> {
        if !self.gateways().served.contains_key(hub) {
            return Ok(());
        }
        self.writes.write(format!("sink: remove {}", hub.name), || {
            self.gateways().served.remove(hub);
        })?;
        Ok(())
    }

    fn pace(&self) -> Duration {
        self.gateways().pace
    }

    fn addresses(&self, _: &OwnerKey) -> Addresses {
        let wake = self.gateways().demand.map(|_| "http://operator/wake".to_owned());
        Addresses { hosts: Vec::new(), wake }
    }

    async fn observe(&self, hub: &OwnerKey) -> Result<Option<HubState>, SinkError> {
        let gateways = self.gateways();
        Ok(gateways.served.get(hub).map(|served| HubState {
            endpoint: format!("http://127.0.0.1:{}/mcp", served.port),
            replicas: served.replicas,
            serving: served.replicas,
            problem: None,
            synced: served.replicas,
            version: served.config.version.clone(),
            collisions: gateways.collisions.clone(),
        }))
    }

    async fn upstream(&self, server_uid: &str) -> Option<UpstreamStatus> {
        self.gateways().upstreams.get(server_uid).cloned()
    }

    async fn demand(&self, _: &str, hubs: &[OwnerKey]) -> Demand {
        self.gateways().demand.filter(|_| !hubs.is_empty()).unwrap_or(Demand::Unwakeable)
    }

    async fn keep_definitions(&self, server_uid: &str, _: &[OwnerKey]) -> Result<(), SinkError> {
        if !self.gateways().definitions_lost {
            return Ok(());
        }
        let message = format!("no gateway knows what {server_uid} offers");
        Err(SinkError { reason: "DefinitionsUnknown", message, hint: None, retry: Retry::Backoff })
    }

    fn events(&self) -> BoxStream<'static, SinkEvent> {
        news(&self.events)
    }
}
