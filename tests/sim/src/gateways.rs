//! Gateways: each pod of a hub is one, which starts with the configuration in its Secret and takes pushes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::control::ControlKeys;
use mcp_hub_dataplane_api::document;
use mcp_hub_dataplane_api::gateway::{
    Definitions, GatewayConfig, GatewayStatus, InForce, ReplicaStatus, Target, Transport, Upstream, UpstreamActivity,
    UpstreamEra, UpstreamStatus,
};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_fakeapi::FakeApi;
use mcp_hub_operator::AskGateway;
use serde_json::Value;
use tokio::sync::watch;

use crate::bridges::{LATENCY, handshake, pod_at};
use crate::wire::Line;

/// How a remote server answers the gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    Ready,
    Unreachable,
    AuthRequired,
}

#[derive(Debug, Clone)]
pub struct Gateways(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: FakeApi,
    /// Configurations in force, by the pod's uid.
    replicas: Mutex<BTreeMap<String, GatewayConfig>>,
    remotes: Mutex<BTreeMap<String, Remote>>,
    /// Uids of servers that a call is under way to.
    called: Mutex<BTreeSet<String>>,
    /// Uids of remote servers that a gateway has ever reached.
    reached: Mutex<BTreeSet<String>>,
    changed: watch::Sender<u64>,
}

impl Gateways {
    pub fn new(api: FakeApi) -> Self {
        Self(Arc::new(Inner {
            api,
            replicas: Mutex::default(),
            remotes: Mutex::default(),
            called: Mutex::default(),
            reached: Mutex::default(),
            changed: watch::Sender::new(0),
        }))
    }

    /// How the remote server at this URL answers from now on.
    pub fn set(&self, url: &str, remote: Remote) {
        self.0.remotes.lock().unwrap().insert(url.to_owned(), remote);
        self.0.changed.send_modify(|count| *count += 1);
    }

    pub fn remote(&self, url: &str) -> Remote {
        self.0.remotes.lock().unwrap().get(url).copied().unwrap_or(Remote::Ready)
    }

    /// Whether calls to the server with this uid are under way from now on.
    pub fn call(&self, server_uid: &str, under_way: bool) {
        let mut called = self.0.called.lock().unwrap();
        let _changed = if under_way { called.insert(server_uid.to_owned()) } else { called.remove(server_uid) };
        drop(called);
        self.0.changed.send_modify(|count| *count += 1);
    }

    pub fn has_reached(&self, server_uid: &str) -> bool {
        self.0.reached.lock().unwrap().contains(server_uid)
    }

    /// What the gateway in this pod finds of a server.
    pub fn finds(&self, pod: &Value, server_uid: &str) -> Option<UpstreamStatus> {
        let config = self.config(pod)?;
        config.upstreams.iter().find(|upstream| upstream.uid == server_uid).map(|upstream| self.found(upstream))
    }

    /// The configuration that a pod serves; `None` if it serves none yet.
    pub fn config(&self, pod: &Value) -> Option<GatewayConfig> {
        pod["status"]["containerStatuses"][0]["state"]["running"].as_object()?;
        let uid = pod["metadata"]["uid"].as_str()?;
        let mut replicas = self.0.replicas.lock().unwrap();
        if let Some(config) = replicas.get(uid) {
            return Some(config.clone());
        }
        // It starts with what its Secret holds.
        let config = document::read(&self.mounted(pod, "config.json.gz")?).expect("a configuration");
        replicas.insert(uid.to_owned(), config.clone());
        Some(config)
    }

    fn keys(&self, pod: &Value) -> Option<ControlKeys> {
        let key: [u8; 32] = hex::decode(self.mounted(pod, "sealing-key")?).ok()?.try_into().ok()?;
        Some(ControlKeys::of(&key))
    }

    /// A file of the Secret that the pod mounts.
    fn mounted(&self, pod: &Value, file: &str) -> Option<Vec<u8>> {
        let namespace = pod["metadata"]["namespace"].as_str()?;
        let secret = pod["spec"]["volumes"][0]["secret"]["secretName"].as_str()?;
        let secret = self.0.api.get("Secret", namespace, secret)?;
        STANDARD.decode(secret["data"][file].as_str()?).ok()
    }

