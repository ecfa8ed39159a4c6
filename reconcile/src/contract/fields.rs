//! Each field of `MCPServer`, set alone, changes what a runtime makes or what gateways offer, or is refused by name.

use mcp_hub_crds::resource::ResourceKind;
use mcp_hub_crds::server::MCPServer;
use mcp_hub_crds::validate::Rules;
use serde_json::{Value, json};

use super::effect::{Effect, of_server, without_each_field};
use crate::accept;
use crate::ports::Runtime;

/// What a runtime can run, for fields that need a server around them.
#[derive(Debug, Clone)]
pub struct Base {
    /// `spec.source`.
    pub source: Value,
    /// Where a volume's data lie, such as `{"hostPath": "/data"}`.
    pub volume: Value,
    /// A `spec.permissions.filesystem` other than the default.
    pub filesystem: &'static str,
}

/// A field, a spec without it (or with another value, if it cannot be left out), and the same with it.
pub type Field = (&'static str, Value, Value);

/// Fields that bring about nothing by themselves, and why that is right.
pub const INERT: &[(&str, &str)] = &[
    ("spec.volumes[].name", "tells volumes apart, and names them in messages"),
    ("spec.runAs.allowRoot", "lets user 0 through admission"),
];

/// All fields but the [`INERT`] ones.
pub fn of(base: &Base) -> Vec<Field> {
    let common = |more: Value| overlaid(json!({"source": base.source}), more);
    let none = || common(json!({}));
    let source = |source: Value| json!({"source": source});
    let volume = |more: Value| {
        let volume = overlaid(json!({"name": "data", "mountPath": "/data"}), more);
        common(json!({"volumes": [volume], "permissions": {"filesystem": "volumes"}}))
    };
    let mounted = |more: Value| volume(overlaid(base.volume.clone(), more));
    let remote = |more: Value| source(json!({"remote": overlaid(json!({"url": "https://a.example.com/mcp"}), more)}));
    let header = |header: Value| remote(json!({"headers": [header]}));
    let env = |variable: Value| common(json!({"env": [variable]}));
    let image = |more: Value| source(json!({"image": overlaid(json!({"ref": "a:1"}), more)}));
    let package = |registry: &str, name: &str, more: Value| {
        source(json!({"package": overlaid(json!({"registry": registry, "name": name, "version": "1.0.0"}), more)}))
    };
    let http = |port: u16, more: Value| {
        common(json!({"transport": overlaid(json!({"type": "streamable-http", "port": port}), more)}))
    };
    let secret = |name: &str, key: &str| json!({"name": name, "key": key});
    let oauth = |client: Value| remote(json!({"auth": {"oauth": client}}));
    let verify = |identity: &str, issuer: &str| image(json!({"verify": {"identity": identity, "issuer": issuer}}));
    let on_demand = |more: Value| common(json!({"lifecycle": overlaid(json!({"mode": "onDemand"}), more)}));
    vec![
        ("spec.source.image.ref", image(json!({})), image(json!({"ref": "b:1"}))),
        ("spec.source.image.command", image(json!({})), image(json!({"command": ["run"]}))),
        ("spec.source.image.pullSecretRef.name", image(json!({})), image(json!({"pullSecretRef": {"name": "ghcr"}}))),
        ("spec.source.image.pinDigest", image(json!({})), image(json!({"pinDigest": false}))),
        ("spec.source.image.verify.identity", verify("a", "b"), verify("c", "b")),
        ("spec.source.image.verify.issuer", verify("a", "b"), verify("a", "c")),
        ("spec.source.package.registry", package("npm", "a", json!({})), package("pypi", "a", json!({}))),
        ("spec.source.package.name", package("npm", "a", json!({})), package("npm", "b", json!({}))),
        (
            "spec.source.package.version",
            package("npm", "a", json!({})),
            package("npm", "a", json!({"version": "2.0.0"})),
        ),
        (
            "spec.source.package.executable",
            package("npm", "a", json!({})),
            package("npm", "a", json!({"executable": "b"})),
        ),
        (
            "spec.source.command.path",
            source(json!({"command": {"path": "/bin/server"}})),
            source(json!({"command": {"path": "/bin/other"}})),
        ),
        ("spec.source.remote.url", remote(json!({})), remote(json!({"url": "https://b.example.com/mcp"}))),
        (
            "spec.source.remote.headers[].name",
            header(json!({"name": "a", "value": "1"})),
            header(json!({"name": "b", "value": "1"})),
        ),
        (
            "spec.source.remote.headers[].value",
            header(json!({"name": "a", "value": "1"})),
            header(json!({"name": "a", "value": "2"})),
        ),
        (
            "spec.source.remote.headers[].secretRef.name",
            header(json!({"name": "a", "secretRef": secret("a", "k")})),
            header(json!({"name": "a", "secretRef": secret("b", "k")})),
        ),
        (
            "spec.source.remote.headers[].secretRef.key",
            header(json!({"name": "a", "secretRef": secret("a", "k")})),
            header(json!({"name": "a", "secretRef": secret("a", "l")})),
        ),
        ("spec.source.remote.auth.oauth.clientId", remote(json!({})), oauth(json!({"clientId": "id"}))),
        (
            "spec.source.remote.auth.oauth.clientSecretRef.name",
            remote(json!({})),
            oauth(json!({"clientSecretRef": secret("a", "k")})),
        ),
        (
            "spec.source.remote.auth.oauth.clientSecretRef.key",
            remote(json!({})),
            oauth(json!({"clientSecretRef": secret("a", "k")})),
        ),
        ("spec.source.remote.auth.oauth.scopes", remote(json!({})), oauth(json!({"scopes": ["read"]}))),
        ("spec.runtime", none(), common(json!({"runtime": "docker"}))),
        ("spec.transport.type", none(), http(80, json!({}))),
        ("spec.transport.port", http(80, json!({})), http(81, json!({}))),
        ("spec.transport.path", http(80, json!({})), http(80, json!({"path": "/other"}))),
        ("spec.transport.era", none(), common(json!({"transport": {"era": "legacy"}}))),
        ("spec.args", none(), common(json!({"args": ["a"]}))),
        ("spec.workingDir", none(), common(json!({"workingDir": "/srv"}))),
        ("spec.env[].name", env(json!({"name": "A", "value": "1"})), env(json!({"name": "B", "value": "1"}))),
        ("spec.env[].value", env(json!({"name": "A"})), env(json!({"name": "A", "value": "1"}))),
        (
            "spec.env[].secretRef.name",
            env(json!({"name": "A", "secretRef": secret("a", "k")})),
            env(json!({"name": "A", "secretRef": secret("b", "k")})),
        ),
        (
            "spec.env[].secretRef.key",
            env(json!({"name": "A", "secretRef": secret("a", "k")})),
            env(json!({"name": "A", "secretRef": secret("a", "l")})),
        ),
        ("spec.volumes[].mountPath", mounted(json!({})), mounted(json!({"mountPath": "/b"}))),
        ("spec.volumes[].readOnly", mounted(json!({})), mounted(json!({"readOnly": true}))),
        ("spec.volumes[].hostPath", none(), volume(json!({"hostPath": "/data"}))),
        (
            "spec.volumes[].emptyDir.sizeLimit",
            volume(json!({"emptyDir": {}})),
            volume(json!({"emptyDir": {"sizeLimit": "1Gi"}})),
        ),
        ("spec.volumes[].pvc", none(), volume(json!({"pvc": "claim"}))),
        ("spec.volumes[].configMap", none(), volume(json!({"configMap": "map"}))),
        ("spec.resources.limits.cpu", none(), common(json!({"resources": {"limits": {"cpu": "500m"}}}))),
        ("spec.resources.limits.memory", none(), common(json!({"resources": {"limits": {"memory": "256Mi"}}}))),
        ("spec.resources.requests.cpu", none(), common(json!({"resources": {"requests": {"cpu": "500m"}}}))),
        ("spec.resources.requests.memory", none(), common(json!({"resources": {"requests": {"memory": "256Mi"}}}))),
        ("spec.runAs.user", none(), common(json!({"runAs": {"user": 2000}}))),
        ("spec.runAs.group", none(), common(json!({"runAs": {"group": 2000}}))),
        ("spec.replicas", none(), common(json!({"replicas": 2}))),
        ("spec.lifecycle.mode", none(), on_demand(json!({}))),
        ("spec.lifecycle.idleTimeout", on_demand(json!({})), on_demand(json!({"idleTimeout": "1m"}))),
        ("spec.sessions.mode", none(), common(json!({"sessions": {"mode": "perClient"}}))),
        ("spec.sessions.max", none(), common(json!({"sessions": {"max": 3}}))),
        (
            "spec.roots",
            common(json!({"sessions": {"mode": "perClient"}})),
            common(json!({"sessions": {"mode": "perClient"}, "roots": "Forward"})),
        ),
        ("spec.health.period", none(), common(json!({"health": {"period": "10s"}}))),
        ("spec.health.timeout", none(), common(json!({"health": {"timeout": "1s"}}))),
        ("spec.health.failureThreshold", none(), common(json!({"health": {"failureThreshold": 9}}))),
        ("spec.health.http", none(), common(json!({"health": {"http": "/healthz"}}))),
        ("spec.health.exec", none(), common(json!({"health": {"exec": ["true"]}}))),
        ("spec.restart.policy", none(), common(json!({"restart": {"policy": "Never"}}))),
        ("spec.restart.backoff.initial", none(), common(json!({"restart": {"backoff": {"initial": "2s"}}}))),
        ("spec.restart.backoff.max", none(), common(json!({"restart": {"backoff": {"max": "1m"}}}))),
        ("spec.timeouts.call", none(), common(json!({"timeouts": {"call": "1m"}}))),
        ("spec.timeouts.start", none(), common(json!({"timeouts": {"start": "5s"}}))),
        ("spec.tools.allow", none(), common(json!({"tools": {"allow": ["get_*"]}}))),
        ("spec.tools.deny", none(), common(json!({"tools": {"deny": ["delete_*"]}}))),
        ("spec.tools.rename", none(), common(json!({"tools": {"rename": {"a": "b"}}}))),
        ("spec.tools.lock.onChange", none(), common(json!({"tools": {"lock": {"onChange": "Block"}}}))),
        ("spec.permissions.network.egress", none(), common(json!({"permissions": {"network": {"egress": ["a:1"]}}}))),
        ("spec.permissions.filesystem", none(), common(json!({"permissions": {"filesystem": base.filesystem}}))),
        ("spec.exposeTo", none(), common(json!({"exposeTo": ["elsewhere"]}))),
        ("spec.paused", none(), common(json!({"paused": true}))),
        (
            "spec.kubernetes.podTemplate",
            none(),
            common(json!({"kubernetes": {"podTemplate": {"metadata": {"annotations": {"a": "b"}}}}})),
        ),
    ]
}

/// All fields of `MCPHub`.
pub fn of_hub() -> Vec<Field> {
    let none = || json!({});
    let servers = |servers: Value| json!({"servers": servers});
    let gateway = |gateway: Value| json!({"gateway": gateway});
    let oidc = |issuer: &str, audience: &str, more: Value| {
        let oidc = overlaid(json!({"issuer": issuer, "audiences": [audience]}), more);
        json!({"auth": {"mode": "oidc", "oidc": oidc}})
    };
    let rule = |name: &str, when: &str, action: &str| json!({"policy": {"rules": [{"name": name, "when": when, "action": action}]}});
    let ingress = |more: Value| {
        let ingress = overlaid(json!({"host": "a.example.com"}), more);
        gateway(json!({"ingress": ingress}))
    };
    let route = |more: Value| {
        let route = overlaid(json!({"host": "a.example.com", "gateway": "gw"}), more);
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

/// What becomes of a field on a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    Honoured,
    /// Honoured less than asked for, or not at all because it means nothing there; the status says so.
    InPart,
    Refused,
    /// Refused everywhere, by this release.
    NotYet,
    /// The same is made with it and without.
    Silent,
}

/// What this runtime does with each field of the table.
///
/// # Errors
/// What is wrong with the table's own specs.
pub fn support(runtime: &dyn Runtime, base: &Base) -> Result<Vec<(&'static str, Support)>, String> {
    let rules = Rules::compiled();
    let told = of(base).into_iter().map(|(field, without, with)| {
        let invalid = [&without, &with].map(|spec| rules.violations(ResourceKind::MCPServer, &resource(spec)));
        if let Some(broken) = invalid.iter().find(|broken| !broken.is_empty()) {
            return Err(format!("{field}: the table's spec is invalid: {broken:?}"));
        }
        let (before, after) = (effect(runtime, &without), effect(runtime, &with));
        let server: MCPServer = serde_json::from_value(resource(&with))
            .map_err(|error| format!("{field}: the table's spec cannot be read: {error}"))?;
        let unimplemented: Vec<String> =
            accept::unimplemented_in_server(&server.spec).into_iter().map(str::to_owned).collect();
        let known = before.degraded();
        let degraded: Vec<String> = after.degraded().into_iter().filter(|path| !known.contains(path)).collect();
        let told = if names(&unimplemented, field) {
            Support::NotYet
        } else if names(&after.refused, field) || (field == "spec.roots" && names(&after.refused, "spec.sessions")) {
            Support::Refused
        } else if before.output == after.output {
            Support::Silent
        } else if names(&degraded, field) {
            Support::InPart
        } else {
            Support::Honoured
        };
        Ok((field, told))
    });
    told.collect()
}

/// Fields of the table that this runtime neither honours nor refuses by name.
pub fn silent(runtime: &dyn Runtime, base: &Base) -> Vec<String> {
    match support(runtime, base) {
        Ok(told) => {
            let silent = told.into_iter().filter(|(_, told)| *told == Support::Silent);
            silent.map(|(field, _)| format!("{field} is silent")).collect()
        }
        Err(problem) => vec![problem],
    }
}

/// How many fields were taken out of a spec that the runtime honours in full, one at a time, and those whose absence it did
/// not notice. Fields in `inert` say nothing by being there.
pub fn unnoticed(runtime: &dyn Runtime, spec: &Value, inert: &[&str]) -> (usize, Vec<String>) {
    let (rules, whole) = (Rules::compiled(), effect(runtime, spec));
    let invalid = rules.violations(ResourceKind::MCPServer, &resource(spec));
    if !invalid.is_empty() || !whole.refused.is_empty() {
        return (0, vec![format!("the whole spec is invalid ({invalid:?}) or refused ({:?})", whole.refused)]);
    }
    let (mut count, mut found) = (0, Vec::new());
    for (field, less) in without_each_field(spec) {
        // What cannot be left out cannot be taken out.
        if !rules.violations(ResourceKind::MCPServer, &resource(&less)).is_empty() || inert.contains(&field.as_str()) {
            continue;
        }
        count += 1;
        let less = effect(runtime, &less);
        if less.output == whole.output && less.refused.is_empty() {
            found.push(field);
        }
    }
    (count, found)
}

/// A server of this spec, as a manifest has it.
pub fn resource(spec: &Value) -> Value {
    json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
        "metadata": {"name": "server", "namespace": "default"}, "spec": spec,
    })
}

