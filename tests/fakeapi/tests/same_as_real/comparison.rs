//! What no two servers have in common, and where two answers differ.

use serde_json::{Value, json};

use crate::side::Said;

/// Takes out what no two servers have in common: identities, times, versions, addresses.
pub(crate) fn normalise(value: &mut Value) {
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        normalise(item);
    }
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    metadata.remove("resourceVersion");
    for varies in ["uid", "creationTimestamp", "deletionTimestamp", "continue"] {
        if let Some(value) = metadata.get_mut(varies) {
            *value = json!("set");
        }
    }
    for owner in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
        owner["time"] = json!("set");
        without_dots(&mut owner["fieldsV1"]);
    }
    if let Some(owners) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
        // Their order is by times, which are whole seconds.
        owners.sort_by_key(|owner| format!("{}{}{}", owner["manager"], owner["operation"], owner["subresource"]));
    }
    if let Some(uid) = value.get_mut("details").and_then(|details| details.get_mut("uid")) {
        *uid = json!("set");
    }
    if value["kind"] == "Service" || value["spec"]["clusterIP"].is_string() {
        let headless = value["spec"]["clusterIP"] == "None";
        if !headless && value["spec"]["clusterIP"].is_string() {
            value["spec"]["clusterIP"] = json!("set");
            value["spec"]["clusterIPs"] = json!(["set"]);
        }
    }
}

/// Whether an object that has owned fields is itself owned by an update follows from how Go holds it; nothing depends
/// on it.
pub(crate) fn without_dots(fields: &mut Value) {
    if let Some(fields) = fields.as_object_mut() {
        fields.remove(".");
        fields.values_mut().for_each(without_dots);
    }
}

/// Where two values differ, one line a place.
pub(crate) fn differences(path: &str, fake: &Value, real: &Value, found: &mut Vec<String>) {
    match (fake, real) {
        (Value::Object(left), Value::Object(right)) => {
            let names: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for name in names {
                let none = json!("(nothing)");
                let (left, right) = (left.get(name).unwrap_or(&none), right.get(name).unwrap_or(&none));
                differences(&format!("{path}.{name}"), left, right, found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                differences(&format!("{path}[{index}]"), left, right, found);
            }
        }
        (left, right) if left == right => {}
        (left, right) => found.push(format!("{path}: fake {left}, real {right}")),
    }
}

pub(crate) fn compared(fake: &Said, real: &Said) -> Vec<String> {
    let mut found = Vec::new();
    let whole = |said: &Said| match said {
        Ok(value) => json!({"ok": value}),
        Err(refusal) => json!({"refused": refusal}),
    };
    differences("", &whole(fake), &whole(real), &mut found);
    found
}
