//! - `mcp-bridge RUN_DIR`: runs the MCP server that `RUN_DIR/launch.json` describes.
//! - `mcp-bridge install DIR [FOLDER]...`: copies itself to `DIR/mcp-bridge`, as a pod's init container, and opens each
//!   FOLDER for every user, which a container engine makes for root alone.
//! - `mcp-bridge pod RUN_DIR`: runs the MCP server that the environment describes, as the first process of a pod's
//!   container. `RUN_DIR` is made if it is not there.
//!
//! Exit codes: 0 stopped on request, 1 failure, 2 usage, 3 the run folder is held by another bridge.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mcp_hub_bridge::logs::Log;
use mcp_hub_bridge::pod::{self, PodError};
use mcp_hub_bridge::run_dir::{RunDir, RunDirError};
use mcp_hub_bridge::server::Server;
use mcp_hub_bridge::{control, drain, serve, shim, supervise, tree};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Once all has ended, answers are waited for no longer than this to leave: by a client that takes nothing.
const LEAVING: Duration = Duration::from_secs(1);

/// Where a bridge runs.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Beside a daemon, which talks to it over its run folder.
    Folder,
    Pod,
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let args: Vec<_> = args.iter().map(|arg| (arg.to_str().unwrap_or_default(), arg)).collect();
    let (place, path) = match args[..] {
        // Returns only if the program could not be started; the message becomes the server's last stderr line.
        [(shim::MODE, _)] => return fail(127, &shim::exec().to_string()),
        [("install", _), (_, folder), ref folders @ ..] => {
            let folders: Vec<&Path> = folders.iter().map(|(_, folder)| Path::new(folder)).collect();
            return match pod::install(Path::new(folder)).and_then(|()| pod::open_folders(&folders)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(1, &chain(&error)),
            };
        }
        [("pod", _), (_, path)] => (Place::Pod, PathBuf::from(path)),
        [(name, path)] if !matches!(name, "install" | "pod") => (Place::Folder, PathBuf::from(path)),
        _ => return fail(2, "usage: mcp-bridge RUN_DIR | mcp-bridge pod RUN_DIR | mcp-bridge install DIR [FOLDER]..."),
    };
    let opened = match place {
        Place::Folder => RunDir::open(path),
        Place::Pod => RunDir::make(path),
    };
    let run_dir = match opened {
        Ok(run_dir) => run_dir,
        Err(error @ RunDirError::Held { .. }) => return fail(3, &chain(&error)),
        Err(error) => return fail(1, &chain(&error)),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("could not start the runtime: {error}")),
    };
    let ended = runtime.block_on(run(run_dir, place));
    // A stderr that nobody takes must not hold us.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &chain(&error)),
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error("could not listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("could not watch for signals")]
    Signals(#[source] std::io::Error),
}

async fn run(run_dir: RunDir, place: Place) -> Result<(), Failure> {
    tree::adopt_orphans();
    let (spec, log) = match place {
        Place::Folder => {
            let spec = run_dir.launch_spec()?;
            let log = Log::new(run_dir.path(), spec.log);
            (spec, log)
        }
        Place::Pod => (pod::launch_spec()?, Log::to_stderr()),
    };
    run_dir.write_record(&spec)?;
    let secrets = match place {
        Place::Folder => None,
        Place::Pod => pod::secrets(&spec)?,
    };
    let listen = |address: String| move |source| Failure::Listen { address, source };
    let address = spec.listen.to_string();
    let listener = TcpListener::bind(spec.listen).await.map_err(listen(address.clone()))?;
    let local = listener.local_addr().map_err(listen(address))?;
    let server = Server::new(spec, &run_dir, log, format!("http://{local}/mcp"));
    if let Some(secrets) = secrets {
        server.push_secrets(secrets);
    }
    // A clone of it lives as long as somebody is owed an answer.
    let (owing, mut owed) = mpsc::channel(1);
    // In a pod nobody but the server itself could reach it.
    if let Place::Folder = place {
        let socket = run_dir.control_socket()?;
        let control = UnixListener::bind(&socket).map_err(listen(socket.display().to_string()))?;
        run_dir.protect_control_socket()?;
        tokio::spawn(control::run(control, server.clone(), owing.clone()));
    }
    let Signals { mut terminate, mut hangup, mut child } = signals().map_err(Failure::Signals)?;
    let mut serving = Some(tokio::spawn(serve::run(listener, server.clone(), owing)));
    tokio::spawn({
        let server = server.clone();
        async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => match serving.take() {
                        Some(serving) if !server.spec.drain.is_none() => {
                            tokio::spawn(drain::run(server.clone(), serving));
                        }
                        // Asked twice, or not given time.
                        _ => server.stop(),
                    },
                    // A closed terminal is the daemon's matter.
                    _ = hangup.recv() => {}
                    _ = child.recv() => server.tree.reap(),
                }
            }
        }
    });
    supervise::run(server.clone()).await;
    // Answers under way, the one to `/stop` among them, leave before the process does.
    server.close();
    tokio::time::timeout(LEAVING, owed.recv()).await.ok();
    server.log.written().await;
    run_dir.remove_socket();
    Ok(())
}

struct Signals {
    terminate: Signal,
    hangup: Signal,
    child: Signal,
}

fn signals() -> std::io::Result<Signals> {
    Ok(Signals {
        terminate: signal(SignalKind::terminate())?,
        hangup: signal(SignalKind::hangup())?,
        child: signal(SignalKind::child())?,
    })
}

fn fail(code: u8, message: &str) -> ExitCode {
    // A closed stderr leaves nobody to tell.
    writeln!(std::io::stderr(), "mcp-bridge: {message}").unwrap_or_default();
    ExitCode::from(code)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
