//! `mcpctl up`: joins the running daemon or becomes it.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossterm::cursor::MoveUp;
use crossterm::terminal::{Clear, ClearType};
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::admin::client::Admin;
use crate::admin::{DaemonVersion, Objects, OriginPath, Shutdown, Synced, path};
use crate::args::{Changes, Start, Up};
use crate::bridge_program;
use crate::commands::status::table;
use crate::commands::wait::{self, Of};
use crate::daemon;
use crate::error::Error;
use crate::output;
use crate::places::Places;
use crate::summary::{Row, hub_line, row};
use crate::target::Scope;
use crate::target::local::{BEGINNING, Local};

/// A daemon opens a database and binds a socket; even on a busy machine that takes far less.
const DAEMON_START: Duration = Duration::from_secs(30);

pub(crate) async fn run(local: &Local, args: &Up) -> Result<(), Error> {
    let Local { places, admin } = local;
    // Said before anything is started: a mistake in a manifest is the most likely reason for `up` to fail.
    if let Some(file) = &args.file {
        mcp_hub_crds::manifest::load(file).map_err(|errors| daemon::invalid(&errors))?;
    }
    let file = args.file.as_ref().map(|file| absolute(file)).transpose()?;
    if args.detach {
        ensure_daemon(local, &args.start).await?;
        if let Some(path) = &file {
            follow(admin, path).await?;
        }
        wait::settle(local, args.wait, &Of::All).await?;
        return if args.wait.wait { Ok(()) } else { started(admin).await };
    }

    let mut own = Own::default();
    if !is_running(admin).await? {
        own.start(places, admin, &args.start).await?;
    }
    let result = foreground(local, args, file.as_deref()).await;
    // Ctrl-C takes back what this `up` added; a daemon of somebody else goes on.
    let mut added: Vec<PathBuf> = file.into_iter().collect();
    if let (Some(path), Ok(_)) = (added.first(), &result) {
        output::say("ending what this `up` started");
        match admin.delete::<Synced>(path::ORIGINS, &OriginPath { path: path.clone() }).await {
            Err(Error::NoDaemon) | Ok(_) => {}
            Err(error) => output::error(&error),
        }
    }
    added.push(places.servers());
    own.end(admin, added).await?;
    result
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::fs::canonicalize(path).map_err(Error::file("open", path))
}

