//! Transitions for people, as `mcpctl status` shows them: a bounded table.

use mcp_hub_reconcile::owner::OwnerKind;
use mcp_hub_reconcile::ports::{Event, EventKind};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::table;

/// Events kept, over all objects: days of an ordinary hub, and under a megabyte.
const KEPT: i64 = 1000;

/// An event as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedEvent {
    /// RFC 3339; of the last one, if there were several.
    pub at: String,
    /// `KIND NAMESPACE/NAME`.
    pub object: String,
    /// `Normal` or `Warning`.
    pub kind: String,
    pub reason: String,
    pub message: String,
    /// How often it came in a row.
    pub count: u32,
}

pub(super) fn record(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    let kind = match event.kind {
        EventKind::Normal => "Normal",
        EventKind::Warning => "Warning",
    };
    let of = match event.owner.kind {
        OwnerKind::MCPServer => "MCPServer",
        OwnerKind::MCPHub => "MCPHub",
    };
    let object = format!("{of} {}", event.owner);
    let last: Option<(i64, String, String, String)> = connection
        .query_row(
            "SELECT id, kind, reason, message FROM events WHERE object = ?1 ORDER BY id DESC LIMIT 1",
            [&object],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )
        .optional()?;
    match last {
        Some((id, was, reason, message)) if was == kind && reason == event.reason && message == event.message => {
            let sql = "UPDATE events SET at = ?2, count = count + 1 WHERE id = ?1";
            connection.execute(sql, params![id, table::now()])?;
        }
        _ => {
            connection.execute(
                "INSERT INTO events (at, object, kind, reason, message, count) VALUES (?1, ?2, ?3, ?4, ?5, 1)",
                params![table::now(), object, kind, event.reason, event.message],
            )?;
            connection.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?1", [KEPT])?;
        }
    }
    Ok(())
}

/// The newest events, the oldest of them first.
pub(super) fn newest(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<RecordedEvent>> {
    let sql = "SELECT at, object, kind, reason, message, count FROM events ORDER BY id DESC LIMIT ?1";
    let mut query = connection.prepare_cached(sql)?;
    let rows = query.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        Ok(RecordedEvent {
            at: row.get(0)?,
            object: row.get(1)?,
            kind: row.get(2)?,
            reason: row.get(3)?,
            message: row.get(4)?,
            count: row.get(5)?,
        })
    })?;
    let mut events: Vec<RecordedEvent> = rows.collect::<rusqlite::Result<_>>()?;
    events.reverse();
    Ok(events)
}
