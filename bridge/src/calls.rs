//! What clients post: requests, notifications, answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mcp_hub_dataplane_api::launch::ChildTransport;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_dataplane_api::{Era, SessionMode};
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, write_error, write_result};
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::{error, headers, methods, sse};
use tokio::time::Instant;

use crate::body::{Body, full, json, send_event, streamed};
use crate::clients::Client;
use crate::handshake::Introduction;
use crate::link::{Exchange, Link, LinkError, OnDisconnect, Purpose};
use crate::serve::session_of;
use crate::server::{Server, Unavailable};
use crate::streams::{self, COMMENT_EVERY};
use crate::upstream::Upstream;

/// A client that has not sent its whole message by then keeps room that others need.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A larger body is not even read to be thrown away.
const SKIPPED_MAX: usize = 4 * LINE_MAX;
/// Servers that may end one after the other before one takes a request.
const TRIES: usize = 3;

/// The whole message of a request.
pub async fn message_of(body: Incoming, server: &Server) -> Result<Bytes, Response<Body>> {
    let size = body.size_hint().upper().and_then(|size| usize::try_from(size).ok()).unwrap_or(LINE_MAX);
    let read = async {
        // Given back when the message is read: it gets its share of the way to the server then.
        let _share = server.buffers.requests.take(size.min(LINE_MAX)).await;
        bounded(body, size).await
    };
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Some(message)) => Ok(message),
        Ok(None) | Err(_) => {
            let text = format!("the message could not be read or is over {LINE_MAX} bytes");
            Err(json(StatusCode::PAYLOAD_TOO_LARGE, write_error(None, error::MESSAGE_TOO_LARGE, &text)))
        }
    }
}

/// The body, if it is not too large. One that is somewhat too large is read all the same, without being kept: a client in
/// the middle of sending would not see the refusal.
async fn bounded(mut body: Incoming, size: usize) -> Option<Bytes> {
    if size > SKIPPED_MAX {
        return None;
    }
    let mut message = Vec::with_capacity(if size > LINE_MAX { 0 } else { size.min(64 << 10) });
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        length += data.len();
        if length > SKIPPED_MAX {
            return None;
        } else if length <= LINE_MAX {
            message.extend_from_slice(&data);
        } else {
            message = Vec::new();
        }
    }
    (length <= LINE_MAX).then(|| message.into())
}

/// Who posts.
enum Session {
    None,
    /// The id of a session that shares the server.
    Shared(String),
    Own(Arc<Client>),
}

impl Session {
    fn id(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Shared(id) => Some(id),
            Self::Own(client) => Some(&client.id),
        }
    }
}

pub async fn post(request: Request<Incoming>, server: &Arc<Server>) -> Response<Body> {
    let session = session_of(request.headers()).map(str::to_owned);
    let message = match message_of(request.into_body(), server).await {
        Ok(message) => message,
        Err(refusal) => return refusal,
    };
    let envelope = match Envelope::parse(&message) {
        Ok(envelope) => envelope,
        Err(problem) => {
            return json(StatusCode::BAD_REQUEST, write_error(None, error::INVALID_REQUEST, &problem.to_string()));
        }
    };
    let session = match session {
        None => Session::None,
        Some(id) => match server.clients.get(&id) {
            Some(client) => Session::Own(client),
            None if server.sessions.touch(&id) => Session::Shared(id),
            None => return full(StatusCode::NOT_FOUND, "text/plain", "no such session"),
        },
    };
    match envelope.kind() {
        Kind::Request => request_of(&message, &envelope, session, server).await,
        Kind::Notification | Kind::Response => {
            tell(&message, &envelope, &session, server).await;
            full(StatusCode::ACCEPTED, "text/plain", Bytes::new())
        }
    }
}

/// Passes on what wants no answer. A server that ended in the meantime has nothing to be told.
async fn tell(message: &Bytes, envelope: &Envelope<'_>, session: &Session, server: &Server) {
    let method = envelope.method();
    match (session, envelope.kind()) {
        (Session::Own(client), Kind::Response) => {
            if let Some(link) = client.current() {
                link.answer(message, envelope).await.ok();
            }
        }
        (Session::Own(client), _) => {
            if let Some(link) = client.current() {
                link.notify(message, envelope, session.id()).await.ok();
            }
        }
        // Nobody was asked anything, and what one client says of itself is not true of the others.
        (_, Kind::Response) => {}
        _ if matches!(&*method, methods::INITIALIZED | methods::ROOTS_CHANGED) => {}
        _ => {
            if let Some(Upstream::Messages(link)) = server.current().map(|running| running.upstream) {
                link.notify(message, envelope, session.id()).await.ok();
            }
        }
    }
}

