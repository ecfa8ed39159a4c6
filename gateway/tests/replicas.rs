//! Several replicas of one gateway behind one address: whichever a request reaches, it is as if there were one.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use http::{Method, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{GatewayConfig, Upstream};
use serde_json::{Value, json};
use support::{Client, Fake, Fault, Reader, Replica, config, send, wait_for};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const ENDPOINTS: [(&str, &str); 2] = [("/mcp", "one_echo"), ("/servers/one/mcp", "echo")];

fn everything() -> Value {
    json!({"sampling": {}, "elicitation": {"form": {}}, "roots": {"listChanged": true}})
}

fn of(upstream: Upstream) -> GatewayConfig {
    config(vec![upstream])
}

async fn pair(config: &GatewayConfig, arguments: &[&str]) -> [Replica; 2] {
    Replica::several(2, config, arguments).await.try_into().unwrap()
}

/// A legacy client that can be asked everything, with a session that this replica opened.
async fn legacy(replica: &Replica, path: &str) -> Client {
    let mut client = replica.client(path, Era::Legacy);
    client.initialize(everything()).await;
    client
}

fn modern(replica: &Replica, path: &str) -> Client {
    let mut client = replica.client(path, Era::Modern);
    client.capabilities = everything();
    client
}

/// Sessions in which the calls reached the server, in order.
fn sessions(fake: &Fake) -> Vec<String> {
    fake.calls().iter().map(|(headers, _)| headers["mcp-session-id"].to_str().unwrap().to_owned()).collect()
}

/// The messages that answer a call with this id.
fn calling(client: &Client, id: i64, tool: &str) -> JoinHandle<Vec<Value>> {
    let message = client.message(json!(id), "tools/call", json!({"name": tool, "arguments": {}}));
    let client = client.clone();
    tokio::spawn(async move { client.messages(&message).await })
}

/// A call that goes on with what it was asked.
async fn again(client: &Client, tool: &str, asked: &Value) -> Value {
    let requests = asked["result"]["inputRequests"].as_object().unwrap_or_else(|| panic!("{asked}"));
    let answers: serde_json::Map<String, Value> =
        requests.keys().map(|key| (key.clone(), json!({"roots": []}))).collect();
    let state = &asked["result"]["requestState"];
    client
        .ask("tools/call", json!({"name": tool, "arguments": {}, "inputResponses": answers, "requestState": state}))
        .await
}

/// A server with a session for each client, which asks for roots before it answers.
async fn asking(era: Era) -> Fake {
    let fake = Fake::start(era, "one").await;
    fake.set(|state| {
        state.fault = Fault::Ask;
        state.rounds = vec![vec![json!({"method": "roots/list", "params": {}})]];
    });
    fake
}

#[tokio::test]
async fn what_is_bound_to_no_replica_is_served_by_any_and_never_forwarded() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [a, b] = pair(&of(fake.upstream("one")), &[]).await;
    for (path, tool) in ENDPOINTS {
        let on_a = legacy(&a, path).await;
        let on_b = b.instead(&on_a);
        for client in [&on_a, &on_b, &on_a, &on_b, &modern(&a, path), &modern(&b, path)] {
            let answer = client.call(tool, json!({})).await;
            assert!(answer["result"]["content"].is_array(), "{answer}");
            assert!(!client.tool_names().await.is_empty());
        }
    }
    assert_eq!((a.forwarded().await, b.forwarded().await, fake.calls().len()), (0, 0, 12));
}

#[tokio::test]
async fn a_client_has_one_session_with_a_server_whichever_replica_it_reaches() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [a, b] = pair(&of(fake.per_client("one")), &[]).await;
    for (turn, (path, tool)) in ENDPOINTS.into_iter().enumerate() {
        let on_a = legacy(&a, path).await;
        for client in [b.instead(&on_a), on_a.clone(), b.instead(&on_a)] {
            let answer = client.call(tool, json!({"x": 1})).await;
            assert!(answer["result"]["content"].is_array(), "{answer}");
        }
        let sessions = &sessions(&fake)[turn * 3..];
        assert!(sessions.iter().all(|session| *session == sessions[0]), "{sessions:?}");
    }
    // Clients without a session share one by their token.
    for path_of in [&a, &b, &a] {
        modern(path_of, "/mcp").call("one_echo", json!({})).await;
    }
    let sessions = sessions(&fake);
    assert!(sessions[6..].iter().all(|session| *session == sessions[6]), "{sessions:?}");
    assert!(b.forwarded().await >= 4 && a.forwarded().await <= 2);
}

