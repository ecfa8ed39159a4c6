//! The control listener: how an operator drives one replica. It has a port of its own, so that no public
//! Service leads here. Other replicas forward requests by it too.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use mcp_hub_dataplane_api::control;
use mcp_hub_dataplane_api::gateway::{InForce, ReplicaStatus, UpstreamActivity};
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Body, JSON, full, streamed};
use crate::forwarded::Caller;
use crate::metrics::count;
use crate::peers::FORWARD;
use crate::{Gateway, Inner, forwarded, guard, serve};

/// A push that has not arrived by then is not going to.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Pushes that are read at a time: each may take its megabytes before it is known whose it is.
const PUSHES: usize = 4;
/// Between two lines of events.
const PACE: Duration = Duration::from_millis(250);
/// How often the use of servers is looked at for events: calls tell nobody of themselves, for they are many.
const LOOK: Duration = Duration::from_millis(500);
/// How often a gateway that ends looks whether its last calls have ended.
const SETTLING: Duration = Duration::from_millis(50);
/// Longest time for what clients have here to be handed to others.
const HANDOVER: Duration = Duration::from_secs(5);
/// A server whose last call is longer ago is quiet.
const QUIET_MS: u64 = 5_000;
/// A line at least this often, so that both sides notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Until the gateway ends. Other replicas then reach it as long as a call here waits for its client, who may come by any of
/// them, but no longer than `limit`; what they have under way here gets as long.
pub(crate) async fn run(listener: TcpListener, gateway: Gateway, limit: Duration) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let pushes = Arc::new(Semaphore::new(PUSHES));
    // All of it within one limit, but for the handing over.
    let deadline = OnceLock::new();
    let until = async {
        gateway.0.ending.begun().await;
        let deadline = *deadline.get_or_init(|| Instant::now() + limit);
        timeout_at(deadline, settled(&gateway.0)).await.ok();
        // Before the others find that it is gone.
        timeout(HANDOVER, gateway.0.hand_over()).await.ok();
    };
    serve::accept(&listener, &mut connections, until, |stream| {
        connection(stream, gateway.clone(), pushes.clone(), graceful.watcher())
    })
    .await;
    drop(listener);
    let deadline = *deadline.get_or_init(Instant::now);
    timeout_at(deadline, graceful.shutdown()).await.ok();
    connections.shutdown().await;
    Ok(())
}

/// Until no call waits for its client.
async fn settled(inner: &Inner) {
    while inner.parked.count() > 0 || inner.asked.count() > 0 {
        tokio::time::sleep(SETTLING).await;
    }
}

