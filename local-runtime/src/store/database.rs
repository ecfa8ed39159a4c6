//! The SQLite file: WAL, so that a crash at any point leaves the last whole transaction.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mcp_hub_crds::{ResourceKey, ResourceKind};
use mcp_hub_reconcile::ports::{Event, EventKind};
use rusqlite::{Connection, OptionalExtension, Result, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Origin;
use super::object::{Row, now};

/// Raised with each change of the tables.
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE origins (path TEXT PRIMARY KEY, problem TEXT) STRICT;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
    generation INTEGER NOT NULL, resource_version INTEGER NOT NULL, origin TEXT,
    labels TEXT NOT NULL, annotations TEXT NOT NULL, spec TEXT NOT NULL, status TEXT,
    stopped INTEGER NOT NULL, restarted_at TEXT, created_at TEXT NOT NULL, deleted_at TEXT,
    PRIMARY KEY (kind, namespace, name)
) STRICT;
CREATE TABLE successors (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, object TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, object TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
    message TEXT NOT NULL, count INTEGER NOT NULL
) STRICT;
";
/// Events kept.
const EVENTS_MAX: i64 = 1000;
/// Longest message of an event, in bytes.
const MESSAGE_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Database(Connection);

/// A transition as it was recorded; equal ones in a row are one with a count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedEvent {
    /// RFC 3339 time of the last of them.
    pub at: String,
    /// `KIND NAMESPACE/NAME`.
    pub object: String,
    /// `Normal` or `Warning`.
    pub kind: String,
    pub reason: String,
    pub message: String,
    pub count: i64,
}

