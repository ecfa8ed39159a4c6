//! Objects, statuses and events of one machine, in SQLite, with the origins that objects come from.
//!
//! An *origin* is a manifest file or a folder of them. [`LocalStore::sync`] makes the stored objects those of the origin,
//! in one transaction; what others see ([`live`]) follows the transaction and never comes before it. Deleted objects stay
//! until what ran for them is gone ([`ResourceStore::release`]).

mod error;
mod events;
mod live;
mod lock;
mod merge;
mod table;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use kube::ResourceExt;
use kube_runtime::reflector::Store;
use mcp_hub_crds::manifest::Document;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus, ResourceKey, ResourceKind};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::error::StoreError;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Change, Event, ResourceStore};
use mcp_hub_reconcile::status::reason;
use mcp_hub_secrets::{SecretBackend, SecretKey};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde_json::Value;
use tokio::sync::watch;

pub use error::{OpenError, SyncError};
pub use events::RecordedEvent;
use live::{Live, Writers};
use merge::Touched;

/// Annotation by which the store tells the sink the port of hubs whose spec names none.
pub const DEFAULT_PORT_ANNOTATION: &str = "mcphub.io/default-port";

/// The store of one state folder. Only one daemon has it at a time.
pub struct LocalStore {
    path: PathBuf,
    /// Held as long as the store lives.
    _lock: File,
    installation: Installation,
    secrets: Arc<dyn SecretBackend>,
    default_port: u16,
    /// A transaction appends to a file in the page cache and waits for no disk, so passes may hold this lock.
    written: Mutex<Written>,
    live: Live,
    version: watch::Sender<u64>,
}

struct Written {
    connection: Connection,
    writers: Writers,
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    pub added: Vec<ResourceKey>,
    pub changed: Vec<ResourceKey>,
    pub removed: Vec<ResourceKey>,
}

/// An origin that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub path: PathBuf,
    /// Why its last good version stands, or what of it could not be taken.
    pub problem: Option<String>,
    /// Objects that come from it.
    pub objects: usize,
}