async fn request_of(
    message: &Bytes,
    envelope: &Envelope<'_>,
    session: Session,
    server: &Arc<Server>,
) -> Response<Body> {
    let id = envelope.id.map_or("null", |id| id.get());
    let method = envelope.method();
    // Without an introduction nothing can be answered that depends on the era.
    let known = match server.introduction() {
        Some(known) => known,
        None => match server.awake().await {
            Ok(running) => running.introduction,
            Err(problem) => return unavailable(id, &problem),
        },
    };
    let is_legacy = known.era == Era::Legacy;
    if is_legacy && method == methods::INITIALIZE {
        return initialize(id, envelope, &known, server).await;
    }
    if is_legacy && method == methods::PING {
        return json(StatusCode::OK, write_result(id, "{}"));
    }
    if !is_legacy && method == methods::LISTEN {
        return streams::subscribe(message.clone(), server);
    }
    if !matches!(session, Session::Own(_))
        && server.board.phase() == Phase::Asleep
        && let Some(result) = remembered(&known, &method, envelope)
    {
        return json(StatusCode::OK, write_result(id, result));
    }
    let is_call = methods::is_call(&method);
    if is_call {
        server.called();
    }
    if is_call && !matches!(session, Session::Own(_)) && is_own_process(server, known.era) {
        let text = "each client has a process of its own here: initialize a session first";
        return json(StatusCode::BAD_REQUEST, write_error(Some(id), error::INVALID_REQUEST, text));
    }
    let deadline = Instant::now() + Duration::from_millis(server.spec.timeouts.call_ms);
    for _ in 0..TRIES {
        let link = match link_for(&session, server).await {
            Ok(link) => link,
            Err(problem) => return unavailable(id, &problem),
        };
        if let Some(answer) = call(&link, message, envelope, &session, is_legacy, deadline, server).await {
            return answer;
        }
        // It ended before it saw the request, which its successor gets.
        link.closed().await;
    }
    unavailable(id, &Unavailable::Down("it ended again and again before it took the request".to_owned()))
}

/// The link to the session's server, which is woken, started or waited for.
async fn link_for(session: &Session, server: &Arc<Server>) -> Result<Link, Unavailable> {
    if let Session::Own(client) = session {
        // Not dropped half way when the caller is gone: a process that starts is not to be lost.
        let (client, server) = (client.clone(), server.clone());
        let started = tokio::spawn(async move { client.link(&server).await }).await;
        return started.unwrap_or_else(|error| Err(Unavailable::Down(error.to_string())));
    }
    match server.awake().await?.upstream {
        Upstream::Messages(link) => Ok(link),
        Upstream::Http(_) => Err(Unavailable::Down("it speaks HTTP itself".to_owned())),
    }
}

/// `None` if the server ended before it saw the request.
async fn call(
    link: &Link,
    message: &Bytes,
    envelope: &Envelope<'_>,
    session: &Session,
    is_legacy: bool,
    deadline: Instant,
    server: &Arc<Server>,
) -> Option<Response<Body>> {
    let id = envelope.id.map_or("null", |id| id.get());
    let on_disconnect = if is_legacy { OnDisconnect::Forget } else { OnDisconnect::Cancel };
    let sent = link.request(message, envelope, session.id(), Purpose::Call(on_disconnect));
    let overloaded = |text: &str| Some(json(StatusCode::OK, write_error(Some(id), error::OVERLOADED, text)));
    match tokio::time::timeout_at(deadline, sent).await {
        Ok(Ok(exchange)) => {
            let is_call = methods::is_call(&envelope.method());
            respond(exchange, id.to_owned(), deadline, is_call, server.clone()).await
        }
        Ok(Err(LinkError::Full)) => overloaded("too many requests wait for the server"),
        Ok(Err(LinkError::Closed)) => None,
        Err(_) => overloaded("the server does not take requests"),
    }
}

/// Whether each client has a process of its own.
fn is_own_process(server: &Server, era: Era) -> bool {
    server.spec.sessions.mode == SessionMode::PerClient
        && server.spec.transport == ChildTransport::Stdio
        && era == Era::Legacy
}

