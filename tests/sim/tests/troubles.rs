//! What goes wrong with servers is told, and so is its end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use mcp_hub_sim::World;
use mcp_hub_sim::bridges::Fate;
use mcp_hub_sim::oracle::truth;
use mcp_hub_sim::specs::{image, server};
use mcp_hub_sim::world::LONG_QUIET;
use serde_json::Value;

const IMAGE: &str = "registry.example.com/time:1";

/// Reason of condition `Ready` of the server.
fn reason(world: &World) -> String {
    let server = world.api.get("MCPServer", "team", "time").unwrap();
    let conditions = server["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap_or(Value::Null);
    ready["reason"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_crashes_or_has_no_image_says_so_until_it_runs() {
    let world = World::new();
    let _operator = world.operator("one");
    world.apply(&server("time", &image(IMAGE)));
    for (fate, told) in [
        (Fate::CrashLoop, "CrashLoop"),
        (Fate::Ready, "Ready"),
        (Fate::NoImage, "ImagePullFailed"),
        (Fate::Ready, "Ready"),
        (Fate::Starting, "Starting"),
        (Fate::Ready, "Ready"),
    ] {
        world.fate("time", fate);
        world.settle(LONG_QUIET).await;
        assert_eq!(reason(&world), told, "{fate:?}");
        truth(&world, told);
    }
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_busy_is_asked_again() {
    let world = World::new();
    world.registry.fail(IMAGE, 3);
    let _operator = world.operator("one");
    world.apply(&server("time", &image(IMAGE)));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(reason(&world), "ImageUnresolved");
    world.settle(LONG_QUIET).await;
    assert_eq!(reason(&world), "Ready");
    truth(&world, "asked again");
}
