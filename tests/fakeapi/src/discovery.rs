//! What the server says of itself: its version, groups and resources.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::kind::{Kind, Registry};

/// The document at a path that tells of the server; None for any other path.
pub(crate) fn document(registry: &Registry, path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match &segments[..] {
        ["version"] => Some(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0-fake", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.26", "compiler": "gc", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let names: BTreeSet<&str> =
                registry.iter().map(|kind| kind.group.as_str()).filter(|group| !group.is_empty()).collect();
            let groups: Vec<Value> = names.into_iter().filter_map(|name| group(registry, name)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => group(registry, name),
        ["api", version] => resources(registry, "", version),
        ["apis", group, version] => resources(registry, group, version),
        _ => None,
    }
}

fn group(registry: &Registry, name: &str) -> Option<Value> {
    let versions: BTreeSet<&str> =
        registry.iter().filter(|kind| kind.group == name).map(|kind| kind.version.as_str()).collect();
    let versions: Vec<Value> = versions
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = versions.last()?.clone();
    Some(
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": preferred}),
    )
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> =
        registry.iter().map(|kind| &**kind).filter(|kind| kind.group == group && kind.version == version).collect();
    let first = kinds.first()?;
    let mut resources = Vec::new();
    for kind in &kinds {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        resources.push(json!({
            "name": kind.plural, "singularName": kind.name.to_lowercase(), "namespaced": kind.namespaced,
            "kind": kind.name, "verbs": verbs,
        }));
        if kind.status {
            resources.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.name, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": resources}),
    )
}
