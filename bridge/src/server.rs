//! One MCP server and all that the bridge knows of it. Shared by the supervisor, the HTTP side and the control socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::launch::LaunchSpec;
use mcp_hub_dataplane_api::status::Phase;
use tokio::sync::{Notify, watch};

use crate::budget::Buffers;
use crate::clients::Clients;
use crate::handshake::Introduction;
use crate::logs::Log;
use crate::run_dir::RunDir;
use crate::sessions::Sessions;
use crate::status::Board;
use crate::tree::Tree;
use crate::upstream::Upstream;

type Secrets = BTreeMap<String, String>;

#[derive(Debug)]
pub struct Server {
    pub spec: LaunchSpec,
    pub board: Board,
    /// Sessions of clients that share the process.
    pub sessions: Sessions,
    /// Clients with a process each.
    pub clients: Clients,
    pub buffers: Buffers,
    pub tree: Arc<Tree>,
    pub log: Log,
    era_file: PathBuf,
    /// Values of the secret environment, once pushed.
    secrets: watch::Sender<Option<Secrets>>,
    /// The running server; `None` while there is none.
    running: watch::Sender<Option<Running>>,
    /// The last introduction; kept while the server sleeps.
    introduction: Mutex<Option<Arc<Introduction>>>,
    wake: watch::Sender<()>,
    restart: Notify,
    ending: watch::Sender<Ending>,
    stopping: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    last_call: Mutex<Instant>,
    last_answer: Mutex<Instant>,
    /// When a call last ran out of its time.
    last_late: Mutex<Option<Instant>>,
}

/// How near the end of a bridge is that was asked to end in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    No,
    /// Calls are taken, but callers should look for another bridge.
    Draining,
    /// No call is taken; those under way are finished.
    Closing,
}

/// A server that shook hands.
#[derive(Debug, Clone)]
pub struct Running {
    pub upstream: Upstream,
    pub introduction: Arc<Introduction>,
}

