//! No field of `MCPServer` is silent on this machine: each one, set alone, changes what is run or offered, or is refused
//! by name. The table is complete, because it is compared with the schema.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use mcp_hub_crds::MCPServer;
use mcp_hub_crds::resource::ResourceKind;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::validate::violations;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_local_runtime::host::Host;
use mcp_hub_local_runtime::process::{ProcessConfig, ProcessRuntime, SecretSource};
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_reconcile::contract::effect::{Effect, fields_of_schema, of_server, without_each_field};
use serde_json::{Value, json};

#[derive(Debug)]
struct NoSecrets;

#[async_trait]
impl SecretSource for NoSecrets {
    async fn value(&self, _: &str, _: &SecretKeyRef) -> Result<Option<SecretString>, String> {
        Ok(None)
    }
}

/// This machine's runtimes, over a folder that nothing is written to.
fn runtime(folder: &tempfile::TempDir) -> RuntimeSet {
    let config = ProcessConfig {
        run_dir: folder.path().join("run"),
        cache_dir: folder.path().join("cache"),
        bridge: PathBuf::from("/nowhere/bridge"),
        installation: "fields".to_owned(),
        host: Host {
            env: BTreeMap::new(),
            home: PathBuf::from("/home/user"),
            uid: 1000,
            gid: 1000,
            // Whether this kernel has it is not the question here.
            landlock: true,
            // Nor what it can limit: the fields are honoured with and without, in different ways.
            cgroup: None,
        },
    };
    RuntimeSet::new(ProcessRuntime::new(config, Arc::new(NoSecrets)).unwrap())
}

fn resource(spec: &Value) -> Value {
    json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
        "metadata": {"name": "server", "namespace": "default"}, "spec": spec,
    })
}

fn effect(runtime: &RuntimeSet, spec: &Value) -> Effect {
    let mut server: MCPServer = serde_json::from_value(resource(spec)).unwrap();
    server.metadata.uid = Some("uid".to_owned());
    of_server(runtime, &server)
}

