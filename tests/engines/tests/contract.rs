//! Container engines pass the contract suite, with real containers of a real server.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, NetworkConnectRequest, NetworkCreateRequest};
use bollard::query_parameters::CreateContainerOptions;
use mcp_hub_engine_tests::{Scene, UNITS, until_ready};
use mcp_hub_local_runtime::docker::DockerRuntime;
use mcp_hub_reconcile::contract::fields::{Base, silent};
use mcp_hub_reconcile::contract::{Harness, run};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::{EnvValue, ServerWorkload};
use mcp_hub_test_cluster::EngineKind;
use serde_json::{Value, json};

struct Containers {
    scene: Scene,
    /// For looking only.
    watcher: Arc<DockerRuntime>,
    foreign: Mutex<Vec<String>>,
    /// What servers have in their spec besides the image.
    more: Value,
}

#[async_trait]
impl Harness for Containers {
    async fn runtime(&self) -> Arc<dyn Runtime> {
        self.scene.runtime().await
    }

    fn workload(&self, name: &str) -> ServerWorkload {
        self.scene.workload(&self.scene.server(name, self.more.clone()))
    }

    fn changed(&self, workload: &ServerWorkload) -> ServerWorkload {
        let mut env = workload.env.clone();
        env.push(EnvValue::Plain { name: "CHANGED".to_owned(), value: "yes".to_owned() });
        ServerWorkload { env, ..workload.clone() }
    }

    fn namesake(&self, workload: &ServerWorkload) -> ServerWorkload {
        // With a token of its own, as everything with a uid of its own has.
        let mut server = self.scene.server(&workload.owner.name, self.more.clone());
        server.metadata.uid = Some(format!("{}-namesake", workload.owner.uid));
        ServerWorkload { resolved: workload.resolved.clone(), ..self.scene.workload(&server) }
    }

    fn unsupported(&self) -> Vec<(&'static str, ServerWorkload)> {
        let of = |more| self.scene.workload(&self.scene.server("unsupported", more));
        let volume = |more: serde_json::Value| {
            let mut volume = json!({"name": "data", "mountPath": "/data"});
            volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(json!({"volumes": [volume]}))
        };
        vec![
            ("spec.source.command", of(json!({"source": {"command": {"path": "/bin/server"}}}))),
            ("spec.permissions.network.egress", of(json!({"permissions": {"network": {"egress": ["a.example.com"]}}}))),
            ("spec.replicas", of(json!({"replicas": 2}))),
            ("spec.volumes", volume(json!({"configMap": "map"}))),
            ("spec.volumes", volume(json!({"hostPath": "/data", "mountPath": "/mcp-hub"}))),
            ("spec.volumes", volume(json!({"hostPath": "/data", "mountPath": "data"}))),
            ("spec.volumes", volume(json!({"hostPath": "/data", "mountPath": "/run/../mcp-hub"}))),
            ("spec.volumes", volume(json!({"hostPath": "/data", "mountPath": "//mcp-hub/./"}))),
            ("spec.volumes", volume(json!({"hostPath": "/data", "mountPath": "/run"}))),
            ("spec.volumes", volume(json!({"hostPath": "/var/run/docker.sock"}))),
            ("spec.volumes", volume(json!({"hostPath": "/run/user/0"}))),
            ("spec.volumes", volume(json!({"hostPath": "/"}))),
            ("spec.volumes", volume(json!({"hostPath": self.scene.engine.socket()}))),
            (
                "spec.volumes",
                of(json!({"volumes": [
                    {"name": "a", "mountPath": "/data", "emptyDir": {}},
                    {"name": "b", "mountPath": "/data/", "emptyDir": {}},
                ]})),
            ),
        ]
    }

    async fn settled(&self, owner: &OwnerKey) {
        // One that was never told of the owner looks at the engine first.
        self.watcher.owners().await.unwrap();
        until_ready(&self.watcher, owner).await;
    }

    async fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        self.scene.containers(Some(format!("mcphub.io/uid={}", owner.uid))).await
    }

    async fn plant_foreign(&self, name: &str) -> usize {
        let label = |installation: &str| {
            let labels = [
                ("installation", installation),
                ("namespace", "default"),
                ("name", name),
                ("uid", &format!("uid-{name}-else")),
            ];
            labels.map(|(key, value)| (format!("mcphub.io/{key}"), value.to_owned()))
        };
        for (number, labels) in [HashMap::new(), HashMap::from(label("another"))].into_iter().enumerate() {
            let container = format!("mcphub-default-{name}-{number}");
            let body =
                ContainerCreateBody { image: Some(UNITS.to_owned()), labels: Some(labels), ..Default::default() };
            let options = CreateContainerOptions { name: Some(container.clone()), ..Default::default() };
            self.scene.api.create_container(Some(options), body).await.unwrap();
            self.foreign.lock().unwrap().push(container);
        }
        self.foreign().await
    }

    async fn foreign(&self) -> usize {
        let planted = self.foreign.lock().unwrap().clone();
        let there = self.scene.containers(None).await;
        planted.iter().filter(|name| there.iter().any(|line| line.split(' ').next() == Some(name))).count()
    }

    async fn drift(&self, owner: &OwnerKey) -> bool {
        let containers = self.remains(owner).await;
        let name = containers[0].split(' ').next().unwrap().to_owned();
        let network = "somebodys".to_owned();
        let request = NetworkCreateRequest { name: network.clone(), ..Default::default() };
        self.scene.api.create_network(request).await.unwrap();
        let request = NetworkConnectRequest { container: name, ..Default::default() };
        self.scene.api.connect_network(&network, request).await.unwrap();
        true
    }
}

async fn passes(kind: EngineKind, more: Value) {
    let scene = Scene::up(kind).await;
    let watcher = scene.runtime().await;
    let harness = Containers { scene, watcher, foreign: Mutex::default(), more };
    let breaches = run(&harness).await;
    assert!(breaches.is_empty(), "{breaches:#?}");
    assert_eq!(harness.scene.everything().await, Vec::<String>::new());
}

#[tokio::test]
async fn docker_passes() {
    passes(EngineKind::Docker, json!({})).await;
}

#[tokio::test]
async fn podman_passes() {
    passes(EngineKind::Podman, json!({})).await;
}

/// A server with an egress list, which is two objects and is reached through one that it shares with others.
fn enclosed() -> Value {
    json!({"permissions": {"network": {"egress": ["api.example.com:443"]}}})
}

#[tokio::test]
async fn docker_passes_with_an_egress_list() {
    passes(EngineKind::Docker, enclosed()).await;
}

#[tokio::test]
async fn podman_passes_with_an_egress_list() {
    passes(EngineKind::Podman, enclosed()).await;
}

/// No field of `MCPServer` is silent: each one, set alone, changes the container or what is offered, or is refused by name.
#[tokio::test]
async fn each_field_alone_has_an_effect_or_is_refused_by_name() {
    let scene = Scene::up(EngineKind::Docker).await;
    let base = Base {
        source: json!({"image": {"ref": UNITS}}),
        volume: json!({"hostPath": "/data"}),
        filesystem: "unrestricted",
    };
    let mut found = silent(&*scene.machine().await, &base);
    // The only engine of this machine is named, which is what is meant without.
    found.retain(|line| !line.starts_with("spec.runtime is silent"));
    assert_eq!(found, Vec::<String>::new());
}
