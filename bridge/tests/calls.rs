//! Calls of many clients through one server, with what belongs to them.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Bridge, Events, is_ready, join_all, last, launch, text_of};
use http::StatusCode;
use mcp_hub_mcp::error;
use serde_json::{Value, json};

fn echo(id: &Value, text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "echo", "arguments": {"text": text}}})
}

#[tokio::test]
async fn clients_with_equal_ids_each_get_their_own_answers() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    // Every id that JSON-RPC allows, and some that look alike.
    let ids = [
        json!(1),
        json!("1"),
        json!(0),
        json!(-7),
        json!("a \"quoted\" \u{2603}"),
        json!(""),
        json!(9007199254740991i64),
    ];
    let session = bridge.session("test").await;
    let calls = (0..140).map(|number| {
        let (id, session) = (ids[number % ids.len()].clone(), &session);
        async move {
            let text = format!("text {number}");
            let answer = last(session.post(&echo(&id, &text)).await).await;
            assert_eq!((answer["id"].clone(), text_of(&answer)), (id, text));
        }
    });
    join_all(calls.collect()).await;
    assert_eq!(bridge.until(|status| status.activity.calls_in_flight == 0).await.restarts, 0);
}

#[tokio::test]
async fn progress_reaches_the_caller_under_its_own_token() {
    for era in ["legacy", "modern"] {
        let bridge = Bridge::ready(launch(&["stdio", "--era", era])).await;
        let tokens = [json!("a token"), json!(7), json!(1)];
        let calls = tokens.iter().map(|token| {
            let bridge = &bridge;
            async move {
                let mut params =
                    json!({"name": "test_tool_with_progress", "arguments": {}, "_meta": {"progressToken": token}});
                if era == "modern" {
                    params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
                    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
                }
                let message = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params});
                let mut events = Events::of(bridge.post(&message, &[]).await);
                for progress in [0.0, 50.0, 100.0] {
                    let event = events.next().await.unwrap();
                    assert_eq!(event["method"], "notifications/progress");
                    assert_eq!(event["params"]["progressToken"], *token);
                    assert_eq!(event["params"]["progress"].as_f64(), Some(progress));
                }
                let answer = events.next().await.unwrap();
                assert_eq!((answer["id"].clone(), text_of(&answer)), (json!(5), "Progress test completed".to_owned()));
                assert!(events.next().await.is_none());
            }
        });
        join_all(calls.collect()).await;
    }
}

#[tokio::test]
async fn a_cancellation_reaches_the_call_it_means_and_no_other() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let (one, other) = (bridge.session("one").await, bridge.session("other").await);
    let sleep = |ms: u64| json!({"jsonrpc": "2.0", "id": "same", "method": "tools/call", "params": {"name": "sleep", "arguments": {"ms": ms}}});
    let cancelled = async {
        bridge.until(|status| status.activity.calls_in_flight == 2).await;
        one.notify("notifications/cancelled", json!({"requestId": "same"})).await;
        bridge.until_logged("a sleep was cancelled").await;
    };
    let wait = async { last(other.post(&sleep(1500)).await).await };
    // Nobody answers a call that was cancelled; the client does not wait for it either.
    let long = sleep(60_000);
    tokio::select! {
        _ = one.post(&long) => panic!("a cancelled call was answered"),
        ((), answer) = async { tokio::join!(cancelled, wait) } => assert_eq!(text_of(&answer), "awake"),
    }
    // One that is not known any more changes nothing.
    one.notify("notifications/cancelled", json!({"requestId": "same"})).await;
    assert_eq!(one.text("echo", json!({"text": "on"})).await, "on");
}

#[tokio::test]
async fn a_modern_client_that_goes_away_cancels_its_call() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "modern"])).await;
    tokio::select! {
        _ = bridge.modern("tools/call", json!({"name": "sleep", "arguments": {"ms": 60_000}})) => panic!("answered"),
        _ = bridge.until(|status| status.activity.calls_in_flight == 1) => {}
    }
    bridge.until_logged("a sleep was cancelled").await;
    bridge.until(|status| status.activity.calls_in_flight == 0).await;
}

