//! What servers ask of clients in the middle of a call, in every pair of eras.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use mcp_hub_dataplane_api::Era;
use serde_json::{Value, json};
use support::{Client, Fake, Fault, Hub, Manner, Reader, config, read, ready, wait_for};

const ENDPOINTS: [(&str, &str); 2] = [("/mcp", "one_echo"), ("/servers/one/mcp", "echo")];

fn everything() -> Value {
    json!({"sampling": {"tools": {}}, "elicitation": {"form": {}, "url": {}}, "roots": {"listChanged": true}})
}

fn sampling() -> Value {
    let message = json!({"role": "user", "content": {"type": "text", "text": "capital of France?"}});
    json!({"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 10}})
}

fn form() -> Value {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]});
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": "who?", "requestedSchema": schema}})
}

fn url() -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "url", "message": "go", "url": "https://example.com/x"}})
}

fn roots() -> Value {
    json!({"method": "roots/list", "params": {}})
}

/// A server of this era that asks all this, and a gateway in front of it.
async fn asking(era: Era, rounds: Vec<Vec<Value>>) -> (Fake, Hub) {
    let fake = Fake::start(era, "one").await;
    let hub = Hub::start(config(vec![fake.per_client("one")])).await;
    ready(&hub).await;
    fake.set(|state| {
        state.fault = Fault::Ask;
        state.rounds = rounds;
    });
    (fake, hub)
}

fn modern(hub: &Hub, path: &str) -> Client {
    let mut client = hub.client(path, Era::Modern);
    client.capabilities = everything();
    client
}

async fn legacy(hub: &Hub, path: &str) -> Client {
    let mut client = hub.client(path, Era::Legacy);
    client.initialize(everything()).await;
    client
}

/// A modern client's call again, with what a result asked to send again and these answers.
async fn again(client: &Client, tool: &str, asked: &Value, answers: Value) -> Value {
    let state = asked["result"]["requestState"].clone();
    let params = json!({"name": tool, "arguments": {}, "inputResponses": answers, "requestState": state});
    client.messages(&client.message(json!("retry"), "tools/call", params)).await.pop().unwrap()
}

/// Keys under which a modern client was asked, by method and mode.
fn key(asked: &Value, method: &str) -> String {
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let requests = asked["result"]["inputRequests"].as_object().unwrap();
    requests.iter().find(|(_, request)| request["method"] == method).unwrap_or_else(|| panic!("{asked}")).0.clone()
}

