//! What commands and daemon say to each other: JSON over HTTP on a Unix socket whose file mode is its authentication. No
//! token opens it, and it is on no network.

pub(crate) mod client;
pub(crate) mod server;

use std::path::PathBuf;

use kube::core::ObjectMeta;
use mcp_hub_crds::{MCPHub, MCPServer, ResourceKey, ResourceKind};
use serde::{Deserialize, Serialize};

/// Everything the daemon holds at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Objects {
    pub(crate) servers: Vec<MCPServer>,
    pub(crate) hubs: Vec<MCPHub>,
}

impl Objects {
    /// Metadata of the object with this key.
    pub(crate) fn metadata(&self, key: &ResourceKey) -> Option<&ObjectMeta> {
        let name = Name::of(key);
        match key.kind {
            ResourceKind::MCPServer => self.servers.iter().map(|server| &server.metadata).find(|of| name.is_of(of)),
            ResourceKind::MCPHub => self.hubs.iter().map(|hub| &hub.metadata).find(|of| name.is_of(of)),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DaemonVersion {
    pub(crate) version: String,
    pub(crate) pid: u32,
}

/// A file or folder to follow, or to follow no more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OriginPath {
    pub(crate) path: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OriginState {
    pub(crate) path: PathBuf,
    pub(crate) objects: usize,
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Synced {
    pub(crate) added: Vec<String>,
    pub(crate) changed: Vec<String>,
    pub(crate) removed: Vec<String>,
}

/// Names an object in a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Name {
    pub(crate) fn of(key: &ResourceKey) -> Self {
        Self { namespace: key.namespace.clone(), name: key.name.clone() }
    }

    pub(crate) fn of_metadata(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Whether the object is named so.
    pub(crate) fn is_of(&self, metadata: &ObjectMeta) -> bool {
        metadata.name.as_ref() == Some(&self.name) && metadata.namespace.as_ref() == Some(&self.namespace)
    }

    pub(crate) fn key(&self, kind: ResourceKind) -> ResourceKey {
        ResourceKey { kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Action {
    Start,
    Stop,
    Restart,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ActionRequest {
    pub(crate) action: Action,
    /// Empty means all.
    pub(crate) servers: Vec<Name>,
}

/// Where the object of this key comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OriginQuery {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OriginAnswer {
    /// `None` for an object that no file describes.
    pub(crate) path: Option<PathBuf>,
}

/// What a plan would do to one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) namespace: String,
    pub(crate) server: String,
    /// One line a step, as `reconcile::plan::render` writes them.
    pub(crate) steps: Vec<String>,
    /// Why there is no plan.
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LogRequest {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) tail: usize,
    pub(crate) follow: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HubEndpoint {
    pub(crate) url: String,
    /// `None` where the hub asks for none.
    pub(crate) token: Option<mcp_hub_dataplane_api::secret::SecretString>,
}

/// Ends the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Shutdown {
    /// Servers of these origins are ended with it; all others run on.
    Ending { origins: Vec<PathBuf> },
    /// Every server is ended, and origins other than the user's own configuration are forgotten.
    Everything,
}

/// The body of every refusal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) code: u8,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Paths of the API.
pub(crate) mod path {
    pub(crate) const VERSION: &str = "/version";
    pub(crate) const OBJECTS: &str = "/objects";
    pub(crate) const WATCH: &str = "/watch";
    pub(crate) const EVENTS: &str = "/events";
    pub(crate) const ORIGINS: &str = "/origins";
    pub(crate) const ORIGIN_OF: &str = "/origin-of";
    pub(crate) const ACTIONS: &str = "/actions";
    pub(crate) const PLAN: &str = "/plan";
    pub(crate) const LOGS: &str = "/logs";
    pub(crate) const ENDPOINT: &str = "/endpoint";
    pub(crate) const SECRETS: &str = "/secrets";
    pub(crate) const SHUTDOWN: &str = "/shutdown";
}
