//! One operator's line to the API server and to pods: it counts writes, and breaks at a chosen one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use mcp_hub_fakeapi::FakeService;
use tokio::sync::watch;
use tower_service::Service;

/// What the cut takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The API server never sees the write.
    Request,
    /// The write is carried out, and its answer never comes.
    Response,
}

/// Where a line breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Which write, counted from 1.
    pub at: u64,
    pub lost: Lost,
    /// Whether the operator dies with it: from then on nothing of it reaches anybody.
    pub fatal: bool,
}

/// Sees the body of each request for a change, with its path.
pub type Witness = Arc<dyn Fn(&str, &[u8]) + Send + Sync>;

#[derive(Clone)]
pub struct Line(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    dead: watch::Sender<bool>,
    witness: Witness,
}

#[derive(Debug, Default)]
struct State {
    writes: u64,
    cut: Option<Cut>,
    was_cut: bool,
    /// Answers to writes take so long.
    delay: Duration,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Line").field(&*self.state()).finish()
    }
}

impl Line {
    pub fn new(witness: Witness) -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), dead: watch::Sender::new(false), witness }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn cut(&self, cut: Cut) {
        self.state().cut = Some(cut);
    }

    pub fn was_cut(&self) -> bool {
        self.state().was_cut
    }

    /// Writes that went out, lost ones too.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// From now on the answer to a write comes so much later than its effect.
    pub fn delay_answers(&self, by: Duration) {
        self.state().delay = by;
    }

    pub fn kill(&self) {
        self.0.dead.send_replace(true);
    }

    /// Returns when the line is dead.
    pub async fn died(&self) {
        // The sender lives in this very value.
        self.0.dead.subscribe().wait_for(|dead| *dead).await.ok();
    }

    pub fn is_dead(&self) -> bool {
        *self.0.dead.borrow()
    }

    pub fn wire(&self, service: FakeService) -> Wire {
        Wire { service, line: self.clone() }
    }

    /// What becomes of this write.
    fn count(&self) -> (Option<Cut>, Duration) {
        let mut state = self.state();
        state.writes += 1;
        let cut = state.cut.filter(|cut| cut.at == state.writes);
        state.was_cut |= cut.is_some();
        (cut, state.delay)
    }
}

/// The service that a client is made of.
#[derive(Debug, Clone)]
pub struct Wire {
    service: FakeService,
    line: Line,
}

type Answer = <FakeService as Service<Request<Body>>>::Response;

impl Service<Request<Body>> for Wire {
    type Response = Answer;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut service, line) = (self.service.clone(), self.line.clone());
        Box::pin(async move {
            if line.is_dead() {
                return std::future::pending().await;
            }
            if request.method() == Method::GET {
                return service.call(request).await;
            }
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            (line.0.witness)(parts.uri.path(), &body);
            let (cut, delay) = line.count();
            let request = Request::from_parts(parts, Body::from(body));
            if let Some(cut) = cut {
                if cut.lost == Lost::Response {
                    service.call(request).await?;
                }
                if cut.fatal {
                    line.kill();
                    return std::future::pending().await;
                }
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the line was cut"));
            }
            let answer = service.call(request).await;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            answer
        })
    }
}
