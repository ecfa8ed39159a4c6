//! `mcp-hub-gateway --config FILE --listen ADDRESS --sealing-key FILE`: the gateway of a cluster, and of what
//! `mcpctl generate` writes.
//!
//! Exit codes: 0 stopped on request, 1 failure, 2 usage.

mod given;
mod mounted;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mcp_hub_gateway::{Certificate, CertificateError, Drain, Gateway, GatewayError, Replicas};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::given::Given;
use crate::mounted::{Mounted, MountedError};

#[derive(Debug, Parser)]
#[command(version, about = "One MCP endpoint over many servers")]
struct Args {
    /// Configuration, JSON or gzip of JSON; read again whenever it changes
    #[arg(long)]
    config: PathBuf,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Folder of secrets, a file each: headers of servers may then name one as ${NAME}, which is looked for in the
    /// environment if there is no such file, and `$` is written `$$`
    #[arg(long)]
    secrets: Option<PathBuf>,
    /// File with 64 hexadecimal digits, the key that seals session ids; without it they are taken from the environment,
    /// MCP_HUB_SEALING_KEY
    #[arg(long)]
    sealing_key: Option<PathBuf>,
    /// Folder with tls.crt and tls.key, both PEM: clients are served by TLS, but for those that come by loopback, who may do
    /// without; read again whenever it changes
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Address for the operator: pushed configurations, status, probes, metrics
    #[arg(long)]
    control: Option<SocketAddr>,
    /// IP address at which other replicas reach the control listener; without, there are none
    #[arg(long, requires = "control")]
    advertise: Option<IpAddr>,
    /// HOST:PORT that stands for the control listeners of all replicas that are ready, such as a headless service's
    #[arg(long, requires = "advertise")]
    peers: Vec<String>,
    /// Seconds for which connections are still taken after SIGTERM, while clients are sent elsewhere
    #[arg(long, default_value_t = 5)]
    drain_delay: u64,
    /// Seconds that calls under way may then take
    #[arg(long, default_value_t = 30)]
    drain_limit: u64,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("could not read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] MountedError),
    #[error("{0} holds no 64 hexadecimal digits")]
    Key(String),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("could not listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("could not serve: {0}")]
    Serve(std::io::Error),
    #[error("could not watch for signals: {0}")]
    Signals(std::io::Error),
}

/// Environment variable with the sealing key.
const SEALING_KEY: &str = "MCP_HUB_SEALING_KEY";

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
    let key = sealing_key(args.sealing_key)?;
    let (mut mounted, config) = Mounted::open(&args.config, args.secrets.map(Given::new))?;
    let gateway = match (args.advertise, args.control) {
        (Some(address), Some(control)) => {
            let advertise = SocketAddr::new(address, control.port());
            Gateway::replica(key, config, Replicas { advertise, peers: args.peers })?
        }
        _ => Gateway::new(key, config)?,
    };
    let certificate = args.tls.map(Certificate::open).transpose()?;
    let listener = listen(args.listen).await?;
    let control = match args.control {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let stop = async {
        terminate.recv().await;
    };
    let drain = Drain { delay: Duration::from_secs(args.drain_delay), limit: Duration::from_secs(args.drain_limit) };
    tokio::select! {
        served = gateway.operate(listener, certificate.clone(), control, stop, drain) => served.map_err(Failure::Serve),
        () = follow(&gateway, &mut mounted) => Ok(()),
        () = renew(certificate.as_ref()) => Ok(()),
    }
}

fn sealing_key(path: Option<PathBuf>) -> Result<[u8; 32], Failure> {
    let (text, place) = match path {
        Some(path) => match std::fs::read_to_string(&path) {
            Ok(text) => (text, path.display().to_string()),
            Err(source) => return Err(Failure::Read { path, source }),
        },
        None => (std::env::var(SEALING_KEY).unwrap_or_default(), SEALING_KEY.to_owned()),
    };
    hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(Failure::Key(place))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|source| Failure::Listen { address, source })
}

/// Shows clients the certificate that the folder holds whenever it changes.
async fn renew(certificate: Option<&Certificate>) {
    let Some(certificate) = certificate else { return std::future::pending().await };
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let problem = match certificate.renew() {
            Ok(false) => String::new(),
            Ok(true) => {
                tracing::info!("another certificate is shown");
                String::new()
            }
            // Half replaced, or wrong: the last good one stays.
            Err(error) => error.to_string(),
        };
        if !problem.is_empty() && problem != told {
            tracing::warn!(problem, "certificate not taken");
        }
        told = problem;
    }
}

/// Takes what the file says whenever it changes.
async fn follow(gateway: &Gateway, mounted: &mut Mounted) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let problem = match mounted.changed() {
            Ok(None) => continue,
            Ok(Some(config)) => gateway.offer(config).err().map(|superseded| superseded.to_string()),
            // Half written, or wrong: the last good one stays in force.
            Err(error) => Some(error.to_string()),
        };
        let problem = problem.unwrap_or_default();
        if !problem.is_empty() && problem != told {
            tracing::warn!(problem, "configuration not taken");
        }
        told = problem;
    }
}
