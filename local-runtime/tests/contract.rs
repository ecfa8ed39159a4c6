//! The process runtime passes the contract suite, with real bridges in front of a real server.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod place;

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mcp_hub_reconcile::contract::{Harness, run};
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::ServerWorkload;
use place::{PYTHON, Place, until_ready};
use serde_json::json;

struct Processes {
    place: Place,
    /// For looking only.
    watcher: Arc<dyn Runtime>,
    foreign: Mutex<Vec<Child>>,
}

impl Processes {
    /// Someone else's server: with this mark, or with none.
    fn foreign_process(&self, mark: Option<&str>) -> Child {
        let mut command = Command::new(&*PYTHON);
        command.arg(self.place.script()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.process_group(0).env_remove("MCP_HUB_OWNER");
        if let Some(mark) = mark {
            command.env("MCP_HUB_OWNER", mark);
        }
        command.spawn().unwrap()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.foreign.lock().unwrap().iter_mut() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[async_trait]
impl Harness for Processes {
    async fn runtime(&self) -> Arc<dyn Runtime> {
        self.place.runtime()
    }

    fn workload(&self, name: &str) -> ServerWorkload {
        self.place.workload(&self.place.server(name, &["plain"]))
    }

    fn changed(&self, workload: &ServerWorkload) -> ServerWorkload {
        let mut args = workload.args.clone();
        args.push("changed".to_owned());
        ServerWorkload { args, ..workload.clone() }
    }

    fn unsupported(&self) -> Vec<(&'static str, ServerWorkload)> {
        let of = |more| self.place.resolved(&self.place.server_with("unsupported", &[], more));
        let volume = |more: serde_json::Value| {
            let mut volume = json!({"name": "data", "mountPath": "/data"});
            volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(json!({"volumes": [volume]}))
        };
        vec![
            ("spec.source.image", of(json!({"source": {"image": {"ref": "a:1"}}}))),
            ("spec.permissions.network.egress", of(json!({"permissions": {"network": {"egress": []}}}))),
            ("spec.runAs", of(json!({"runAs": {"user": 4_000_000_000_u32}}))),
            ("spec.replicas", of(json!({"replicas": 2}))),
            ("spec.volumes", volume(json!({"pvc": "claim"}))),
            ("spec.volumes", volume(json!({"configMap": "map"}))),
            ("spec.volumes", volume(json!({"emptyDir": {}}))),
            ("spec.volumes", volume(json!({"hostPath": "/elsewhere"}))),
            ("spec.volumes", volume(json!({"hostPath": "/data", "readOnly": true}))),
        ]
    }

    async fn settled(&self, owner: &OwnerKey) {
        until_ready(&*self.watcher, owner).await;
    }

    async fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        self.place.remains(owner)
    }

    async fn plant_foreign(&self, name: &str) -> usize {
        let owner = OwnerKey {
            installation: "another".to_owned(),
            kind: OwnerKind::MCPServer,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        };
        let folder = self.place.run_dir().join("foreign");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("owner.json"), serde_json::to_vec(&owner).unwrap()).unwrap();
        let processes = [None, Some(owner.id())].map(|mark| self.foreign_process(mark.as_deref()));
        self.foreign.lock().unwrap().extend(processes);
        self.foreign().await
    }

    async fn foreign(&self) -> usize {
        let mut processes = self.foreign.lock().unwrap();
        let alive = processes.iter_mut().filter_map(|child| child.try_wait().unwrap().is_none().then_some(())).count();
        alive + usize::from(self.place.run_dir().join("foreign/owner.json").is_file())
    }

    async fn drift(&self, owner: &OwnerKey) -> bool {
        let path = self.place.folder_of(owner).expect("the folder").join("launch.json");
        let mut launch: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        launch["child"]["args"] = json!(["-c", "print('someone was here')"]);
        std::fs::write(path, launch.to_string()).unwrap();
        true
    }
}

#[tokio::test]
async fn the_process_runtime_passes() {
    let place = Place::new();
    let watcher = place.runtime();
    let harness = Processes { place, watcher, foreign: Mutex::default() };
    let breaches = run(&harness).await;
    assert!(breaches.is_empty(), "{breaches:#?}");
    std::fs::remove_dir_all(harness.place.run_dir().join("foreign")).unwrap();
    assert_eq!(harness.place.everything(), Vec::<String>::new());
}
