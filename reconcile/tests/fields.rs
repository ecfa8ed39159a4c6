//! No field of `MCPHub` is silent: each one, set alone, changes the configuration or the status, or is refused by name.
//! The table is complete, because it is compared with the schema. (For `MCPServer` see `contract::fields`, which each
//! runtime's tests go through.)

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::collections::BTreeMap;

use mcp_hub_crds::resource::ResourceKind;
use mcp_hub_crds::validate::violations;
use mcp_hub_reconcile::contract::effect::fields_of_schema;
use scenario::{Scenario, command, hub, with};
use serde_json::{Value, json};

/// A field, a spec without it (or with another value, if it cannot be left out), and the same with it.
fn fields() -> Vec<(&'static str, Value, Value)> {
    let none = || json!({});
    let servers = |servers: Value| json!({"servers": servers});
    let gateway = |gateway: Value| json!({"gateway": gateway});
    let oidc = |issuer: &str, audience: &str, more: Value| {
        let mut oidc = json!({"issuer": issuer, "audiences": [audience]});
        oidc.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"auth": {"mode": "oidc", "oidc": oidc}})
    };
    let rule = |name: &str, when: &str, action: &str| json!({"policy": {"rules": [{"name": name, "when": when, "action": action}]}});
    let ingress = |more: Value| {
        let mut ingress = json!({"host": "a.example.com"});
        ingress.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        gateway(json!({"ingress": ingress}))
    };
    let route = |more: Value| {
        let mut route = json!({"host": "a.example.com", "gateway": "gw"});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        gateway(json!({"httpRoute": route}))
    };
    vec![
        ("spec.servers.selector.matchLabels", none(), servers(json!({"selector": {"matchLabels": {"team": "dev"}}}))),
        ("spec.servers.include", none(), servers(json!({"include": ["one"]}))),
        ("spec.servers.namespaces", none(), servers(json!({"namespaces": ["elsewhere"]}))),
        ("spec.naming.mode", none(), json!({"naming": {"mode": "Bare"}})),
        ("spec.naming.separator", none(), json!({"naming": {"separator": "-"}})),
        ("spec.naming.maxLength", none(), json!({"naming": {"maxLength": 64}})),
        ("spec.gateway.replicas", none(), gateway(json!({"replicas": 3}))),
        ("spec.gateway.port", none(), gateway(json!({"port": 9000}))),
        ("spec.gateway.tls.secretRef.name", none(), gateway(json!({"tls": {"secretRef": {"name": "cert"}}}))),
        ("spec.gateway.tls.certManagerIssuer", none(), gateway(json!({"tls": {"certManagerIssuer": "ca"}}))),
        ("spec.gateway.ingress.host", none(), ingress(json!({}))),
        ("spec.gateway.ingress.className", ingress(json!({})), ingress(json!({"className": "nginx"}))),
        (
            "spec.gateway.ingress.tlsSecretRef.name",
            ingress(json!({})),
            ingress(json!({"tlsSecretRef": {"name": "web"}})),
        ),
        ("spec.gateway.ingress.annotations", ingress(json!({})), ingress(json!({"annotations": {"a": "b"}}))),
        ("spec.gateway.httpRoute.host", none(), route(json!({}))),
        ("spec.gateway.httpRoute.gateway", route(json!({})), route(json!({"gateway": "other"}))),
        ("spec.gateway.httpRoute.gatewayNamespace", route(json!({})), route(json!({"gatewayNamespace": "infra"}))),
        ("spec.gateway.httpRoute.annotations", route(json!({})), route(json!({"annotations": {"a": "b"}}))),
        ("spec.gateway.allowedHosts", none(), gateway(json!({"allowedHosts": ["hub.example.com"]}))),
        ("spec.gateway.allowedOrigins", none(), gateway(json!({"allowedOrigins": ["https://hub.example.com"]}))),
        ("spec.auth.mode", none(), json!({"auth": {"mode": "none"}})),
        ("spec.auth.oidc.issuer", none(), oidc("https://id.example.com", "hub", json!({}))),
        ("spec.auth.oidc.audiences", none(), oidc("https://id.example.com", "hub", json!({}))),
        (
            "spec.auth.oidc.requiredScopes",
            none(),
            oidc("https://id.example.com", "hub", json!({"requiredScopes": ["mcp"]})),
        ),
        ("spec.policy.rules[].name", none(), rule("deny", "true", "Deny")),
        ("spec.policy.rules[].when", none(), rule("deny", "true", "Deny")),
        ("spec.policy.rules[].action", none(), rule("deny", "true", "Deny")),
        ("spec.limits.messageBytes", none(), json!({"limits": {"messageBytes": 1_048_576}})),
        ("spec.limits.resultBytes", none(), json!({"limits": {"resultBytes": 1_048_576}})),
        ("spec.limits.concurrentCalls", none(), json!({"limits": {"concurrentCalls": 3}})),
        ("spec.limits.perPrincipalRps", none(), json!({"limits": {"perPrincipalRps": 3}})),
        ("spec.limits.staleFor", none(), json!({"limits": {"staleFor": "1m"}})),
        ("spec.disclosure.mode", none(), json!({"disclosure": {"mode": "search"}})),
        ("spec.openapi.enabled", none(), json!({"openapi": {"enabled": true}})),
        ("spec.audit.sink", none(), json!({"audit": {"sink": "stdout"}})),
    ]
}

#[test]
fn the_table_is_complete() {
    let definition = mcp_hub_crds::schema::definitions().remove(1);
    let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let mut wanted = fields_of_schema(&serde_json::to_value(schema).unwrap());
    let table = fields();
    let mut listed: Vec<_> = table.iter().map(|(path, ..)| *path).collect();
    wanted.sort();
    listed.sort_unstable();
    assert_eq!(listed, wanted);
}

/// What a hub of this spec brings about next to two servers: configuration, status, gateways.
async fn effect(spec: &Value) -> (String, String) {
    let s = Scenario::new();
    s.store.apply_server(command("one", &[]));
    s.store.apply_server(with(command("two", &[]), |server| {
        server.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "dev".to_owned())]));
    }));
    s.store.apply_hub(hub("default", spec.clone()));
    s.settle().await;
    let status = s.store.find_hub("default").unwrap().status.clone().unwrap();
    let replicas = status.gateway.map(|gateway| gateway.replicas);
    // What the sink makes besides is told by conditions.
    let door = status.conditions.into_iter().flatten().filter(|c| ["Resolved", "Exposed"].contains(&&*c.type_));
    let door: Vec<String> = door.map(|condition| condition.message).collect();
    (format!("{:?} {replicas:?} {door:?}", s.sink.config("default")), s.hub_status("default"))
}

#[tokio::test]
async fn each_field_alone_has_an_effect_or_is_refused_by_name() {
    for (field, without, with) in fields() {
        let resource = json!({
            "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": "default"}, "spec": with,
        });
        assert_eq!(violations(ResourceKind::MCPHub, &resource), [], "{field}");
        let ((before, _), (after, status)) = (effect(&without).await, effect(&with).await);
        match status.lines().find(|line| line.starts_with("- Accepted")) {
            Some(refusal) => {
                let named = refusal.split([' ', ',']).filter(|word| word.starts_with("spec."));
                assert!(named.into_iter().any(|path| field.starts_with(path)), "{field} is refused as {refusal}");
            }
            None => assert!(
                before != after || status.contains("http://127.0.0.1:9000/mcp"),
                "{field} is silent: {after}\n{status}"
            ),
        }
    }
}