fn text(answer: &Value) -> Value {
    serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

/// Asks a modern client behind a legacy server one thing, on both endpoints.
async fn modern_client_answers(question: Value, answer: Value) -> Value {
    let method = question["method"].as_str().unwrap().to_owned();
    let (fake, hub) = asking(Era::Legacy, vec![vec![question]]).await;
    let mut shown = Value::Null;
    for (path, tool) in ENDPOINTS {
        let client = modern(&hub, path);
        let asked = client.call(tool, json!({})).await;
        let key = key(&asked, &method);
        shown = asked["result"]["inputRequests"][&key].clone();
        assert!(asked["result"]["requestState"].is_string());
        let done = again(&client, tool, &asked, json!({ &key: answer })).await;
        assert_eq!((&done["id"], &done["result"]["resultType"]), (&json!("retry"), &json!("complete")), "{done}");
        assert_eq!(text(&done), json!([answer]));
    }
    let told = fake.seen("initialize").pop().unwrap()["params"]["capabilities"].clone();
    assert_eq!(told, json!({"sampling": {"tools": {}}, "elicitation": {"form": {}, "url": {}}, "roots": {}}));
    assert_eq!(fake.calls().len(), 2, "each call reached the server once");
    shown
}

/// Asks a legacy client behind a modern server one thing, on both endpoints; as the client was asked.
async fn legacy_client_answers(question: Value, answer: Value) -> Value {
    let (fake, hub) = asking(Era::Modern, vec![vec![question]]).await;
    let mut shown = Value::Null;
    for (path, tool) in ENDPOINTS {
        let client = legacy(&hub, path).await;
        let message = client.message(json!(5), "tools/call", json!({"name": tool, "arguments": {"a": 1.0}}));
        let mut stream = Reader::of(client.send(client.request(&message)).await);
        shown = stream.next().await;
        client.notify(json!({"jsonrpc": "2.0", "id": shown["id"], "result": answer})).await;
        let done = stream.next().await;
        assert_eq!((&done["id"], done["result"].get("resultType")), (&json!(5), None), "{done}");
        assert_eq!(text(&done), json!({"key 0": answer}));
        let calls = fake.calls();
        let [.., (_, first), (_, retry)] = &calls[..] else { panic!("{calls:?}") };
        assert_ne!(first["id"], retry["id"]);
        assert_eq!(
            (&retry["params"]["requestState"], &retry["params"]["arguments"]),
            (&json!("1"), &json!({"a": 1.0}))
        );
        let told = &first["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"];
        assert_eq!(told["roots"], json!({}), "{told}");
    }
    shown
}

#[tokio::test]
async fn sampling_of_a_legacy_server_reaches_a_modern_client() {
    let answer = json!({"role": "assistant", "content": {"type": "text", "text": "Paris"}, "model": "m"});
    assert_eq!(modern_client_answers(sampling(), answer).await, sampling());
}

#[tokio::test]
async fn sampling_of_a_modern_server_reaches_a_legacy_client() {
    let answer = json!({"role": "assistant", "content": {"type": "text", "text": "Paris"}, "model": "m"});
    let shown = legacy_client_answers(sampling(), answer).await;
    assert_eq!((&shown["method"], &shown["params"]), (&sampling()["method"], &sampling()["params"]));
}

#[tokio::test]
async fn a_form_of_a_legacy_server_reaches_a_modern_client() {
    assert_eq!(modern_client_answers(form(), json!({"action": "accept", "content": {"name": "x"}})).await, form());
}

#[tokio::test]
async fn a_form_of_a_modern_server_reaches_a_legacy_client() {
    let shown = legacy_client_answers(form(), json!({"action": "decline"})).await;
    assert_eq!((&shown["method"], &shown["params"]), (&form()["method"], &form()["params"]));
}

#[tokio::test]
async fn a_url_of_a_legacy_server_reaches_a_modern_client() {
    let mut question = url();
    question["params"]["elicitationId"] = "e1".into();
    assert_eq!(modern_client_answers(question, json!({"action": "accept"})).await, url(), "modern ones have no id");
}

#[tokio::test]
async fn a_url_of_a_modern_server_reaches_a_legacy_client() {
    let shown = legacy_client_answers(url(), json!({"action": "accept"})).await;
    assert_eq!(shown["params"]["url"], url()["params"]["url"]);
    assert!(shown["params"]["elicitationId"].is_string(), "legacy ones need an id");
}

#[tokio::test]
async fn roots_are_asked_of_a_modern_client_by_a_legacy_server() {
    modern_client_answers(roots(), json!({"roots": [{"uri": "file:///a", "name": "a"}]})).await;
}

#[tokio::test]
async fn roots_are_asked_of_a_legacy_client_by_a_modern_server() {
    legacy_client_answers(roots(), json!({"roots": [{"uri": "file:///a", "name": "a"}]})).await;
}

#[tokio::test]
async fn several_questions_are_asked_together_and_what_was_not_answered_again() {
    let (fake, hub) = asking(Era::Legacy, vec![vec![form(), roots()], vec![sampling()]]).await;
    let client = modern(&hub, "/mcp");
    let first = client.call("one_echo", json!({})).await;
    assert_eq!(first["result"]["inputRequests"].as_object().unwrap().len(), 2, "{first}");
    let (name, where_) = (key(&first, "elicitation/create"), key(&first, "roots/list"));
    let second = again(&client, "one_echo", &first, json!({ &name: {"action": "accept"} })).await;
    assert_eq!(second["result"]["inputRequests"], json!({ &where_: roots() }), "only what is open");
    // The state of an earlier round opens nothing any more.
    let old = again(&client, "one_echo", &first, json!({ &where_: {"roots": []} })).await;
    assert_eq!(old["error"]["code"], 1008, "{old}");
    let third = again(&client, "one_echo", &second, json!({ &where_: {"roots": []}, "other": {} })).await;
    let model = key(&third, "sampling/createMessage");
    let done = again(&client, "one_echo", &third, json!({ &model: {"model": "m"} })).await;
    assert_eq!(text(&done), json!([{"model": "m"}]));
    let answers = |id: &str| fake.get(|state| state.seen.iter().filter(|(_, body)| body["id"] == id).count());
    assert_eq!((answers("q1"), answers("q2"), answers("q3"), fake.calls().len()), (1, 1, 1, 1));
}

#[tokio::test]
async fn progress_after_an_answer_comes_under_the_token_of_the_retry() {
    let (_fake, hub) = asking(Era::Legacy, vec![vec![roots()]]).await;
    let client = modern(&hub, "/mcp");
    let meta = |token: &str| json!({ "progressToken": token });
    let asked = client.ask("tools/call", json!({"name": "one_echo", "_meta": meta("first")})).await;
    let params = json!({"name": "one_echo", "_meta": meta("second"), "requestState": asked["result"]["requestState"],
        "inputResponses": { key(&asked, "roots/list"): {"roots": []} }});
    let messages = client.messages(&client.message(json!("retry"), "tools/call", params)).await;
    assert_eq!(messages[0]["params"]["progressToken"], "second", "{messages:?}");
    assert_eq!((messages.len(), &messages[1]["id"]), (2, &json!("retry")));
}

#[tokio::test]
async fn a_state_is_of_no_use_to_others_for_another_call_or_later() {
    let (fake, hub) = asking(Era::Legacy, vec![vec![form()]]).await;
    let client = modern(&hub, "/mcp");
    let asked = client.call("one_echo", json!({})).await;
    let key = key(&asked, "elicitation/create");
    let answers = json!({ &key: {"action": "accept"} });
    let state = asked["result"]["requestState"].as_str().unwrap().to_owned();
    // One digit is another one, whatever it was.
    let first = if state.starts_with('A') { "B" } else { "A" };
    let forged = json!({"result": {"requestState": format!("{first}{}", &state[1..])}});
    assert_eq!(again(&client, "one_echo", &forged, answers.clone()).await["error"]["code"], -32602);
    assert_eq!(again(&client, "one_zeta", &asked, answers.clone()).await["error"]["code"], -32602, "another tool");
    let params = json!({"name": "one_echo", "arguments": {"x": 1}, "inputResponses": answers, "requestState": state});
    assert_eq!(client.ask("tools/call", params).await["error"]["code"], -32602, "other arguments");
    // Another token's; there is a second one here.
    let mut configured = config(vec![fake.per_client("one")]);
    let other = "other token";
    let hash = |token: &str| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(token));
    configured.auth =
        mcp_hub_dataplane_api::gateway::ClientAuth::Bearer { tokens_sha256: vec![hash(support::TOKEN), hash(other)] };
    hub.gateway.apply(configured);
    let params = json!({"name": "one_echo", "arguments": {}, "inputResponses": answers, "requestState": state});
    let mut request = client.request(&client.message(json!(1), "tools/call", params));
    request.headers_mut().insert("authorization", format!("Bearer {other}").parse().unwrap());
    assert_eq!(read(client.send(request).await).await[0]["error"]["code"], -32602);
    // Nobody else disturbed it.
    let done = again(&client, "one_echo", &asked, answers.clone()).await;
    assert_eq!(text(&done), json!([{"action": "accept"}]));
    assert_eq!(again(&client, "one_echo", &asked, answers).await["error"]["code"], 1008);
}

