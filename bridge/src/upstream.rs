//! A running server as the bridge reaches it: messages over one channel, or HTTP.

use std::time::Instant;

use mcp_hub_mcp::envelope::{Envelope, write_request};

use crate::handshake::HandshakeError;
use crate::http_child::HttpChild;
use crate::link::{Link, Purpose};

/// Cheap to clone.
#[derive(Debug, Clone)]
pub enum Upstream {
    Messages(Link),
    Http(HttpChild),
}

impl Upstream {
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Messages(link) => link.is_closed(),
            Self::Http(child) => child.is_closed(),
        }
    }

    /// Ends the connection: whoever waits for an answer is told.
    pub fn close(&self) {
        match self {
            Self::Messages(link) => link.close(),
            Self::Http(child) => child.close(),
        }
    }

    /// Resolves when the server has said all it had to say, as far as that can be known.
    pub async fn drained(&self) {
        match self {
            Self::Messages(link) => link.closed().await,
            Self::Http(_) => {}
        }
    }

    /// Calls of clients under way.
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Messages(link) => link.in_flight(),
            Self::Http(child) => child.in_flight(),
        }
    }

    /// Sends a request of the bridge's own and waits for its raw result.
    pub async fn ask(&self, method: &'static str, params: &str, deadline: Instant) -> Result<String, HandshakeError> {
        let seconds = deadline.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
        let message = write_request(Some("0"), method, Some(params));
        let envelope = Envelope::parse(&message).map_err(|_| HandshakeError::Ended)?;
        let exchange = async {
            match self {
                Self::Messages(link) => {
                    let exchange = link.request(&message, &envelope, None, Purpose::Own).await;
                    let exchange = exchange.map_err(|_| HandshakeError::Ended)?;
                    exchange.answer.await.map_err(|_| HandshakeError::Ended)
                }
                Self::Http(child) => child.ask(&message, method).await,
            }
        };
        let answer = tokio::time::timeout_at(deadline.into(), exchange).await.map_err(|_| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds of a timeout")]
            HandshakeError::Silent { method, seconds: seconds as u64 }
        })??;
        let refused = |message: String| HandshakeError::Refused { method, message };
        let envelope = Envelope::parse(&answer).map_err(|error| refused(error.to_string()))?;
        match (envelope.result, envelope.error) {
            (Some(result), _) => Ok(result.get().to_owned()),
            (None, error) => {
                let error: serde_json::Value =
                    error.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
                let message = error["message"].as_str().unwrap_or("no reason given");
                Err(refused(message.chars().take(300).collect()))
            }
        }
    }

    /// Sends a notification of the bridge's own.
    pub async fn tell(&self, method: &str) -> Result<(), HandshakeError> {
        let message = write_request(None, method, None);
        let envelope = Envelope::parse(&message).map_err(|_| HandshakeError::Ended)?;
        match self {
            Self::Messages(link) => link.notify(&message, &envelope, None).await.map_err(|_| HandshakeError::Ended),
            Self::Http(child) => child.tell(&message, method).await,
        }
    }
}
