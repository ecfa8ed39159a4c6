//! `sessions: perClient`: a server process for each legacy session.
//!
//! Each is initialised with its own client's words, so that sampling, elicitation and (where they are forwarded) roots
//! work: what the server asks can only be meant for that client. The process that shook hands for status and lists is
//! kept beside them and serves no call; it is the one that is supervised, probed, and shown as the server's state.
//! A session outlives its process: when that ends, the next request starts another one with the same `initialize`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::launch::{Lifecycle, Roots};
use mcp_hub_mcp::envelope::{Envelope, write_request};
use mcp_hub_mcp::methods;
use mcp_hub_mcp::object::RawObject;
use tokio::sync::watch;

use crate::handshake::HandshakeError;
use crate::link::{Link, Upward};
use crate::mailbox::Mailbox;
use crate::pipes;
use crate::process::{Pipes, Process};
use crate::server::{Server, Unavailable};
use crate::sessions::new_id;
use crate::supervise::{CRASH_LOOP, DRAIN, STEADY, backoff};
use crate::upstream::Upstream;

/// Environment variable that tells the processes of one client from those of another.
const MARK: &str = "MCP_BRIDGE_RUN";
/// An unused process is ended after this also where the server is always on: a client that never comes back would hold
/// it for ever. Its session stays and starts another one.
const UNUSED: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub struct Clients {
    max: u32,
    sessions: Mutex<HashMap<String, Arc<Client>>>,
    marks: AtomicU64,
}

/// One client's session.
#[derive(Debug)]
pub struct Client {
    pub id: String,
    pub mailbox: Arc<Mailbox>,
    /// Raw params of its `initialize`, as the server gets them.
    initialize: String,
    last_used: Mutex<Instant>,
    /// Held while a process starts, so that there is one at a time.
    starting: tokio::sync::Mutex<()>,
    link: Mutex<Option<Link>>,
    /// Changes when the process is to end, also one that is just starting.
    ended: watch::Sender<()>,
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    short_runs: u32,
    not_before: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    pub fn new(max: u32) -> Self {
        Self { max, sessions: Mutex::default(), marks: AtomicU64::new(0) }
    }

