//! Objects of one machine: specs from origins, statuses, events, in SQLite; and the same in memory for the queue.
//!
//! A directory or file is an *origin*. What vanishes from it is deleted; what it cannot say keeps its last good version.
//! One process at a time has the store, which a lock beside it makes sure of.

mod database;
mod identity;
mod object;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use kube::ResourceExt;
use kube_runtime::reflector::store::Writer;
use kube_runtime::reflector::{self, ObjectRef, Store};
use kube_runtime::watcher;
use mcp_hub_crds::manifest::Document;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus, Resource, ResourceKey, ResourceKind};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::error::StoreError;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::ports::{Change, Event, ResourceStore};
use mcp_hub_secrets::{SecretBackend, SecretKey};
use tokio::sync::{broadcast, watch};

use database::Database;
pub use database::RecordedEvent;
pub use identity::OpenError;
use object::Row;

/// Changes that a slow listener may lag behind before it is told of everything again.
const CHANGES: usize = 4096;
/// Name of the hub that is there while no origin defines one.
const IMPLICIT_HUB: &str = "default";

/// The store of one machine.
#[derive(Debug)]
pub struct LocalStore {
    inner: Mutex<Inner>,
    servers: Store<MCPServer>,
    hubs: Store<MCPHub>,
    changes: broadcast::Sender<Change>,
    /// Counts changes of objects and statuses.
    revision: watch::Sender<u64>,
    secrets: Arc<dyn SecretBackend>,
    installation: Installation,
    /// Held as long as this lives.
    _lock: File,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    servers: Writer<MCPServer>,
    hubs: Writer<MCPHub>,
}

/// What taking an origin over did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    pub added: Vec<ResourceKey>,
    pub changed: Vec<ResourceKey>,
    pub removed: Vec<ResourceKey>,
}

/// A file or folder that objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub path: PathBuf,
    /// Why it could not be taken over as it is now.
    pub problem: Option<String>,
    pub objects: usize,
}

/// Why an origin could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginProblem {
    Missing,
    /// With every error of its manifests.
    Invalid(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("{key} already comes from {}", .origin.display())]
    Claimed { key: ResourceKey, origin: PathBuf },
    #[error("could not {action} in the store")]
    Io {
        action: &'static str,
        #[source]
        source: rusqlite::Error,
    },
}

