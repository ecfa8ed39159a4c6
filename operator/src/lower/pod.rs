//! What every pod of ours has: the user it runs as and the rights it has not.

use mcp_hub_crds::server::{ResourceAmounts, Resources};
use serde_json::{Map, Value, json};

use super::quantity::canonical;

/// `securityContext` of a container under the restricted Pod Security level.
pub(super) fn confined(read_only_root: bool) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "privileged": false,
        "readOnlyRootFilesystem": read_only_root,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// `securityContext` of a pod.
pub(super) fn identity(user: i64, group: i64) -> Value {
    let mut identity = json!({
        "runAsUser": user,
        "runAsGroup": group,
        // Volumes are writable for whoever the server runs as.
        "fsGroup": group,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    identity["runAsNonRoot"] = Value::from(user != 0);
    identity
}

/// An environment variable. The kubelet replaces `$(NAME)` and `$$` in values; ours are meant as they are.
pub(super) fn variable(name: &str, value: &str) -> Value {
    match value {
        // The server leaves empty values out.
        "" => json!({"name": name}),
        value => json!({"name": name, "value": value.replace('$', "$$")}),
    }
}

pub(super) fn resources(wanted: Option<&Resources>) -> Option<Value> {
    let amounts = |amounts: Option<&ResourceAmounts>| {
        let amounts = amounts?;
        let mut map = Map::new();
        map.extend(amounts.cpu.as_ref().map(|cpu| ("cpu".to_owned(), Value::from(canonical(cpu)))));
        map.extend(amounts.memory.as_ref().map(|memory| ("memory".to_owned(), Value::from(canonical(memory)))));
        (!map.is_empty()).then_some(Value::Object(map))
    };
    let wanted = wanted?;
    let mut map = Map::new();
    map.extend(amounts(wanted.limits.as_ref()).map(|limits| ("limits".to_owned(), limits)));
    map.extend(amounts(wanted.requests.as_ref()).map(|requests| ("requests".to_owned(), requests)));
    (!map.is_empty()).then_some(Value::Object(map))
}

/// A probe of a path on a port of the pod.
pub(super) fn probe(path: &str, port: u16, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures,
    })
}