/// Why an origin could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginProblem {
    Missing,
    /// With what is wrong.
    Invalid(String),
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LocalStore {
    /// Opens or creates the store of a state folder, and takes the folder's lock. `default_port` is the port of hubs that
    /// name none.
    pub fn open(state_dir: &Path, secrets: Arc<dyn SecretBackend>, default_port: u16) -> Result<Arc<Self>, OpenError> {
        lock::make_folder(state_dir)?;
        let held = lock::take(state_dir)?;
        let path = state_dir.join("hub.db");
        lock::make_private(&path)?;
        let key = lock::key(state_dir)?;
        let mut connection = table::open(&path)?;

        let failed = |error| OpenError::of_sqlite("read", &path, error);
        let mut begin = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let id = table::meta_or(&transaction, "installation", || {
                // Twelve digits tell the installations of one machine apart and keep derived names short.
                uuid::Uuid::new_v4().simple().to_string()[..12].to_owned()
            })?;
            merge::settle_default_hub(&transaction, default_port, &mut Touched::default())?;
            let records = table::all(&transaction)?;
            let objects: rusqlite::Result<Vec<_>> =
                records.iter().map(|record| merge::present(&transaction, record, default_port)).collect();
            let objects = objects?;
            transaction.commit()?;
            Ok((id, objects))
        };
        let (id, objects) = begin().map_err(failed)?;
        let (writers, live) = live::begin(objects);
        Ok(Arc::new(Self {
            path,
            _lock: held,
            installation: Installation::new(id, key),
            secrets,
            default_port,
            written: Mutex::new(Written { connection, writers }),
            live,
            version: watch::Sender::new(0),
        }))
    }

    pub fn installation(&self) -> Installation {
        self.installation.clone()
    }

    /// Makes the origin's objects those of the documents.
    ///
    /// # Errors
    /// [`SyncError::Claimed`] if another origin has one of the keys; all other documents were taken.
    pub fn sync(&self, origin: &Path, documents: &[Document]) -> Result<Synced, SyncError> {
        let (synced, claims) = self.change("store the manifests", |transaction, touched| {
            let wanted: Result<Vec<_>, _> = documents.iter().map(|document| merge::wanted(origin, document)).collect();
            let result = merge::sync(transaction, origin, wanted.map_err(table::unreadable)?, touched)?;
            merge::set_problem(transaction, origin, None, touched)?;
            Ok(result)
        })?;
        match claims.into_iter().next() {
            Some(claim) => Err(SyncError::Claimed { key: claim.key, origin: claim.origin }),
            None => Ok(synced),
        }
    }

    /// Records that the origin cannot be read: its last good version stays, and its objects say so.
    pub fn origin_failed(&self, origin: &Path, problem: &OriginProblem) -> Result<(), SyncError> {
        let missing;
        let problem = match problem {
            OriginProblem::Missing => {
                missing = format!("{} does not exist", origin.display());
                (reason::MANIFEST_MISSING, missing.as_str())
            }
            OriginProblem::Invalid(message) => (reason::MANIFEST_INVALID, message.as_str()),
        };
        self.change("record a problem of a manifest", |transaction, touched| {
            merge::set_problem(transaction, origin, Some(problem), touched)
        })
    }

    /// Forgets the origin and asks for the deletion of its objects, whose keys are returned.
    pub fn remove_origin(&self, origin: &Path) -> Result<Vec<ResourceKey>, SyncError> {
        self.change("remove an origin", |transaction, touched| {
            let (synced, _) = merge::sync(transaction, origin, Vec::new(), touched)?;
            transaction.execute("DELETE FROM origins WHERE path = ?1", [table::bytes(origin)])?;
            Ok(synced.removed)
        })
    }

    pub fn origins(&self) -> Result<Vec<Origin>, SyncError> {
        self.read("list the origins", |connection| {
            let mut query = connection.prepare_cached("SELECT path FROM origins ORDER BY path")?;
            let paths: Vec<Vec<u8>> = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            let describe = |bytes: Vec<u8>| {
                let path = table::path(&bytes);
                let own = merge::problem_of(connection, &path)?.map(|(_, message)| message);
                let claims = merge::claims_of(connection, &path)?;
                let claims = claims.iter().map(|c| format!("{} is already defined by {}", c.key, c.origin.display()));
                let problems: Vec<String> = own.into_iter().chain(claims).collect();
                let objects = table::of_origin(connection, &path)?;
                Ok(Origin {
                    objects: objects.iter().filter(|record| record.deleted.is_none()).count(),
                    problem: (!problems.is_empty()).then(|| problems.join("\n")),
                    path,
                })
            };
            paths.into_iter().map(describe).collect()
        })
    }

    /// Where an object comes from; `None` for the implicit hub, and if there is no such object.
    pub fn origin_of(&self, key: &ResourceKey) -> Result<Option<PathBuf>, SyncError> {
        self.read("read an object", |connection| {
            Ok(table::get(connection, key)?.and_then(|record| record.wanted.origin))
        })
    }

    /// Stops a server until it is started again, over restarts; its manifest stays as it is. `false` if there is no such
    /// server.
    pub fn set_stopped(&self, key: &ResourceKey, stopped: bool) -> Result<bool, SyncError> {
        self.change("change a server", |transaction, touched| {
            let Some(mut record) = server(transaction, key)? else { return Ok(false) };
            if record.stopped != stopped {
                record.stopped = stopped;
                table::put(transaction, &record)?;
                touched.add(key);
            }
            Ok(true)
        })
    }

    /// `false` if there is no such server.
    pub fn restart(&self, key: &ResourceKey) -> Result<bool, SyncError> {
        self.change("change a server", |transaction, touched| {
            let Some(mut record) = server(transaction, key)? else { return Ok(false) };
            record.restarted_at = Some(jiff::Timestamp::now().to_string());
            table::put(transaction, &record)?;
            touched.add(key);
            Ok(true)
        })
    }

    /// Asks for an object's deletion. `false` if there is no such object, or if it is the implicit hub, which nobody wrote.
    pub fn delete(&self, key: &ResourceKey) -> Result<bool, SyncError> {
        self.change("delete an object", |transaction, touched| {
            let Some(mut record) = table::get(transaction, key)? else { return Ok(false) };
            if record.wanted.origin.is_none() {
                return Ok(false);
            }
            if record.deleted.is_none() {
                record.deleted = Some(table::now());
                table::put(transaction, &record)?;
                touched.add(key);
            }
            Ok(true)
        })
    }

    /// The newest events, the oldest of them first.
    pub fn events(&self, limit: usize) -> Result<Vec<RecordedEvent>, SyncError> {
        self.read("read the events", |connection| events::newest(connection, limit))
    }

    /// Tells that a secret got another value, so that its users are looked at.
    pub fn secret_changed(&self, namespace: &str, name: &str) {
        self.live.tell(Change::Secret { namespace: namespace.to_owned(), name: name.to_owned() });
    }

    /// Raised with every change of objects or statuses.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        // What a panic left is a transaction that was rolled back.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        action: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SyncError> {
        read(&self.written().connection).map_err(|source| SyncError::Io { action, path: self.path.clone(), source })
    }

    /// One transaction, and then what is seen of it.
    fn change<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>, &mut Touched) -> rusqlite::Result<T>,
    ) -> Result<T, SyncError> {
        let mut written = self.written();
        let Written { connection, writers } = &mut *written;
        let commit = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut touched = Touched::default();
            let result = work(&transaction, &mut touched)?;
            merge::settle_default_hub(&transaction, self.default_port, &mut touched)?;
            let mut views = Vec::new();
            for key in touched.shown {
                let record = table::get(&transaction, &key)?;
                let object = record.map(|record| merge::present(&transaction, &record, self.default_port));
                views.push((key, object.transpose()?));
            }
            transaction.commit()?;
            Ok((result, views, touched.told))
        };
        let (result, views, told) =
            commit().map_err(|source| SyncError::Io { action, path: self.path.clone(), source })?;
        if views.is_empty() {
            return Ok(result);
        }
        for (key, object) in views {
            match object {
                Some(object) => writers.show(object),
                None => writers.hide(&key, &self.live),
            }
        }
        for key in told {
            self.live.tell(live::change_of(&key));
        }
        self.version.send_modify(|version| *version = version.wrapping_add(1));
        Ok(result)
    }

    /// Writes the status of the object of this key, if it still is the one with this uid.
    fn write_status(&self, key: &ResourceKey, uid: Option<&str>, status: Value) -> Result<(), StoreError> {
        let found = self.change("write a status", |transaction, touched| {
            let record = table::get(transaction, key)?.filter(|record| Some(record.uid.as_str()) == uid);
            let Some(mut record) = record else { return Ok(false) };
            let status = Some(status);
            if record.status != status {
                record.status = status;
                table::put(transaction, &record)?;
                touched.shown.insert(key.clone());
                if key.kind == ResourceKind::MCPServer {
                    // Hubs offer a server by what its status says; nothing depends on the status of a hub.
                    touched.told.insert(key.clone());
                }
            }
            Ok(true)
        })?;
        if found { Ok(()) } else { Err(StoreError::Conflict { object: key.to_string() }) }
    }
}

