//! `mcp-bridge RUN_DIR`: runs the MCP server that `RUN_DIR/launch.json` describes.
//!
//! Exit codes: 0 stopped on request, 1 failure, 2 usage, 3 the run folder is held by another bridge.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use mcp_hub_bridge::run_dir::{RunDir, RunDirError};
use mcp_hub_bridge::server::Server;
use mcp_hub_bridge::{control, serve, shim, supervise, tree};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(first), None) = (args.next(), args.next()) else {
        return fail(2, "usage: mcp-bridge RUN_DIR");
    };
    if first == shim::MODE {
        // Returns only if the program could not be started; the message becomes the server's last stderr line.
        return fail(127, &shim::exec().to_string());
    }
    let run_dir = match RunDir::open(PathBuf::from(first)) {
        Ok(run_dir) => run_dir,
        Err(error @ RunDirError::Held { .. }) => return fail(3, &chain(&error)),
        Err(error) => return fail(1, &chain(&error)),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("could not start the runtime: {error}")),
    };
    match runtime.block_on(run(run_dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &chain(&error)),
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("could not listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("could not watch for signals")]
    Signals(#[source] std::io::Error),
}

async fn run(run_dir: RunDir) -> Result<(), Failure> {
    tree::adopt_orphans();
    let spec = run_dir.launch_spec()?;
    run_dir.write_record(&spec)?;
    let listen = |address: String| move |source| Failure::Listen { address, source };
    let address = spec.listen.to_string();
    let listener = TcpListener::bind(spec.listen).await.map_err(listen(address.clone()))?;
    let local = listener.local_addr().map_err(listen(address))?;
    let socket = run_dir.control_socket()?;
    let control = UnixListener::bind(&socket).map_err(listen(socket.display().to_string()))?;
    run_dir.protect_control_socket()?;

    let server = Server::new(spec, &run_dir, format!("http://{local}/mcp"));
    let Signals { mut terminate, mut hangup, mut child } = signals().map_err(Failure::Signals)?;
    tokio::spawn(serve::run(listener, server.clone()));
    tokio::spawn(control::run(control, server.clone()));
    tokio::spawn({
        let server = server.clone();
        async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => server.stop(),
                    // A closed terminal is the daemon's matter.
                    _ = hangup.recv() => {}
                    _ = child.recv() => server.tree.reap(),
                }
            }
        }
    });
    supervise::run(server).await;
    // Answers under way, the one to `/stop` among them, leave before the process does.
    tokio::task::yield_now().await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
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