/// A client's own `initialize`: answered from the server's, or by a process of its own.
async fn initialize(id: &str, envelope: &Envelope<'_>, known: &Introduction, server: &Arc<Server>) -> Response<Body> {
    let opened = if is_own_process(server, known.era) {
        if let Phase::CrashLoop { .. } | Phase::Exited = server.board.phase() {
            // Says why.
            if let Err(problem) = server.awake().await {
                return unavailable(id, &problem);
            }
        }
        let params = envelope.params.map(|params| params.get().to_owned());
        let server = server.clone();
        // Not dropped half way when the caller is gone: a process that starts is not to be lost.
        let opened = tokio::spawn(async move { server.clients.open(&server, params.as_deref()).await }).await;
        match opened.unwrap_or_else(|error| Err(Unavailable::Down(error.to_string()))) {
            Ok((client, result)) => (client.id.clone(), result),
            Err(problem) => return unavailable(id, &problem),
        }
    } else {
        match server.sessions.open() {
            Ok(session) => (session, known.result.clone()),
            Err(problem) => return unavailable(id, &Unavailable::Down(problem.to_string())),
        }
    };
    let (session, result) = opened;
    let mut response = json(StatusCode::OK, write_result(id, &result));
    // Hexadecimal digits are a header value.
    if let Ok(session) = HeaderValue::from_str(&session) {
        response.headers_mut().insert(headers::SESSION_ID, session);
    }
    response
}

/// The remembered result of a list or of `server/discover`: a sleeping server is not woken for it.
pub fn remembered<'a>(introduction: &'a Introduction, method: &str, envelope: &Envelope<'_>) -> Option<&'a str> {
    if method == methods::DISCOVER && introduction.era == Era::Modern {
        return Some(&introduction.result);
    }
    let cursor = Params::of(envelope.params).cursor.map(serde_json::value::RawValue::get);
    let page = introduction.lists.iter().find(|(list, at, _)| list == method && at.as_deref() == cursor);
    page.map(|(_, _, result)| result.as_str())
}

pub fn unavailable_message(id: &str, problem: &Unavailable) -> Vec<u8> {
    let code = match problem {
        Unavailable::Down(_) | Unavailable::Late(_) => error::SERVER_UNAVAILABLE,
        Unavailable::Full(_) => error::OVERLOADED,
    };
    write_error(Some(id), code, &problem.to_string())
}

pub fn unavailable(id: &str, problem: &Unavailable) -> Response<Body> {
    json(StatusCode::OK, unavailable_message(id, problem))
}

pub fn gone(id: &str) -> Vec<u8> {
    write_error(
        Some(id),
        error::SERVER_GONE,
        "the server ended while it worked on the request; it may have acted on it",
    )
}

pub fn late(id: &str, server: &Server) -> Vec<u8> {
    let text = format!("the server did not answer within {:?}", Duration::from_millis(server.spec.timeouts.call_ms));
    write_error(Some(id), error::CALL_TIMEOUT, &text)
}

/// JSON if the answer comes first, else a stream of what comes before it. `None` if the server ended before it saw the
/// request.
async fn respond(
    mut exchange: Exchange,
    id: String,
    deadline: Instant,
    is_call: bool,
    server: Arc<Server>,
) -> Option<Response<Body>> {
    let ended = move |server: &Server| if is_call { server.call_ended() } else { server.answered() };
    let first = tokio::select! {
        biased;
        Some(message) = exchange.messages.recv() => message,
        answer = &mut exchange.answer => {
            let answer = match answer {
                Ok(answer) => answer,
                Err(_) if !exchange.was_delivered() => return None,
                Err(_) => gone(&id).into(),
            };
            ended(&server);
            return Some(json(StatusCode::OK, answer));
        }
        () = tokio::time::sleep_until(deadline) => {
            exchange.give_up();
            server.call_was_late();
            return Some(json(StatusCode::OK, late(&id, &server)));
        }
    };
    let (sender, response) = streamed("text/event-stream");
    tokio::spawn(async move {
        let mut next = Some(first);
        loop {
            if let Some(message) = next.take()
                && send_event(&sender, message).await.is_err()
            {
                return;
            }
            tokio::select! {
                biased;
                Some(message) = exchange.messages.recv() => next = Some(message),
                answer = &mut exchange.answer => {
                    let answer = answer.unwrap_or_else(|_| gone(&id).into());
                    ended(&server);
                    // Whoever is gone misses it.
                    send_event(&sender, answer).await.ok();
                    return;
                }
                () = sender.closed() => return,
                () = tokio::time::sleep_until(deadline) => {
                    exchange.give_up();
                    server.call_was_late();
                    send_event(&sender, late(&id, &server).into()).await.ok();
                    return;
                }
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    if sender.send(Bytes::from_static(sse::COMMENT)).await.is_err() { return }
                }
            }
        }
    });
    Some(response)
}
