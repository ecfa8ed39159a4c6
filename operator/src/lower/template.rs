//! `spec.kubernetes.podTemplate`: merged over the generated template as `kubectl patch` merges (strategic merge), and
//! refused where it would weaken what keeps a server confined.

use mcp_hub_reconcile::lower::Unsupported;
use serde_json::Value;

use super::no;
use crate::pods::{BRIDGE, PACKAGE, SERVER};

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
    check_generated(template, patch)?;
    let read_only = |template: &Value| {
        let containers = template["spec"]["containers"].as_array().into_iter().flatten();
        containers.into_iter().any(|c| c["name"] == SERVER && c["securityContext"]["readOnlyRootFilesystem"] == true)
    };
    let was_read_only = read_only(template);
    // Of what is generated, not of what the patch makes of it: that would be its own leave.
    let may_be_root = template["spec"]["securityContext"]["runAsUser"] == 0;
    overlay(template, patch, "");
    if was_read_only && !read_only(template) {
        let path = format!("{FIELD}.spec.containers[{SERVER}].securityContext.readOnlyRootFilesystem");
        return Err(no(path, "must be true", Some("set spec.permissions.filesystem to unrestricted")));
    }
    match weakened(&template["spec"], may_be_root) {
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
            if [SERVER, BRIDGE, PACKAGE].contains(&name) {
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

/// Variables and mounts of our containers that are generated say where a server may go, and what it may write.
fn check_generated(template: &Value, patch: &Value) -> Result<(), Unsupported> {
    fn named<'a>(items: &'a Value, key: &str, name: &Value) -> Option<&'a Value> {
        items.as_array()?.iter().find(|item| item[key] == *name)
    }
    for list in ["containers", "initContainers"] {
        for container in patch["spec"][list].as_array().into_iter().flatten() {
            let Some(generated) = named(&template["spec"][list], "name", &container["name"]) else { continue };
            let name = container["name"].as_str().unwrap_or_default();
            for (field, key, instead) in [("env", "name", "spec.env"), ("volumeMounts", "mountPath", "spec.volumes")] {
                let refuse = |item: &str| {
                    let message = format!("this is generated; use {instead}");
                    Err(no(format!("{FIELD}.spec.{list}[{name}].{field}{item}"), message, None))
                };
                if container.get(field).is_some_and(Value::is_null) {
                    return refuse("");
                }
                for item in container[field].as_array().into_iter().flatten() {
                    if named(&generated[field], key, &item[key]).is_some() {
                        return refuse(&format!("[{}]", item[key].as_str().unwrap_or_default()));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The first thing in a pod's spec that the restricted Pod Security level forbids, or that gives the pod credentials of the
/// API server, with its path below the spec.
fn weakened(spec: &Value, may_be_root: bool) -> Option<(String, &'static str)> {
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
    // Containers have the pod's, and none of their own.
    if spec["securityContext"]["seccompProfile"]["type"].is_null() {
        return Some((".securityContext.seccompProfile".to_owned(), "must be RuntimeDefault or Localhost"));
    }
    let as_root = spec["securityContext"]["runAsUser"] == 0 || !truth(&spec["securityContext"]["runAsNonRoot"]);
    if as_root && !may_be_root {
        return Some((".securityContext".to_owned(), "root needs spec.runAs with allowRoot"));
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
            if [BRIDGE, PACKAGE].contains(&name) && context["readOnlyRootFilesystem"].as_bool() != Some(true) {
                return Some((format!("{path}.readOnlyRootFilesystem"), "must be true"));
            }
            let as_root = context["runAsNonRoot"].as_bool() == Some(false) || context["runAsUser"] == 0;
            if as_root && !may_be_root {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::lower::pod;

    fn template(user: i64) -> Value {
        let container = |name: &str| json!({"name": name, "image": "i", "securityContext": pod::confined(true)});
        json!({"metadata": {"labels": {"mcphub.io/role": "server"}}, "spec": {
            "automountServiceAccountToken": false, "securityContext": pod::identity(user, user),
            "initContainers": [container(BRIDGE)], "containers": [container(SERVER)],
        }})
    }

    fn refused(patch: &Value) -> Option<String> {
        merge(&mut template(65_532), patch).err().map(|refusal| refusal.field)
    }

    #[test]
    fn what_is_generated_for_a_container_stands_and_more_may_be_put_beside_it() {
        let generated = || {
            let mut template = template(65_532);
            let server = &mut template["spec"]["containers"][0];
            server["env"] = json!([{"name": "HTTPS_PROXY", "value": "http://relay"}]);
            server["volumeMounts"] = json!([{"name": "p", "mountPath": "/package", "readOnly": true}]);
            template
        };
        for (more, field) in [
            (json!({"name": SERVER, "env": [{"name": "HTTPS_PROXY", "value": "http://other"}]}), "env[HTTPS_PROXY]"),
            (json!({"name": SERVER, "env": null}), "env"),
            (
                json!({"name": SERVER, "volumeMounts": [{"mountPath": "/package", "readOnly": false}]}),
                "volumeMounts[/package]",
            ),
        ] {
            let patch = json!({"spec": {"containers": [more]}});
            let refusal = merge(&mut generated(), &patch).unwrap_err();
            assert_eq!(refusal.field, format!("{FIELD}.spec.containers[server].{field}"));
        }
        let mut merged = generated();
        let more = json!({
            "name": SERVER, "env": [{"name": "MORE", "value": "1"}], "volumeMounts": [{"name": "p", "mountPath": "/b"}],
        });
        merge(&mut merged, &json!({"spec": {"containers": [more]}})).unwrap();
        let server = &merged["spec"]["containers"][0];
        assert_eq!(
            (&server["env"][1]["name"], &server["volumeMounts"][1]["mountPath"]),
            (&json!("MORE"), &json!("/b"))
        );
    }

    #[test]
    fn what_weakens_a_pod_is_refused_by_its_path() {
        let spec = |more: Value| json!({"spec": more});
        let server = |more: Value| {
            let mut container = json!({"name": SERVER});
            overlay(&mut container, &more, "");
            json!({"spec": {"containers": [container]}})
        };
        let context = |more: Value| server(json!({"securityContext": more}));
        let sidecar = |more: Value| {
            let mut container = json!({"name": "side", "image": "i", "securityContext": pod::confined(true)});
            overlay(&mut container, &more, "");
            json!({"spec": {"containers": [container]}})
        };
        let cases = [
            (json!({"status": {}}), "status"),
            (json!({"metadata": {"name": "x"}}), "metadata.name"),
            (json!({"metadata": {"labels": {"mcphub.io/role": "gateway"}}}), "metadata.labels.mcphub.io/role"),
            (server(json!({"image": "other"})), "spec.containers[server].image"),
            (server(json!({"command": ["sh"]})), "spec.containers[server].command"),
            (spec(json!({"hostNetwork": true})), "spec.hostNetwork"),
            (spec(json!({"hostPID": true})), "spec.hostPID"),
            (spec(json!({"hostIPC": true})), "spec.hostIPC"),
            (spec(json!({"hostUsers": true})), "spec.hostUsers"),
            (spec(json!({"automountServiceAccountToken": true})), "spec.automountServiceAccountToken"),
            (spec(json!({"automountServiceAccountToken": null})), "spec.automountServiceAccountToken"),
            (spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})), "spec.volumes[v].hostPath"),
            (
                spec(json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {}}]}}]})),
                "spec.volumes[v].projected",
            ),
            (spec(json!({"securityContext": null})), "spec.securityContext.seccompProfile"),
            (spec(json!({"securityContext": {"seccompProfile": null}})), "spec.securityContext.seccompProfile"),
            (
                spec(json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}})),
                "spec.securityContext.seccompProfile",
            ),
            (spec(json!({"securityContext": {"sysctls": []}})), "spec.securityContext.sysctls"),
            (spec(json!({"securityContext": {"runAsNonRoot": null}})), "spec.securityContext"),
            (spec(json!({"securityContext": {"runAsUser": 0, "runAsNonRoot": false}})), "spec.securityContext"),
            (context(json!({"runAsUser": 0})), "spec.containers[server].securityContext"),
            (context(json!({"privileged": true})), "spec.containers[server].securityContext.privileged"),
            (context(json!({"procMount": "Unmasked"})), "spec.containers[server].securityContext.procMount"),
            (
                context(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "spec.containers[server].securityContext.appArmorProfile",
            ),
            (
                context(json!({"allowPrivilegeEscalation": true})),
                "spec.containers[server].securityContext.allowPrivilegeEscalation",
            ),
            (
                context(json!({"capabilities": {"drop": ["NET_RAW"]}})),
                "spec.containers[server].securityContext.capabilities.drop",
            ),
            (
                context(json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
                "spec.containers[server].securityContext.capabilities.add",
            ),
            (
                context(json!({"readOnlyRootFilesystem": false})),
                "spec.containers[server].securityContext.readOnlyRootFilesystem",
            ),
            (
                sidecar(json!({"securityContext": {"privileged": true}})),
                "spec.containers[side].securityContext.privileged",
            ),
            (sidecar(json!({"ports": [{"containerPort": 1, "hostPort": 1}]})), "spec.containers[side].ports"),
        ];
        for (patch, path) in cases {
            assert_eq!(refused(&patch), Some(format!("{FIELD}.{path}")), "{patch}");
        }
    }

    #[test]
    fn what_leaves_a_pod_confined_is_merged() {
        let patch = json!({"metadata": {"annotations": {"a": "1"}}, "spec": {
            "nodeSelector": {"disk": "fast"},
            "containers": [
                {"name": SERVER, "resources": {"limits": {"cpu": "1"}}},
                {"name": "side", "image": "i", "securityContext": pod::confined(true)},
            ],
        }});
        let mut merged = template(65_532);
        merge(&mut merged, &patch).unwrap();
        assert_eq!(merged["spec"]["nodeSelector"]["disk"], "fast");
        let names: Vec<&Value> = merged["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(names, [SERVER, "side"]);
        assert_eq!(merged["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
        assert_eq!(merged["spec"]["containers"][0]["image"], "i");
        // Whoever may be root by the spec may be so in the template.
        merge(
            &mut template(0),
            &json!({"spec": {"containers": [{"name": SERVER, "securityContext": {"runAsUser": 0}}]}}),
        )
        .unwrap();
    }
}
