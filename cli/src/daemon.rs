//! The local daemon: store, runtime, sink and queue of this machine, and what the admin API asks of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::BoxStream;
use kube::ResourceExt;
use mcp_hub_crds::manifest::ManifestErrors;
use mcp_hub_crds::{MCPServer, Resource, ResourceKey, ResourceKind};
use mcp_hub_local_runtime::cgroup::Delegation;
use mcp_hub_local_runtime::docker::{DockerConfig, DockerRuntime, EngineKind, Ledger, Surroundings};
use mcp_hub_local_runtime::host::Host;
use mcp_hub_local_runtime::origins::{self, Followed, LoadError};
use mcp_hub_local_runtime::process::{ProcessConfig, ProcessRuntime};
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_local_runtime::secret_source::Backends;
use mcp_hub_local_runtime::sink::LocalSink;
use mcp_hub_local_runtime::store::{LocalStore, OpenError, SyncError};
use mcp_hub_reconcile::lower::Lowered;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::plan::{plan, render};
use mcp_hub_reconcile::ports::{LogLine, LogQuery, Ports, ResourceStore};
use mcp_hub_reconcile::{controller, pass};
use tokio::sync::watch;

use crate::admin::{
    Action, ActionRequest, HubEndpoint, Name, Objects, OriginAnswer, OriginState, Planned, Shutdown, Synced, server,
};
use crate::args::Start;
use crate::bridge_program;
use crate::error::{Error, Exit, absent};
use crate::places::Places;
use crate::secret_backends;
use crate::summary::no_endpoint;

/// Ending a server takes its grace period and a little; all are ended at a time.
const END_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Daemon {
    places: Places,
    pub(crate) store: Arc<LocalStore>,
    ports: Ports,
    followed: Mutex<HashMap<PathBuf, Followed>>,
    /// Nothing is followed any more. Set while `followed` is locked, so that nobody is in the middle of it.
    closing: AtomicBool,
    /// Set once: what to end before the daemon does.
    ending: watch::Sender<Option<Vec<PathBuf>>>,
    /// Set when everything has ended, for streams that have no end of their own.
    ended: watch::Sender<bool>,
}

/// Runs the daemon until it is asked to stop, or `leave` resolves: then servers run on.
pub(crate) async fn run(
    places: Places,
    start: Start,
    leave: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    places.create()?;
    let secrets = secret_backends::open(&places);
    let store =
        LocalStore::open(places.state(), secrets.clone(), start.port.port).map_err(|error| open_failed(&error))?;
    let installation = store.installation();
    let config = ProcessConfig {
        run_dir: places.run(),
        cache_dir: places.cache().to_owned(),
        bridge: bridge_program::place(&places)?,
        installation: installation.id().to_owned(),
        host: Host { cgroup: Delegation::claim(), ..Host::of_this_process() },
    };
    let secrets = Arc::new(Backends(secrets));
    let process = ProcessRuntime::new(config, secrets.clone())
        .map_err(|error| Error::DaemonStart(mcp_hub_reconcile::error::RuntimeError::from(error).to_string()))?;
    let around = Surroundings::of_this_process();
    let engines = EngineKind::ALL.map(async |kind| {
        let config = DockerConfig {
            kind,
            around: around.clone(),
            installation: installation.clone(),
            host: Host::of_this_process(),
            bridges: bridge_program::for_containers(&places),
            relays: bridge_program::relays(),
            ledger: Ledger::new(places.images()),
        };
        (kind, DockerRuntime::start(config, secrets.clone()).await)
    });
    let engines = futures::future::join_all(engines).await;
    let runtime = RuntimeSet::new(process, engines, start.runtime.runtime.engine());
    let sink = LocalSink::new(installation.clone());
    let ports = Ports { store: store.clone(), runtime: Arc::new(runtime), sink: sink.clone(), installation };
    let daemon = Arc::new(Daemon {
        places,
        store,
        ports: ports.clone(),
        followed: Mutex::default(),
        closing: AtomicBool::new(false),
        ending: watch::Sender::new(None),
        ended: watch::Sender::new(false),
    });
    daemon.follow_known()?;

    let listener = server::bind(&daemon.places.admin_socket())?;
    let (stop, _) = watch::channel(false);
    let stopped = |mut receiver: watch::Receiver<bool>| async move {
        // An error means that this function returned, which is a stop too.
        receiver.wait_for(|stop| *stop).await.ok();
    };
    let controller = tokio::spawn(controller::run(ports, Arc::default(), stopped(stop.subscribe())));
    let admin = tokio::spawn(server::run(listener, daemon.clone(), stopped(stop.subscribe())));
    let mut ending = daemon.ending.subscribe();
    let origins = tokio::select! {
        asked = ending.wait_for(Option::is_some) => asked.map(|asked| asked.clone().unwrap_or_default()).unwrap_or_default(),
        () = leave => Vec::new(),
    };
    daemon.followed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    stop.send_replace(true);
    // A panic in there is in the log already; what is left is seen by the next daemon.
    controller.await.ok();
    daemon.end_servers(&origins).await;
    sink.shutdown().await;
    // The socket goes first, so that nobody joins a daemon that is ending.
    std::fs::remove_file(daemon.places.admin_socket()).ok();
    daemon.ended.send_replace(true);
    admin.abort();
    Ok(())
}

