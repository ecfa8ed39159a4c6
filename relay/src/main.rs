//! `mcp-hub-relay --listen ADDRESS --key FILE`: the allow-list proxy of a cluster.
//!
//! Exit codes: 0 stopped on request, 1 failure, 2 usage.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mcp_hub_dataplane_api::egress::Network;
use mcp_hub_dataplane_api::permit::PermitKey;
use mcp_hub_relay::dial::System;
use mcp_hub_relay::{Bounds, Drain, Relay};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(version, about = "Lets MCP servers reach the hosts that their egress lists name")]
struct Args {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:3128")]
    listen: SocketAddr,
    /// File with 64 hexadecimal digits, the key that permits are signed with; read again whenever it changes
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A network of public addresses that are used inside, such as 203.0.113.0/24 or [2001:db8::]/32: a name leads there only
    /// if the egress list has the address as well; may be given several times
    #[arg(long, value_name = "NETWORK")]
    local: Vec<Network>,
    /// Connections in all
    #[arg(long, value_name = "COUNT", default_value_t = Bounds::default().connections)]
    connections: usize,
    /// Connections of one server
    #[arg(long, value_name = "COUNT", default_value_t = Bounds::default().of_a_server)]
    connections_of_a_server: usize,
    /// Seconds for which connections are still taken after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain_delay: u64,
    /// Seconds that connections under way may then take
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_limit: u64,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("could not read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no 64 hexadecimal digits", path = .0.display())]
    Key(PathBuf),
    #[error("could not listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("could not watch for signals: {0}")]
    Signals(std::io::Error),
}

/// A mounted Secret is replaced by moving a link, of which the file system tells nothing; a look is cheap.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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

/// As many descriptors as this process may have: two for each connection are more than the thousand that is usual.
fn widen() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(error = %error, "the limit of open files stays as it is");
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    widen();
    let key = read(&args.key)?;
    let bounds =
        Bounds { connections: args.connections, of_a_server: args.connections_of_a_server, ..Bounds::default() };
    let relay = Relay::new(key.clone(), System, bounds, args.local);
    let listening = TcpListener::bind(args.listen).await;
    let listener = listening.map_err(|source| Failure::Listen { address: args.listen, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let stop = async {
        terminate.recv().await;
    };
    let drain = Drain { delay: Duration::from_secs(args.drain_delay), limit: Duration::from_secs(args.drain_limit) };
    tokio::select! {
        () = relay.clone().serve(listener, stop, drain) => Ok(()),
        never = follow(&relay, &args.key, key) => match never {},
    }
}

fn read(path: &Path) -> Result<PermitKey, Failure> {
    let text = std::fs::read_to_string(path).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    PermitKey::from_hex(&text).ok_or_else(|| Failure::Key(path.to_owned()))
}

/// Takes the key that the file holds whenever it is another one.
async fn follow(relay: &Relay, path: &Path, mut known: PermitKey) -> std::convert::Infallible {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let problem = match read(path) {
            Ok(key) if key == known => String::new(),
            Ok(key) => {
                tracing::info!("the key changed: permits of the old one are worthless now");
                relay.rekey(key.clone());
                known = key;
                String::new()
            }
            // Half written, or gone for a moment: the last good one stays.
            Err(error) => error.to_string(),
        };
        if !problem.is_empty() && problem != told {
            tracing::warn!(problem, "key not taken");
        }
        told = problem;
    }
}