/// The part of a row that a successor needs.
#[derive(Debug, Serialize, Deserialize)]
struct Successor {
    origin: Option<PathBuf>,
    labels: std::collections::BTreeMap<String, String>,
    annotations: std::collections::BTreeMap<String, String>,
    spec: Value,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // SQLite would make it readable for everybody; its journal files take the mode of this one. A failure here is
        // told by the opening below.
        std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).ok();
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut may lose the last transactions, never the file; a killed daemon loses nothing.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            let transaction = connection.unchecked_transaction()?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        Ok(Self(connection))
    }

    /// All of `work`, or nothing.
    pub(super) fn transaction<T>(&self, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        // Dropped without a commit it rolls back.
        let transaction = self.0.unchecked_transaction()?;
        let result = work(self)?;
        transaction.commit()?;
        Ok(result)
    }

    /// The value of a key, stored now if it was not there.
    pub(super) fn meta_or(&self, key: &str, fresh: impl FnOnce() -> String) -> Result<String> {
        let found = self.0.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?;
        match found {
            Some(value) => Ok(value),
            None => {
                let value = fresh();
                self.0.execute("INSERT INTO meta VALUES (?1, ?2)", [key, &value])?;
                Ok(value)
            }
        }
    }

    pub(super) fn objects(&self) -> Result<Vec<Row>> {
        let mut statement = self.0.prepare_cached(&format!("{SELECT} ORDER BY kind, namespace, name"))?;
        statement.query_map([], read)?.collect()
    }

    pub(super) fn objects_of(&self, origin: &Path) -> Result<Vec<Row>> {
        let mut statement = self.0.prepare_cached(&format!("{SELECT} WHERE origin = ?1"))?;
        statement.query_map([text(origin)], read)?.collect()
    }

    pub(super) fn object(&self, key: &ResourceKey) -> Result<Option<Row>> {
        let sql = format!("{SELECT} WHERE kind = ?1 AND namespace = ?2 AND name = ?3");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_row(params![key.kind.as_str(), key.namespace, key.name], read).optional()
    }

    /// Writes the object under the next resource version.
    pub(super) fn put(&self, row: &Row) -> Result<()> {
        let mut statement = self.0.prepare_cached(
            "INSERT OR REPLACE INTO objects VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?;
        statement.execute(params![
            row.key.kind.as_str(),
            row.key.namespace,
            row.key.name,
            row.uid,
            row.generation,
            row.resource_version + 1,
            row.origin.as_deref().map(text),
            json(&row.labels),
            json(&row.annotations),
            row.spec.to_string(),
            row.status.as_ref().map(Value::to_string),
            row.stopped,
            row.restarted_at,
            row.created_at,
            row.deleted_at,
        ])?;
        Ok(())
    }

    pub(super) fn mark_deleted(&self, key: &ResourceKey) -> Result<()> {
        let sql = "UPDATE objects SET deleted_at = ?4, resource_version = resource_version + 1
                   WHERE kind = ?1 AND namespace = ?2 AND name = ?3 AND deleted_at IS NULL";
        self.0.prepare_cached(sql)?.execute(params![key.kind.as_str(), key.namespace, key.name, now()])?;
        Ok(())
    }

    pub(super) fn remove(&self, key: &ResourceKey) -> Result<()> {
        let sql = "DELETE FROM objects WHERE kind = ?1 AND namespace = ?2 AND name = ?3";
        self.0.prepare_cached(sql)?.execute(params![key.kind.as_str(), key.namespace, key.name])?;
        Ok(())
    }

    /// What comes after an object that is being deleted.
    pub(super) fn put_successor(&self, row: &Row) -> Result<()> {
        let successor = Successor {
            origin: row.origin.clone(),
            labels: row.labels.clone(),
            annotations: row.annotations.clone(),
            spec: row.spec.clone(),
        };
        let sql = "INSERT OR REPLACE INTO successors VALUES (?1, ?2, ?3, ?4)";
        let key = &row.key;
        self.0.prepare_cached(sql)?.execute(params![key.kind.as_str(), key.namespace, key.name, json(&successor)])?;
        Ok(())
    }

    pub(super) fn drop_successor(&self, key: &ResourceKey) -> Result<()> {
        let sql = "DELETE FROM successors WHERE kind = ?1 AND namespace = ?2 AND name = ?3";
        self.0.prepare_cached(sql)?.execute(params![key.kind.as_str(), key.namespace, key.name])?;
        Ok(())
    }

    /// The successor as a new object.
    pub(super) fn take_successor(&self, key: &ResourceKey) -> Result<Option<Row>> {
        let sql = "DELETE FROM successors WHERE kind = ?1 AND namespace = ?2 AND name = ?3 RETURNING object";
        let mut statement = self.0.prepare_cached(sql)?;
        let found: Option<String> =
            statement.query_row(params![key.kind.as_str(), key.namespace, key.name], |row| row.get(0)).optional()?;
        let successor = found.and_then(|object| serde_json::from_str::<Successor>(&object).ok());
        Ok(successor.map(|successor| Row {
            key: key.clone(),
            uid: uuid::Uuid::now_v7().to_string(),
            generation: 1,
            resource_version: 0,
            origin: successor.origin,
            labels: successor.labels,
            annotations: successor.annotations,
            spec: successor.spec,
            status: None,
            stopped: false,
            restarted_at: None,
            created_at: now(),
            deleted_at: None,
            problem: None,
        }))
    }

    /// Every known origin, also one without objects.
    pub(super) fn origins(&self) -> Result<Vec<Origin>> {
        let sql = "SELECT path, problem, (SELECT count(*) FROM objects WHERE origin = path) FROM origins ORDER BY path";
        let mut statement = self.0.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| {
            Ok(Origin {
                path: PathBuf::from(row.get::<_, String>(0)?),
                problem: row.get(1)?,
                objects: usize::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
            })
        })?;
        rows.collect()
    }

    /// Makes the origin known with this problem; whether that is another than before.
    pub(super) fn set_problem(&self, origin: &Path, problem: Option<&str>) -> Result<bool> {
        let before: Option<Option<String>> = self
            .0
            .query_row("SELECT problem FROM origins WHERE path = ?1", [text(origin)], |row| row.get(0))
            .optional()?;
        self.0.execute("INSERT OR REPLACE INTO origins VALUES (?1, ?2)", params![text(origin), problem])?;
        Ok(before.flatten().as_deref() != problem)
    }

    pub(super) fn forget_origin(&self, origin: &Path) -> Result<()> {
        self.0.execute("DELETE FROM origins WHERE path = ?1", [text(origin)])?;
        Ok(())
    }

    /// Adds an event, or counts one more of the same; the oldest go when there are too many.
    pub(super) fn record(&self, event: &Event) -> Result<()> {
        let kind = match event.kind {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        };
        let object = format!("{:?} {}", event.owner.kind, event.owner);
        let message = &event.message[..event.message.floor_char_boundary(MESSAGE_MAX)];
        self.transaction(|database| {
            let again = database.0.execute(
                "UPDATE events SET count = count + 1, at = ?4
                 WHERE id = (SELECT max(id) FROM events WHERE object = ?1) AND reason = ?2 AND message = ?3",
                params![object, event.reason, message, now()],
            )?;
            if again == 0 {
                database.0.execute(
                    "INSERT INTO events (at, object, kind, reason, message, count) VALUES (?1, ?2, ?3, ?4, ?5, 1)",
                    params![now(), object, kind, event.reason, message],
                )?;
                database.0.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?1", [EVENTS_MAX])?;
            }
            Ok(())
        })
    }

    pub(super) fn events(&self, limit: usize) -> Result<Vec<RecordedEvent>> {
        let sql = "SELECT at, object, kind, reason, message, count FROM events ORDER BY id DESC LIMIT ?1";
        let mut statement = self.0.prepare_cached(sql)?;
        let rows = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(RecordedEvent {
                at: row.get(0)?,
                object: row.get(1)?,
                kind: row.get(2)?,
                reason: row.get(3)?,
                message: row.get(4)?,
                count: row.get(5)?,
            })
        })?;
        let mut events: Vec<RecordedEvent> = rows.collect::<Result<_>>()?;
        events.reverse();
        Ok(events)
    }
}

/// Objects with the problem of their origin.
const SELECT: &str = "SELECT kind, namespace, name, uid, generation, resource_version, origin, labels, annotations, spec,
    status, stopped, restarted_at, created_at, deleted_at, (SELECT problem FROM origins WHERE path = origin) FROM objects";

fn read(row: &rusqlite::Row<'_>) -> Result<Row> {
    let kind: String = row.get(0)?;
    let parsed = |column: usize, text: String| {
        serde_json::from_str::<Value>(&text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
        })
    };
    let map = |text: String| serde_json::from_str(&text).unwrap_or_default();
    Ok(Row {
        key: ResourceKey {
            kind: if kind == ResourceKind::MCPHub.as_str() { ResourceKind::MCPHub } else { ResourceKind::MCPServer },
            namespace: row.get(1)?,
            name: row.get(2)?,
        },
        uid: row.get(3)?,
        generation: row.get(4)?,
        resource_version: row.get(5)?,
        origin: row.get::<_, Option<String>>(6)?.map(PathBuf::from),
        labels: map(row.get(7)?),
        annotations: map(row.get(8)?),
        spec: parsed(9, row.get(9)?)?,
        status: row.get::<_, Option<String>>(10)?.map(|text| parsed(10, text)).transpose()?,
        stopped: row.get(11)?,
        restarted_at: row.get(12)?,
        created_at: row.get(13)?,
        deleted_at: row.get(14)?,
        problem: row.get(15)?,
    })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Maps of text have a JSON form.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
