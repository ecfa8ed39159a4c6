//! Remote servers that speak HTTP+SSE of 2024-11-05 only, for clients of either era.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use http::Method;
use mcp_hub_dataplane_api::gateway::{Transport, UpstreamStatus};
use mcp_hub_dataplane_api::{Era, SessionMode};
use serde_json::{Value, json};
use support::{
    Beginning, Client, Fake, Fault, HttpSse, Hub, MOMENT, Manner, Reader, config, read, ready, tool, wait_for,
};

const ENDPOINTS: [(&str, &str); 2] = [("/mcp", "old_echo"), ("/servers/old/mcp", "echo")];
const ERAS: [Era; 2] = [Era::Legacy, Era::Modern];

async fn old_server() -> (HttpSse, Hub) {
    let old = HttpSse::start("old").await;
    let hub = Hub::start(config(vec![old.upstream("old")])).await;
    ready(&hub).await;
    (old, hub)
}

/// With a session for each client.
async fn old_server_per_client() -> (HttpSse, Hub) {
    let old = HttpSse::start("old").await;
    let mut upstream = old.upstream("old");
    upstream.sessions = SessionMode::PerClient;
    let hub = Hub::start(config(vec![upstream])).await;
    ready(&hub).await;
    (old, hub)
}

/// What is said of a server that cannot be used.
async fn failure_of(hub: &Hub) -> String {
    let failed = || match hub.gateway.upstream("uid-old") {
        Some(UpstreamStatus::Failed { message }) => Some(message),
        _ => None,
    };
    wait_for("the failure", || failed().is_some()).await;
    failed().unwrap()
}

#[tokio::test]
async fn a_server_of_http_and_sse_is_found_out_and_serves_clients_of_either_era() {
    for address in ["/messages", "messages", "http://HOST/messages"] {
        let old = HttpSse::start("old").await;
        old.set(|state| state.beginning = Beginning::Endpoint(address.replace("HOST", &old.address.to_string())));
        let hub = Hub::start(config(vec![old.upstream("old")])).await;
        ready(&hub).await;
        let Some(UpstreamStatus::Ready { handshake }) = hub.gateway.upstream("uid-old") else { panic!("not ready") };
        assert_eq!((handshake.era, handshake.tools.unwrap().count), (Era::Legacy, 3));
        for era in ERAS {
            for (path, echo) in ENDPOINTS {
                let client = hub.connected(path, era).await;
                let listed = client.ask("tools/list", json!({})).await;
                assert_eq!(listed["result"]["tools"][0]["name"], echo, "{listed}");
                let answer = client.call(echo, json!({"z": 1.0, "a": "b"})).await;
                let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
                assert_eq!(text, r#"{"server":"old","tool":"echo","arguments":{"z":1.0,"a":"b"}}"#);
            }
        }
        assert_eq!(old.streams(), 1, "clients share one session, and it one stream");
        assert_eq!(old.get(|state| state.refused_posts), 2, "the eras and transports of before were tried first");
    }
}

#[tokio::test]
async fn a_server_that_is_said_to_speak_http_and_sse_is_asked_nothing_else() {
    let old = HttpSse::start("old").await;
    let mut upstream = old.upstream("old");
    upstream.transport = Transport::HttpSse;
    let hub = Hub::start(config(vec![upstream.clone()])).await;
    ready(&hub).await;
    assert_eq!(old.get(|state| (state.gets, state.refused_posts)), (1, 0));
    // And one that is said not to is not asked for a stream.
    upstream.transport = Transport::StreamableHttp;
    hub.gateway.apply(config(vec![upstream]));
    assert!(failure_of(&hub).await.contains("405"));
    assert_eq!(old.get(|state| state.gets), 1);
}

#[tokio::test]
async fn each_of_many_calls_on_one_stream_gets_its_own_answer() {
    let (old, hub) = old_server().await;
    for takes_late in [false, true] {
        old.set(|state| state.takes_late = takes_late);
        let clients = [hub.connected("/mcp", Era::Legacy).await, hub.connected("/mcp", Era::Modern).await];
        // Under the same ids, so that only the gateway can tell them apart.
        let calls = (0..40).map(|n: usize| {
            let client = clients[n % 2].clone();
            async move {
                let fault = if n.is_multiple_of(3) { "Stream" } else { "None" };
                let arguments = json!({"call": n, "fault": fault});
                let params = json!({"name": "old_echo", "arguments": arguments, "_meta": {"progressToken": "mine"}});
                (n, client.messages(&client.message(json!("same"), "tools/call", params)).await)
            }
        });
        for (n, messages) in futures::future::join_all(calls).await {
            let answer = messages.last().unwrap();
            assert_eq!((&answer["id"], &answer["result"]["call"]), (&json!("same"), &json!(n)), "{answer}");
            let progress: Vec<&Value> = messages.iter().filter(|m| m["method"] == "notifications/progress").collect();
            assert_eq!(progress.len(), usize::from(n.is_multiple_of(3)), "{messages:?}");
            assert!(progress.iter().all(|progress| progress["params"]["progressToken"] == "mine"), "{messages:?}");
        }
    }
}

#[tokio::test]
async fn progress_comes_before_the_answer_under_the_clients_own_token() {
    for takes_late in [false, true] {
        let (old, hub) = old_server().await;
        old.set(|state| state.takes_late = takes_late);
        old.fake.set(|state| state.fault = Fault::Stream);
        for era in ERAS {
            let client = hub.connected("/mcp", era).await;
            let params = json!({"name": "old_echo", "_meta": {"progressToken": 5}});
            let messages = client.messages(&client.message(json!(7), "tools/call", params)).await;
            assert_eq!(messages.len(), 2, "{messages:?}");
            assert_eq!((&messages[0]["params"]["progressToken"], &messages[1]["id"]), (&json!(5), &json!(7)));
        }
    }
}

fn question() -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": "who?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}})
}