impl SyncError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Claimed { key, .. } => Some(format!("rename `{}`, or take it out of one of the two", key.name)),
            Self::Io { source, .. } => identity::database_hint(source),
        }
    }

    fn io(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

impl LocalStore {
    /// Opens or creates `STATE/hub.db`, for this user only, and takes `STATE/daemon.lock`.
    ///
    /// # Errors
    /// [`OpenError::Held`] with the holder's process id if another daemon has the store.
    pub fn open(state_dir: &Path, secrets: Arc<dyn SecretBackend>) -> Result<Arc<Self>, OpenError> {
        let lock = identity::lock(state_dir)?;
        let path = state_dir.join("hub.db");
        let database = Database::open(&path).map_err(|source| OpenError::Database { path: path.clone(), source })?;
        let installation = identity::installation(state_dir, &database)?;
        let (servers, server_writer) = reflector::store();
        let (hubs, hub_writer) = reflector::store();
        let store = Arc::new(Self {
            inner: Mutex::new(Inner { database, servers: server_writer, hubs: hub_writer }),
            servers,
            hubs,
            changes: broadcast::Sender::new(CHANGES),
            revision: watch::Sender::new(0),
            secrets,
            installation,
            _lock: lock,
        });
        let failed = |source| OpenError::Database { path: path.clone(), source };
        let mut inner = store.inner();
        let rows = inner.database.objects().map_err(failed)?;
        inner.servers.apply_watcher_event(&watcher::Event::Init);
        inner.hubs.apply_watcher_event(&watcher::Event::Init);
        for row in &rows {
            match row.resource() {
                Some(Resource::Server(server)) => {
                    inner.servers.apply_watcher_event(&watcher::Event::InitApply(server));
                }
                Some(Resource::Hub(hub)) => inner.hubs.apply_watcher_event(&watcher::Event::InitApply(hub)),
                None => tracing::warn!(object = %row.key, "an object of another release cannot be read"),
            }
        }
        inner.servers.apply_watcher_event(&watcher::Event::InitDone);
        inner.hubs.apply_watcher_event(&watcher::Event::InitDone);
        drop(inner);
        store.change("make the implicit hub", implicit_hub).map_err(|error| match error {
            SyncError::Io { source, .. } => failed(source),
            // Nothing is claimed by a hub that yields to every other.
            SyncError::Claimed { .. } => failed(rusqlite::Error::InvalidQuery),
        })?;
        Ok(store)
    }

    /// Identity and key of this machine's installation.
    pub fn installation(&self) -> Installation {
        self.installation.clone()
    }

    /// Takes over what an origin holds now, in one transaction: new objects, changed ones, and those it holds no more.
    ///
    /// # Errors
    /// [`SyncError::Claimed`] if another origin has one of the objects; all others are taken over, and the origin keeps
    /// the problem until it is solved.
    pub fn sync(&self, origin: &Path, documents: &[Document]) -> Result<Synced, SyncError> {
        let mut synced = Synced::default();
        let mut claimed = None;
        self.change("take an origin over", |database, touched| {
            let held = database.objects_of(origin)?;
            for document in documents {
                let wanted = Row::new(&document.resource, origin, &document.file);
                match database.object(&wanted.key)? {
                    Some(current) if current.deleted_at.is_some() => {
                        // It comes back as a new object when the old one's children are gone.
                        database.put_successor(&wanted)?;
                    }
                    Some(current) if current.origin.as_deref().is_some_and(|other| other != origin) => {
                        let other = current.origin.clone().unwrap_or_default();
                        claimed.get_or_insert(SyncError::Claimed { key: wanted.key.clone(), origin: other });
                    }
                    Some(current) => {
                        if let Some(row) = current.changed_to(&wanted) {
                            database.put(&row)?;
                            synced.changed.push(row.key.clone());
                            touched.push(row.key);
                        }
                    }
                    None => {
                        database.put(&wanted)?;
                        synced.added.push(wanted.key.clone());
                        touched.push(wanted.key);
                    }
                }
            }
            let wanted: Vec<ResourceKey> = documents.iter().map(|document| document.resource.key()).collect();
            for row in held.into_iter().filter(|row| !wanted.contains(&row.key)) {
                if row.deleted_at.is_none() {
                    database.mark_deleted(&row.key)?;
                    synced.removed.push(row.key.clone());
                    touched.push(row.key);
                } else {
                    database.drop_successor(&row.key)?;
                }
            }
            // Objects show the problem of their origin, so they change when it goes.
            let problem = claimed.as_ref().map(ToString::to_string);
            if database.set_problem(origin, problem.as_deref())? {
                touched.extend(database.objects_of(origin)?.into_iter().map(|row| row.key));
            }
            implicit_hub(database, touched)
        })?;
        claimed.map_or(Ok(synced), Err)
    }

    /// The origin cannot be read: its last good version stays, and its objects say why.
    pub fn origin_failed(&self, origin: &Path, problem: &OriginProblem) -> Result<(), SyncError> {
        let text = match problem {
            OriginProblem::Missing => format!("{} is not there", origin.display()),
            OriginProblem::Invalid(errors) => errors.clone(),
        };
        self.change("note an origin's problem", |database, touched| {
            if database.set_problem(origin, Some(&text))? {
                touched.extend(database.objects_of(origin)?.into_iter().map(|row| row.key));
            }
            Ok(())
        })
    }

    /// Forgets the origin and deletes its objects.
    pub fn remove_origin(&self, origin: &Path) -> Result<Vec<ResourceKey>, SyncError> {
        let mut removed = Vec::new();
        self.change("remove an origin", |database, touched| {
            for row in database.objects_of(origin)? {
                if row.deleted_at.is_none() {
                    database.mark_deleted(&row.key)?;
                }
                database.drop_successor(&row.key)?;
                removed.push(row.key.clone());
                touched.push(row.key);
            }
            database.forget_origin(origin)?;
            implicit_hub(database, touched)
        })?;
        Ok(removed)
    }

    pub fn origins(&self) -> Result<Vec<Origin>, SyncError> {
        self.inner().database.origins().map_err(SyncError::io("list origins"))
    }

    /// `None` for the implicit hub, and for what is not there.
    pub fn origin_of(&self, key: &ResourceKey) -> Result<Option<PathBuf>, SyncError> {
        let row = self.inner().database.object(key).map_err(SyncError::io("read an object"))?;
        Ok(row.and_then(|row| row.origin))
    }

    /// Keeps a server stopped, or lets it run again; `false` if there is no such server.
    pub fn set_stopped(&self, key: &ResourceKey, stopped: bool) -> Result<bool, SyncError> {
        self.edit(key, |row| row.stopped = stopped)
    }

    /// Asks for a restart; `false` if there is no such server.
    pub fn restart(&self, key: &ResourceKey) -> Result<bool, SyncError> {
        self.edit(key, |row| row.restarted_at = Some(object::now()))
    }

    fn edit(&self, key: &ResourceKey, edit: impl FnOnce(&mut Row)) -> Result<bool, SyncError> {
        let mut found = false;
        self.change("change an object", |database, touched| {
            if let Some(mut row) = database.object(key)?.filter(|row| row.deleted_at.is_none()) {
                let before = row.clone();
                edit(&mut row);
                found = true;
                if row != before {
                    database.put(&row)?;
                    touched.push(key.clone());
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The newest events, oldest of them first.
    pub fn events(&self, limit: usize) -> Result<Vec<RecordedEvent>, SyncError> {
        self.inner().database.events(limit).map_err(SyncError::io("list events"))
    }

    /// A backend has another value for the secret now.
    pub fn secret_changed(&self, namespace: &str, name: &str) {
        self.tell(Change::Secret { namespace: namespace.to_owned(), name: name.to_owned() });
    }

    /// Told of every change of an object or a status.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: Change) {
        // Nobody listening is no loss: who listens later begins with everything.
        self.changes.send(change).ok();
    }

    /// Runs one transaction, then shows the touched objects in memory and tells of them.
    fn change(
        &self,
        action: &'static str,
        work: impl FnOnce(&Database, &mut Vec<ResourceKey>) -> rusqlite::Result<()>,
    ) -> Result<(), SyncError> {
        let mut touched = Vec::new();
        let mut inner = self.inner();
        inner.database.transaction(|database| work(database, &mut touched)).map_err(SyncError::io(action))?;
        let before: Vec<_> = touched.iter().map(|key| self.shown(key)).collect();
        for key in &touched {
            let row = inner.database.object(key).map_err(SyncError::io(action))?;
            inner.show(key, row, &before);
        }
        drop(inner);
        for key in &touched {
            self.tell(change_of(key));
        }
        if !touched.is_empty() {
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(())
    }

    /// The object as it is in memory.
    fn shown(&self, key: &ResourceKey) -> Option<Resource> {
        match key.kind {
            ResourceKind::MCPServer => {
                let server = self.servers.get(&ObjectRef::new(&key.name).within(&key.namespace))?;
                Some(Resource::Server(MCPServer::clone(&server)))
            }
            ResourceKind::MCPHub => {
                let hub = self.hubs.get(&ObjectRef::new(&key.name).within(&key.namespace))?;
                Some(Resource::Hub(MCPHub::clone(&hub)))
            }
        }
    }

    fn write_status(&self, key: &ResourceKey, uid: Option<&str>, status: serde_json::Value) -> Result<(), StoreError> {
        let mut conflict = false;
        self.change("write a status", |database, touched| {
            match database.object(key)? {
                Some(mut row) if Some(row.uid.as_str()) == uid => {
                    row.status = Some(status);
                    database.put(&row)?;
                    touched.push(key.clone());
                }
                Some(_) | None => conflict = true,
            }
            Ok(())
        })
        .map_err(|error| store_error("write the status of", key, error))?;
        if conflict { Err(StoreError::Conflict { object: key.to_string() }) } else { Ok(()) }
    }

    /// Everything there is, as changes.
    fn everything(&self) -> VecDeque<Change> {
        let servers = self.servers.state();
        let hubs = self.hubs.state();
        let servers = servers.iter().map(|server| Change::Server(ObjectRef::from(&**server)));
        servers.chain(hubs.iter().map(|hub| Change::Hub(ObjectRef::from(&**hub)))).collect()
    }
}

impl Inner {
    /// Brings the object in memory up to its row; without a row it goes.
    fn show(&mut self, key: &ResourceKey, row: Option<Row>, before: &[Option<Resource>]) {
        match row.and_then(|row| row.resource()) {
            Some(Resource::Server(server)) => self.servers.apply_watcher_event(&watcher::Event::Apply(server)),
            Some(Resource::Hub(hub)) => self.hubs.apply_watcher_event(&watcher::Event::Apply(hub)),
            None => {
                for old in before.iter().flatten().filter(|old| old.key() == *key) {
                    match old.clone() {
                        Resource::Server(server) => {
                            self.servers.apply_watcher_event(&watcher::Event::Delete(server));
                        }
                        Resource::Hub(hub) => self.hubs.apply_watcher_event(&watcher::Event::Delete(hub)),
                    }
                }
            }
        }
    }
}

/// While no origin defines a hub there is the implicit one; its uid never changes, so that its token does not.
fn implicit_hub(database: &Database, touched: &mut Vec<ResourceKey>) -> rusqlite::Result<()> {
    let key = ResourceKey {
        kind: ResourceKind::MCPHub,
        namespace: mcp_hub_crds::resource::DEFAULT_NAMESPACE.to_owned(),
        name: IMPLICIT_HUB.to_owned(),
    };
    let hubs: Vec<Row> = database
        .objects()?
        .into_iter()
        .filter(|row| row.key.kind == ResourceKind::MCPHub && row.deleted_at.is_none())
        .collect();
    let implicit = hubs.iter().find(|row| row.origin.is_none());
    let defined = hubs.iter().any(|row| row.origin.is_some());
    match (implicit, defined) {
        (None, false) if database.object(&key)?.is_none() => {
            let mut hub = MCPHub::new(IMPLICIT_HUB, mcp_hub_crds::MCPHubSpec::default());
            hub.metadata.namespace = Some(key.namespace.clone());
            let mut row = Row::implicit(&Resource::Hub(hub));
            row.uid = database.meta_or("implicit-hub-uid", || row.uid.clone())?;
            database.put(&row)?;
            touched.push(key);
        }
        (Some(_), true) => {
            database.mark_deleted(&key)?;
            touched.push(key);
        }
        (None, _) | (Some(_), false) => {}
    }
    Ok(())
}

fn change_of(key: &ResourceKey) -> Change {
    match key.kind {
        ResourceKind::MCPServer => Change::Server(ObjectRef::new(&key.name).within(&key.namespace)),
        ResourceKind::MCPHub => Change::Hub(ObjectRef::new(&key.name).within(&key.namespace)),
    }
}

fn store_error(action: &'static str, key: &ResourceKey, error: SyncError) -> StoreError {
    StoreError::Io { action, object: key.to_string(), source: Box::new(error) }
}

#[async_trait]
impl ResourceStore for LocalStore {
    fn servers(&self) -> Store<MCPServer> {
        self.servers.clone()
    }

    fn hubs(&self) -> Store<MCPHub> {
        self.hubs.clone()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        let receiver = self.changes.subscribe();
        let start = (receiver, self.everything(), self.servers.clone(), self.hubs.clone());
        futures::stream::unfold(start, |(mut receiver, mut backlog, servers, hubs)| async move {
            loop {
                if let Some(change) = backlog.pop_front() {
                    return Some((change, (receiver, backlog, servers, hubs)));
                }
                match receiver.recv().await {
                    Ok(change) => return Some((change, (receiver, backlog, servers, hubs))),
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        backlog.extend(servers.state().iter().map(|server| Change::Server(ObjectRef::from(&**server))));
                        backlog.extend(hubs.state().iter().map(|hub| Change::Hub(ObjectRef::from(&**hub))));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    async fn write_server_status(&self, server: &MCPServer, status: &MCPServerStatus) -> Result<(), StoreError> {
        let key = Resource::Server(server.clone()).key();
        self.write_status(&key, server.uid().as_deref(), serde_json::to_value(status).unwrap_or_default())
    }

    async fn write_hub_status(&self, hub: &MCPHub, status: &MCPHubStatus) -> Result<(), StoreError> {
        let key = Resource::Hub(hub.clone()).key();
        self.write_status(&key, hub.uid().as_deref(), serde_json::to_value(status).unwrap_or_default())
    }

    /// One user's secrets: namespaces do not divide them.
    async fn secret(&self, _: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, StoreError> {
        let wanted = SecretKey { name: key.name.clone(), key: key.key.clone() };
        match self.secrets.get(&wanted).await {
            Ok(value) => Ok(value.map(|value| SecretString::new(value.expose_secret()))),
            Err(error) => Err(StoreError::Secret {
                name: key.name.clone(),
                key: key.key.clone(),
                message: error.to_string(),
                hint: error.hint(),
            }),
        }
    }

    async fn release(&self, owner: &OwnerKey) -> Result<(), StoreError> {
        let kind = match owner.kind {
            OwnerKind::MCPServer => ResourceKind::MCPServer,
            OwnerKind::MCPHub => ResourceKind::MCPHub,
        };
        let key = ResourceKey { kind, namespace: owner.namespace.clone(), name: owner.name.clone() };
        self.change("release an object", |database, touched| {
            let current = database.object(&key)?;
            if current.is_some_and(|row| row.uid == owner.uid && row.deleted_at.is_some()) {
                database.remove(&key)?;
                touched.push(key.clone());
                if let Some(successor) = database.take_successor(&key)? {
                    database.put(&successor)?;
                }
                implicit_hub(database, touched)?;
            }
            Ok(())
        })
        .map_err(|error| store_error("release", &key, error))
    }

    async fn publish(&self, event: Event) {
        if let Err(error) = self.inner().database.record(&event) {
            tracing::warn!(%error, owner = %event.owner, "event not recorded");
        }
    }
}
