//! How the bridge finds out what a server speaks, and what it says of it.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use harness::{Bridge, TOKEN, is_ready, launch};
use http::StatusCode;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::launch::{EraChoice, LaunchSpec};
use mcp_hub_dataplane_api::status::Phase;

#[tokio::test]
async fn each_kind_of_server_is_met_in_the_newest_era_that_it_speaks() {
    for (args, era) in [
        (&["stdio", "--era", "modern"][..], Era::Modern),
        (&["stdio", "--era", "both"], Era::Modern),
        // Answers server/discover with -32601.
        (&["stdio", "--era", "legacy"], Era::Legacy),
        (&["stdio", "--era", "legacy", "--exit-on-discover"], Era::Legacy),
        (&["stdio", "--era", "legacy", "--silent-on-discover"], Era::Legacy),
        (&["stdio", "--era", "both", "--garbage"], Era::Modern),
        (&["stdio", "--era", "legacy", "--garbage"], Era::Legacy),
        (&["stdio", "--slow-start", "300"], Era::Modern),
    ] {
        let bridge = Bridge::start(launch(args)).await;
        let status = bridge.until(is_ready).await;
        let handshake = status.handshake.unwrap();
        assert_eq!(handshake.era, era, "{args:?}");
        assert_eq!(handshake.server_name, "fixture-server");
        assert!(handshake.tools.unwrap().count > 30);
        // A fallback is no restart.
        assert_eq!((status.restarts, status.last_error), (0, None), "{args:?}");
        let answer = match era {
            Era::Legacy => bridge.session("test").await.text("echo", serde_json::json!({"text": "hi"})).await,
            Era::Modern => harness::text_of(
                &bridge.modern("tools/call", serde_json::json!({"name": "echo", "arguments": {"text": "hi"}})).await,
            ),
        };
        assert_eq!(answer, "hi", "{args:?}");
    }
}

#[tokio::test]
async fn an_era_that_was_asked_for_is_not_left() {
    let mut spec = launch(&["stdio", "--era", "both"]);
    spec.era = EraChoice::Legacy;
    let bridge = Bridge::start(spec).await;
    assert_eq!(bridge.until(is_ready).await.handshake.unwrap().era, Era::Legacy);

    let mut spec = launch(&["stdio", "--era", "legacy"]);
    spec.era = EraChoice::Modern;
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 0).await;
    assert!(status.last_error.unwrap().contains("server/discover"));
    assert_eq!(status.handshake, None);
}

/// The same server, which says on stderr that it starts.
fn announced(mut spec: LaunchSpec) -> LaunchSpec {
    let script = "echo starting >&2; exec \"$0\" \"$@\"".to_owned();
    let program = std::mem::replace(&mut spec.child.program, "/bin/sh".to_owned());
    spec.child.args.splice(0..0, ["-c".to_owned(), script, program]);
    spec
}

fn starts(bridge: &Bridge) -> usize {
    bridge.log().lines().filter(|line| line.ends_with("starting")).count()
}

#[tokio::test]
async fn a_verdict_is_remembered_and_given_up_when_it_no_longer_holds() {
    let mut spec = announced(launch(&["stdio", "--era", "legacy", "--silent-on-discover"]));
    let mut bridge = Bridge::ready(spec.clone()).await;
    assert_eq!(starts(&bridge), 2, "asked, silent for five seconds, and started anew");
    assert!(bridge.stop().await.success());
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(bridge.folder.path().join("era"), folder.path().join("era")).unwrap();
    // The five seconds of the first time are not spent again.
    let mut bridge = Bridge::start_in(folder, spec.clone()).await;
    bridge.until(is_ready).await;
    assert_eq!(starts(&bridge), 1);
    assert!(bridge.stop().await.success());

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(bridge.folder.path().join("era"), folder.path().join("era")).unwrap();
    spec.child = launch(&["stdio", "--era", "modern"]).child;
    let bridge = Bridge::start_in(folder, spec).await;
    let status = bridge.until(is_ready).await;
    assert_eq!((status.handshake.unwrap().era, status.restarts), (Era::Modern, 0));
}

#[tokio::test]
async fn a_server_that_never_answers_is_never_ready() {
    let mut spec = launch(&["stdio", "--silent"]);
    spec.era = EraChoice::Legacy;
    spec.timeouts.start_ms = 300;
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 1).await;
    assert!(status.last_error.unwrap().contains("did not answer initialize"));
    assert_eq!((status.handshake, bridge.get("/readyz", None).await.0), (None, StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn ready_comes_with_the_handshake_and_the_status_needs_the_token() {
    let bridge = Bridge::start(launch(&["stdio", "--slow-start", "1000"])).await;
    assert_eq!(bridge.status().await.phase, Phase::Starting);
    assert_eq!(bridge.get("/readyz", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bridge.get("/healthz", None).await.0, StatusCode::OK);
    bridge.until(is_ready).await;
    assert_eq!(bridge.get("/readyz", None).await.0, StatusCode::OK);
    for token in [None, Some("another token"), Some("")] {
        assert_eq!(bridge.get("/status", token).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(bridge.get("/mcp", token).await.0, StatusCode::UNAUTHORIZED);
    }
    let (status, body) = bridge.get("/status", Some(TOKEN)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"fixture-server\""));
    assert!(!body.contains(TOKEN));
    assert_eq!(bridge.get("/elsewhere", Some(TOKEN)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_no_message_goes_to_the_log() {
    let bridge = Bridge::ready(launch(&["stdio", "--garbage"])).await;
    bridge.until_logged("loading model... 42%").await;
}

#[tokio::test]
async fn a_changed_list_is_noticed_in_either_era() {
    for era in ["legacy", "modern"] {
        let bridge = Bridge::ready(launch(&["stdio", "--era", era, "--changing-tools", "300"])).await;
        let first = bridge.status().await.handshake.unwrap().tools.unwrap();
        let changed = bridge.until(|status| status.handshake.as_ref().unwrap().tools.as_ref() != Some(&first)).await;
        let changed = changed.handshake.unwrap().tools.unwrap();
        assert_eq!(changed.count.abs_diff(first.count), 1, "{era}");
        assert_ne!(changed.digest, first.digest);
    }
}
