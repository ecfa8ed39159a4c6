//! `mcpctl status`: what runs, and what to do where something does not.

use serde_json::json;

use crate::args::{Format, Status};
use crate::error::{Error, absent};
use crate::output;
use crate::summary::{Row, hub_lines, row};
use crate::target::{Scope, Target};

pub(crate) async fn run(target: &dyn Target, args: &Status) -> Result<(), Error> {
    let scope = args.namespaces.scope();
    let servers = target.servers(&scope).await?;
    let rows: Vec<Row> = servers.iter().map(row).collect();
    if let Some(name) = args.names.iter().find(|name| !rows.iter().any(|row| row.name == **name)) {
        return Err(absent("server", name, &servers, target.beginning()));
    }
    let rows: Vec<Row> =
        rows.into_iter().filter(|row| args.names.is_empty() || args.names.contains(&row.name)).collect();
    if args.output.output != Format::Table {
        let servers: Vec<_> = rows.iter().map(Row::document).collect();
        let hubs: Vec<_> = target
            .hubs(&scope)
            .await?
            .iter()
            .map(|hub| json!({"name": hub.metadata.name, "status": hub.status}))
            .collect();
        return output::document(args.output.output, &json!({"servers": servers, "hubs": hubs}));
    }
    output::data(&table(&rows, &scope, target.beginning()))?;
    if args.names.is_empty() {
        let hubs = hub_lines(&target.hubs(&scope).await?, &scope);
        let hubs: String = hubs
            .iter()
            .map(|line| {
                format!(
                    "hub {line}
"
                )
            })
            .collect();
        output::data(&format!("\n{hubs}"))?;
        for problem in target.problems().await? {
            output::say(&problem);
        }
    }
    Ok(())
}

/// Servers in a line each, and below them what is to be known.
pub(crate) fn table(rows: &[Row], scope: &Scope, beginning: &str) -> String {
    if rows.is_empty() {
        return format!("no servers yet; {beginning}\n");
    }
    let lines = rows.iter().map(|row| {
        vec![row.name.clone(), row.state(), row.tools(), row.start(), row.restarts.to_string(), row.source.clone()]
    });
    let headings = ["NAME", "STATE", "TOOLS", "START", "RESTARTS", "SOURCE"];
    let mut text = output::scoped_table(scope, &headings, rows.iter().map(|row| &*row.namespace).zip(lines));
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        text.push_str(&format!("\n{}: {}\n", row.name, row.note));
    }
    text
}
