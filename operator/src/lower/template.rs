//! `spec.kubernetes.podTemplate`: merged over the generated template as `kubectl patch` merges (strategic merge), and
//! refused where it would weaken what keeps a server confined.

use mcp_hub_reconcile::lower::Unsupported;
use serde_json::Value;

use super::no;
use crate::pods::{BRIDGE, SERVER};

const FIELD: &str = "spec.kubernetes.podTemplate";

/// Lists whose items are told apart by a key, as the API's strategic merge knows them; other lists are replaced whole.
fn merge_key(list: &str) -> Option<&'static str> {
    Some(match list {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims"
        | "schedulingGates" => "name",
        "volumeMounts" => "mountPath",
        "volumeDevices" => "devicePath",
        "ports" => "containerPort",
        "hostAliases" => "ip",
        "topologySpreadConstraints" => "topologyKey",
        _ => return None,
    })
}

/// Merges `patch` over a generated `template`.
pub(super) fn merge(template: &mut Value, patch: &Value) -> Result<(), Unsupported> {
    check_patch(patch)?;
    let read_only = |template: &Value| {
        let containers = template["spec"]["containers"].as_array().into_iter().flatten();
        containers.into_iter().any(|c| c["name"] == SERVER && c["securityContext"]["readOnlyRootFilesystem"] == true)
    };
    let was_read_only = read_only(template);
    overlay(template, patch, "");
    if was_read_only && !read_only(template) {
        let path = format!("{FIELD}.spec.containers[{SERVER}].securityContext.readOnlyRootFilesystem");
        return Err(no(path, "must be true", Some("set spec.permissions.filesystem to unrestricted")));
    }
    match weakened(&template["spec"]) {
        None => Ok(()),
        Some((path, message)) => Err(no(format!("{FIELD}.spec{path}"), message, None)),
    }
}

