//! No field of `MCPServer` is silent on this machine: each one, set alone, changes what is run or offered, or is refused
//! by name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mcp_hub_local_runtime::host::Host;
use mcp_hub_local_runtime::process::{ProcessConfig, ProcessRuntime};
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_local_runtime::secret_source::Given;
use mcp_hub_reconcile::contract::fields::{Base, silent, unnoticed};
use serde_json::json;

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
    RuntimeSet::new(ProcessRuntime::new(config, Arc::<Given>::default()).unwrap(), Vec::new(), None)
}

#[tokio::test]
async fn each_field_alone_has_an_effect_or_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = Base {
        source: json!({"command": {"path": "/bin/server"}}),
        volume: json!({"hostPath": "/data"}),
        filesystem: "readOnly",
    };
    assert_eq!(silent(&runtime(&folder), &base), Vec::<String>::new());
}

#[tokio::test]
async fn each_field_taken_out_of_a_full_spec_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime(&folder);
    let full = [
        json!({
            "source": {"command": {"path": "/bin/server"}},
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
        }),
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
        let (taken, missed) = unnoticed(&runtime, &spec, &inert);
        assert_eq!(missed, Vec::<String>::new());
        count += taken;
    }
    assert!(count > 50, "{count} fields were taken out");
}
