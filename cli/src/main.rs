//! `mcpctl`: MCP servers behind one endpoint. The same program is the local daemon.

mod admin;
mod args;
mod bridge_program;
mod commands;
mod daemon;
mod error;
mod mcp_client;
mod output;
mod places;
mod secret_backends;
mod summary;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Action;
use crate::admin::client::Admin;
use crate::args::{Cli, Command};
use crate::commands::{
    add, apply, call, down, endpoint, get, lifecycle, logs, plan, reference, secret, status, stdio, tools, up, version,
};
use crate::error::Error;
use crate::places::Places;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            error.exit().into()
        }
    }
}

fn run(command: &Command) -> Result<(), Error> {
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "mcpctl", &mut script);
            return output::data(&String::from_utf8_lossy(&script));
        }
        Command::GenerateReference => return output::data(&reference::markdown()),
        _ => {}
    }
    let places = Places::find()?;
    let serves = matches!(command, Command::Up(_) | Command::Daemon(_));
    // A daemon serves calls on every core; a command is over before a second thread would have been started.
    let mut builder = if serves {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().map_err(Error::file("start", "the asynchronous runtime"))?;
    let _logs = if serves { Some(log_to_file(&places)?) } else { None };
    runtime.block_on(dispatch(command, &places))
}

async fn dispatch(command: &Command, places: &Places) -> Result<(), Error> {
    let admin = Admin::new(&places.admin_socket());
    match command {
        Command::Up(args) => up::run(places, &admin, args).await,
        Command::Down(args) => down::run(places, &admin, args).await,
        Command::Start(args) => lifecycle::run(&admin, Action::Start, args).await,
        Command::Stop(args) => lifecycle::run(&admin, Action::Stop, args).await,
        Command::Restart(args) => lifecycle::run(&admin, Action::Restart, args).await,
        Command::Add(args) => add::add(places, &admin, args).await,
        Command::Remove(args) => add::remove(places, &admin, args).await,
        Command::Apply(args) => apply::apply(places, &admin, args).await,
        Command::Get(args) => get::run(&admin, args).await,
        Command::Delete(args) => apply::delete(places, &admin, args).await,
        Command::Status(args) => status::run(&admin, args).await,
        Command::Plan(args) => plan::run(&admin, args).await,
        Command::Logs(args) => logs::run(&admin, args).await,
        Command::Tools(args) => tools::run(&admin, args).await,
        Command::Call(args) => call::run(&admin, args).await,
        Command::Endpoint(args) => endpoint::run(&admin, args).await,
        Command::Stdio(args) => stdio::run(places, &admin, args).await,
        Command::Secret(args) => secret::run(places, &admin, args).await,
        Command::Version(args) => version::run(&admin, args).await,
        Command::Daemon(args) => serve(places, args.port.port).await,
        Command::Completions { .. } | Command::GenerateReference => Ok(()),
    }
}

/// The detached daemon: ended by a signal it leaves servers running.
async fn serve(places: &Places, port: u16) -> Result<(), Error> {
    let failed = |source| Error::File { action: "watch for", path: "signals".into(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let leave = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    daemon::run(places.clone(), port, leave).await
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
