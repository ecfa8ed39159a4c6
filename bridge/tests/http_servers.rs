//! Servers that speak HTTP themselves.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use harness::{Bridge, Events, is_ready, kill, launch, lives, text_of};
use http::StatusCode;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::launch::{ChildTransport, LaunchSpec, Lifecycle};
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_mcp::error;
use rustix::process::Signal;
use serde_json::json;

fn on_http(args: &[&str]) -> LaunchSpec {
    let port = mcp_hub_test_port::free_port().unwrap();
    let mut spec = launch(&[&["http", "--port", &port.to_string()], args].concat());
    spec.transport = ChildTransport::StreamableHttp { port, path: "/mcp".to_owned() };
    spec
}

fn on_sse(args: &[&str]) -> LaunchSpec {
    let port = mcp_hub_test_port::free_port().unwrap();
    let mut spec = launch(&[&["http", "--sse", "--port", &port.to_string()], args].concat());
    spec.transport = ChildTransport::Sse { port, path: "/sse".to_owned() };
    spec
}

#[tokio::test]
async fn a_server_on_http_is_met_in_its_era_and_its_own_sessions_pass_through() {
    for (era, met) in [("legacy", Era::Legacy), ("modern", Era::Modern), ("both", Era::Modern)] {
        let bridge = Bridge::ready(on_http(&["--era", era, "--slow-start", "200"])).await;
        let status = bridge.status().await;
        let handshake = status.handshake.unwrap();
        assert_eq!((handshake.era, handshake.server_name.as_str(), status.restarts), (met, "fixture-server", 0));
        assert!(handshake.tools.unwrap().count > 30);
        assert!(status.notices.is_empty());
        if met == Era::Modern {
            let answer = bridge.modern("tools/call", json!({"name": "echo", "arguments": {"text": "hi"}})).await;
            assert_eq!(text_of(&answer), "hi");
        }
        if era != "modern" {
            let (one, other) = (bridge.session("one").await, bridge.session("other").await);
            assert_ne!(one.id, other.id);
            assert_eq!(one.text("client", json!({})).await, "one");
            assert_eq!(other.text("client", json!({})).await, "other");
            let mut stream = one.stream().await;
            other.text("test_trigger_tool_change", json!({})).await;
            stream.until("notifications/tools/list_changed").await;
        }
    }
}

#[tokio::test]
async fn what_a_server_on_http_asks_passes_through() {
    let bridge = Bridge::ready(on_http(&["--era", "legacy"])).await;
    let session = bridge.session_with("test", json!({"sampling": {}})).await;
    let call = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "test_sampling", "arguments": {"prompt": "?"}}});
    let mut events = Events::of(session.post(&call).await);
    let asked = events.until("sampling/createMessage").await;
    let result = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "passed"}});
    session.post(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": result})).await;
    assert_eq!(text_of(&events.next().await.unwrap()), "LLM response: passed");
}

