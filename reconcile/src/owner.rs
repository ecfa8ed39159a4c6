//! Whose objects: the key that every child carries.

use std::fmt;

use kube::ResourceExt;
use mcp_hub_crds::{MCPHub, MCPServer};
use serde::{Deserialize, Serialize};

/// The resource that a set of runtime objects belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerKey {
    /// Which installation of MCP Hub: several may share a machine or a container engine.
    pub installation: String,
    pub kind: OwnerKind,
    pub namespace: String,
    pub name: String,
    /// Tells an object from its namesake that was deleted before.
    pub uid: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OwnerKind {
    MCPServer,
    MCPHub,
}

/// A resource without the metadata that the store gives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{name}` has no uid; it did not come from a store")]
pub struct Unstored {
    kind: &'static str,
    name: String,
}

impl OwnerKey {
    pub fn of_server(installation: &str, server: &MCPServer) -> Result<Self, Unstored> {
        Ok(Self {
            installation: installation.to_owned(),
            kind: OwnerKind::MCPServer,
            namespace: server.namespace().unwrap_or_default(),
            name: server.name_any(),
            uid: server.uid().ok_or_else(|| Unstored { kind: "MCPServer", name: server.name_any() })?,
        })
    }

    pub fn of_hub(installation: &str, hub: &MCPHub) -> Result<Self, Unstored> {
        Ok(Self {
            installation: installation.to_owned(),
            kind: OwnerKind::MCPHub,
            namespace: hub.namespace().unwrap_or_default(),
            name: hub.name_any(),
            uid: hub.uid().ok_or_else(|| Unstored { kind: "MCPHub", name: hub.name_any() })?,
        })
    }

    /// Whether both are keys of one name at different times.
    pub fn is_namesake_of(&self, other: &Self) -> bool {
        let name = |key: &Self| (key.installation.clone(), key.kind, key.namespace.clone(), key.name.clone());
        name(self) == name(other) && self.uid != other.uid
    }

    /// `INSTALLATION/UID`: the mark on processes and containers.
    pub fn id(&self) -> String {
        format!("{}/{}", self.installation, self.uid)
    }
}

impl fmt::Display for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
