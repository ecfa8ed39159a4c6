//! How the server asks in the middle of a call.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mcp_hub_mcp::sse;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use super::server::State;
use super::streams::Told;

/// Asks on the call's stream, as legacy servers do; the answers in the order of the questions.
pub(super) async fn ask(
    round: Vec<Value>,
    sender: &mpsc::Sender<Result<Bytes, std::io::Error>>,
    state: &Arc<Mutex<State>>,
) -> Vec<Value> {
    let mut ids = Vec::new();
    for mut question in round {
        let id = {
            let mut state = state.lock().unwrap();
            state.asked += 1;
            json!(format!("q{}", state.asked))
        };
        question["jsonrpc"] = "2.0".into();
        question["id"] = id.clone();
        ids.push(id);
        sender.send(Ok(sse::event(question.to_string().as_bytes()))).await.ok();
    }
    loop {
        let answers: Vec<Value> = {
            let state = state.lock().unwrap();
            let answer = |id: &Value| state.seen.iter().find(|(_, body)| body["id"] == *id && body["method"].is_null());
            ids.iter().filter_map(|id| Some(answer(id)?.1.clone())).collect()
        };
        if answers.len() == ids.len() {
            let told = |answer: &Value| answer.get("result").or(answer.get("error")).cloned().unwrap();
            return answers.iter().map(told).collect();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Says on the session's stream what would belong into the call's.
pub(super) async fn say_beside(
    mut asked: mpsc::Receiver<Result<Bytes, std::io::Error>>,
    notify: broadcast::Sender<Told>,
    session: Option<String>,
) {
    while let Some(Ok(event)) = asked.recv().await {
        let text = String::from_utf8(event.to_vec()).unwrap();
        let message = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        notify.send(Told { session: session.clone(), message: serde_json::from_str(message).unwrap() }).ok();
    }
}

/// What a modern server answers that keeps nothing between the rounds.
pub(super) fn next_round(params: &Value, state: &Arc<Mutex<State>>) -> Value {
    let rounds = state.lock().unwrap().rounds.clone();
    let round: usize = params["requestState"].as_str().map_or(0, |state| state.parse().unwrap());
    match rounds.get(round) {
        Some(questions) => {
            let key = |(n, question): (usize, &Value)| (format!("key {n}"), question.clone());
            let requests: serde_json::Map<String, Value> = questions.iter().enumerate().map(key).collect();
            let mut result = json!({"resultType": "input_required", "requestState": (round + 1).to_string()});
            if !requests.is_empty() {
                result["inputRequests"] = requests.into();
            }
            result
        }
        None => {
            let text = params["inputResponses"].to_string();
            let call = params["arguments"]["call"].clone();
            json!({"resultType": "complete", "content": [{"type": "text", "text": text}], "call": call})
        }
    }
}
