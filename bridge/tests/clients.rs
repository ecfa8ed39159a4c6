//! `sessions: perClient`: a server process for each client.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use harness::{Bridge, Events, Session, is_ready, launch, lives, marked, text_of, until_gone};
use http::{Method, StatusCode};
use mcp_hub_dataplane_api::SessionMode;
use mcp_hub_dataplane_api::launch::{LaunchSpec, Lifecycle, Roots};
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_mcp::error;
use serde_json::{Value, json};

fn per_client(args: &[&str]) -> LaunchSpec {
    let mut spec = launch(args);
    spec.sessions.mode = SessionMode::PerClient;
    spec
}

async fn pid(session: &Session<'_>) -> u32 {
    session.text("pid", json!({})).await.parse().unwrap()
}

/// Answers what the server asks until its answer to the call comes.
async fn converse(session: &Session<'_>, tool: &str, arguments: Value, reply: Value) -> (Vec<String>, Value) {
    let call =
        json!({"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": {"name": tool, "arguments": arguments}});
    let response = session.post(&call).await;
    if !harness::is_stream(response.headers()) {
        return (Vec::new(), harness::last(response).await);
    }
    let mut events = Events::of(response);
    let mut asked = Vec::new();
    loop {
        let message = events.next().await.expect("the stream ended without an answer");
        match message["method"].as_str() {
            Some(method) if message.get("id").is_some() => {
                asked.push(method.to_owned());
                let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": reply});
                assert_eq!(session.post(&answer).await.status(), StatusCode::ACCEPTED);
            }
            Some(_) => {}
            None => return (asked, message),
        }
    }
}

#[tokio::test]
async fn each_client_has_a_process_of_its_own() {
    let bridge = Bridge::ready(per_client(&["stdio", "--era", "legacy"])).await;
    assert!(bridge.status().await.notices.is_empty());
    let (one, other) = (bridge.session("one").await, bridge.session("other").await);
    let (one_pid, other_pid) = (pid(&one).await, pid(&other).await);
    assert_ne!(one_pid, other_pid);
    assert_eq!(one.text("client", json!({})).await, "one");
    assert_eq!(other.text("client", json!({})).await, "other");
    for _ in 0..3 {
        one.text("count", json!({})).await;
    }
    assert_eq!(one.text("count", json!({})).await, "6");
    assert_eq!(other.text("count", json!({})).await, "3");
    // What a call without a session would reach belongs to nobody.
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pid", "arguments": {}}});
    assert_eq!(bridge.post(&call, &[]).await.status(), StatusCode::BAD_REQUEST);
    let status = bridge.status().await;
    assert_eq!(status.activity.sessions, 2);
    assert!(![one_pid, other_pid].contains(&status.activity.child_pid.unwrap()));
}

#[tokio::test]
async fn sampling_and_elicitation_reach_the_client_whose_call_it_is() {
    let bridge = Bridge::ready(per_client(&["stdio", "--era", "legacy"])).await;
    let capabilities = json!({"sampling": {}, "elicitation": {}});
    let one = bridge.session_with("one", capabilities.clone()).await;
    let other = bridge.session_with("other", capabilities).await;
    let reply = |name: &str| json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": format!("I am {name}")}});
    let ((asked_one, answer_one), (asked_other, answer_other)) = tokio::join!(
        converse(&one, "test_sampling", json!({"prompt": "who are you?"}), reply("one")),
        converse(&other, "test_sampling", json!({"prompt": "who are you?"}), reply("other")),
    );
    assert_eq!(
        (asked_one, asked_other),
        (vec!["sampling/createMessage".to_owned()], vec!["sampling/createMessage".to_owned()])
    );
    assert_eq!(text_of(&answer_one), "LLM response: I am one");
    assert_eq!(text_of(&answer_other), "LLM response: I am other");

    let accepted = json!({"action": "accept", "content": {"username": "ada", "email": "ada@example.com"}});
    let (asked, answer) = converse(&one, "test_elicitation", json!({"message": "?"}), accepted).await;
    assert_eq!(asked, ["elicitation/create"]);
    assert!(text_of(&answer).contains("action=accept"), "{answer}");
}

