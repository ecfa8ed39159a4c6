//! What marks an object as ours, and whose it is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};

pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGER: &str = "mcp-hub";
pub const INSTALLATION: &str = "mcphub.io/installation";
pub const OWNER_KIND: &str = "mcphub.io/owner-kind";
pub const OWNER_NAME: &str = "mcphub.io/owner-name";
pub const OWNER_UID: &str = "mcphub.io/owner-uid";
/// What a pod is: `server`, `gateway`, `operator` or `relay`. Network policies select by it.
pub const ROLE: &str = "mcphub.io/role";
/// Values of [`ROLE`].
pub const GATEWAY_ROLE: &str = "gateway";
pub const OPERATOR_ROLE: &str = "operator";
pub const RELAY_ROLE: &str = "relay";
/// Annotation with the digest of the body that an object was made from.
pub const DIGEST: &str = "mcphub.io/digest";
/// Version of MCP Hub that an operator's pod is of.
pub const VERSION: &str = "app.kubernetes.io/version";
/// Name of the object for people, as Kubernetes recommends.
const APP_NAME: &str = "app.kubernetes.io/name";

/// Selects everything of an installation.
pub(crate) fn selector(installation: &str) -> String {
    format!("{MANAGED_BY}={MANAGER},{INSTALLATION}={installation}")
}

/// The labels of every object of an owner.
pub(crate) fn of(owner: &OwnerKey) -> BTreeMap<String, String> {
    let kind = match owner.kind {
        OwnerKind::MCPServer => "MCPServer",
        OwnerKind::MCPHub => "MCPHub",
    };
    [
        (APP_NAME, owner.name.as_str()),
        (MANAGED_BY, MANAGER),
        (INSTALLATION, &owner.installation),
        (OWNER_KIND, kind),
        (OWNER_NAME, &owner.name),
        (OWNER_UID, &owner.uid),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// The labels that select an owner's pods. They never change, because a Deployment's selector cannot.
pub(crate) fn pods_of(owner: &OwnerKey) -> BTreeMap<String, String> {
    BTreeMap::from([(OWNER_UID.to_owned(), owner.uid.clone())])
}

/// The owner of an object that is labelled as ours; `None` if it is not.
///
/// Its reference says which, by which the garbage collector goes; labels say it of pods, and of what lost its reference. So
/// an object whose labels somebody changes is drift of its owner's, and not lost to whoever is about to remove it.
pub(crate) fn owner(meta: &ObjectMeta) -> Option<OwnerKey> {
    let label = |name: &str| meta.labels.as_ref()?.get(name).cloned();
    (label(MANAGED_BY)? == MANAGER).then_some(())?;
    let (installation, namespace) = (label(INSTALLATION)?, meta.namespace.clone()?);
    let own = |reference: &&OwnerReference| reference.api_version.starts_with("mcphub.io/");
    let mut references = meta.owner_references.iter().flatten().filter(own);
    let (kind, name, uid) = match references.next() {
        Some(reference) => (reference.kind.clone(), reference.name.clone(), reference.uid.clone()),
        None => (label(OWNER_KIND)?, label(OWNER_NAME)?, label(OWNER_UID)?),
    };
    let kind = match kind.as_str() {
        "MCPServer" => OwnerKind::MCPServer,
        "MCPHub" => OwnerKind::MCPHub,
        _ => return None,
    };
    Some(OwnerKey { installation, kind, namespace, name, uid })
}

/// The reference by which the garbage collector removes an object after its owner.
pub(crate) fn reference(owner: &OwnerKey) -> OwnerReference {
    OwnerReference {
        api_version: "mcphub.io/v1alpha1".to_owned(),
        kind: match owner.kind {
            OwnerKind::MCPServer => "MCPServer".to_owned(),
            OwnerKind::MCPHub => "MCPHub".to_owned(),
        },
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}
