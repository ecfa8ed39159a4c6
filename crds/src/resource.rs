//! A resource of either kind, its key, and its YAML.

use std::fmt;

use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;

use crate::{MCPHub, MCPServer};

/// Namespace of a resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    MCPServer,
    MCPHub,
}

impl ResourceKind {
    pub const ALL: [Self; 2] = [Self::MCPServer, Self::MCPHub];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MCPServer => "MCPServer",
            Self::MCPHub => "MCPHub",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A resource of either kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "a resource is parsed once and then lives in its own place")]
pub enum Resource {
    Server(MCPServer),
    Hub(MCPHub),
}

/// What tells resources apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    pub kind: ResourceKind,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Resource {
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Server(_) => ResourceKind::MCPServer,
            Self::Hub(_) => ResourceKind::MCPHub,
        }
    }

    pub fn key(&self) -> ResourceKey {
        let (namespace, name) = match self {
            Self::Server(server) => (server.namespace(), server.name_any()),
            Self::Hub(hub) => (hub.namespace(), hub.name_any()),
        };
        ResourceKey { kind: self.kind(), namespace: namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()), name }
    }

    /// One YAML document, ending in a newline. [`parse`](crate::manifest::parse) reads it back to an equal resource, apart
    /// from what a server sets (status, uid and the like).
    pub fn to_yaml(&self) -> String {
        // Both types hold maps with text keys and finite numbers only: there is nothing JSON cannot say.
        yaml(&serde_json::to_value(self).unwrap_or_default())
    }
}

/// YAML of a JSON value, ending in a newline.
pub(crate) fn yaml(value: &Value) -> String {
    // A JSON value always has a YAML form.
    serde_saphyr::to_string(value).unwrap_or_default()
}