#[tokio::test]
async fn a_legacy_client_that_goes_away_does_not_cancel_its_call() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    tokio::select! {
        _ = session.call("sleep", json!({"ms": 400})) => panic!("answered"),
        _ = bridge.until(|status| status.activity.calls_in_flight == 1) => {}
    }
    session.text("sleep", json!({"ms": 600})).await;
    assert!(!bridge.log().contains("cancelled"));
}

#[tokio::test]
async fn an_answer_of_twenty_megabytes_passes_and_one_over_the_limit_fails_for_that_call_alone() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let (big, huge, small) = tokio::join!(
        session.call("big", json!({"bytes": 20 << 20})),
        session.call("big", json!({"bytes": 40 << 20})),
        session.call("echo", json!({"text": "small"})),
    );
    assert_eq!(text_of(&big).len(), 20 << 20);
    assert_eq!(huge["error"]["code"], error::ANSWER_UNREADABLE, "{}", huge["error"]);
    assert!(huge["error"]["message"].as_str().unwrap().contains("over the limit"));
    assert_eq!(text_of(&small), "small");
    assert_eq!(session.text("echo", json!({"text": "after"})).await, "after");
    assert_eq!(bridge.status().await.restarts, 0);
}

#[tokio::test]
async fn a_request_of_twenty_megabytes_passes_and_one_over_the_limit_is_refused() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let text = "y".repeat(20 << 20);
    assert_eq!(session.text("echo", json!({"text": text})).await, text);
    let response = session.post(&echo(&json!(1), &"y".repeat(33 << 20))).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(last(response).await["error"]["code"], error::MESSAGE_TOO_LARGE);
    assert_eq!(session.text("echo", json!({"text": "after"})).await, "after");
}

#[tokio::test]
async fn large_answers_that_nobody_takes_do_not_fill_the_memory() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    // Answers of 160 MB in all, whose readers take their time.
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "big", "arguments": {"bytes": 8 << 20}}});
    let answers = (0..20).map(|_| async {
        let response = session.post(&message).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        text_of(&last(response).await).len()
    });
    let mut most = 0;
    let watch = async {
        loop {
            most = most.max(bridge.resident_kib());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = watch => {}
        lengths = join_all(answers.collect()) => assert_eq!(lengths, vec![8 << 20; 20]),
    }
    // 64 MiB in the buffers, one line being read, its copy, and what the sockets hold.
    assert!(most < 140 << 10, "{most} KiB");
}

#[tokio::test]
async fn a_server_that_reads_nothing_more_does_not_hold_its_clients_for_ever() {
    let mut spec = launch(&["stdio", "--era", "legacy", "--deaf-after-calls", "1"]);
    spec.timeouts.call_ms = 1_500;
    spec.health.period_ms = 200;
    spec.health.timeout_ms = 200;
    spec.health.failure_threshold = 1;
    let bridge = Bridge::ready(spec).await;
    let session = bridge.session("test").await;
    let first = session.text("pid", json!({})).await;
    let begun = Instant::now();
    // More than the pipe and the buffers take.
    let text = "z".repeat(8 << 20);
    let answers = join_all((0..10).map(|_| session.call("echo", json!({"text": text}))).collect()).await;
    for answer in &answers {
        match answer["error"]["code"].as_i64() {
            // Those that it never got are its successor's.
            None => assert_eq!(text_of(answer), text),
            Some(code) => assert!([error::CALL_TIMEOUT, error::OVERLOADED].contains(&code), "{answer}"),
        }
    }
    assert!(answers.iter().any(|answer| answer.get("error").is_some()));
    assert!(begun.elapsed() < Duration::from_secs(20));
    // It is found out, and its successor serves.
    bridge.until(|status| is_ready(status) && status.restarts > 0).await;
    loop {
        assert!(begun.elapsed() < harness::PATIENCE, "no successor answers");
        // Each successor is as deaf after its first call, which may have been one of those above.
        let answer = session.call("pid", json!({})).await;
        if answer.get("result").is_some() {
            assert_ne!(text_of(&answer), first);
            break;
        }
    }
}