#[tokio::test]
async fn a_server_that_answers_200_to_everything_is_never_ready() {
    let mut spec = on_http(&["--not-mcp"]);
    spec.timeouts.start_ms = 1_000;
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 0).await;
    assert!(status.last_error.unwrap().contains("status 200 and no MCP message"));
    assert_eq!((status.handshake, bridge.get("/readyz", None).await.0), (None, StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn a_port_on_which_nothing_listens_is_named_and_so_is_one_in_use() {
    let mut spec = on_http(&[]);
    spec.transport =
        ChildTransport::StreamableHttp { port: mcp_hub_test_port::free_port().unwrap(), path: "/mcp".to_owned() };
    spec.timeouts.start_ms = 500;
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 0).await;
    assert!(status.last_error.unwrap().contains("nothing listened"));

    let spec = on_http(&[]);
    let ChildTransport::StreamableHttp { port, .. } = spec.transport else { panic!("not on HTTP") };
    let _held = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let bridge = Bridge::start(spec).await;
    let status = bridge.until(|status| status.restarts > 1).await;
    assert!(status.stderr_tail.iter().any(|line| line.contains("in use")), "{status:#?}");
    assert_eq!(status.handshake, None);
}

#[tokio::test]
async fn a_server_on_http_is_supervised_as_any_other() {
    let bridge = Bridge::ready(on_http(&["--era", "modern"])).await;
    let child = bridge.child_pid().await;
    let call = bridge.modern("tools/call", json!({"name": "sleep", "arguments": {"ms": 60_000}}));
    let killed = async {
        bridge.until(|status| status.activity.calls_in_flight == 1).await;
        kill(child, Signal::KILL);
    };
    let (answer, ()) = tokio::join!(call, killed);
    assert_eq!(answer["error"]["code"], error::SERVER_GONE, "{answer}");
    let status = bridge.until(|status| is_ready(status) && status.restarts == 1).await;
    assert_eq!(status.last_exit.unwrap().signal, Some(9));
    let answer = bridge.modern("tools/call", json!({"name": "pid", "arguments": {}})).await;
    assert_ne!(text_of(&answer), child.to_string());
}

#[tokio::test]
async fn a_call_that_takes_too_long_ends_with_a_timeout() {
    let mut spec = on_http(&["--era", "modern"]);
    spec.timeouts.call_ms = 500;
    let bridge = Bridge::ready(spec).await;
    let answer = bridge.modern("tools/call", json!({"name": "sleep", "arguments": {"ms": 60_000}})).await;
    assert_eq!(answer["error"]["code"], error::CALL_TIMEOUT, "{answer}");
    let answer = bridge.modern("tools/call", json!({"name": "echo", "arguments": {"text": "on"}})).await;
    assert_eq!(text_of(&answer), "on");
}

#[tokio::test]
async fn a_large_answer_passes_through() {
    let bridge = Bridge::ready(on_http(&["--era", "modern"])).await;
    let answer = bridge.modern("tools/call", json!({"name": "big", "arguments": {"bytes": 20 << 20}})).await;
    assert_eq!(text_of(&answer).len(), 20 << 20);
}

#[tokio::test]
async fn an_unused_server_on_http_sleeps_and_wakes() {
    let mut spec = on_http(&["--era", "modern"]);
    spec.lifecycle = Lifecycle::OnDemand { idle_timeout_ms: 300 };
    let bridge = Bridge::start(spec).await;
    let first = bridge.until(is_ready).await.activity.child_pid.unwrap();
    bridge.until(|status| status.phase == Phase::Asleep).await;
    assert!(!lives(first));
    let tools = bridge.modern("tools/list", json!({})).await;
    assert!(tools["result"]["tools"].as_array().unwrap().len() > 30);
    assert_eq!(bridge.status().await.phase, Phase::Asleep);
    let answer = bridge.modern("tools/call", json!({"name": "echo", "arguments": {"text": "awake"}})).await;
    assert_eq!(text_of(&answer), "awake");
}

#[tokio::test]
async fn a_server_on_http_and_sse_is_turned_into_streamable_http() {
    let bridge = Bridge::ready(on_sse(&["--era", "legacy", "--slow-start", "200"])).await;
    let status = bridge.status().await;
    assert_eq!((status.handshake.unwrap().era, status.restarts), (Era::Legacy, 0));
    assert_eq!(status.notices[0].reason, "InteractiveFeaturesOff");
    let session = bridge.session("test").await;
    assert_eq!(session.text("echo", json!({"text": "over SSE"})).await, "over SSE");
    let mut stream = session.stream().await;
    session.text("test_trigger_tool_change", json!({})).await;
    stream.until("notifications/tools/list_changed").await;
    let child = bridge.child_pid().await;
    kill(child, Signal::KILL);
    bridge.until(|status| is_ready(status) && status.restarts == 1).await;
    assert_ne!(session.text("pid", json!({})).await, child.to_string());
}