#[tokio::test]
async fn a_call_that_waits_on_one_replica_goes_on_by_way_of_another() {
    let fake = asking(Era::Legacy).await;
    let [a, b] = pair(&of(fake.per_client("one")), &[]).await;
    for (path, tool) in ENDPOINTS {
        for (first, then) in [(&a, &b), (&b, &a)] {
            let asked = modern(first, path).call(tool, json!({})).await;
            let done = again(&modern(then, path), tool, &asked).await;
            assert_eq!(done["result"]["resultType"], "complete", "{done}");
        }
    }
    assert_eq!(fake.calls().len(), 4, "each call reached the server once");
}

#[tokio::test]
async fn a_legacy_client_answers_by_way_of_any_replica() {
    let fake = asking(Era::Modern).await;
    let [a, b] = pair(&of(fake.upstream("one")), &[]).await;
    for (path, tool) in ENDPOINTS {
        let client = legacy(&a, path).await;
        // The server is everybody's, so that the replica reached makes the call, whoever opened the session.
        for (calls, answers) in [(&a, &b), (&b, &a)] {
            let caller = calls.instead(&client);
            let message = caller.message(json!(5), "tools/call", json!({"name": tool, "arguments": {}}));
            let mut stream = Reader::of(caller.send(caller.request(&message)).await);
            let question = stream.next().await;
            assert_eq!(question["method"], "roots/list");
            let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": []}});
            answers.instead(&client).notify(answer).await;
            let done = stream.next().await;
            assert_eq!((&done["id"], done["result"].is_object()), (&json!(5), true), "{done}");
        }
    }
}

#[tokio::test]
async fn a_legacy_client_answers_its_own_server_by_way_of_any_replica() {
    let fake = asking(Era::Legacy).await;
    let [a, b] = pair(&of(fake.per_client("one")), &[]).await;
    for (path, tool) in ENDPOINTS {
        let client = legacy(&a, path).await;
        let caller = b.instead(&client);
        let message = caller.message(json!(5), "tools/call", json!({"name": tool, "arguments": {}}));
        let mut stream = Reader::of(caller.send(caller.request(&message)).await);
        let question = stream.next().await;
        caller.notify(json!({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": []}})).await;
        let done = stream.next().await;
        assert_eq!((&done["id"], done["result"].is_object()), (&json!(5), true), "{done}");
    }
}

#[tokio::test]
async fn a_call_is_cancelled_by_way_of_any_replica() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [a, b] = pair(&of(fake.upstream("one")), &[]).await;
    fake.set(|state| state.fault = Fault::Hang);
    let client = legacy(&a, "/mcp").await;
    let call = calling(&b.instead(&client), 9, "one_echo");
    wait_for("the call to be under way", || fake.calls().len() == 1).await;
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}});
    client.notify(cancelled).await;
    wait_for("the server to be told", || !fake.seen("notifications/cancelled").is_empty()).await;
    call.abort();
}

#[tokio::test]
async fn a_stream_brings_what_was_asked_for_by_way_of_any_replica() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [a, b] = pair(&of(fake.upstream("one")), &[]).await;
    let client = legacy(&a, "/mcp").await;
    let on_b = b.instead(&client);
    let mut stream = on_b.stream().await;
    let answer = client.ask("resources/subscribe", json!({"uri": "one+test://text"})).await;
    assert!(answer["result"].is_object(), "{answer}");
    let answer = on_b.ask("resources/subscribe", json!({"uri": "one+test://other"})).await;
    assert!(answer["result"].is_object(), "{answer}");
    let answer = on_b.ask("logging/setLevel", json!({"level": "error"})).await;
    assert!(answer["result"].is_object(), "{answer}");
    for uri in ["test://text", "test://nobodys", "test://other"] {
        fake.update(uri);
    }
    fake.log("debug");
    fake.log("error");
    let mut told = Vec::new();
    for _ in 0..3 {
        let message = stream.next().await;
        told.push(message["params"]["uri"].as_str().or(message["params"]["level"].as_str()).unwrap().to_owned());
    }
    assert_eq!(told, ["one+test://text", "one+test://other", "error"]);
}

