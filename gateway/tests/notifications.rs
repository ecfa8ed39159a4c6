//! What servers say outside of calls, and log messages of calls, in every pair of eras.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use mcp_hub_dataplane_api::Era;
use serde_json::{Value, json};
use support::{Client, Fake, Fault, Hub, Manner, Reader, config, one_server, ready, wait_for};

const ENDPOINTS: [(&str, &str); 2] = [("/mcp", "one+"), ("/servers/one/mcp", "")];
const UPDATED: &str = "notifications/resources/updated";

async fn subscribe(client: &Client, uri: &str) {
    let answer = client.ask("resources/subscribe", json!({"uri": uri})).await;
    assert_eq!(answer["result"], json!({}), "{answer}");
}

/// A modern client's subscription; its acknowledged filter comes first.
async fn listen(client: &Client, wanted: Value) -> (Value, Reader) {
    let message = client.message(json!("sub"), "subscriptions/listen", json!({"notifications": wanted}));
    let mut stream = Reader::of(client.send(client.request(&message)).await);
    let first = stream.next().await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged", "{first}");
    assert_eq!(first["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "sub");
    (first["params"]["notifications"].clone(), stream)
}

/// Subscriptions that a modern server holds now: the newest `subscriptions/listen`.
fn held(fake: &Fake) -> Value {
    fake.seen("subscriptions/listen").pop().map_or(Value::Null, |last| last["params"]["notifications"].clone())
}

#[tokio::test]
async fn a_changed_resource_is_told_to_legacy_clients_that_subscribed_in_front_of_either_era() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        for (path, prefix) in ENDPOINTS {
            let (alice, bob) = (hub.connected(path, Era::Legacy).await, hub.connected(path, Era::Legacy).await);
            let (mut hers, mut his) = (alice.stream().await, bob.stream().await);
            subscribe(&alice, &format!("{prefix}test://a")).await;
            subscribe(&bob, &format!("{prefix}test://b")).await;
            for uri in ["test://a", "test://other", "test://b"] {
                fake.update(uri);
            }
            for (stream, uri) in [(&mut hers, "test://a"), (&mut his, "test://b")] {
                let told = stream.next().await;
                assert_eq!(
                    (&told["method"], &told["params"]["uri"]),
                    (&json!(UPDATED), &json!(format!("{prefix}{uri}")))
                );
            }
            for (client, uri) in [(&alice, "test://a"), (&bob, "test://b")] {
                let answer = client.ask("resources/unsubscribe", json!({"uri": format!("{prefix}{uri}")})).await;
                assert_eq!(answer["result"], json!({}));
            }
            fake.update("test://a");
            // Whatever comes next is not that.
            subscribe(&alice, &format!("{prefix}test://c")).await;
            fake.update("test://c");
            assert_eq!(hers.next().await["params"]["uri"], format!("{prefix}test://c"));
            client_ends(&alice).await;
            match server {
                Era::Legacy => {
                    wait_for("the end of all three", || {
                        fake.seen("resources/unsubscribe").len() == fake.seen("resources/subscribe").len()
                    })
                    .await
                }
                Era::Modern => {
                    wait_for("a stream without them", || held(&fake)["resourceSubscriptions"].is_null()).await
                }
            }
        }
    }
}

async fn client_ends(client: &Client) {
    let mut request = client.request(&json!({}));
    *request.method_mut() = http::Method::DELETE;
    assert_eq!(client.send(request).await.status(), http::StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_changed_resource_is_told_to_modern_clients_that_subscribed_in_front_of_either_era() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        for (path, prefix) in ENDPOINTS {
            let client = hub.client(path, Era::Modern);
            let uris = json!([format!("{prefix}test://a"), format!("{prefix}test://b")]);
            let (granted, mut stream) = listen(&client, json!({"resourceSubscriptions": uris})).await;
            assert_eq!(granted, json!({"resourceSubscriptions": uris}));
            for uri in ["test://other", "test://b", "test://a"] {
                fake.update(uri);
            }
            for uri in ["test://b", "test://a"] {
                let told = stream.next().await;
                assert_eq!(
                    (&told["method"], &told["params"]["uri"]),
                    (&json!(UPDATED), &json!(format!("{prefix}{uri}")))
                );
                assert_eq!(told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "sub");
            }
            drop(stream);
            match server {
                Era::Legacy => {
                    let ended = || fake.seen("resources/unsubscribe").len() == fake.seen("resources/subscribe").len();
                    wait_for("the end of both", ended).await;
                }
                // On its own endpoint the server sees the connection end.
                Era::Modern if prefix.is_empty() => {}
                Era::Modern => {
                    wait_for("a stream without them", || held(&fake)["resourceSubscriptions"].is_null()).await
                }
            }
        }
    }
}

