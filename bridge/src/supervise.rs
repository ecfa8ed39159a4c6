//! The server's life: started, shaken hands with, watched, stopped, started again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::launch::{ChildTransport, EraChoice, LaunchSpec, Lifecycle, RestartPolicy};
use mcp_hub_dataplane_api::status::{Exit, Notice, Phase};
use mcp_hub_dataplane_api::{Era, SessionMode};
use mcp_hub_mcp::methods;
use tokio::process::Child;
use tokio::sync::{Notify, watch};

use crate::handshake::{self, HandshakeError, Introduction};
use crate::link::Link;
use crate::logs::Log;
use crate::run_dir::RunDir;
use crate::sessions::Sessions;
use crate::status::Board;
use crate::{spawn, tree};

/// A run of this length makes what came before it forgotten.
const STEADY: Duration = Duration::from_secs(60);
/// Short runs in a row that make a crash loop.
const CRASH_LOOP: u32 = 5;

/// One MCP server and all that the bridge knows of it. Shared by the supervisor, the HTTP side and the control socket.
#[derive(Debug)]
pub struct Server {
    pub spec: LaunchSpec,
    pub board: Board,
    pub sessions: Sessions,
    pub log: Log,
    era_file: PathBuf,
    /// Values of the secret environment, once pushed.
    secrets: watch::Sender<Option<BTreeMap<String, String>>>,
    /// The running server; `None` while there is none.
    running: watch::Sender<Option<Running>>,
    /// The last introduction; kept while the server sleeps.
    introduction: Mutex<Option<Arc<Introduction>>>,
    wake: Notify,
    restart: Notify,
    stopping: watch::Sender<bool>,
    last_call: Mutex<Instant>,
    last_answer: Mutex<Instant>,
}

/// A server that shook hands.
#[derive(Debug, Clone)]
pub struct Running {
    pub link: Link,
    pub introduction: Arc<Introduction>,
}

/// Why a call cannot be taken to the server.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("the server is not running: {0}")]
    Down(String),
    #[error("the server did not start within {0:?}")]
    Late(Duration),
}

impl Server {
    pub fn new(spec: LaunchSpec, run_dir: &RunDir, endpoint: String) -> Arc<Self> {
        let mut notices = Vec::new();
        if spec.sessions.mode == SessionMode::Shared {
            notices.push(Notice {
                reason: "InteractiveFeaturesOff".to_owned(),
                message: "clients share the server, so it cannot use sampling, elicitation or roots".to_owned(),
            });
        }
        Arc::new(Self {
            board: Board::new(spec.digest.clone(), endpoint, notices),
            sessions: Sessions::new(spec.sessions.max),
            log: Log::new(run_dir.path(), spec.log),
            era_file: run_dir.path().join("era"),
            secrets: watch::Sender::new(None),
            running: watch::Sender::new(None),
            introduction: Mutex::default(),
            wake: Notify::new(),
            restart: Notify::new(),
            stopping: watch::Sender::new(false),
            last_call: Mutex::new(Instant::now()),
            last_answer: Mutex::new(Instant::now()),
            spec,
        })
    }

