//! The database: its tables, and objects as rows of them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use mcp_hub_crds::{GROUP, ResourceKey, ResourceKind, VERSION};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::error::OpenError;

/// Raised by a change that an older release cannot live with.
const FORMAT: i64 = 1;

/// `objects` holds what exists, `waiting` what is to exist once the key is free: the successor of an object that is being
/// deleted, or what a second origin wants under a key that it may not have. Paths are bytes, as the system has them.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (path BLOB PRIMARY KEY, reason TEXT, message TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    uid TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL, revision INTEGER NOT NULL,
    created TEXT NOT NULL, deleted TEXT,
    origin BLOB, base_dir TEXT, manifest TEXT NOT NULL, status TEXT,
    stopped INTEGER NOT NULL, restarted_at TEXT,
    PRIMARY KEY (kind, namespace, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    origin BLOB NOT NULL, base_dir TEXT, manifest TEXT NOT NULL,
    UNIQUE (kind, namespace, name, origin)
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, object TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
    message TEXT NOT NULL, count INTEGER NOT NULL
) STRICT;
";

pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error| OpenError::of_sqlite("open", path, error);
    let connection = Connection::open(path).map_err(failed)?;
    let prepare = || {
        connection.busy_timeout(Duration::from_secs(5))?;
        // The daemon's lock makes it the only user; SQLite then needs no shared memory beside the file.
        connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        // Survives the death of the daemon at any point. The death of the machine may take the last transactions, never a
        // part of one; what they said is in the manifests and on the machine.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
    };
    let found = prepare().map_err(failed)?;
    if found > FORMAT {
        return Err(OpenError::Newer { path: path.to_owned(), found });
    }
    let make = format!("BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {FORMAT}; COMMIT;");
    connection.execute_batch(&make).map_err(failed)?;
    Ok(connection)
}

/// What an origin wants to exist.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub(super) key: ResourceKey,
    /// `None` for the implicit hub, which nobody wrote.
    pub(super) origin: Option<PathBuf>,
    pub(super) base_dir: Option<String>,
    /// Labels and annotations of the metadata, and the spec.
    pub(super) manifest: Value,
}

/// One object as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub(super) wanted: Wanted,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) created: String,
    pub(super) deleted: Option<String>,
    pub(super) status: Option<Value>,
    pub(super) stopped: bool,
    pub(super) restarted_at: Option<String>,
    pub(super) revision: i64,
}

impl Record {
    pub(super) fn new(wanted: Wanted, uid: String) -> Self {
        Self {
            wanted,
            uid,
            generation: 1,
            created: now(),
            deleted: None,
            status: None,
            stopped: false,
            restarted_at: None,
            revision: 0,
        }
    }

    /// Takes what is wanted now; whether that changed anything.
    pub(super) fn update(&mut self, wanted: Wanted) -> bool {
        if self.wanted == wanted && self.deleted.is_none() {
            return false;
        }
        if self.wanted.manifest["spec"] != wanted.manifest["spec"] {
            self.generation += 1;
        }
        self.wanted = wanted;
        self.deleted = None;
        true
    }

    /// The object as the API shows it; `annotations` are added to its own.
    pub(super) fn document(&self, annotations: Vec<(&str, String)>) -> Value {
        let key = &self.wanted.key;
        let mut metadata = json!({
            "name": key.name,
            "namespace": key.namespace,
            "uid": self.uid,
            "generation": self.generation,
            "resourceVersion": self.revision.to_string(),
            "creationTimestamp": self.created,
        });
        for name in ["labels", "annotations"] {
            let value = &self.wanted.manifest[name];
            if value.is_object() {
                metadata[name] = value.clone();
            }
        }
        for (name, value) in annotations {
            metadata["annotations"][name] = value.into();
        }
        if let Some(deleted) = &self.deleted {
            metadata["deletionTimestamp"] = deleted.as_str().into();
        }
        let mut document = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": key.kind.as_str(),
            "metadata": metadata,
            "spec": self.wanted.manifest["spec"],
        });
        if let Some(status) = &self.status {
            document["status"] = status.clone();
        }
        document
    }
}

/// This second, as objects carry it.
pub(super) fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

pub(super) fn new_uid() -> String {
    Uuid::now_v7().to_string()
}

pub(super) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
}

/// The value that is stored, or `value` from now on.
pub(super) fn meta_or(connection: &Connection, name: &str, value: impl FnOnce() -> String) -> rusqlite::Result<String> {
    if let Some(found) = meta(connection, name)? {
        return Ok(found);
    }
    let value = value();
    connection.execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", params![name, value])?;
    Ok(value)
}

/// A number greater than all before.
fn next_revision(connection: &Connection) -> rusqlite::Result<i64> {
    let last = meta(connection, "revision")?.and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    connection
        .execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('revision', ?1)", [(last + 1).to_string()])?;
    Ok(last + 1)
}