impl Daemon {
    /// The user's own configuration, and what a former daemon followed.
    fn follow_known(&self) -> Result<(), Error> {
        let known = self.store.origins().map_err(|error| sync_failed(&error))?;
        let own = self.places.servers();
        let others = known.into_iter().map(|origin| origin.path).filter(|path| *path != own);
        for path in std::iter::once(own.clone()).chain(others.collect::<Vec<_>>()) {
            if let Err(error) = self.follow(&path) {
                tracing::warn!(origin = %path.display(), %error, "origin not loaded; its last good version stays");
            }
        }
        Ok(())
    }

    pub(crate) fn objects(&self) -> Objects {
        let mut objects = Objects {
            servers: self.store.servers().state().iter().map(|server| MCPServer::clone(server)).collect(),
            hubs: self.store.hubs().state().iter().map(|hub| (**hub).clone()).collect(),
        };
        objects.servers.sort_by_key(|server| (server.namespace(), server.name_any()));
        objects.hubs.sort_by_key(|hub| (hub.namespace(), hub.name_any()));
        objects
    }

    /// Resolves when the daemon has ended.
    pub(crate) async fn ended(&self) {
        // The sender is gone with the daemon, which is its end too.
        self.ended.subscribe().wait_for(|ended| *ended).await.ok();
    }

    pub(crate) fn origins(&self) -> Result<Vec<OriginState>, Error> {
        let origins = self.store.origins().map_err(|error| sync_failed(&error))?;
        Ok(origins
            .into_iter()
            .map(|origin| OriginState { path: origin.path, objects: origin.objects, problem: origin.problem })
            .collect())
    }

    /// Loads the origin now and follows it from now on. An origin that cannot be read is not followed unless it was
    /// before.
    pub(crate) fn follow(&self, path: &Path) -> Result<Synced, Error> {
        let mut all = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closing.load(Ordering::Relaxed) {
            return Err(Error::NoDaemon);
        }
        // Asked first: loading makes the store know the origin, also when it fails.
        let origins = self.store.origins().map_err(|error| sync_failed(&error))?;
        let known = path == self.places.servers() || origins.iter().any(|origin| origin.path == path);
        let (followed, result) = origins::follow(self.store.clone(), path.to_owned());
        if result.is_ok() || known {
            all.insert(path.to_owned(), followed);
        } else {
            // Refused as a whole: nothing of it stays.
            drop(followed);
            self.store.remove_origin(path).map_err(|error| sync_failed(&error))?;
        }
        result.map(|synced| shown(&synced)).map_err(|error| load_failed(&error))
    }

