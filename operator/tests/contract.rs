//! The cluster runtime passes the contract suite, over an API server in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod place;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mcp_hub_reconcile::contract::{Harness, run};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Runtime, Step};
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};
use place::{NAMESPACE, Place, resolved, workload};
use serde_json::{Value, json};

struct Cluster {
    place: Place,
    /// Objects of someone else as they were made.
    foreign: Mutex<Vec<Value>>,
}

impl Cluster {
    fn plant(&self, object: &Value) {
        self.foreign.lock().unwrap().push(self.place.api.create(object).unwrap());
    }
}

#[async_trait]
impl Harness for Cluster {
    async fn runtime(&self) -> Arc<dyn Runtime> {
        self.place.runtime()
    }

    fn workload(&self, name: &str) -> ServerWorkload {
        let spec = json!({"source": {"image": {"ref": "registry.example.com/server:1"}}, "args": ["one"]});
        workload(&self.place.server(name, &spec))
    }

    fn changed(&self, workload: &ServerWorkload) -> ServerWorkload {
        ServerWorkload { args: vec!["two".to_owned()], ..workload.clone() }
    }

    fn namesake(&self, of: &ServerWorkload) -> ServerWorkload {
        let name = &of.owner.name;
        let spec = self.place.api.get("MCPServer", NAMESPACE, name).unwrap()["spec"].clone();
        self.place.api.delete("MCPServer", NAMESPACE, name);
        ServerWorkload { resolved: of.resolved.clone(), ..workload(&self.place.server(name, &spec)) }
    }

    fn namesakes_exclude_each_other(&self) -> bool {
        true
    }

    fn unsupported(&self) -> Vec<(&'static str, ServerWorkload)> {
        let of = |name: &str, source: Value, more: Value| {
            let mut spec = json!({"source": source});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            resolved(workload(&self.place.server(&format!("unsupported-{name}"), &spec)))
        };
        let image = |name: &str, more: Value| of(name, json!({"image": {"ref": "a:1"}}), more);
        let volume = json!([{"name": "data", "mountPath": "/data", "hostPath": "/data"}]);
        vec![
            ("spec.source.command", of("command", json!({"command": {"path": "/bin/run"}}), json!({}))),
            (
                "spec.source.package.version",
                of("package", json!({"package": {"registry": "npm", "name": "a"}}), json!({})),
            ),
            ("spec.runtime", image("runtime", json!({"runtime": "docker"}))),
            ("spec.volumes", image("volume", json!({"volumes": volume}))),
            (
                "spec.permissions.network.egress",
                image("egress", json!({"permissions": {"network": {"egress": ["api.example.com"]}}})),
            ),
            (
                "spec.kubernetes.podTemplate",
                image("template", json!({"kubernetes": {"podTemplate": {"spec": {"hostNetwork": true}}}})),
            ),
        ]
    }

    async fn settled(&self, _: &OwnerKey) {
        self.place.settle().await;
    }

    async fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        self.place.settle().await;
        self.place.remains(owner)
    }

    async fn plant_foreign(&self, name: &str) -> usize {
        self.place.api.namespace("elsewhere");
        let labels = |installation: &str, manager: &str| {
            json!({
                "app.kubernetes.io/managed-by": manager, "mcphub.io/installation": installation,
                "mcphub.io/owner-kind": "MCPServer", "mcphub.io/owner-name": name,
                "mcphub.io/owner-uid": format!("uid-{name}"),
            })
        };
        let map = |namespace: &str, name: String, labels: Value| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"ports": [{"port": 80}]},
            })
        };
        // Another installation's, one that somebody labelled, one without labels, and a namesake elsewhere.
        self.plant(&map(NAMESPACE, format!("mcp-{name}-other"), labels("another", "mcp-hub")));
        self.plant(&map(NAMESPACE, format!("mcp-{name}-labelled"), labels("test", "somebody")));
        self.plant(&map(NAMESPACE, name.to_owned(), json!({})));
        self.plant(&map("elsewhere", format!("mcp-{name}"), json!({})));
        self.foreign().await
    }

    async fn foreign(&self) -> usize {
        let planted = self.foreign.lock().unwrap().clone();
        let same = |object: &&Value| {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            self.place.api.get("Service", &text("namespace"), &text("name")).as_ref() == Some(*object)
        };
        planted.iter().filter(same).count()
    }

    async fn drift(&self, owner: &OwnerKey) -> bool {
        let name = format!("mcp-{}", owner.name);
        let edit =
            |deployment: &mut Value| deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1".into();
        self.place.api.edit("Deployment", &owner.namespace, &name, edit).unwrap();
        self.place.settle().await;
        true
    }
}

#[tokio::test(start_paused = true)]
async fn the_cluster_runtime_passes() {
    let cluster = Cluster { place: Place::new(), foreign: Mutex::default() };
    let breaches = run(&cluster).await;
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// Names of objects are made from the server's, so a stranger may have taken one: it stays as it is, and the step says so.
#[tokio::test(start_paused = true)]
async fn an_object_of_someone_else_under_our_name_is_left_alone() {
    let place = Place::new();
    let spec = json!({"source": {"image": {"ref": "a:1"}}});
    let server = resolved(workload(&place.server("github", &spec)));
    let stranger = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mcp-github", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    });
    let before = place.api.create(&stranger).unwrap();
    let runtime = place.runtime();
    let lowered = runtime.lower(&Workload::Server(Box::new(server.clone()))).unwrap();
    let deployment = lowered.objects.iter().find(|object| object.id.kind == "Deployment").unwrap();
    let refused = runtime.execute(&server.owner, &Step::Apply(deployment.clone())).await.unwrap_err();
    assert_eq!(refused.reason, "NameTaken");
    runtime.execute(&server.owner, &Step::Remove(deployment.id.clone())).await.unwrap();
    assert_eq!(place.api.get("Deployment", NAMESPACE, "mcp-github"), Some(before));
}