#[tokio::test]
async fn one_subscription_reaches_over_servers_of_both_eras_and_grants_what_there_is() {
    let (old, new) = (Fake::start(Era::Legacy, "old").await, Fake::start(Era::Modern, "new").await);
    let hub = Hub::start(config(vec![new.upstream("new"), old.upstream("old")])).await;
    ready(&hub).await;
    let client = hub.client("/mcp", Era::Modern);
    let uris = json!(["old+test://a", "new+test://a", "none+test://a", "no uri"]);
    let wanted = json!({"toolsListChanged": true, "other": true, "resourceSubscriptions": uris});
    let (granted, mut stream) = listen(&client, wanted).await;
    let there = json!(["old+test://a", "new+test://a"]);
    assert_eq!(granted, json!({"toolsListChanged": true, "resourceSubscriptions": there}));
    old.update("test://a");
    assert_eq!(stream.next().await["params"]["uri"], "old+test://a");
    new.update("test://a");
    assert_eq!(stream.next().await["params"]["uri"], "new+test://a");
}

#[tokio::test]
async fn a_server_that_was_restarted_is_asked_again_for_what_clients_want() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        let client = hub.connected("/mcp", Era::Legacy).await;
        let mut stream = client.stream().await;
        subscribe(&client, "one+test://a").await;
        let address = fake.stop().await;
        let fake = Fake::at(server, "one", address).await;
        wait_for("the subscription", || match server {
            Era::Legacy => !fake.seen("resources/subscribe").is_empty(),
            Era::Modern => held(&fake)["resourceSubscriptions"] == json!(["test://a"]),
        })
        .await;
        // Its stream may still be opening.
        let telling = tokio::spawn(async move {
            loop {
                fake.update("test://a");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        loop {
            let told = stream.next().await;
            if told["method"] == UPDATED {
                assert_eq!(told["params"]["uri"], "one+test://a");
                break;
            }
        }
        telling.abort();
    }
}

#[tokio::test]
async fn where_each_client_has_a_session_a_change_is_told_to_whose_session_it_came_in() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let hub = Hub::start(config(vec![fake.per_client("one")])).await;
    ready(&hub).await;
    let legacy = hub.connected("/mcp", Era::Legacy).await;
    let mut theirs = legacy.stream().await;
    subscribe(&legacy, "one+test://a").await;
    let mut able = hub.client("/servers/one/mcp", Era::Modern);
    able.capabilities = json!({"sampling": {}});
    let (_, mut ours) = listen(&able, json!({"resourceSubscriptions": ["test://a"]})).await;
    let sessions = fake.get(|state| {
        let subscribing = state.seen.iter().filter(|(_, body)| body["method"] == "resources/subscribe");
        subscribing.map(|(headers, _)| headers["mcp-session-id"].to_str().unwrap().to_owned()).collect::<Vec<_>>()
    });
    assert!(sessions.len() == 2 && sessions[0] != sessions[1], "{sessions:?}");
    wait_for("both streams", || fake.streams() >= 2).await;
    let message = |n: u32| json!({"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": "test://a", "n": n}});
    fake.say(Some(&sessions[1]), message(1));
    assert_eq!(ours.next().await["params"]["uri"], "test://a");
    fake.say(Some(&sessions[0]), message(2));
    let told = theirs.next().await;
    assert_eq!((&told["params"]["uri"], &told["params"]["n"]), (&json!("one+test://a"), &json!(2)));
}

#[tokio::test]
async fn a_server_that_tells_of_no_changes_is_not_subscribed_to() {
    let fake = Fake::start(Era::Modern, "one").await;
    fake.set(|state| state.capabilities["resources"] = json!({}));
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    assert_eq!(client.ask("resources/subscribe", json!({"uri": "one+test://a"})).await["error"]["code"], -32601);
    assert_eq!(client.ask("resources/subscribe", json!({"uri": "none+test://a"})).await["error"]["code"], -32002);
    let (granted, _stream) =
        listen(&hub.client("/mcp", Era::Modern), json!({"resourceSubscriptions": ["one+test://a"]})).await;
    assert_eq!(granted, json!({"resourceSubscriptions": []}));
}