/// Why a call cannot be taken to the server.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("the server is not running: {0}")]
    Down(String),
    #[error("the server did not start within {0:?}")]
    Late(Duration),
    #[error("all {0} sessions are busy")]
    Full(u32),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub fn new(spec: LaunchSpec, run_dir: &RunDir, log: Log, endpoint: String) -> Arc<Self> {
        Arc::new(Self {
            board: Board::new(spec.digest.clone(), endpoint),
            sessions: Sessions::new(spec.sessions.max),
            clients: Clients::new(spec.sessions.max),
            buffers: Buffers::new(),
            tree: Arc::default(),
            log,
            era_file: run_dir.path().join("era"),
            secrets: watch::Sender::new(None),
            running: watch::Sender::new(None),
            introduction: Mutex::default(),
            wake: watch::Sender::new(()),
            restart: Notify::new(),
            ending: watch::Sender::new(Ending::No),
            stopping: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
            last_call: Mutex::new(Instant::now()),
            last_answer: Mutex::new(Instant::now()),
            last_late: Mutex::default(),
            spec,
        })
    }

    pub fn push_secrets(&self, values: Secrets) {
        self.secrets.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&values);
            *current = Some(values);
            changed
        });
    }

    pub fn watch_secrets(&self) -> watch::Receiver<Option<Secrets>> {
        self.secrets.subscribe()
    }

    /// The values of all secret variables, or the names of those that are missing.
    pub fn secrets(&self) -> Result<Secrets, Vec<String>> {
        let wanted = &self.spec.child.secret_env;
        let pushed = self.secrets.borrow();
        let value = |name: &String| pushed.as_ref().and_then(|pushed| pushed.get(name)).cloned();
        let missing: Vec<String> = wanted.iter().filter(|name| value(name).is_none()).cloned().collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        Ok(wanted.iter().filter_map(|name| Some((name.clone(), value(name)?))).collect())
    }

    pub fn restart(&self) {
        self.restart.notify_one();
    }

    pub async fn restart_asked(&self) {
        self.restart.notified().await;
    }

    pub fn drain(&self) {
        self.ending.send_replace(Ending::Draining);
    }

    pub fn is_draining(&self) -> bool {
        *self.ending.borrow() >= Ending::Draining
    }

    pub fn close(&self) {
        self.ending.send_replace(Ending::Closing);
    }

    /// Resolves when no call is taken any more.
    pub async fn closing(&self) {
        // The sender lives as long as we do.
        self.ending.subscribe().wait_for(|ending| *ending >= Ending::Closing).await.ok();
    }

    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub async fn stop_asked(&self) {
        // The sender lives as long as we do.
        self.stopping.subscribe().wait_for(|stop| *stop).await.ok();
    }

    pub fn has_stopped(&self) {
        self.stopped.send_replace(true);
    }

    /// Resolves when everything has ended.
    pub async fn stopped(&self) {
        self.stopped.subscribe().wait_for(|stopped| *stopped).await.ok();
    }

    /// Changes when somebody needs the server.
    pub fn watch_wake(&self) -> watch::Receiver<()> {
        self.wake.subscribe()
    }

    pub fn introduction(&self) -> Option<Arc<Introduction>> {
        lock(&self.introduction).clone()
    }

    pub fn introduced(&self, introduction: Arc<Introduction>) {
        *lock(&self.introduction) = Some(introduction);
    }

    pub fn set_running(&self, running: Option<Running>) {
        self.running.send_replace(running);
    }

    /// The running server, if it runs.
    pub fn current(&self) -> Option<Running> {
        self.running.borrow().clone().filter(|running| !running.upstream.is_closed())
    }

    /// The running server; one that sleeps is woken, one that starts is waited for. A server in a crash loop is not.
    pub async fn awake(&self) -> Result<Running, Unavailable> {
        if let Some(running) = self.current() {
            return Ok(running);
        }
        let patience = Duration::from_millis(self.spec.timeouts.start_ms);
        let mut running = self.running.subscribe();
        let mut status = self.board.watch();
        let ready = async {
            loop {
                let current = running.borrow_and_update().clone();
                if let Some(running) = current.filter(|running| !running.upstream.is_closed()) {
                    return Ok(running);
                }
                let current = status.borrow_and_update().clone();
                match current.phase {
                    Phase::CrashLoop { .. } | Phase::Exited => {
                        return Err(Unavailable::Down(current.last_error.unwrap_or_else(|| "it ended".to_owned())));
                    }
                    Phase::WaitingForSecrets { .. } => {
                        return Err(Unavailable::Down("it waits for its secrets".to_owned()));
                    }
                    Phase::Asleep => self.wake.send_replace(()),
                    Phase::Starting | Phase::Ready | Phase::Backoff { .. } => {}
                }
                tokio::select! {
                    // Either sender lives as long as the server itself.
                    changed = running.changed() => if changed.is_err() { return Err(Unavailable::Down("it ended".to_owned())) },
                    changed = status.changed() => if changed.is_err() { return Err(Unavailable::Down("it ended".to_owned())) },
                }
            }
        };
        tokio::time::timeout(patience, ready).await.unwrap_or(Err(Unavailable::Late(patience)))
    }

    /// Notes a call: an `onDemand` server stays awake for a while after it.
    pub fn called(&self) {
        *lock(&self.last_call) = Instant::now();
    }

    /// Notes that the server answered: it needs no probe for a while.
    pub fn answered(&self) {
        *lock(&self.last_answer) = Instant::now();
    }

    /// Notes the end of a call.
    pub fn call_ended(&self) {
        self.called();
        self.answered();
        self.board.active(|activity| activity.last_call_at = Some(crate::status::now()));
    }

    /// Notes a call that ran out of its time.
    pub fn call_was_late(&self) {
        *lock(&self.last_late) = Some(Instant::now());
    }

    /// Whether a call ran out of its time and nothing was answered since.
    pub fn is_suspect(&self) -> bool {
        let last_answer = *lock(&self.last_answer);
        lock(&self.last_late).is_some_and(|late| late > last_answer)
    }

    /// A run begins: it is neither idle nor silent yet.
    pub fn begin_activity(&self) {
        self.called();
        self.answered();
    }

    pub fn since_last_call(&self) -> Duration {
        lock(&self.last_call).elapsed()
    }

    pub fn since_last_answer(&self) -> Duration {
        lock(&self.last_answer).elapsed()
    }

    /// The era in which this very specification was found to speak.
    pub fn remembered_era(&self) -> Option<Era> {
        let text = std::fs::read_to_string(&self.era_file).ok()?;
        match text.strip_prefix(&self.spec.digest)?.trim() {
            "legacy" => Some(Era::Legacy),
            "modern" => Some(Era::Modern),
            _ => None,
        }
    }

    pub fn remember_era(&self, era: Era) {
        let verdict = match era {
            Era::Legacy => "legacy",
            Era::Modern => "modern",
        };
        // Only a shortcut for the next start.
        std::fs::write(&self.era_file, format!("{} {verdict}", self.spec.digest)).ok();
    }

    pub fn forget_era(&self) {
        std::fs::remove_file(&self.era_file).ok();
    }
}
