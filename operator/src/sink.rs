//! Hubs of a cluster: a gateway's pods, the Secret that they mount, and the push that makes a change reach them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use mcp_hub_crds::MCPHub;
use mcp_hub_crds::hub::AuthMode;
use mcp_hub_dataplane_api::control::ControlKeys;
use mcp_hub_dataplane_api::document;
use mcp_hub_dataplane_api::gateway::{Definitions, GatewayConfig, Target, UpstreamStatus};
use mcp_hub_reconcile::error::{Retry, RuntimeError, SinkError};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::lower::{Change, Object, ObjectId};
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::plan::{is_in_sync, plan};
use mcp_hub_reconcile::ports::{
    Addresses, Demand, GatewaySink, HubState, Runtime, RuntimeEvent, SinkEvent, Step, news,
};
use mcp_hub_reconcile::workload::{GatewayWorkload, Workload};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::children::{ChildKind, hide};
use crate::definitions::Kept;
use crate::gateways::{AskGateway, Gateways};
use crate::labels;
use crate::lower::{CONFIG_KEY, SEALING_KEY, TOKEN_KEY, URL_KEY, config_secret, gateway_name, token_secret};
use crate::runtime::KubeRuntime;
use crate::wake;

const EVENTS: usize = 4096;
/// A Secret and a push for each of hundreds of servers that start would be hundreds of each; a change is to reach every
/// replica within a second.
const PACE: Duration = Duration::from_millis(750);
/// Replicas of a gateway whose hub names no number.
const REPLICAS: i32 = 2;
const PORT: u16 = 8080;
/// A Secret holds 1 MiB with everything in it.
const SECRET_MAX: usize = 900 << 10;
/// Annotation with the order of the configuration in a Secret.
const SEQUENCE: &str = "mcphub.io/sequence";
const VERSION: &str = "mcphub.io/config-version";

/// The gateways of a cluster. They end with the last value.
pub struct KubeSink {
    runtime: Arc<KubeRuntime>,
    installation: Installation,
    gateways: Arc<Gateways>,
    kept: Kept,
    /// Where gateways reach the operator, if they can.
    wake: Option<String>,
    events: broadcast::Sender<SinkEvent>,
    /// Whether all gateways that there were at the start are followed.
    attended: Arc<watch::Sender<bool>>,
    following: JoinHandle<()>,
}

impl fmt::Debug for KubeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeSink").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

impl Drop for KubeSink {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl KubeSink {
    /// `wake`: address under which gateways reach [`wake::serve`](crate::wake::serve), such as `http://operator.mcp:8082`;
    /// without it no server is put to rest.
    pub fn start(
        runtime: Arc<KubeRuntime>,
        installation: Installation,
        ask: Arc<dyn AskGateway>,
        wake: Option<String>,
    ) -> Arc<Self> {
        let events = broadcast::Sender::new(EVENTS);
        let gateways = Arc::new(Gateways::new(ask, installation.clone(), events.clone()));
        let attended = Arc::new(watch::Sender::new(false));
        let follow = follow_pods(runtime.clone(), gateways.clone(), events.clone(), attended.clone());
        let following = tokio::spawn(follow);
        Arc::new(Self { runtime, installation, gateways, kept: Kept::default(), wake, events, attended, following })
    }

    /// Waits until each gateway that runs has said once what it does, or seems not to answer. Without, the first passes of a
    /// new operator would take what is not known yet for what is not so.
    async fn heard(&self, hub: Option<&OwnerKey>) {
        // The sender lives in this very value.
        self.attended.subscribe().wait_for(|attended| *attended).await.ok();
        self.gateways.heard(hub).await;
    }

    /// Takes note that a gateway has a call for this server.
    pub(crate) fn ask_for(&self, server_uid: &str) {
        self.gateways.ask_for(server_uid);
    }