#[tokio::test]
async fn legacy_clients_of_one_legacy_server_each_have_their_log_level() {
    let (fake, hub) = one_server(Era::Legacy).await;
    for (path, logger) in [("/mcp", "one/db"), ("/servers/one/mcp", "db")] {
        let mut streams = Vec::new();
        for level in ["warning", "debug"] {
            let client = hub.connected(path, Era::Legacy).await;
            let stream = client.stream().await;
            assert_eq!(client.ask("logging/setLevel", json!({"level": level})).await["result"], json!({}));
            assert_eq!(client.ask("logging/setLevel", json!({"level": "loud"})).await["error"]["code"], -32602);
            streams.push(stream);
        }
        fake.log("info");
        fake.log("error");
        for (stream, levels) in streams.iter_mut().zip([&["error"][..], &["info", "error"]]) {
            for level in levels {
                let told = stream.next().await;
                assert_eq!((&told["params"]["level"], &told["params"]["logger"]), (&json!(level), &json!(logger)));
            }
        }
    }
    let asked: Vec<Value> =
        fake.seen("logging/setLevel").into_iter().map(|body| body["params"]["level"].clone()).collect();
    assert_eq!(asked, ["warning", "debug"], "the server is asked for what the most curious wants");
}

#[tokio::test]
async fn a_modern_server_logs_for_a_legacy_client_from_its_level_on() {
    let (fake, hub) = one_server(Era::Modern).await;
    fake.set(|state| state.fault = Fault::Log);
    for (path, tool) in [("/mcp", "one_echo"), ("/servers/one/mcp", "echo")] {
        let client = hub.connected(path, Era::Legacy).await;
        for (level, logged) in [(None, &[][..]), (Some("error"), &["error"]), (Some("debug"), &["debug", "error"])] {
            if let Some(level) = level {
                client.ask("logging/setLevel", json!({"level": level})).await;
            }
            let mut messages = client.messages(&client.message(json!(1), "tools/call", json!({"name": tool}))).await;
            assert!(messages.pop().unwrap()["result"].is_object());
            let levels: Vec<&str> = messages.iter().map(|log| log["params"]["level"].as_str().unwrap()).collect();
            assert_eq!(levels, logged, "{path}");
        }
    }
}

#[tokio::test]
async fn a_legacy_server_logs_for_a_modern_client_from_its_requests_level_on() {
    for shared in [true, false] {
        let fake = Fake::start(Era::Legacy, "one").await;
        let upstream = if shared { fake.upstream("one") } else { fake.per_client("one") };
        let hub = Hub::start(config(vec![upstream])).await;
        ready(&hub).await;
        fake.set(|state| state.fault = Fault::Log);
        let client = hub.client("/mcp", Era::Modern);
        for (level, logged) in [(None, &[][..]), (Some("error"), &["error"]), (Some("debug"), &["debug", "error"])] {
            let meta = level.map_or(json!({}), |level| json!({"io.modelcontextprotocol/logLevel": level}));
            let params = json!({"name": "one_echo", "_meta": meta});
            let mut messages = client.messages(&client.message(json!(1), "tools/call", params)).await;
            assert!(messages.pop().unwrap()["result"].is_object());
            let levels: Vec<&str> = messages.iter().map(|log| log["params"]["level"].as_str().unwrap()).collect();
            assert_eq!(levels, logged);
        }
        let asked = fake.seen("logging/setLevel");
        assert_eq!(asked.iter().map(|body| &body["params"]["level"]).collect::<Vec<_>>(), ["error", "debug"]);
    }
}

#[tokio::test]
async fn a_question_outside_of_any_calls_stream_reaches_the_clients_newest_call_or_is_refused() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let hub = Hub::start(config(vec![fake.per_client("one")])).await;
    ready(&hub).await;
    let mut client = hub.client("/mcp", Era::Modern);
    client.capabilities = json!({"roots": {}});
    assert!(client.call("one_echo", json!({})).await["result"].is_object());
    let session = fake.calls()[0].0["mcp-session-id"].to_str().unwrap().to_owned();
    wait_for("the session's stream", || fake.streams() >= 1).await;
    let question = |id: &str| json!({"jsonrpc": "2.0", "id": id, "method": "roots/list"});
    fake.say(Some(&session), question("loose"));
    let answer = |id: &str| fake.get(|state| state.seen.iter().find(|(_, body)| body["id"] == id).cloned());
    wait_for("a refusal", || answer("loose").is_some()).await;
    assert_eq!(answer("loose").unwrap().1["error"]["code"], 1006);
    fake.set(|state| {
        state.fault = Fault::Ask;
        state.rounds = vec![vec![json!({"method": "roots/list"})]];
        state.manner = Manner::Outside;
    });
    let asked = client.call("one_echo", json!({})).await;
    assert_eq!(asked["result"]["inputRequests"]["q1"]["method"], "roots/list", "{asked}");
    let params = json!({"name": "one_echo", "arguments": {}, "inputResponses": {"q1": {"roots": []}},
        "requestState": asked["result"]["requestState"]});
    assert!(client.ask("tools/call", params).await["result"]["content"].is_array());
}
