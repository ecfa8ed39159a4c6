//! Names of what we make on an engine. They are for people; whose a thing is, its labels say.

use mcp_hub_reconcile::owner::OwnerKey;
use sha2::{Digest, Sha256};

/// Long enough that two do not meet by chance, short enough to read.
const SHORT: usize = 8;
/// Longest part of a name that comes from a user: names of containers may be host names, of which one label has 63.
const PART: usize = 24;

pub(super) fn container(owner: &OwnerKey) -> String {
    format!("mcphub-{}-{}-{}", part(&owner.namespace), part(&owner.name), short(&owner.id()))
}

/// The network of a server: one that it shares with others of its namespace, or its own.
pub(super) fn network(owner: &OwnerKey, shared: bool) -> String {
    let installation = short(&owner.installation);
    match shared {
        true => format!("mcphub-{installation}-{}", owner.namespace),
        false => format!("mcphub-{installation}-{}-{}", part(&owner.name), short(&owner.id())),
    }
}

/// The network by which the relay of a namespace reaches the outside: shared with servers of the namespace, or its own.
pub(super) fn outer(installation_id: &str, namespace: &str, shared: bool) -> String {
    let installation = short(installation_id);
    match shared {
        true => format!("mcphub-{installation}-{namespace}"),
        // A namespace has no dot, so that it is no server's.
        false => format!("mcphub-{installation}-{namespace}.relay"),
    }
}

/// A namespace has no dot, so that no other network is named so.
const INNER: &str = ".inner";

/// The network of a server with an egress list, which leads to the relay alone.
pub(super) fn inner(owner: &OwnerKey) -> String {
    format!("mcphub-{}-{}-{}{INNER}", short(&owner.installation), part(&owner.name), short(&owner.id()))
}

/// Whether a network is one of those, by its name.
pub(super) fn is_inner(network: &str) -> bool {
    network.starts_with("mcphub-") && network.ends_with(INNER)
}

/// The relay of a namespace on an engine of this kind.
pub(super) fn relay(installation_id: &str, engine: &str, namespace: &str) -> String {
    format!("mcphub-relay-{}-{}", part(namespace), short(&format!("{installation_id}/{engine}/{namespace}")))
}

/// The image of a relay: an installation's own, so that it goes with it.
pub(super) fn relay_image(installation_id: &str, digest: &str) -> String {
    format!("localhost/mcphub-{}/relay:{digest}", short(installation_id))
}

/// The volume with a bridge.
pub(super) fn bridge_volume(installation_id: &str, digest: &str) -> String {
    format!("mcphub-{}-bridge-{digest}", short(installation_id))
}

/// A volume of the user's data, which we make and never remove.
pub(super) fn data_volume(installation_id: &str, namespace: &str, claim: &str) -> String {
    // A namespace has no dot, so that no two claims are one.
    format!("mcphub-{}-data-{namespace}.{claim}", short(installation_id))
}

fn part(name: &str) -> String {
    name.chars().take(PART).collect()
}

fn short(text: &str) -> String {
    let mut name = hex::encode(Sha256::digest(text));
    name.truncate(SHORT);
    name
}

#[cfg(test)]
mod tests {
    use mcp_hub_reconcile::owner::OwnerKind;

    use super::*;

    #[test]
    fn a_name_tells_people_whose_it_is_and_namesakes_apart() {
        let owner = |uid: &str| OwnerKey {
            installation: "i".to_owned(),
            kind: OwnerKind::MCPServer,
            namespace: "default".to_owned(),
            name: "github".to_owned(),
            uid: uid.to_owned(),
        };
        assert!(container(&owner("1")).starts_with("mcphub-default-github-"));
        assert_ne!(container(&owner("1")), container(&owner("2")));
        assert_eq!(network(&owner("1"), true), network(&owner("2"), true));
        assert_ne!(network(&owner("1"), false), network(&owner("2"), false));
        assert_ne!(inner(&owner("1")), inner(&owner("2")));
        assert!(is_inner(&inner(&owner("1"))) && !is_inner(&network(&owner("1"), true)));
        for other in ["somebodys.inner", &outer("i", "default", false), &outer("i", "my-inner", true)] {
            assert!(!is_inner(other), "{other}");
        }
    }
}
