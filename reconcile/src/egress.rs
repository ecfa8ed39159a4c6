//! Egress lists as every runtime reads them, and what a server is told of the relay that is its way out.

use mcp_hub_dataplane_api::egress::EgressTarget;
use mcp_hub_dataplane_api::permit::{Permit, PermitKey};

use crate::lower::Unsupported;
use crate::owner::OwnerKey;

pub const FIELD: &str = "spec.permissions.network.egress";

/// Variables that say where the proxy is, in both ways of writing them that programs look for.
const PROXY: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// Variables that say what is reached without it.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Node looks at the others only if told so.
const NODE: &str = "NODE_USE_ENV_PROXY";
/// The server itself.
const ITSELF: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The entries of a list.
///
/// # Errors
/// The first entry that is none, by its place.
pub fn targets(runtime: &str, list: &[String]) -> Result<Vec<EgressTarget>, Unsupported> {
    let read = |(index, text): (usize, &String)| {
        text.parse().map_err(|error: mcp_hub_dataplane_api::egress::NotATarget| Unsupported {
            runtime: runtime.to_owned(),
            field: format!("{FIELD}[{index}]"),
            message: error.to_string(),
            hint: Some("give HOST:PORT, *.SUFFIX:PORT, ADDRESS:PORT or NETWORK/BITS:PORT".to_owned()),
        })
    };
    list.iter().enumerate().map(read).collect()
}

/// Variables of a server by which its program finds the relay and shows its permit. `relay`: `HOST:PORT`. `direct`: what it
/// reaches without the relay, besides itself.
///
/// # Errors
/// A list that no permit holds.
pub fn variables(
    runtime: &str,
    owner: &OwnerKey,
    targets: Vec<EgressTarget>,
    key: &PermitKey,
    relay: &str,
    direct: impl IntoIterator<Item = String>,
) -> Result<Vec<(&'static str, String)>, Unsupported> {
    let permit = Permit { server: format!("{}.{}", owner.namespace, owner.name), targets };
    let password = permit.password(key).map_err(|error| Unsupported {
        runtime: runtime.to_owned(),
        field: FIELD.to_owned(),
        message: error.to_string(),
        hint: Some("name fewer hosts, or `*.SUFFIX:PORT`".to_owned()),
    })?;
    let url = format!("http://{}:{}@{relay}", permit.server, password.expose_secret());
    let mut direct: Vec<String> = ITSELF.iter().map(ToString::to_string).chain(direct).collect();
    direct.dedup();
    let mut env: Vec<(&'static str, String)> = PROXY.iter().map(|name| (*name, url.clone())).collect();
    env.extend(NO_PROXY.iter().map(|name| (*name, direct.join(","))));
    env.push((NODE, "1".to_owned()));
    Ok(env)
}

/// Whether a spec may not set a variable beside [`variables`]: programs would be sent where they may not go.
pub fn claims(name: &str) -> bool {
    PROXY.iter().chain(&NO_PROXY).any(|own| *own == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::OwnerKind;

    fn owner() -> OwnerKey {
        OwnerKey {
            installation: "i".to_owned(),
            kind: OwnerKind::MCPServer,
            namespace: "team".to_owned(),
            name: "github".to_owned(),
            uid: "u".to_owned(),
        }
    }

    #[test]
    fn an_entry_that_is_none_is_refused_by_its_place() {
        for entry in ["10.1.2.3", "10.0.0.0/33:1", "10.1.2.3:99999", "*:443", "münchen.de:1"] {
            let refusal = targets("docker", &["a.example.com:443".to_owned(), entry.to_owned()]).unwrap_err();
            assert_eq!(refusal.field, "spec.permissions.network.egress[1]", "{entry}");
        }
    }

    #[test]
    fn a_server_is_told_of_the_relay_and_of_what_it_reaches_without() {
        let targets = targets("docker", &["*.github.com:443".to_owned()]).unwrap();
        let key = PermitKey::new([7; 32]);
        let direct = ["10.0.0.0/8".to_owned()];
        let env = variables("docker", &owner(), targets, &key, "relay:3128", direct).unwrap();
        let value = |name: &str| &env.iter().find(|(own, _)| *own == name).unwrap().1;
        assert_eq!(value("NO_PROXY"), "localhost,127.0.0.1,::1,10.0.0.0/8");
        assert!(value("https_proxy").starts_with("http://team.github:"), "{env:?}");
        assert!(value("HTTP_PROXY").ends_with("@relay:3128"), "{env:?}");
        assert!(claims("HTTP_PROXY") && claims("no_proxy") && !claims("NODE_USE_ENV_PROXY"));
    }

    #[test]
    fn a_list_that_no_permit_holds_is_refused() {
        let long: Vec<String> = (0..1000).map(|number| format!("host-{number}.example.com:443")).collect();
        let targets = targets("docker", &long).unwrap();
        let key = PermitKey::new([7; 32]);
        let refusal = variables("docker", &owner(), targets, &key, "relay:3128", []).unwrap_err();
        assert_eq!(refusal.field, FIELD);
    }
}
