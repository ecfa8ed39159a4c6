//! `mcpctl tools`: what a hub offers.

use std::time::Duration;

use mcp_hub_mcp::methods;
use serde_json::Value;

use crate::args::{Format, Tools};
use crate::error::Error;
use crate::mcp_client::McpClient;
use crate::output;
use crate::target::Target;

const LIMIT: Duration = Duration::from_secs(60);
/// Longer descriptions are cut in the table.
const DESCRIPTION: usize = 90;

pub(crate) async fn run(target: &dyn Target, args: &Tools) -> Result<(), Error> {
    let client = McpClient::of(target, &target.hub(&args.hub), args.server.as_deref()).await?;
    let tools = client.list(methods::TOOLS_LIST, "tools", LIMIT).await?;
    if args.output.output != Format::Table {
        return output::document(args.output.output, &tools);
    }
    let rows = tools.iter().map(|tool| {
        let text = |key: &str| tool[key].as_str().unwrap_or_default().to_owned();
        vec![text("name"), arguments(tool), short(&text("description"))]
    });
    output::data(&output::table(&["NAME", "ARGUMENTS", "DESCRIPTION"], rows.collect()))
}

/// Names of the arguments, optional ones in brackets.
fn arguments(tool: &Value) -> String {
    let schema = &tool["inputSchema"];
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object();
    let names = properties.into_iter().flatten().map(|(name, _)| match required.contains(&name.as_str()) {
        true => name.clone(),
        false => format!("[{name}]"),
    });
    names.collect::<Vec<_>>().join(" ")
}

/// The first line, at most [`DESCRIPTION`] characters of it.
fn short(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    if line.chars().count() <= DESCRIPTION {
        return line.to_owned();
    }
    line.chars().take(DESCRIPTION - 1).chain(['…']).collect()
}
