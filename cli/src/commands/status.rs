//! `mcpctl status`: what runs, and what to do where something does not.

use serde_json::json;

use crate::admin::client::Admin;
use crate::admin::{Objects, OriginState, path};
use crate::args::{Format, Status};
use crate::daemon::no_server;
use crate::error::Error;
use crate::output;
use crate::summary::{Row, hub_line, row};

pub(crate) async fn run(admin: &Admin, args: &Status) -> Result<(), Error> {
    let objects: Objects = admin.get(path::OBJECTS).await?;
    let rows: Vec<Row> = objects.servers.iter().map(row).collect();
    if let Some(name) = args.names.iter().find(|name| !rows.iter().any(|row| row.name == **name)) {
        return Err(no_server(name, &objects.servers));
    }
    let rows: Vec<Row> =
        rows.into_iter().filter(|row| args.names.is_empty() || args.names.contains(&row.name)).collect();
    if args.output.output != Format::Table {
        let servers: Vec<_> = rows.iter().map(Row::document).collect();
        let hubs: Vec<_> =
            objects.hubs.iter().map(|hub| json!({"name": hub.metadata.name, "status": hub.status})).collect();
        return output::document(args.output.output, &json!({"servers": servers, "hubs": hubs}));
    }
    output::data(&table(&rows))?;
    if args.names.is_empty() {
        let hubs: String = objects.hubs.iter().map(|hub| format!("hub {}\n", hub_line(hub))).collect();
        output::data(&format!("\n{hubs}"))?;
        for origin in admin.get::<Vec<OriginState>>(path::ORIGINS).await? {
            if let Some(problem) = origin.problem {
                output::say(&format!("{}: {problem}", origin.path.display()));
            }
        }
    }
    Ok(())
}

/// Servers in a line each, and below them what is to be known.
pub(crate) fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no servers yet; `mcpctl add NAME -- COMMAND` adds one\n".to_owned();
    }
    let lines = rows.iter().map(|row| {
        vec![row.name.clone(), row.state(), row.tools(), row.start(), row.restarts.to_string(), row.source.clone()]
    });
    let mut text = output::table(&["NAME", "STATE", "TOOLS", "START", "RESTARTS", "SOURCE"], lines.collect());
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        text.push_str(&format!("\n{}: {}\n", row.name, row.note));
    }
    text
}
