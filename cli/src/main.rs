//! `mcpctl`: MCP servers behind one endpoint. The same program is the local daemon.

mod admin;
mod args;
mod bridge_program;
mod commands;
mod daemon;
mod error;
mod images;
mod mcp_client;
mod output;
mod places;
mod secret_backends;
mod summary;
mod target;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Action;
use crate::args::{Cli, Command, Place, Start};
use crate::commands::{
    add, apply, bundle, call, down, endpoint, gc, generate, get, import, lifecycle, lock_images, logs, plan,
    publish_images, pull_images, reference, secret, status, stdio, tools, up, version,
};
use crate::error::Error;
use crate::places::Places;
use crate::target::local::Local;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            error.exit().into()
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "mcpctl", &mut script);
            return output::data(&String::from_utf8_lossy(&script));
        }
        Command::GenerateReference => return output::data(&reference::markdown()),
        _ => {}
    }
    let serves = match &cli.command {
        // A child of this program, which inherits its environment and with it perhaps another target.
        Command::Daemon(_) => true,
        Command::Up(_) => cli.target == Place::Local,
        _ => false,
    };
    // A daemon serves calls on every core; a command is over before a second thread would have been started.
    let mut builder = if serves {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().map_err(Error::file("start", "the asynchronous runtime"))?;
    let _logs = if serves { Some(log_to_file(&Places::find()?)?) } else { None };
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: &Cli) -> Result<(), Error> {
    let here = |command| match cli.target {
        Place::Local => Places::find().map(Local::new),
        Place::Kubernetes { .. } => Err(not_there(command)),
    };
    let there = || target::open(&cli.target);
    match &cli.command {
        Command::Up(args) => up::run(&here("up")?, args).await,
        Command::Down(args) => down::run(&here("down")?, args).await,
        Command::Start(args) => lifecycle::run(&*there().await?, Action::Start, args).await,
        Command::Stop(args) => lifecycle::run(&*there().await?, Action::Stop, args).await,
        Command::Restart(args) => lifecycle::run(&*there().await?, Action::Restart, args).await,
        Command::Add(args) => add::add(&here("add")?, args).await,
        Command::Remove(args) => add::remove(&here("remove")?, args).await,
        Command::Apply(args) => apply::apply(&*there().await?, args).await,
        Command::Generate(args) => generate::run(args).await,
        Command::Import(args) => import::run(args),
        Command::Get(args) => get::run(&*there().await?, args).await,
        Command::Delete(args) => apply::delete(&*there().await?, args).await,
        Command::Status(args) => status::run(&*there().await?, args).await,
        Command::Plan(args) => plan::run(&*there().await?, args).await,
        Command::Logs(args) => logs::run(&*there().await?, args).await,
        Command::Tools(args) => tools::run(&*there().await?, args).await,
        Command::Call(args) => call::run(&*there().await?, args).await,
        Command::Endpoint(args) => endpoint::run(&*there().await?, args).await,
        Command::Stdio(args) => stdio::run(&*there().await?, args).await,
        Command::Secret(args) => secret::run(&here("secret")?, args).await,
        Command::LockImages(args) => lock_images::run(&here("lock-images")?, args).await,
        Command::PublishImages(args) => publish_images::run(&here("publish-images")?, args).await,
        Command::PullImages(args) => pull_images::run(&here("pull-images")?, args).await,
        Command::Bundle(args) => bundle::run(&here("bundle")?.places, args).await,
        Command::Gc(args) => gc::run(&here("gc")?, args).await,
        Command::Version(args) => version::run(&*there().await?, args).await,
        Command::Daemon(args) => serve(&Places::find()?, *args).await,
        Command::Completions { .. } | Command::GenerateReference => Ok(()),
    }
}

/// What only a machine has.
fn not_there(command: &str) -> Error {
    let instead = match command {
        "up" => "there the operator runs servers; `mcpctl apply -f PATH` brings them",
        "down" | "remove" => "there `mcpctl delete servers NAME` ends a server",
        "add" => "there `mcpctl apply -f PATH` brings a server",
        "secret" => "there secrets are Secrets: `kubectl create secret generic NAME --from-file=KEY=/dev/stdin`",
        "pull-images" | "gc" => "nodes of a cluster fetch and remove their images themselves",
        "lock-images" | "publish-images" => "it acts on files and registries only: leave --target out",
        "bundle" => "it acts on files, registries and this machine's engine only: leave --target out",
        _ => "leave --target out",
    };
    Error::Elsewhere {
        what: format!("`{command}` acts on this machine only, and the target is a cluster"),
        hint: Some(format!("{instead}; --target local stays here")),
    }
}

/// The detached daemon: ended by a signal it leaves servers running.
async fn serve(places: &Places, start: Start) -> Result<(), Error> {
    let failed = |source| Error::File { action: "watch for", path: "signals".into(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let leave = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    daemon::run(places.clone(), start, leave).await
}

/// Lines that wait for the disk; more are dropped. The queue's memory is taken at once, 32 bytes a line.
const LOG_LINES: usize = 4096;

/// The daemon's log: JSON lines in the state folder, a file a day, seven kept. Ends with the returned guard.
fn log_to_file(places: &Places) -> Result<tracing_appender::non_blocking::WorkerGuard, Error> {
    places.create()?;
    let folder = places.state().join("logs");
    std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let appender = tracing_appender::rolling::Builder::new()
        .rotation(tracing_appender::rolling::Rotation::DAILY)
        .filename_prefix("daemon")
        .filename_suffix("log")
        .max_log_files(7)
        .build(&folder)
        .map_err(|error| Error::DaemonStart(format!("no log in {}: {error}", folder.display())))?;
    let (writer, guard) =
        tracing_appender::non_blocking::NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES).finish(appender);
    let filter = tracing_subscriber::EnvFilter::try_from_env("MCPHUB_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(writer).init();
    Ok(guard)
}