    pub fn push_secrets(&self, values: BTreeMap<String, String>) {
        self.secrets.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&values);
            *current = Some(values);
            changed
        });
    }

    pub fn restart(&self) {
        self.restart.notify_one();
    }

    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Resolves when everything has ended.
    pub async fn stopped(&self) {
        let mut watch = self.board.watch();
        // An error means that the board is gone, and the supervisor with it.
        watch.wait_for(|status| status.phase == Phase::Exited).await.ok();
    }

    pub fn introduction(&self) -> Option<Arc<Introduction>> {
        self.introduction.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The running server, if it runs.
    pub fn current(&self) -> Option<Running> {
        self.running.borrow().clone().filter(|running| !running.link.is_closed())
    }

    /// The running server; one that sleeps is woken, one that starts is waited for. A server in a crash loop is not.
    pub async fn awake(&self) -> Result<Running, Unavailable> {
        *self.last_call.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Some(running) = self.current() {
            return Ok(running);
        }
        let patience = Duration::from_millis(self.spec.timeouts.start_ms);
        let mut running = self.running.subscribe();
        let mut status = self.board.watch();
        self.wake.notify_one();
        let ready = async {
            loop {
                if let Some(running) = running.borrow_and_update().clone().filter(|running| !running.link.is_closed()) {
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
                    Phase::Starting | Phase::Ready | Phase::Asleep | Phase::Backoff { .. } => {}
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

    /// Notes that the server answered: it needs no probe for a while.
    pub fn answered(&self) {
        *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn since(mutex: &Mutex<Instant>) -> Duration {
        mutex.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Why a run ended.
enum End {
    Exited(Exit, String),
    /// Asked for: by the control socket, or by new secrets.
    Renew,
    Idle,
    Stop,
    Unhealthy(String),
}

/// Runs the server until it is stopped.
pub async fn run(server: Arc<Server>) {
    let mut short_runs = 0;
    let mut stopping = server.stopping.subscribe();
    loop {
        let Some(secrets) = secrets(&server, &mut stopping).await else { break };
        let started = Instant::now();
        let end = tokio::select! {
            end = one_run(&server, &secrets) => end,
            _ = stopping.wait_for(|stop| *stop) => End::Stop,
        };
        server.running.send_replace(None);
        tree::end_all(None, &[]).await;
        let (exit, error) = match end {
            End::Stop => break,
            End::Renew => {
                short_runs = 0;
                continue;
            }
            End::Idle => {
                server.board.asleep();
                tokio::select! {
                    () = server.wake.notified() => {}
                    () = server.restart.notified() => {}
                    _ = stopping.wait_for(|stop| *stop) => break,
                }
                continue;
            }
            End::Exited(exit, error) => (Some(exit), error),
            End::Unhealthy(error) => (None, error),
        };
        short_runs = if started.elapsed() >= STEADY { 1 } else { short_runs + 1 };
        let again = match server.spec.restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.as_ref().is_none_or(|exit| exit.code != Some(0)),
            RestartPolicy::Never => false,
        };
        let tail = server.log.tail();
        if !again {
            server.board.ended(Phase::Exited, exit, error, tail, false);
            tokio::select! {
                () = server.restart.notified() => continue,
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        let wait = backoff(&server.spec, short_runs);
        let retry_at =
            jiff::Timestamp::now().checked_add(wait).map_or_else(|_| crate::status::now(), |at| format!("{at:.3}"));
        let phase = match (short_runs >= CRASH_LOOP, wait.is_zero()) {
            (true, _) => Phase::CrashLoop { retry_at },
            (false, true) => Phase::Starting,
            (false, false) => Phase::Backoff { retry_at },
        };
        server.board.ended(phase, exit, error, tail, true);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = server.restart.notified() => short_runs = 0,
            _ = stopping.wait_for(|stop| *stop) => break,
        }
    }
    tree::end_all(None, &[]).await;
    server.board.ended(Phase::Exited, None, "stopped on request".to_owned(), Vec::new(), false);
}

/// At once after the first short run, then doubling.
fn backoff(spec: &LaunchSpec, short_runs: u32) -> Duration {
    match short_runs {
        0 | 1 => Duration::ZERO,
        more => {
            let wait = spec.restart.initial_ms.saturating_mul(1 << (more - 2).min(20));
            Duration::from_millis(wait.min(spec.restart.max_ms))
        }
    }
}

/// Waits until every secret variable has its value; `None` if the server is stopped first.
async fn secrets(server: &Server, stopping: &mut watch::Receiver<bool>) -> Option<BTreeMap<String, String>> {
    let wanted = &server.spec.child.secret_env;
    let mut pushed = server.secrets.subscribe();
    loop {
        let current = pushed.borrow_and_update().clone().unwrap_or_default();
        let missing: Vec<String> = wanted.iter().filter(|name| !current.contains_key(*name)).cloned().collect();
        if missing.is_empty() {
            return Some(current.into_iter().filter(|(name, _)| wanted.contains(name)).collect());
        }
        server.board.waiting_for_secrets(missing);
        tokio::select! {
            changed = pushed.changed() => changed.ok()?,
            _ = stopping.wait_for(|stop| *stop) => return None,
        }
    }
}

/// Starts the server and stays with it until its run ends.
async fn one_run(server: &Arc<Server>, secrets: &BTreeMap<String, String>) -> End {
    let failed = |error: String| {
        End::Exited(Exit { code: None, signal: None, out_of_memory: false, at: crate::status::now() }, error)
    };
    if server.spec.transport != ChildTransport::Stdio {
        return failed("this release runs stdio servers only".to_owned());
    }
    let remembered = std::fs::read_to_string(&server.era_file).unwrap_or_default();
    let mut era = match (server.spec.era, remembered.trim()) {
        (EraChoice::Auto, "legacy") => EraChoice::Legacy,
        (EraChoice::Auto, "modern") => EraChoice::Modern,
        (era, _) => era,
    };
    let mut probed = era == server.spec.era;
    loop {
        server.board.starting(None);
        let started = Instant::now();
        let mut child = match spawn::spawn(&server.spec, secrets) {
            Ok(child) => child,
            Err(error) => return failed(error.to_string()),
        };
        let Some(link) = connect(server, &mut child) else { return failed("the server has no pipes".to_owned()) };
        server.board.starting(child.id());
        let patience = Duration::from_millis(server.spec.timeouts.start_ms);
        let introduction = match handshake::shake(&link, era, None, started, patience).await {
            Ok(introduction) => introduction,
            Err(HandshakeError::NotModern) => {
                tree::end_all(child.id(), &[]).await;
                era = EraChoice::Legacy;
                continue;
            }
            // The verdict of an earlier run no longer holds.
            Err(_) if !probed => {
                std::fs::remove_file(&server.era_file).ok();
                tree::end_all(child.id(), &[]).await;
                era = server.spec.era;
                probed = true;
                continue;
            }
            Err(error) => {
                link.close();
                let exit = ended(&mut child).await;
                let message = match &exit {
                    Some(exit) => format!("{error} ({})", describe(exit)),
                    None => error.to_string(),
                };
                return match exit {
                    Some(exit) => End::Exited(exit, message),
                    None => End::Unhealthy(message),
                };
            }
        };
        if server.spec.era == EraChoice::Auto {
            let verdict = match introduction.era {
                Era::Legacy => "legacy",
                Era::Modern => "modern",
            };
            // Only a shortcut for the next start.
            std::fs::write(&server.era_file, verdict).ok();
        }
        return live(server, child, Running { link, introduction: Arc::new(introduction) }, secrets).await;
    }
}

fn connect(server: &Server, child: &mut Child) -> Option<Link> {
    let (stdin, stdout, stderr) = (child.stdin.take()?, child.stdout.take()?, child.stderr.take()?);
    tokio::spawn(server.log.clone().copy(stderr));
    Some(Link::new(stdin, stdout, server.log.clone(), None))
}

/// The server shook hands and serves.
async fn live(server: &Arc<Server>, mut child: Child, running: Running, secrets: &BTreeMap<String, String>) -> End {
    *server.introduction.lock().unwrap_or_else(PoisonError::into_inner) = Some(running.introduction.clone());
    *server.last_call.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    server.answered();
    let link = running.link.clone();
    server.running.send_replace(Some(running.clone()));
    server.board.ready(running.introduction.summary.clone());
    let mut pushed = server.secrets.subscribe();
    let own = |values: &Option<BTreeMap<String, String>>| {
        let values = values.clone().unwrap_or_default();
        values.into_iter().filter(|(name, _)| server.spec.child.secret_env.contains(name)).collect::<BTreeMap<_, _>>()
    };
    let end = tokio::select! {
        status = child.wait() => {
            let exit = exit_of(status.ok());
            let message = describe(&exit);
            End::Exited(exit, message)
        }
        _ = pushed.wait_for(|values| own(values) != *secrets) => End::Renew,
        () = server.restart.notified() => End::Renew,
        () = idle(server, &link) => End::Idle,
        error = unhealthy(server, &running) => End::Unhealthy(error),
    };
    server.running.send_replace(None);
    link.close();
    tree::end_all(child.id(), &[]).await;
    end
}

/// Resolves when an `onDemand` server has had no call for its idle time.
async fn idle(server: &Server, link: &Link) {
    let Lifecycle::OnDemand { idle_timeout_ms } = server.spec.lifecycle else { return std::future::pending().await };
    let limit = Duration::from_millis(idle_timeout_ms);
    loop {
        let since = Server::since(&server.last_call);
        if since >= limit && link.in_flight() == 0 {
            return;
        }
        tokio::time::sleep(limit.saturating_sub(since).max(Duration::from_millis(50))).await;
    }
}

/// Resolves when the server has not answered enough probes in a row. Traffic that was answered is a probe, any answer is
/// alive, and nobody is probed while a call is under way: its own timeout decides.
async fn unhealthy(server: &Server, running: &Running) -> String {
    let (period, timeout) =
        (Duration::from_millis(server.spec.health.period_ms), Duration::from_millis(server.spec.health.timeout_ms));
    let (method, params) = match running.introduction.era {
        Era::Legacy => (methods::PING, "{}".to_owned()),
        Era::Modern => (methods::DISCOVER, serde_json::json!({"_meta": handshake::modern_meta()}).to_string()),
    };
    let mut failures = 0;
    loop {
        let due = period.saturating_sub(Server::since(&server.last_answer)).max(Duration::from_millis(100));
        tokio::time::sleep(due).await;
        if Server::since(&server.last_answer) < period || running.link.in_flight() > 0 {
            failures = 0;
            tokio::time::sleep(period / 4).await;
            continue;
        }
        match handshake::ask(&running.link, method, &params, Instant::now() + timeout).await {
            Ok(_) | Err(HandshakeError::Refused { .. }) => {
                failures = 0;
                server.answered();
            }
            Err(error) => {
                failures += 1;
                if failures >= server.spec.health.failure_threshold {
                    return format!("{failures} probes in a row failed: {error}");
                }
            }
        }
    }
}

/// The exit of a server that is ending by itself; `None` if it goes on.
async fn ended(child: &mut Child) -> Option<Exit> {
    let status = tokio::time::timeout(Duration::from_millis(500), child.wait()).await.ok()?;
    Some(exit_of(status.ok()))
}

fn exit_of(status: Option<std::process::ExitStatus>) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    Exit {
        code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        // Limits of a single process show as failed allocations, which the server itself reports on stderr.
        out_of_memory: false,
        at: crate::status::now(),
    }
}

fn describe(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("the server exited with code {code}"),
        (None, Some(signal)) => format!("the server was ended by signal {signal}"),
        (None, None) => "the server ended".to_owned(),
    }
}
