//! This machine: its daemon, and the files that the daemon follows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mcp_hub_crds::manifest::Document;
use mcp_hub_crds::resource::DEFAULT_NAMESPACE;
use mcp_hub_crds::{MCPHub, MCPServer, Resource, ResourceKey};
use mcp_hub_local_runtime::store::RecordedEvent;
use mcp_hub_reconcile::ports::LogQuery;
use mcp_hub_reconcile::workload::BASE_DIR_ANNOTATION;
use serde_json::json;
use tokio::net::TcpStream;

use super::{Connection, Door, Scope, Target, Version};
use crate::admin::client::Admin;
use crate::admin::{
    Action, ActionRequest, DaemonVersion, HubEndpoint, LogRequest, Name, Objects, OriginPath, OriginState, Planned,
    path,
};
use crate::args::Start;
use crate::bridge_program;
use crate::commands::add::{discard, file_of, reload, store};
use crate::commands::up;
use crate::error::Error;
use crate::output;
use crate::places::Places;

/// How people get their first server here.
pub(crate) const BEGINNING: &str = "`mcpctl add NAME -- COMMAND` adds one";

#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) places: Places,
    pub(crate) admin: Admin,
}

impl Local {
    pub(crate) fn new(places: Places) -> Self {
        Self { admin: Admin::new(&places.admin_socket()), places }
    }

    async fn objects(&self) -> Result<Objects, Error> {
        self.admin.get(path::OBJECTS).await
    }
}

#[async_trait]
impl Target for Local {
    fn namespace(&self) -> &str {
        DEFAULT_NAMESPACE
    }