fn told(answer: &Value) -> Value {
    serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

async fn legacy_that_can_be_asked(hub: &Hub, path: &str) -> Client {
    let mut client = hub.client(path, Era::Legacy);
    client.initialize(json!({"elicitation": {}})).await;
    client
}

#[tokio::test]
async fn a_question_in_the_middle_of_a_call_reaches_clients_of_either_era() {
    let answer = json!({"action": "accept", "content": {"name": "x"}});
    for takes_late in [false, true] {
        let (old, hub) = old_server_per_client().await;
        old.set(|state| state.takes_late = takes_late);
        old.fake.set(|state| {
            state.fault = Fault::Ask;
            state.rounds = vec![vec![question()]];
        });
        for (path, echo) in ENDPOINTS {
            let client = legacy_that_can_be_asked(&hub, path).await;
            let message = client.message(json!(5), "tools/call", json!({"name": echo, "arguments": {}}));
            let mut stream = Reader::of(client.send(client.request(&message)).await);
            let asked = stream.next().await;
            assert_eq!(asked["method"], "elicitation/create", "{asked}");
            client.notify(json!({"jsonrpc": "2.0", "id": asked["id"], "result": answer})).await;
            let done = stream.next().await;
            assert_eq!((&done["id"], told(&done)), (&json!(5), json!([answer])), "{done}");

            let mut client = hub.client(path, Era::Modern);
            client.capabilities = json!({"elicitation": {"form": {}}});
            let asked = client.call(echo, json!({})).await;
            let key = asked["result"]["inputRequests"].as_object().unwrap_or_else(|| panic!("{asked}")).keys().next();
            let params = json!({"name": echo, "arguments": {}, "inputResponses": {key.unwrap(): answer},
                "requestState": asked["result"]["requestState"]});
            let done = client.messages(&client.message(json!("retry"), "tools/call", params)).await.pop().unwrap();
            assert_eq!((&done["id"], told(&done)), (&json!("retry"), json!([answer])), "{done}");
        }
        assert_eq!(old.fake.calls().len(), 4, "each call reached the server once");
    }
}

#[tokio::test]
async fn a_question_that_may_be_of_several_calls_goes_to_the_newest() {
    let (old, hub) = old_server_per_client().await;
    old.fake.set(|state| state.fault = Fault::Hang);
    let client = legacy_that_can_be_asked(&hub, "/mcp").await;
    let message = client.message(json!("first"), "tools/call", json!({"name": "old_echo"}));
    let hanging = tokio::spawn({
        let (client, message) = (client.clone(), message.clone());
        async move { client.send(client.request(&message)).await }
    });
    wait_for("the first call", || old.fake.calls().len() == 1).await;
    old.fake.set(|state| {
        state.fault = Fault::Ask;
        state.manner = Manner::Well;
        state.rounds = vec![vec![question()]];
    });
    let message = client.message(json!("second"), "tools/call", json!({"name": "old_echo"}));
    let mut stream = Reader::of(client.send(client.request(&message)).await);
    let asked = stream.next().await;
    client.notify(json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})).await;
    let done = stream.next().await;
    assert_eq!((&done["id"], told(&done)), (&json!("second"), json!([{"action": "decline"}])), "{done}");
    hanging.abort();
}

