//! Whatever the mix of clients, ids, cancellations, departures and kills: each caller gets exactly one answer, its own.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use bytes::Bytes;
use harness::{Bridge, Events, Session, is_stream, join_all, kill, launch, marked, text_of};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mcp_hub_dataplane_api::SessionMode;
use mcp_hub_mcp::error;
use proptest::prelude::*;
use rustix::process::Signal;
use serde_json::{Value, json};

/// How clients and servers meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meeting {
    /// Legacy clients that share a process.
    Shared,
    /// Legacy clients with a process each.
    Own,
    /// Modern clients, which have no sessions: all their ids may be equal.
    Modern,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Answered at once.
    Answered,
    /// Answered with so many KiB, in a message that takes several reads.
    Large(usize),
    /// Answered after so many milliseconds.
    Slow(u64),
    /// Progress comes before the answer.
    Progress,
    /// The client cancels it.
    Cancelled,
    /// The client goes away after so many milliseconds.
    Left(u64),
}

#[derive(Debug, Clone)]
struct Call {
    client: usize,
    end: End,
    id: Value,
}

#[derive(Debug, Clone)]
struct Mix {
    meeting: Meeting,
    calls: Vec<Call>,
    /// Milliseconds after the begin at which a process of the server is killed, and which.
    kills: Vec<(u64, usize)>,
}

const CLIENTS: usize = 3;
/// Longest time of all calls of a mix, most of which take half a second.
const LONGEST: Duration = Duration::from_secs(20);
/// Longer than any case.
const FOR_EVER_MS: u64 = 600_000;

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Answered),
        (1..400_usize).prop_map(End::Large),
        (1..400_u64).prop_map(End::Slow),
        Just(End::Progress),
        Just(End::Cancelled),
        (1..80_u64).prop_map(End::Left),
    ]
}

/// The ids of one client's calls differ, as the protocol asks; those of several clients do not.
fn mix() -> impl Strategy<Value = Mix> {
    let meeting = prop_oneof![Just(Meeting::Shared), Just(Meeting::Own), Just(Meeting::Modern)];
    let calls = proptest::collection::vec((0..CLIENTS, end(), proptest::bool::weighted(0.2)), 1..40);
    // Few enough that a restart follows each.
    let kills = proptest::collection::vec((0..200_u64, any::<usize>()), 0..3);
    (meeting, calls, kills).prop_map(|(meeting, calls, kills)| {
        let mut counts = [0; CLIENTS];
        let numbered = calls.into_iter().map(|(client, end, is_text)| {
            counts[client] += usize::from(meeting != Meeting::Modern);
            let id = if is_text { json!(counts[client].to_string()) } else { json!(counts[client]) };
            Call { client, end, id }
        });
        Mix { meeting, calls: numbered.collect(), kills }
    })
}

/// The bridge, and the sessions of its clients, of which modern ones have none.
struct Scene<'a> {
    bridge: &'a Bridge,
    sessions: Vec<Session<'a>>,
    meeting: Meeting,
}

impl Scene<'_> {
    async fn post(&self, call: &Call, tool: &str, arguments: Value) -> Response<Incoming> {
        let mut params = json!({"name": tool, "arguments": arguments, "_meta": {"progressToken": call.id}});
        let message =
            |params: Value| json!({"jsonrpc": "2.0", "id": call.id, "method": "tools/call", "params": params});
        if self.meeting != Meeting::Modern {
            return self.sessions[call.client].post(&message(params)).await;
        }
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        self.bridge.post(&message(params), &[("mcp-protocol-version", "2026-07-28")]).await
    }

    /// Makes the call; its answer if there is to be one.
    async fn make(&self, number: usize, call: &Call) -> Option<Value> {
        let mark = FOR_EVER_MS + number as u64;
        let (tool, arguments) = match call.end {
            End::Answered => ("echo", json!({"text": format!("call {number}")})),
            End::Large(kib) => ("echo", json!({"text": format!("call {number} {}", "z".repeat(kib << 10))})),
            End::Slow(ms) => ("sleep", json!({"ms": ms})),
            End::Progress => ("slow_progress", json!({"ms": 5, "n": 4})),
            End::Cancelled | End::Left(_) => ("sleep", json!({"ms": mark})),
        };
        let answering = async { only(self.post(call, tool, arguments).await, &call.id).await };
        match call.end {
            End::Cancelled => tokio::select! {
                // The server was killed first.
                answer = answering => Some(answer),
                () = self.cancel(call, mark) => None,
            },
            End::Left(ms) => tokio::time::timeout(Duration::from_millis(ms), answering).await.ok(),
            _ => Some(answering.await),
        }
    }

    /// Cancels until the server has noticed: the call may not have reached it yet. Modern clients cancel by going away,
    /// which the caller does.
    async fn cancel(&self, call: &Call, mark: u64) {
        let noticed = format!("a sleep was cancelled: {mark}");
        while !self.bridge.log().contains(&noticed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.meeting == Meeting::Modern {
                return;
            }
            self.sessions[call.client].notify("notifications/cancelled", json!({"requestId": call.id})).await;
        }
    }
}