#[tokio::test]
async fn a_state_of_a_gateway_that_was_restarted_says_that_the_call_is_gone() {
    let (fake, hub) = asking(Era::Legacy, vec![vec![form()]]).await;
    let mut client = modern(&hub, "/mcp");
    let asked = client.call("one_echo", json!({})).await;
    let hub = Hub::start(config(vec![fake.per_client("one")])).await;
    ready(&hub).await;
    client.url = format!("http://{}/mcp", hub.address);
    assert_eq!(again(&client, "one_echo", &asked, json!({})).await["error"]["code"], 1008);
}

#[tokio::test]
async fn a_parked_call_whose_client_does_not_return_is_cancelled_and_counted() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut upstream = fake.per_client("one");
    upstream.call_timeout_ms = 400;
    let hub = Hub::start(config(vec![upstream])).await;
    ready(&hub).await;
    fake.set(|state| {
        state.fault = Fault::Ask;
        state.rounds = vec![vec![form()]];
    });
    let client = modern(&hub, "/mcp");
    let asked = client.call("one_echo", json!({})).await;
    assert!(metrics(&hub).await.contains("mcp_hub_gateway_parked_calls 1\n"));
    wait_for("its cancellation", || fake.seen("notifications/cancelled").len() == 1).await;
    assert_eq!(fake.seen("notifications/cancelled")[0]["params"]["requestId"], fake.calls()[0].1["id"]);
    assert_eq!(again(&client, "one_echo", &asked, json!({})).await["error"]["code"], 1008);
    let metrics = metrics(&hub).await;
    assert!(metrics.contains("mcp_hub_gateway_parked_calls 0\n"), "{metrics}");
    assert!(metrics.contains("mcp_hub_gateway_parked_calls_expired_total 1\n"), "{metrics}");
}