fn effect(runtime: &dyn Runtime, spec: &Value) -> Effect {
    match serde_json::from_value::<MCPServer>(resource(spec)) {
        Ok(mut server) => {
            server.metadata.uid = Some("uid".to_owned());
            of_server(runtime, &server)
        }
        // A spec that cannot be read has no output, which is equal to no other's.
        Err(error) => Effect { output: json!(error.to_string()), refused: Vec::new() },
    }
}

/// `base` with the members of `more`.
fn overlaid(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

/// The path without what stands in brackets.
fn plain(path: &str) -> String {
    let mut depth = 0;
    let outside = |c: &char| match c {
        '[' => {
            depth += 1;
            false
        }
        ']' => {
            depth -= 1;
            false
        }
        _ => depth == 0,
    };
    path.chars().filter(outside).collect()
}

/// Whether one of the refusals names the field: itself, something around it, or its fellow in the same section.
fn names(refused: &[String], field: &str) -> bool {
    let section = |path: &str| path.split('.').take(2).collect::<Vec<_>>().join(".");
    refused.iter().any(|path| {
        let (path, field) = (plain(path), plain(field));
        field.starts_with(&path) || (section(&path) == section(&field) && section(&path) != "spec.source")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::effect::fields_of_schema;

    #[test]
    fn the_table_is_complete() {
        let definition = mcp_hub_crds::schema::definitions().remove(0);
        let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let mut wanted = fields_of_schema(&serde_json::to_value(schema).unwrap());
        let base = Base { source: json!({}), volume: json!({}), filesystem: "readOnly" };
        let table = of(&base);
        let mut listed: Vec<_> =
            table.iter().map(|(path, ..)| *path).chain(INERT.iter().map(|(path, _)| *path)).collect();
        wanted.sort();
        listed.sort_unstable();
        assert_eq!(listed, wanted);
    }

    #[test]
    fn user_0_needs_allow_root() {
        let run_as = |run_as: Value| {
            let spec = json!({"source": {"command": {"path": "/bin/server"}}, "runAs": run_as});
            Rules::compiled().violations(ResourceKind::MCPServer, &resource(&spec))
        };
        assert_eq!(run_as(json!({"user": 0})).len(), 1);
        assert!(run_as(json!({"user": 0, "allowRoot": true})).is_empty());
    }
}