#[tokio::test]
async fn what_belongs_to_no_single_call_comes_on_the_sessions_stream() {
    let bridge = Bridge::ready(per_client(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session_with("test", json!({"sampling": {}})).await;
    let mut stream = session.stream().await;
    // Two calls under way: nobody knows which of them the server asks for.
    let sleep = session.call("sleep", json!({"ms": 2_000}));
    let ask = async {
        bridge.until(|status| status.activity.calls_in_flight == 1).await;
        session.call("test_sampling", json!({"prompt": "?"})).await
    };
    let reply = async {
        let asked = stream.until("sampling/createMessage").await;
        let result = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "by stream"}});
        session.post(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": result})).await;
        // An answer that nobody waits for goes nowhere.
        session.post(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": {}})).await;
    };
    let (slept, sampled, ()) = tokio::join!(sleep, ask, reply);
    assert_eq!((text_of(&slept), text_of(&sampled)), ("awake".to_owned(), "LLM response: by stream".to_owned()));
}

#[tokio::test]
async fn roots_are_given_only_where_they_are_forwarded() {
    let roots = json!({"roots": [{"uri": "file:///home/ada/project"}]});
    let capabilities = json!({"roots": {"listChanged": true}});
    let bridge = Bridge::ready(per_client(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session_with("test", capabilities.clone()).await;
    let (asked, answer) = converse(&session, "test_roots", json!({}), roots.clone()).await;
    assert_eq!((asked, answer["result"]["isError"].clone()), (Vec::new(), json!(true)), "{answer}");
    drop(session);

    let mut spec = per_client(&["stdio", "--era", "legacy"]);
    spec.roots = Roots::Forward;
    let bridge = Bridge::ready(spec).await;
    let session = bridge.session_with("test", capabilities).await;
    let (asked, answer) = converse(&session, "test_roots", json!({}), roots).await;
    assert_eq!(asked, ["roots/list"]);
    assert_eq!(text_of(&answer), "file:///home/ada/project");
}

#[tokio::test]
async fn a_killed_process_comes_back_in_its_own_session_and_the_others_go_on() {
    let bridge = Bridge::ready(per_client(&["stdio", "--era", "legacy"])).await;
    let (one, other) = (bridge.session("one").await, bridge.session("other").await);
    let (killed, unharmed) = (pid(&one).await, pid(&other).await);
    bridge.kill(killed);
    until_gone(killed).await;
    assert_ne!(pid(&one).await, killed);
    // Initialised with its own client's words again.
    assert_eq!(one.text("client", json!({})).await, "one");
    assert_eq!(pid(&other).await, unharmed);
    let status = bridge.status().await;
    assert_eq!((status.restarts, status.last_exit.unwrap().signal, status.phase), (1, Some(9), Phase::Ready));

    let crash = one.call("crash", json!({})).await;
    assert_eq!(crash["error"]["code"], error::SERVER_GONE);
    assert_eq!(one.text("echo", json!({"text": "back"})).await, "back");
}

#[tokio::test]
async fn the_session_unused_for_longest_makes_room_unless_all_are_busy() {
    let mut spec = per_client(&["stdio", "--era", "legacy"]);
    spec.sessions.max = 2;
    let bridge = Bridge::ready(spec).await;
    let (one, two) = (bridge.session("one").await, bridge.session("two").await);
    let (one_pid, two_pid) = (pid(&one).await, pid(&two).await);
    pid(&one).await;
    let three = bridge.session("three").await;
    until_gone(two_pid).await;
    assert_eq!(pid(&one).await, one_pid);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pid", "arguments": {}}});
    assert_eq!(two.post(&call).await.status(), StatusCode::NOT_FOUND);

    let busy = async { tokio::join!(one.call("sleep", json!({"ms": 1500})), three.call("sleep", json!({"ms": 1500}))) };
    let full = async {
        bridge.until(|status| status.activity.calls_in_flight == 2).await;
        bridge.try_session("four", json!({})).await.err().unwrap()
    };
    let ((one_slept, three_slept), full) = tokio::join!(busy, full);
    assert_eq!(full["error"]["code"], error::OVERLOADED, "{full}");
    assert_eq!((text_of(&one_slept), text_of(&three_slept)), ("awake".to_owned(), "awake".to_owned()));
    assert_eq!(bridge.status().await.activity.sessions, 2);
}

#[tokio::test]
async fn a_closed_sessions_whole_tree_ends_and_no_other() {
    let mut bridge = Bridge::ready(per_client(&["stdio", "--era", "legacy"])).await;
    let (one, other) = (bridge.session("one").await, bridge.session("other").await);
    let grandchild = |text: String| text.parse::<u32>().unwrap();
    let (of_one, of_other) = (
        grandchild(one.text("spawn_grandchild", json!({})).await),
        grandchild(other.text("spawn_grandchild", json!({})).await),
    );
    let one_pid = pid(&one).await;
    let other_pid = pid(&other).await;
    let delete = http::Request::delete("/mcp")
        .header("host", "bridge")
        .header("authorization", format!("Bearer {}", harness::TOKEN))
        .header("mcp-session-id", &one.id);
    let response = bridge.http(delete.body(http_body_util::Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    until_gone(one_pid).await;
    until_gone(of_one).await;
    assert!(lives(other_pid) && lives(of_other));
    drop((one, other));
    assert!(bridge.stop().await.success());
    assert_eq!(marked(&bridge.spec.owner.id), Vec::<u32>::new());
}

#[tokio::test]
async fn an_unused_process_sleeps_and_wakes_inside_its_session() {
    let mut spec = per_client(&["stdio", "--era", "legacy"]);
    spec.lifecycle = Lifecycle::OnDemand { idle_timeout_ms: 300 };
    let bridge = Bridge::ready(spec).await;
    let session = bridge.session("test").await;
    let first = pid(&session).await;
    until_gone(first).await;
    bridge.until(|status| status.phase == Phase::Asleep).await;
    assert_ne!(pid(&session).await, first);
    assert_eq!(bridge.status().await.restarts, 0);
}

#[tokio::test]
async fn a_changed_secret_reaches_each_clients_process() {
    let mut spec = per_client(&["stdio", "--era", "legacy"]);
    spec.child.secret_env = vec!["TOKEN".to_owned()];
    let bridge = Bridge::start(spec).await;
    bridge.control(Method::PUT, "/secrets", json!({"TOKEN": "t1"})).await;
    let template = bridge.child_pid().await;
    let session = bridge.session("test").await;
    let first = pid(&session).await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "t1");
    bridge.control(Method::PUT, "/secrets", json!({"TOKEN": "t2"})).await;
    bridge.until(|status| is_ready(status) && status.activity.child_pid != Some(template)).await;
    until_gone(first).await;
    assert_eq!(session.text("env", json!({"name": "TOKEN"})).await, "t2");
}

#[tokio::test]
async fn clients_of_a_modern_server_share_it_and_the_status_says_so() {
    let bridge = Bridge::ready(per_client(&["stdio", "--era", "modern"])).await;
    assert_eq!(bridge.status().await.notices[0].reason, "SharedProcess");
    let call = json!({"name": "pid", "arguments": {}});
    let (one, other) = (bridge.modern("tools/call", call.clone()).await, bridge.modern("tools/call", call).await);
    assert_eq!(text_of(&one), text_of(&other));
}
