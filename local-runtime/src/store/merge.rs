//! What an origin's documents do to the stored objects: one transaction's work, without the transaction.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mcp_hub_crds::manifest::Document;
use mcp_hub_crds::resource::DEFAULT_NAMESPACE;
use mcp_hub_crds::{Resource, ResourceKey, ResourceKind};
use mcp_hub_reconcile::status::MANIFEST_PROBLEM_ANNOTATION;
use mcp_hub_reconcile::workload::{BASE_DIR_ANNOTATION, RESTARTED_AT_ANNOTATION, STOPPED_ANNOTATION};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use super::table::{self, Record, Wanted};
use super::{DEFAULT_PORT_ANNOTATION, Synced};

/// Annotations that the store sets. `mcpctl get -o yaml` shows them, so manifests may hold them: they are left out.
const OURS: [&str; 5] = [
    STOPPED_ANNOTATION,
    RESTARTED_AT_ANNOTATION,
    BASE_DIR_ANNOTATION,
    MANIFEST_PROBLEM_ANNOTATION,
    DEFAULT_PORT_ANNOTATION,
];

/// Name of the implicit hub's uid in table `meta`. It stays for ever, because the hub's token is derived from it.
const DEFAULT_HUB_UID: &str = "default-hub-uid";

/// Objects that a transaction touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// To be shown anew.
    pub(super) shown: BTreeSet<ResourceKey>,
    /// To be told of in `changes`.
    pub(super) told: BTreeSet<ResourceKey>,
}

impl Touched {
    pub(super) fn add(&mut self, key: &ResourceKey) {
        self.shown.insert(key.clone());
        self.told.insert(key.clone());
    }
}

/// A key that another origin has.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) key: ResourceKey,
    pub(super) origin: PathBuf,
}

pub(super) fn default_hub() -> ResourceKey {
    let default = DEFAULT_NAMESPACE.to_owned();
    ResourceKey { kind: ResourceKind::MCPHub, namespace: default.clone(), name: default }
}

/// What a document wants, in the form that is stored.
pub(super) fn wanted(origin: &Path, document: &Document) -> Result<Wanted, serde_json::Error> {
    let mut value = serde_json::to_value(&document.resource)?;
    let mut annotations = value["metadata"]["annotations"].take();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.retain(|name, _| !OURS.contains(&name.as_str()));
    }
    let folder = document.file.parent().map(std::path::absolute).and_then(Result::ok);
    Ok(Wanted {
        key: document.resource.key(),
        origin: Some(origin.to_owned()),
        base_dir: folder.map(|folder| folder.to_string_lossy().into_owned()),
        manifest: json!({
            "labels": value["metadata"]["labels"].take(),
            "annotations": annotations,
            "spec": value["spec"].take(),
        }),
    })
}

/// Makes the origin's objects those that are `wanted`.
pub(super) fn sync(
    connection: &Connection,
    origin: &Path,
    wanted: Vec<Wanted>,
    touched: &mut Touched,
) -> rusqlite::Result<(Synced, Vec<Claim>)> {
    let (mut synced, mut claims) = (Synced::default(), Vec::new());
    let keys: BTreeSet<ResourceKey> = wanted.iter().map(|wanted| wanted.key.clone()).collect();
    for wanted in wanted {
        let key = wanted.key.clone();
        match place(connection, wanted, touched)? {
            Placed::Same => {}
            Placed::Added => synced.added.push(key),
            Placed::Changed => synced.changed.push(key),
            Placed::Claimed(origin) => claims.push(Claim { key, origin }),
        }
    }
    for mut record in table::of_origin(connection, origin)? {
        if record.deleted.is_none() && !keys.contains(&record.wanted.key) {
            record.deleted = Some(table::now());
            table::put(connection, &record)?;
            touched.add(&record.wanted.key);
            synced.removed.push(record.wanted.key);
        }
    }
    for waiting in table::all_waiting(connection)? {
        if waiting.origin.as_deref() == Some(origin) && !keys.contains(&waiting.key) {
            table::remove_waiting(connection, &waiting.key, origin)?;
        }
    }
    Ok((synced, claims))
}

