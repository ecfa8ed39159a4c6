//! Starting, watching, stopping and starting again.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Bridge, is_ready, kill, launch, lives, marked, until_gone};
use http::{Method, StatusCode};
use mcp_hub_dataplane_api::launch::{Lifecycle, RestartPolicy};
use mcp_hub_dataplane_api::status::Phase;
use rustix::process::Signal;
use serde_json::{Value, json};

#[tokio::test]
async fn a_server_that_exits_at_once_backs_off_and_is_then_in_a_crash_loop() {
    let mut spec = launch(&["stdio", "--exit-code", "3"]);
    spec.restart.initial_ms = 300;
    spec.restart.max_ms = 60_000;
    let bridge = Bridge::start(spec).await;
    bridge.until(|status| matches!(status.phase, Phase::Backoff { .. })).await;
    let status = bridge.until(|status| matches!(status.phase, Phase::CrashLoop { .. })).await;
    assert_eq!(status.restarts, 5);
    assert_eq!(status.last_exit.unwrap().code, Some(3));
    assert!(status.last_error.unwrap().contains("exited with code 3"));
    assert_eq!(status.stderr_tail.last().map(String::as_str), Some("giving up"));
    assert_eq!(status.stderr_tail[status.stderr_tail.len() - 2], "the configuration is broken");
    // A call does not wait for it.
    let answer = bridge.try_session("test", json!({})).await.err().unwrap();
    assert_eq!(answer["error"]["code"], mcp_hub_mcp::error::SERVER_UNAVAILABLE);

    // A restart that is asked for starts at once, although the next try is seconds away.
    assert_eq!(bridge.control(Method::POST, "/restart", Value::Null).await, StatusCode::NO_CONTENT);
    bridge.until(|status| status.restarts > 5).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let mut spec = launch(&[]);
    spec.child.program = "/no/such/program".to_owned();
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 0 && !status.stderr_tail.is_empty()).await;
    assert!(status.stderr_tail.iter().any(|line| line.contains("/no/such/program")), "{status:#?}");

    let mut spec = launch(&["stdio"]);
    spec.child.working_dir = "/no/such/folder".to_owned();
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 0).await;
    assert!(status.last_error.unwrap().contains("/no/such/folder"));
}

#[tokio::test]
async fn a_restart_policy_is_kept() {
    for (policy, code, goes_on) in [
        (RestartPolicy::Always, "0", true),
        (RestartPolicy::OnFailure, "0", false),
        (RestartPolicy::OnFailure, "1", true),
        (RestartPolicy::Never, "1", false),
    ] {
        let mut spec = launch(&["stdio", "--exit-code", code, "--era", "legacy"]);
        spec.restart.policy = policy;
        spec.era = mcp_hub_dataplane_api::launch::EraChoice::Legacy;
        let bridge = Bridge::start(spec).await;
        if goes_on {
            bridge.until(|status| status.restarts > 1).await;
        } else {
            let status = bridge.until(|status| status.phase == Phase::Exited).await;
            assert_eq!(status.restarts, 0, "{policy:?} after {code}");
            assert_eq!(status.last_exit.unwrap().code, code.parse().ok());
        }
    }
}

#[tokio::test]
async fn a_killed_server_is_back_inside_the_same_session() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let mut took = Vec::new();
    for round in 1..=3 {
        let start = bridge.status().await.handshake.unwrap().duration_ms;
        let killed = bridge.child_pid().await;
        let begun = Instant::now();
        bridge.kill(killed);
        // What is written to a server in its last moment is lost with it, so the call comes when the bridge knows.
        bridge.until(|status| status.activity.child_pid != Some(killed)).await;
        // The same session, without a word to the client; a call waits for the server.
        let pid: u32 = session.text("pid", json!({})).await.parse().unwrap();
        took.push((begun.elapsed(), start));
        assert_ne!(pid, killed);
        let status = bridge.until(|status| is_ready(status) && status.restarts == round).await;
        assert_eq!(status.last_exit.unwrap().signal, Some(9));
        // Each restart after the first is held back by the policy's backoff, which is not what is measured.
        if round == 1 {
            let (took, start) = took[0];
            assert!(took < Duration::from_millis(start + 1000), "{took:?} for a start of {start} ms");
        }
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_call_ends_that_call_and_no_session() {
    let bridge = Bridge::ready(launch(&["stdio"])).await;
    let crash = bridge.modern("tools/call", json!({"name": "crash", "arguments": {}})).await;
    assert_eq!(crash["error"]["code"], mcp_hub_mcp::error::SERVER_GONE, "{crash}");
    assert_eq!(crash["id"], "m");
    let next = bridge.modern("tools/call", json!({"name": "echo", "arguments": {"text": "back"}})).await;
    assert_eq!(harness::text_of(&next), "back");
    let status = bridge.until(is_ready).await;
    assert_eq!((status.restarts, status.last_exit.unwrap().code), (1, Some(70)));
}

#[tokio::test]
async fn a_killed_bridge_takes_its_server_along_and_leaves_the_folder_to_the_next_one() {
    let mut bridge = Bridge::ready(launch(&["stdio"])).await;
    let child = bridge.child_pid().await;
    let record = bridge.record();
    assert_eq!((record.pid, record.digest.as_str()), (bridge.pid(), "digest"));
    kill(bridge.pid(), Signal::KILL);
    bridge.wait().await;
    until_gone(child).await;
    assert_eq!(marked(&bridge.spec.owner.id), Vec::<u32>::new());
    let folder = std::mem::replace(&mut bridge.folder, tempfile::tempdir().unwrap());
    let next = Bridge::start_in(folder, bridge.spec.clone()).await;
    next.until(is_ready).await;
    assert_eq!(next.record().pid, next.pid());
}

#[tokio::test]
async fn a_folder_has_one_bridge() {
    let bridge = Bridge::ready(launch(&["stdio"])).await;
    let second =
        std::process::Command::new(env!("CARGO_BIN_EXE_mcp-bridge")).arg(bridge.folder.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&second.stderr).contains("held by another bridge"));
    assert!(is_ready(&bridge.status().await));
}

