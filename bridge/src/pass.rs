//! Requests for a server that speaks HTTP itself: passed through as they are, and watched.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_mcp::envelope::{Envelope, Kind, write_result};
use mcp_hub_mcp::{methods, sse};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::body::{Body, full, json, streamed};
use crate::calls::{gone, late, message_of, remembered, unavailable};
use crate::http_child::HttpChild;
use crate::server::{Server, Unavailable};
use crate::upstream::Upstream;

/// Headers that the answer's way through us sets anew.
const OURS: [&str; 4] = ["connection", "keep-alive", "transfer-encoding", "upgrade"];

/// Passes a request on.
pub async fn on(request: Request<Incoming>, server: &Arc<Server>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let message = match message_of(body, server).await {
        Ok(message) => message,
        Err(refusal) => return refusal,
    };
    let envelope = Envelope::parse(&message).ok().filter(|envelope| envelope.kind() == Kind::Request);
    let method = envelope.as_ref().map(|envelope| envelope.method().into_owned()).unwrap_or_default();
    let id = envelope.as_ref().and_then(|envelope| envelope.id).map_or("null", |id| id.get()).to_owned();
    if let Some(envelope) = &envelope
        && server.board.phase() == Phase::Asleep
        && let Some(known) = server.introduction()
    {
        if known.era == Era::Legacy && method == methods::PING {
            return json(StatusCode::OK, write_result(&id, "{}"));
        }
        if let Some(result) = remembered(&known, &method, envelope) {
            return json(StatusCode::OK, write_result(&id, result));
        }
    }
    // A session's end or stream is no reason to wake a server that has no sessions while it sleeps.
    if parts.method != Method::POST && server.current().is_none() {
        return full(StatusCode::NOT_FOUND, "text/plain", "no such session");
    }
    let is_call = envelope.is_some() && methods::is_call(&method);
    if is_call {
        server.called();
    }
    let child = match server.awake().await.map(|running| running.upstream) {
        Ok(Upstream::Http(child)) => child,
        Ok(Upstream::Messages(_)) => return unavailable(&id, &Unavailable::Down("it speaks no HTTP".to_owned())),
        Err(problem) => return unavailable(&id, &problem),
    };
    let watched = is_call.then(|| child.call());
    let is_endless = parts.method == Method::GET || method == methods::LISTEN;
    let deadline = Instant::now() + Duration::from_millis(server.spec.timeouts.call_ms);
    let response = tokio::select! {
        response = child.pass(parts.method, &parts.headers, message) => response,
        () = child.closed() => return json(StatusCode::OK, gone(&id)),
        () = server.closing(), if is_endless => {
            return unavailable(&id, &Unavailable::Down("it is being stopped".to_owned()));
        }
        () = tokio::time::sleep_until(deadline), if !is_endless => {
            server.call_was_late();
            return json(StatusCode::OK, late(&id, server));
        }
    };
    let response = match response {
        Ok(response) => response,
        Err(problem) if problem.is_connect() => {
            return unavailable(&id, &Unavailable::Down("nothing listens on its port".to_owned()));
        }
        Err(_) => return json(StatusCode::OK, gone(&id)),
    };
    server.answered();
    let (head, body) = response.into_parts();
    let is_stream =
        head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    let (sender, mut passed) = streamed("application/octet-stream");
    *passed.status_mut() = head.status;
    let headers = passed.headers_mut();
    headers.clear();
    headers.extend(head.headers);
    for header in OURS {
        headers.remove(header);
    }
    // An event may be added at a stream's end.
    headers.remove(CONTENT_LENGTH);
    let (server, deadline) = (server.clone(), (!is_endless).then_some(deadline));
    tokio::spawn(async move {
        // Only a request has somebody who waits for an answer.
        let last_word = is_stream && is_call;
        let end = tokio::select! {
            end = pump(body, &child, &sender, deadline) => end,
            // A stream has no end of its own that a bridge could wait for.
            () = server.closing(), if is_endless => PumpEnd::Whole,
        };
        let message = match end {
            PumpEnd::Whole => None,
            PumpEnd::Gone => Some(gone(&id)),
            PumpEnd::Late => {
                server.call_was_late();
                Some(late(&id, &server))
            }
        };
        if let Some(message) = message.filter(|_| last_word) {
            // Ends an event that was cut.
            sender.send(Bytes::from_static(b"\n\n")).await.ok();
            sender.send(sse::event(&message)).await.ok();
        }
        drop(watched);
        if is_call {
            server.call_ended();
        }
    });
    passed
}

enum PumpEnd {
    /// Ended by the server, or the client is gone.
    Whole,
    Gone,
    Late,
}

async fn pump(
    mut body: Incoming,
    child: &HttpChild,
    sender: &mpsc::Sender<Bytes>,
    deadline: Option<Instant>,
) -> PumpEnd {
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    let copy = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return PumpEnd::Gone };
            if let Ok(data) = frame.into_data()
                && sender.send(data).await.is_err()
            {
                return PumpEnd::Whole;
            }
        }
        PumpEnd::Whole
    };
    tokio::select! {
        biased;
        end = copy => end,
        () = sender.closed() => PumpEnd::Whole,
        () = child.closed() => PumpEnd::Gone,
        () = late => PumpEnd::Late,
    }
}
