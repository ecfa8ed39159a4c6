//! What a permit allows. Pure: lookups are done in between.

use std::net::IpAddr;

use mcp_hub_dataplane_api::egress::Network;
use mcp_hub_dataplane_api::permit::Permit;

use crate::reach::Reach;
use crate::refusal::Refusal;
use crate::wish::{Destination, Host};

/// Whether the list names the destination, before anybody is asked for its addresses.
pub(crate) fn admit(permit: &Permit, destination: &Destination) -> Result<(), Refusal> {
    let port = destination.port;
    let is_listed = permit.targets.iter().any(|target| match &destination.host {
        Host::Name(name) => target.names(name, port),
        Host::Address(address) => target.holds(*address, port),
    });
    match is_listed {
        true => Ok(()),
        false => Err(Refusal::NotListed { server: permit.server.clone(), destination: destination.to_string() }),
    }
}

/// Those of a destination's addresses that may be connected to; never none.
///
/// A name's owner can let it lead anywhere, so a name alone opens places of the internet only. Others have to be in the list
/// themselves, as have those of networks that are `local` here; and the relay's own machine and link are nobody's.
pub(crate) fn choose(
    permit: &Permit,
    destination: &Destination,
    addresses: &[IpAddr],
    local: &[Network],
) -> Result<Vec<IpAddr>, Refusal> {
    let mut refused = None;
    let mut chosen = Vec::new();
    for address in addresses.iter().map(IpAddr::to_canonical) {
        let listed = || permit.targets.iter().any(|target| target.holds(address, destination.port));
        let to = || destination.to_string();
        let refusal = match Reach::of(address, local) {
            Reach::Never => Refusal::Never { destination: to(), address },
            Reach::Local if !listed() => Refusal::Local { server: permit.server.clone(), destination: to(), address },
            Reach::Local | Reach::Public => {
                chosen.push(address);
                continue;
            }
        };
        refused.get_or_insert(refusal);
    }
    match refused {
        Some(refusal) if chosen.is_empty() => Err(refusal),
        _ => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(targets: &[&str]) -> Permit {
        let targets = targets.iter().map(|text| text.parse().unwrap()).collect();
        Permit { server: "team.a".to_owned(), targets }
    }

    fn to(host: &str, port: u16) -> Destination {
        let host = host.parse().map(Host::Address).unwrap_or_else(|_| Host::Name(host.parse().unwrap()));
        Destination { host, port }
    }

    fn chosen(permit: &Permit, destination: &Destination, addresses: &[&str]) -> Result<Vec<String>, &'static str> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let chosen = choose(permit, destination, &addresses, &[]).map_err(|refusal| refusal.reason())?;
        Ok(chosen.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_the_list_names_is_admitted_and_nothing_beside() {
        let permit = permit(&["api.example.com:443", "*.example.org:80", "10.0.0.0/8:5432", "127.0.0.1:80"]);
        for (host, port, is) in [
            ("api.example.com", 443, true),
            ("api.example.com", 80, false),
            ("x.example.org", 80, true),
            ("example.org", 80, false),
            ("10.1.1.1", 5432, true),
            ("10.1.1.1", 443, false),
            ("93.184.215.14", 443, false),
        ] {
            assert_eq!(admit(&permit, &to(host, port)).is_ok(), is, "{host}:{port}");
        }
    }

    #[test]
    fn a_name_leads_to_the_internet_only_unless_the_list_has_the_address_too() {
        let name = to("a.example.com", 443);
        let alone = permit(&["a.example.com:443"]);
        assert_eq!(chosen(&alone, &name, &["93.184.215.14"]).unwrap(), ["93.184.215.14"]);
        assert_eq!(chosen(&alone, &name, &["10.0.0.1", "93.184.215.14"]).unwrap(), ["93.184.215.14"]);
        assert_eq!(chosen(&alone, &name, &["10.0.0.1", "127.0.0.1"]), Err("LocalAddress"));
        assert_eq!(chosen(&alone, &name, &["fd00::1"]), Err("LocalAddress"));
        let both = permit(&["a.example.com:443", "10.0.0.0/8:443"]);
        assert_eq!(chosen(&both, &name, &["::ffff:10.0.0.1", "192.168.0.1"]).unwrap(), ["10.0.0.1"]);
        let other_port = permit(&["a.example.com:443", "10.0.0.0/8:80"]);
        assert_eq!(chosen(&other_port, &name, &["10.0.0.1"]), Err("LocalAddress"));
    }

    #[test]
    fn nobody_gets_to_the_relays_own_machine_or_link() {
        let all = permit(&["a.example.com:443", "0.0.0.0/0:443", "[::]/0:443"]);
        for address in ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "fe80::1"] {
            assert_eq!(chosen(&all, &to("a.example.com", 443), &[address]), Err("ForbiddenAddress"), "{address}");
            assert_eq!(chosen(&all, &to(address, 443), &[address]), Err("ForbiddenAddress"), "{address}");
        }
    }
}
