//! What the server says outside of calls.

use bytes::Bytes;
use mcp_hub_mcp::sse;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};

/// Something said outside of calls, in one session or in all.
#[derive(Debug, Clone)]
pub struct Told {
    pub session: Option<String>,
    pub message: Value,
}

/// A legacy session's stream, or a modern subscription with its filter and metadata.
#[derive(Debug)]
pub(super) enum Listening {
    Session(Option<String>),
    Subscription { wanted: Value, meta: Value },
}

impl Listening {
    fn shows(&self, told: Told) -> Option<Value> {
        let mut message = told.message;
        match self {
            Self::Session(session) => (told.session.is_none() || told.session == *session).then_some(message),
            Self::Subscription { wanted, meta } => {
                let asked = match message["method"].as_str().unwrap() {
                    "notifications/tools/list_changed" => wanted["toolsListChanged"] == true,
                    "notifications/resources/updated" => {
                        let uris = wanted["resourceSubscriptions"].as_array();
                        uris.is_some_and(|uris| uris.contains(&message["params"]["uri"]))
                    }
                    _ => false,
                };
                message["params"]["_meta"] = meta.clone();
                asked.then_some(message)
            }
        }
    }
}

pub(super) async fn forward(
    mut notifications: broadcast::Receiver<Told>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
    listening: Listening,
) {
    sender.send(Ok(Bytes::from_static(sse::COMMENT))).await.ok();
    loop {
        tokio::select! {
            received = notifications.recv() => {
                let Ok(received) = received else { return };
                let Some(message) = listening.shows(received) else { continue };
                if sender.send(Ok(sse::event(message.to_string().as_bytes()))).await.is_err() { return }
            }
            () = sender.closed() => return,
        }
    }
}
