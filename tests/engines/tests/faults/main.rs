//! What goes wrong with engines, images and containers, and what a person is told of it.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod container;
mod cuts;
mod disk;
mod engine;
mod registry;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    ContainerArchiveInfoOptions, CreateContainerOptions, ListVolumesOptions, RemoveImageOptions,
};
use mcp_hub_engine_tests::{Scene, UNITS, until, until_ready};
use mcp_hub_local_runtime::docker::{DockerRuntime, EngineKind as Engines};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::observed::{Failure, PrepareState};
use mcp_hub_reconcile::plan::plan;
use mcp_hub_reconcile::ports::{Runtime, Step};
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};
use mcp_hub_test_cluster::EngineKind;
use serde_json::{Value, json};

fn step(runtime: &dyn Runtime, workload: &ServerWorkload) -> Step {
    let lowered = runtime.lower(&Workload::Server(Box::new(workload.clone()))).unwrap();
    plan(&lowered, &Default::default()).remove(0)
}

/// Why an image could not be had.
async fn refusal(scene: &Scene, name: &str, image: Value) -> Failure {
    let runtime = scene.runtime().await;
    let server = scene.server(name, json!({"source": {"image": image}}));
    let workload = scene.workload(&server);
    scene.apply(&*runtime, &workload).await;
    until("the preparation ends", async || match runtime.observe(&workload.owner).await.unwrap().prepare?.state {
        PrepareState::Failed(failure) => Some(failure),
        PrepareState::Running { .. } => None,
        PrepareState::Done(resolved) => panic!("{resolved:?}"),
    })
    .await
}

#[tokio::test]
async fn an_image_that_cannot_be_had_says_why_and_what_to_do() {
    let scene = Scene::up(EngineKind::Docker).await;
    // Nobody listens there.
    let failure = refusal(&scene, "nowhere", json!({"ref": "127.0.0.1:1/a/b:1"})).await;
    assert_eq!((failure.reason, failure.retry), ("ImagePullFailed", Retry::Backoff));
    assert!(failure.message.contains("127.0.0.1:1/a/b:1") && failure.hint.is_some(), "{failure:?}");

    let failure = refusal(&scene, "name", json!({"ref": "localhost/Upper:1"})).await;
    assert_eq!((failure.reason, failure.retry), ("ImageInvalid", Retry::OnChange));

    // It is there, and was never in a registry.
    let failure = refusal(&scene, "pinned", json!({"ref": UNITS, "pinDigest": true})).await;
    assert_eq!((failure.reason, failure.retry), ("ImageUnpinned", Retry::OnChange));
}

#[tokio::test]
async fn a_container_of_somebody_else_is_in_the_way_and_stays() {
    let scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    let workload = scene.resolved(&*runtime, &scene.server("taken", json!({}))).await;
    scene.apply(&*runtime, &workload).await;
    let name = scene.containers(Some("mcphub.io/name=taken".to_owned())).await[0].split(' ').next().unwrap().to_owned();
    scene.remove(&*runtime, &workload.owner).await;
    let body = ContainerCreateBody { image: Some(UNITS.to_owned()), ..Default::default() };
    let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
    scene.api.create_container(Some(options), body).await.unwrap();

    let refused = runtime.execute(&workload.owner, &step(&*runtime, &workload)).await.unwrap_err();
    assert_eq!(refused.reason, "NameTaken");
    assert!(refused.message.contains(&name) && refused.hint.is_some(), "{refused:?}");
    assert!(scene.containers(None).await.iter().any(|line| line.starts_with(&name)));
}

#[tokio::test]
async fn an_image_that_was_tidied_away_is_missed_by_name() {
    let scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    let workload = scene.resolved(&*runtime, &scene.server("tidied", json!({}))).await;
    let options = RemoveImageOptions { force: true, ..Default::default() };
    scene.api.remove_image(UNITS, Some(options), None).await.unwrap();
    let refused = runtime.execute(&workload.owner, &step(&*runtime, &workload)).await.unwrap_err();
    assert_eq!(refused.reason, "ImageGone", "{refused:?}");
    assert!(refused.message.contains(UNITS), "{refused:?}");
}

