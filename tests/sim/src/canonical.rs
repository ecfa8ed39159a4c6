//! An end state without what differs from run to run: identities, versions, times, names that the API server makes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mcp_hub_dataplane_api::document;
use mcp_hub_reconcile::installation::token_sha256;
use serde_json::{Value, json};

use crate::world::{World, installation};

/// Field managers of the operator.
const OURS: [&str; 2] = ["mcp-hub/objects", "mcp-hub/status"];
/// Kinds that users and the operator write.
const KINDS: [&str; 10] = [
    "MCPServer",
    "MCPHub",
    "Deployment",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Secret",
    "Certificate",
    "Ingress",
    "HTTPRoute",
];

/// Every object that users or the operator wrote, by `KIND/NAMESPACE/NAME`, and how many pods there are of each kind.
pub type EndState = BTreeMap<String, String>;

/// The state now.
pub fn end_state(world: &World) -> EndState {
    let snapshot = world.api.snapshot();
    let names = names(&snapshot);
    let mut state = EndState::new();
    for (key, object) in &snapshot {
        let kind = object["kind"].as_str().unwrap_or_default();
        if KINDS.contains(&kind) {
            state.insert(
                key.clone(),
                renamed(serde_json::to_string_pretty(&sorted(&canonical(object))).unwrap(), &names),
            );
        }
        if kind == "Pod" && object["metadata"]["deletionTimestamp"].is_null() {
            let labels = &object["metadata"]["labels"];
            let pods = format!("Pods/{}/{}", labels["mcphub.io/role"], labels["mcphub.io/owner-name"]);
            let line = format!("{}\n", renamed(sorted(&object["spec"]["containers"][0]).to_string(), &names));
            state.entry(pods).or_default().push_str(&line);
        }
    }
    state
}

/// The same with the members of objects in order; the API server keeps them as they came.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<&String, Value> =
                members.iter().map(|(name, member)| (name, sorted(member))).collect();
            json!(members)
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// What stands for each identity, and for what is derived from it.
fn names(snapshot: &BTreeMap<String, Value>) -> Vec<(String, String)> {
    let installation = installation();
    let mut names = Vec::new();
    for (key, object) in snapshot {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if key.starts_with("MCPServer/") || key.starts_with("MCPHub/") {
            let (bridge, hub) = (installation.bridge_token(uid, 0), installation.hub_token(uid, 0));
            let sealing = installation.sealing_key(uid);
            names.extend([
                (uid.to_owned(), format!("<uid of {key}>")),
                (token_sha256(&bridge), format!("<hash of the bridge token of {key}>")),
                (token_sha256(&hub), format!("<hash of the token of {key}>")),
                (bridge.expose_secret().to_owned(), format!("<bridge token of {key}>")),
                (hub.expose_secret().to_owned(), format!("<token of {key}>")),
                (installation.wake_token(uid).expose_secret().to_owned(), format!("<wake token of {key}>")),
                (hex::encode(sealing), format!("<sealing key of {key}>")),
            ]);
        }
    }
    names
}

fn renamed(mut text: String, names: &[(String, String)]) -> String {
    for (from, to) in names {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    text
}

fn canonical(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut annotations = metadata["annotations"].clone();
    for volatile in
        ["mcphub.io/digest", "mcphub.io/sequence", "mcphub.io/config-version", "deployment.kubernetes.io/revision"]
    {
        take(&mut annotations, volatile);
    }
    let mut shown = json!({
        "metadata": {
            "labels": metadata["labels"], "annotations": annotations, "ownerReferences": metadata["ownerReferences"],
            "finalizers": metadata["finalizers"], "deleting": metadata["deletionTimestamp"].is_string(),
        },
        "spec": object["spec"],
        "ours": ours(metadata),
    });
    match object["kind"].as_str() {
        Some("MCPServer" | "MCPHub") => shown["status"] = status(object),
        Some("Secret") => shown["data"] = data(object),
        Some("Service") => {
            // Given by the API server.
            for field in ["clusterIP", "clusterIPs"] {
                if shown["spec"]["clusterIP"] != "None" {
                    take(&mut shown["spec"], field);
                }
            }
        }
        _ => {}
    }
    shown
}

/// Which fields the operator owns.
fn ours(metadata: &Value) -> Value {
    let sets = metadata["managedFields"].as_array().into_iter().flatten();
    let mine = sets.filter(|set| OURS.iter().any(|manager| set["manager"] == *manager));
    mine.map(|set| {
        let mut fields = set["fieldsV1"].clone();
        // A Ready condition that never was True has no other fields than one that was.
        take(&mut fields, "f:status");
        json!([set["manager"], set["operation"], set["subresource"], fields])
    })
    .collect()
}

fn status(object: &Value) -> Value {
    let mut status = object["status"].clone();
    let current = |generation: &Value| json!(*generation == object["metadata"]["generation"]);
    let observed = current(&status["observedGeneration"]);
    if let Some(fields) = status.as_object_mut() {
        fields.insert("observedGeneration".to_owned(), observed);
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        // A map by type.
        conditions.sort_by_key(|condition| condition["type"].to_string());
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["observedGeneration"] = current(&condition["observedGeneration"]);
        take(condition, "lastTransitionTime");
    }
    if status["gateway"].is_object() {
        take(&mut status["gateway"], "version");
    }
    status
}

/// The data of a Secret; a configuration as JSON.
fn data(secret: &Value) -> Value {
    let mut shown = BTreeMap::new();
    for (key, value) in secret["data"].as_object().into_iter().flatten() {
        let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
        let value = match document::read(&bytes) {
            Ok(config) => {
                let mut config = serde_json::to_value(config).unwrap();
                take(&mut config, "version");
                take(&mut config, "sequence");
                config
            }
            Err(_) => Value::from(String::from_utf8_lossy(&bytes)),
        };
        shown.insert(key.clone(), value);
    }
    json!(shown)
}

fn take(value: &mut Value, field: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
}

/// Fails unless both are the same, and shows the lines that differ.
pub fn assert_same(got: &EndState, want: &EndState, of: &str) {
    let mut lines = Vec::new();
    for key in want.keys().chain(got.keys().filter(|key| !want.contains_key(*key))) {
        match (want.get(key), got.get(key)) {
            (Some(want), Some(got)) if want == got => {}
            (Some(want), Some(got)) => {
                lines.push(format!("{key}:"));
                let (want, got): (Vec<_>, Vec<_>) = (want.lines().collect(), got.lines().collect());
                lines.extend(want.iter().filter(|line| !got.contains(line)).map(|line| format!("  - {line}")));
                lines.extend(got.iter().filter(|line| !want.contains(line)).map(|line| format!("  + {line}")));
            }
            (Some(_), None) => lines.push(format!("{key} is missing")),
            (None, _) => lines.push(format!("{key} is there and should not be")),
        }
    }
    assert!(lines.is_empty(), "{of}: the end state is another (- wanted, + got):\n{}", lines.join("\n"));
}
