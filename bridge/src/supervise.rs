//! The server's life: started, shaken hands with, watched, stopped, started again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::launch::{ChildTransport, EraChoice, LaunchSpec, Lifecycle, RestartPolicy};
use mcp_hub_dataplane_api::status::{Exit, Notice, Phase};
use mcp_hub_dataplane_api::{Era, SessionMode};
use mcp_hub_mcp::methods;

use crate::handshake::{self, HandshakeError, Introduction};
use crate::http_child::HttpChild;
use crate::link::{Link, Upward};
use crate::process::{Pipes, Process, describe};
use crate::server::{Running, Server};
use crate::tree::Scope;
use crate::upstream::Upstream;
use crate::{cgroup, follow, pipes};

/// A run of this length makes what came before it forgotten.
pub const STEADY: Duration = Duration::from_secs(60);
/// Short runs in a row that make a crash loop.
pub const CRASH_LOOP: u32 = 5;
/// What a server wrote before it ended is in its pipe; reading it takes less than this unless a stray holds the pipe.
pub const DRAIN: Duration = Duration::from_millis(100);
/// A server whose pipe broke is about to exit; one that only closed its stdout is not.
const LAST_GASP: Duration = Duration::from_millis(500);

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
    loop {
        let Some(secrets) = secrets(&server).await else { break };
        let started = Instant::now();
        let end = one_run(&server, &secrets).await;
        server.set_running(None);
        let (exit, error) = match end {
            End::Stop => break,
            End::Renew => {
                server.clients.renew();
                short_runs = 0;
                continue;
            }
            End::Idle => {
                let mut wake = server.watch_wake();
                server.board.asleep();
                tokio::select! {
                    _ = wake.changed() => {}
                    () = server.restart_asked() => {}
                    () = server.stop_asked() => break,
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
        server.log.say(&error);
        if !again {
            server.board.ended(Phase::Exited, exit, error, tail, false);
            tokio::select! {
                () = server.restart_asked() => {
                    short_runs = 0;
                    continue;
                }
                () = server.stop_asked() => break,
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
            () = server.restart_asked() => short_runs = 0,
            () = server.stop_asked() => break,
        }
    }
    server.tree.end(Scope::Everything).await;
    if let Some(group) = &server.spec.child.limits.cgroup {
        cgroup::remove(group);
    }
    server.board.ended(Phase::Exited, None, "stopped on request".to_owned(), Vec::new(), false);
    server.has_stopped();
}

/// At once after the first short run, then doubling.
pub fn backoff(spec: &LaunchSpec, short_runs: u32) -> Duration {
    match short_runs {
        0 | 1 => Duration::ZERO,
        more => {
            let wait = spec.restart.initial_ms.saturating_mul(1 << (more - 2).min(20));
            Duration::from_millis(wait.min(spec.restart.max_ms))
        }
    }
}

/// Waits until every secret variable has its value; `None` if the server is stopped first.
async fn secrets(server: &Server) -> Option<BTreeMap<String, String>> {
    let mut pushed = server.watch_secrets();
    loop {
        pushed.borrow_and_update();
        match server.secrets() {
            Ok(secrets) => return Some(secrets),
            Err(missing) => server.board.waiting_for_secrets(missing),
        }
        tokio::select! {
            changed = pushed.changed() => changed.ok()?,
            // Nothing runs that could be restarted.
            () = server.restart_asked() => {}
            () = server.stop_asked() => return None,
        }
    }
}

/// Resolves when the run is to end from outside.
async fn interrupted(server: &Server, secrets: &BTreeMap<String, String>) -> End {
    let mut pushed = server.watch_secrets();
    tokio::select! {
        () = server.stop_asked() => End::Stop,
        () = server.restart_asked() => End::Renew,
        // Secrets that went missing are no reason to end what runs.
        _ = pushed.wait_for(|_| server.secrets().is_ok_and(|current| current != *secrets)) => End::Renew,
    }
}

/// Starts the server and stays with it until its run ends. Whatever it started is gone then.
async fn one_run(server: &Arc<Server>, secrets: &BTreeMap<String, String>) -> End {
    let remembered = server.remembered_era();
    let mut era = match (server.spec.era, remembered) {
        (EraChoice::Auto, Some(Era::Legacy)) => EraChoice::Legacy,
        (EraChoice::Auto, Some(Era::Modern)) => EraChoice::Modern,
        (era, _) => era,
    };
    let mut probed = era == server.spec.era;
    loop {
        server.board.starting(None);
        let started = Instant::now();
        let (mut process, upstream) = match start(server, secrets) {
            Ok(started) => started,
            Err(exit) => return exit,
        };
        server.board.starting(Some(process.pid()));
        let patience = Duration::from_millis(server.spec.timeouts.start_ms);
        let mut shaking = std::pin::pin!(handshake::shake(&upstream, era, started, patience));
        let result = tokio::select! {
            biased;
            result = &mut shaking => result,
            // What it said last is still in its pipe.
            _ = process.exit() => tokio::time::timeout(DRAIN, &mut shaking).await.unwrap_or(Err(HandshakeError::Ended)),
            end = interrupted(server, secrets) => {
                upstream.close();
                process.end().await;
                return end;
            }
        };
        match result {
            Ok(introduction) => {
                if server.spec.era == EraChoice::Auto {
                    server.remember_era(introduction.era);
                }
                let running = Running { upstream: upstream.clone(), introduction: Arc::new(introduction) };
                return live(server, process, running, secrets).await;
            }
            Err(HandshakeError::NotModern) => era = EraChoice::Legacy,
            // The verdict of an earlier run no longer holds.
            Err(_) if !probed => {
                server.forget_era();
                era = server.spec.era;
                probed = true;
            }
            Err(error) => {
                upstream.close();
                let exit = tokio::time::timeout(LAST_GASP, process.exit()).await.ok();
                process.end().await;
                return match exit {
                    Some(exit) => {
                        let message = format!("{error} ({})", describe(&exit));
                        End::Exited(exit, message)
                    }
                    None => End::Unhealthy(error.to_string()),
                };
            }
        }
        upstream.close();
        process.end().await;
    }
}

/// Starts the process and connects to it.
fn start(server: &Server, secrets: &BTreeMap<String, String>) -> Result<(Process, Upstream), End> {
    // Only with a process for each client are there several whose strays must be told apart.
    let mark = match server.spec.sessions.mode {
        SessionMode::Shared => None,
        SessionMode::PerClient => Some(server.clients.mark()),
    };
    let (mut process, pipes) = Process::start(&server.spec, secrets, mark, &server.tree).map_err(|error| {
        let exit = Exit { code: None, signal: None, out_of_memory: false, at: crate::status::now() };
        End::Exited(exit, error.to_string())
    })?;
    let upstream = connect(server, &mut process, pipes);
    Ok((process, upstream))
}

fn connect(server: &Server, process: &mut Process, pipes: Pipes) -> Upstream {
    let Pipes { stdin, stdout, stderr } = pipes;
    process.copy(stderr, &server.log);
    match &server.spec.transport {
        ChildTransport::Stdio => {
            let (link, outgoing) = Link::new(server.buffers.clone(), server.log.clone(), Upward::Shared);
            pipes::attach(&link, outgoing, stdin, stdout);
            Upstream::Messages(link)
        }
        ChildTransport::StreamableHttp { port, path } => {
            process.copy(stdout, &server.log);
            Upstream::Http(HttpChild::new(*port, path))
        }
        ChildTransport::Sse { port, path } => {
            process.copy(stdout, &server.log);
            let (link, outgoing) = Link::new(server.buffers.clone(), server.log.clone(), Upward::Shared);
            crate::sse_child::attach(&link, outgoing, *port, path);
            Upstream::Messages(link)
        }
    }
}

/// What works less than the specification might suggest.
fn notices(spec: &LaunchSpec, era: Era) -> Vec<Notice> {
    let notice = |reason: &str, message: &str| vec![Notice { reason: reason.to_owned(), message: message.to_owned() }];
    match (&spec.transport, spec.sessions.mode, era) {
        // It has sessions of its own, which pass through.
        (ChildTransport::StreamableHttp { .. }, _, _) => Vec::new(),
        (_, SessionMode::Shared, Era::Legacy) => notice(
            "InteractiveFeaturesOff",
            "clients share the server, so it cannot use sampling, elicitation or roots",
        ),
        // Requests of the modern era carry all that the server needs to know of a client.
        (_, SessionMode::Shared, Era::Modern) => Vec::new(),
        (_, SessionMode::PerClient, Era::Modern) => notice(
            "SharedProcess",
            "the server speaks the stateless era, which has no sessions, so its clients share one process",
        ),
        (ChildTransport::Sse { .. }, SessionMode::PerClient, Era::Legacy) => notice(
            "InteractiveFeaturesOff",
            "an HTTP+SSE server is one process on one port, so clients share it without sampling, elicitation or roots",
        ),
        (ChildTransport::Stdio, SessionMode::PerClient, Era::Legacy) => Vec::new(),
    }
}

/// The server shook hands and serves.
async fn live(server: &Arc<Server>, mut process: Process, running: Running, secrets: &BTreeMap<String, String>) -> End {
    let (upstream, introduction) = (running.upstream.clone(), running.introduction.clone());
    server.introduced(introduction.clone());
    server.begin_activity();
    server.set_running(Some(running.clone()));
    server.board.ready(introduction.summary.clone(), notices(&server.spec, introduction.era));
    let end = tokio::select! {
        exit = process.exit() => {
            // Answers that it wrote before it ended are answers.
            tokio::time::timeout(DRAIN, upstream.drained()).await.ok();
            let message = describe(&exit);
            End::Exited(exit, message)
        }
        end = interrupted(server, secrets) => end,
        () = idle(server, &upstream) => End::Idle,
        error = unhealthy(server, &upstream, &introduction) => End::Unhealthy(error),
        () = follow::lists(server, &upstream, introduction.clone()) => End::Unhealthy("its lists cannot be followed".to_owned()),
    };
    server.set_running(None);
    upstream.close();
    process.end().await;
    end
}

/// Resolves when an `onDemand` server has had no call for its idle time.
async fn idle(server: &Server, upstream: &Upstream) {
    let Lifecycle::OnDemand { idle_timeout_ms } = server.spec.lifecycle else { return std::future::pending().await };
    let limit = Duration::from_millis(idle_timeout_ms);
    loop {
        let since = server.since_last_call();
        if since >= limit && upstream.in_flight() == 0 {
            return;
        }
        tokio::time::sleep(limit.saturating_sub(since).max(Duration::from_millis(50))).await;
    }
}

/// Resolves when the server has not answered enough probes in a row. Traffic that was answered is a probe, any answer is
/// alive, and nobody is probed while a call is under way: its own timeout decides. Once one has run out and nothing was
/// answered since, later calls protect the server no longer: with steady traffic it would never be found out.
async fn unhealthy(server: &Server, upstream: &Upstream, introduction: &Introduction) -> String {
    let (period, timeout) =
        (Duration::from_millis(server.spec.health.period_ms), Duration::from_millis(server.spec.health.timeout_ms));
    let (method, params) = match introduction.era {
        Era::Legacy => (methods::PING, "{}".to_owned()),
        Era::Modern => (methods::DISCOVER, serde_json::json!({"_meta": handshake::modern_meta()}).to_string()),
    };
    let mut failures = 0;
    loop {
        let due = period.saturating_sub(server.since_last_answer()).max(Duration::from_millis(100));
        tokio::time::sleep(due).await;
        let is_busy = upstream.in_flight() > 0 && !server.is_suspect();
        if server.since_last_answer() < period || is_busy {
            failures = 0;
            tokio::time::sleep(period / 4).await;
            continue;
        }
        match upstream.ask(method, &params, Instant::now() + timeout).await {
            Ok(_) | Err(HandshakeError::Refused { .. } | HandshakeError::NotMcp { .. }) => {
                failures = 0;
                server.answered();
            }
            // A call that came meanwhile has its own timeout.
            Err(_) if upstream.in_flight() > 0 && !server.is_suspect() => {}
            Err(error) => {
                failures += 1;
                if failures >= server.spec.health.failure_threshold {
                    return format!("{failures} probes in a row failed: {error}");
                }
            }
        }
    }
}
