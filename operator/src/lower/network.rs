//! Who may talk to a server, and to whom it may talk.

use serde_json::{Value, json};

use super::ClusterSettings;
use super::egress::Egress;
use crate::labels;

/// Label that every namespace carries with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// `spec` of the NetworkPolicy of a server whose bridge listens on `port`.
pub(super) fn of_server(
    pods: &impl serde::Serialize,
    port: u16,
    exposed_to: &[String],
    egress: Option<&Egress>,
    settings: &ClusterSettings,
) -> Value {
    let gateways = json!({"matchLabels": {labels::MANAGED_BY: labels::MANAGER, labels::ROLE: labels::GATEWAY_ROLE}});
    let mut callers = vec![json!({"podSelector": gateways})];
    if !exposed_to.is_empty() {
        let namespaces = json!({"matchExpressions": [{"key": NAMESPACE_NAME, "operator": "In", "values": exposed_to}]});
        callers.push(json!({"namespaceSelector": namespaces, "podSelector": gateways}));
    }
    callers.push(own_pods(labels::OPERATOR_ROLE, settings));
    let mut spec = json!({
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": callers, "ports": [{"port": port, "protocol": "TCP"}]}],
    });
    if let Some(egress) = egress {
        spec["policyTypes"] = json!(["Egress", "Ingress"]);
        if !egress.rules.is_empty() {
            spec["egress"] = Value::from(egress.rules.clone());
        }
    }
    spec
}

/// `spec` of the NetworkPolicy of a gateway: clients reach its endpoint, the operator and its own replicas the control port.
pub(super) fn of_gateway(pods: &impl serde::Serialize, port: u16, control: u16, settings: &ClusterSettings) -> Value {
    let replicas = json!({"podSelector": {"matchLabels": pods}});
    json!({
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": port, "protocol": "TCP"}]},
            {"from": [replicas, own_pods(labels::OPERATOR_ROLE, settings)], "ports": [{"port": control, "protocol": "TCP"}]},
        ],
    })
}

/// The pods of a role in the operator's own namespace.
pub(super) fn own_pods(role: &str, settings: &ClusterSettings) -> Value {
    json!({
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: settings.namespace}},
        "podSelector": {"matchLabels": {labels::ROLE: role}},
    })
}
