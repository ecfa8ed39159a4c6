//! Where commands act: the daemon of this machine, or a cluster. A command is written once, over [`Target`].

pub(crate) mod kubernetes;
pub(crate) mod local;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use kube::core::ObjectMeta;
use mcp_hub_crds::manifest::Document;
use mcp_hub_crds::{MCPHub, MCPServer, ResourceKey};
use mcp_hub_local_runtime::store::RecordedEvent;
use mcp_hub_reconcile::ports::LogQuery;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::admin::{Action, HubEndpoint, Name, OriginState, Planned};
use crate::args::{HubChoice, Namespace, Place, Start};
use crate::error::Error;
use crate::places::Places;
use local::Local;

/// The place that was asked for. A cluster's client is made here, and only for a cluster.
pub(crate) async fn open(place: &Place) -> Result<Box<dyn Target>, Error> {
    Ok(match place {
        Place::Local => Box::new(Local::new(Places::find()?)),
        Place::Kubernetes { context } => Box::new(kubernetes::Cluster::connect(context.as_deref()).await?),
    })
}

/// What commands need of the place where they act.
///
/// # Errors
/// Each method fails with an exit code of its own for: no answer, nothing of that name, not allowed, invalid.
#[async_trait]
pub(crate) trait Target: fmt::Debug + Send + Sync {
    /// Namespace of what is named without one.
    fn namespace(&self) -> &str;

    /// How people get their first server here.
    fn beginning(&self) -> &'static str;

    /// Ordered by namespace and name.
    async fn servers(&self, scope: &Scope) -> Result<Vec<MCPServer>, Error>;

    /// Ordered by namespace and name.
    async fn hubs(&self, scope: &Scope) -> Result<Vec<MCPHub>, Error>;

    /// Servers at once and after each change, until the place is gone.
    async fn watch(&self, scope: &Scope) -> Result<BoxStream<'static, Result<Vec<MCPServer>, Error>>, Error>;

    /// What happened to objects, oldest first.
    async fn events(&self, scope: &Scope) -> Result<Vec<RecordedEvent>, Error>;

    /// Files and folders that are followed here.
    async fn origins(&self) -> Result<Vec<OriginState>, Error>;

    /// What is wrong with the place rather than with an object of it.
    async fn problems(&self) -> Result<Vec<String>, Error>;

    /// Takes manifests over, and says so of each.
    async fn apply(&self, documents: Vec<Document>, force_conflicts: bool) -> Result<(), Error>;

    async fn delete(&self, key: &ResourceKey) -> Result<(), Error>;

    /// Acts on servers, of which all are known to exist before anything is done.
    async fn act(&self, action: Action, servers: &[Name]) -> Result<(), Error>;

    /// What would be done now, or if the manifests of a file or folder were applied. Nothing is changed.
    async fn plan(&self, file: Option<&Path>, scope: &Scope) -> Result<Vec<Planned>, Error>;

    async fn logs(&self, server: &Name, query: LogQuery) -> Result<BoxStream<'static, Result<String, Error>>, Error>;

    /// Where clients reach a hub, and with what.
    async fn endpoint(&self, hub: &Name) -> Result<HubEndpoint, Error>;

    /// How this program reaches it.
    async fn door(&self, hub: &Name) -> Result<Arc<dyn Door>, Error>;

    /// Sees to it that the place serves, where that is in this program's power. `port`: of hubs that name none.
    async fn wake(&self, start: &Start) -> Result<(), Error>;

    /// What acts here besides this program.
    async fn versions(&self) -> Result<Vec<Version>, Error>;
}

impl dyn Target + '_ {
    pub(crate) fn named(&self, namespace: &Namespace, name: &str) -> Name {
        let namespace = namespace.namespace.as_deref().unwrap_or_else(|| self.namespace());
        Name { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn hub(&self, choice: &HubChoice) -> Name {
        self.named(&choice.namespace, &choice.hub)
    }
}

/// The namespaces that a command looks into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of this machine; the context's of a cluster.
    Usual,
    All,
    In(BTreeSet<String>),
}

impl Scope {
    pub(crate) fn of(namespace: &str) -> Self {
        Self::In(BTreeSet::from([namespace.to_owned()]))
    }

    /// The scope that a command's own namespace makes.
    pub(crate) fn asked(namespace: &Namespace) -> Self {
        namespace.namespace.as_deref().map_or(Self::Usual, Self::of)
    }

    /// Whether it lies in a scope that is taken as it is.
    pub(crate) fn covers(&self, metadata: &ObjectMeta) -> bool {
        match self {
            Self::Usual | Self::All => true,
            Self::In(namespaces) => metadata.namespace.as_ref().is_some_and(|one| namespaces.contains(one)),
        }
    }
}

/// A part of MCP Hub and its version, for people and for programs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Version {
    pub(crate) of: &'static str,
    pub(crate) text: String,
    pub(crate) value: serde_json::Value,
}

/// A way to a hub's endpoint.
#[async_trait]
pub(crate) trait Door: fmt::Debug + Send + Sync {
    /// A connection of its own. `authority`: `HOST:PORT` of the endpoint.
    async fn open(&self, authority: &str) -> Result<Box<dyn Connection>, Error>;
}

/// Bytes there and back.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