pub(super) fn get(connection: &Connection, key: &ResourceKey) -> rusqlite::Result<Option<Record>> {
    connection
        .prepare_cached("SELECT * FROM objects WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?
        .query_row(params![key.kind.as_str(), key.namespace, key.name], record)
        .optional()
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Record>> {
    connection.prepare_cached("SELECT * FROM objects")?.query_map([], record)?.collect()
}

pub(super) fn of_origin(connection: &Connection, origin: &Path) -> rusqlite::Result<Vec<Record>> {
    let mut query = connection.prepare_cached("SELECT * FROM objects WHERE origin = ?1")?;
    query.query_map([bytes(origin)], record)?.collect()
}

pub(super) fn of_uid(connection: &Connection, uid: &str) -> rusqlite::Result<Option<Record>> {
    connection.prepare_cached("SELECT * FROM objects WHERE uid = ?1")?.query_row([uid], record).optional()
}

/// Whether any origin defines a hub, or will as soon as its key is free.
pub(super) fn any_hub(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM objects WHERE kind = ?1 AND origin IS NOT NULL AND deleted IS NULL)
               OR EXISTS (SELECT 1 FROM waiting WHERE kind = ?1)";
    connection.prepare_cached(sql)?.query_row([ResourceKind::MCPHub.as_str()], |row| row.get(0))
}

/// Stores the record under a new revision.
pub(super) fn put(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    let Record { wanted, uid, generation, created, deleted, status, stopped, restarted_at, revision: _ } = record;
    let Wanted { key, origin, base_dir, manifest } = wanted;
    let revision = next_revision(connection)?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO objects VALUES (:kind, :namespace, :name, :uid, :generation, :revision, :created,
             :deleted, :origin, :base_dir, :manifest, :status, :stopped, :restarted_at)",
        )?
        .execute(named_params! {
            ":kind": key.kind.as_str(),
            ":namespace": key.namespace,
            ":name": key.name,
            ":uid": uid,
            ":generation": generation,
            ":revision": revision,
            ":created": created,
            ":deleted": deleted,
            ":origin": origin.as_deref().map(bytes),
            ":base_dir": base_dir,
            ":manifest": manifest.to_string(),
            ":status": status.as_ref().map(ToString::to_string),
            ":stopped": stopped,
            ":restarted_at": restarted_at,
        })?;
    Ok(())
}

pub(super) fn remove(connection: &Connection, key: &ResourceKey) -> rusqlite::Result<()> {
    let sql = "DELETE FROM objects WHERE kind = ?1 AND namespace = ?2 AND name = ?3";
    connection.execute(sql, params![key.kind.as_str(), key.namespace, key.name])?;
    Ok(())
}

/// Who waits for the key, the first first.
pub(super) fn waiting_for(connection: &Connection, key: &ResourceKey) -> rusqlite::Result<Vec<Wanted>> {
    let sql = "SELECT * FROM waiting WHERE kind = ?1 AND namespace = ?2 AND name = ?3 ORDER BY id";
    let mut query = connection.prepare_cached(sql)?;
    query.query_map(params![key.kind.as_str(), key.namespace, key.name], wanted)?.collect()
}

pub(super) fn all_waiting(connection: &Connection) -> rusqlite::Result<Vec<Wanted>> {
    connection.prepare_cached("SELECT * FROM waiting ORDER BY id")?.query_map([], wanted)?.collect()
}

/// A place in the queue for the key is kept when what is wanted changes.
pub(super) fn put_waiting(connection: &Connection, wanted: &Wanted) -> rusqlite::Result<()> {
    let Wanted { key, origin, base_dir, manifest } = wanted;
    let sql = "INSERT INTO waiting (kind, namespace, name, origin, base_dir, manifest) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT DO UPDATE SET base_dir = excluded.base_dir, manifest = excluded.manifest";
    let origin = origin.as_deref().map(bytes);
    let values = params![key.kind.as_str(), key.namespace, key.name, origin, base_dir, manifest.to_string()];
    connection.execute(sql, values)?;
    Ok(())
}

pub(super) fn remove_waiting(connection: &Connection, key: &ResourceKey, origin: &Path) -> rusqlite::Result<()> {
    let sql = "DELETE FROM waiting WHERE kind = ?1 AND namespace = ?2 AND name = ?3 AND origin = ?4";
    connection.execute(sql, params![key.kind.as_str(), key.namespace, key.name, bytes(origin)])?;
    Ok(())
}

pub(super) fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

pub(super) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn wanted(row: &Row<'_>) -> rusqlite::Result<Wanted> {
    let kind: String = row.get("kind")?;
    let kind = ResourceKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let kind = kind.ok_or_else(|| rusqlite::Error::InvalidColumnName(String::from("kind")))?;
    let origin: Option<Vec<u8>> = row.get("origin")?;
    Ok(Wanted {
        key: ResourceKey { kind, namespace: row.get("namespace")?, name: row.get("name")? },
        origin: origin.as_deref().map(path),
        base_dir: row.get("base_dir")?,
        manifest: json_of(&row.get::<_, String>("manifest")?)?,
    })
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let status: Option<String> = row.get("status")?;
    Ok(Record {
        wanted: wanted(row)?,
        uid: row.get("uid")?,
        generation: row.get("generation")?,
        created: row.get("created")?,
        deleted: row.get("deleted")?,
        status: status.as_deref().map(json_of).transpose()?,
        stopped: row.get("stopped")?,
        restarted_at: row.get("restarted_at")?,
        revision: row.get("revision")?,
    })
}

fn json_of(text: &str) -> rusqlite::Result<Value> {
    serde_json::from_str(text).map_err(unreadable)
}

/// What is stored cannot be read as what it should be.
pub(super) fn unreadable(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}
