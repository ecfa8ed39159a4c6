//! What a workload becomes in a cluster. Pure.

mod door;
mod egress;
mod gateway;
mod network;
mod package;
mod pod;
mod quantity;
mod server;
mod template;

use mcp_hub_reconcile::lower::{Change, Lowered, Object, ObjectId, Unsupported};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::Workload;
use serde_json::{Value, json};

use crate::children::ChildKind;
use crate::labels;
use crate::relay::Relay;

pub(crate) use door::{certificate_secret, service_names};
pub use gateway::{CLIENTS_PORT, GATEWAY, TOKEN_KEY, URL_KEY, token_secret};
pub(crate) use gateway::{CONFIG_KEY, CONTROL_PORT, SEALING_KEY, config_secret, gateway_name};
pub use package::PackageSettings;
pub(crate) use server::server_name;

/// What lowering needs to know of the installation besides the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Namespace that the operator runs in.
    pub namespace: String,
    /// Image that brings the bridge, for servers whose spec changes from now on.
    pub bridge_image: String,
    /// Image in which packages are installed and run, for servers whose source changes from now on.
    pub runner_image: String,
    pub packages: PackageSettings,
    /// Image of gateways.
    pub gateway_image: String,
    /// Whether the cluster's network plugin is known to enforce network policies.
    pub network_policies_enforced: bool,
    /// Without it host names in egress lists are refused.
    pub relay: Option<Relay>,
}

pub(crate) const NAME: &str = "kubernetes";

pub(crate) fn lower(workload: &Workload, settings: &ClusterSettings) -> Result<Lowered, Unsupported> {
    match workload {
        Workload::Server(server) => server::lower(server, settings),
        Workload::Gateway(gateway) => gateway::lower(gateway, settings),
    }
}

/// An object with our labels and our owner's reference.
fn child(kind: ChildKind, owner: &OwnerKey, name: String, spec: &Value) -> Object {
    let body = json!({
        "metadata": {"labels": labels::of(owner), "ownerReferences": [labels::reference(owner)]},
        "spec": spec,
    });
    Object::new(ObjectId::new(kind.name(), name), kind.stage(), Change::InPlace, body)
}

fn no(field: impl Into<String>, message: impl Into<String>, hint: Option<&str>) -> Unsupported {
    Unsupported {
        runtime: NAME.to_owned(),
        field: field.into(),
        message: message.into(),
        hint: hint.map(str::to_owned),
    }
}