/// The one answer in a response, which is the last thing in it.
async fn only(response: Response<Incoming>, id: &Value) -> Value {
    let mut messages = Vec::new();
    if is_stream(response.headers()) {
        let mut events = Events::of(response);
        while let Some(message) = events.next().await {
            messages.push(message);
        }
    } else {
        let body: Bytes = response.into_body().collect().await.unwrap().to_bytes();
        messages.push(serde_json::from_slice(&body).unwrap());
    }
    let answer = messages.pop().expect("a response without an answer");
    for message in messages {
        assert_eq!(message["method"], "notifications/progress", "before the answer came {message}");
        assert_eq!(message["params"]["progressToken"], *id);
    }
    assert_eq!(answer["id"], *id, "{answer}");
    answer
}

fn check(call: &Call, number: usize, answer: Option<&Value>, is_killed: bool) {
    let Some(answer) = answer else {
        return assert!(matches!(call.end, End::Cancelled | End::Left(_)), "call {number} was not answered: {call:?}");
    };
    if is_killed && answer["error"]["code"] == error::SERVER_GONE {
        return;
    }
    assert!(answer["result"].is_object(), "{call:?}: {answer}");
    let text = text_of(answer);
    match call.end {
        End::Answered => assert_eq!(text, format!("call {number}")),
        End::Large(kib) => assert_eq!(text, format!("call {number} {}", "z".repeat(kib << 10))),
        End::Slow(_) => assert_eq!(text, "awake"),
        End::Progress => assert_eq!(text, "done"),
        End::Cancelled | End::Left(_) => panic!("{call:?} was answered: {answer}"),
    }
}

/// Kills one of the server's processes.
async fn strike(bridge: &Bridge, ms: u64, which: usize) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    let processes = marked(&bridge.spec.owner.id);
    if !processes.is_empty() {
        kill(processes[which % processes.len()], Signal::KILL);
    }
}

async fn run(mix: Mix, bridge: &Bridge) {
    let mut sessions = Vec::new();
    if mix.meeting != Meeting::Modern {
        for client in 0..CLIENTS {
            sessions.push(bridge.session(&format!("client {client}")).await);
        }
    }
    let scene = Scene { bridge, sessions, meeting: mix.meeting };
    let making = join_all(mix.calls.iter().enumerate().map(|(number, call)| scene.make(number, call)).collect());
    let killing = join_all(mix.kills.iter().map(|(ms, which)| strike(bridge, *ms, *which)).collect());
    let made = tokio::time::timeout(LONGEST, async { tokio::join!(making, killing).0 });
    for (number, answer) in made.await.expect("a call has no end").iter().enumerate() {
        check(&mix.calls[number], number, answer.as_ref(), !mix.kills.is_empty());
    }
    // Nothing is left behind, and everybody goes on.
    bridge.until(|status| status.activity.calls_in_flight == 0).await;
    for client in 0..CLIENTS {
        let call = Call { client, end: End::Answered, id: json!("after") };
        let mut answer = scene.make(1000, &call).await.unwrap();
        // A process that was killed a moment ago may have been seen by this call, too.
        while !mix.kills.is_empty() && answer["error"]["code"] == error::SERVER_GONE {
            answer = scene.make(1000, &call).await.unwrap();
        }
        check(&call, 1000, Some(&answer), false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 2, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_caller_gets_exactly_one_answer_and_it_is_its_own(mix in mix()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let era = if mix.meeting == Meeting::Modern { "modern" } else { "legacy" };
            let mut spec = launch(&["stdio", "--era", era]);
            if mix.meeting == Meeting::Own {
                spec.sessions.mode = SessionMode::PerClient;
            }
            let bridge = Bridge::ready(spec).await;
            run(mix, &bridge).await;
        });
    }
}