    /// The configuration with what servers at rest offer.
    async fn define(&self, hub: &OwnerKey, config: &GatewayConfig) -> Result<GatewayConfig, SinkError> {
        let mut config = config.clone();
        let mut stored = None;
        for upstream in &mut config.upstreams {
            let uid = &upstream.uid;
            if upstream.target != Target::Asleep {
                self.kept.forget(uid);
                continue;
            }
            if let Some(kept) = self.kept.get(uid) {
                upstream.definitions = Some(kept);
                continue;
            }
            let stored = match &stored {
                Some(stored) => stored,
                None => stored.insert(self.stored_definitions(hub).await?),
            };
            let found = match stored.get(uid) {
                Some(stored) => Some(stored.clone()),
                None => {
                    self.heard(None).await;
                    self.gateways.definitions(uid).await
                }
            };
            match found {
                Some(found) => {
                    self.kept.insert(uid, found.clone());
                    upstream.definitions = Some(found);
                }
                // Only the server itself can tell.
                None => self.gateways.ask_for(uid),
            }
        }
        Ok(config)
    }

    /// The definitions in the Secret of before.
    async fn stored_definitions(&self, hub: &OwnerKey) -> Result<BTreeMap<String, Definitions>, SinkError> {
        let value = self.runtime.secret_value(hub, &config_secret(hub), CONFIG_KEY).await.map_err(sink_error)?;
        // What cannot be read is about to be written anew.
        let config = value.and_then(|value| document::read(&value).ok());
        let upstreams = config.into_iter().flat_map(|config| config.upstreams);
        Ok(upstreams.filter_map(|upstream| Some((upstream.uid, upstream.definitions?))).collect())
    }

    /// Writes the configuration's Secret, if what lies there is another.
    async fn store(&self, hub: &OwnerKey, config: &GatewayConfig) -> Result<GatewayConfig, SinkError> {
        let name = config_secret(hub);
        let known = self.runtime.secret(hub, &name).await.map_err(sink_error)?.map(|known| known.observed());
        let annotations = known.as_ref().map(|known| &known.body["metadata"]["annotations"]);
        let annotation = |name: &str| annotations.and_then(|annotations| annotations[name].as_str());
        let stored: u64 = annotation(SEQUENCE).and_then(|number| number.parse().ok()).unwrap_or(0);
        let same = annotation(VERSION) == Some(&config.version);
        // Later than any that was, also when the Secret was lost or the clock went back.
        let sequence = if same { stored } else { stored.saturating_add(1).max(now_ms()) };
        let config = GatewayConfig { sequence, ..config.clone() };
        let zipped = document::write(&config).map_err(|error| failed("ConfigFailed", error.to_string(), None))?;
        if zipped.len() > SECRET_MAX {
            return Err(failed(
                "ConfigTooLarge",
                format!(
                    "the configuration of hub {hub} is {} KiB, and a Secret holds no more than 900",
                    zipped.len() >> 10
                ),
                Some("let the hub select fewer servers, and another hub the rest"),
            ));
        }
        let key = hex::encode(self.installation.sealing_key(&hub.uid));
        let data = json!({CONFIG_KEY: STANDARD.encode(&zipped), SEALING_KEY: STANDARD.encode(key)});
        let annotations = json!({SEQUENCE: sequence.to_string(), VERSION: config.version});
        self.secret(hub, name, annotations, data).await?;
        Ok(config)
    }

    /// The token and the address of the hub, for people and their clients.
    async fn credentials(&self, hub: &OwnerKey, port: u16) -> Result<(), SinkError> {
        let token = self.installation.hub_token(&hub.uid, 0);
        let data = json!({
            TOKEN_KEY: STANDARD.encode(token.expose_secret()),
            URL_KEY: STANDARD.encode(endpoint(hub, port)),
        });
        self.secret(hub, token_secret(&hub.name), json!({}), data).await
    }

    async fn secret(&self, hub: &OwnerKey, name: String, annotations: Value, data: Value) -> Result<(), SinkError> {
        let mut body = json!({
            "metadata": {
                "labels": labels::of(hub), "ownerReferences": [labels::reference(hub)], "annotations": annotations,
            },
            "data": data,
        });
        // The object is compared by hashes; its values go to the API server only.
        hide(&mut body);
        let object = Object::new(ObjectId::new("Secret", name), ChildKind::Secret.stage(), Change::InPlace, body);
        let known = self.runtime.secret(hub, &object.id.name).await.map_err(sink_error)?;
        if known.is_some_and(|known| is_in_sync(&object, &known.observed())) {
            return Ok(());
        }
        self.runtime.apply(hub, &object, Some(&data)).await.map_err(sink_error)
    }