/// The server of this key, unless it is being deleted.
fn server(connection: &Connection, key: &ResourceKey) -> rusqlite::Result<Option<table::Record>> {
    let record = table::get(connection, key)?;
    Ok(record.filter(|record| key.kind == ResourceKind::MCPServer && record.deleted.is_none()))
}

fn unwritable(key: &ResourceKey, error: serde_json::Error) -> StoreError {
    StoreError::Io { action: "write the status of", object: key.to_string(), source: error.into() }
}

#[async_trait]
impl ResourceStore for LocalStore {
    fn servers(&self) -> Store<MCPServer> {
        self.live.servers.clone()
    }

    fn hubs(&self) -> Store<MCPHub> {
        self.live.hubs.clone()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        self.live.changes()
    }

    async fn write_server_status(&self, server: &MCPServer, status: &MCPServerStatus) -> Result<(), StoreError> {
        let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
        let key = ResourceKey { kind: ResourceKind::MCPServer, namespace, name };
        let status = serde_json::to_value(status).map_err(|error| unwritable(&key, error))?;
        self.write_status(&key, server.metadata.uid.as_deref(), status)
    }

    async fn write_hub_status(&self, hub: &MCPHub, status: &MCPHubStatus) -> Result<(), StoreError> {
        let (namespace, name) = (hub.namespace().unwrap_or_default(), hub.name_any());
        let key = ResourceKey { kind: ResourceKind::MCPHub, namespace, name };
        let status = serde_json::to_value(status).map_err(|error| unwritable(&key, error))?;
        self.write_status(&key, hub.metadata.uid.as_deref(), status)
    }

    async fn secret(&self, _namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, StoreError> {
        // The backends of one machine know no namespaces.
        let wanted = SecretKey { name: key.name.clone(), key: key.key.clone() };
        let value = self.secrets.get(&wanted).await.map_err(|error| StoreError::Secret {
            name: key.name.clone(),
            key: key.key.clone(),
            message: error.to_string(),
            hint: error.hint(),
        })?;
        Ok(value.map(|value| SecretString::new(value.expose_secret())))
    }

    async fn release(&self, owner: &OwnerKey) -> Result<(), StoreError> {
        Ok(self.change("let an object go", |transaction, touched| merge::release(transaction, &owner.uid, touched))?)
    }

    async fn publish(&self, event: Event) {
        let recorded = self.change("record an event", |transaction, _| events::record(transaction, &event));
        if let Err(error) = recorded {
            tracing::warn!(owner = %event.owner, reason = event.reason, error = %error, "an event is not recorded");
        }
    }
}
