//! `HTTPRoute` of the Gateway API: as much of its definition as decides how a route of ours is stored, with the defaults
//! that the API server fills in.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

/// A definition that a real API server takes, too.
pub(crate) fn definition() -> CustomResourceDefinition {
    serde_json::from_value(document()).unwrap_or_default()
}

fn document() -> Value {
    let text = || json!({"type": "string"});
    let text_or = |default: &str| json!({"type": "string", "default": default});
    let port = || json!({"type": "integer", "format": "int32"});
    let list = |items: Value| json!({"type": "array", "items": items, "x-kubernetes-list-type": "atomic"});
    let open = || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let parent = || {
        json!({"type": "object", "required": ["name"], "properties": {
            "group": text_or("gateway.networking.k8s.io"), "kind": text_or("Gateway"), "namespace": text(),
            "name": text(), "sectionName": text(), "port": port()}})
    };
    let condition = json!({"type": "object", "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {"type": text(), "status": text(), "reason": text(), "message": text(),
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64"}}});
    let backend = json!({"type": "object", "required": ["name"], "properties": {
        "group": text_or(""), "kind": text_or("Service"), "name": text(), "namespace": text(), "port": port(),
        "weight": {"type": "integer", "format": "int32", "default": 1}, "filters": list(open())}});
    let route_match = json!({"type": "object", "properties": {
        "path": {"type": "object", "default": {"type": "PathPrefix", "value": "/"},
            "properties": {"type": text_or("PathPrefix"), "value": text_or("/")}},
        "headers": {"type": "array", "items": {"type": "object", "required": ["name", "value"], "properties": {
                "name": text(), "value": text(), "type": text_or("Exact")}},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        "method": text()}});
    let rule = json!({"type": "object", "properties": {
        "name": text(), "filters": list(open()), "backendRefs": list(backend), "timeouts": open(),
        "matches": {"type": "array", "items": route_match, "x-kubernetes-list-type": "atomic",
            "default": [{"path": {"type": "PathPrefix", "value": "/"}}]}}});
    let mut rules = list(rule);
    rules["default"] = json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]);
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "apiVersion": text(), "kind": text(), "metadata": {"type": "object"},
        "spec": {"type": "object", "properties": {
            "hostnames": list(text()), "parentRefs": list(parent()), "rules": rules}},
        "status": {"type": "object", "required": ["parents"], "properties": {
            "parents": list(json!({"type": "object", "required": ["parentRef", "controllerName"], "properties": {
                "parentRef": parent(), "controllerName": text(),
                "conditions": {"type": "array", "items": condition, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["type"]}}}))}}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "httproutes.gateway.networking.k8s.io", "annotations": {
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/3328"}},
        "spec": {
            "group": "gateway.networking.k8s.io",
            "names": {"plural": "httproutes", "singular": "httproute", "kind": "HTTPRoute", "listKind": "HTTPRouteList"},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_read() {
        assert_eq!(super::definition().spec.names.kind, "HTTPRoute");
    }
}
