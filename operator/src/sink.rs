//! Hubs of a cluster: a gateway's pods, the Secret that they mount, and the push that makes a change reach them at once.

use std::collections::{BTreeMap, BTreeSet};
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
use mcp_hub_crds::hub::{AuthMode, Tls};
use mcp_hub_dataplane_api::control::ControlKeys;
use mcp_hub_dataplane_api::document;
use mcp_hub_dataplane_api::gateway::{Definitions, GatewayConfig, Target, UpstreamStatus};
use mcp_hub_reconcile::error::{Retry, RuntimeError, SinkError};
use mcp_hub_reconcile::exposure::Exposure;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::lower::{Change, Object, ObjectId};
use mcp_hub_reconcile::observed::{Failure, Observed};
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::plan::{is_in_sync, plan};
use mcp_hub_reconcile::ports::{
    Addresses, Demand, Door, GatewaySink, HubState, Runtime, RuntimeEvent, SinkEvent, Step, news,
};
use mcp_hub_reconcile::status::reason;
use mcp_hub_reconcile::workload::{GatewayWorkload, Workload};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::certificates::Certificates;
use crate::children::{ChildKind, hide};
use crate::definitions::Kept;
use crate::gateways::{AskGateway, Gateways};
use crate::labels;
use crate::lower::{
    CONFIG_KEY, SEALING_KEY, TOKEN_KEY, URL_KEY, certificate_secret, config_secret, gateway_name, service_names,
    token_secret,
};
use crate::runtime::{KubeRuntime, api_error};
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
    certificates: Certificates,
    events: broadcast::Sender<SinkEvent>,
    /// Whether all gateways that there were at the start are followed.
    attended: Arc<watch::Sender<bool>>,
    _following: JoinSet<()>,
}