async fn connection(stream: TcpStream, gateway: Gateway, pushes: Arc<Semaphore>, watcher: Watcher) {
    serve::tune(&stream);
    let caller = Arc::new(Caller::default());
    let service = service_fn(move |request| {
        let (gateway, pushes, caller) = (gateway.clone(), pushes.clone(), caller.clone());
        async move { Ok::<_, Infallible>(answer(request, &gateway, &pushes, &caller).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(serve::HEADER_TIMEOUT).max_buf_size(64 << 10);
    // Whoever went away is no failure.
    watcher.watch(http.serve_connection(TokioIo::new(stream), service)).await.ok();
}

async fn answer(request: Request<Incoming>, gateway: &Gateway, pushes: &Semaphore, caller: &Caller) -> Response<Body> {
    let inner = &gateway.0;
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match (&method, path.as_str()) {
        (&Method::GET, "/healthz") => full(StatusCode::OK, "text/plain", "ok"),
        (&Method::GET, "/readyz") => serve::readiness(inner),
        (&Method::GET, "/metrics") => serve::metrics(inner),
        (&Method::PUT, control::CONFIG) => push(request.into_body(), gateway, pushes).await,
        (_, path) if path.starts_with(FORWARD) => forwarded::answer(request, inner, caller).await,
        _ if !is_operator(request.headers(), inner) => {
            full(StatusCode::UNAUTHORIZED, "text/plain", "the control token of the hub is needed")
        }
        (&Method::GET, control::STATUS) => shown(&gateway.replica_status()),
        (&Method::GET, control::EVENTS) => events(gateway),
        (&Method::GET, path) if path.starts_with(control::DEFINITIONS) => {
            let uid = &path[control::DEFINITIONS.len()..];
            let served = inner.served();
            let mut upstreams = served.upstreams.values().map(|watched| &watched.upstream);
            let found = upstreams.find(|upstream| upstream.config.uid == uid);
            match found.and_then(|upstream| upstream.catalog().definitions()) {
                Some(definitions) => shown(&definitions),
                None => full(StatusCode::NOT_FOUND, "text/plain", "nothing is known of this server"),
            }
        }
        _ => full(StatusCode::NOT_FOUND, "text/plain", "no such path"),
    }
}

fn is_operator(headers: &HeaderMap, inner: &Inner) -> bool {
    let token = headers.get(AUTHORIZATION).and_then(|value| guard::bearer(value.to_str().ok()?));
    let wanted = inner.keys.token().expose_secret().as_bytes();
    token.is_some_and(|token| token.as_bytes().ct_eq(wanted).into())
}

/// Takes a sealed configuration, and answers with what is in force then.
async fn push(body: Incoming, gateway: &Gateway, pushes: &Semaphore) -> Response<Body> {
    let refuse = |status, text: &str| full(status, "text/plain", text.to_owned());
    let Ok(_reading) = pushes.try_acquire() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "other pushes are being read; try again");
    };
    let read = timeout(PUSH_TIMEOUT, Limited::new(body, control::PUSH_MAX).collect()).await;
    let sealed = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(problem)) if problem.downcast_ref::<http_body_util::LengthLimitError>().is_some() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the push is too large");
        }
        Ok(Err(_)) | Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the push did not arrive"),
    };
    let inner = &gateway.0;
    let hub = inner.served().config.hub.uid.clone();
    let opened = inner.keys.open(&hub, &sealed, now_ms());
    let push = match opened {
        Ok(push) => push,
        Err(problem) => {
            count(&inner.metrics.configs_refused);
            // Anybody in the pod network can make one that does not open; only those are not worth a line each.
            match problem {
                control::NotOpened::Forged => tracing::debug!(%problem, "push not taken"),
                _ => tracing::warn!(%problem, "push not taken"),
            }
            let status = match problem {
                control::NotOpened::Forged => StatusCode::UNAUTHORIZED,
                control::NotOpened::Stale { .. } => StatusCode::CONFLICT,
                control::NotOpened::Document(_) => StatusCode::BAD_REQUEST,
            };
            return refuse(status, &problem.to_string());
        }
    };
    match gateway.offer_pushed(push) {
        Ok(()) => shown(&gateway.in_force()),
        // What is in force tells the operator what the replica runs instead.
        Err(superseded) => {
            tracing::warn!(problem = %superseded, "push not taken");
            let mut response = shown::<InForce>(&superseded.in_force);
            *response.status_mut() = StatusCode::CONFLICT;
            response
        }
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn shown<T: Serialize>(document: &T) -> Response<Body> {
    match serde_json::to_vec(document) {
        Ok(json) => full(StatusCode::OK, JSON, json),
        Err(error) => full(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

/// The status without what changes all the time: whether a server is used at all is news, how much is not. A call that came
/// and went unseen shows by the time since, which is short again.
fn meaning(mut status: ReplicaStatus) -> ReplicaStatus {
    for activity in status.activity.values_mut() {
        *activity = UpstreamActivity {
            calls_in_flight: activity.calls_in_flight.min(1),
            idle_ms: activity.idle_ms.map(|idle| if idle < QUIET_MS { 0 } else { QUIET_MS }),
        };
    }
    status
}

fn events(gateway: &Gateway) -> Response<Body> {
    let (sender, response) = streamed("application/x-ndjson", 1);
    let gateway = gateway.clone();
    tokio::spawn(async move {
        let mut changes = gateway.status_changes();
        let mut told: Option<ReplicaStatus> = None;
        let mut last = Instant::now();
        loop {
            changes.mark_unchanged();
            let status = gateway.replica_status();
            let news = meaning(status.clone());
            if told.as_ref() != Some(&news) || last.elapsed() >= HEARTBEAT {
                let Ok(mut line) = serde_json::to_vec(&status) else { return };
                line.push(b'\n');
                if sender.send(Bytes::from(line)).await.is_err() {
                    return;
                }
                (told, last) = (Some(news), Instant::now());
                tokio::time::sleep(PACE).await;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
                () = gateway.0.ending.begun() => return,
            }
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mcp_hub_dataplane_api::gateway::GatewayStatus;

    use super::*;

    fn used(calls_in_flight: u32, idle_ms: Option<u64>) -> ReplicaStatus {
        let (upstreams, collisions) = (BTreeMap::new(), BTreeMap::new());
        ReplicaStatus {
            status: GatewayStatus { version: String::new(), upstreams, collisions },
            sequence: 1,
            draining: false,
            activity: BTreeMap::from([("uid".to_owned(), UpstreamActivity { calls_in_flight, idle_ms })]),
        }
    }

    #[test]
    fn a_call_is_news_also_when_it_came_and_went_unseen_and_more_calls_are_not() {
        let news = |before, after| meaning(before) != meaning(after);
        assert!(news(used(0, None), used(1, None)));
        assert!(news(used(0, Some(600_000)), used(0, Some(100))), "whoever counts on ten idle minutes is wrong now");
        assert!(news(used(0, None), used(0, Some(100))));
        assert!(!news(used(1, None), used(7, None)));
        assert!(!news(used(0, Some(100)), used(0, Some(900))));
        assert!(!news(used(0, Some(60_000)), used(0, Some(600_000))));
    }
}
