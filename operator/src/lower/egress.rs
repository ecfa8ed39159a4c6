//! Where a server may connect to: addresses by a NetworkPolicy, host names through the relay.

use mcp_hub_dataplane_api::egress::{Destination, EgressTarget};
use mcp_hub_reconcile::egress;
use mcp_hub_reconcile::lower::Unsupported;
use mcp_hub_reconcile::owner::OwnerKey;
use serde_json::{Value, json};

use super::{ClusterSettings, NAME, network, no};
use crate::labels;

/// What an egress list becomes.
#[derive(Debug)]
pub(super) struct Egress {
    /// Rules of the NetworkPolicy.
    pub(super) rules: Vec<Value>,
    /// Variables of the server's container, by which it finds the relay.
    pub(super) env: Vec<(&'static str, String)>,
}

impl Egress {
    /// Variables that the spec may not set as well: programs would be sent where they may not go.
    pub(super) fn claims(&self, name: &str) -> bool {
        !self.env.is_empty() && egress::claims(name)
    }
}

pub(super) fn lower(owner: &OwnerKey, list: &[String], settings: &ClusterSettings) -> Result<Egress, Unsupported> {
    let targets = egress::targets(NAME, list)?;
    let is_name = |target: &EgressTarget| !matches!(target.destination, Destination::Network(_));
    let mut rules: Vec<Value> = targets.iter().filter_map(by_address).collect();
    let Some(named) = targets.iter().position(is_name) else { return Ok(Egress { rules, env: Vec::new() }) };
    let Some(relay) = &settings.relay else {
        return Err(no(
            format!("{}[{named}]", egress::FIELD),
            format!(
                "`{}` is a name, which takes a relay, and there is none: a network policy knows addresses only",
                list[named]
            ),
            Some("install the chart with relay.enabled=true, or give an address or a network, such as 10.0.0.0/8:5432"),
        ));
    };
    rules.push(json!({
        "to": [network::own_pods(labels::RELAY_ROLE, settings)],
        "ports": [{"port": relay.pod_port, "protocol": "TCP"}],
    }));
    // What the policy lets it reach directly.
    let direct: Vec<String> = targets
        .iter()
        .filter_map(|target| match &target.destination {
            Destination::Network(network) => Some(network.plain()),
            Destination::Name(_) | Destination::Below(_) => None,
        })
        .collect();
    let env = egress::variables(NAME, owner, targets, &relay.key, &relay.address.to_string(), direct)?;
    Ok(Egress { rules, env })
}

/// The rule for an entry that is an address or a network.
fn by_address(target: &EgressTarget) -> Option<Value> {
    match &target.destination {
        Destination::Network(network) => Some(json!({
            "to": [{"ipBlock": {"cidr": network.to_string()}}],
            "ports": [{"port": target.port, "protocol": "TCP"}],
        })),
        Destination::Name(_) | Destination::Below(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use mcp_hub_dataplane_api::permit::PermitKey;
    use mcp_hub_reconcile::owner::OwnerKind;

    use super::*;
    use crate::relay::Relay;

    fn settings(relay: bool) -> ClusterSettings {
        let relay = relay.then(|| Relay {
            address: "10.96.0.7:3128".parse().unwrap(),
            pod_port: IntOrString::Int(3128),
            key: PermitKey::new([7; 32]),
        });
        ClusterSettings {
            namespace: "hubs".to_owned(),
            bridge_image: String::new(),
            runner_image: String::new(),
            packages: crate::lower::PackageSettings::default(),
            gateway_image: String::new(),
            network_policies_enforced: true,
            relay,
        }
    }

    fn of(list: &[&str], relay: bool) -> Result<Egress, Unsupported> {
        let owner = OwnerKey {
            installation: "i".to_owned(),
            kind: OwnerKind::MCPServer,
            namespace: "team".to_owned(),
            name: "github".to_owned(),
            uid: "u".to_owned(),
        };
        let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
        lower(&owner, &list, &settings(relay))
    }

    #[test]
    fn addresses_and_networks_become_rules_and_need_no_relay() {
        for (target, cidr) in [
            ("10.1.2.3:443", "10.1.2.3/32"),
            ("10.0.0.0/8:5432", "10.0.0.0/8"),
            ("[2001:db8::1]:443", "2001:db8::1/128"),
            ("[2001:db8::]/32:443", "2001:db8::/32"),
        ] {
            for relay in [false, true] {
                let egress = of(&[target], relay).unwrap();
                assert_eq!(egress.rules[0]["to"][0]["ipBlock"]["cidr"], cidr, "{target}");
                assert!(egress.rules.len() == 1 && egress.env.is_empty(), "{egress:?}");
            }
        }
    }

    #[test]
    fn a_name_opens_the_way_to_the_relay_and_brings_the_permit() {
        let egress = of(&["10.0.0.0/8:5432", "*.github.com:443", "10.1.1.1:80"], true).unwrap();
        assert_eq!(egress.rules.len(), 3);
        assert_eq!(egress.rules[2]["to"][0]["podSelector"]["matchLabels"]["mcphub.io/role"], "relay");
        let value = |name: &str| &egress.env.iter().find(|(own, _)| *own == name).unwrap().1;
        assert_eq!(value("NO_PROXY"), "localhost,127.0.0.1,::1,10.0.0.0/8,10.1.1.1");
        let url: http::Uri = value("https_proxy").parse().unwrap();
        assert_eq!((url.host(), url.port_u16()), (Some("10.96.0.7"), Some(3128)));
        assert!(url.authority().unwrap().as_str().starts_with("team.github:"));
        assert!(egress.claims("HTTP_PROXY") && egress.claims("no_proxy") && !egress.claims("NODE_USE_ENV_PROXY"));
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_its_place() {
        let refusal = of(&["10.0.0.1:1", "api.github.com:443"], false).unwrap_err();
        assert_eq!(refusal.field, "spec.permissions.network.egress[1]");
        assert!(refusal.hint.unwrap().contains("relay.enabled=true"));
        for target in ["10.1.2.3", "10.0.0.0/33:1", "10.1.2.3:99999", "*:443", "münchen.de:1"] {
            assert_eq!(of(&[target], true).unwrap_err().field, "spec.permissions.network.egress[0]", "{target}");
        }
    }
}
