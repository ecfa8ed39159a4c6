//! The fake against the real thing: random commands, run on both, with equal answers, equal objects and equal watches.
//!
//! `MCP_HUB_TEST_KUBECONFIG=... cargo test -p mcp-hub-fakeapi --test same_as_real -- --ignored`;
//! `MCP_HUB_TEST_CASES` says how many cases (a second each). The cluster needs nothing
//! but an API server; each case makes a namespace of its own there.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use mcp_hub_fakeapi::FakeApi;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};

/// One of the kinds under test: where it is, and which objects of it there may be.
struct Kind {
    name: &'static str,
    api: &'static str,
    plural: &'static str,
    /// The object that these bits describe, metadata apart.
    body: fn(u16) -> Value,
    /// Its status.
    report: fn(u16) -> Value,
}

fn bit(bits: u16, index: u16) -> bool {
    bits >> index & 1 == 1
}

/// Lays `more` over `object` if the bit is set.
fn add(object: &mut Value, bits: u16, index: u16, more: Value) {
    if bit(bits, index) {
        merge(object, more);
    }
}

fn merge(object: &mut Value, more: Value) {
    match (object, more) {
        (Value::Object(left), Value::Object(right)) => {
            for (name, value) in right {
                merge(left.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(left), Value::Array(right)) => left.extend(right),
        (left, right) => *left = right,
    }
}

fn no_report(_: u16) -> Value {
    json!({})
}

fn conditions(bits: u16) -> Value {
    let condition = |name: &str, truth: bool| {
        json!({"type": name, "status": if truth { "True" } else { "False" }, "reason": "Told", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let mut status = json!({"conditions": []});
    add(&mut status, bits, 0, json!({"conditions": [condition("Ready", bit(bits, 3))]}));
    add(&mut status, bits, 1, json!({"conditions": [condition("Available", true)]}));
    add(&mut status, bits, 2, json!({"observedGeneration": 1}));
    status
}

fn config_map(bits: u16) -> Value {
    let mut map = json!({});
    add(&mut map, bits, 0, json!({"data": {"a": "1"}}));
    add(&mut map, bits, 1, json!({"data": {"b": "1"}}));
    add(&mut map, bits, 2, json!({"data": {"a": "2"}}));
    add(&mut map, bits, 3, json!({"data": {}}));
    add(&mut map, bits, 4, json!({"binaryData": {"c": "AAEC"}}));
    add(&mut map, bits & bits >> 1, 5, json!({"data": {"no/key": "1"}}));
    add(&mut map, bits & bits >> 1, 6, json!({"unknown": true}));
    map
}

fn secret(bits: u16) -> Value {
    let mut secret = json!({});
    add(&mut secret, bits, 0, json!({"stringData": {"a": "text"}}));
    add(&mut secret, bits, 1, json!({"data": {"b": "dGV4dA=="}}));
    add(&mut secret, bits & bits >> 1, 2, json!({"type": "mcphub.io/test"}));
    add(&mut secret, bits & bits >> 1, 4, json!({"immutable": true}));
    secret
}

fn service(bits: u16) -> Value {
    let mut service = json!({"spec": {"ports": [{"name": "http", "port": 80}]}});
    add(&mut service, bits, 0, json!({"spec": {"selector": {"a": "b"}}}));
    add(&mut service, bits, 1, json!({"spec": {"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}));
    add(&mut service, bits, 2, json!({"spec": {"publishNotReadyAddresses": true}}));
    add(&mut service, bits & bits >> 1, 3, json!({"spec": {"clusterIP": "None"}}));
    add(&mut service, bits, 5, json!({"spec": {"selector": {"c": "d"}}}));
    add(&mut service, bits & bits >> 1, 6, json!({"spec": {"sessionAffinity": "ClientIP"}}));
    service
}

fn service_account(bits: u16) -> Value {
    let mut account = json!({});
    add(&mut account, bits, 0, json!({"automountServiceAccountToken": false}));
    add(&mut account, bits, 1, json!({"imagePullSecrets": [{"name": "x"}]}));
    add(&mut account, bits, 2, json!({"imagePullSecrets": [{"name": "y"}]}));
    account
}

fn deployment(bits: u16) -> Value {
    let mut deployment = json!({"spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "main", "image": "x:1"}]}},
    }});
    let main = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    add(main, bits, 0, json!({"env": [{"name": "A", "value": "1"}]}));
    add(main, bits, 1, json!({"env": [{"name": "B", "value": ""}]}));
    add(main, bits, 2, json!({"env": [{"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}));
    add(main, bits, 3, json!({"ports": [{"name": "http", "containerPort": 80}]}));
    add(main, bits, 4, json!({"resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}}));
    add(main, bits, 5, json!({"securityContext": {"runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}}}));
    add(main, bits, 6, json!({"readinessProbe": {"httpGet": {"path": "/readyz", "port": 80}}}));
    add(main, bits, 7, json!({"args": ["a"], "stdin": false}));
    let volumes = json!({"spec": {"template": {"spec": {"volumes": [{"name": "tmp", "emptyDir": {}},
        {"name": "secret", "secret": {"secretName": "x"}}]}}}});
    add(&mut deployment, bits, 8, volumes);
    add(&mut deployment, bits & bits >> 1, 9, json!({"spec": {"replicas": 0}}));
    add(
        &mut deployment,
        bits,
        10,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "sidecar", "image": "y"}]}}}}),
    );
    add(&mut deployment, bits & bits >> 1, 11, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    add(
        &mut deployment,
        bits,
        12,
        json!({"spec": {"template": {"spec": {"serviceAccountName": "x", "automountServiceAccountToken": false,
        "hostNetwork": false, "terminationGracePeriodSeconds": 60}}}}),
    );
    add(
        &mut deployment,
        bits,
        13,
        json!({"spec": {"template": {"metadata": {"annotations": {"c": "d"}},
        "spec": {"securityContext": {"fsGroup": 1000}, "nodeSelector": {"disk": "fast"}}}}}),
    );
    let spread = json!({"spec": {"template": {"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"a": "b"}}}]}}}});
    add(&mut deployment, bits, 14, spread);
    // What is refused, rarely.
    if bits & 0xf0f == 0xf0f {
        deployment["spec"]["template"]["metadata"]["labels"] = json!({"a": "c"});
    }
    if bits & 0xf0f0 == 0xf0f0 {
        deployment["spec"]["selector"] = json!({"matchLabels": {"a": "b", "template": "x"}});
        deployment["spec"]["template"]["metadata"]["labels"] = json!({"a": "b", "template": "x"});
    }
    deployment
}

fn deployment_report(bits: u16) -> Value {
    let mut status = conditions(bits);
    add(&mut status, bits, 4, json!({"replicas": 2, "readyReplicas": 1}));
    add(&mut status, bits, 5, json!({"replicas": 0, "unavailableReplicas": 0}));
    status
}

fn network_policy(bits: u16) -> Value {
    let mut policy = json!({"spec": {"podSelector": {}}});
    add(&mut policy, bits, 0, json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}));
    add(&mut policy, bits, 1, json!({"spec": {"ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}}));
    add(&mut policy, bits, 2, json!({"spec": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}}));
    add(&mut policy, bits, 3, json!({"spec": {"egress": [{}]}}));
    add(&mut policy, bits, 4, json!({"spec": {"policyTypes": ["Egress"]}}));
    add(&mut policy, bits, 5, json!({"spec": {"ingress": []}}));
    policy
}

fn disruption_budget(bits: u16) -> Value {
    let mut budget = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
    add(&mut budget, bits, 0, json!({"spec": {"minAvailable": 1}}));
    add(&mut budget, bits & bits >> 1, 1, json!({"spec": {"maxUnavailable": "50%"}}));
    add(&mut budget, bits, 3, json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}));
    budget
}

fn lease(bits: u16) -> Value {
    let mut lease = json!({"spec": {"holderIdentity": "a"}});
    add(&mut lease, bits, 0, json!({"spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}}));
    add(&mut lease, bits, 1, json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z", "leaseTransitions": 0}}));
    add(&mut lease, bits, 2, json!({"spec": {"holderIdentity": ""}}));
    lease
}

fn ingress(bits: u16) -> Value {
    let backend = |port: i32| json!({"service": {"name": "x", "port": {"number": port}}});
    let mut ingress = json!({"spec": {"rules": [{"host": "a.example.com", "http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": backend(80)}]}}]}});
    add(&mut ingress, bits, 0, json!({"spec": {"ingressClassName": "nginx"}}));
    add(&mut ingress, bits, 1, json!({"spec": {"tls": [{"hosts": ["a.example.com"], "secretName": "x"}]}}));
    add(&mut ingress, bits, 2, json!({"spec": {"defaultBackend": backend(81)}}));
    if bits & 0x38 == 0x38 {
        ingress["spec"] = json!({"ingressClassName": "nginx"});
    }
    ingress
}

fn http_route(bits: u16) -> Value {
    let mut route = json!({"spec": {"parentRefs": [{"name": "gateway"}]}});
    add(&mut route, bits, 0, json!({"spec": {"hostnames": ["a.example.com"]}}));
    add(&mut route, bits, 1, json!({"spec": {"rules": [{"backendRefs": [{"name": "x", "port": 80}]}]}}));
    add(&mut route, bits, 2, json!({"spec": {"rules": [{"matches": [{"path": {"value": "/mcp"}}]}]}}));
    add(&mut route, bits, 3, json!({"spec": {"parentRefs": [{"name": "other", "sectionName": "https"}]}}));
    route
}

fn mcp_server(bits: u16) -> Value {
    let mut server = json!({"spec": {"source": {"image": {"ref": "x:1"}}}});
    add(&mut server, bits, 0, json!({"spec": {"args": ["a"]}}));
    add(&mut server, bits, 1, json!({"spec": {"env": [{"name": "A", "value": "1"}]}}));
    add(&mut server, bits, 2, json!({"spec": {"env": [{"name": "B", "secretRef": {"name": "s", "key": "k"}}]}}));
    add(&mut server, bits, 3, json!({"spec": {"paused": false}}));
    add(&mut server, bits, 4, json!({"spec": {"args": []}}));
    add(&mut server, bits & bits >> 1, 5, json!({"spec": {"replicas": 1000}}));
    add(&mut server, bits & bits >> 1, 7, json!({"spec": {"roots": "Forward"}}));
    add(&mut server, bits & bits >> 1, 9, json!({"spec": {"source": {"command": {"path": "x"}}}}));
    add(&mut server, bits & bits >> 1, 11, json!({"spec": {"typo": 1}}));
    add(&mut server, bits, 13, json!({"spec": {"kubernetes": {"podTemplate": {"spec": {"x": [1], "y": null}}}}}));
    add(&mut server, bits, 14, json!({"spec": {"lifecycle": {"mode": "onDemand", "idleTimeout": "10m"}}}));
    add(&mut server, bits & bits >> 1, 15, json!({"spec": {"paused": "no"}}));
    server
}

fn mcp_server_report(bits: u16) -> Value {
    let mut status = conditions(bits);
    add(&mut status, bits, 4, json!({"phase": "Ready", "replicas": 0}));
    add(&mut status, bits, 5, json!({"tools": {"count": 3, "digest": "x"}}));
    add(&mut status, bits & bits >> 1, 6, json!({"phase": "Great"}));
    status
}

fn mcp_hub(bits: u16) -> Value {
    let mut hub = json!({"spec": {"servers": {"selector": {"matchLabels": {"a": "b"}}}}});
    add(&mut hub, bits, 0, json!({"spec": {"servers": {"include": ["x"]}}}));
    add(&mut hub, bits, 1, json!({"spec": {"servers": {"selector": {"matchLabels": {"c": "d"}}}}}));
    add(&mut hub, bits, 2, json!({"spec": {"gateway": {"port": 8080}}}));
    add(&mut hub, bits & bits >> 1, 3, json!({"spec": {"auth": {"mode": "oidc"}}}));
    hub
}

const KINDS: [Kind; 12] = [
    Kind { name: "ConfigMap", api: "v1", plural: "configmaps", body: config_map, report: no_report },
    Kind { name: "Secret", api: "v1", plural: "secrets", body: secret, report: no_report },
    Kind { name: "Service", api: "v1", plural: "services", body: service, report: no_report },
    Kind { name: "ServiceAccount", api: "v1", plural: "serviceaccounts", body: service_account, report: no_report },
    Kind { name: "Deployment", api: "apps/v1", plural: "deployments", body: deployment, report: deployment_report },
    Kind {
        name: "NetworkPolicy",
        api: "networking.k8s.io/v1",
        plural: "networkpolicies",

        body: network_policy,
        report: no_report,
    },
    Kind {
        name: "PodDisruptionBudget",
        api: "policy/v1",
        plural: "poddisruptionbudgets",

        body: disruption_budget,
        report: no_report,
    },
    Kind { name: "Lease", api: "coordination.k8s.io/v1", plural: "leases", body: lease, report: no_report },
    Kind { name: "Ingress", api: "networking.k8s.io/v1", plural: "ingresses", body: ingress, report: no_report },
    Kind {
        name: "HTTPRoute",
        api: "gateway.networking.k8s.io/v1",
        plural: "httproutes",

        body: http_route,
        report: no_report,
    },
    Kind {
        name: "MCPServer",
        api: "mcphub.io/v1alpha1",
        plural: "mcpservers",

        body: mcp_server,
        report: mcp_server_report,
    },
    Kind { name: "MCPHub", api: "mcphub.io/v1alpha1", plural: "mcphubs", body: mcp_hub, report: conditions },
];

impl Kind {
    fn path(&self, namespace: &str) -> String {
        let root = if self.api == "v1" { "/api/v1".to_owned() } else { format!("/apis/{}", self.api) };
        format!("{root}/namespaces/{namespace}/{}", self.plural)
    }

    fn object(&self, name: &str, bits: u16, meta: u16) -> Value {
        let mut object = (self.body)(bits);
        merge(&mut object, json!({"apiVersion": self.api, "kind": self.name, "metadata": {"name": name}}));
        let metadata = &mut object["metadata"];
        add(metadata, meta, 0, json!({"labels": {"tier": if bit(meta, 1) { "x" } else { "y" }}}));
        add(metadata, meta, 2, json!({"annotations": {"note": "1"}}));
        add(metadata, meta, 3, json!({"labels": {"app": "web"}}));
        add(metadata, meta & meta >> 1, 4, json!({"labels": {"bad label": "x"}}));
        add(
            metadata,
            meta,
            6,
            json!({"ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "11111111-1111-4111-8111-111111111111", "controller": true}]}),
        );
        add(metadata, meta & meta >> 1, 7, json!({"finalizers": ["mcphub.io/test"]}));
        object
    }
}

const NAMES: [&str; 2] = ["a", "b"];
const MANAGERS: [&str; 2] = ["one", "two"];

#[derive(Debug, Clone)]
enum Command {
    Create {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
    },
    Apply {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
        manager: usize,
        force: bool,
    },
    ApplyStatus {
        kind: usize,
        name: usize,
        bits: u16,
        manager: usize,
        force: bool,
    },
    /// A full update, with the version that it is based on: the newest, none, or the first one.
    Update {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
        based_on: u8,
    },
    UpdateStatus {
        kind: usize,
        name: usize,
        bits: u16,
    },
    Patch {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
    },
    Finalizers {
        kind: usize,
        name: usize,
        set: bool,
    },
    Delete {
        kind: usize,
        name: usize,
        policy: u8,
    },
    DeleteAll {
        kind: usize,
        tier: bool,
    },
    List {
        kind: usize,
        query: u8,
    },
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    // A case is about few kinds, so that the commands meet.
    (0..KINDS.len(), 0..KINDS.len()).prop_flat_map(|(first, second)| {
        let kind = prop_oneof![3 => Just(first), 1 => Just(second)];
        let name = 0..NAMES.len();
        let bits = prop_oneof![3 => any::<u16>().prop_map(|bits| bits & 0x7fff), 1 => any::<u16>()];
        // Two bits in a row are rare things.
        let meta = any::<u16>().prop_map(|bits| bits & 0b0_0100_1111 | if bits > 0xf000 { bits & 0x1f0 } else { 0 });
        let at = (kind, name);
        let body = (bits, meta);
        let command = prop_oneof![
            2 => (at.clone(), body.clone()).prop_map(|((kind, name), (bits, meta))| Command::Create { kind, name, bits, meta }),
            8 => (at.clone(), body.clone(), 0..2_usize, any::<bool>()).prop_map(
                |((kind, name), (bits, meta), manager, force)| Command::Apply { kind, name, bits, meta, manager, force }),
            3 => (at.clone(), any::<u16>(), 0..2_usize, any::<bool>()).prop_map(
                |((kind, name), bits, manager, force)| Command::ApplyStatus { kind, name, bits, manager, force }),
            3 => (at.clone(), body.clone(), 0..3_u8).prop_map(
                |((kind, name), (bits, meta), based_on)| Command::Update { kind, name, bits, meta, based_on }),
            2 => (at.clone(), any::<u16>()).prop_map(|((kind, name), bits)| Command::UpdateStatus { kind, name, bits }),
            2 => (at.clone(), body).prop_map(|((kind, name), (bits, meta))| Command::Patch { kind, name, bits, meta }),
            2 => (at.clone(), any::<bool>()).prop_map(|((kind, name), set)| Command::Finalizers { kind, name, set }),
            2 => (at.clone(), 0..4_u8).prop_map(|((kind, name), policy)| Command::Delete { kind, name, policy }),
            1 => (at.clone(), any::<bool>()).prop_map(|((kind, _), tier)| Command::DeleteAll { kind, tier }),
            2 => (at, 0..5_u8).prop_map(|((kind, _), query)| Command::List { kind, query }),
        ];
        prop::collection::vec(command, 4..24)
    })
}

/// One of the two servers, with what is known of its objects.
struct Side {
    client: Client,
    namespace: String,
    /// The first and the newest version of each object.
    versions: BTreeMap<(usize, usize), (String, String)>,
}

/// What a server said: the object or the refusal, without what differs from server to server.
type Said = Result<Value, Value>;

impl Side {
    async fn new(client: Client, namespace: &str) -> (Self, String) {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let side = Self { client, namespace: namespace.to_owned(), versions: BTreeMap::new() };
        let made = side.send("POST", "/api/v1/namespaces", "application/json", &body).await.unwrap();
        let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        (side, version)
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: &Value) -> Result<Value, Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("user-agent", "person/1")
            .body(body)
            .unwrap();
        match self.client.request::<Value>(request).await {
            Ok(value) => Ok(value),
            Err(Error::Api(status)) => {
                let mut fields: Vec<String> = status
                    .details
                    .iter()
                    .flat_map(|details| &details.causes)
                    .map(|cause| format!("{} {}", cause.reason, cause.field))
                    .collect();
                fields.sort();
                fields.dedup();
                Err(json!({"code": status.code, "reason": status.reason, "causes": fields, "message": status.message}))
            }
            Err(other) => panic!("{method} {path}: {other}"),
        }
    }

    async fn run(&mut self, command: &Command) -> Said {
        let (kind, name) = command.place();
        let of = &KINDS[kind];
        let all = of.path(&self.namespace);
        let one = format!("{all}/{}", NAMES[name]);
        let version = self.versions.get(&(kind, name)).cloned();
        let apply = |path: &str, manager: usize, force: bool| {
            format!("{path}?fieldManager={}&force={force}", MANAGERS[manager])
        };
        const JSON: &str = "application/json";
        const MERGE: &str = "application/merge-patch+json";
        const APPLY: &str = "application/apply-patch+yaml";
        let status = |bits: u16| json!({"apiVersion": of.api, "kind": of.name, "metadata": {"name": NAMES[name]}, "status": (of.report)(bits)});
        let said = match command {
            Command::Create { bits, meta, .. } => {
                self.send("POST", &all, JSON, &of.object(NAMES[name], *bits, *meta)).await
            }
            Command::Apply { bits, meta, manager, force, .. } => {
                self.send("PATCH", &apply(&one, *manager, *force), APPLY, &of.object(NAMES[name], *bits, *meta)).await
            }
            Command::ApplyStatus { bits, manager, force, .. } => {
                self.send("PATCH", &apply(&format!("{one}/status"), *manager, *force), APPLY, &status(*bits)).await
            }
            Command::Update { bits, meta, based_on, .. } => {
                let mut object = of.object(NAMES[name], *bits, *meta);
                if let (Some((first, newest)), 0 | 2) = (&version, based_on) {
                    object["metadata"]["resourceVersion"] = json!(if *based_on == 0 { newest } else { first });
                }
                self.send("PUT", &one, JSON, &object).await
            }
            Command::UpdateStatus { bits, .. } => match self.send("GET", &one, JSON, &Value::Null).await {
                Ok(mut object) => {
                    object["status"] = (of.report)(*bits);
                    object["spec"] = json!({});
                    if !of.name.starts_with("MCP") {
                        object["spec"] = (of.body)(0)["spec"].clone();
                    }
                    self.send("PUT", &format!("{one}/status"), JSON, &object).await
                }
                refused => refused,
            },
            Command::Patch { bits, meta, .. } => {
                self.send("PATCH", &one, MERGE, &of.object(NAMES[name], *bits, *meta)).await
            }
            Command::Finalizers { set, .. } => {
                let list = if *set { json!(["mcphub.io/test"]) } else { Value::Null };
                self.send("PATCH", &one, MERGE, &json!({"metadata": {"finalizers": list}})).await
            }
            Command::Delete { policy, .. } => {
                let body = match policy {
                    0 => json!({}),
                    1 => json!({"propagationPolicy": "Background"}),
                    2 => json!({"propagationPolicy": "Foreground"}),
                    _ => json!({"preconditions": {"resourceVersion": version.as_ref().map(|(first, _)| first)}}),
                };
                self.send("DELETE", &one, JSON, &body).await
            }
            Command::DeleteAll { tier, .. } => {
                let query = if *tier { "?labelSelector=tier%3Dx" } else { "?fieldSelector=metadata.name%3Da" };
                self.send("DELETE", &format!("{all}{query}"), JSON, &json!({})).await
            }
            Command::List { query, .. } => {
                let query = match query {
                    0 => "",
                    1 => "?limit=1",
                    2 => "?labelSelector=tier+in+(x),app",
                    3 => "?labelSelector=!tier&limit=1",
                    _ => "?fieldSelector=metadata.name!%3Da",
                };
                self.send("GET", &format!("{all}{query}"), JSON, &Value::Null).await
            }
        };
        self.seen(kind, name, said)
    }

    /// Remembers versions, and says of them only whether they moved.
    fn seen(&mut self, kind: usize, name: usize, said: Result<Value, Value>) -> Said {
        let mut value = said.map_err(|mut refusal| {
            refusal["message"] = json!("");
            refusal
        })?;
        if value["metadata"]["name"] == NAMES[name] {
            let new = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            let known = self.versions.entry((kind, name)).or_insert_with(|| (new.clone(), String::new()));
            let moved = known.1 != new;
            known.1 = new;
            value["metadata"]["moved"] = json!(moved);
        }
        normalise(&mut value);
        Ok(value)
    }

    /// All events of a kind since a version, as far as they have come.
    async fn events(&self, kind: &Kind, query: &str, since: &str) -> Vec<Value> {
        let path = format!("{}?watch=true&timeoutSeconds=1&resourceVersion={since}{query}", kind.path(&self.namespace));
        let request = Request::get(path).body(kube::client::Body::empty()).unwrap();
        let answer = self.client.send(request).await.unwrap();
        let body = tokio::time::timeout(Duration::from_secs(10), answer.into_body().collect()).await;
        let text = body.expect("the watch to end").unwrap().to_bytes();
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let mut event: Value = serde_json::from_slice(line).unwrap();
                normalise(&mut event["object"]);
                event
            })
            .collect()
    }
}

impl Command {
    fn place(&self) -> (usize, usize) {
        match self {
            Self::Create { kind, name, .. }
            | Self::Apply { kind, name, .. }
            | Self::ApplyStatus { kind, name, .. }
            | Self::Update { kind, name, .. }
            | Self::UpdateStatus { kind, name, .. }
            | Self::Patch { kind, name, .. }
            | Self::Finalizers { kind, name, .. }
            | Self::Delete { kind, name, .. } => (*kind, *name),
            Self::DeleteAll { kind, .. } | Self::List { kind, .. } => (*kind, 0),
        }
    }
}

/// Takes out what no two servers have in common: identities, times, versions, addresses.
fn normalise(value: &mut Value) {
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        normalise(item);
    }
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    metadata.remove("resourceVersion");
    for varies in ["uid", "creationTimestamp", "deletionTimestamp", "continue"] {
        if let Some(value) = metadata.get_mut(varies) {
            *value = json!("set");
        }
    }
    for owner in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
        owner["time"] = json!("set");
        without_dots(&mut owner["fieldsV1"]);
    }
    if let Some(owners) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
        // Their order is by times, which are whole seconds.
        owners.sort_by_key(|owner| format!("{}{}{}", owner["manager"], owner["operation"], owner["subresource"]));
    }
    if let Some(uid) = value.get_mut("details").and_then(|details| details.get_mut("uid")) {
        *uid = json!("set");
    }
    if value["kind"] == "Service" || value["spec"]["clusterIP"].is_string() {
        let headless = value["spec"]["clusterIP"] == "None";
        if !headless && value["spec"]["clusterIP"].is_string() {
            value["spec"]["clusterIP"] = json!("set");
            value["spec"]["clusterIPs"] = json!(["set"]);
        }
    }
}

/// Whether an object that has owned fields is itself owned by an update follows from how Go holds it; nothing depends
/// on it.
fn without_dots(fields: &mut Value) {
    if let Some(fields) = fields.as_object_mut() {
        fields.remove(".");
        fields.values_mut().for_each(without_dots);
    }
}

/// Where two values differ, one line a place.
fn differences(path: &str, fake: &Value, real: &Value, found: &mut Vec<String>) {
    match (fake, real) {
        (Value::Object(left), Value::Object(right)) => {
            let names: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for name in names {
                let none = json!("(nothing)");
                let (left, right) = (left.get(name).unwrap_or(&none), right.get(name).unwrap_or(&none));
                differences(&format!("{path}.{name}"), left, right, found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                differences(&format!("{path}[{index}]"), left, right, found);
            }
        }
        (left, right) if left == right => {}
        (left, right) => found.push(format!("{path}: fake {left}, real {right}")),
    }
}

fn compared(fake: &Said, real: &Said) -> Vec<String> {
    let mut found = Vec::new();
    let whole = |said: &Said| match said {
        Ok(value) => json!({"ok": value}),
        Err(refusal) => json!({"refused": refusal}),
    };
    differences("", &whole(fake), &whole(real), &mut found);
    found
}

async fn case(real: Client, namespace: &str, commands: &[Command]) -> Result<(), String> {
    let fake = FakeApi::new();
    let (mut left, left_start) = Side::new(fake.client("fake"), namespace).await;
    let (mut right, right_start) = Side::new(real, namespace).await;
    for (index, command) in commands.iter().enumerate() {
        let (fake, real) = (left.run(command).await, right.run(command).await);
        let found = compared(&fake, &real);
        if !found.is_empty() {
            return Err(format!("command {index}, {command:?}:\n{}", found.join("\n")));
        }
    }
    let mut kinds: Vec<usize> = commands.iter().map(|command| command.place().0).collect();
    kinds.sort_unstable();
    kinds.dedup();
    // All at once: a watch takes its second.
    let watches = kinds.iter().flat_map(|kind| ["", "&labelSelector=tier%3Dx"].map(|query| (&KINDS[*kind], query)));
    let compared = watches.map(async |(kind, query)| {
        let (fake, real) = tokio::join!(left.events(kind, query, &left_start), right.events(kind, query, &right_start));
        let mut found = Vec::new();
        differences("", &json!(fake), &json!(real), &mut found);
        (!found.is_empty()).then(|| format!("events of {} with {query:?}:\n{}", kind.name, found.join("\n")))
    });
    if let Some(found) = futures::future::join_all(compared).await.into_iter().flatten().next() {
        return Err(found);
    }
    Ok(())
}

async fn real_client() -> Client {
    let path =
        std::env::var("MCP_HUB_TEST_KUBECONFIG").expect("MCP_HUB_TEST_KUBECONFIG to name a cluster's kubeconfig");
    let config = Kubeconfig::read_from(path).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The definitions, as the fake has them.
async fn install(client: &Client) {
    let side = Side { client: client.clone(), namespace: String::new(), versions: BTreeMap::new() };
    for definition in mcp_hub_fakeapi::definitions() {
        let definition = serde_json::to_value(definition).unwrap();
        let name = definition["metadata"]["name"].as_str().unwrap();
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let apply = format!("{path}?fieldManager=test&force=true");
        side.send("PATCH", &apply, "application/apply-patch+yaml", &definition).await.unwrap();
        let established = async {
            loop {
                let now = side.send("GET", &path, "application/json", &Value::Null).await.unwrap();
                let conditions = now["status"]["conditions"].as_array().cloned().unwrap_or_default();
                if conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), established).await.expect("the definition to be established");
    }
}

#[test]
#[ignore = "needs a cluster, by MCP_HUB_TEST_KUBECONFIG"]
fn the_fake_says_and_does_what_the_real_server_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async {
        let client = real_client().await;
        install(&client).await;
        client
    });
    let cases = std::env::var("MCP_HUB_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60);
    let run = u64::from(std::process::id()) << 16;
    let count = std::cell::Cell::new(run);
    let config = Cases { cases, max_shrink_iters: 300, failure_persistence: None, ..Cases::default() };
    let result = TestRunner::new(config).run(&commands(), |commands| {
        count.set(count.get() + 1);
        let namespace = format!("same-{:x}", count.get());
        runtime.block_on(case(client.clone(), &namespace, &commands)).map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
