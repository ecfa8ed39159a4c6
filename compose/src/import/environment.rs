//! Variables of a service: values in clear, and secrets by name.

use mcp_hub_crds::FieldPath;
use mcp_hub_crds::command_line::secret_named;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::tree::{Kind, Node};
use serde_json::{Value, json};

use super::compose::{Reading, scalar};
use super::secrets::is_secret;
use crate::variables::{self, Written, variable};

/// One variable; without a value it is taken from the environment of whoever starts the project.
struct Given {
    name: String,
    value: Option<String>,
    path: FieldPath,
}

/// The variables as a manifest has them. `is_known`: names that are not looked at.
pub(super) fn read(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    node: &Node,
    is_known: impl Fn(&str, Option<&str>) -> bool,
) -> Vec<Value> {
    let given = given(reading, path, node);
    let unknown = given.into_iter().filter(|given| !is_known(&given.name, given.value.as_deref()));
    unknown.collect::<Vec<_>>().into_iter().filter_map(|given| one(reading, given)).collect()
}

fn given(reading: &mut Reading<'_>, path: &FieldPath, node: &Node) -> Vec<Given> {
    match &node.kind {
        Kind::Map(entries) => entries
            .iter()
            .filter_map(|entry| {
                let path = path.field(&entry.key);
                let value = match &entry.value.kind {
                    Kind::Scalar(Value::Null) => None,
                    _ => match scalar(&entry.value) {
                        Some(value) => Some(value),
                        None => {
                            reading.miss(&path, "expected text", None);
                            return None;
                        }
                    },
                };
                Some(Given { name: entry.key.clone(), value, path })
            })
            .collect(),
        Kind::List(items) => items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                let path = path.index(index);
                let Some(text) = scalar(item) else {
                    reading.miss(&path, "expected NAME=VALUE", None);
                    return None;
                };
                let (name, value) = match text.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (text, None),
                };
                Some(Given { name, value, path })
            })
            .collect(),
        Kind::Scalar(_) => {
            reading.miss(path, "expected a mapping or a list", None);
            Vec::new()
        }
    }
}

fn one(reading: &mut Reading<'_>, given: Given) -> Option<Value> {
    let Given { name, value, path } = given;
    let clear = |value: String| json!({"name": name, "value": value});
    let secret = |reading: &mut Reading<'_>, named: &str, why: &str| {
        let secret = secret_for(named);
        reading.tell(&path, from_secret(&name, why, &secret));
        json!({"name": name, "secretRef": secret})
    };
    match value.as_deref().map(variables::read) {
        None => Some(secret(reading, &name, "has no value in the file")),
        Some(Written::Literal(value)) if is_secret(&name, &value) => {
            Some(secret(reading, &name, "looks like a secret and stands in the file in clear; it is not copied"))
        }
        Some(Written::Literal(value)) => Some(clear(value)),
        Some(Written::Variable { name: of, default: Some(default) }) if !is_secret(&name, &default) => {
            // A name that says that it is a secret has a default for show.
            if mcp_hub_crds::manifest::secretive(&name) {
                return Some(secret(reading, &of, "is a placeholder"));
            }
            reading.tell(&path, format!("`{default}` is taken, which holds where {of} is not set"));
            Some(clear(default))
        }
        Some(Written::Variable { name: of, .. }) => Some(secret(reading, &of, "is a placeholder")),
        Some(Written::Secret(of)) => Some(secret(reading, &of, "is a placeholder")),
        Some(Written::Mixed(placeholder)) => {
            let hint = Some("make the whole value a secret, or write it out");
            reading.miss(&path, format!("the placeholder `{placeholder}` is not expanded here"), hint);
            None
        }
    }
}

/// The secret that a variable or placeholder of this name stands for. The daemon looks for `MCP_NAME` by itself.
pub(super) fn secret_for(name: &str) -> SecretKeyRef {
    secret_named(name.strip_prefix("MCP_").unwrap_or(name))
}

/// What is said of a value that comes from a secret.
pub(super) fn from_secret(name: &str, why: &str, secret: &SecretKeyRef) -> String {
    format!(
        "{name} {why}: set the secret `{}` by `mcpctl secret set {0}`, or {} in the daemon's environment",
        secret.name,
        variable(secret)
    )
}
