//! Passes over servers, as stories.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use mcp_hub_dataplane_api::status::{Notice, Phase};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::fake::{Bridges, Preparing, ready};
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::plan::render;
use mcp_hub_reconcile::workload::{RESTARTED_AT_ANNOTATION, STOPPED_ANNOTATION};
use scenario::{Scenario, command, server, with};
use serde_json::json;

#[tokio::test]
async fn a_new_server_is_resolved_and_then_run() {
    let s = Scenario::new();
    s.runtime.set_preparing(Preparing::ByHand);
    s.store.apply_server(command("github", &["stdio"]));
    assert_eq!(s.settle().await, ["prepare source github", "status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Preparing (generation 1)
    + Accepted Accepted: every field is honoured
    - Resolved Preparing: fetching github
    - Available Pending: nothing of the server runs
    - Ready Preparing: fetching github
    + RuntimeSupported Supported: the runtime honours the spec in full
    ");

    s.runtime.finish_prepare("github", "1.0.0");
    assert_eq!(s.settle().await, ["make bridge github", "status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Ready (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    ");
}

#[tokio::test]
async fn what_is_resolved_at_once_runs_in_the_same_pass() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    assert_eq!(s.round().await, ["prepare source github", "make bridge github", "status of github"]);
}

#[tokio::test]
async fn a_changed_server_is_replaced_and_keeps_what_was_resolved() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &["v1"]));
    s.settle().await;
    s.store.apply_server(command("github", &["v2"]));
    assert_eq!(s.settle().await, ["remove bridge github", "make bridge github", "status of github"]);
}

#[tokio::test]
async fn a_changed_source_is_prepared_while_the_old_server_runs() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let before = s.runtime.inventory();
    s.runtime.set_preparing(Preparing::ByHand);
    s.store.apply_server(server("github", json!({"source": {"command": {"path": "./other"}}})));
    s.settle().await;
    assert_eq!(s.runtime.inventory(), before);
    insta::assert_snapshot!(s.status("github"), @r"
    Ready (generation 2)
    + Accepted Accepted: every field is honoured
    - Resolved Preparing: fetching github
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    server: fake-server 1.2.3
    tools: 3
    ");

    s.runtime.finish_prepare("github", "2.0.0");
    assert_eq!(s.settle().await, ["remove bridge github", "make bridge github", "status of github"]);
}

#[tokio::test]
async fn a_deleted_server_is_removed_and_then_released() {
    let s = Scenario::new();
    s.store.apply_server(server(
        "github",
        json!({"source": {"command": {"path": "./run"}}, "permissions": {"network": {"egress": ["a:1"]}}}),
    ));
    s.settle().await;
    s.store.delete("github");
    assert_eq!(s.settle().await, ["remove bridge github", "remove network github", "release github"]);
    assert_eq!(s.runtime.inventory(), Vec::<String>::new());
    assert!(s.store.find_server("github").is_none());
}

#[tokio::test]
async fn a_namesake_of_a_deleted_server_gets_no_status_of_it() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let old = s.store.find_server("github").unwrap();
    s.store.delete("github");
    s.settle().await;
    s.store.apply_server(command("github", &["new"]));
    let error = pass::server(&with((*old).clone(), |old| old.status = None), &s.ports()).await.unwrap_err();
    assert_eq!(error.reason(), "Conflict");
    assert!(s.store.find_server("github").unwrap().status.is_none());
}

