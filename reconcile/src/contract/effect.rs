//! What a spec brings about: the means to show that no field of it is silent.

use std::collections::BTreeMap;

use mcp_hub_crds::hub::MCPHub;
use mcp_hub_crds::server::MCPServer;
use mcp_hub_crds::source::{Resolved, ResolvedImage, SecretKeyRef, Source};
use mcp_hub_crds::status::MCPServerStatus;
use mcp_hub_dataplane_api::secret::SecretString;
use serde_json::{Value, json};

use crate::accept;
use crate::gateway;
use crate::installation::Installation;
use crate::ports::{Addresses, Runtime};
use crate::workload::{ServerWorkload, Workload};

/// What a server's spec brings about on a runtime and at gateways.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// Objects, degradations, and configurations of gateways.
    pub output: Value,
    /// Paths of fields that are refused.
    pub refused: Vec<String>,
}

impl Effect {
    /// Paths of fields that are honoured in part.
    pub(super) fn degraded(&self) -> Vec<String> {
        let lowered = self.output["objects"].as_array().into_iter().flatten();
        let fields = lowered.flat_map(|lowered| lowered["degraded"].as_array().into_iter().flatten());
        fields.filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

/// `server` needs a uid and a namespace. Its source counts as resolved, and each secret has a value.
pub fn of_server(runtime: &dyn Runtime, server: &MCPServer) -> Effect {
    let installation = Installation::new("effect", [1; 32]);
    let mut refused: Vec<String> =
        accept::unimplemented_in_server(&server.spec).into_iter().map(str::to_owned).collect();
    let env = server.spec.env.iter().flatten().filter_map(|variable| variable.secret_ref.clone());
    let keys: Vec<SecretKeyRef> = env.chain(gateway::header_secrets(server).into_iter().cloned()).collect();
    let fingerprints = keys.iter().map(|key| (key.clone(), format!("{}/{}", key.name, key.key))).collect();
    let mut objects = Vec::new();
    match ServerWorkload::of(server, &installation, &fingerprints) {
        Ok(unresolved) => {
            let found = Resolved {
                source_digest: unresolved.source_digest.clone(),
                version: Some("1".to_owned()),
                command: Some(vec!["/bin/server".to_owned()]),
                env: None,
                reads: Some(vec!["/bin/server".to_owned()]),
                image: matches!(unresolved.source, Source::Image(_)).then(|| ResolvedImage {
                    index: format!("sha256:{}", "0".repeat(64)),
                    id: Some(format!("{}:sha256:{}", runtime.info_for(&unresolved).name, "1".repeat(64))),
                    entrypoint: Some(vec!["/bin/server".to_owned()]),
                    cmd: None,
                    user: None,
                }),
                runner: None,
            };
            let resolved = ServerWorkload { resolved: Some(found), ..unresolved.clone() };
            for workload in [unresolved, resolved] {
                match runtime.lower(&Workload::Server(Box::new(workload))) {
                    Ok(lowered) => objects.push(json!({
                        "objects": lowered.objects.iter().map(|object| (object.id.to_string(), object.body.clone())).collect::<BTreeMap<_, _>>(),
                        "degraded": lowered.degraded.iter().map(|degraded| degraded.field.clone()).collect::<Vec<_>>(),
                    })),
                    Err(refusal) => refused.push(refusal.field),
                }
            }
        }
        Err(error) => refused.push(error.to_string()),
    }
    let mut ready = server.clone();
    ready.status = Some(called_ready());
    let namespace = server.metadata.namespace.clone().unwrap_or_default();
    let secret = |key: &SecretKeyRef| SecretString::new(format!("{}/{}", key.name, key.key));
    let secrets = keys.iter().map(|key| ((namespace.clone(), key.clone()), secret(key))).collect();
    let near = hub(&namespace, json!({}));
    let far = hub("elsewhere", json!({"servers": {"namespaces": [namespace]}}));
    let offers = [near, far].map(|hub| {
        let selected = gateway::selects(&hub, server);
        let servers: Vec<Box<MCPServer>> = selected.then(|| Box::new(ready.clone())).into_iter().collect();
        document(&gateway::compose(&hub, &servers, &secrets, &Addresses::default(), &installation))
    });
    refused.dedup();
    Effect { output: json!({"objects": objects, "offers": offers}), refused }
}

fn called_ready() -> MCPServerStatus {
    let status = json!({
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Ready", "message": "",
            "lastTransitionTime": "2026-08-01T00:00:00Z",
        }],
        "endpoint": "http://127.0.0.1:1/mcp",
        "server": {"name": "s", "version": "1", "protocolVersions": [], "era": "legacy"},
    });
    serde_json::from_value(status).unwrap_or_default()
}

fn hub(namespace: &str, spec: Value) -> MCPHub {
    let mut hub = MCPHub::new("hub", serde_json::from_value(spec).unwrap_or_default());
    hub.metadata.namespace = Some(namespace.to_owned());
    hub.metadata.uid = Some("hub".to_owned());
    hub
}

/// A document of ours as JSON; all of them have text keys and finite numbers.
fn document<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Each document that results from leaving out one field of `document`, with the field's path; list items count by the
/// fields in them.
pub fn without_each_field(document: &Value) -> Vec<(String, Value)> {
    fn walk(at: &Value, path: &str, whole: &Value, pointer: &str, found: &mut Vec<(String, Value)>) {
        match at {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let (path, below) = (format!("{path}.{name}"), format!("{pointer}/{}", name.replace('/', "~1")));
                    let mut less = whole.clone();
                    if let Some(Value::Object(fields)) = less.pointer_mut(pointer) {
                        fields.remove(name);
                    }
                    found.push((path.clone(), less));
                    walk(value, &path, whole, &below, found);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    walk(item, &format!("{path}[{index}]"), whole, &format!("{pointer}/{index}"), found);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = Vec::new();
    walk(document, "spec", document, "", &mut found);
    found
}

/// Paths of all fields of a schema (`openAPIV3Schema`) below `spec`; `[]` stands for an item.
pub fn fields_of_schema(schema: &Value) -> Vec<String> {
    fn walk(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let (below, path) = match property.get("items") {
                Some(items) if items.get("properties").is_some() => (items, format!("{path}[]")),
                _ => (property, path),
            };
            match below.get("properties") {
                Some(_) => walk(below, &path, found),
                None => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    walk(&schema["properties"]["spec"], "spec", &mut found);
    found
}