#[tokio::test]
async fn a_program_that_cannot_start_is_a_crash_loop_and_not_a_container_that_comes_and_goes() {
    let scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    let server = scene.server("broken", json!({"source": {"image": {"ref": UNITS, "command": ["/no/such/program"]}}}));
    let workload = scene.resolved(&*runtime, &server).await;
    scene.apply(&*runtime, &workload).await;
    let status = until("the bridge gives up for a while", async || {
        let bridge = runtime.observe(&workload.owner).await.unwrap().bridge?;
        format!("{:?}", bridge.phase).contains("CrashLoop").then_some(bridge)
    })
    .await;
    assert!(format!("{status:?}").contains("/no/such/program"), "{status:?}");
    assert_eq!(scene.containers(Some("mcphub.io/name=broken".to_owned())).await.len(), 1);
}

#[tokio::test]
async fn an_engine_that_goes_by_two_names_has_one_maker_of_each_container() {
    let scene = Scene::up(EngineKind::Docker).await;
    // As Podman's socket in the place of Docker's, or Vessel named as Docker's host.
    let mut config = scene.config();
    config.kind = Engines::Vessel;
    config.around.env.insert("VESSEL_HOST".to_owned(), scene.engine.address());
    let other = DockerRuntime::start(config, scene.secrets.clone()).await;
    let runtime = scene.runtime().await;
    let workload = scene.resolved(&*runtime, &scene.server("double", json!({}))).await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
    assert_eq!(other.owners().await.unwrap(), []);
    assert_eq!(other.observe(&workload.owner).await.unwrap().objects, []);
    // Nor is what the one resolved taken for what the other would run.
    let lowered = other.lower(&Workload::Server(Box::new(workload.clone()))).unwrap();
    assert!(lowered.objects.iter().all(|object| object.id.kind == "vessel image"), "{lowered:?}");
}

#[tokio::test]
async fn a_container_that_does_not_start_is_tried_ever_more_seldom() {
    let scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    // Admission knows nothing of the folders of a machine.
    let volume = json!({"name": "data", "mountPath": "/data", "hostPath": "/no/such/folder"});
    let server = scene.server("stubborn", json!({"volumes": [volume]}));
    let workload = scene.resolved(&*runtime, &server).await;
    let apply = step(&*runtime, &workload);
    let mut retries = Vec::new();
    for _ in 0..3 {
        let refused = runtime.execute(&workload.owner, &apply).await.unwrap_err();
        assert_eq!(refused.reason, "EngineRefused", "{refused:?}");
        assert!(refused.hint.unwrap().contains("hostPath"), "{}", refused.message);
        retries.push(matches!(refused.retry, Retry::After(_)));
    }
    assert_eq!(retries, [false, false, true], "the first restart is immediate, the second waits");
    assert_eq!(scene.containers(Some("mcphub.io/name=stubborn".to_owned())).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_volume_of_the_users_data_can_be_written_and_stays() {
    let scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    let server = scene.server("keeper", json!({"volumes": [{"name": "data", "mountPath": "/data", "pvc": "notes"}]}));
    let workload = scene.resolved(&*runtime, &server).await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
    let container =
        scene.containers(Some("mcphub.io/name=keeper".to_owned())).await[0].split(' ').next().unwrap().to_owned();
    let options = ContainerArchiveInfoOptions { path: "/data".to_owned() };
    let folder = scene.api.get_container_archive_info(&container, Some(options)).await.unwrap();
    assert_eq!(folder.file_mode & 0o777, 0o777, "its user is not root");
    scene.remove(&*runtime, &workload.owner).await;
    assert_eq!(scene.everything().await, Vec::<String>::new());
    let volumes = scene.api.list_volumes(None::<ListVolumesOptions>).await.unwrap().volumes.unwrap();
    assert!(volumes.iter().any(|volume| volume.name.ends_with("-data-default.notes")), "{volumes:?}");
}
