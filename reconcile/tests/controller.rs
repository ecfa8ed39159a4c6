//! The queue over the fakes: which events bring which object a pass.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::sync::Arc;
use std::time::Duration;

use mcp_hub_dataplane_api::gateway::UpstreamStatus;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_reconcile::controller::{run, sweep};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::fake::{Bridges, Preparing, ready};
use mcp_hub_reconcile::observed::Failure;
use scenario::{Scenario, command, hub, server};
use serde_json::json;

/// Waits for a state; the bound is only reached by a bug.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "never: {what}");
}

fn is_ready(s: &Scenario, name: &str) -> bool {
    s.store.find_server(name).is_some_and(|server| mcp_hub_reconcile::status::is_ready(&server))
}

/// Runs the controller over the scenario while `story` is told, then shuts it down.
async fn during(s: &Scenario, story: impl Future<Output = ()>) {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let controller = tokio::spawn(run(s.ports(), Arc::default(), async move {
        stopped.await.ok();
    }));
    story.await;
    stop.send(()).expect("the controller runs");
    tokio::time::timeout(Duration::from_secs(20), controller).await.expect("the controller ends").unwrap();
}

#[tokio::test]
async fn objects_that_exist_at_the_start_and_later_ones_get_passes() {
    let s = Scenario::new();
    s.store.apply_server(command("early", &[]));
    s.store.apply_hub(hub("default", json!({})));
    during(&s, async {
        until("the early server is ready", || is_ready(&s, "early")).await;
        s.store.apply_server(command("late", &[]));
        until("the late server is ready", || is_ready(&s, "late")).await;
        until("the hub offers both", || s.sink.config("default").is_some_and(|config| config.upstreams.len() == 2))
            .await;
        s.store.delete("early");
        until("the early server is gone", || s.store.find_server("early").is_none()).await;
        until("the hub offers one", || s.sink.config("default").is_some_and(|config| config.upstreams.len() == 1))
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn within_a_sinks_pace_all_changes_are_one_and_a_first_change_does_not_wait() {
    let pace = Duration::from_secs(10);
    let s = Scenario::new();
    s.sink.set_pace(pace);
    s.store.apply_hub(hub("default", json!({})));
    let applied = || s.writes.all().iter().filter(|write| *write == "sink: apply default").count();
    let offered = || s.sink.config("default").map_or(0, |config| config.upstreams.len());
    during(&s, async {
        until("the hub is served", || applied() == 1).await;
        // The applied configuration is itself news, which bring another pass.
        tokio::time::sleep(3 * pace).await;
        let begun = tokio::time::Instant::now();
        s.store.apply_server(command("first", &[]));
        until("the first server is offered", || offered() == 1).await;
        assert!(begun.elapsed() < pace);
        for number in 0..20 {
            s.store.apply_server(command(&format!("s{number}"), &[]));
            tokio::time::sleep(pace / 40).await;
        }
        until("all are offered", || offered() == 21).await;
        assert_eq!(applied(), 3, "{:#?}", s.writes.all());
    })
    .await;
}

#[tokio::test]
async fn news_of_the_runtime_reach_the_status_and_the_hub() {
    let s = Scenario::new();
    s.runtime.set_preparing(Preparing::ByHand);
    s.runtime.set_bridges(Bridges::ByHand);
    s.store.apply_server(command("github", &[]));
    s.store.apply_hub(hub("default", json!({})));
    during(&s, async {
        let phase = |wanted: &str| {
            let server = s.store.find_server("github").unwrap();
            server.status.as_ref().and_then(|status| status.phase).is_some_and(|phase| phase.as_str() == wanted)
        };
        until("preparing", || phase("Preparing")).await;
        s.runtime.finish_prepare("github", "1.0.0");
        until("starting", || phase("Starting")).await;
        s.runtime.set_bridge("github", |bridge| {
            bridge.phase = Phase::Ready;
            bridge.handshake = Some(ready());
        });
        until("ready", || phase("Ready")).await;
        until("the hub counts it", || s.hub_status("default").starts_with("1/1 servers")).await;
    })
    .await;
}

#[tokio::test]
async fn a_failed_preparation_is_not_tried_in_a_hot_loop() {
    let s = Scenario::new();
    s.runtime.set_preparing(Preparing::ByHand);
    s.store.apply_server(command("github", &[]));
    during(&s, async {
        until("it is prepared", || s.writes.all().contains(&"prepare source github".to_owned())).await;
        s.runtime.fail_prepare(
            "github",
            Failure { reason: "Gone", message: "gone".to_owned(), hint: None, retry: Retry::Backoff },
        );
        until("the failure shows", || s.ready("github") == "False Gone").await;
        s.runtime.let_prepare_retry("github");
        let tries = || s.writes.all().iter().filter(|write| *write == "prepare source github").count();
        until("it is tried again", || tries() == 2).await;
        s.runtime.finish_prepare("github", "1.0.0");
        until("it runs", || is_ready(&s, "github")).await;
        assert_eq!(tries(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_secret_that_comes_wakes_its_users() {
    let s = Scenario::new();
    s.store.apply_server(server(
        "github",
        json!({
            "source": {"command": {"path": "./run"}},
            "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
        }),
    ));
    during(&s, async {
        until("it waits", || s.store.find_server("github").unwrap().status.is_some()).await;
        assert_eq!(s.ready("github"), "False SecretMissing");
        s.store.set_secret("github", "token", Some("1"));
        until("it runs", || is_ready(&s, "github")).await;
    })
    .await;
}

#[tokio::test]
async fn what_gateways_find_of_a_remote_server_reaches_its_status() {
    let s = Scenario::new();
    s.store.apply_server(server("docs", json!({"source": {"remote": {"url": "https://docs.example.com/mcp"}}})));
    during(&s, async {
        until("it has a status", || s.store.find_server("docs").unwrap().status.is_some()).await;
        s.sink.set_upstream(&s.uid("docs"), UpstreamStatus::Ready { handshake: ready() });
        until("it is ready", || is_ready(&s, "docs")).await;
    })
    .await;
}

#[tokio::test]
async fn a_sweep_removes_orphans_and_nothing_else() {
    let s = Scenario::new();
    s.store.apply_server(command("kept", &[]));
    s.store.apply_server(command("orphan", &[]));
    s.settle().await;
    s.runtime.plant_foreign("orphan");
    // The store is restored from a backup that does not know the orphan.
    let mut restored = Scenario::new();
    restored.store.apply_server(command("kept", &[]));
    restored.runtime = s.runtime.restarted();
    sweep(&restored.ports()).await.unwrap();
    let left = restored.runtime.inventory();
    assert!(left.iter().any(|line| line.starts_with("bridge kept")), "{left:#?}");
    assert!(!left.iter().any(|line| line.contains("default/orphan")), "{left:#?}");
    assert_eq!(restored.runtime.foreign(), 2);
}