async fn metrics(hub: &Hub) -> String {
    let request = http::Request::get(format!("http://{}/metrics", hub.address))
        .header("authorization", format!("Bearer {}", support::TOKEN));
    let response = hub.client("/mcp", Era::Modern).send(request.body(Default::default()).unwrap()).await;
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_continued_call_is_cancelled_when_its_client_goes_away() {
    let (fake, hub) = asking(Era::Legacy, vec![vec![form()]]).await;
    fake.set(|state| state.manner = Manner::Hanging);
    let client = modern(&hub, "/mcp");
    let asked = client.call("one_echo", json!({})).await;
    let answers = json!({ key(&asked, "elicitation/create"): {"action": "accept"} });
    let going_on = tokio::spawn(async move { again(&client, "one_echo", &asked, answers).await });
    wait_for("the answer", || fake.get(|state| state.seen.iter().any(|(_, body)| body["id"] == "q1"))).await;
    assert!(fake.seen("notifications/cancelled").is_empty());
    going_on.abort();
    wait_for("its cancellation", || fake.seen("notifications/cancelled").len() == 1).await;
}

#[tokio::test]
async fn a_modern_client_is_not_asked_what_it_cannot_answer_and_a_shared_server_asks_nobody() {
    let (fake, hub) = asking(Era::Legacy, vec![vec![form()]]).await;
    let mut client = hub.client("/mcp", Era::Modern);
    client.capabilities = json!({"sampling": {}});
    assert_eq!(text(&client.call("one_echo", json!({})).await)[0]["code"], -32601);
    hub.gateway.apply(config(vec![fake.upstream("one")]));
    ready(&hub).await;
    let client = modern(&hub, "/mcp");
    assert_eq!(text(&client.call("one_echo", json!({})).await)[0]["code"], 1006);
    let legacy = legacy(&hub, "/mcp").await;
    assert_eq!(text(&legacy.call("one_echo", json!({})).await)[0]["code"], 1006);
    assert_eq!(fake.seen("initialize").pop().unwrap()["params"]["capabilities"], json!({}));
}

#[tokio::test]
async fn modern_clients_that_can_do_the_same_share_a_session_and_others_do_not() {
    let (fake, hub) = asking(Era::Legacy, vec![]).await;
    let before = fake.get(|state| state.opened);
    for capabilities in [everything(), everything(), json!({}), json!({"tasks": {}})] {
        let mut client = hub.client("/mcp", Era::Modern);
        client.capabilities = capabilities;
        assert!(client.call("one_echo", json!({})).await["result"].is_object());
    }
    assert_eq!(fake.get(|state| state.opened), before + 2);
}

#[tokio::test]
async fn a_modern_server_asks_a_legacy_client_in_rounds_and_not_for_ever() {
    let (fake, hub) = asking(Era::Modern, vec![vec![form(), roots()], vec![], vec![sampling()]]).await;
    let client = legacy(&hub, "/mcp").await;
    let message = client.message(json!(1), "tools/call", json!({"name": "one_echo"}));
    let mut stream = Reader::of(client.send(client.request(&message)).await);
    for _ in 0..3 {
        let question = stream.next().await;
        let result = json!({"to": question["method"]});
        client.notify(json!({"jsonrpc": "2.0", "id": question["id"], "result": result})).await;
    }
    assert_eq!(text(&stream.next().await), json!({"key 0": {"to": "sampling/createMessage"}}));
    let calls = fake.calls();
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[1].1["params"]["inputResponses"]["key 1"], json!({"to": "roots/list"}));
    assert_eq!(calls[2].1["params"].get("inputResponses"), None, "nobody was asked anything");
    fake.set(|state| state.rounds = vec![vec![roots()]; 20]);
    let mut stream = Reader::of(client.send(client.request(&message)).await);
    loop {
        let question = stream.next().await;
        if question["method"].is_null() {
            assert_eq!(question["error"]["code"], 1006, "{question}");
            break;
        }
        client.notify(json!({"jsonrpc": "2.0", "id": question["id"], "result": {}})).await;
    }
    assert_eq!(fake.calls().len(), 4 + 11);
}

