//! Whatever the mix of clients, eras, endpoints, ids and ends: each request is answered exactly once, with its own answer.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;
use mcp_hub_dataplane_api::{Era, SessionMode};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Client, Fake, Fault, Hub, Reader, config, ready, wait_for};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answered,
    Streamed,
    /// The server asks for the client's roots first.
    Asked,
    /// The connection breaks before or while the server answers.
    Dropped,
    Broken,
    /// It hangs, and its client cancels it.
    Cancelled,
}

#[derive(Debug, Clone)]
struct Call {
    client: usize,
    server: usize,
    end: End,
    /// Equal ones meet in one session of a server.
    id: Value,
}

const SERVERS: [&str; 3] = ["old", "own", "new"];

fn end() -> impl Strategy<Value = End> {
    use End::{Answered, Asked, Broken, Cancelled, Dropped, Streamed};
    prop_oneof![Just(Answered), Just(Streamed), Just(Asked), Just(Dropped), Just(Broken), Just(Cancelled)]
}

/// The ids of one client's calls differ, those of several clients do not.
fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = (0..4_usize, 0..SERVERS.len(), end(), any::<bool>());
    proptest::collection::vec(call, 1..24).prop_map(|calls| {
        let mut counts = [0; 4];
        let mut numbered = Vec::new();
        for (client, server, end, is_text) in calls {
            counts[client] += 1;
            let id = if is_text { json!(counts[client].to_string()) } else { json!(counts[client]) };
            numbered.push(Call { client, server, end, id });
        }
        numbered
    })
}

async fn servers() -> (Vec<Fake>, Hub) {
    let mut fakes = Vec::new();
    let mut upstreams = Vec::new();
    for (name, era) in SERVERS.into_iter().zip([Era::Legacy, Era::Legacy, Era::Modern]) {
        let fake = Fake::start(era, name).await;
        fake.set(|state| state.rounds = vec![vec![json!({"method": "roots/list"})]]);
        let mut upstream = fake.upstream(name);
        if name == "own" {
            upstream.sessions = SessionMode::PerClient;
        }
        upstreams.push(upstream);
        fakes.push(fake);
    }
    let hub = Hub::start(config(upstreams)).await;
    ready(&hub).await;
    (fakes, hub)
}

/// The answer at the end of a stream, on which the client is asked and told of progress.
async fn last(client: &Client, call: &Call, number: usize, mut stream: Reader) -> Value {
    loop {
        let message = stream.next().await;
        if message["method"] == "roots/list" {
            let result = json!({"roots": [], "call": number});
            client.notify(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).await;
        } else if message["method"] == "notifications/progress" {
            assert_eq!(message["params"]["progressToken"], call.id, "{message}");
        } else {
            stream.ended().await;
            return message;
        }
    }
}

/// One call from its first request to its end; the answer, or `None` if it was cancelled.
async fn made(client: &Client, fakes: &[Fake], call: &Call, number: usize) -> Option<Value> {
    let fault = match call.end {
        End::Answered => Fault::None,
        End::Streamed => Fault::Stream,
        End::Asked => Fault::Ask,
        End::Dropped => Fault::DropUnanswered,
        End::Broken => Fault::DropMidStream,
        End::Cancelled => Fault::Hang,
    };
    let name = format!("{}_echo", SERVERS[call.server]);
    let arguments = json!({"call": number, "fault": format!("{fault:?}")});
    let mut params = json!({"name": name, "arguments": arguments, "_meta": {"progressToken": call.id}});
    let mut id = call.id.clone();
    let message = client.message(id.clone(), "tools/call", params.clone());
    if call.end == End::Cancelled {
        let sending = tokio::spawn({
            let (client, message) = (client.clone(), message);
            async move { client.send(client.request(&message)).await }
        });
        let seen = || fakes[call.server].calls().iter().any(|(_, body)| body["params"]["arguments"]["call"] == number);
        wait_for("the call", seen).await;
        if client.era == Era::Modern {
            sending.abort();
            return None;
        }
        let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        client.notify(cancelled).await;
        let messages = support::read(sending.await.unwrap()).await;
        assert!(messages.iter().all(|message| message.get("id").is_none()), "{messages:?}");
        return None;
    }
    let mut response = client.send(client.request(&message)).await;
    loop {
        let answer = if response.headers()["content-type"] == "application/json" {
            let mut messages = support::read(response).await;
            assert_eq!(messages.len(), 1);
            messages.remove(0)
        } else {
            last(client, call, number, Reader::of(response)).await
        };
        assert_eq!(answer["id"], id, "{answer}");
        if answer["result"]["resultType"] != "input_required" {
            return Some(answer);
        }
        let requests = answer["result"]["inputRequests"].as_object().unwrap();
        let given = |key: &String| (key.clone(), json!({"roots": [], "call": number}));
        params["inputResponses"] = Value::Object(requests.keys().map(given).collect());
        params["requestState"] = answer["result"]["requestState"].clone();
        id = json!(format!("again {number}"));
        response = client.send(client.request(&client.message(id.clone(), "tools/call", params.clone()))).await;
    }
}

fn check(client: &Client, call: &Call, number: usize, answer: Option<Value>) {
    let Some(answer) = answer else { return assert_eq!(call.end, End::Cancelled) };
    let shared_asks = SERVERS[call.server] == "old";
    match call.end {
        End::Answered | End::Streamed => assert_eq!(answer["result"]["call"], number, "{answer}"),
        End::Asked => {
            assert_eq!(answer["result"]["call"], number, "{answer} {:?}", client.era);
            let text = answer["result"]["content"][0]["text"].as_str().unwrap();
            let wanted = if shared_asks { "1006".to_owned() } else { format!("\"call\":{number}") };
            assert!(text.contains(&wanted), "{text}");
        }
        End::Dropped | End::Broken => assert_eq!(answer["error"]["code"], 1001, "{answer}"),
        End::Cancelled => panic!("what was cancelled is not answered: {answer}"),
    }
}

async fn run(calls: Vec<Call>) {
    let (fakes, hub) = servers().await;
    let fakes = Arc::new(fakes);
    let mut clients = Vec::new();
    for era in [Era::Legacy, Era::Legacy, Era::Modern, Era::Modern] {
        let mut client = hub.client("/mcp", era);
        client.capabilities = json!({"roots": {}});
        if era == Era::Legacy {
            client.initialize(json!({"roots": {}})).await;
        }
        clients.push(client);
    }
    let making = calls.iter().enumerate().map(|(number, call)| {
        let (client, fakes, call) = (clients[call.client].clone(), fakes.clone(), call.clone());
        tokio::spawn(async move {
            let answer = made(&client, &fakes, &call, number).await;
            check(&client, &call, number, answer);
        })
    });
    for ended in join_all(making).await {
        ended.unwrap();
    }
    // Each was made once, or once for each round.
    for (number, call) in calls.iter().enumerate() {
        let made = fakes[call.server].calls();
        let made = made.iter().filter(|(_, body)| body["params"]["arguments"]["call"] == number).count();
        let rounds = if call.end == End::Asked && SERVERS[call.server] == "new" { 2 } else { 1 };
        assert_eq!(made, rounds, "{call:?}");
    }
    // In one session no two requests have one id, or a server could not tell their answers apart.
    for fake in fakes.iter().filter(|fake| fake.get(|state| state.era == Era::Legacy)) {
        let calls = fake.calls();
        let ids: HashSet<_> =
            calls.iter().map(|(headers, body)| (&headers["mcp-session-id"], body["id"].to_string())).collect();
        assert_eq!(ids.len(), calls.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_request_is_answered_once_with_its_own_answer(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(calls));
    }
}
