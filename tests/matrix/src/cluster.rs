//! The operator's runtime, over a cluster that is never asked.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mcp_hub_crds::source::{ImageSource, ResolvedImage};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::BridgeStatus;
use mcp_hub_fakeapi::FakeApi;
use mcp_hub_operator::relay::Relay;
use mcp_hub_operator::runtime::{Askers, KubeRuntime};
use mcp_hub_operator::{AskBridge, ClusterSettings, PackageSettings, ResolveError, ResolveImage, Scope};
use mcp_hub_reconcile::contract::fields::Base;
use mcp_hub_reconcile::installation::Installation;
use serde_json::json;

/// Nothing runs there.
#[derive(Debug)]
struct Nobody;

#[async_trait]
impl AskBridge for Nobody {
    async fn status(&self, _: &str, _: u16, _: &SecretString) -> Option<BridgeStatus> {
        None
    }
}

#[async_trait]
impl ResolveImage for Nobody {
    async fn resolve(&self, _: &ImageSource, _: &str) -> Result<ResolvedImage, ResolveError> {
        Ok(ResolvedImage { index: String::new(), id: None, entrypoint: None, cmd: None, user: None })
    }
}

pub(crate) fn base() -> Base {
    Base { source: json!({"image": {"ref": "a:1"}}), volume: json!({"pvc": "data"}), filesystem: "unrestricted" }
}

/// With all that a chart's installation has by default, and network policies.
pub(crate) fn runtime() -> Arc<KubeRuntime> {
    let installation = Installation::new("matrix", [1; 32]);
    let image = |name: &str| format!("registry.example.com/{name}:1");
    let settings = ClusterSettings {
        namespace: "mcp-hub-system".to_owned(),
        bridge_image: image("bridge"),
        runner_image: image("runner"),
        packages: PackageSettings::default(),
        gateway_image: image("gateway"),
        network_policies_enforced: true,
        relay: Some(Relay {
            address: ([10, 96, 0, 7], 3128).into(),
            pod_port: IntOrString::Int(3128),
            key: installation.permit_key(),
        }),
    };
    let askers = Askers { bridges: Arc::new(Nobody), images: Arc::new(Nobody) };
    KubeRuntime::start(&FakeApi::new().client("mcp-hub-operator"), &Scope::default(), settings, &installation, askers)
}