    /// Brings the configuration to replicas that serve another one. A replica that cannot be reached reads the Secret.
    async fn push(&self, hub: &OwnerKey, config: &GatewayConfig) -> Result<(), SinkError> {
        let known = self.gateways.of(hub);
        let pods = self.runtime.pods_of(hub);
        let behind: Vec<_> = pods
            .iter()
            .filter(|pod| known.get(&pod.uid).is_some_and(|status| status.status.version != config.version))
            .collect();
        if behind.is_empty() {
            return Ok(());
        }
        let keys = ControlKeys::of(&self.installation.sealing_key(&hub.uid));
        let sealed = keys.seal(config, now_ms()).map_err(|error| failed("ConfigFailed", error.to_string(), None))?;
        join_all(behind.into_iter().map(|pod| self.gateways.push(pod, sealed.clone(), &config.version))).await;
        Ok(())
    }
}

#[async_trait]
impl GatewaySink for KubeSink {
    async fn apply(&self, hub: &OwnerKey, hub_spec: &MCPHub, config: &GatewayConfig) -> Result<(), SinkError> {
        if hub_spec.spec.auth.as_ref().and_then(|auth| auth.mode) == Some(AuthMode::None) {
            return Err(failed(
                "Unsupported",
                "spec.auth.mode: None is for loopback only, and a cluster's endpoint is none".to_owned(),
                Some("use Bearer"),
            ));
        }
        let gateway = hub_spec.spec.gateway.as_ref();
        // The schema holds it between 1 and 65535.
        let port = gateway.and_then(|gateway| u16::try_from(gateway.port?).ok()).unwrap_or(PORT);
        let replicas = gateway.and_then(|gateway| gateway.replicas).unwrap_or(REPLICAS);
        self.runtime.ready().await;
        // The Secret first: pods do not start without it.
        let config = self.store(hub, &self.define(hub, config).await?).await?;
        self.credentials(hub, port).await?;
        let workload = Workload::Gateway(Box::new(GatewayWorkload { owner: hub.clone(), replicas, port }));
        let lowered = self
            .runtime
            .lower(&workload)
            .map_err(|refusal| failed("Unsupported", refusal.to_string(), refusal.hint.as_deref()))?;
        let observed = self.runtime.observe(hub).await.map_err(sink_error)?;
        for step in plan(&lowered, &observed) {
            self.runtime.execute(hub, &step).await.map_err(sink_error)?;
        }
        self.push(hub, &config).await
    }

    fn pace(&self) -> Duration {
        PACE
    }

    fn addresses(&self, hub: &OwnerKey) -> Addresses {
        let (name, namespace) = (gateway_name(hub), &hub.namespace);
        let tails = [
            String::new(),
            format!(".{namespace}"),
            format!(".{namespace}.svc"),
            format!(".{namespace}.svc.cluster.local"),
        ];
        Addresses {
            hosts: tails.into_iter().map(|tail| format!("{name}{tail}")).collect(),
            wake: self.wake.as_ref().map(|operator| format!("{operator}{}{}", wake::PATH, hub.uid)),
        }
    }

    async fn remove(&self, hub: &OwnerKey) -> Result<(), SinkError> {
        let observed = self.runtime.observe(hub).await.map_err(sink_error)?;
        for step in plan(&mcp_hub_reconcile::lower::Lowered::default(), &observed) {
            self.runtime.execute(hub, &step).await.map_err(sink_error)?;
        }
        for name in [config_secret(hub), token_secret(&hub.name)] {
            self.runtime.execute(hub, &Step::Remove(ObjectId::new("Secret", name))).await.map_err(sink_error)?;
        }
        Ok(())
    }

