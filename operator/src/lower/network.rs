//! Who may talk to a server, and to whom it may talk.

use std::net::IpAddr;

use mcp_hub_crds::server::NetworkPermissions;
use mcp_hub_reconcile::lower::Unsupported;
use serde_json::{Value, json};

use super::{ClusterSettings, no};
use crate::labels;

/// Label that every namespace carries with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// `spec` of the NetworkPolicy of a server whose bridge listens on `port`.
pub(super) fn of_server(
    pods: &impl serde::Serialize,
    port: u16,
    exposed_to: &[String],
    permissions: Option<&NetworkPermissions>,
    settings: &ClusterSettings,
) -> Result<Value, Unsupported> {
    let gateways = json!({"matchLabels": {labels::MANAGED_BY: labels::MANAGER, labels::ROLE: labels::GATEWAY_ROLE}});
    let mut callers = vec![json!({"podSelector": gateways})];
    if !exposed_to.is_empty() {
        let namespaces = json!({"matchExpressions": [{"key": NAMESPACE_NAME, "operator": "In", "values": exposed_to}]});
        callers.push(json!({"namespaceSelector": namespaces, "podSelector": gateways}));
    }
    callers.push(operator(settings));
    let mut spec = json!({
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": callers, "ports": [{"port": port, "protocol": "TCP"}]}],
    });
    if let Some(list) = permissions.and_then(|permissions| permissions.egress.as_ref()) {
        spec["policyTypes"] = json!(["Egress", "Ingress"]);
        let mut rules = Vec::new();
        for (index, target) in list.iter().enumerate() {
            rules.push(egress_rule(target).map_err(|message| {
                no(
                    format!("spec.permissions.network.egress[{index}]"),
                    message,
                    Some("give an address or a network, such as 203.0.113.7:443 or 10.0.0.0/8:5432"),
                )
            })?);
        }
        if !rules.is_empty() {
            spec["egress"] = Value::from(rules);
        }
    }
    Ok(spec)
}

/// `spec` of the NetworkPolicy of a gateway: clients reach its endpoint, the operator and its own replicas the control port.
pub(super) fn of_gateway(pods: &impl serde::Serialize, port: u16, control: u16, settings: &ClusterSettings) -> Value {
    let replicas = json!({"podSelector": {"matchLabels": pods}});
    json!({
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": port, "protocol": "TCP"}]},
            {"from": [replicas, operator(settings)], "ports": [{"port": control, "protocol": "TCP"}]},
        ],
    })
}

fn operator(settings: &ClusterSettings) -> Value {
    json!({
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: settings.namespace}},
        "podSelector": {"matchLabels": {labels::ROLE: labels::OPERATOR_ROLE}},
    })
}

/// `ADDRESS:PORT` or `NETWORK/BITS:PORT`.
fn egress_rule(target: &str) -> Result<Value, String> {
    let (host, port) = target.rsplit_once(':').ok_or_else(|| format!("`{target}` has no port"))?;
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is no port"))?;
    let (address, bits) = match host.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (host, None),
    };
    let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!("`{host}` is a name, and a network policy knows addresses only"));
    };
    let most: u8 = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => most,
        Some(bits) => {
            bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(|| format!("`{host}` is no network"))?
        }
    };
    Ok(json!({
        "to": [{"ipBlock": {"cidr": format!("{address}/{bits}")}}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_become_rules_and_names_are_refused() {
        for (target, cidr) in [
            ("10.1.2.3:443", "10.1.2.3/32"),
            ("10.0.0.0/8:5432", "10.0.0.0/8"),
            ("[2001:db8::1]:443", "2001:db8::1/128"),
            ("[2001:db8::]/32:443", "2001:db8::/32"),
        ] {
            assert_eq!(egress_rule(target).unwrap()["to"][0]["ipBlock"]["cidr"], cidr, "{target}");
        }
        for target in ["api.github.com:443", "10.1.2.3", "10.0.0.0/33:1", "10.1.2.3:99999"] {
            assert!(egress_rule(target).is_err(), "{target}");
        }
    }
}
