//! `mcpctl get`: objects as they are stored, with their status.

use kube::ResourceExt;
use mcp_hub_crds::MCPServer;
use serde_json::json;

use crate::args::{Format, Get, Kind};
use crate::error::{Error, absent};
use crate::output;
use crate::summary::{Row, hub_lines, row};
use crate::target::Target;

pub(crate) async fn run(target: &dyn Target, args: &Get) -> Result<(), Error> {
    match args.kind {
        Kind::Servers => servers(target, args).await,
        Kind::Hubs => hubs(target, args).await,
        Kind::Events => events(target, args).await,
        Kind::Origins => origins(target, args).await,
    }
}

async fn servers(target: &dyn Target, args: &Get) -> Result<(), Error> {
    let scope = args.namespaces.scope();
    let all = target.servers(&scope).await?;
    let chosen: Vec<&MCPServer> =
        all.iter().filter(|server| args.name.as_ref().is_none_or(|name| server.name_any() == *name)).collect();
    if let (Some(name), true) = (&args.name, chosen.is_empty()) {
        return Err(absent("server", name, &all, target.beginning()));
    }
    if args.output.output == Format::Table {
        let rows: Vec<Row> = chosen.iter().map(|server| row(server)).collect();
        let lines = rows.iter().map(|row| {
            let source = row.source.clone();
            vec![row.name.clone(), row.state(), row.reason.clone(), row.tools(), row.restarts.to_string(), source]
        });
        let headings = ["NAME", "STATE", "REASON", "TOOLS", "RESTARTS", "SOURCE"];
        let lines = rows.iter().map(|row| &*row.namespace).zip(lines);
        return output::data(&output::scoped_table(&scope, &headings, lines));
    }
    documents(args, &chosen)
}

async fn hubs(target: &dyn Target, args: &Get) -> Result<(), Error> {
    let scope = args.namespaces.scope();
    let mut chosen = target.hubs(&scope).await?;
    if let Some(name) = &args.name {
        if !chosen.iter().any(|hub| hub.name_any() == *name) {
            return Err(absent("hub", name, &chosen, target.beginning()));
        }
        chosen.retain(|hub| hub.name_any() == *name);
    }
    if args.output.output == Format::Table {
        let lines: String = hub_lines(&chosen, &scope).into_iter().map(|line| line + "\n").collect();
        return output::data(&lines);
    }
    documents(args, &chosen.iter().collect::<Vec<_>>())
}

/// One object if a name was given, else a list as `kubectl` gives it.
fn documents<T: serde::Serialize>(args: &Get, objects: &[&T]) -> Result<(), Error> {
    match (&args.name, objects) {
        (Some(_), [object]) => output::document(args.output.output, object),
        _ => output::document(args.output.output, &json!({"apiVersion": "v1", "kind": "List", "items": objects})),
    }
}

async fn events(target: &dyn Target, args: &Get) -> Result<(), Error> {
    let mut chosen = target.events(&args.namespaces.scope()).await?;
    if let Some(name) = &args.name {
        // Events name their object as KIND NAMESPACE/NAME.
        chosen.retain(|event| event.object.rsplit('/').next() == Some(name));
    }
    if args.output.output != Format::Table {
        return output::document(args.output.output, &chosen);
    }
    let rows = chosen
        .into_iter()
        .map(|event| vec![event.at, event.object, event.reason, event.count.to_string(), event.message]);
    output::data(&output::table(&["AT", "OBJECT", "REASON", "COUNT", "MESSAGE"], rows.collect()))
}

async fn origins(target: &dyn Target, args: &Get) -> Result<(), Error> {
    let origins = target.origins().await?;
    if args.output.output != Format::Table {
        return output::document(args.output.output, &origins);
    }
    let rows = origins.into_iter().map(|origin| {
        vec![origin.path.display().to_string(), origin.objects.to_string(), origin.problem.unwrap_or_default()]
    });
    output::data(&output::table(&["PATH", "OBJECTS", "PROBLEM"], rows.collect()))
}
