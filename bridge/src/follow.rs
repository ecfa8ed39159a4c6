//! Keeping what is remembered of a server's lists true while it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, write_request};
use mcp_hub_mcp::methods;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::handshake::{Introduction, modern_meta};
use crate::link::{Link, Purpose};
use crate::server::Server;
use crate::upstream::Upstream;

/// Changes within this time are looked at once: servers that load plugins tell of each.
const SETTLE: Duration = Duration::from_millis(100);
/// Longest time for listing everything again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lists again whenever the server says that a list changed. Does not resolve.
pub async fn lists(server: &Arc<Server>, upstream: &Upstream, mut introduction: Arc<Introduction>) {
    let Upstream::Messages(link) = upstream else {
        // A server on HTTP tells its own clients; the bridge lists when it starts.
        return std::future::pending().await;
    };
    if !introduction.tells_changes() {
        return std::future::pending().await;
    }
    let mut changes = Changes::of(link, introduction.era).await;
    loop {
        changes.next(link).await;
        tokio::time::sleep(SETTLE).await;
        // A list that fails now is asked for again with the next change.
        if let Ok(renewed) = introduction.renewed(upstream, Instant::now() + PATIENCE).await {
            introduction = Arc::new(renewed);
            server.introduced(introduction.clone());
            server.board.tools_changed(introduction.summary.tools.clone());
        }
    }
}

enum Changes {
    Broadcast(tokio::sync::broadcast::Receiver<bytes::Bytes>),
    Subscription(crate::link::Exchange),
    /// The server took no subscription; its lists are what they were at the handshake.
    None,
}

impl Changes {
    async fn of(link: &Link, era: Era) -> Self {
        if era == Era::Legacy {
            return Self::Broadcast(link.listen());
        }
        let wanted = json!({
            "_meta": modern_meta(),
            "notifications": {"toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true},
        });
        let message = write_request(Some("0"), methods::LISTEN, Some(&wanted.to_string()));
        let Ok(envelope) = Envelope::parse(&message) else { return Self::None };
        match link.request(&message, &envelope, None, Purpose::Own).await {
            Ok(exchange) => Self::Subscription(exchange),
            Err(_) => Self::None,
        }
    }

    /// Resolves when a list changed.
    async fn next(&mut self, link: &Link) {
        loop {
            let message = match self {
                Self::Broadcast(receiver) => match receiver.recv().await {
                    Ok(message) => message,
                    // What was missed may have been a change.
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => return std::future::pending().await,
                },
                Self::Subscription(exchange) => match exchange.messages.recv().await {
                    Some(message) => message,
                    None => {
                        *self = Self::None;
                        continue;
                    }
                },
                Self::None => {
                    link.closed().await;
                    return std::future::pending().await;
                }
            };
            let changed = Envelope::parse(&message).is_ok_and(|envelope| {
                [methods::TOOLS_CHANGED, methods::PROMPTS_CHANGED, methods::RESOURCES_CHANGED]
                    .contains(&&*envelope.method())
            });
            if changed {
                return;
            }
        }
    }
}
