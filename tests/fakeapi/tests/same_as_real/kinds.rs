//! The kinds under test, and the objects of them that random bits describe.

use serde_json::{Value, json};

/// One of the kinds under test: where it is, and which objects of it there may be.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) api: &'static str,
    pub(crate) plural: &'static str,
    /// The object that these bits describe, metadata apart.
    pub(crate) body: fn(u16) -> Value,
    /// Its status.
    pub(crate) report: fn(u16) -> Value,
}

pub(crate) fn bit(bits: u16, index: u16) -> bool {
    bits >> index & 1 == 1
}

/// Lays `more` over `object` if the bit is set.
pub(crate) fn add(object: &mut Value, bits: u16, index: u16, more: Value) {
    if bit(bits, index) {
        merge(object, more);
    }
}

pub(crate) fn merge(object: &mut Value, more: Value) {
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

pub(crate) fn no_report(_: u16) -> Value {
    json!({})
}

pub(crate) fn conditions(bits: u16) -> Value {
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

pub(crate) fn config_map(bits: u16) -> Value {
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

pub(crate) fn secret(bits: u16) -> Value {
    let mut secret = json!({});
    add(&mut secret, bits, 0, json!({"stringData": {"a": "text"}}));
    add(&mut secret, bits, 1, json!({"data": {"b": "dGV4dA=="}}));
    add(&mut secret, bits & bits >> 1, 2, json!({"type": "mcphub.io/test"}));
    add(&mut secret, bits & bits >> 1, 4, json!({"immutable": true}));
    secret
}

pub(crate) fn service(bits: u16) -> Value {
    let mut service = json!({"spec": {"ports": [{"name": "http", "port": 80}]}});
    add(&mut service, bits, 0, json!({"spec": {"selector": {"a": "b"}}}));
    add(&mut service, bits, 1, json!({"spec": {"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}));
    add(&mut service, bits, 2, json!({"spec": {"publishNotReadyAddresses": true}}));
    add(&mut service, bits & bits >> 1, 3, json!({"spec": {"clusterIP": "None"}}));
    add(&mut service, bits, 5, json!({"spec": {"selector": {"c": "d"}}}));
    add(&mut service, bits & bits >> 1, 6, json!({"spec": {"sessionAffinity": "ClientIP"}}));
    service
}

pub(crate) fn service_account(bits: u16) -> Value {
    let mut account = json!({});
    add(&mut account, bits, 0, json!({"automountServiceAccountToken": false}));
    add(&mut account, bits, 1, json!({"imagePullSecrets": [{"name": "x"}]}));
    add(&mut account, bits, 2, json!({"imagePullSecrets": [{"name": "y"}]}));
    account
}

pub(crate) fn deployment(bits: u16) -> Value {
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

pub(crate) fn deployment_report(bits: u16) -> Value {
    let mut status = conditions(bits);
    add(&mut status, bits, 4, json!({"replicas": 2, "readyReplicas": 1}));
    add(&mut status, bits, 5, json!({"replicas": 0, "unavailableReplicas": 0}));
    status
}

pub(crate) fn network_policy(bits: u16) -> Value {
    let mut policy = json!({"spec": {"podSelector": {}}});
    add(&mut policy, bits, 0, json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}));
    add(&mut policy, bits, 1, json!({"spec": {"ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}}));
    add(&mut policy, bits, 2, json!({"spec": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}}));
    add(&mut policy, bits, 3, json!({"spec": {"egress": [{}]}}));
    add(&mut policy, bits, 4, json!({"spec": {"policyTypes": ["Egress"]}}));
    add(&mut policy, bits, 5, json!({"spec": {"ingress": []}}));
    policy
}

pub(crate) fn disruption_budget(bits: u16) -> Value {
    let mut budget = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
    add(&mut budget, bits, 0, json!({"spec": {"minAvailable": 1}}));
    add(&mut budget, bits & bits >> 1, 1, json!({"spec": {"maxUnavailable": "50%"}}));
    add(&mut budget, bits, 3, json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}));
    budget
}

pub(crate) fn lease(bits: u16) -> Value {
    let mut lease = json!({"spec": {"holderIdentity": "a"}});
    add(&mut lease, bits, 0, json!({"spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}}));
    add(&mut lease, bits, 1, json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z", "leaseTransitions": 0}}));
    add(&mut lease, bits, 2, json!({"spec": {"holderIdentity": ""}}));
    lease
}

pub(crate) fn ingress(bits: u16) -> Value {
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

pub(crate) fn http_route(bits: u16) -> Value {
    let mut route = json!({"spec": {"parentRefs": [{"name": "gateway"}]}});
    add(&mut route, bits, 0, json!({"spec": {"hostnames": ["a.example.com"]}}));
    add(&mut route, bits, 1, json!({"spec": {"rules": [{"backendRefs": [{"name": "x", "port": 80}]}]}}));
    add(&mut route, bits, 2, json!({"spec": {"rules": [{"matches": [{"path": {"value": "/mcp"}}]}]}}));
    add(&mut route, bits, 3, json!({"spec": {"parentRefs": [{"name": "other", "sectionName": "https"}]}}));
    route
}

pub(crate) fn mcp_server(bits: u16) -> Value {
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

pub(crate) fn mcp_server_report(bits: u16) -> Value {
    let mut status = conditions(bits);
    add(&mut status, bits, 4, json!({"phase": "Ready", "replicas": 0}));
    add(&mut status, bits, 5, json!({"tools": {"count": 3, "digest": "x"}}));
    add(&mut status, bits & bits >> 1, 6, json!({"phase": "Great"}));
    status
}

pub(crate) fn mcp_hub(bits: u16) -> Value {
    let mut hub = json!({"spec": {"servers": {"selector": {"matchLabels": {"a": "b"}}}}});
    add(&mut hub, bits, 0, json!({"spec": {"servers": {"include": ["x"]}}}));
    add(&mut hub, bits, 1, json!({"spec": {"servers": {"selector": {"matchLabels": {"c": "d"}}}}}));
    add(&mut hub, bits, 2, json!({"spec": {"gateway": {"port": 8080}}}));
    add(&mut hub, bits & bits >> 1, 3, json!({"spec": {"auth": {"mode": "oidc"}}}));
    hub
}

pub(crate) const KINDS: [Kind; 12] = [
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
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = if self.api == "v1" { "/api/v1".to_owned() } else { format!("/apis/{}", self.api) };
        format!("{root}/namespaces/{namespace}/{}", self.plural)
    }

    pub(crate) fn object(&self, name: &str, bits: u16, meta: u16) -> Value {
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