fn overlay(into: &mut Value, patch: &Value, name: &str) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => {
                        into.remove(key);
                    }
                    value => overlay(into.entry(key.clone()).or_insert(Value::Null), value, key),
                }
            }
        }
        (Value::Array(into), Value::Array(patch)) if merge_key(name).is_some() => {
            let key = merge_key(name).unwrap_or_default();
            for item in patch {
                match into.iter_mut().find(|known| known[key] == item[key]) {
                    Some(known) => overlay(known, item, ""),
                    None => into.push(item.clone()),
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

/// What makes a pod ours is not for the template to say.
fn check_patch(patch: &Value) -> Result<(), Unsupported> {
    let refuse = |path: &str, message: &str| Err(no(format!("{FIELD}.{path}"), message, None));
    for (key, _) in patch.as_object().into_iter().flatten() {
        if key != "metadata" && key != "spec" {
            return refuse(key, "a pod template has `metadata` and `spec` only");
        }
    }
    for (key, _) in patch["metadata"].as_object().into_iter().flatten() {
        if key != "labels" && key != "annotations" {
            return refuse(&format!("metadata.{key}"), "only labels and annotations can be set");
        }
    }
    for (label, _) in patch["metadata"]["labels"].as_object().into_iter().flatten() {
        if label.starts_with("mcphub.io/") || label.starts_with("app.kubernetes.io/") {
            return refuse(&format!("metadata.labels.{label}"), "this label tells whose the pod is");
        }
    }
    for list in ["containers", "initContainers"] {
        for container in patch["spec"][list].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            if name == SERVER || name == BRIDGE {
                for key in ["image", "command", "args"] {
                    if container.get(key).is_some() {
                        let path = format!("spec.{list}[{name}].{key}");
                        return refuse(&path, "the bridge starts the server; use spec.source and spec.args");
                    }
                }
            }
        }
    }
    Ok(())
}

/// The first thing in a pod's spec that the restricted Pod Security level forbids, or that gives the pod credentials of the
/// API server, with its path below the spec.
fn weakened(spec: &Value) -> Option<(String, &'static str)> {
    let truth = |value: &Value| value.as_bool() == Some(true);
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if truth(&spec[field]) {
            return Some((format!(".{field}"), "a server does not share the node's namespaces"));
        }
    }
    if spec["hostUsers"].as_bool() == Some(true) {
        return Some((".hostUsers".to_owned(), "a server does not share the node's users"));
    }
    if spec["automountServiceAccountToken"].as_bool() != Some(false) {
        return Some((".automountServiceAccountToken".to_owned(), "a server holds no credentials of the cluster"));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let name = volume["name"].as_str().unwrap_or_default();
        if volume.get("hostPath").is_some() {
            return Some((format!(".volumes[{name}].hostPath"), "a server does not see the node's files"));
        }
        let projected = volume["projected"]["sources"].as_array().into_iter().flatten();
        if projected.into_iter().any(|source| source.get("serviceAccountToken").is_some()) {
            return Some((format!(".volumes[{name}].projected"), "a server holds no credentials of the cluster"));
        }
    }
    if let Some(found) = weak_context(&spec["securityContext"], ".securityContext") {
        return Some(found);
    }
    let may_be_root = spec["securityContext"]["runAsUser"] == 0;
    if !may_be_root && !truth(&spec["securityContext"]["runAsNonRoot"]) {
        return Some((".securityContext.runAsNonRoot".to_owned(), "root needs spec.runAs with allowRoot"));
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            let context = &container["securityContext"];
            let path = format!(".{list}[{name}].securityContext");
            if let Some(found) = weak_context(context, &path) {
                return Some(found);
            }
            if context["allowPrivilegeEscalation"].as_bool() != Some(false) {
                return Some((format!("{path}.allowPrivilegeEscalation"), "must be false"));
            }
            let dropped =
                context["capabilities"]["drop"].as_array().is_some_and(|drop| drop.iter().any(|c| c == "ALL"));
            if !dropped {
                return Some((format!("{path}.capabilities.drop"), "must hold ALL"));
            }
            let added = context["capabilities"]["add"].as_array().into_iter().flatten();
            if added.into_iter().any(|capability| capability != "NET_BIND_SERVICE") {
                return Some((format!("{path}.capabilities.add"), "no more than NET_BIND_SERVICE can be added"));
            }
            if name == BRIDGE && context["readOnlyRootFilesystem"].as_bool() != Some(true) {
                return Some((format!("{path}.readOnlyRootFilesystem"), "must be true"));
            }
            if context["runAsNonRoot"].as_bool() == Some(false) || context["runAsUser"] == 0 {
                return Some((path, "root needs spec.runAs with allowRoot"));
            }
            for port in container["ports"].as_array().into_iter().flatten() {
                if port["hostPort"].as_i64().unwrap_or_default() != 0 {
                    return Some((format!(".{list}[{name}].ports"), "a server takes no port of the node"));
                }
            }
        }
    }
    None
}

fn weak_context(context: &Value, path: &str) -> Option<(String, &'static str)> {
    if context["privileged"].as_bool() == Some(true) {
        return Some((format!("{path}.privileged"), "a server has no privileges"));
    }
    let seccomp = &context["seccompProfile"]["type"];
    if !seccomp.is_null() && seccomp != "RuntimeDefault" && seccomp != "Localhost" {
        return Some((format!("{path}.seccompProfile"), "must be RuntimeDefault or Localhost"));
    }
    let proc_mount = &context["procMount"];
    if !proc_mount.is_null() && proc_mount != "Default" {
        return Some((format!("{path}.procMount"), "must be Default"));
    }
    let apparmor = &context["appArmorProfile"]["type"];
    if apparmor == "Unconfined" {
        return Some((format!("{path}.appArmorProfile"), "must not be Unconfined"));
    }
    if context.get("sysctls").is_some() {
        return Some((format!("{path}.sysctls"), "a server changes nothing of the kernel"));
    }
    None
}
