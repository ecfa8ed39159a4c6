//! The server as a tower service.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use serde_json::Value;
use tokio::time::Instant;
use tower_service::Service;

use crate::discovery;
use crate::failure::Failure;
use crate::fault::Fault;
use crate::log::Entry;
use crate::request::{Request as ApiRequest, Verb};
use crate::state::State;
use crate::watch::Watcher;

/// The state, and the news that it changed.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: tokio::sync::watch::Sender<u64>,
    started: Instant,
}

/// The time at which the server starts: any fixed one will do.
const EPOCH: Timestamp = Timestamp::constant(1_767_225_600, 0);

impl Shared {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State::new(EPOCH)),
            changed: tokio::sync::watch::Sender::new(0),
            started: Instant::now(),
        }))
    }

    /// The state, its clock set. A panic of another holder harms nobody: no change is ever half done.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = SignedDuration::try_from(self.uptime()).unwrap_or_default();
        state.now = EPOCH.saturating_add(elapsed).unwrap_or(EPOCH);
        state
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Wakes those that wait for a change.
    pub(crate) fn notify(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.changed.subscribe()
    }
}

/// One client's way to the server.
#[derive(Debug, Clone)]
pub struct FakeService {
    shared: Shared,
    user_agent: String,
}

impl FakeService {
    pub(crate) fn new(shared: Shared, user_agent: &str) -> Self {
        Self { shared, user_agent: user_agent.to_owned() }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

impl Service<Request<Body>> for FakeService {
    type Response = Answer;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        let user_agent = self.user_agent.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            if let (false, Ok(agent)) = (parts.headers.contains_key(USER_AGENT), HeaderValue::from_str(&user_agent)) {
                parts.headers.insert(USER_AGENT, agent);
            }
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            match carry_out(&shared, &parts, body) {
                Outcome::Answer(answer) => Ok(answer),
                Outcome::Lost => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the connection was cut")),
                Outcome::Silence => std::future::pending().await,
            }
        })
    }
}

enum Outcome {
    Answer(Answer),
    Lost,
    Silence,
}

fn carry_out(shared: &Shared, parts: &http::request::Parts, body: Bytes) -> Outcome {
    let mut state = shared.lock();
    if state.down {
        return Outcome::Lost;
    }
    if let Some(document) = discovery::document(&state.registry, parts.uri.path()) {
        return Outcome::Answer(json_answer(200, &document, None));
    }
    let request = match ApiRequest::read(&state.registry, parts, body) {
        Ok(request) => request,
        Err(failure) => return Outcome::Answer(failed(&failure)),
    };
    let fault = state.faults.next(&request);
    let before = state.store.revision();
    let answer = match fault {
        Some(Fault::RequestLost | Fault::Hang) => None,
        Some(Fault::Answer(code)) => Some(Err(scripted(code))),
        Some(Fault::TooManyRequests(seconds)) => Some(Err(scripted(429).retry_after(seconds))),
        Some(Fault::ResponseLost | Fault::HangAfter) | None => Some(if request.verb == Verb::Watch {
            Watcher::new(shared.clone(), &state, &request).map(|watcher| (200, Content::Watch(Box::new(watcher))))
        } else {
            state.answer(&request).map(|(code, value)| (code, Content::Json(value)))
        }),
    };
    let after = state.store.revision();
    let status = answer.as_ref().map(|answer| match answer {
        Ok((code, _)) => *code,
        Err(failure) => failure.code,
    });
    state.log.add(Entry {
        at: shared.uptime(),
        verb: request.verb,
        kind: request.kind.name.clone(),
        namespace: request.namespace.clone().unwrap_or_default(),
        name: request.name.clone().unwrap_or_default(),
        subresource: request.subresource.clone(),
        path: parts.uri.to_string(),
        user_agent: request.user_agent.clone(),
        manager: request.manager(),
        status,
        revision: (after != before).then_some(after),
    });
    drop(state);
    if after != before {
        shared.notify();
    }
    match (fault, answer) {
        (Some(Fault::Hang | Fault::HangAfter), _) => Outcome::Silence,
        (Some(Fault::RequestLost | Fault::ResponseLost), _) | (_, None) => Outcome::Lost,
        (_, Some(Err(failure))) => Outcome::Answer(failed(&failure)),
        (_, Some(Ok((code, Content::Json(value))))) => Outcome::Answer(json_answer(code, &value, None)),
        (_, Some(Ok((code, Content::Watch(watcher))))) => {
            let frames = watcher.lines().map(|line| line.map(http_body::Frame::data));
            Outcome::Answer(answer_of(code, StreamBody::new(frames).boxed_unsync(), None))
        }
    }
}

enum Content {
    Json(Value),
    Watch(Box<Watcher>),
}

/// A failure that a test asked for, worded as the server would.
fn scripted(code: u16) -> Failure {
    let (reason, message) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "forbidden by the test"),
        404 => ("NotFound", "not found, says the test"),
        409 => {
            ("Conflict", "the object has been modified; please apply your changes to the latest version and try again")
        }
        410 => ("Expired", "too old resource version"),
        429 => ("TooManyRequests", "too many requests, please try again later"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "the server was unable to return a response in the time allotted"),
        _ => ("InternalError", "an error on the server"),
    };
    Failure::new(code, reason, message)
}

fn failed(failure: &Failure) -> Answer {
    json_answer(failure.code, &failure.status(), failure.retry_after)
}

fn json_answer(code: u16, value: &Value, retry_after: Option<u32>) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never: Infallible| match never {});
    answer_of(code, body.boxed_unsync(), retry_after)
}

fn answer_of(code: u16, body: UnsyncBoxBody<Bytes, io::Error>, retry_after: Option<u32>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}