impl fmt::Debug for KubeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeSink").field("runtime", &self.runtime).finish_non_exhaustive()
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
        let certificates = Certificates::new(runtime.client());
        let mut following = JoinSet::new();
        following.spawn(follow);
        let is_left = {
            let runtime = runtime.clone();
            move |hub: &OwnerKey| runtime.has_any_of(&hub.uid)
        };
        following.spawn(certificates.clone().follow(is_left, events.clone()));
        Arc::new(Self {
            runtime,
            installation,
            gateways,
            kept: Kept::default(),
            wake,
            certificates,
            events,
            attended,
            _following: following,
        })
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

    /// The configuration with what servers at rest offer, as far as there is room: a hub may come to select more of them than
    /// were put to rest with it. The others are woken, and then keep their pods.
    async fn define(&self, hub: &OwnerKey, config: &GatewayConfig) -> Result<GatewayConfig, SinkError> {
        let mut config = config.clone();
        let (mut stored, mut held) = (None, BTreeSet::new());
        for upstream in &mut config.upstreams {
            let uid = &upstream.uid;
            if upstream.target != Target::Asleep {
                self.kept.forget(uid);
                continue;
            }
            if self.kept.get(uid).is_none() {
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
                found.into_iter().for_each(|found| self.kept.insert(uid, found));
            }
            held.insert(uid.clone());
            upstream.definitions = self.kept.get(uid).filter(|_| self.kept.fit(&held));
            if upstream.definitions.is_none() {
                // Only the server itself can tell, now or to every gateway that starts.
                held.remove(uid);
                self.gateways.ask_for(uid);
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
    async fn credentials(&self, hub: &OwnerKey) -> Result<(), SinkError> {
        let observed = self.runtime.observe(hub).await.map_err(sink_error)?;
        let token = self.installation.hub_token(&hub.uid, 0);
        let data = json!({
            TOKEN_KEY: STANDARD.encode(token.expose_secret()),
            URL_KEY: STANDARD.encode(endpoint(hub, &observed)),
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

    /// Makes, changes or removes what lets clients in from outside. What fails is told by kind, and stops nothing else.
    async fn open(&self, hub: &OwnerKey, steps: Vec<Step>) -> BTreeMap<ChildKind, Failure> {
        let mut failures = BTreeMap::new();
        for step in steps {
            if let (Some(kind), Err(error)) = (kind_of(&step), self.runtime.execute(hub, &step).await) {
                failures.insert(kind, told(sink_error(error)));
            }
        }
        failures
    }

    /// Whether a hub's gateways can start, and what is so of their certificate. Where cert-manager is to write it, why it has
    /// not: the one that is there may be of another host, or about to expire.
    async fn certificate(
        &self,
        hub: &OwnerKey,
        tls: Option<&Tls>,
        failures: &BTreeMap<ChildKind, Failure>,
    ) -> (bool, Option<Result<String, Failure>>) {
        let failure = || failures.get(&ChildKind::Certificate).cloned();
        let Some(tls) = tls else {
            self.certificates.forget(hub);
            return (true, failure().map(Err));
        };
        let name = certificate_secret(hub, tls);
        let checked = match self.certificates.check(hub, &name).await {
            Ok(checked) => checked,
            Err(error) => Err(told(sink_error(api_error("read", hub, &ObjectId::new("Secret", &name), error)))),
        };
        let issuing = || self.runtime.child(ChildKind::Certificate, &hub.namespace, &gateway_name(hub))?.failure;
        let usable = checked.is_ok();
        let issued = tls.cert_manager_issuer.as_ref().and_then(|_| failure().or_else(issuing)).map_or(Ok(()), Err);
        (usable, Some(issued.and(checked).map(|()| format!("Secret {name} holds the certificate"))))
    }

    /// Whether clients come in from outside.
    fn exposure(
        &self,
        hub: &OwnerKey,
        wanted: Option<&Exposure>,
        mut failures: BTreeMap<ChildKind, Failure>,
    ) -> Option<Result<String, Failure>> {
        let kind = match wanted {
            // One that is to go and does not.
            None => return failures.remove(&ChildKind::Ingress).or(failures.remove(&ChildKind::HttpRoute)).map(Err),
            Some(Exposure::Ingress(_)) => ChildKind::Ingress,
            Some(Exposure::HttpRoute(_)) => ChildKind::HttpRoute,
        };
        let name = gateway_name(hub);
        let said = || self.runtime.child(kind, &hub.namespace, &name)?.failure;
        Some(match failures.remove(&kind).or_else(said) {
            Some(failure) => Err(failure),
            None => Ok(format!("{} {name} leads to the gateways", kind.name())),
        })
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
    async fn apply(&self, hub: &OwnerKey, hub_spec: &MCPHub, config: &GatewayConfig) -> Result<Door, SinkError> {
        if hub_spec.spec.auth.as_ref().and_then(|auth| auth.mode) == Some(AuthMode::None) {
            return Err(failed(
                reason::UNSUPPORTED,
                "spec.auth.mode: None is for loopback only, and a cluster's endpoint is none".to_owned(),
                Some("use Bearer"),
            ));
        }
        let gateway = hub_spec.spec.gateway.as_ref();
        let workload = GatewayWorkload {
            owner: hub.clone(),
            replicas: gateway.and_then(|gateway| gateway.replicas).unwrap_or(REPLICAS),
            // The schema holds it between 1 and 65535.
            port: gateway.and_then(|gateway| u16::try_from(gateway.port?).ok()).unwrap_or(PORT),
            tls: gateway.and_then(|gateway| gateway.tls.clone()),
            exposure: gateway.and_then(Exposure::of),
        };
        let lowered = self
            .runtime
            .lower(&Workload::Gateway(Box::new(workload.clone())))
            .map_err(|refusal| failed(reason::UNSUPPORTED, refusal.to_string(), refusal.hint.as_deref()))?;
        self.runtime.ready().await;
        // The Secret first: pods do not start without it.
        let config = self.store(hub, &self.define(hub, config).await?).await?;
        let observed = self.runtime.observe(hub).await.map_err(sink_error)?;
        let (outside, inside): (Vec<Step>, Vec<Step>) = plan(&lowered, &observed).into_iter().partition(is_of_door);
        let failures = self.open(hub, outside).await;
        let (usable, certificate) = self.certificate(hub, workload.tls.as_ref(), &failures).await;
        // Without its certificate a new gateway cannot start, and one that runs is better left alone.
        if usable {
            for step in inside {
                self.runtime.execute(hub, &step).await.map_err(sink_error)?;
            }
        }
        self.credentials(hub).await?;
        self.push(hub, &config).await?;
        Ok(Door { certificate, exposure: self.exposure(hub, workload.exposure.as_ref(), failures) })
    }

    fn pace(&self) -> Duration {
        PACE
    }

    fn addresses(&self, hub: &OwnerKey) -> Addresses {
        Addresses {
            hosts: service_names(hub),
            wake: self.wake.as_ref().map(|operator| format!("{operator}{}{}", wake::PATH, hub.uid)),
        }
    }

    async fn remove(&self, hub: &OwnerKey) -> Result<(), SinkError> {
        self.certificates.forget(hub);
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
        Ok(Some(HubState {
            endpoint: endpoint(hub, &observed),
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
        // Servers that were deleted at rest are asked for by nobody any more.
        self.kept.retain(|uid| self.runtime.has_any_of(uid));
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

/// The URL of a hub by what there is of it: what leads to it from outside, else its Service.
fn endpoint(hub: &OwnerKey, observed: &Observed) -> String {
    let name = gateway_name(hub);
    let found = |kind: ChildKind| {
        let id = ObjectId::new(kind.name(), &*name);
        observed.objects.iter().find(|object| object.id == id).map(|object| &object.body["spec"])
    };
    let ingress = found(ChildKind::Ingress).and_then(|spec| {
        Some((if spec["tls"].is_null() { "http" } else { "https" }, spec["rules"][0]["host"].as_str()?))
    });
    // What its listener speaks the Gateway says, which is not ours to read.
    let route = || Some(("https", found(ChildKind::HttpRoute)?["hostnames"][0].as_str()?));
    if let Some((scheme, host)) = ingress.or_else(route) {
        return format!("{scheme}://{host}/mcp");
    }
    let port = found(ChildKind::Service).map(|spec| &spec["ports"][0]);
    let scheme = if port.is_some_and(|port| port["appProtocol"] == "https") { "https" } else { "http" };
    let port = port.and_then(|port| port["port"].as_u64()).unwrap_or(u64::from(PORT));
    format!("{scheme}://{name}.{}.svc:{port}/mcp", hub.namespace)
}

/// Whether a step is about what only lets clients in.
fn is_of_door(step: &Step) -> bool {
    kind_of(step).is_some_and(ChildKind::is_of_door)
}

fn kind_of(step: &Step) -> Option<ChildKind> {
    ChildKind::parse(match step {
        Step::Prepare(object) | Step::Apply(object) | Step::Replace(object) => &object.id.kind,
        Step::Remove(id) => &id.kind,
    })
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Milliseconds since the epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What stops nothing else, and is told by a condition.
fn told(SinkError { reason, message, hint, retry }: SinkError) -> Failure {
    Failure { reason, message, hint, retry }
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
