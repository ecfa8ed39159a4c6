//! What specs become on a cluster, as it was agreed on. A change here rolls pods of every installation that upgrades: if
//! that is meant, `LOWER_REVISION` is raised with it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod place;

use mcp_hub_crds::MCPServer;
use mcp_hub_crds::hub::Gateway;
use mcp_hub_reconcile::exposure::Exposure;
use mcp_hub_reconcile::lower::{LOWER_REVISION, Lowered};
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::{GatewayWorkload, Workload};
use place::{NAMESPACE, Place, installation, resolved, workload};
use serde_json::{Value, json};

fn server(name: &str, spec: &Value) -> Workload {
    let object = json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}")}, "spec": spec,
    });
    let server: MCPServer = serde_json::from_value(object).unwrap();
    Workload::Server(Box::new(resolved(workload(&server))))
}

fn gateway(replicas: i32, spec: &Value) -> Workload {
    let spec: Gateway = serde_json::from_value(spec.clone()).unwrap();
    let owner = OwnerKey {
        installation: installation().id().to_owned(),
        kind: OwnerKind::MCPHub,
        namespace: NAMESPACE.to_owned(),
        name: "default".to_owned(),
        uid: "uid-default".to_owned(),
    };
    Workload::Gateway(Box::new(GatewayWorkload {
        owner,
        replicas,
        port: 8080,
        exposure: Exposure::of(&spec),
        tls: spec.tls,
    }))
}

/// The revision, what is honoured in part, and each object with the digest that pods are rolled by.
fn shown(lowered: &Lowered) -> Value {
    let objects: Vec<Value> = lowered
        .objects
        .iter()
        .map(|object| json!({"object": object.id.to_string(), "digest": object.digest, "body": object.body}))
        .collect();
    let degraded: Vec<&str> = lowered.degraded.iter().map(|degraded| degraded.field.as_str()).collect();
    json!({"lowerRevision": LOWER_REVISION, "degraded": degraded, "objects": objects})
}

#[tokio::test(start_paused = true)]
async fn the_lowering_is_as_agreed_at_this_revision() {
    let cases = [
        ("stdio", server("stdio", &json!({"source": {"image": {"ref": "registry.example.com/stdio:1"}}}))),
        (
            "http",
            server(
                "http",
                &json!({
                    "source": {"image": {
                        "ref": "registry.example.com/http:1", "command": ["/serve"], "pinDigest": false,
                        "pullSecretRef": {"name": "pull"},
                    }},
                    "transport": {"type": "streamable-http", "port": 7337, "path": "/here"},
                    "args": ["--port", "7337"],
                    "env": [
                        {"name": "PRICE", "value": "$5"},
                        {"name": "TOKEN", "secretRef": {"name": "token", "key": "value"}},
                    ],
                    "replicas": 2,
                    "sessions": {"mode": "perClient", "max": 3},
                }),
            ),
        ),
        (
            "confined",
            server(
                "confined",
                &json!({
                    "source": {"image": {"ref": "registry.example.com/confined:1"}},
                    "workingDir": "/srv",
                    "volumes": [
                        {"name": "data", "mountPath": "/data", "pvc": "claim"},
                        {"name": "tmp", "mountPath": "/tmp", "emptyDir": {"sizeLimit": "1Gi"}},
                    ],
                    "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "requests": {"cpu": "0.5"}},
                    "runAs": {"user": 2000, "group": 3000},
                    "lifecycle": {"mode": "onDemand", "idleTimeout": "1m"},
                    "permissions": {"network": {"egress": ["10.0.0.0/8:5432"]}},
                    "exposeTo": ["elsewhere"],
                    "kubernetes": {"podTemplate": {
                        "metadata": {"annotations": {"team": "dev"}},
                        "spec": {
                            "nodeSelector": {"disk": "ssd"},
                            "containers": [{"name": "server", "env": [{"name": "MORE", "value": "1"}]}],
                        },
                    }},
                }),
            ),
        ),
        (
            "package",
            server(
                "package",
                &json!({
                    "source": {"package": {
                        "registry": "npm", "name": "@example/server", "version": "1.2.3", "executable": "serve",
                    }},
                    "args": ["--help"],
                    "permissions": {"network": {"egress": ["10.0.0.0/8:443"]}},
                }),
            ),
        ),
        (
            "named",
            server(
                "named",
                &json!({
                    "source": {"image": {"ref": "registry.example.com/named:1"}},
                    "env": [{"name": "NODE_USE_ENV_PROXY", "value": "0"}],
                    "permissions": {"network": {"egress": ["api.example.com:443", "10.0.0.0/8:5432"]}},
                }),
            ),
        ),
        ("gateway", gateway(2, &json!({}))),
        ("gateway_of_one", gateway(1, &json!({}))),
        (
            "gateway_with_ingress",
            gateway(
                1,
                &json!({
                    "tls": {"secretRef": {"name": "cert"}},
                    "ingress": {
                        "host": "hub.example.com", "className": "nginx",
                        "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"},
                    },
                }),
            ),
        ),
        (
            "gateway_with_plain_ingress",
            gateway(1, &json!({"ingress": {"host": "hub.example.com", "tlsSecretRef": {"name": "web"}}})),
        ),
        (
            "gateway_with_route",
            gateway(
                1,
                &json!({
                    "tls": {"certManagerIssuer": "ca"},
                    "httpRoute": {
                        "host": "hub.example.com", "gateway": "public", "gatewayNamespace": "infra",
                        "annotations": {"team": "dev"},
                    },
                }),
            ),
        ),
        ("gateway_with_certificate", gateway(1, &json!({"tls": {"certManagerIssuer": "ca"}}))),
    ];
    let runtime = Place::new().runtime();
    for (name, workload) in cases {
        insta::assert_yaml_snapshot!(name, shown(&runtime.lower(&workload).unwrap()));
    }
}