#[tokio::test]
async fn a_server_that_clients_share_asks_nobody_and_is_told_so() {
    let (old, hub) = old_server().await;
    old.fake.set(|state| {
        state.fault = Fault::Ask;
        state.rounds = vec![vec![question(), json!({"method": "ping"})]];
    });
    for era in ERAS {
        let answer = hub.connected("/mcp", era).await.call("old_echo", json!({})).await;
        let told = told(&answer);
        assert_eq!((&told[0]["code"], &told[1]), (&json!(-32601), &json!({})), "{told}");
    }
}

#[tokio::test]
async fn a_changed_list_is_told_to_clients_of_either_era() {
    let (old, hub) = old_server().await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let mut legacy = client.stream().await;
    let listener = hub.client("/mcp", Era::Modern);
    let params = json!({"notifications": {"toolsListChanged": true}});
    let message = listener.message(json!("sub"), "subscriptions/listen", params);
    let mut modern = Reader::of(listener.send(listener.request(&message)).await);
    assert_eq!(modern.next().await["method"], "notifications/subscriptions/acknowledged");
    old.fake.set(|state| state.tools.push(tool("new")));
    old.fake.tell("notifications/tools/list_changed");
    for stream in [&mut legacy, &mut modern] {
        assert_eq!(stream.next().await["method"], "notifications/tools/list_changed");
    }
    assert!(client.tool_names().await.contains(&"old_new".to_owned()));
}

#[tokio::test]
async fn a_call_is_cancelled_at_the_server_by_clients_of_either_era() {
    let (old, hub) = old_server().await;
    old.fake.set(|state| state.fault = Fault::Hang);
    for (n, era) in ERAS.into_iter().enumerate() {
        let client = hub.connected("/mcp", era).await;
        let message = client.message(json!("mine"), "tools/call", json!({"name": "old_echo"}));
        let calling = tokio::spawn({
            let client = client.clone();
            async move { read(client.send(client.request(&message)).await).await }
        });
        wait_for("the call", || old.fake.calls().len() == n + 1).await;
        match era {
            Era::Modern => calling.abort(),
            Era::Legacy => {
                let params = json!({"requestId": "mine"});
                client.notify(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})).await;
                assert!(calling.await.unwrap().is_empty(), "what was cancelled is not answered");
            }
        }
        wait_for("its cancellation", || old.fake.seen("notifications/cancelled").len() == n + 1).await;
        let cancelled = &old.fake.seen("notifications/cancelled")[n]["params"]["requestId"];
        assert_eq!(cancelled, &old.fake.calls()[n].1["id"]);
    }
}