    async fn observe(&self, hub: &OwnerKey) -> Result<Option<HubState>, SinkError> {
        self.heard(Some(hub)).await;
        let observed = self.runtime.observe(hub).await.map_err(sink_error)?;
        let deployment = observed.objects.iter().find(|object| object.id.kind == "Deployment");
        let Some(deployment) = deployment else { return Ok(None) };
        let pods: Vec<_> = self.runtime.pods_of(hub).into_iter().filter(|pod| !pod.ending).collect();
        let secret = self.runtime.secret(hub, &config_secret(hub)).await.map_err(sink_error)?;
        let secret = secret.map(|secret| secret.observed());
        let version = secret
            .as_ref()
            .and_then(|secret| secret.body["metadata"]["annotations"][VERSION].as_str())
            .unwrap_or_default();
        let replicas = self.gateways.of(hub);
        let collisions = replicas.values().flat_map(|replica| replica.status.collisions.clone()).collect();
        let wanted = deployment.body["spec"]["replicas"].as_i64().unwrap_or_default();
        let synced =
            pods.iter().filter(|pod| replicas.get(&pod.uid).is_some_and(|said| said.status.version == version));
        let service = ObjectId::new("Service", gateway_name(hub));
        let service = observed.objects.iter().find(|object| object.id == service);
        let port = service.and_then(|service| service.body["spec"]["ports"][0]["port"].as_u64());
        Ok(Some(HubState {
            endpoint: endpoint(hub, port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT)),
            replicas: i32::try_from(wanted).unwrap_or(i32::MAX),
            serving: count(pods.iter().filter(|pod| pod.ready).count()),
            problem: observed.failure.map(|failure| match failure.hint {
                Some(hint) => format!("{} (hint: {hint})", failure.message),
                None => failure.message,
            }),
            synced: count(synced.count()),
            version: version.to_owned(),
            collisions,
        }))
    }

    async fn upstream(&self, server_uid: &str) -> Option<UpstreamStatus> {
        self.heard(None).await;
        self.gateways.upstream(server_uid)
    }

    async fn demand(&self, server_uid: &str, hubs: &[OwnerKey]) -> Demand {
        if self.wake.is_none() || hubs.is_empty() {
            return Demand::Unwakeable;
        }
        self.gateways.demand(server_uid, hubs)
    }

    async fn keep_definitions(&self, server_uid: &str, hubs: &[OwnerKey]) -> Result<(), SinkError> {
        // What was kept of it may be of an earlier rest.
        let Some(found) = self.gateways.definitions(server_uid).await else {
            return Err(failed("DefinitionsUnknown", "no gateway could tell what the server offers".to_owned(), None));
        };
        self.kept.insert(server_uid, found);
        for hub in hubs {
            let mut servers = self.gateways.offered(hub);
            servers.insert(server_uid.to_owned());
            if !self.kept.fit(&servers) {
                self.kept.forget(server_uid);
                let message = format!("the configuration of hub {hub} has no room for what the server offers");
                return Err(failed("ConfigTooLarge", message, None));
            }
        }
        Ok(())
    }

    fn events(&self) -> BoxStream<'static, SinkEvent> {
        news(&self.events)
    }
}

/// Follows the pods of gateways by the runtime's events.
async fn follow_pods(
    runtime: Arc<KubeRuntime>,
    gateways: Arc<Gateways>,
    events: broadcast::Sender<SinkEvent>,
    attended: Arc<watch::Sender<bool>>,
) {
    let mut changes = runtime.events();
    runtime.ready().await;
    let hubs = async || {
        let owners = runtime.owners().await.unwrap_or_default();
        owners.into_iter().filter(|owner| owner.kind == OwnerKind::MCPHub).collect::<Vec<_>>()
    };
    let mut due = hubs().await;
    loop {
        for hub in due {
            gateways.attend(&hub, &runtime.pods_of(&hub));
            events.send(SinkEvent::Hub(hub)).ok();
        }
        attended.send_if_modified(|attended| !std::mem::replace(attended, true));
        due = match changes.next().await {
            Some(RuntimeEvent::Changed(owner)) if owner.kind == OwnerKind::MCPHub => vec![owner],
            Some(RuntimeEvent::Changed(_)) => Vec::new(),
            Some(RuntimeEvent::Resync) => hubs().await,
            None => return,
        };
    }
}

fn endpoint(hub: &OwnerKey, port: u16) -> String {
    format!("http://{}.{}.svc:{port}/mcp", gateway_name(hub), hub.namespace)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Milliseconds since the epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn failed(reason: &'static str, message: String, hint: Option<&str>) -> SinkError {
    SinkError { reason, message, hint: hint.map(str::to_owned), retry: Retry::OnChange }
}

fn sink_error(error: RuntimeError) -> SinkError {
    let message = match &error.source {
        Some(source) => format!("{}: {source}", error.message),
        None => error.message.clone(),
    };
    SinkError { reason: error.reason, message, hint: error.hint, retry: error.retry }
}
