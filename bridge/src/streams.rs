//! Streams that outlive calls and restarts of the server: a legacy session's, and subscriptions of the modern era.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use mcp_hub_mcp::envelope::Envelope;
use mcp_hub_mcp::{methods, sse};
use tokio::sync::{broadcast, mpsc};

use crate::body::{Body, full, send_event, streamed};
use crate::clients::Client;
use crate::link::{Link, Purpose};
use crate::server::Server;
use crate::upstream::Upstream;

/// Silence on a stream after which a comment is sent.
pub const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Pause before a subscription is renewed that the server ended at once.
const RENEW_PAUSE: Duration = Duration::from_millis(100);

/// The stream of a legacy session: what belongs to no request.
pub fn get(session: Option<&str>, server: &Arc<Server>) -> Response<Body> {
    let Some(id) = session else { return full(StatusCode::BAD_REQUEST, "text/plain", "a stream needs a session") };
    if let Some(client) = server.clients.get(id) {
        let Some(messages) = client.mailbox.open() else {
            return full(StatusCode::CONFLICT, "text/plain", "the session has a stream already");
        };
        let (sender, response) = streamed("text/event-stream");
        tokio::spawn(until_closing(server.clone(), deliver(client, messages, sender)));
        return response;
    }
    if !server.sessions.touch(id) {
        return full(StatusCode::NOT_FOUND, "text/plain", "no such session");
    }
    let (sender, response) = streamed("text/event-stream");
    tokio::spawn(until_closing(server.clone(), forward_broadcasts(server.clone(), sender)));
    response
}

/// A stream has no end of its own that a bridge could wait for.
async fn until_closing(server: Arc<Server>, stream: impl Future<Output = ()>) {
    tokio::select! {
        () = stream => {}
        () = server.closing() => {}
    }
}

/// What the server says to its one client.
async fn deliver(client: Arc<Client>, mut messages: mpsc::Receiver<Bytes>, sender: mpsc::Sender<Bytes>) {
    loop {
        tokio::select! {
            message = messages.recv() => {
                let Some(message) = message else { break };
                if send_event(&sender, message).await.is_err() { break }
            }
            () = tokio::time::sleep(COMMENT_EVERY) => {
                if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() { break }
            }
            () = sender.closed() => break,
        }
    }
    client.mailbox.close(messages);
}

/// Follows the server over restarts until the client is gone.
async fn forward_broadcasts(server: Arc<Server>, sender: mpsc::Sender<Bytes>) {
    let mut status = server.board.watch();
    loop {
        let link = link_of(&server);
        let mut notifications = link.as_ref().map(crate::link::Link::listen);
        loop {
            let next = async {
                match &mut notifications {
                    Some(notifications) => notifications.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = next => match received {
                    Ok(message) => if send_event(&sender, message).await.is_err() { return },
                    // A slow client misses some; they only say that something changed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => notifications = None,
                },
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() { return }
                }
                () = sender.closed() => return,
                changed = status.changed() => {
                    if changed.is_err() { return }
                    break;
                }
            }
        }
    }
}

fn link_of(server: &Server) -> Option<Link> {
    match server.current()?.upstream {
        Upstream::Messages(link) => Some(link),
        Upstream::Http(_) => None,
    }
}

/// `subscriptions/listen`: renewed with every start of the server, so that the client's stream goes on. It wakes a
/// sleeping server once, and keeps none awake.
pub fn subscribe(message: Bytes, server: &Arc<Server>) -> Response<Body> {
    let (sender, response) = streamed("text/event-stream");
    let server = server.clone();
    tokio::spawn(async move {
        let closed = sender.clone();
        tokio::select! {
            () = follow(&message, &server, &sender) => {}
            () = closed.closed() => {}
            () = server.closing() => {}
        }
    });
    response
}

async fn follow(message: &Bytes, server: &Arc<Server>, sender: &mpsc::Sender<Bytes>) {
    let Ok(envelope) = Envelope::parse(message) else { return };
    let mut status = server.board.watch();
    let mut acknowledged = false;
    loop {
        status.borrow_and_update();
        let link = match link_of(server) {
            Some(link) => Some(link),
            // The first time the client waits for the acknowledgement.
            None if !acknowledged => match server.awake().await {
                Ok(_) => link_of(server),
                Err(problem) => {
                    let id = envelope.id.map_or("null", |id| id.get());
                    send_event(sender, crate::calls::unavailable_message(id, &problem).into()).await.ok();
                    return;
                }
            },
            None => None,
        };
        if let Some(link) = link {
            let Some(ended) = one_run(&link, message, &envelope, sender, &mut acknowledged).await else { return };
            if !ended {
                tokio::time::sleep(RENEW_PAUSE).await;
                continue;
            }
        }
        loop {
            tokio::select! {
                changed = status.changed() => {
                    if changed.is_err() { return }
                    break;
                }
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() { return }
                }
            }
        }
    }
}

/// Follows the subscription in one run of the server. `None` if it is over for good, else whether the run ended.
async fn one_run(
    link: &Link,
    message: &Bytes,
    envelope: &Envelope<'_>,
    sender: &mpsc::Sender<Bytes>,
    acknowledged: &mut bool,
) -> Option<bool> {
    let Ok(mut exchange) = link.request(message, envelope, None, Purpose::Subscription).await else {
        return Some(link.is_closed());
    };
    loop {
        tokio::select! {
            biased;
            Some(message) = exchange.messages.recv() => {
                let is_acknowledgement = Envelope::parse(&message).is_ok_and(|envelope| envelope.method() == methods::ACKNOWLEDGED);
                if is_acknowledgement && std::mem::replace(acknowledged, true) {
                    continue;
                }
                send_event(sender, message).await.ok()?;
            }
            answer = &mut exchange.answer => match answer {
                // Refused, or ended by the server in good order.
                Ok(answer) => {
                    send_event(sender, answer).await.ok()?;
                    return None;
                }
                Err(_) => return Some(link.is_closed()),
            },
            () = tokio::time::sleep(COMMENT_EVERY) => sender.send(Bytes::from_static(sse::COMMENT)).await.ok()?,
        }
    }
}
