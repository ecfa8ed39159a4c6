//! `mcp-hub-gateway --config FILE --listen ADDRESS --sealing-key FILE`: the gateway of a cluster.
//!
//! Exit codes: 0 stopped on request, 1 failure, 2 usage.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mcp_hub_dataplane_api::gateway::GatewayConfig;
use mcp_hub_gateway::{Gateway, GatewayError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(version, about = "One MCP endpoint over many servers")]
struct Args {
    /// JSON configuration; read again whenever it changes
    #[arg(long)]
    config: PathBuf,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// File with 64 hexadecimal digits, the key that seals session ids
    #[arg(long)]
    sealing_key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("could not read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is no gateway configuration: {source}", path = .path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("{path} holds no 64 hexadecimal digits", path = .0.display())]
    Key(PathBuf),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error("could not listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("could not watch for signals: {0}")]
    Signals(std::io::Error),
}

/// A mounted Secret is replaced by moving a link, of which the file system tells nothing; a look is cheap.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            writeln!(std::io::stderr(), "error: {error}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let path = args.sealing_key.clone();
    let key = std::fs::read_to_string(&path).map_err(|source| Failure::Read { path: path.clone(), source })?;
    let key = hex::decode(key.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(Failure::Key(path))?;
    let gateway = Gateway::new(key, read(&args.config)?)?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.map_err(|source| Failure::Listen { address: args.listen, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let follow = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match read(&args.config) {
                Ok(config) => gateway.apply(config),
                // Half written, or wrong: the last good one stays in force.
                Err(error) => tracing::warn!(%error, "configuration not taken"),
            }
        }
    };
    let stop = async {
        terminate.recv().await;
    };
    tokio::select! {
        result = gateway.serve(listener, stop) => result.map_err(|source| Failure::Listen { address: args.listen, source }),
        () = follow => Ok(()),
    }
}

fn read(path: &Path) -> Result<GatewayConfig, Failure> {
    let bytes = std::fs::read(path).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Failure::Config { path: path.to_owned(), source })
}