enum Placed {
    Same,
    Added,
    Changed,
    Claimed(PathBuf),
}

/// Stores what is wanted, or lets it wait until the key is free.
fn place(connection: &Connection, wanted: Wanted, touched: &mut Touched) -> rusqlite::Result<Placed> {
    let key = wanted.key.clone();
    let Some(mut record) = table::get(connection, &key)? else {
        let uid = uid_for(connection, &key)?;
        table::put(connection, &Record::new(wanted, uid))?;
        touched.add(&key);
        return Ok(Placed::Added);
    };
    let same_origin = record.wanted.origin == wanted.origin;
    // The default hub keeps its uid for ever, so that what is written under its key takes over the object that is there.
    let takes_over = key == default_hub() && (record.wanted.origin.is_none() || record.deleted.is_some());
    if takes_over || (record.deleted.is_none() && same_origin) {
        let was_there = record.deleted.is_none() && same_origin;
        if let Some(origin) = &wanted.origin {
            table::remove_waiting(connection, &key, origin)?;
        }
        if !record.update(wanted) {
            return Ok(Placed::Same);
        }
        table::put(connection, &record)?;
        touched.add(&key);
        return Ok(if was_there { Placed::Changed } else { Placed::Added });
    }
    let queue = table::waiting_for(connection, &key)?;
    let before = queue.iter().find(|waiting| waiting.origin == wanted.origin).cloned();
    table::put_waiting(connection, &wanted)?;
    let owner = match record.deleted {
        None => record.wanted.origin,
        Some(_) => queue.into_iter().next().and_then(|first| first.origin).or_else(|| wanted.origin.clone()),
    };
    Ok(match (owner, before) {
        (Some(owner), _) if Some(&owner) != wanted.origin.as_ref() => Placed::Claimed(owner),
        (_, None) => Placed::Added,
        (_, Some(before)) if before == wanted => Placed::Same,
        (_, Some(_)) => Placed::Changed,
    })
}

fn uid_for(connection: &Connection, key: &ResourceKey) -> rusqlite::Result<String> {
    if *key == default_hub() {
        return table::meta_or(connection, DEFAULT_HUB_UID, table::new_uid);
    }
    Ok(table::new_uid())
}

/// Takes out an object whose deletion was asked for, and puts its successor there, if one waits.
pub(super) fn release(connection: &Connection, uid: &str, touched: &mut Touched) -> rusqlite::Result<()> {
    // An orphan of an object that is long gone is released too: there is nothing to do.
    let gone = table::of_uid(connection, uid)?.filter(|record| record.deleted.is_some());
    let Some(gone) = gone else { return Ok(()) };
    let key = gone.wanted.key;
    table::remove(connection, &key)?;
    touched.add(&key);
    if let Some(next) = table::waiting_for(connection, &key)?.into_iter().next() {
        if let Some(origin) = &next.origin {
            table::remove_waiting(connection, &key, origin)?;
        }
        let uid = uid_for(connection, &key)?;
        table::put(connection, &Record::new(next, uid))?;
    }
    Ok(())
}