#[tokio::test]
async fn each_client_has_a_stream_of_its_own_where_the_server_wants_that_and_it_ends_with_the_client() {
    let (old, hub) = old_server_per_client().await;
    wait_for("the end of the gateway's own", || old.streams() == 0).await;
    let (alice, bob) = (hub.connected("/mcp", Era::Legacy).await, hub.connected("/mcp", Era::Legacy).await);
    for client in [&alice, &bob, &alice] {
        assert!(client.call("old_echo", json!({})).await["result"].is_object());
    }
    assert_eq!(old.streams(), 2);
    let used: Vec<_> = old.fake.calls().iter().map(|(headers, _)| headers["mcp-session-id"].clone()).collect();
    assert!(used[0] == used[2] && used[0] != used[1], "{used:?}");
    let mut request = alice.request(&json!({}));
    *request.method_mut() = Method::DELETE;
    alice.send(request).await;
    wait_for("the end of her stream", || old.streams() == 1).await;
    assert!(bob.call("old_echo", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn a_stream_that_breaks_in_a_call_ends_it_with_an_error_and_another_is_opened() {
    for fault in [Fault::DropMidStream, Fault::DropUnanswered] {
        let (old, good) = (HttpSse::start("old").await, Fake::start(Era::Modern, "good").await);
        let hub = Hub::start(config(vec![old.upstream("old"), good.upstream("good")])).await;
        ready(&hub).await;
        for era in ERAS {
            let client = hub.connected("/mcp", era).await;
            let before = old.fake.calls().len();
            old.fake.set(|state| state.fault = fault);
            let answers = tokio::join!(client.call("old_echo", json!({})), client.call("good_echo", json!({})));
            assert_eq!(answers.0["error"]["code"], 1001, "{fault:?} {era:?}: {}", answers.0);
            assert!(answers.1["result"].is_object(), "{}", answers.1);
            old.fake.set(|state| state.fault = Fault::None);
            let answer = client.call("old_echo", json!({})).await;
            assert!(answer["result"]["isError"].is_null() && answer["result"].is_object(), "{answer}");
            assert_eq!(old.fake.calls().len(), before + 2, "no call is made twice");
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_between_calls_is_opened_again_and_the_next_call_is_made_once() {
    let (old, hub) = old_server().await;
    for (n, era) in ERAS.into_iter().enumerate() {
        let client = hub.connected("/mcp", era).await;
        old.cut().await;
        let answer = client.call("old_echo", json!({})).await;
        assert!(answer["result"]["isError"].is_null() && answer["result"].is_object(), "{answer}");
        assert_eq!(old.fake.calls().len(), n + 1);
    }
    // Nobody has to call for it.
    old.cut().await;
    wait_for("another stream", || old.streams() == 1).await;
    old.fake.set(|state| state.tools.push(tool("new")));
    let client = hub.connected("/mcp", Era::Legacy).await;
    for _ in 0..500 {
        old.fake.tell("notifications/tools/list_changed");
        if client.tool_names().await.contains(&"old_new".to_owned()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody listens to the new stream");
}

#[tokio::test]
async fn messages_go_to_no_other_origin_whatever_the_stream_names() {
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = elsewhere.local_addr().unwrap();
    let old = HttpSse::start("old").await;
    for address in
        [format!("http://{there}/messages"), format!("//{there}/messages"), format!("https://{}/m", old.address)]
    {
        old.set(|state| state.beginning = Beginning::Endpoint(address.clone()));
        let hub = Hub::start(config(vec![old.upstream("old")])).await;
        let message = failure_of(&hub).await;
        assert!(message.contains("another origin"), "{message}");
        for era in ERAS {
            let answer = hub.connected("/mcp", era).await.call("old_echo", json!({})).await;
            assert!(answer["error"].is_object() || answer["result"]["isError"] == true, "{answer}");
        }
    }
    assert!(tokio::time::timeout(MOMENT, elsewhere.accept()).await.is_err(), "somebody went there");
    assert!(old.fake.get(|state| state.seen.is_empty()), "nothing was posted");
}

#[tokio::test]
async fn a_stream_without_an_endpoint_is_named_and_not_waited_for_for_ever() {
    for (beginning, why) in [
        (Beginning::Message, "does not begin with an `endpoint` event"),
        (Beginning::NotFound, "404 Not Found to a GET"),
        (Beginning::EndlessLine, "larger than"),
        (Beginning::Silence, "named no endpoint within"),
    ] {
        let (old, good) = (HttpSse::start("old").await, Fake::start(Era::Modern, "good").await);
        old.set(|state| state.beginning = beginning.clone());
        let hub = Hub::start(config(vec![old.upstream("old"), good.upstream("good")])).await;
        let began = Instant::now();
        let client = hub.connected("/mcp", Era::Modern).await;
        assert!(client.call("good_echo", json!({})).await["result"].is_object(), "others are unharmed");
        let message = failure_of(&hub).await;
        assert!(message.contains("nor HTTP+SSE") && message.contains(why), "{beginning:?}: {message}");
        assert!(began.elapsed() < Duration::from_secs(20), "{beginning:?}");
        let answer = client.call("old_echo", json!({})).await;
        assert!(answer["error"].is_object() || answer["result"]["isError"] == true, "{answer}");
        // It may mend itself.
        old.set(|state| state.beginning = Beginning::Endpoint("/messages".to_owned()));
        ready(&hub).await;
    }
}

#[tokio::test]
async fn a_stream_that_drips_is_read_and_a_line_without_an_end_ends_its_session_alone() {
    let old = HttpSse::start("old").await;
    old.set(|state| state.drips = true);
    let hub = Hub::start(config(vec![old.upstream("old")])).await;
    ready(&hub).await;
    for era in ERAS {
        let client = hub.connected("/mcp", era).await;
        let answer = client.call("old_echo", json!({"a": "ü"})).await;
        assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains('ü'), "{answer}");
    }
    old.set(|state| state.drips = false);
    old.cut().await;
    wait_for("another stream", || old.streams() == 1).await;
    old.fake.set(|state| state.fault = Fault::Hang);
    let client = hub.connected("/mcp", Era::Legacy).await;
    let calling = tokio::spawn({
        let client = client.clone();
        async move { client.call("old_echo", json!({})).await }
    });
    wait_for("the call", || old.fake.calls().len() == 3).await;
    let opened = old.get(|state| state.gets);
    // More than the largest message.
    old.say(&[b'x'; 1 << 20], 33).await;
    let answer = calling.await.unwrap();
    assert_eq!(answer["error"]["code"], 1001, "{answer}");
    old.fake.set(|state| state.fault = Fault::None);
    assert!(client.call("old_echo", json!({})).await["result"].is_object());
    assert!(old.get(|state| state.gets) > opened);
}
