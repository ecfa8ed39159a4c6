//! A cluster in memory with a runtime on it: a fake API server, a registry and bridges that answer.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mcp_hub_crds::MCPServer;
use mcp_hub_crds::source::{ImageSource, Resolved, ResolvedImage, Source};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Phase};
use mcp_hub_fakeapi::FakeApi;
use mcp_hub_operator::relay::Relay;
use mcp_hub_operator::runtime::{Askers, KubeRuntime};
use mcp_hub_operator::{AskBridge, ClusterSettings, PackageSettings, ResolveError, ResolveImage, Scope};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::ServerWorkload;
use serde_json::{Value, json};

pub const NAMESPACE: &str = "default";

/// Every bridge is ready.
#[derive(Debug)]
struct ReadyBridges;

#[async_trait]
impl AskBridge for ReadyBridges {
    async fn status(&self, address: &str, port: u16, _: &SecretString) -> Option<BridgeStatus> {
        Some(BridgeStatus {
            bridge_version: "1".to_owned(),
            digest: String::new(),
            endpoint: format!("http://{address}:{port}/mcp"),
            phase: Phase::Ready,
            handshake: None,
            restarts: 0,
            last_exit: None,
            last_error: None,
            stderr_tail: Vec::new(),
            notices: Vec::new(),
            activity: Activity::default(),
        })
    }
}

/// Every image has one program.
#[derive(Debug)]
struct OneProgram;

#[async_trait]
impl ResolveImage for OneProgram {
    async fn resolve(&self, _: &ImageSource, _: &str) -> Result<ResolvedImage, ResolveError> {
        Ok(image())
    }
}

pub fn image() -> ResolvedImage {
    ResolvedImage {
        id: None,
        index: format!("sha256:{}", "ab".repeat(32)),
        entrypoint: Some(vec!["/bin/server".to_owned()]),
        cmd: Some(vec!["--stdio".to_owned()]),
        user: Some("1000:1000".to_owned()),
    }
}

pub fn installation() -> Installation {
    Installation::new("test", [7; 32])
}

fn relay() -> Relay {
    Relay {
        address: ([10, 96, 0, 7], 3128).into(),
        pod_port: IntOrString::String("proxy".to_owned()),
        key: installation().permit_key(),
    }
}

pub fn settings() -> ClusterSettings {
    ClusterSettings {
        namespace: "mcp-hub-system".to_owned(),
        bridge_image: "registry.example.com/mcp-bridge:1".to_owned(),
        runner_image: "registry.example.com/mcp-runner:1".to_owned(),
        packages: PackageSettings::default(),
        gateway_image: "registry.example.com/mcp-gateway:1".to_owned(),
        network_policies_enforced: true,
        relay: Some(relay()),
    }
}

#[derive(Debug)]
pub struct Place {
    pub api: FakeApi,
}

impl Place {
    pub fn new() -> Self {
        Self { api: FakeApi::new() }
    }

    pub fn runtime(&self) -> Arc<KubeRuntime> {
        let askers = Askers { bridges: Arc::new(ReadyBridges), images: Arc::new(OneProgram) };
        let client = self.api.client("mcp-hub-operator");
        KubeRuntime::start(&client, &Scope::default(), settings(), &installation(), askers)
    }

    /// The object of a server, in the API server.
    pub fn server(&self, name: &str, spec: &Value) -> MCPServer {
        let object = json!({
            "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        });
        serde_json::from_value(self.api.create(&object).unwrap()).unwrap()
    }

    /// Lets deployments, pods and the garbage collector get on, and the operator's watches hear of it.
    pub async fn settle(&self) {
        loop {
            let before = self.api.revision();
            self.api.run_workloads(&BTreeMap::new());
            self.api.collect_garbage();
            // The clock is paused: it moves on when everybody has done all there is to do.
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.api.revision() == before {
                return;
            }
        }
    }

    /// What there is of an owner: one line for each object.
    pub fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        let of = |object: &Value| object["metadata"]["labels"]["mcphub.io/owner-uid"] == owner.uid.as_str();
        let objects = self.api.snapshot();
        let mut lines: Vec<String> = objects
            .values()
            .filter(|object| of(object))
            .filter_map(|object| match object["kind"].as_str()? {
                // Old ones stay for rollbacks; they hold no pods, or these count.
                "ReplicaSet" => None,
                "Pod" => Some("Pod".to_owned()),
                kind => Some(format!("{kind} {}", object["metadata"]["name"].as_str()?)),
            })
            .collect();
        lines.sort();
        lines
    }
}

/// The workload of an object whose source is not resolved.
pub fn workload(server: &MCPServer) -> ServerWorkload {
    ServerWorkload::of(server, &installation(), &BTreeMap::new()).unwrap()
}

/// The same with its source resolved.
pub fn resolved(workload: ServerWorkload) -> ServerWorkload {
    let package = matches!(workload.source, Source::Package(_));
    let found = Resolved {
        source_digest: workload.source_digest.clone(),
        version: None,
        command: None,
        env: None,
        reads: None,
        image: (!package).then(image),
        // Of the operator that saw the source first.
        runner: package.then(|| "registry.example.com/mcp-runner:0".to_owned()),
    };
    ServerWorkload { resolved: Some(found), ..workload }
}