    fn beginning(&self) -> &'static str {
        BEGINNING
    }

    async fn servers(&self, scope: &Scope) -> Result<Vec<MCPServer>, Error> {
        let mut servers = self.objects().await?.servers;
        servers.retain(|server| scope.covers(&server.metadata));
        Ok(servers)
    }

    async fn hubs(&self, scope: &Scope) -> Result<Vec<MCPHub>, Error> {
        let mut hubs = self.objects().await?.hubs;
        hubs.retain(|hub| scope.covers(&hub.metadata));
        Ok(hubs)
    }

    async fn watch(&self, scope: &Scope) -> Result<BoxStream<'static, Result<Vec<MCPServer>, Error>>, Error> {
        let snapshots = self.admin.lines(path::WATCH, &()).await?;
        let scope = scope.clone();
        let servers = move |line: Result<String, Error>| {
            let objects: Objects = serde_json::from_str(&line?)
                .map_err(|error| Error::Silent { request: path::WATCH.to_owned(), problem: error.to_string() })?;
            let mut servers = objects.servers;
            servers.retain(|server| scope.covers(&server.metadata));
            Ok(servers)
        };
        let ended = futures::stream::once(async { Err(Error::NoDaemon) });
        Ok(snapshots.map(servers).chain(ended).boxed())
    }

    async fn events(&self, scope: &Scope) -> Result<Vec<RecordedEvent>, Error> {
        let mut events: Vec<RecordedEvent> = self.admin.get(path::EVENTS).await?;
        if let Scope::In(namespaces) = scope {
            // Events name their object as KIND NAMESPACE/NAME.
            let of = |event: &RecordedEvent| {
                let object = event.object.split_once(' ').map_or("", |(_, object)| object);
                object.split_once('/').is_some_and(|(namespace, _)| namespaces.contains(namespace))
            };
            events.retain(of);
        }
        Ok(events)
    }

    async fn origins(&self) -> Result<Vec<OriginState>, Error> {
        self.admin.get(path::ORIGINS).await
    }

    async fn problems(&self) -> Result<Vec<String>, Error> {
        let origins = self.origins().await?.into_iter();
        Ok(origins.filter_map(|origin| Some(format!("{}: {}", origin.path.display(), origin.problem?))).collect())
    }

    async fn apply(&self, documents: Vec<Document>, force_conflicts: bool) -> Result<(), Error> {
        if force_conflicts {
            return Err(Error::Elsewhere {
                what: "--force-conflicts is for clusters: on this machine nobody else sets fields".to_owned(),
                hint: Some("leave it out, or name a cluster with --target kubernetes".to_owned()),
            });
        }
        for document in documents {
            let mut resource = document.resource;
            // Relative paths go on meaning what they meant where the manifest was written.
            if let Resource::Server(server) = &mut resource {
                let file = std::path::absolute(&document.file).map_err(Error::file("find", &document.file))?;
                let base = file.parent().unwrap_or(Path::new("/"));
                let annotations = server.metadata.annotations.get_or_insert_default();
                annotations
                    .entry(BASE_DIR_ANNOTATION.to_owned())
                    .or_insert_with(|| base.to_string_lossy().into_owned());
            }
            let key = resource.key();
            store(&self.places, &resource, &file_of(&self.places, &key))?;
            output::say(&format!("{key} applied"));
        }
        reload(self).await
    }

    async fn delete(&self, key: &ResourceKey) -> Result<(), Error> {
        discard(self, key).await
    }

    async fn act(&self, action: Action, servers: &[Name]) -> Result<(), Error> {
        // The daemon takes an empty list for all.
        if servers.is_empty() {
            return Ok(());
        }
        let request = ActionRequest { action, servers: servers.to_vec() };
        self.admin.post::<Vec<String>>(path::ACTIONS, &request).await.map(drop)
    }

    async fn plan(&self, file: Option<&Path>, scope: &Scope) -> Result<Vec<Planned>, Error> {
        if let Scope::In(_) = scope {
            return Err(Error::Elsewhere {
                what: "--namespace is for plans of clusters: a plan of this machine is of all servers".to_owned(),
                hint: None,
            });
        }
        let path: Option<PathBuf> =
            file.map(|file| std::fs::canonicalize(file).map_err(Error::file("open", file))).transpose()?;
        self.admin.post(path::PLAN, &path.map(|path| OriginPath { path })).await
    }

    async fn logs(&self, server: &Name, query: LogQuery) -> Result<BoxStream<'static, Result<String, Error>>, Error> {
        let Name { namespace, name } = server.clone();
        let request = LogRequest { namespace, name, tail: query.tail, follow: query.follow };
        self.admin.lines(path::LOGS, &request).await
    }

    async fn endpoint(&self, hub: &Name) -> Result<HubEndpoint, Error> {
        self.admin.post(path::ENDPOINT, hub).await
    }

    async fn door(&self, _: &Name) -> Result<Arc<dyn Door>, Error> {
        Ok(Arc::new(Loopback))
    }

    async fn wake(&self, start: &Start) -> Result<(), Error> {
        up::ensure_daemon(self, start).await
    }

    async fn versions(&self) -> Result<Vec<Version>, Error> {
        let daemon = match self.admin.get::<DaemonVersion>(path::VERSION).await {
            Ok(daemon) => Some(daemon),
            Err(Error::NoDaemon) => None,
            Err(error) => return Err(error),
        };
        let text = daemon
            .as_ref()
            .map_or_else(|| "not running".to_owned(), |daemon| format!("{} (process {})", daemon.version, daemon.pid));
        let bridges = bridge_program::carried();
        let carried = if bridges.is_empty() { "beside mcpctl".to_owned() } else { bridges.join(", ") };
        Ok(vec![
            Version { of: "daemon", text, value: json!(daemon) },
            Version { of: "bridges", text: carried, value: json!(bridges) },
        ])
    }
}

/// Hubs of this machine listen at the address that they name.
#[derive(Debug)]
struct Loopback;

#[async_trait]
impl Door for Loopback {
    async fn open(&self, authority: &str) -> Result<Box<dyn Connection>, Error> {
        let unreachable =
            |error: std::io::Error| Error::Endpoint { url: format!("http://{authority}"), problem: error.to_string() };
        Ok(Box::new(TcpStream::connect(authority).await.map_err(unreachable)?))
    }
}