#[tokio::test]
async fn a_crash_ends_the_calls_under_way_with_a_defined_error_each() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let sleeps = join_all((0..5).map(|_| session.call("sleep", json!({"ms": 60_000}))).collect());
    let crash = async {
        bridge.until(|status| status.activity.calls_in_flight == 5).await;
        session.call("crash", json!({})).await
    };
    let (sleeps, crash) = tokio::join!(sleeps, crash);
    for answer in sleeps.iter().chain([&crash]) {
        assert_eq!(answer["error"]["code"], error::SERVER_GONE, "{answer}");
    }
    assert_eq!(session.text("echo", json!({"text": "after"})).await, "after");
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_reason() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let unknown = bridge.post(&echo(&json!(1), "x"), &[("mcp-session-id", "unknown")]).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    for message in [json!([]), json!({"id": 1}), json!("text")] {
        let response = bridge.post(&message, &[]).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(last(response).await["error"]["code"], error::INVALID_REQUEST);
    }
    let session = bridge.session("test").await;
    let unknown = session.request("no/such/method", json!({})).await;
    assert_eq!(unknown["error"]["code"], error::METHOD_NOT_FOUND);
}

#[tokio::test]
async fn what_a_shared_server_asks_of_its_client_is_refused() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    assert_eq!(bridge.status().await.notices[0].reason, "InteractiveFeaturesOff");
    let session = bridge.session_with("test", json!({"sampling": {}, "elicitation": {}, "roots": {}})).await;
    for (tool, arguments) in [
        ("test_sampling", json!({"prompt": "?"})),
        ("test_elicitation", json!({"message": "?"})),
        ("test_roots", json!({})),
    ] {
        let answer = session.call(tool, arguments).await;
        assert_eq!(answer["result"]["isError"], true, "{answer}");
    }
}

#[tokio::test]
async fn a_stream_hears_of_changes_also_after_a_restart() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let mut stream = session.stream().await;
    session.text("test_trigger_tool_change", json!({})).await;
    stream.until("notifications/tools/list_changed").await;
    let child = bridge.child_pid().await;
    bridge.kill(child);
    bridge.until(|status| is_ready(status) && status.restarts == 1).await;
    let change = async {
        // The stream follows the server; until it has, a change is missed.
        loop {
            session.text("test_trigger_tool_change", json!({})).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = change => {}
        _ = stream.until("notifications/tools/list_changed") => {}
    }
}

#[tokio::test]
async fn a_modern_subscription_goes_on_over_a_restart_under_the_clients_id() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "modern"])).await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let message = json!({
        "jsonrpc": "2.0", "id": "mine", "method": "subscriptions/listen",
        "params": {"_meta": meta, "notifications": {"toolsListChanged": true}},
    });
    let mut stream = Events::of(bridge.post(&message, &[]).await);
    let first = stream.next().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(first["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "mine");
    // It is no call: nothing is in flight.
    assert_eq!(bridge.status().await.activity.calls_in_flight, 0);
    let child = bridge.child_pid().await;
    bridge.kill(child);
    bridge.until(|status| is_ready(status) && status.restarts == 1).await;
    let change = async {
        loop {
            bridge.modern("tools/call", json!({"name": "test_trigger_tool_change", "arguments": {}})).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = change => {}
        next = stream.next() => {
            let next = next.unwrap();
            assert_eq!(next["method"], "notifications/tools/list_changed");
            assert_eq!(next["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "mine");
        }
    }
}

#[tokio::test]
async fn a_modern_server_asks_by_its_answer() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "modern"])).await;
    assert!(bridge.status().await.notices.is_empty());
    let tool = json!({"name": "test_input_required_result_elicitation", "arguments": {}});
    let first = bridge.modern("tools/call", tool.clone()).await;
    assert_eq!(first["result"]["resultType"], "input_required");
    let mut again = tool;
    again["inputResponses"] = json!({"user_name": {"action": "accept", "content": {"name": "Ada"}}});
    assert_eq!(text_of(&bridge.modern("tools/call", again).await), "Hello, Ada!");
}