#[tokio::test]
async fn a_field_that_is_not_built_yet_is_refused_by_name() {
    let s = Scenario::new();
    s.store.apply_server(server(
        "github",
        json!({"source": {"command": {"path": "./run"}}, "tools": {"lock": {"onChange": "Block"}}}),
    ));
    assert_eq!(s.settle().await, ["status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Failed (generation 1)
    - Accepted NotImplemented: not implemented yet: spec.tools.lock
    - Resolved Pending: the source was not looked at yet
    - Available Pending: nothing of the server runs
    - Ready NotImplemented: not implemented yet: spec.tools.lock
    + RuntimeSupported Supported: the runtime honours the spec in full
    ");
}

#[tokio::test]
async fn a_field_that_the_runtime_cannot_honour_is_refused_by_name() {
    let s = Scenario::new();
    s.store.apply_server(server("github", json!({"source": {"command": {"path": "./run"}}, "runtime": "swarm"})));
    assert_eq!(s.settle().await, ["status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Failed (generation 1)
    - Accepted Unsupported: fake cannot honour spec.runtime: there is no swarm (hint: leave it out)
    - Resolved Pending: the source was not looked at yet
    - Available Unsupported: fake cannot honour spec.runtime: there is no swarm (hint: leave it out)
    - Ready Unsupported: fake cannot honour spec.runtime: there is no swarm (hint: leave it out)
    - RuntimeSupported Unsupported: fake cannot honour spec.runtime: there is no swarm (hint: leave it out)
    last error: fake cannot honour spec.runtime: there is no swarm
    ");
}

#[tokio::test]
async fn a_refused_change_leaves_the_running_server_ready() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let running = s.runtime.inventory();
    let spec = |more: serde_json::Value| {
        let mut spec = json!({"source": {"command": {"path": "./run"}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server("github", spec)
    };
    s.store.apply_server(spec(json!({"runtime": "swarm"})));
    s.settle().await;
    insta::assert_snapshot!(s.status("github"), @r"
    Ready (generation 2)
    - Accepted Unsupported: fake cannot honour spec.runtime: there is no swarm (hint: leave it out)
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    - RuntimeSupported Unsupported: fake cannot honour spec.runtime: there is no swarm (hint: leave it out)
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    last error: fake cannot honour spec.runtime: there is no swarm
    ");
    s.store.apply_server(spec(json!({"tools": {"lock": {"onChange": "Warn"}}})));
    s.settle().await;
    insta::assert_snapshot!(s.status("github"), @r"
    Ready (generation 3)
    - Accepted NotImplemented: not implemented yet: spec.tools.lock
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    ");
    assert_eq!(s.runtime.inventory(), running);

    // The version that was found is not forgotten over it: nothing is prepared again.
    s.store.apply_server(command("github", &[]));
    assert_eq!(s.settle().await, ["status of github"]);
}

#[tokio::test]
async fn a_degraded_field_is_named_and_the_server_runs() {
    let s = Scenario::new();
    s.store.apply_server(server(
        "github",
        json!({"source": {"command": {"path": "./run"}}, "kubernetes": {"podTemplate": {"spec": {}}}}),
    ));
    s.settle().await;
    insta::assert_snapshot!(s.status("github"), @r"
    Ready (generation 1)
    + Accepted Accepted: every field is honoured, some only in part
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    - RuntimeSupported Degraded: spec.kubernetes.podTemplate: applies in clusters only
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    ");
}

#[tokio::test]
async fn a_paused_or_stopped_or_scaled_down_server_is_removed_and_comes_back() {
    let stops: [fn(&mut mcp_hub_crds::MCPServer); 3] = [
        |server| server.spec.paused = Some(true),
        |server| server.metadata.annotations = Some([(STOPPED_ANNOTATION.to_owned(), String::new())].into()),
        |server| server.spec.replicas = Some(0),
    ];
    for stop in stops {
        let s = Scenario::new();
        s.store.apply_server(command("github", &[]));
        s.settle().await;
        s.store.apply_server(with(command("github", &[]), stop));
        assert_eq!(s.settle().await, ["remove bridge github", "status of github"]);
        assert_eq!(s.ready("github"), "False Paused");
        s.store.apply_server(command("github", &[]));
        assert_eq!(s.settle().await, ["make bridge github", "status of github"]);
    }
}

#[tokio::test]
async fn a_server_that_was_never_to_run_is_not_called_resolved() {
    let s = Scenario::new();
    s.store.apply_server(with(command("github", &[]), |server| server.spec.paused = Some(true)));
    assert_eq!(s.settle().await, ["status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Paused (generation 1)
    + Accepted Accepted: every field is honoured
    - Resolved Pending: the source was not looked at yet
    - Available Pending: nothing of the server runs
    - Ready Paused: stopped on request
    + RuntimeSupported Supported: the runtime honours the spec in full
    ");
}

#[tokio::test]
async fn a_server_stops_on_request_whatever_else_is_wrong_with_it() {
    let secret = json!({
        "source": {"command": {"path": "./run"}},
        "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
    });
    let wrongs: [(&str, serde_json::Value); 3] = [
        ("secret missing", secret),
        ("unsupported", json!({"source": {"command": {"path": "./run"}}, "runtime": "swarm"})),
        (
            "not implemented",
            json!({"source": {"command": {"path": "./run"}}, "tools": {"lock": {"onChange": "Block"}}}),
        ),
    ];
    for (wrong, spec) in wrongs {
        let s = Scenario::new();
        s.store.apply_server(command("github", &[]));
        s.settle().await;
        s.store.apply_server(with(server("github", spec), |server| server.spec.paused = Some(true)));
        s.settle().await;
        assert_eq!(s.runtime.inventory(), Vec::<String>::new(), "{wrong}");
    }
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    s.store.break_secrets(Some("locked"));
    let spec = json!({
        "source": {"command": {"path": "./run"}}, "paused": true,
        "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
    });
    s.store.apply_server(server("github", spec));
    s.settle().await;
    assert_eq!(s.runtime.inventory(), Vec::<String>::new());
}

#[tokio::test]
async fn a_requested_restart_replaces_the_server_once() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let restarted = with(command("github", &[]), |server| {
        server.metadata.annotations =
            Some([(RESTARTED_AT_ANNOTATION.to_owned(), "2026-08-01T00:00:00Z".to_owned())].into());
    });
    s.store.apply_server(restarted.clone());
    let writes = s.settle().await;
    assert_eq!(writes, ["remove bridge github", "make bridge github", "status of github"]);
    // By which whoever asked knows that it has been done.
    let status = s.store.find_server("github").and_then(|server| server.status.clone()).unwrap();
    assert_eq!(status.restarted_at.as_deref(), Some("2026-08-01T00:00:00Z"));
    s.store.apply_server(restarted);
    assert_eq!(s.settle().await, Vec::<String>::new());
}

#[tokio::test]
async fn drift_and_loss_are_mended() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let running = s.runtime.inventory();
    s.runtime.drift("github");
    assert_eq!(s.settle().await, ["remove bridge github", "make bridge github"]);
    s.runtime.lose("github");
    assert_eq!(s.settle().await, ["make bridge github"]);
    assert_eq!(s.runtime.inventory(), running);
}

#[tokio::test]
async fn a_failed_preparation_explains_itself_and_is_tried_again_when_its_time_comes() {
    let s = Scenario::new();
    s.runtime.set_preparing(Preparing::ByHand);
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let failure = Failure {
        reason: "CommandNotFound",
        message: "there is no program run".to_owned(),
        hint: Some("check the path".to_owned()),
        retry: Retry::Backoff,
    };
    s.runtime.fail_prepare("github", failure);
    assert_eq!(s.settle().await, ["status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Failed (generation 1)
    + Accepted Accepted: every field is honoured
    - Resolved CommandNotFound: there is no program run (hint: check the path)
    - Available Pending: nothing of the server runs
    - Ready CommandNotFound: there is no program run (hint: check the path)
    + RuntimeSupported Supported: the runtime honours the spec in full
    ");

    s.runtime.set_preparing(Preparing::AtOnce);
    assert_eq!(s.settle().await, Vec::<String>::new());
    s.runtime.let_prepare_retry("github");
    assert_eq!(s.settle().await, ["prepare source github", "make bridge github", "status of github"]);
    assert_eq!(s.ready("github"), "True Ready");
}

#[tokio::test]
async fn a_server_goes_through_its_life_and_each_transition_is_told_once() {
    let s = Scenario::new();
    s.runtime.set_preparing(Preparing::ByHand);
    s.runtime.set_bridges(Bridges::ByHand);
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let mut phases = vec![s.status("github")];
    s.runtime.finish_prepare("github", "1.0.0");
    s.settle().await;
    phases.push(s.status("github"));
    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::Ready;
        bridge.handshake = Some(ready());
        bridge.notices =
            vec![Notice { reason: "InteractiveFeaturesOff".to_owned(), message: "sessions are shared".to_owned() }];
    });
    s.settle().await;
    phases.push(s.status("github"));
    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::Backoff { retry_at: "2026-08-01T00:00:01Z".to_owned() };
        bridge.restarts = 1;
        bridge.last_error = Some("the server exited with code 1".to_owned());
        bridge.stderr_tail = vec!["Error: no token".to_owned()];
    });
    s.settle().await;
    phases.push(s.status("github"));
    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::CrashLoop { retry_at: "2026-08-01T00:05:00Z".to_owned() };
        bridge.restarts = 5;
    });
    s.settle().await;
    phases.push(s.status("github"));
    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::Ready;
        bridge.last_error = None;
    });
    s.settle().await;
    phases.push(s.status("github"));
    s.runtime.set_bridge("github", |bridge| bridge.phase = Phase::Asleep);
    s.settle().await;
    phases.push(s.status("github"));
    insta::assert_snapshot!(phases.join("---\n"), @r"
    Preparing (generation 1)
    + Accepted Accepted: every field is honoured
    - Resolved Preparing: fetching github
    - Available Pending: nothing of the server runs
    - Ready Preparing: fetching github
    + RuntimeSupported Supported: the runtime honours the spec in full
    ---
    Starting (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    - Ready Starting: the MCP handshake has not finished
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    ---
    Ready (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: InteractiveFeaturesOff: sessions are shared
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    ---
    Starting (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    - Ready Backoff: the server exited with code 1; last line of stderr: Error: no token
    + RuntimeSupported Supported: InteractiveFeaturesOff: sessions are shared
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    restarts: 1
    last error: the server exited with code 1; last line of stderr: Error: no token
    ---
    CrashLoop (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    - Ready CrashLoop: the server exited with code 1; last line of stderr: Error: no token
    + RuntimeSupported Supported: InteractiveFeaturesOff: sessions are shared
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    restarts: 5
    last error: the server exited with code 1; last line of stderr: Error: no token
    ---
    Ready (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: InteractiveFeaturesOff: sessions are shared
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    restarts: 5
    ---
    Asleep (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Running: the server's bridge answers
    + Ready Asleep: stopped while idle; the next call starts it
    + RuntimeSupported Supported: InteractiveFeaturesOff: sessions are shared
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    restarts: 5
    ");
    insta::assert_snapshot!(s.events(), @r"
      github Preparing: fetching github
      github Starting: the MCP handshake has not finished
      github Ready: the MCP handshake succeeded
    ! github NotReady: Backoff: the server exited with code 1; last line of stderr: Error: no token
    ! github NotReady: CrashLoop: the server exited with code 1; last line of stderr: Error: no token
      github Ready: the MCP handshake succeeded
      github Asleep: stopped while idle; the next call starts it
    ");
}

#[tokio::test]
async fn what_a_bridge_says_often_is_no_reason_to_write() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    s.runtime.set_bridge("github", |bridge| {
        bridge.activity.calls_in_flight = 7;
        bridge.activity.last_call_at = Some("2026-08-01T00:00:00Z".to_owned());
    });
    assert_eq!(s.settle().await, Vec::<String>::new());
}

#[tokio::test]
async fn transition_times_move_only_when_a_condition_flips() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    let times = || -> Vec<(String, String)> {
        let server = s.store.find_server("github").unwrap();
        let conditions = server.status.clone().unwrap().conditions.unwrap();
        conditions.into_iter().map(|c| (c.type_, c.last_transition_time.0.to_string())).collect()
    };
    let before = times();
    s.runtime.set_bridge("github", |bridge| bridge.phase = Phase::Starting);
    s.settle().await;
    let after = times();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.1 != after.1, before.0 == "Ready", "{before:?} {after:?}");
    }
}

#[tokio::test]
async fn a_runtime_that_does_not_answer_is_named_and_nothing_is_forgotten() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    s.runtime.blind_once();
    assert_eq!(s.round().await, ["status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Failed (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    - Available Blind: the runtime does not answer (hint: wait)
    - Ready Blind: the runtime does not answer (hint: wait)
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    last error: the runtime does not answer
    ");
    assert_eq!(s.settle().await, ["status of github"]);
    assert_eq!(s.ready("github"), "True Ready");
}

#[tokio::test]
async fn a_failure_of_the_runtime_is_shown_with_its_hint() {
    let s = Scenario::new();
    s.runtime.set_bridges(Bridges::ByHand);
    s.store.apply_server(command("github", &[]));
    s.runtime.set_failure(Some(Failure {
        reason: "BridgeMute",
        message: "the server's bridge does not answer".to_owned(),
        hint: Some("look at its log".to_owned()),
        retry: Retry::Backoff,
    }));
    s.settle().await;
    insta::assert_snapshot!(s.status("github"), @r"
    Failed (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    - Available BridgeMute: the server's bridge does not answer (hint: look at its log)
    - Ready BridgeMute: the server's bridge does not answer (hint: look at its log)
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    ");
}

#[tokio::test]
async fn a_dry_run_says_what_a_pass_would_do_and_does_nothing() {
    let s = Scenario::new();
    s.store.apply_server(command("github", &[]));
    s.settle().await;
    s.store.apply_server(command("github", &["changed"]));
    let server = s.store.find_server("github").unwrap();
    let count = s.writes.count();
    insta::assert_snapshot!(render(&pass::dry_run(&server, &s.ports()).await.unwrap()), @r"~ replace bridge github");
    s.store.delete("github");
    let server = s.store.find_server("github").unwrap();
    insta::assert_snapshot!(render(&pass::dry_run(&server, &s.ports()).await.unwrap()), @r"- remove bridge github");
    assert_eq!(s.writes.count(), count);
}
