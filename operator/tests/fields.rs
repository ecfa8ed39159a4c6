//! No field of `MCPServer` is silent on a cluster: each one, set alone, changes what is made or offered, or is refused by
//! name.

mod place;

use mcp_hub_reconcile::contract::fields::{Base, silent, unnoticed};
use place::Place;
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn each_field_alone_has_an_effect_or_is_refused_by_name() {
    let base =
        Base { source: json!({"image": {"ref": "a:1"}}), volume: json!({"pvc": "data"}), filesystem: "unrestricted" };
    assert_eq!(silent(&*Place::new().runtime(), &base), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn each_field_taken_out_of_a_full_spec_is_noticed() {
    let full = [
        json!({
            "source": {"image": {"ref": "a:1", "command": ["/run"], "pullSecretRef": {"name": "p"}, "pinDigest": true}},
            "transport": {"type": "streamable-http", "port": 8000, "path": "/here", "era": "modern"},
            "args": ["a", "b"],
            "workingDir": "/srv",
            "env": [
                {"name": "PLAIN", "value": "1"},
                {"name": "SECRET", "secretRef": {"name": "s", "key": "k"}},
            ],
            "volumes": [
                {"name": "data", "mountPath": "/data", "pvc": "claim"},
                {"name": "docs", "mountPath": "/docs", "configMap": "docs", "readOnly": true},
                {"name": "cache", "mountPath": "/cache", "emptyDir": {"sizeLimit": "1Gi"}},
            ],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "512Mi"}},
            "runAs": {"user": 2000, "group": 3000},
            "replicas": 2,
            "lifecycle": {"mode": "onDemand", "idleTimeout": "1m"},
            "sessions": {"mode": "perClient", "max": 3},
            "health": {"period": "10s", "timeout": "1s", "failureThreshold": 9},
            "restart": {"policy": "OnFailure", "backoff": {"initial": "2s", "max": "1m"}},
            "timeouts": {"call": "1m", "start": "5s"},
            "tools": {"allow": ["get_*"], "deny": ["delete_*"], "rename": {"a": "b"}},
            "permissions": {"filesystem": "unrestricted", "network": {"egress": ["10.0.0.0/8:5432"]}},
            "exposeTo": ["elsewhere"],
            "kubernetes": {"podTemplate": {
                "metadata": {"annotations": {"a": "b"}},
                "spec": {"nodeSelector": {"disk": "ssd"}},
            }},
        }),
        json!({"source": {"image": {"ref": "a:1"}}, "sessions": {"mode": "perClient"}, "roots": "Forward", "paused": false}),
    ];
    // `paused: false` is what is meant without it, and the two of `pinDigest` differ only where a digest is unknown.
    let inert = ["spec.paused", "spec.source.image.pinDigest"];
    let runtime = Place::new().runtime();
    let mut count = 0;
    for spec in full {
        let (taken, missed) = unnoticed(&*runtime, &spec, &inert);
        assert_eq!(missed, Vec::<String>::new());
        count += taken;
    }
    assert!(count > 50, "{count} fields were taken out");
}
