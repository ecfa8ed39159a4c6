//! Containers that do not end when asked, or end for their memory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use mcp_hub_engine_tests::{FIXTURE, Scene, manifest, until, until_ready};
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_test_cluster::{EngineKind, Record};
use serde_json::json;

/// The first process of the server's container.
async fn first_process(scene: &Scene, name: &str) -> Record {
    let shown = scene.containers(Some(format!("mcphub.io/name={name}"))).await;
    let shown = scene.api.inspect_container(shown[0].split(' ').next().unwrap(), None).await.unwrap();
    Record::of(u32::try_from(shown.state.unwrap().pid.unwrap()).unwrap()).unwrap()
}

async fn one_that_hears_no_signal_is_ended(kind: EngineKind) {
    let scene = Scene::up(kind).await;
    let runtime = scene.runtime().await;
    let workload = scene.resolved(&*runtime, &scene.server("deaf", json!({}))).await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
    let first = first_process(&scene, "deaf").await;
    first.stop();
    // One step, which waits for as long as a server may take to end, and then does it by force.
    scene.remove(&*runtime, &workload.owner).await;
    assert!(!first.lives());
    assert_eq!(scene.everything().await, Vec::<String>::new());
}

#[tokio::test]
async fn on_docker_a_container_that_hears_no_signal_is_ended() {
    one_that_hears_no_signal_is_ended(EngineKind::Docker).await;
}

#[tokio::test]
async fn on_podman_a_container_that_hears_no_signal_is_ended() {
    one_that_hears_no_signal_is_ended(EngineKind::Podman).await;
}

async fn a_program_that_eats_its_memory_is_told_from_one_that_crashed(kind: EngineKind) {
    let scene = Scene::up(kind).await;
    scene.load("fixture").await;
    let mut hub = scene.hub(&scene.engine.address());
    let spec = json!({"args": ["stdio"], "resources": {"limits": {"memory": "48Mi"}}});
    hub.write("servers.yaml", &manifest("eater", FIXTURE, &spec));
    hub.start();
    hub.wait_reason("eater", "Ready");
    let before = scene.containers(Some("mcphub.io/name=eater".to_owned())).await;
    // Sixty megabytes of text do not fit.
    hub.mcpctl(&["call", "eater/big", "--arg", "bytes=62914560"]);
    // Once it is back it says what to do.
    hub.wait_server("eater", "the kill is told", |server| {
        server["status"]["lastError"].as_str().is_some_and(|error| error.contains("raise spec.resources.limits.memory"))
    });
    hub.wait_reason("eater", "Ready");
    // Only the program was ended, so that only the program was started again.
    assert_eq!(scene.containers(Some("mcphub.io/name=eater".to_owned())).await, before);
}

#[tokio::test]
async fn on_docker_a_program_that_eats_its_memory_is_told_from_one_that_crashed() {
    a_program_that_eats_its_memory_is_told_from_one_that_crashed(EngineKind::Docker).await;
}

#[tokio::test]
async fn on_podman_a_program_that_eats_its_memory_is_told_from_one_that_crashed() {
    a_program_that_eats_its_memory_is_told_from_one_that_crashed(EngineKind::Podman).await;
}

/// The folder of the process's control group that counts memory, with cgroup v1 or v2.
fn memory_group(of: Record) -> PathBuf {
    let membership = std::fs::read_to_string(format!("/proc/{}/cgroup", of.pid)).unwrap();
    let mut groups = membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let version_1 = groups.clone().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let (root, (_, path)) = match version_1 {
        Some(group) => ("/sys/fs/cgroup/memory", group),
        None => ("/sys/fs/cgroup", groups.next().unwrap()),
    };
    PathBuf::from(format!("{root}{path}"))
}

/// Killed and reaped when dropped.
struct Eater(Child);

impl Eater {
    /// Eats all memory of a control group.
    fn of(group: &Path) -> Self {
        let script = format!("echo $$ > {}/cgroup.procs; exec tail /dev/zero", group.display());
        Self(Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap())
    }
}

impl Drop for Eater {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn a_container_that_ends_for_its_memory_says_so_and_is_made_anew() {
    let scene = Scene::up(EngineKind::Docker).await;
    let runtime = scene.runtime().await;
    let server = scene.server("cramped", json!({"resources": {"limits": {"memory": "32Mi"}}}));
    let workload = scene.resolved(&*runtime, &server).await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
    // The kernel takes the largest first, unless it is told which to take.
    let first = first_process(&scene, "cramped").await;
    std::fs::write(format!("/proc/{}/oom_score_adj", first.pid), "1000").unwrap();
    let _eater = Eater::of(&memory_group(first));
    // Docker does not always tell of the reason, and its bridge may be silent before the container ends.
    until("it is said what to do about its end", async || {
        let failure = runtime.observe(&workload.owner).await.unwrap().failure?;
        failure.hint.filter(|hint| hint.contains("spec.resources.limits.memory"))
    })
    .await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
}