/// Keeps the implicit hub there exactly while no origin defines a hub.
pub(super) fn settle_default_hub(connection: &Connection, port: u16, touched: &mut Touched) -> rusqlite::Result<()> {
    let key = default_hub();
    let mut record = table::get(connection, &key)?;
    if let Some(leaving) = record.as_mut().filter(|record| record.deleted.is_some())
        && let Some(next) = table::waiting_for(connection, &key)?.into_iter().next()
        && let Some(origin) = next.origin.clone()
    {
        table::remove_waiting(connection, &key, &origin)?;
        leaving.update(next);
        table::put(connection, leaving)?;
        touched.add(&key);
    }
    let defined = table::any_hub(connection)?;
    let implicit = Wanted {
        key: key.clone(),
        origin: None,
        base_dir: None,
        manifest: json!({"labels": Value::Null, "annotations": Value::Null, "spec": {"gateway": {"port": port}}}),
    };
    let changed = match record {
        None if !defined => {
            let uid = uid_for(connection, &key)?;
            Some(Record::new(implicit, uid))
        }
        Some(mut record) if !defined => record.update(implicit).then_some(record),
        Some(mut record) if record.wanted.origin.is_none() && record.deleted.is_none() => {
            record.deleted = Some(table::now());
            Some(record)
        }
        None | Some(_) => None,
    };
    if let Some(record) = changed {
        table::put(connection, &record)?;
        touched.add(&key);
    }
    Ok(())
}

/// Records what is wrong with an origin, or that nothing is, on all its objects.
pub(super) fn set_problem(
    connection: &Connection,
    origin: &Path,
    problem: Option<(&str, &str)>,
    touched: &mut Touched,
) -> rusqlite::Result<()> {
    let before = problem_of(connection, origin)?;
    let (reason, message) = problem.unzip();
    connection.execute(
        "INSERT OR REPLACE INTO origins (path, reason, message) VALUES (?1, ?2, ?3)",
        params![table::bytes(origin), reason, message],
    )?;
    let unchanged = before.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str())) == problem;
    if !unchanged {
        for record in table::of_origin(connection, origin)? {
            // A new revision, as for any other change of what the object shows.
            table::put(connection, &record)?;
            touched.add(&record.wanted.key);
        }
    }
    Ok(())
}

/// Reason and message of what is wrong with an origin.
pub(super) fn problem_of(connection: &Connection, origin: &Path) -> rusqlite::Result<Option<(String, String)>> {
    use rusqlite::OptionalExtension;
    let sql = "SELECT reason, message FROM origins WHERE path = ?1 AND reason IS NOT NULL";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    connection.prepare_cached(sql)?.query_row([table::bytes(origin)], row).optional()
}

/// The claims of an origin that others stand in the way of.
pub(super) fn claims_of(connection: &Connection, origin: &Path) -> rusqlite::Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for waiting in table::all_waiting(connection)? {
        if waiting.origin.as_deref() != Some(origin) {
            continue;
        }
        let holder = match table::get(connection, &waiting.key)? {
            Some(record) if record.deleted.is_none() => record.wanted.origin,
            _ => table::waiting_for(connection, &waiting.key)?.into_iter().next().and_then(|first| first.origin),
        };
        if let Some(holder) = holder.filter(|holder| holder != origin) {
            claims.push(Claim { key: waiting.key, origin: holder });
        }
    }
    Ok(claims)
}

/// The object as the API shows it.
pub(super) fn present(connection: &Connection, record: &Record, default_port: u16) -> rusqlite::Result<Resource> {
    let mut annotations = Vec::new();
    if let Some(folder) = &record.wanted.base_dir {
        annotations.push((BASE_DIR_ANNOTATION, folder.clone()));
    }
    if record.stopped {
        annotations.push((STOPPED_ANNOTATION, "true".to_owned()));
    }
    if let Some(at) = &record.restarted_at {
        annotations.push((RESTARTED_AT_ANNOTATION, at.clone()));
    }
    if let Some(origin) = &record.wanted.origin
        && let Some((reason, message)) = problem_of(connection, origin)?
    {
        annotations.push((MANIFEST_PROBLEM_ANNOTATION, format!("{reason}: {message}")));
    }
    let kind = record.wanted.key.kind;
    if kind == ResourceKind::MCPHub {
        annotations.push((DEFAULT_PORT_ANNOTATION, default_port.to_string()));
    }
    let document = record.document(annotations);
    match kind {
        ResourceKind::MCPServer => serde_json::from_value(document).map(Resource::Server),
        ResourceKind::MCPHub => serde_json::from_value(document).map(Resource::Hub),
    }
    .map_err(table::unreadable)
}
