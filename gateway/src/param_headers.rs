//! Arguments that a tool's schema wants in `Mcp-Param-*` headers (2026-07-28, "Streamable HTTP: Custom headers from tool
//! parameters").

use std::collections::HashSet;

use http::{HeaderMap, HeaderName, HeaderValue};
use mcp_hub_mcp::headers;
use serde_json::Value;

use crate::fields::Fields;

/// The annotation in a schema.
const ANNOTATION: &str = "x-mcp-header";
/// Keywords whose values are data, not schemas.
const DATA: [&str; 4] = ["default", "const", "enum", "examples"];

/// One argument that a header repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Annotation {
    /// Names of members from the arguments' root on.
    path: Vec<String>,
    header: HeaderName,
}

/// Why a tool cannot be offered over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAnnotation {
    #[error("an `x-mcp-header` is no name of a header")]
    Name,
    #[error("`x-mcp-header: {0}` is given twice")]
    Twice(String),
    #[error("`x-mcp-header: {0}` is on an argument that is no string, integer or boolean")]
    Type(String),
    #[error("an `x-mcp-header` is somewhere that no chain of `properties` leads to")]
    Place,
}

/// What a header and the body disagree about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header {0} is missing or differs from the argument")]
pub(crate) struct Mismatch(pub(crate) String);

/// The annotations of a tool's definition, raw.
pub(crate) fn annotations(tool: &str) -> Result<Vec<Annotation>, InvalidAnnotation> {
    if memchr::memmem::find(tool.as_bytes(), ANNOTATION.as_bytes()).is_none() {
        return Ok(Vec::new());
    }
    let tool: Value = serde_json::from_str(tool).unwrap_or_default();
    let mut found = Vec::new();
    walk(&tool["inputSchema"], Some(&mut Vec::new()), &mut found)?;
    let mut seen = HashSet::new();
    for annotation in &found {
        if !seen.insert(&annotation.header) {
            return Err(InvalidAnnotation::Twice(annotation.header.to_string()));
        }
    }
    Ok(found)
}

/// `path` is `None` where no chain of `properties` leads to.
fn walk(
    schema: &Value,
    mut path: Option<&mut Vec<String>>,
    found: &mut Vec<Annotation>,
) -> Result<(), InvalidAnnotation> {
    if let Value::Array(schemas) = schema {
        return schemas.iter().try_for_each(|schema| walk(schema, None, found));
    }
    let Value::Object(members) = schema else { return Ok(()) };
    if let Some(name) = members.get(ANNOTATION) {
        let Some(path) = path.as_ref().filter(|path| !path.is_empty()) else { return Err(InvalidAnnotation::Place) };
        let name = name.as_str().filter(|name| !name.is_empty()).ok_or(InvalidAnnotation::Name)?;
        let header =
            HeaderName::from_bytes(format!("mcp-param-{name}").as_bytes()).map_err(|_| InvalidAnnotation::Name)?;
        if !matches!(members.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
            return Err(InvalidAnnotation::Type(name.to_owned()));
        }
        found.push(Annotation { path: path.to_vec(), header });
    }
    for (keyword, value) in members {
        match (keyword.as_str(), value, &mut path) {
            ("properties", Value::Object(properties), Some(path)) => {
                for (name, schema) in properties {
                    path.push(name.clone());
                    walk(schema, Some(path), found)?;
                    path.pop();
                }
            }
            (keyword, _, _) if DATA.contains(&keyword) => {}
            (_, value, _) => walk(value, None, found)?,
        }
    }
    Ok(())
}

impl Annotation {
    /// The argument, if there is one that a header can carry.
    fn argument<'a>(&self, arguments: &'a Value) -> Option<&'a Value> {
        let found = self.path.iter().try_fold(arguments, |value, name| value.get(name))?;
        matches!(found, Value::String(_) | Value::Number(_) | Value::Bool(_)).then_some(found)
    }
}

/// The headers for these arguments, raw.
pub(crate) fn headers(annotations: &[Annotation], arguments: Option<&str>) -> Fields {
    let arguments: Value = arguments.and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    let mut made = Fields::new();
    for annotation in annotations {
        let Some(argument) = annotation.argument(&arguments) else { continue };
        let text = argument.as_str().map_or_else(|| argument.to_string(), str::to_owned);
        // Encoded, it is ASCII without control characters.
        if let Ok(value) = HeaderValue::from_str(&headers::encode(&text)) {
            made.push((annotation.header.clone(), value));
        }
    }
    made
}

/// Holds the headers of a request against its arguments, raw.
pub(crate) fn check(annotations: &[Annotation], arguments: Option<&str>, shown: &HeaderMap) -> Result<(), Mismatch> {
    let arguments: Value = arguments.and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    for annotation in annotations {
        let value = shown.get(&annotation.header).map(|value| value.to_str().ok().and_then(headers::decode));
        let agrees = match (annotation.argument(&arguments), value) {
            (None, None) => true,
            (Some(Value::String(text)), Some(Some(shown))) => *shown == **text,
            (Some(Value::Number(number)), Some(Some(shown))) => {
                // 42.0 and 42 are equal, and large integers are not rounded.
                number.to_string() == *shown || shown.parse().ok() == number.as_f64()
            }
            (Some(Value::Bool(flag)), Some(Some(shown))) => shown.parse() == Ok(*flag),
            _ => false,
        };
        if !agrees {
            return Err(Mismatch(annotation.header.to_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_become_headers_where_the_schema_says_so() {
        let tool = json!({"inputSchema": {"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
            "other": {"type": "string"},
            "absent": {"type": "boolean", "x-mcp-header": "Absent"},
        }}});
        let annotations = annotations(&tool.to_string()).unwrap();
        let arguments = r#"{"region":"eu","deep":{"n":3},"other":"x","absent":null}"#;
        let made: HeaderMap = headers(&annotations, Some(arguments)).into_iter().collect();
        let shown: Vec<_> = made.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(shown, [("mcp-param-region", "eu"), ("mcp-param-n", "3")]);
        assert_eq!(check(&annotations, Some(arguments), &made), Ok(()));
        assert_eq!(check(&annotations, Some("{}"), &made), Err(Mismatch("mcp-param-region".to_owned())));
        assert_eq!(check(&annotations, None, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn large_integers_are_not_rounded() {
        let tool = json!({"inputSchema": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}}});
        let annotations = annotations(&tool.to_string()).unwrap();
        let mut shown = HeaderMap::new();
        shown.insert("mcp-param-n", HeaderValue::from_static("9007199254740993"));
        assert_eq!(check(&annotations, Some(r#"{"n":9007199254740993}"#), &shown), Ok(()));
    }
}
