//! An engine whose disk is full.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use mcp_hub_engine_tests::{Scene, until, until_ready};
use mcp_hub_fakeregistry::{Access, Registry};
use mcp_hub_reconcile::observed::PrepareState;
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::ServerWorkload;
use mcp_hub_supply::Credentials;
use mcp_hub_test_cluster::{Engine, EngineKind};
use serde_json::json;

use crate::registry::publish;
use crate::step;

/// Room for the example's image, a bridge and some more.
const DISK: u64 = 96 << 20;

/// Takes all room that is left.
struct Filler(PathBuf);

impl Filler {
    fn of(engine: &Engine) -> Self {
        let path = engine.data().join("filler");
        let mut file = File::create(&path).unwrap();
        // Ends with the disk.
        while file.write_all(&[0; 4096]).is_ok() {}
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_it_goes_on_when_there_is_room() {
    let scene = Scene::on(Engine::up_on_disk(EngineKind::Docker, DISK).unwrap()).await;
    let registry = Registry::start(Access::Everybody).await;
    let (image, _) = publish(&registry, "fixture", &Credentials::default()).await;
    let runtime = scene.runtime().await;
    let filler = Filler::of(&scene.engine);
    let server = scene.server("pulled", json!({"source": {"image": {"ref": image.to_string()}}, "args": ["stdio"]}));
    let workload = scene.workload(&server);
    scene.apply(&*runtime, &workload).await;
    let failure =
        until("the pull fails", async || match runtime.observe(&workload.owner).await.unwrap().prepare?.state {
            PrepareState::Failed(failure) => Some(failure),
            PrepareState::Running { .. } => None,
            PrepareState::Done(resolved) => panic!("{resolved:?}"),
        })
        .await;
    assert_eq!(failure.reason, "ImagePullFailed", "{failure:?}");
    assert!(failure.message.contains("no space left"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("disk is full"));
    // It is tried again by itself.
    drop(filler);
    let resolved = until("the image is there", async || {
        scene.apply(&*runtime, &workload).await;
        match runtime.observe(&workload.owner).await.unwrap().prepare?.state {
            PrepareState::Done(resolved) => Some(resolved),
            PrepareState::Running { .. } | PrepareState::Failed(_) => None,
        }
    })
    .await;

    let filler = Filler::of(&scene.engine);
    let workload = ServerWorkload { resolved: Some(resolved), ..workload };
    let apply = step(&*runtime, &workload);
    let refused = runtime.execute(&workload.owner, &apply).await.unwrap_err();
    assert_eq!(refused.reason, "EngineRefused", "{refused:?}");
    assert!(refused.hint.as_deref().unwrap_or_default().contains("disk is full"), "{refused:?}");
    drop(filler);
    until("a container is made", async || runtime.execute(&workload.owner, &apply).await.ok()).await;
    until_ready(&runtime, &workload.owner).await;
    scene.remove(&*runtime, &workload.owner).await;
    assert_eq!(scene.everything().await, Vec::<String>::new());
}