    /// Follows the origin no more; returns when its servers are gone.
    pub(crate) async fn unfollow(&self, path: &Path) -> Result<Synced, Error> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        let removed = self.store.remove_origin(path).map_err(|error| sync_failed(&error))?;
        self.wait_gone(&removed).await?;
        Ok(Synced { removed: removed.iter().map(ToString::to_string).collect(), ..Synced::default() })
    }

    async fn wait_gone(&self, keys: &[ResourceKey]) -> Result<(), Error> {
        let mut changes = self.store.subscribe();
        let gone = async {
            loop {
                changes.borrow_and_update();
                let objects = self.objects();
                let left =
                    keys.iter().any(|key| objects.metadata(key).is_some_and(|of| of.deletion_timestamp.is_some()));
                if !left || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(END_LIMIT, gone)
            .await
            .map_err(|_| Error::TimedOut(format!("not everything ended within {} s", END_LIMIT.as_secs())))
    }

    pub(crate) fn origin_of(&self, key: &ResourceKey) -> Result<OriginAnswer, Error> {
        if self.objects().metadata(key).is_none() {
            let what = if key.kind == ResourceKind::MCPServer { "server" } else { "hub" };
            return Err(Error::NotFound { what, name: key.name.clone(), hint: None });
        }
        Ok(OriginAnswer { path: self.store.origin_of(key).map_err(|error| sync_failed(&error))? })
    }

    /// Names of the servers acted on. All names are checked before anything is done.
    pub(crate) fn act(&self, request: &ActionRequest) -> Result<Vec<String>, Error> {
        let servers = self.objects().servers;
        let all = || {
            servers
                .iter()
                .map(|server| Name { namespace: server.namespace().unwrap_or_default(), name: server.name_any() })
        };
        let chosen: Vec<Name> = if request.servers.is_empty() { all().collect() } else { request.servers.clone() };
        for wanted in &chosen {
            if !all().any(|known| known.namespace == wanted.namespace && known.name == wanted.name) {
                return Err(no_server(&wanted.name, &servers));
            }
        }
        for name in &chosen {
            let key = name.key(ResourceKind::MCPServer);
            match request.action {
                Action::Start => self.store.set_stopped(&key, false),
                Action::Stop => self.store.set_stopped(&key, true),
                Action::Restart => self.store.restart(&key),
            }
            .map_err(|error| sync_failed(&error))?;
        }
        Ok(chosen.into_iter().map(|name| name.name).collect())
    }

    /// What would be done now, or if the manifests at `path` were followed.
    pub(crate) async fn plan(&self, path: Option<&Path>) -> Result<Vec<Planned>, Error> {
        let held = self.objects().servers;
        let servers = match path {
            None => held,
            Some(path) => {
                let documents = mcp_hub_crds::manifest::load(path).map_err(|errors| invalid(&errors))?;
                let wanted = documents.into_iter().filter_map(|document| match document.resource {
                    Resource::Server(server) => Some((server, document.file)),
                    Resource::Hub(_) => None,
                });
                wanted.map(|(server, file)| placed(server, &file, &held)).collect()
            }
        };
        let mut planned = Vec::new();
        for server in servers {
            let (steps, problem) = match pass::dry_run(&server, &self.ports).await {
                Ok(steps) => (render(&steps).lines().map(str::to_owned).collect(), None),
                Err(error) => (Vec::new(), Some(error.chain())),
            };
            let namespace = server.namespace().unwrap_or_default();
            planned.push(Planned { namespace, server: server.name_any(), steps, problem });
        }
        Ok(planned)
    }

    pub(crate) async fn logs(&self, name: &Name, query: LogQuery) -> Result<BoxStream<'static, LogLine>, Error> {
        let servers = self.objects().servers;
        let server = servers
            .iter()
            .find(|server| name.is_of(&server.metadata))
            .ok_or_else(|| no_server(&name.name, &servers))?;
        let owner = self.owner(server)?;
        self.ports
            .runtime
            .console()
            .logs(&owner, query)
            .await
            .map_err(|error| refused(Exit::Failed, &error, error.hint.clone()))
    }

    fn owner(&self, server: &MCPServer) -> Result<OwnerKey, Error> {
        OwnerKey::of_server(self.ports.installation.id(), server).map_err(|error| refused(Exit::Failed, &error, None))
    }

    pub(crate) fn endpoint(&self, name: &Name) -> Result<HubEndpoint, Error> {
        let hubs = self.objects().hubs;
        let hub = hubs
            .iter()
            .find(|hub| name.is_of(&hub.metadata))
            .ok_or_else(|| absent("hub", &name.name, &hubs, "apply a manifest of one"))?;
        let url = hub.status.as_ref().and_then(|status| status.endpoint.clone()).ok_or_else(|| no_endpoint(hub))?;
        let open = hub.spec.auth.as_ref().and_then(|auth| auth.mode) == Some(mcp_hub_crds::hub::AuthMode::None);
        let token = self.ports.installation.hub_token(&hub.uid().unwrap_or_default(), 0);
        Ok(HubEndpoint { url, token: (!open).then_some(token) })
    }

    /// Lets `run` end; returns when no new work begins.
    pub(crate) async fn shut_down(&self, request: Shutdown) -> Result<(), Error> {
        let own = self.places.servers();
        let origins = match request {
            Shutdown::Ending { origins } => origins,
            Shutdown::Everything => {
                {
                    let _all = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
                    self.closing.store(true, Ordering::Relaxed);
                }
                let known = self.store.origins().map_err(|error| sync_failed(&error))?;
                let mut ended = Ok(());
                for origin in known.into_iter().filter(|origin| origin.path != own) {
                    // Each for itself: what does not end keeps nothing else running.
                    ended = ended.and(self.unfollow(&origin.path).await.map(drop));
                }
                if ended.is_err() {
                    self.closing.store(false, Ordering::Relaxed);
                    return ended;
                }
                vec![own]
            }
        };
        self.ending.send_replace(Some(origins));
        Ok(())
    }

    /// Ends what runs of these origins and keeps their objects: the next daemon starts them again.
    async fn end_servers(&self, origins: &[PathBuf]) {
        let servers = self.store.servers().state();
        let ends = servers.iter().map(|server| async move {
            let key = Name { namespace: server.namespace().unwrap_or_default(), name: server.name_any() }
                .key(ResourceKind::MCPServer);
            let origin = self.store.origin_of(&key).ok().flatten();
            if !origin.is_some_and(|origin| origins.contains(&origin)) {
                return;
            }
            if let Err(error) = self.end(server).await {
                tracing::warn!(server = %server.name_any(), %error, "not ended");
            }
        });
        futures::future::join_all(ends).await;
    }

    async fn end(&self, server: &MCPServer) -> Result<(), Error> {
        let owner = self.owner(server)?;
        let failed = |error: mcp_hub_reconcile::error::RuntimeError| refused(Exit::Failed, &error, error.hint.clone());
        let observed = self.ports.runtime.observe(&owner).await.map_err(failed)?;
        for step in plan(&Lowered::default(), &observed) {
            self.ports.runtime.execute(&owner, &step).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// A server of a file as the store would hold it: with the identity of its namesake, if there is one.
fn placed(mut server: MCPServer, file: &Path, held: &[MCPServer]) -> MCPServer {
    let namesake =
        held.iter().find(|held| held.name_any() == server.name_any() && held.namespace() == server.namespace());
    match namesake {
        Some(namesake) => {
            server.metadata.uid = namesake.metadata.uid.clone();
            server.status = namesake.status.clone();
        }
        None => server.metadata.uid = Some("not-stored-yet".to_owned()),
    }
    let folder = std::path::absolute(file).ok().and_then(|file| Some(file.parent()?.to_string_lossy().into_owned()));
    if let Some(folder) = folder {
        server.annotations_mut().entry(mcp_hub_reconcile::workload::BASE_DIR_ANNOTATION.to_owned()).or_insert(folder);
    }
    server
}

fn no_server(name: &str, servers: &[MCPServer]) -> Error {
    absent("server", name, servers, "`mcpctl add` adds one")
}

fn shown(synced: &mcp_hub_local_runtime::store::Synced) -> Synced {
    let names = |keys: &[ResourceKey]| keys.iter().map(ToString::to_string).collect();
    Synced { added: names(&synced.added), changed: names(&synced.changed), removed: names(&synced.removed) }
}

fn refused(exit: Exit, error: &dyn std::error::Error, hint: Option<String>) -> Error {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    Error::Refused { exit, message: format!("{error}{source}"), hint }
}

fn open_failed(error: &OpenError) -> Error {
    let exit = if matches!(error, OpenError::Held { .. }) { Exit::Held } else { Exit::Failed };
    refused(exit, error, error.hint())
}

pub(crate) fn sync_failed(error: &SyncError) -> Error {
    let exit = if matches!(error, SyncError::Claimed { .. }) { Exit::Held } else { Exit::Failed };
    refused(exit, error, error.hint())
}

fn load_failed(error: &LoadError) -> Error {
    match error {
        LoadError::Manifest(errors) => invalid(errors),
        LoadError::Sync(error) => sync_failed(error),
        LoadError::Watch { .. } => refused(Exit::Failed, error, error.hint()),
    }
}

/// Every error of the manifests with its own hint.
pub(crate) fn invalid(errors: &ManifestErrors) -> Error {
    Error::Invalid { message: errors.to_string(), hint: None }
}