    fn status(&self, config: &GatewayConfig) -> ReplicaStatus {
        let found = |upstream: &Upstream| (upstream.uid.clone(), self.found(upstream));
        ReplicaStatus {
            status: GatewayStatus {
                version: config.version.clone(),
                upstreams: config.upstreams.iter().map(found).collect(),
                collisions: BTreeMap::new(),
            },
            sequence: config.sequence,
            draining: false,
            activity: config.upstreams.iter().map(|upstream| (upstream.uid.clone(), self.used(upstream))).collect(),
        }
    }

    fn used(&self, upstream: &Upstream) -> UpstreamActivity {
        let calls_in_flight = u32::from(self.0.called.lock().unwrap().contains(&upstream.uid));
        UpstreamActivity { calls_in_flight, idle_ms: None }
    }

    /// What the gateway in this pod knows of a server: it has met it, or was told.
    pub fn knows(&self, pod: &Value, server_uid: &str) -> Option<Definitions> {
        let upstreams = self.config(pod)?.upstreams;
        let upstream = upstreams.into_iter().find(|upstream| upstream.uid == server_uid)?;
        match upstream.target {
            Target::Available { .. } => Some(Definitions {
                era: Era::Legacy,
                introduction: format!(r#"{{"serverInfo":{{"name":"{server_uid}"}}}}"#),
                tools: Some(r#"[{"name":"echo"}]"#.to_owned()),
                prompts: None,
                resources: None,
                resource_templates: None,
            }),
            Target::Asleep | Target::Unavailable { .. } => upstream.definitions,
        }
    }

    fn found(&self, upstream: &Upstream) -> UpstreamStatus {
        let Target::Available { url, .. } = &upstream.target else { return UpstreamStatus::Unknown };
        let remote = upstream.era == UpstreamEra::Probe || upstream.transport != Transport::StreamableHttp;
        match self.remote(url) {
            _ if !remote => UpstreamStatus::Unknown,
            Remote::Ready => {
                self.0.reached.lock().unwrap().insert(upstream.uid.clone());
                UpstreamStatus::Ready { handshake: handshake(url) }
            }
            Remote::Unreachable => UpstreamStatus::Failed { message: "nothing answers".to_owned() },
            Remote::AuthRequired => UpstreamStatus::AuthRequired { message: "401".to_owned() },
        }
    }

    fn push(&self, pod: &Value, sealed: &[u8]) -> Option<InForce> {
        let uid = pod["metadata"]["uid"].as_str()?;
        let current = self.config(pod)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let push = self.keys(pod)?.open(&current.hub.uid, sealed, u64::try_from(now).unwrap()).ok()?;
        let in_force = if push.config.sequence < current.sequence { current } else { push.config };
        let answer = InForce { version: in_force.version.clone(), sequence: in_force.sequence };
        self.0.replicas.lock().unwrap().insert(uid.to_owned(), in_force);
        self.0.changed.send_modify(|count| *count += 1);
        Some(answer)
    }
}

/// The way of one operator to the gateways.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) gateways: Gateways,
    pub(crate) line: Line,
}

#[async_trait]
impl AskGateway for Way {
    async fn push(&self, address: &str, _: u16, sealed: Vec<u8>) -> Option<InForce> {
        if self.line.is_dead() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LATENCY).await;
        self.gateways.push(&pod_at(&self.gateways.0.api, address)?, &sealed)
    }

    async fn definitions(&self, address: &str, _: u16, token: &SecretString, server: &str) -> Option<Definitions> {
        if self.line.is_dead() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LATENCY).await;
        let pod = pod_at(&self.gateways.0.api, address)?;
        self.gateways.keys(&pod).filter(|keys| keys.token() == token)?;
        self.gateways.knows(&pod, server)
    }

    async fn events(&self, address: &str, _: u16, token: &SecretString) -> BoxStream<'static, ReplicaStatus> {
        if self.line.is_dead() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LATENCY).await;
        let gateways = self.gateways.clone();
        let pod = pod_at(&gateways.0.api, address);
        let known = pod.filter(|pod| gateways.keys(pod).is_some_and(|keys| keys.token() == token));
        let Some(pod) = known else { return stream::empty().boxed() };
        let changed = gateways.0.changed.subscribe();
        stream::unfold((gateways, pod, changed, None), |(gateways, pod, mut changed, last)| async move {
            loop {
                changed.borrow_and_update();
                let status = gateways.status(&gateways.config(&pod)?);
                if last.as_ref() != Some(&status) {
                    return Some((status.clone(), (gateways, pod, changed, Some(status))));
                }
                changed.changed().await.ok()?;
            }
        })
        .boxed()
    }
}
