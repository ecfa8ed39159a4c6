//! Where a server may connect to: addresses by a NetworkPolicy, host names through the relay.

use mcp_hub_dataplane_api::egress::{Destination, EgressTarget};
use mcp_hub_dataplane_api::permit::Permit;
use mcp_hub_reconcile::lower::Unsupported;
use mcp_hub_reconcile::owner::OwnerKey;
use serde_json::{Value, json};

use super::{ClusterSettings, network, no};
use crate::labels;
use crate::relay::Relay;

const FIELD: &str = "spec.permissions.network.egress";

/// Variables that say where the proxy is, in both ways of writing them that programs look for.
const PROXY: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// Variables that say what is reached without it.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Node looks at the others only if told so.
const NODE: &str = "NODE_USE_ENV_PROXY";

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
        name != NODE && self.env.iter().any(|(own, _)| *own == name)
    }
}

pub(super) fn lower(owner: &OwnerKey, list: &[String], settings: &ClusterSettings) -> Result<Egress, Unsupported> {
    let mut targets: Vec<EgressTarget> = Vec::new();
    let mut named = None;
    for (index, text) in list.iter().enumerate() {
        let field = || format!("{FIELD}[{index}]");
        let target: EgressTarget = text.parse().map_err(|error| {
            let hint = "give HOST:PORT, *.SUFFIX:PORT, ADDRESS:PORT or NETWORK/BITS:PORT";
            no(field(), format!("{error}"), Some(hint))
        })?;
        match target.destination {
            Destination::Network(_) => {}
            Destination::Name(_) | Destination::Below(_) => named = named.or_else(|| Some((field(), text))),
        }
        targets.push(target);
    }
    let mut rules: Vec<Value> = targets.iter().filter_map(by_address).collect();
    let Some((field, name)) = named else { return Ok(Egress { rules, env: Vec::new() }) };
    let Some(relay) = &settings.relay else {
        return Err(no(
            field,
            format!(
                "`{name}` is a name, which takes a relay, and there is none: a network policy knows addresses only"
            ),
            Some("install the chart with relay.enabled=true, or give an address or a network, such as 10.0.0.0/8:5432"),
        ));
    };
    rules.push(json!({
        "to": [network::own_pods(labels::RELAY_ROLE, settings)],
        "ports": [{"port": relay.pod_port, "protocol": "TCP"}],
    }));
    let env = variables(owner, targets, relay)?;
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

fn variables(
    owner: &OwnerKey,
    targets: Vec<EgressTarget>,
    relay: &Relay,
) -> Result<Vec<(&'static str, String)>, Unsupported> {
    // The server itself, and what the policy lets it reach directly.
    let mut direct = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for target in &targets {
        if let Destination::Network(network) = &target.destination {
            direct.push(network.plain());
        }
    }
    direct.dedup();
    let permit = Permit { server: format!("{}.{}", owner.namespace, owner.name), targets };
    let password = permit.password(&relay.key);
    let password =
        password.map_err(|error| no(FIELD, error.to_string(), Some("name fewer hosts, or `*.SUFFIX:PORT`")))?;
    let url = format!("http://{}:{}@{}", permit.server, password.expose_secret(), relay.address);
    let mut env: Vec<(&'static str, String)> = PROXY.iter().map(|name| (*name, url.clone())).collect();
    env.extend(NO_PROXY.iter().map(|name| (*name, direct.join(","))));
    env.push((NODE, "1".to_owned()));
    Ok(env)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use mcp_hub_dataplane_api::permit::PermitKey;
    use mcp_hub_reconcile::owner::OwnerKind;

    use super::*;

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
