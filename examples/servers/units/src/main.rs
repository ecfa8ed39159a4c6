//! A small MCP server on stdio: converts lengths, masses and temperatures.

use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, Implementation, ServerCapabilities, ServerConfig};
use rmcp::{ServerHandler, ServiceExt, tool, tool_handler, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// A unit: its names, what it measures, and how it maps to the base unit (`base = value * factor + offset`).
struct Unit {
    names: &'static [&'static str],
    quantity: &'static str,
    factor: f64,
    offset: f64,
}

const fn unit(names: &'static [&'static str], quantity: &'static str, factor: f64, offset: f64) -> Unit {
    Unit { names, quantity, factor, offset }
}

/// Base units are metre, kilogram and kelvin.
const UNITS: [Unit; 16] = [
    unit(&["m", "metre", "meter"], "length", 1.0, 0.0),
    unit(&["km"], "length", 1000.0, 0.0),
    unit(&["cm"], "length", 0.01, 0.0),
    unit(&["mm"], "length", 0.001, 0.0),
    unit(&["in", "inch"], "length", 0.0254, 0.0),
    unit(&["ft", "foot"], "length", 0.3048, 0.0),
    unit(&["yd", "yard"], "length", 0.9144, 0.0),
    unit(&["mi", "mile"], "length", 1609.344, 0.0),
    unit(&["kg"], "mass", 1.0, 0.0),
    unit(&["g"], "mass", 0.001, 0.0),
    unit(&["t", "tonne"], "mass", 1000.0, 0.0),
    unit(&["oz", "ounce"], "mass", 0.028_349_523_125, 0.0),
    unit(&["lb", "pound"], "mass", 0.453_592_37, 0.0),
    unit(&["K", "kelvin"], "temperature", 1.0, 0.0),
    unit(&["C", "celsius"], "temperature", 1.0, 273.15),
    unit(&["F", "fahrenheit"], "temperature", 5.0 / 9.0, 273.15 - 32.0 * 5.0 / 9.0),
];

fn find(name: &str) -> Result<&'static Unit, String> {
    let known = UNITS.iter().find(|unit| unit.names.iter().any(|known| known.eq_ignore_ascii_case(name)));
    known.ok_or_else(|| {
        let names: Vec<&str> = UNITS.iter().filter_map(|unit| unit.names.first().copied()).collect();
        format!("unknown unit `{name}`; known are {}", names.join(", "))
    })
}

/// `value` in another unit of the same quantity.
fn convert(value: f64, from: &str, to: &str) -> Result<f64, String> {
    let (source, target) = (find(from)?, find(to)?);
    if source.quantity != target.quantity {
        return Err(format!("{from} measures {}, {to} measures {}", source.quantity, target.quantity));
    }
    Ok((value * source.factor + source.offset - target.offset) / target.factor)
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Conversion {
    /// Number to convert
    value: f64,
    /// Unit it is in, such as km, lb or C
    from: String,
    /// Unit wanted
    to: String,
}

#[derive(Debug, Clone)]
struct Units {
    tool_router: ToolRouter<Self>,
}

#[tool_router]
impl Units {
    #[tool(description = "Convert a length, mass or temperature to another unit")]
    async fn convert(&self, Parameters(wanted): Parameters<Conversion>) -> CallToolResult {
        match convert(wanted.value, &wanted.from, &wanted.to) {
            Ok(result) => {
                // Twelve digits hide what binary fractions cannot say.
                let text = format!("{} {}", format_number(result), wanted.to);
                let mut answer = CallToolResult::success(vec![ContentBlock::text(text)]);
                answer.structured_content = Some(json!({"value": result, "unit": wanted.to}));
                answer
            }
            Err(problem) => CallToolResult::error(vec![ContentBlock::text(problem)]),
        }
    }

    #[tool(description = "List the units that can be converted, by quantity")]
    async fn list_units(&self) -> CallToolResult {
        let lines = ["length", "mass", "temperature"].map(|quantity| {
            let units = UNITS.iter().filter(|unit| unit.quantity == quantity);
            format!("{quantity}: {}", units.map(|unit| unit.names.join("/")).collect::<Vec<_>>().join(", "))
        });
        CallToolResult::success(vec![ContentBlock::text(lines.join("\n"))])
    }
}

fn format_number(number: f64) -> String {
    let text = format!("{number:.9}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Units {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::default();
        info.capabilities = ServerCapabilities::builder().enable_tools().build();
        info.server_info = Implementation::new("units", env!("CARGO_PKG_VERSION"));
        info.instructions = Some("Converts between units of length, mass and temperature.".to_owned());
        info
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Units { tool_router: Units::tool_router() };
    server.serve(rmcp::transport::stdio()).await?.waiting().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_converted_there_and_back_is_the_same() {
        for (value, from, to, wanted) in
            [(26.2, "mi", "km", 42.164_812_8), (100.0, "C", "F", 212.0), (1.0, "lb", "g", 453.592_37)]
        {
            let there = convert(value, from, to).unwrap();
            assert!((there - wanted).abs() < 1e-6, "{value} {from} is {there} {to}");
            assert!((convert(there, to, from).unwrap() - value).abs() < 1e-9);
        }
    }

    #[test]
    fn what_cannot_be_converted_is_said() {
        assert!(convert(1.0, "km", "kg").unwrap_err().contains("length"));
        assert!(convert(1.0, "parsec", "m").unwrap_err().contains("known are m"));
    }
}
