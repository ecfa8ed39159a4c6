//! Bridges: each pod of a server has one, which says what the script says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::launch::{LAUNCH_ENV, LaunchSpec};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Handshake, Phase, ToolsSummary};
use mcp_hub_fakeapi::FakeApi;
use mcp_hub_operator::AskBridge;
use mcp_hub_reconcile::installation::token_sha256;
use serde_json::Value;

use crate::wire::Line;

/// How a server fares behind its bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Ready,
    /// Its program was stopped for want of calls.
    Asleep,
    /// Its handshake never ends.
    Starting,
    /// It ends again and again; its pod runs and is not ready.
    CrashLoop,
    /// The image cannot be pulled: there is no bridge.
    NoImage,
    /// No node has room for its pod: there is no bridge.
    NoRoom,
}

#[derive(Debug, Clone)]
pub struct Bridges {
    api: FakeApi,
    fates: Arc<Mutex<BTreeMap<String, Fate>>>,
    /// Uids of servers of which a bridge has ever said that they are ready.
    said_ready: Arc<Mutex<BTreeSet<String>>>,
}

impl Bridges {
    pub fn new(api: FakeApi) -> Self {
        Self { api, fates: Arc::default(), said_ready: Arc::default() }
    }

    /// `server`: `NAMESPACE/NAME`.
    pub fn set(&self, server: &str, fate: Fate) {
        self.fates.lock().unwrap().insert(server.to_owned(), fate);
    }

    pub fn fate(&self, server: &str) -> Fate {
        self.fates.lock().unwrap().get(server).copied().unwrap_or(Fate::Ready)
    }

    pub fn fates(&self) -> BTreeMap<String, Fate> {
        self.fates.lock().unwrap().clone()
    }

    pub fn has_said_ready(&self, server_uid: &str) -> bool {
        self.said_ready.lock().unwrap().contains(server_uid)
    }

    /// What the bridge in this pod says; `None` if nothing listens there, or the token is not its own.
    fn answer(&self, pod: &Value, port: u16, token: &SecretString) -> Option<BridgeStatus> {
        let container = &pod["spec"]["containers"][0];
        pod["status"]["containerStatuses"][0]["state"]["running"].as_object()?;
        let env = container["env"].as_array()?.iter().find(|variable| variable["name"] == LAUNCH_ENV)?;
        let launch: LaunchSpec = serde_json::from_str(env["value"].as_str()?).expect("a launch specification");
        if launch.listen.port() != port || launch.token_sha256 != token_sha256(token) {
            return None;
        }
        let server = format!("{}/{}", launch.owner.namespace, launch.owner.name);
        let (phase, last_error) = match self.fate(&server) {
            Fate::Ready => (Phase::Ready, None),
            Fate::Asleep => (Phase::Asleep, None),
            Fate::Starting => (Phase::Starting, None),
            Fate::CrashLoop => {
                (Phase::CrashLoop { retry_at: "2026-01-01T00:00:00Z".to_owned() }, Some("exit code 1".to_owned()))
            }
            Fate::NoImage | Fate::NoRoom => return None,
        };
        let ready = matches!(phase, Phase::Ready | Phase::Asleep);
        if ready {
            let uid = pod["metadata"]["labels"]["mcphub.io/owner-uid"].as_str()?;
            self.said_ready.lock().unwrap().insert(uid.to_owned());
        }
        Some(BridgeStatus {
            bridge_version: "1".to_owned(),
            digest: String::new(),
            endpoint: format!("http://{}:{port}/mcp", pod["status"]["podIP"].as_str()?),
            phase,
            handshake: ready.then(|| handshake(&server)),
            restarts: 0,
            last_exit: None,
            last_error,
            stderr_tail: Vec::new(),
            notices: Vec::new(),
            activity: Activity::default(),
        })
    }
}

/// What a handshake with a server tells.
pub fn handshake(server: &str) -> Handshake {
    Handshake {
        era: Era::Legacy,
        server_name: server.to_owned(),
        server_version: "1.0.0".to_owned(),
        protocol_versions: vec!["2025-11-25".to_owned()],
        tools: Some(ToolsSummary { count: 2, digest: "0".repeat(64) }),
        duration_ms: 10,
        at: "2026-01-01T00:00:00Z".to_owned(),
    }
}

/// Nothing on a network is there at once.
pub(crate) const LATENCY: Duration = Duration::from_millis(20);

/// The pod that has this address and is not on its way out.
pub(crate) fn pod_at(api: &FakeApi, address: &str) -> Option<Value> {
    let alive = |pod: &Value| pod["status"]["podIP"] == address && pod["metadata"]["deletionTimestamp"].is_null();
    api.list("Pod").into_iter().find(alive)
}

/// The way of one operator to the bridges.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) bridges: Bridges,
    pub(crate) line: Line,
}

#[async_trait]
impl AskBridge for Way {
    async fn status(&self, address: &str, port: u16, token: &SecretString) -> Option<BridgeStatus> {
        if self.line.is_dead() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LATENCY).await;
        self.bridges.answer(&pod_at(&self.bridges.api, address)?, port, token)
    }
}