#[tokio::test]
async fn a_legacy_client_that_cannot_be_asked_or_refuses_gets_a_defined_error() {
    let (fake, hub) = asking(Era::Modern, vec![vec![sampling()]]).await;
    let mut unable = hub.client("/mcp", Era::Legacy);
    unable.initialize(json!({"elicitation": {}})).await;
    assert_eq!(unable.call("one_echo", json!({})).await["error"]["code"], 1006);
    let told = &fake.calls()[0].1["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    assert_eq!(told, &json!({"elicitation": {}}));
    // A client without a session, and one that takes no streams.
    assert_eq!(hub.client("/mcp", Era::Legacy).call("one_echo", json!({})).await["error"]["code"], 1006);
    let client = legacy(&hub, "/mcp").await;
    let message = client.message(json!(1), "tools/call", json!({"name": "one_echo"}));
    let mut request = client.request(&message);
    request.headers_mut().insert("accept", "application/json".parse().unwrap());
    assert_eq!(read(client.send(request).await).await[0]["error"]["code"], 1006);
    let mut stream = Reader::of(client.send(client.request(&message)).await);
    let question = stream.next().await;
    let refusal = json!({"code": -1, "message": "User rejected sampling request"});
    client.notify(json!({"jsonrpc": "2.0", "id": question["id"], "error": refusal})).await;
    let answer = stream.next().await;
    assert_eq!((&answer["error"]["code"], &answer["error"]["data"]["refusal"]), (&json!(1006), &refusal));
}

#[tokio::test]
async fn a_legacy_client_that_is_being_asked_can_cancel() {
    let (fake, hub) = asking(Era::Modern, vec![vec![form()]]).await;
    let client = legacy(&hub, "/mcp").await;
    let message = client.message(json!("c"), "tools/call", json!({"name": "one_echo"}));
    let response = client.send(client.request(&message)).await;
    let mut stream = Reader::of(response);
    let question = stream.next().await;
    client.notify(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c"}})).await;
    stream.ended().await;
    client.notify(json!({"jsonrpc": "2.0", "id": question["id"], "result": {}})).await;
    assert_eq!(fake.calls().len(), 1, "it is not made again");
}

#[tokio::test]
async fn questions_pass_between_equal_eras_on_both_endpoints() {
    let (fake, hub) = asking(Era::Modern, vec![vec![form()]]).await;
    for (path, tool) in ENDPOINTS {
        let client = modern(&hub, path);
        let asked = client.call(tool, json!({})).await;
        assert_eq!(asked["result"]["requestState"], "1", "the server's own state");
        let done = again(&client, tool, &asked, json!({"key 0": {"action": "accept"}})).await;
        assert_eq!(text(&done), json!({"key 0": {"action": "accept"}}));
    }
    drop((fake, hub));
    let (fake, hub) = asking(Era::Legacy, vec![vec![sampling(), roots()]]).await;
    for (path, tool) in ENDPOINTS {
        let client = legacy(&hub, path).await;
        let message = client.message(json!(5), "tools/call", json!({"name": tool}));
        let mut stream = Reader::of(client.send(client.request(&message)).await);
        let (one, two) = (stream.next().await, stream.next().await);
        assert_eq!((&one["method"], &two["method"]), (&sampling()["method"], &roots()["method"]));
        // In another order than they were asked.
        for question in [&two, &one] {
            let result = json!({"to": question["method"]});
            client.notify(json!({"jsonrpc": "2.0", "id": question["id"], "result": result})).await;
        }
        let done = stream.next().await;
        assert_eq!(text(&done), json!([{"to": "sampling/createMessage"}, {"to": "roots/list"}]), "{path}");
    }
    let told = fake.seen("initialize").pop().unwrap()["params"]["capabilities"].clone();
    assert_eq!(told, everything(), "a legacy server is told what the client said");
}

#[tokio::test]
async fn a_legacy_client_tells_legacy_servers_of_changed_roots_in_its_own_sessions() {
    let (fake, hub) = asking(Era::Legacy, vec![]).await;
    for (path, tool) in ENDPOINTS {
        let (client, other) = (legacy(&hub, path).await, legacy(&hub, path).await);
        for client in [&client, &other] {
            assert!(client.call(tool, json!({})).await["result"].is_object());
        }
        let session = fake.calls()[fake.calls().len() - 2].0["mcp-session-id"].clone();
        fake.set(|state| state.seen.clear());
        client.notify(json!({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"})).await;
        let told = fake.get(|state| state.seen.clone());
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (&told[0].0["mcp-session-id"], &told[0].1["method"]),
            (&session, &json!("notifications/roots/list_changed"))
        );
    }
}

#[tokio::test]
async fn two_servers_that_ask_under_one_id_are_told_apart() {
    let (one, two) = (Fake::start(Era::Legacy, "one").await, Fake::start(Era::Legacy, "two").await);
    let mut second = two.per_client("one");
    second.name = "two".to_owned();
    second.uid = "uid-two".to_owned();
    let hub = Hub::start(config(vec![one.per_client("one"), second])).await;
    ready(&hub).await;
    for fake in [&one, &two] {
        fake.set(|state| {
            state.fault = Fault::Ask;
            state.rounds = vec![vec![roots()]];
        });
    }
    let client = legacy(&hub, "/mcp").await;
    let mut streams = Vec::new();
    for (id, tool) in [(1, "one_echo"), (2, "two_echo")] {
        let message = client.message(json!(id), "tools/call", json!({"name": tool}));
        let mut stream = Reader::of(client.send(client.request(&message)).await);
        let question = stream.next().await;
        streams.push((tool, stream, question));
    }
    assert_ne!(streams[0].2["id"], streams[1].2["id"]);
    for (tool, _, question) in streams.iter().rev() {
        client.notify(json!({"jsonrpc": "2.0", "id": question["id"], "result": {"for": tool}})).await;
    }
    for (tool, stream, _) in &mut streams {
        assert_eq!(text(&stream.next().await), json!([{"for": tool}]));
    }
}