async fn is_running(admin: &Admin) -> Result<bool, Error> {
    match admin.get::<DaemonVersion>(path::VERSION).await {
        Ok(_) => Ok(true),
        Err(Error::NoDaemon) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn follow(admin: &Admin, path: &Path) -> Result<(), Error> {
    admin.post::<Synced>(path::ORIGINS, &OriginPath { path: path.to_owned() }).await.map(drop)
}

/// A daemon inside this process.
#[derive(Debug, Default)]
struct Own {
    task: Option<tokio::task::JoinHandle<Result<(), Error>>>,
    leave: Option<oneshot::Sender<()>>,
}

impl Own {
    async fn start(&mut self, places: &Places, admin: &Admin, start: &Start) -> Result<(), Error> {
        let (leave, left) = oneshot::channel();
        let mut task = tokio::spawn(daemon::run(places.clone(), *start, async {
            // Dropped or sent: either way nobody needs the daemon any more.
            left.await.ok();
        }));
        wait_for_daemon(admin, async {
            match (&mut task).await {
                Ok(Ok(())) => Error::DaemonStart("it ended at once".to_owned()),
                Ok(Err(error)) => error,
                Err(error) => Error::DaemonStart(error.to_string()),
            }
        })
        .await?;
        (self.task, self.leave) = (Some(task), Some(leave));
        Ok(())
    }

    async fn end(self, admin: &Admin, origins: Vec<PathBuf>) -> Result<(), Error> {
        let Some(task) = self.task else { return Ok(()) };
        match admin.post::<()>(path::SHUTDOWN, &Shutdown::Ending { origins }).await {
            Ok(()) | Err(Error::NoDaemon) => {}
            Err(error) => {
                output::error(&error);
                drop(self.leave);
            }
        }
        task.await.map_err(|error| Error::DaemonStart(error.to_string()))?
    }
}

/// Starts a daemon of its own session unless one runs.
pub(crate) async fn ensure_daemon(local: &Local, start: &Start) -> Result<(), Error> {
    let Local { places, admin } = local;
    if is_running(admin).await? {
        return Ok(());
    }
    places.create()?;
    // Unpacked here, so that the daemon need not have the bridge in its memory.
    bridge_program::place(places)?;
    let log = places.state().join("daemon.out");
    let file = std::fs::File::create(&log).map_err(Error::file("create", &log))?;
    let program = std::env::current_exe().map_err(Error::file("find", "mcpctl itself"))?;
    let errors = file.try_clone().map_err(Error::file("open", &log))?;
    let mut command = Command::new(&program);
    command.arg("daemon");
    command.args(["--port", &start.port.port.to_string(), "--runtime", start.runtime.runtime.as_str()]);
    // glibc keeps what one thread has freed from the others: manifests, read now by one and now by another, would take their
    // room again in each.
    command.env("MALLOC_ARENA_MAX", "1");
    // Its own group: Ctrl-C in this terminal is not meant for it.
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0).current_dir("/");
    let mut child = command.spawn().map_err(Error::file("start", &program))?;
    wait_for_daemon(admin, async move {
        loop {
            match child.try_wait() {
                Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(Some(_)) | Err(_) => {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    return Error::DaemonStart(said.trim().trim_start_matches("error: ").to_owned());
                }
            }
        }
    })
    .await
}

async fn wait_for_daemon(admin: &Admin, failed: impl Future<Output = Error>) -> Result<(), Error> {
    let start = Instant::now();
    let answers = async {
        // The socket is about to be bound, of which nothing tells.
        while !is_running(admin).await.unwrap_or(false) && start.elapsed() < DAEMON_START {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        biased;
        error = failed => Err(error),
        () = answers => match start.elapsed() < DAEMON_START {
            true => Ok(()),
            false => Err(Error::DaemonStart(format!("no answer within {} s", DAEMON_START.as_secs()))),
        },
    }
}

async fn started(admin: &Admin) -> Result<(), Error> {
    let daemon: DaemonVersion = admin.get(path::VERSION).await?;
    output::say(&format!("the daemon runs (process {}); `mcpctl status` shows its servers", daemon.pid));
    Ok(())
}

/// Shows changes until Ctrl-C, or until the daemon ends.
async fn foreground(local: &Local, args: &Up, file: Option<&Path>) -> Result<(), Error> {
    let admin = &local.admin;
    let interrupted = |source| Error::File { action: "watch for", path: "signals".into(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(interrupted)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(interrupted)?;
    if let Some(file) = file {
        follow(admin, file).await?;
    }
    let mut shown: Box<dyn Show> = match (args.output, output::is_terminal()) {
        (Changes::Text, true) => Box::new(Live::default()),
        (Changes::Text, false) => Box::new(Lines::default()),
        (Changes::Json, _) => Box::new(Json::default()),
    };
    let waited = wait::settle(local, args.wait, &Of::All);
    tokio::pin!(waited);
    let mut wait_is_over = !args.wait.wait;
    let mut snapshots = admin.lines(path::WATCH, &()).await?;
    loop {
        tokio::select! {
            line = snapshots.next() => match line {
                Some(Ok(line)) => {
                    let objects: Objects = serde_json::from_str(&line)
                        .map_err(|error| Error::Silent { request: path::WATCH.to_owned(), problem: error.to_string() })?;
                    shown.show(&objects)?;
                }
                Some(Err(_)) | None => {
                    output::say("the daemon ended; servers run on");
                    return Ok(());
                }
            },
            outcome = &mut waited, if !wait_is_over => {
                wait_is_over = true;
                outcome?;
            }
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

/// A way to show how things change.
trait Show {
    fn show(&mut self, objects: &Objects) -> Result<(), Error>;
}

/// A table that is drawn again in its place.
#[derive(Debug, Default)]
struct Live {
    lines: u16,
}

impl Show for Live {
    fn show(&mut self, objects: &Objects) -> Result<(), Error> {
        let rows: Vec<Row> = objects.servers.iter().map(row).collect();
        let mut text = table(&rows, &Scope::Usual, BEGINNING);
        text.push('\n');
        for hub in &objects.hubs {
            text.push_str(&format!("hub {}\n", hub_line(hub)));
        }
        text.push_str(&next_steps(objects));
        text.push_str("\nCtrl-C ends what this `up` started\n");
        let (width, _) = crossterm::terminal::size().unwrap_or((80, 24));
        // Cut, so that one line stays one line and the next drawing begins where this one did.
        let lines: Vec<String> = text.lines().map(|line| cut(line, usize::from(width))).collect();
        let mut out = anstream::stdout().lock();
        let mut draw = || {
            if self.lines > 0 {
                crossterm::queue!(out, MoveUp(self.lines), Clear(ClearType::FromCursorDown))?;
            }
            for line in &lines {
                writeln!(out, "{line}")?;
            }
            out.flush()
        };
        draw().map_err(Error::Output)?;
        self.lines = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        Ok(())
    }
}

/// The first `width` visible characters; colour codes take no room.
fn cut(line: &str, width: usize) -> String {
    let mut kept = String::new();
    let (mut seen, mut in_code) = (0, false);
    for c in line.chars() {
        match (in_code, c) {
            (false, '\u{1b}') => in_code = true,
            (true, 'm') => in_code = false,
            (true, _) => {}
            (false, _) => {
                seen += 1;
                if seen > width {
                    continue;
                }
            }
        }
        kept.push(c);
    }
    kept
}

/// What a person does next: add the endpoint to a client, try a call.
pub(crate) fn next_steps(objects: &Objects) -> String {
    let url = objects.hubs.iter().find_map(|hub| hub.status.as_ref()?.endpoint.clone());
    let Some(url) = url else { return String::new() };
    let mut text = format!(
        "\nadd it to Claude Code:\n  claude mcp add --transport http hub {url} --header \"Authorization: Bearer $(mcpctl endpoint -o token)\"\n"
    );
    let ready = objects.servers.iter().map(row).find(|row| row.ready);
    if let Some(server) = ready {
        text.push_str(&format!(
            "see and try its tools:\n  mcpctl tools {}\n  mcpctl call {}/TOOL --arg KEY=VALUE\n",
            server.name, server.name
        ));
    }
    text
}

/// One line a change, for pipes and logs.
#[derive(Debug, Default)]
struct Lines {
    servers: HashMap<String, (String, String)>,
    hubs: HashMap<String, String>,
    told_next: bool,
}

impl Show for Lines {
    fn show(&mut self, objects: &Objects) -> Result<(), Error> {
        for row in objects.servers.iter().map(row) {
            let state = (row.reason.clone(), row.note.clone());
            if self.servers.insert(row.name.clone(), state.clone()).as_ref() != Some(&state) {
                let tools = if row.ready {
                    format!("  {} tools, started in {}", row.tools(), row.start())
                } else {
                    String::new()
                };
                let note = if row.note.is_empty() { String::new() } else { format!("  {}", row.note) };
                output::data(&format!("{}  {}{tools}{note}\n", row.name, row.reason))?;
            }
        }
        let gone: Vec<String> = self
            .servers
            .keys()
            .filter(|name| !objects.servers.iter().any(|server| server.metadata.name.as_ref() == Some(name)))
            .cloned()
            .collect();
        for name in gone {
            self.servers.remove(&name);
            output::data(&format!("{name}  gone\n"))?;
        }
        for hub in &objects.hubs {
            let line = hub_line(hub);
            let name = hub.metadata.name.clone().unwrap_or_default();
            if self.hubs.insert(name, line.clone()).as_ref() != Some(&line) {
                output::data(&format!("hub {line}\n"))?;
            }
        }
        let next = next_steps(objects);
        if !self.told_next && objects.servers.iter().any(|server| row(server).ready) && !next.is_empty() {
            self.told_next = true;
            output::data(&format!("{next}\n"))?;
        }
        Ok(())
    }
}

/// One JSON object a change.
#[derive(Debug, Default)]
struct Json {
    servers: HashMap<String, Row>,
}

impl Show for Json {
    fn show(&mut self, objects: &Objects) -> Result<(), Error> {
        for row in objects.servers.iter().map(row) {
            if self.servers.get(&row.name) == Some(&row) {
                continue;
            }
            output::data(&format!("{}\n", row.document()))?;
            self.servers.insert(row.name.clone(), row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_at_the_terminals_width_and_keeps_its_colours() {
        assert_eq!(cut("abcdef", 3), "abc");
        assert_eq!(cut("\u{1b}[32mReady\u{1b}[0m  x", 5), "\u{1b}[32mReady\u{1b}[0m");
    }
}
