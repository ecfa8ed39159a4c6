//! Two operators at once, as when a lost lease is noticed late: never a pod too many, no quarrel, the same end.

use std::time::Duration;

use mcp_hub_sim::World;
use mcp_hub_sim::canonical::{assert_same, end_state};
use mcp_hub_sim::oracle::{THREE_PASSES, calm, truth};
use mcp_hub_sim::specs::{NAMESPACE, hub, image, remote, server, with_secret};
use mcp_hub_sim::world::QUIET;
use serde_json::json;

fn install(world: &World) {
    world.secret("github", "token", "a-token-of-github");
    world.secret("docs", "token", "a-token-of-docs");
    for number in 0..5 {
        world.apply(&server(&format!("time-{number}"), &image("registry.example.com/time:1")));
    }
    world.apply(&server("github", &with_secret("registry.example.com/github:1")));
    world.apply(&server("docs", &remote()));
    world.apply(&hub("default", &json!({})));
}

fn change(world: &World) {
    for number in 0..5 {
        world.apply(&server(&format!("time-{number}"), &image("registry.example.com/time:2")));
    }
    world.api.delete("MCPServer", NAMESPACE, "github");
    world.apply(&hub("default", &json!({"gateway": {"replicas": 3}})));
}

#[tokio::test(start_paused = true)]
async fn two_operators_at_once_do_what_one_does() {
    let alone = World::new();
    let one = alone.operator("alone");
    install(&alone);
    alone.settle(QUIET).await;
    let (first, first_writes) = (end_state(&alone), alone.writes().len());
    change(&alone);
    alone.settle(QUIET).await;
    let (second, writes) = (end_state(&alone), alone.writes().len());
    drop(one);

    // Side by side, and the second a little late, so that its caches lag.
    for late in [0, 1, 50, 1000] {
        let of = format!("the second {late} ms late");
        let world = World::new();
        install(&world);
        let _one = world.operator("one");
        tokio::time::sleep(Duration::from_millis(late)).await;
        let _two = world.operator("two");
        world.settle(QUIET).await;
        assert_same(&end_state(&world), &first, &of);
        truth(&world, &of);
        assert!(
            world.writes().len() <= 3 * first_writes,
            "{of}: {} writes, alone {first_writes}",
            world.writes().len()
        );
        change(&world);
        world.settle(QUIET).await;
        assert_same(&end_state(&world), &second, &of);
        truth(&world, &of);
        assert!(world.writes().len() <= 3 * writes, "{of}: {} writes, alone {writes}", world.writes().len());
        calm(&world, THREE_PASSES, &of).await;
        world.assert_clean();
    }
}
