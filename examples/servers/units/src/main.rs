//! A small MCP server on stdio, or with `--http PORT` on HTTP: converts lengths, masses and temperatures.
//!
//! It is the server of the quickstart that needs neither Node.js nor Python, and an example of a server of one's own.

mod quantity;

use std::sync::Arc;

use axum::Router;
use quantity::{Dimension, UNITS, convert, find, rounded};
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::transport::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::{ServerHandler, ServiceExt, tool, tool_handler, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;

#[derive(Debug, Clone)]
struct Units;

#[derive(Debug, Deserialize, JsonSchema)]
struct Conversion {
    /// The number to convert
    value: f64,
    /// Unit of the value: a symbol such as "km", or a name such as "kilometre"
    from: String,
    /// Unit wanted
    to: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Converted {
    value: f64,
    unit: &'static str,
    dimension: Dimension,
}

#[tool_router]
impl Units {
    #[tool(
        description = "Converts a length, a mass or a temperature into another unit",
        output_schema = rmcp::handler::server::tool::schema_for_output::<Converted>(),
        annotations(title = "Convert units", read_only_hint = true, open_world_hint = false)
    )]
    async fn convert(&self, Parameters(asked): Parameters<Conversion>) -> CallToolResult {
        let converted = find(&asked.from).and_then(|from| {
            let to = find(&asked.to)?;
            Ok((from, to, rounded(convert(asked.value, from, to)?)))
        });
        match converted {
            Ok((from, to, value)) => {
                let text = format!("{} {} = {value} {}", asked.value, from.symbol, to.symbol);
                let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
                let converted = Converted { value, unit: to.symbol, dimension: to.dimension };
                result.structured_content = serde_json::to_value(converted).ok();
                result
            }
            Err(problem) => CallToolResult::error(vec![ContentBlock::text(problem.to_string())]),
        }
    }

    #[tool(
        description = "Lists the units that convert understands, by what they measure",
        annotations(title = "List units", read_only_hint = true, open_world_hint = false)
    )]
    async fn list_units(&self) -> CallToolResult {
        let lines: Vec<String> = [Dimension::Length, Dimension::Mass, Dimension::Temperature]
            .into_iter()
            .map(|dimension| {
                let units: Vec<String> = UNITS
                    .iter()
                    .filter(|unit| unit.dimension == dimension)
                    .map(|unit| format!("{} ({})", unit.symbol, unit.name))
                    .collect();
                format!("{dimension:?}: {}", units.join(", "))
            })
            .collect();
        let mut result = CallToolResult::success(vec![ContentBlock::text(lines.join("\n"))]);
        let units: Vec<_> = UNITS
            .iter()
            .map(|unit| json!({"symbol": unit.symbol, "name": unit.name, "dimension": unit.dimension}))
            .collect();
        result.structured_content = Some(json!({ "units": units }));
        result
    }
}

#[tool_handler(name = "units", version = "0.1.0", instructions = "Converts lengths, masses and temperatures.")]
impl ServerHandler for Units {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            Units.serve(rmcp::transport::stdio_pipes()).await?.waiting().await?;
        }
        ["--http", port] => http(port.parse()?).await?,
        _ => return Err("usage: units-server [--http PORT]".into()),
    }
    Ok(())
}

/// Serves MCP under /mcp, for this machine or pod only.
async fn http(port: u16) -> std::io::Result<()> {
    let service = StreamableHttpService::new(|| Ok(Units), Arc::<LocalSessionManager>::default(), Default::default());
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, Router::new().route_service("/mcp", service)).await
}