#[tokio::test]
async fn a_stop_ends_the_whole_tree_and_so_does_a_signal() {
    for by_signal in [false, true] {
        let mut bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
        let session = bridge.session("test").await;
        let grandchild: u32 = session.text("spawn_grandchild", json!({})).await.parse().unwrap();
        assert!(lives(grandchild));
        let child = bridge.child_pid().await;
        let status = if by_signal {
            kill(bridge.pid(), Signal::TERM);
            bridge.wait().await
        } else {
            bridge.stop().await
        };
        assert!(status.success());
        assert!(!lives(child) && !lives(grandchild));
    }
}

#[tokio::test]
async fn a_restart_ends_what_the_server_left_behind_and_is_not_counted() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let grandchild: u32 = session.text("spawn_grandchild", json!({})).await.parse().unwrap();
    let first = bridge.child_pid().await;
    assert_eq!(bridge.control(Method::POST, "/restart", Value::Null).await, StatusCode::NO_CONTENT);
    let status = bridge.until(|status| is_ready(status) && status.activity.child_pid != Some(first)).await;
    assert_eq!(status.restarts, 0);
    assert!(!lives(grandchild) && !lives(first));
}

#[tokio::test]
async fn an_orphan_that_ends_is_collected() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let orphan: u32 = session.text("spawn_grandchild", json!({})).await.parse().unwrap();
    kill(orphan, Signal::KILL);
    let started = Instant::now();
    // Gone from the process table, not only dead.
    while std::path::Path::new(&format!("/proc/{orphan}")).exists() {
        assert!(started.elapsed() < harness::PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(is_ready(&bridge.status().await));
}

#[tokio::test]
async fn secrets_are_waited_for_and_a_changed_one_restarts_the_server() {
    let mut spec = launch(&["stdio", "--era", "legacy"]);
    spec.child.secret_env = vec!["TOKEN".to_owned(), "KEY".to_owned()];
    let bridge = Bridge::start(spec).await;
    let missing = vec!["TOKEN".to_owned(), "KEY".to_owned()];
    bridge.until(|status| status.phase == Phase::WaitingForSecrets { missing: missing.clone() }).await;
    bridge.control(Method::PUT, "/secrets", json!({"TOKEN": "t1"})).await;
    bridge.until(|status| status.phase == Phase::WaitingForSecrets { missing: vec!["KEY".to_owned()] }).await;
    let answer = bridge.try_session("test", json!({})).await.err().unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("secrets"));

    bridge.control(Method::PUT, "/secrets", json!({"TOKEN": "t1", "KEY": "k", "OTHER": "x"})).await;
    let first = bridge.child_pid().await;
    let session = bridge.session("test").await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "t1");
    // Only what was asked for is in the environment.
    assert_eq!(session.call("env", json!({"name": "OTHER"})).await["result"]["isError"], true);
    // The same again, and another value of what is not used, change nothing.
    bridge.control(Method::PUT, "/secrets", json!({"TOKEN": "t1", "KEY": "k", "OTHER": "y"})).await;
    assert_eq!(session.text("pid", json!({})).await, first.to_string());
    // A secret that went missing leaves the running server alone.
    bridge.control(Method::PUT, "/secrets", json!({"KEY": "k"})).await;
    assert_eq!(session.text("pid", json!({})).await, first.to_string());

    bridge.control(Method::PUT, "/secrets", json!({"TOKEN": "t2", "KEY": "k"})).await;
    bridge.until(|status| is_ready(status) && status.activity.child_pid != Some(first)).await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "t2");
    assert_eq!(bridge.status().await.restarts, 0);
    assert_eq!(bridge.control(Method::PUT, "/secrets", json!(["no object"])).await, StatusCode::BAD_REQUEST);
    let folder = std::fs::read_dir(bridge.folder.path()).unwrap().flatten();
    for file in folder.filter(|file| file.file_type().unwrap().is_file()) {
        let text = String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned();
        assert!(!text.contains("t2"), "{} holds the secret", file.path().display());
    }
}