/// `spec` of a server that is a command, and more.
fn command(more: Value) -> Value {
    let mut spec = json!({"source": {"command": {"path": "/bin/server"}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

fn source(source: Value) -> Value {
    json!({"source": source})
}

fn volume(more: Value) -> Value {
    let mut volume = json!({"name": "data", "mountPath": "/data"});
    volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    command(json!({"volumes": [volume], "permissions": {"filesystem": "volumes"}}))
}

fn remote(more: Value) -> Value {
    let mut remote = json!({"url": "https://a.example.com/mcp"});
    remote.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    source(json!({"remote": remote}))
}

fn header(header: Value) -> Value {
    remote(json!({"headers": [header]}))
}

fn env(variable: Value) -> Value {
    command(json!({"env": [variable]}))
}

/// A field, a spec without it (or with another value, if it cannot be left out), and the same with it.
fn fields() -> Vec<(&'static str, Value, Value)> {
    let none = || command(json!({}));
    let image = |more: Value| {
        let mut image = json!({"ref": "a:1"});
        image.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        source(json!({"image": image}))
    };
    let package = |registry: &str, name: &str, more: Value| {
        let mut package = json!({"registry": registry, "name": name});
        package.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        source(json!({"package": package}))
    };
    let http = |port: u16, more: Value| {
        let mut transport = json!({"type": "streamable-http", "port": port});
        transport.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        command(json!({"transport": transport}))
    };
    let secret = |name: &str, key: &str| json!({"name": name, "key": key});
    let oauth = |client: Value| remote(json!({"auth": {"oauth": client}}));
    let verify = |identity: &str, issuer: &str| image(json!({"verify": {"identity": identity, "issuer": issuer}}));
    let on_demand = |more: Value| {
        let mut lifecycle = json!({"mode": "onDemand"});
        lifecycle.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        command(json!({"lifecycle": lifecycle}))
    };
    vec![
        ("spec.source.image.ref", none(), image(json!({}))),
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
            package("npm", "a", json!({"version": "1.0.0"})),
        ),
        (
            "spec.source.package.executable",
            package("npm", "a", json!({})),
            package("npm", "a", json!({"executable": "b"})),
        ),
        ("spec.source.command.path", none(), source(json!({"command": {"path": "/bin/other"}}))),
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
        ("spec.runtime", none(), command(json!({"runtime": "docker"}))),
        ("spec.transport.type", none(), http(80, json!({}))),
        ("spec.transport.port", http(80, json!({})), http(81, json!({}))),
        ("spec.transport.path", http(80, json!({})), http(80, json!({"path": "/other"}))),
        ("spec.transport.era", none(), command(json!({"transport": {"era": "legacy"}}))),
        ("spec.args", none(), command(json!({"args": ["a"]}))),
        ("spec.workingDir", none(), command(json!({"workingDir": "/srv"}))),
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
        (
            "spec.volumes[].mountPath",
            volume(json!({"hostPath": "/data"})),
            volume(json!({"hostPath": "/data", "mountPath": "/b"})),
        ),
        (
            "spec.volumes[].readOnly",
            volume(json!({"hostPath": "/data"})),
            volume(json!({"hostPath": "/data", "readOnly": true})),
        ),
        ("spec.volumes[].hostPath", none(), volume(json!({"hostPath": "/data"}))),
        (
            "spec.volumes[].emptyDir.sizeLimit",
            volume(json!({"emptyDir": {}})),
            volume(json!({"emptyDir": {"sizeLimit": "1Gi"}})),
        ),
        ("spec.volumes[].pvc", none(), volume(json!({"pvc": "claim"}))),
        ("spec.volumes[].configMap", none(), volume(json!({"configMap": "map"}))),
        ("spec.resources.limits.cpu", none(), command(json!({"resources": {"limits": {"cpu": "500m"}}}))),
        ("spec.resources.limits.memory", none(), command(json!({"resources": {"limits": {"memory": "256Mi"}}}))),
        ("spec.resources.requests.cpu", none(), command(json!({"resources": {"requests": {"cpu": "500m"}}}))),
        ("spec.resources.requests.memory", none(), command(json!({"resources": {"requests": {"memory": "256Mi"}}}))),
        ("spec.runAs.user", none(), command(json!({"runAs": {"user": 2000}}))),
        ("spec.runAs.group", none(), command(json!({"runAs": {"group": 2000}}))),
        ("spec.replicas", none(), command(json!({"replicas": 2}))),
        ("spec.lifecycle.mode", none(), on_demand(json!({}))),
        ("spec.lifecycle.idleTimeout", on_demand(json!({})), on_demand(json!({"idleTimeout": "1m"}))),
        ("spec.sessions.mode", none(), command(json!({"sessions": {"mode": "perClient"}}))),
        ("spec.sessions.max", none(), command(json!({"sessions": {"max": 3}}))),
        (
            "spec.roots",
            command(json!({"sessions": {"mode": "perClient"}})),
            command(json!({"sessions": {"mode": "perClient"}, "roots": "Forward"})),
        ),
        ("spec.health.period", none(), command(json!({"health": {"period": "10s"}}))),
        ("spec.health.timeout", none(), command(json!({"health": {"timeout": "1s"}}))),
        ("spec.health.failureThreshold", none(), command(json!({"health": {"failureThreshold": 9}}))),
        ("spec.health.http", none(), command(json!({"health": {"http": "/healthz"}}))),
        ("spec.health.exec", none(), command(json!({"health": {"exec": ["true"]}}))),
        ("spec.restart.policy", none(), command(json!({"restart": {"policy": "Never"}}))),
        ("spec.restart.backoff.initial", none(), command(json!({"restart": {"backoff": {"initial": "2s"}}}))),
        ("spec.restart.backoff.max", none(), command(json!({"restart": {"backoff": {"max": "1m"}}}))),
        ("spec.timeouts.call", none(), command(json!({"timeouts": {"call": "1m"}}))),
        ("spec.timeouts.start", none(), command(json!({"timeouts": {"start": "5s"}}))),
        ("spec.tools.allow", none(), command(json!({"tools": {"allow": ["get_*"]}}))),
        ("spec.tools.deny", none(), command(json!({"tools": {"deny": ["delete_*"]}}))),
        ("spec.tools.rename", none(), command(json!({"tools": {"rename": {"a": "b"}}}))),
        ("spec.tools.lock.onChange", none(), command(json!({"tools": {"lock": {"onChange": "Block"}}}))),
        ("spec.permissions.network.egress", none(), command(json!({"permissions": {"network": {"egress": ["a:1"]}}}))),
        ("spec.permissions.filesystem", none(), command(json!({"permissions": {"filesystem": "readOnly"}}))),
        ("spec.exposeTo", none(), command(json!({"exposeTo": ["elsewhere"]}))),
        ("spec.paused", none(), command(json!({"paused": true}))),
        ("spec.kubernetes.podTemplate", none(), command(json!({"kubernetes": {"podTemplate": {"spec": {}}}}))),
    ]
}

/// Fields that bring about nothing by themselves, and why that is right.
const INERT: &[(&str, &str)] = &[
    ("spec.volumes[].name", "tells volumes apart, and names them in messages"),
    ("spec.runAs.allowRoot", "lets user 0 through admission"),
];

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

#[test]
fn the_table_is_complete() {
    let definition = mcp_hub_crds::schema::definitions().remove(0);
    let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let mut wanted = fields_of_schema(&serde_json::to_value(schema).unwrap());
    let table = fields();
    let mut listed: Vec<_> = table.iter().map(|(path, ..)| *path).chain(INERT.iter().map(|(path, _)| *path)).collect();
    wanted.sort();
    listed.sort_unstable();
    assert_eq!(listed, wanted);
}

#[tokio::test]
async fn each_field_alone_has_an_effect_or_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime(&folder);
    for (field, without, with) in fields() {
        for spec in [&without, &with] {
            let broken = violations(ResourceKind::MCPServer, &resource(spec));
            assert!(broken.is_empty(), "{field}: {broken:?}");
        }
        let (before, after) = (effect(&runtime, &without), effect(&runtime, &with));
        let refused = names(&after.refused, field) || (field == "spec.roots" && names(&after.refused, "spec.sessions"));
        assert!(before.output != after.output || refused, "{field} is silent: {after:#?}");
    }
}

#[tokio::test]
async fn each_field_taken_out_of_a_full_spec_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime(&folder);
    let full = [
        command(json!({
            "transport": {"era": "legacy"},
            "args": ["a", "b"],
            "workingDir": "/srv",
            "env": [
                {"name": "PLAIN", "value": "1"},
                {"name": "SECRET", "secretRef": {"name": "s", "key": "k"}},
            ],
            "volumes": [
                {"name": "data", "hostPath": "/data", "mountPath": "/data"},
                {"name": "docs", "hostPath": "/docs", "mountPath": "/docs", "readOnly": true},
            ],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}},
            "lifecycle": {"mode": "onDemand", "idleTimeout": "1m"},
            "sessions": {"max": 3},
            "health": {"period": "10s", "timeout": "1s", "failureThreshold": 9},
            "restart": {"policy": "OnFailure", "backoff": {"initial": "2s", "max": "1m"}},
            "timeouts": {"call": "1m", "start": "5s"},
            "tools": {"allow": ["get_*"], "deny": ["delete_*"], "rename": {"a": "b"}},
            "permissions": {"filesystem": "volumes"},
            "exposeTo": ["elsewhere"],
            "kubernetes": {"podTemplate": {"spec": {}}},
        })),
        json!({
            "source": {"remote": {
                "url": "https://a.example.com/mcp",
                "headers": [
                    {"name": "x-plain", "value": "1"},
                    {"name": "x-secret", "secretRef": {"name": "s", "key": "k"}},
                ],
            }},
            "sessions": {"mode": "perClient"},
            "timeouts": {"call": "1m"},
            "tools": {"allow": ["get_*"], "deny": ["delete_*"], "rename": {"a": "b"}},
            "exposeTo": ["elsewhere"],
        }),
        json!({
            "source": {"package": {"registry": "npm", "name": "a", "version": "1.0.0", "executable": "b"}},
            "paused": false,
        }),
    ];
    // A section's presence alone says nothing where its fields say all; and `paused: false` is what is meant without it.
    let inert = [
        "spec.resources.requests.cpu",
        "spec.resources.requests.memory",
        "spec.paused",
        "spec.kubernetes.podTemplate.spec",
    ];
    let mut count = 0;
    for spec in full {
        assert_eq!(violations(ResourceKind::MCPServer, &resource(&spec)), []);
        let whole = effect(&runtime, &spec);
        assert_eq!(whole.refused, Vec::<String>::new());
        for (field, less) in without_each_field(&spec) {
            // What cannot be left out cannot be taken out.
            if !violations(ResourceKind::MCPServer, &resource(&less)).is_empty() || inert.contains(&field.as_str()) {
                continue;
            }
            let less = effect(&runtime, &less);
            assert!(less.output != whole.output || !less.refused.is_empty(), "{field} taken out is not noticed");
            count += 1;
        }
    }
    assert!(count > 50, "{count} fields were taken out");
}

#[test]
fn user_0_needs_allow_root() {
    let run_as = |run_as: Value| violations(ResourceKind::MCPServer, &resource(&command(json!({"runAs": run_as}))));
    assert_eq!(run_as(json!({"user": 0})).len(), 1);
    assert!(run_as(json!({"user": 0, "allowRoot": true})).is_empty());
}