#[tokio::test]
async fn a_session_that_was_ended_by_way_of_one_replica_is_over_on_all() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [a, b] = pair(&of(fake.per_client("one")), &[]).await;
    let client = legacy(&a, "/mcp").await;
    client.call("one_echo", json!({})).await;
    let on_b = b.instead(&client);
    let request = |client: &Client, method| {
        let mut request = client.request(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}));
        *request.method_mut() = method;
        request
    };
    // Sessions that the gateways themselves opened to look are over, too.
    let before = fake.get(|state| state.deleted);
    assert_eq!(on_b.send(request(&on_b, Method::DELETE)).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(on_b.send(request(&on_b, Method::POST)).await.status(), StatusCode::NOT_FOUND);
    a.until("it is over on the other too", || async {
        client.send(request(&client, Method::POST)).await.status() == StatusCode::NOT_FOUND
    })
    .await;
    wait_for("the server's session to end", || fake.get(|state| state.deleted) > before).await;
}

#[tokio::test]
async fn the_others_agree_on_who_takes_over_from_a_replica_that_is_gone() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut replicas = Replica::several(3, &of(fake.per_client("one")), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = legacy(&replicas[0], "/mcp").await;
        client.call("one_echo", json!({})).await;
        clients.push(client);
    }
    let before = sessions(&fake);
    replicas[0].kill();
    for (client, old) in clients.iter().zip(&before) {
        let done = fake.calls().len();
        for replica in [&replicas[1], &replicas[2], &replicas[1]] {
            let answer = replica.instead(client).call("one_echo", json!({})).await;
            assert!(answer["result"]["content"].is_array(), "{answer}");
        }
        let now = &sessions(&fake)[done..];
        assert!(now.iter().all(|session| *session == now[0] && session != old), "{old} then {now:?}");
    }
    // It was opened again as the client that it is for.
    let told = fake.seen("initialize").pop().unwrap();
    assert_eq!(told["params"]["capabilities"]["sampling"], json!({}));
}

#[tokio::test]
async fn what_one_replica_took_over_stays_there_when_others_come() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut replicas = Replica::several(3, &of(fake.per_client("one")), &[]).await;
    replicas[2].kill();
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(legacy(&replicas[0], "/mcp").await);
    }
    let unused = clients.split_off(4);
    replicas[0].kill();
    for client in &clients {
        replicas[1].instead(client).call("one_echo", json!({})).await;
    }
    let taken_over = sessions(&fake);
    replicas[2].restart().await;
    // Until the newcomer is seen: one that could not be reached is not tried for a while.
    for client in unused {
        replicas[1].instead(&client).call("one_echo", json!({})).await;
        if replicas[1].forwarded().await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(replicas[1].forwarded().await > 0, "what nobody has goes to either");
    for (client, session) in clients.iter().zip(&taken_over) {
        for replica in [&replicas[2], &replicas[1]] {
            let answer = replica.instead(client).call("one_echo", json!({})).await;
            assert!(answer["result"].is_object(), "{answer}");
            assert_eq!(sessions(&fake).last(), Some(session));
        }
    }
}

#[tokio::test]
async fn what_was_under_way_on_a_replica_that_is_gone_gets_a_defined_error() {
    let fake = asking(Era::Legacy).await;
    let [mut a, b] = pair(&of(fake.per_client("one")), &[]).await;
    // A call that waits for its client: it is gone with the replica.
    let mut asked = Vec::new();
    for _ in 0..2 {
        asked.push(modern(&a, "/mcp").call("one_echo", json!({})).await);
    }
    let waiting = a.metric("mcp_hub_gateway_parked_calls").await;
    assert!(waiting == 0 || waiting == 2, "one token, one holder");
    // A call of a session of the replica, made by way of the other, before and after its answer has begun.
    let client = legacy(&a, "/mcp").await;
    let on_b = b.instead(&client);
    let message = on_b.message(json!("begun"), "tools/call", json!({"name": "one_echo", "arguments": {}}));
    let mut begun = Reader::of(on_b.send(on_b.request(&message)).await);
    assert_eq!(begun.next().await["method"], "roots/list");
    fake.set(|state| state.fault = Fault::Hang);
    let hanging = calling(&on_b, 2, "one_echo");
    wait_for("the call to be under way", || fake.calls().len() == 4).await;

    a.kill();
    for (answer, id) in [(begun.next().await, json!("begun")), (hanging.await.unwrap().pop().unwrap(), json!(2))] {
        assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(1001), &id), "{answer}");
    }
    fake.set(|state| state.fault = Fault::Ask);
    for call in asked {
        let answer = again(&modern(&b, "/mcp"), "one_echo", &call).await;
        if waiting == 2 {
            assert_eq!(answer["error"]["code"], 1008, "{answer}");
        } else {
            assert_eq!(answer["result"]["resultType"], "complete", "{answer}");
        }
    }
    // The session goes on.
    fake.set(|state| state.fault = Fault::None);
    assert!(on_b.call("one_echo", json!({})).await["result"].is_object());
    assert!(b.metric("mcp_hub_gateway_taken_over_total").await >= 1);
}

