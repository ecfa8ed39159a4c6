//! `mcpctl get`: objects as they are stored, with their status.

use kube::ResourceExt;
use mcp_hub_crds::MCPServer;
use serde_json::{Value, json};

use crate::admin::client::Admin;
use crate::admin::{Objects, OriginState, path};
use crate::args::{Format, Get, Kind};
use crate::daemon::no_server;
use crate::error::Error;
use crate::output;
use crate::summary::{hub_line, row};

pub(crate) async fn run(admin: &Admin, args: &Get) -> Result<(), Error> {
    match args.kind {
        Kind::Servers => servers(admin, args).await,
        Kind::Hubs => hubs(admin, args).await,
        Kind::Events => events(admin, args).await,
        Kind::Origins => origins(admin, args).await,
    }
}

async fn servers(admin: &Admin, args: &Get) -> Result<(), Error> {
    let all = admin.get::<Objects>(path::OBJECTS).await?.servers;
    let chosen: Vec<&MCPServer> =
        all.iter().filter(|server| args.name.as_ref().is_none_or(|name| server.name_any() == *name)).collect();
    if let (Some(name), true) = (&args.name, chosen.is_empty()) {
        return Err(no_server(name, &all));
    }
    if args.output.output == Format::Table {
        let rows = chosen.iter().map(|server| {
            let row = row(server);
            vec![row.name.clone(), row.state(), row.reason.clone(), row.tools(), row.restarts.to_string(), row.source]
        });
        return output::data(&output::table(
            &["NAME", "STATE", "REASON", "TOOLS", "RESTARTS", "SOURCE"],
            rows.collect(),
        ));
    }
    documents(args, &chosen)
}

async fn hubs(admin: &Admin, args: &Get) -> Result<(), Error> {
    let all = admin.get::<Objects>(path::OBJECTS).await?.hubs;
    let chosen: Vec<_> =
        all.iter().filter(|hub| args.name.as_ref().is_none_or(|name| hub.name_any() == *name)).collect();
    if let (Some(name), true) = (&args.name, chosen.is_empty()) {
        return Err(Error::NotFound { what: "hub", name: name.clone(), hint: None });
    }
    if args.output.output == Format::Table {
        let lines: String = chosen.iter().map(|hub| hub_line(hub) + "\n").collect();
        return output::data(&lines);
    }
    documents(args, &chosen)
}

/// One object if a name was given, else a list as `kubectl` gives it.
fn documents<T: serde::Serialize>(args: &Get, objects: &[&T]) -> Result<(), Error> {
    match (&args.name, objects) {
        (Some(_), [object]) => output::document(args.output.output, object),
        _ => output::document(args.output.output, &json!({"apiVersion": "v1", "kind": "List", "items": objects})),
    }
}

async fn events(admin: &Admin, args: &Get) -> Result<(), Error> {
    let events: Vec<Value> = admin.get(path::EVENTS).await?;
    // Events name their object as KIND NAMESPACE/NAME.
    let of =
        |event: &Value| event["object"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    let chosen: Vec<Value> =
        events.into_iter().filter(|event| args.name.as_ref().is_none_or(|name| of(event) == *name)).collect();
    if args.output.output != Format::Table {
        return output::document(args.output.output, &chosen);
    }
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let rows = chosen.iter().map(|event| {
        vec![
            text(event, "at"),
            text(event, "object"),
            text(event, "reason"),
            event["count"].to_string(),
            text(event, "message"),
        ]
    });
    output::data(&output::table(&["AT", "OBJECT", "REASON", "COUNT", "MESSAGE"], rows.collect()))
}

async fn origins(admin: &Admin, args: &Get) -> Result<(), Error> {
    let origins: Vec<OriginState> = admin.get(path::ORIGINS).await?;
    if args.output.output != Format::Table {
        return output::document(args.output.output, &origins);
    }
    let rows = origins.into_iter().map(|origin| {
        vec![origin.path.display().to_string(), origin.objects.to_string(), origin.problem.unwrap_or_default()]
    });
    output::data(&output::table(&["PATH", "OBJECTS", "PROBLEM"], rows.collect()))
}