#[tokio::test]
async fn an_unused_server_sleeps_lists_do_not_wake_it_and_a_call_does() {
    for era in ["legacy", "modern"] {
        let mut spec = launch(&["stdio", "--era", era]);
        spec.lifecycle = Lifecycle::OnDemand { idle_timeout_ms: 300 };
        let bridge = Bridge::start(spec).await;
        let handshake = bridge.until(is_ready).await;
        let first = handshake.activity.child_pid.unwrap();
        let status = bridge.until(|status| status.phase == Phase::Asleep).await;
        assert!(!lives(first));
        assert_eq!((status.activity.child_pid, status.restarts, status.handshake), (None, 0, handshake.handshake));
        assert_eq!(bridge.get("/readyz", None).await.0, StatusCode::OK);

        let (tools, pid) = if era == "legacy" {
            let session = bridge.session("test").await;
            let tools = session.request("tools/list", json!({})).await;
            assert_eq!(bridge.status().await.phase, Phase::Asleep);
            (tools, session.text("pid", json!({})).await)
        } else {
            let tools = bridge.modern("tools/list", json!({})).await;
            bridge.modern("server/discover", json!({})).await;
            assert_eq!(bridge.status().await.phase, Phase::Asleep);
            let pid = bridge.modern("tools/call", json!({"name": "pid", "arguments": {}})).await;
            (tools, harness::text_of(&pid))
        };
        assert!(tools["result"]["tools"].as_array().unwrap().len() > 30);
        assert_ne!(pid, first.to_string());
        bridge.until(|status| status.phase == Phase::Asleep).await;
        assert_eq!(bridge.status().await.restarts, 0);
    }
}

#[tokio::test]
async fn a_server_sleeps_between_calls_and_never_during_one() {
    let mut spec = launch(&["stdio", "--era", "legacy"]);
    spec.lifecycle = Lifecycle::OnDemand { idle_timeout_ms: 100 };
    let bridge = Bridge::ready(spec).await;
    let session = bridge.session("test").await;
    assert_eq!(session.text("sleep", json!({"ms": 1500})).await, "awake");
    bridge.until(|status| status.phase == Phase::Asleep).await;
}

#[tokio::test]
async fn a_server_that_stops_answering_is_restarted_but_not_while_a_call_may_still_be_answered() {
    let mut spec = launch(&["stdio", "--era", "legacy", "--hang-after-calls", "1"]);
    spec.health.period_ms = 100;
    spec.health.timeout_ms = 100;
    spec.health.failure_threshold = 2;
    spec.timeouts.call_ms = 2_000;
    let bridge = Bridge::ready(spec).await;
    let session = bridge.session("test").await;
    let first = session.text("pid", json!({})).await;
    let begun = Instant::now();
    let answer = session.call("pid", json!({})).await;
    assert_eq!(answer["error"]["code"], mcp_hub_mcp::error::CALL_TIMEOUT, "{answer}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let status = bridge.until(|status| is_ready(status) && status.restarts == 1).await;
    assert!(status.activity.child_pid.unwrap().to_string() != first);
    assert_ne!(session.text("pid", json!({})).await, first);
}

#[tokio::test]
async fn a_busy_server_that_answers_probes_goes_on() {
    let mut spec = launch(&["stdio", "--era", "legacy"]);
    spec.health.period_ms = 100;
    spec.health.timeout_ms = 2_000;
    let bridge = Bridge::ready(spec).await;
    let first = bridge.child_pid().await;
    let session = bridge.session("test").await;
    session.text("sleep", json!({"ms": 1000})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bridge.child_pid().await, first);
}

#[tokio::test]
async fn the_log_is_rotated_and_bounded() {
    let mut spec = launch(&["stdio", "--era", "legacy"]);
    spec.log.max_bytes = 2_000;
    spec.log.files = 2;
    let bridge = Bridge::ready(spec).await;
    let session = bridge.session("test").await;
    session.text("write", json!({"lines": 500})).await;
    bridge.until_logged("line 499 of what was asked for").await;
    let size = |name: &str| std::fs::metadata(bridge.folder.path().join(name)).map(|file| file.len());
    for name in ["server.log", "server.log.1", "server.log.2"] {
        assert!(size(name).unwrap() <= 2_000, "{name}");
    }
    assert!(size("server.log.3").is_err());
}

#[tokio::test]
async fn a_watcher_hears_of_each_change() {
    let bridge = Bridge::start(launch(&["stdio", "--slow-start", "300"])).await;
    let stream = tokio::net::UnixStream::connect(bridge.folder.path().join("control.sock")).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/events").header("host", "bridge");
    let response = sender.send_request(request.body(http_body_util::Full::<bytes::Bytes>::default()).unwrap()).await;
    let mut body = response.unwrap().into_body();
    let mut text = String::new();
    while !text.contains(r#""name":"ready""#) {
        let frame = tokio::time::timeout(harness::PATIENCE, http_body_util::BodyExt::frame(&mut body)).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&frame.unwrap().unwrap().into_data().unwrap()));
    }
    assert!(text.lines().next().unwrap().contains(r#""name":"starting""#), "{text}");
}
