//! `mcpctl call`: one tool call.

use std::io::Read;
use std::time::Duration;

use mcp_hub_mcp::methods;
use serde_json::{Map, Value, json};

use crate::args::{Call, Format};
use crate::error::Error;
use crate::mcp_client::McpClient;
use crate::output;
use crate::target::Target;

const LIST_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(target: &dyn Target, args: &Call) -> Result<(), Error> {
    let Some((server, tool)) =
        args.tool.split_once('/').filter(|(server, tool)| !server.is_empty() && !tool.is_empty())
    else {
        return Err(Error::Invalid {
            message: format!("`{}` is not SERVER/TOOL", args.tool),
            hint: Some("`mcpctl tools SERVER` lists a server's tools".to_owned()),
        });
    };
    let client = McpClient::of(target, &target.hub(&args.hub), Some(server)).await?;
    let arguments = match &args.json {
        Some(json) => object(json)?,
        None if args.args.is_empty() => Map::new(),
        None => {
            let tools = client.list(methods::TOOLS_LIST, "tools", LIST_LIMIT).await?;
            let Some(definition) = tools.iter().find(|definition| definition["name"] == tool) else {
                let names: Vec<&str> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
                let hint = Some(format!("{server} offers: {}", names.join(", ")));
                return Err(Error::NotFound { what: "tool", name: tool.to_owned(), hint });
            };
            arguments(&args.args, &definition["inputSchema"]["properties"])?
        }
    };
    let params = json!({"name": tool, "arguments": arguments});
    let result = client.request(methods::TOOLS_CALL, params, args.timeout.get()).await?;
    let failed = result["isError"] == true;
    if args.output.output != Format::Table {
        output::document(args.output.output, &result)?;
    } else if failed {
        output::say(text(&result).trim_end());
    } else {
        output::data(&text(&result))?;
    }
    if failed { Err(Error::Tool { tool: args.tool.clone() }) } else { Ok(()) }
}

fn object(json: &str) -> Result<Map<String, Value>, Error> {
    let text = match json {
        "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).map_err(Error::file("read", "stdin"))?;
            text
        }
        json => json.to_owned(),
    };
    serde_json::from_str(&text)
        .map_err(|error| Error::Invalid { message: format!("--json is no JSON object: {error}"), hint: None })
}

/// Arguments as the tool's schema wants them.
fn arguments(pairs: &[String], properties: &Value) -> Result<Map<String, Value>, Error> {
    pairs.iter().map(|pair| argument(pair, properties)).collect()
}

fn argument(pair: &str, properties: &Value) -> Result<(String, Value), Error> {
    let invalid = |message: String| Error::Invalid { message, hint: Some("write key=text or key:=JSON".to_owned()) };
    let Some((key, text)) = pair.split_once('=') else { return Err(invalid(format!("`{pair}` is not key=value"))) };
    if let Some(key) = key.strip_suffix(':') {
        let value = serde_json::from_str(text).map_err(|error| invalid(format!("{key} is no JSON: {error}")))?;
        return Ok((key.to_owned(), value));
    }
    let wanted = &properties[key]["type"];
    let takes = |kind: &str| wanted == kind || wanted.as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
    let other = ["number", "integer", "boolean", "object", "array", "null"].into_iter().any(takes);
    // Text stays text wherever the schema takes it; what it takes only as something else must be that.
    let value = match (takes("string") || !other, serde_json::from_str::<Value>(text)) {
        (true, _) => Value::from(text),
        (false, Ok(value)) => value,
        (false, Err(_)) => return Err(invalid(format!("{key} wants {wanted}, and `{text}` is none"))),
    };
    Ok((key.to_owned(), value))
}

/// What a person reads of a result.
fn text(result: &Value) -> String {
    let mut text = String::new();
    for part in result["content"].as_array().into_iter().flatten() {
        let line = match part["type"].as_str() {
            Some("text") => part["text"].as_str().unwrap_or_default().to_owned(),
            Some("resource") => match part["resource"]["text"].as_str() {
                Some(inner) => inner.to_owned(),
                None => format!("[resource {}]", part["resource"]["uri"].as_str().unwrap_or_default()),
            },
            Some("resource_link") => format!("[link {}]", part["uri"].as_str().unwrap_or_default()),
            Some(kind) => {
                let size = part["data"].as_str().map_or(0, str::len) / 4 * 3;
                format!("[{kind} {}, {size} bytes; -o json shows it]", part["mimeType"].as_str().unwrap_or_default())
            }
            None => continue,
        };
        text.push_str(line.trim_end_matches('\n'));
        text.push('\n');
    }
    if text.is_empty() && !result["structuredContent"].is_null() {
        text = format!("{}\n", result["structuredContent"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_read_as_the_schema_says() {
        let properties = json!({"n": {"type": "number"}, "s": {"type": "string"}, "o": {"type": ["null", "integer"]}, "l": {"type": "array"}});
        let read = |pair: &str| argument(pair, &properties).map(|(_, value)| value);
        assert_eq!(read("n=4.5").unwrap(), json!(4.5));
        assert_eq!(read("s=4.5").unwrap(), json!("4.5"));
        assert_eq!(read("s=a=b").unwrap(), json!("a=b"));
        assert_eq!(read("o=4").unwrap(), json!(4));
        assert_eq!(read("l=[1]").unwrap(), json!([1]));
        assert_eq!(read("unknown=4").unwrap(), json!("4"));
        assert_eq!(read("s:={\"a\":1}").unwrap(), json!({"a": 1}));
        assert!(read("n=four").is_err() && read("alone").is_err() && read("x:=nope").is_err());
    }

    #[test]
    fn every_kind_of_content_shows_as_a_line() {
        let result = json!({"content": [
            {"type": "text", "text": "a\n"}, {"type": "image", "mimeType": "image/png", "data": "AAAA"},
            {"type": "resource", "resource": {"uri": "x:1", "text": "inner"}}, {"type": "resource_link", "uri": "x:2"},
        ]});
        assert_eq!(text(&result), "a\n[image image/png, 3 bytes; -o json shows it]\ninner\n[link x:2]\n");
    }
}