    /// A mark that no other process of this bridge carries.
    pub fn mark(&self) -> (&'static str, String) {
        (MARK, format!("{}-{}", std::process::id(), self.marks.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn count(&self) -> usize {
        lock(&self.sessions).len()
    }

    pub fn in_flight(&self) -> usize {
        lock(&self.sessions).values().map(|client| client.in_flight()).sum()
    }

    /// The client of a session; notes its use.
    pub fn get(&self, id: &str) -> Option<Arc<Client>> {
        let client = lock(&self.sessions).get(id).cloned()?;
        client.touch();
        Some(client)
    }

    /// Ends a session and its process.
    pub fn close(&self, id: &str) -> bool {
        let client = lock(&self.sessions).remove(id);
        client.inspect(|client| client.end()).is_some()
    }

    /// Ends all processes; each comes back with its client's next request.
    pub fn renew(&self) {
        for client in lock(&self.sessions).values() {
            client.end();
            *lock(&client.failures) = Failures::default();
        }
    }

    /// Opens a session and starts its process. Gives the session and the raw result of `initialize`.
    pub async fn open(&self, server: &Arc<Server>, params: Option<&str>) -> Result<(Arc<Client>, String), Unavailable> {
        let id = new_id().map_err(|error| Unavailable::Down(error.to_string()))?;
        let client = Arc::new(Client {
            id: id.clone(),
            mailbox: Arc::default(),
            initialize: params_for(params, server.spec.roots),
            last_used: Mutex::new(Instant::now()),
            starting: tokio::sync::Mutex::default(),
            link: Mutex::default(),
            ended: watch::Sender::new(()),
            failures: Mutex::default(),
        });
        self.admit(client.clone())?;
        let _starting = client.starting.lock().await;
        match client.start(server).await {
            Ok((_, result)) => Ok((client.clone(), result)),
            Err(error) => {
                lock(&self.sessions).remove(&id);
                Err(error)
            }
        }
    }

    /// Makes room: the session unused for longest goes, but none with a call under way.
    fn admit(&self, client: Arc<Client>) -> Result<(), Unavailable> {
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= self.max as usize {
            let idle = sessions.values().filter(|other| other.in_flight() == 0 && !other.is_starting());
            let oldest = idle.min_by_key(|other| *lock(&other.last_used)).map(|other| other.id.clone());
            let oldest = oldest.and_then(|id| sessions.remove(&id)).ok_or(Unavailable::Full(self.max))?;
            oldest.end();
        }
        sessions.insert(client.id.clone(), client);
        Ok(())
    }
}

/// What the server is told of its client: everything that the client said, but of roots only what it may know.
fn params_for(params: Option<&str>, roots: Roots) -> String {
    let Some(mut params) = params.and_then(RawObject::parse) else { return "{}".to_owned() };
    if roots == Roots::Deny
        && let Some(mut capabilities) = params.get("capabilities").and_then(RawObject::parse)
    {
        capabilities.remove("roots");
        params.set("capabilities", capabilities.to_string());
    }
    params.to_string()
}

impl Client {
    fn touch(&self) {
        *lock(&self.last_used) = Instant::now();
    }

    fn in_flight(&self) -> usize {
        lock(&self.link).as_ref().map_or(0, Link::in_flight)
    }

    fn is_starting(&self) -> bool {
        self.starting.try_lock().is_err()
    }

    fn end(&self) {
        self.ended.send_replace(());
    }

    /// The link to the process if it runs.
    pub fn current(&self) -> Option<Link> {
        lock(&self.link).clone().filter(|link| !link.is_closed())
    }

    /// The link to its process, which is started if it does not run.
    pub async fn link(self: &Arc<Self>, server: &Arc<Server>) -> Result<Link, Unavailable> {
        let _starting = self.starting.lock().await;
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let (link, _) = self.start(server).await?;
        // The client has said this long ago, to the process before this one.
        let ready = write_request(None, methods::INITIALIZED, None);
        if let Ok(envelope) = Envelope::parse(&ready) {
            link.notify(&ready, &envelope, None).await.map_err(|error| Unavailable::Down(error.to_string()))?;
        }
        Ok(link)
    }

    /// Starts a process and initialises it with the client's own words.
    async fn start(self: &Arc<Self>, server: &Arc<Server>) -> Result<(Link, String), Unavailable> {
        let ended = self.ended.subscribe();
        let due = lock(&self.failures).not_before;
        if due.is_some_and(|due| due > Instant::now()) {
            let tail = server.log.tail().pop().unwrap_or_default();
            return Err(Unavailable::Down(format!("it ended {CRASH_LOOP} times in a row: {tail}")));
        }
        let secrets = server.secrets().map_err(|_| Unavailable::Down("it waits for its secrets".to_owned()))?;
        let started = Instant::now();
        let (mut process, pipes) = Process::start(&server.spec, &secrets, Some(server.clients.mark()), &server.tree)
            .map_err(|error| Unavailable::Down(error.to_string()))?;
        let Pipes { stdin, stdout, stderr } = pipes;
        process.copy(stderr, &server.log);
        let upward = Upward::Client { mailbox: self.mailbox.clone(), roots: server.spec.roots };
        let (link, outgoing) = Link::new(server.buffers.clone(), server.log.clone(), upward);
        pipes::attach(&link, outgoing, stdin, stdout);
        let patience = Duration::from_millis(server.spec.timeouts.start_ms);
        let upstream = Upstream::Messages(link.clone());
        let result = tokio::select! {
            result = upstream.ask(methods::INITIALIZE, &self.initialize, started + patience) => result,
            exit = process.exit() => {
                server.board.one_of_many_ended(exit);
                Err(HandshakeError::Ended)
            }
        };
        match result {
            Ok(result) => {
                *lock(&self.link) = Some(link.clone());
                tokio::spawn(stay(server.clone(), self.clone(), process, link.clone(), ended, started));
                Ok((link, result))
            }
            Err(error) => {
                link.close();
                process.end().await;
                self.failed(server, started);
                Err(Unavailable::Down(error.to_string()))
            }
        }
    }

    /// Notes the end of a run that nobody asked for.
    fn failed(&self, server: &Server, started: Instant) {
        let mut failures = lock(&self.failures);
        failures.short_runs = if started.elapsed() >= STEADY { 1 } else { failures.short_runs + 1 };
        // Started by requests only, so a few quick tries do no harm; a crash loop has to wait as any other.
        failures.not_before =
            (failures.short_runs >= CRASH_LOOP).then(|| Instant::now() + backoff(&server.spec, failures.short_runs));
    }

    async fn unused(&self, limit: Duration, link: &Link) {
        loop {
            let since = lock(&self.last_used).elapsed();
            if since >= limit && link.in_flight() == 0 {
                return;
            }
            tokio::time::sleep(limit.saturating_sub(since).max(Duration::from_millis(50))).await;
        }
    }
}

/// Stays with a process until it ends or is to end.
async fn stay(
    server: Arc<Server>,
    client: Arc<Client>,
    mut process: Process,
    link: Link,
    mut ended: watch::Receiver<()>,
    started: Instant,
) {
    let limit = match server.spec.lifecycle {
        Lifecycle::AlwaysOn => UNUSED,
        Lifecycle::OnDemand { idle_timeout_ms } => Duration::from_millis(idle_timeout_ms),
    };
    tokio::select! {
        exit = process.exit() => {
            // Answers that it wrote before it ended are answers.
            tokio::time::timeout(DRAIN, link.closed()).await.ok();
            client.failed(&server, started);
            server.board.one_of_many_ended(exit);
        }
        _ = ended.changed() => {}
        () = client.unused(limit, &link) => {}
        () = server.stop_asked() => {}
    }
    link.close();
    process.end().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_roots_are_cut_out_of_what_the_server_is_told_and_nothing_else_is() {
        let params = r#"{"protocolVersion":"2025-06-18","capabilities":{"sampling":{},"roots":{"listChanged":true},"x":1.50},"clientInfo":{"name":"a"}}"#;
        assert_eq!(
            params_for(Some(params), Roots::Deny),
            r#"{"protocolVersion":"2025-06-18","capabilities":{"sampling":{},"x":1.50},"clientInfo":{"name":"a"}}"#
        );
        assert_eq!(params_for(Some(params), Roots::Forward), params);
    }
}