#[tokio::test]
async fn a_call_that_waits_on_a_replica_that_ends_goes_on_by_way_of_another() {
    let fake = asking(Era::Legacy).await;
    let arguments = ["--drain-delay", "0", "--drain-limit", "20"];
    let mut replicas = Vec::from(pair(&of(fake.per_client("one")), &arguments).await);
    let asked = modern(&replicas[0], "/mcp").call("one_echo", json!({})).await;
    let holder = usize::from(replicas[1].metric("mcp_hub_gateway_parked_calls").await == 1);
    let mut ends = replicas.remove(holder);
    let stays = replicas.remove(0);
    ends.terminate();
    let url = format!("http://{}/healthz", ends.listen);
    stays
        .until("the other takes no clients", || async {
            send(Method::GET, &url, None, Default::default()).await.0 == StatusCode::BAD_GATEWAY
        })
        .await;
    let done = again(&modern(&stays, "/mcp"), "one_echo", &asked).await;
    assert_eq!(done["result"]["resultType"], "complete", "{done}");
    assert_eq!(ends.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_sessions_of_a_replica_that_ends_go_on_elsewhere_with_what_was_asked_for_in_them() {
    let (own, shared) = (Fake::start(Era::Legacy, "own").await, Fake::start(Era::Legacy, "shared").await);
    let config = config(vec![own.per_client("own"), shared.upstream("shared")]);
    let mut replicas = Replica::several(3, &config, &["--drain-delay", "0"]).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = legacy(&replicas[0], "/mcp").await;
        client.call("own_echo", json!({})).await;
        let answer = client.ask("resources/subscribe", json!({"uri": "shared+test://text"})).await;
        assert!(answer["result"].is_object(), "{answer}");
        clients.push(client);
    }
    let before = sessions(&own);
    let mut stream = clients[0].stream().await;
    replicas[0].terminate();
    stream.ended().await;
    assert_eq!(replicas[0].ended().await.code(), Some(0));
    for (place, client) in clients.iter().enumerate() {
        let client = replicas[1 + place % 2].instead(client);
        let mut stream = client.stream().await;
        client.call("own_echo", json!({})).await;
        assert_eq!(sessions(&own).pop().as_ref(), Some(&before[place]), "the session that it had");
        shared.update("test://text");
        assert_eq!(stream.next().await["params"]["uri"], "shared+test://text");
    }
}

#[tokio::test]
async fn nothing_of_a_client_goes_to_whoever_has_the_address_of_a_replica_that_is_gone() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [mut a, b] = pair(&of(fake.per_client("one")), &[]).await;
    let client = legacy(&a, "/mcp").await;
    a.kill();
    let stranger = TcpListener::bind(a.control).await.unwrap();
    let heard = tokio::spawn(async move {
        let mut heard = Vec::new();
        let (mut stream, _) = stranger.accept().await.unwrap();
        // Until the replica gives up.
        stream.read_to_end(&mut heard).await.ok();
        String::from_utf8(heard).unwrap()
    });
    let answer = b.instead(&client).call("one_echo", json!({"secret": "of the client"})).await;
    assert!(answer["result"]["content"].is_array(), "{answer}");
    let heard = heard.await.unwrap();
    assert!(heard.starts_with("GET /forward/hello "), "{heard}");
    assert!(!heard.contains("secret") && !heard.contains(support::TOKEN), "{heard}");
}

#[tokio::test]
async fn only_a_replica_of_the_hub_can_forward() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let [a, _b] = pair(&of(fake.upstream("one")), &[]).await;
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo"}}).to_string();
    for path in ["/forward/mcp", "/forward/servers/one/mcp", "/forward/hello", "/forward/../mcp"] {
        let url = format!("http://{}{path}", a.control);
        let (status, _) = send(Method::POST, &url, Some(support::TOKEN), message.clone().into()).await;
        assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{path}");
        let url = format!("http://{}{path}", a.listen);
        let (status, _) = send(Method::POST, &url, Some(support::TOKEN), message.clone().into()).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    assert!(fake.calls().is_empty());
}
