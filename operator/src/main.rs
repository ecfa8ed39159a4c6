//! `mcp-hub-operator`: runs `MCPServer` and `MCPHub` resources on the cluster that it is pointed at.
//!
//! Exit codes: 0 stopped on request, 1 failure, 2 usage, 3 the lead was lost to another operator.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http::{HeaderValue, header};
use kube::client::ClientBuilder;
use kube::{Client, Config};
use mcp_hub_operator::election::Election;
use mcp_hub_operator::health::{self, Health};
use mcp_hub_operator::identity::{self, IdentityError};
use mcp_hub_operator::probe::{self, ProbeError};
use mcp_hub_operator::registry::KubeImages;
use mcp_hub_operator::relay::{self, Relay, RelayError};
use mcp_hub_operator::runtime::{Askers, KubeRuntime};
use mcp_hub_operator::sink::KubeSink;
use mcp_hub_operator::store::KubeStore;
use mcp_hub_operator::wake::{self, Wakes};
use mcp_hub_operator::{ClusterSettings, PackageSettings, PodHttp, Scope, client};
use mcp_hub_reconcile::controller;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::passes::Passes;
use mcp_hub_reconcile::ports::Ports;
use mcp_hub_supply::{Platform, Registries, RegistryError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

#[derive(Debug, Parser)]
#[command(version, about = "Runs MCP servers and hubs on Kubernetes")]
struct Args {
    /// Namespace of the operator itself
    #[arg(long, env = "POD_NAMESPACE", default_value = "mcp-hub-system")]
    namespace: String,
    /// Name of this operator among its replicas; a pod's own name
    #[arg(long, env = "POD_NAME", default_value = "mcp-hub-operator")]
    identity: String,
    /// Namespaces to look after, separated by commas; all if not given
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Image that brings the bridge into servers' pods
    #[arg(long, env = "BRIDGE_IMAGE")]
    bridge_image: String,
    /// Image in which packages of npm and PyPI are installed and run
    #[arg(long, env = "RUNNER_IMAGE")]
    runner_image: String,
    #[command(flatten)]
    packages: Packages,
    /// Image of gateways
    #[arg(long, env = "GATEWAY_IMAGE")]
    gateway_image: String,
    /// Architecture of the nodes, as images name it; the operator's own if not given
    #[arg(long, env = "NODE_ARCHITECTURE")]
    architecture: Option<String>,
    /// Registries spoken to without TLS, separated by commas
    #[arg(long, env = "PLAIN_HTTP_REGISTRIES", value_delimiter = ',')]
    plain_http_registries: Vec<String>,
    /// The cluster's network plugin enforces network policies
    #[arg(long, env = "NETWORK_POLICIES_ENFORCED")]
    network_policies_enforced: bool,
    /// Service of the relay in the operator's namespace; without it host names in egress lists are refused
    #[arg(long, env = "RELAY_SERVICE", value_name = "NAME")]
    relay_service: Option<String>,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, default_value = "0.0.0.0:8081")]
    health: SocketAddr,
    /// Address under which gateways reach --wake, such as http://mcp-hub-operator.mcp-hub-system.svc:8082; if it is not
    /// given, servers that nobody calls keep their pods
    #[arg(long, env = "WAKE_URL")]
    wake_url: Option<String>,
    /// Address at which gateways ask for servers whose pods are gone for want of calls
    #[arg(long, default_value = "0.0.0.0:8082")]
    wake: SocketAddr,
}

/// How servers' pods install packages. It stands in each such pod for all who may read pods.
#[derive(Debug, clap::Args)]
struct Packages {
    /// Registry of npm packages, instead of the public one
    #[arg(long, env = "NPM_REGISTRY", value_name = "URL", value_parser = PackageSettings::url)]
    npm_registry: Option<String>,
    /// Index of PyPI packages (PEP 503), instead of the public one
    #[arg(long, env = "PYPI_INDEX", value_name = "URL", value_parser = PackageSettings::url)]
    pypi_index: Option<String>,
    /// Proxy through which pods reach these
    #[arg(long, env = "PACKAGE_PROXY", value_name = "URL", value_parser = PackageSettings::url)]
    package_proxy: Option<String>,
    /// Hosts that pods reach without the proxy, separated by commas
    #[arg(long, env = "PACKAGE_NO_PROXY", value_name = "HOSTS")]
    package_no_proxy: Option<String>,
    /// Certificates, in PEM, of authorities that installers trust besides the public ones
    #[arg(long, env = "PACKAGE_CA", value_name = "PEM", value_parser = PackageSettings::pem)]
    package_ca: Option<String>,
}

/// `mcp-hub-operator probe URL` instead of all that.
#[derive(Debug, Parser)]
#[command(bin_name = "mcp-hub-operator probe", about = "Waits until an operator says that it is ready")]
struct Probe {
    /// Of its /readyz, such as http://mcp-hub-operator:8081/readyz
    url: http::Uri,
}

const USER_AGENT: &str = concat!("mcp-hub-operator/", env!("CARGO_PKG_VERSION"));
/// Between two tries to read what an operator needs before it can begin.
const TRY_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("there is no cluster to talk to: neither a pod's service account nor a kubeconfig is usable")]
    Config(#[source] kube::config::InferConfigError),
    #[error("could not make a client of the API server")]
    Client(#[source] kube::Error),
    #[error(transparent)]
    Registries(#[from] RegistryError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("the relay's Service has another address: the operator starts anew, and gives it to servers")]
    RelayMoved,
    #[error("could not listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("could not watch for signals")]
    Signals(#[source] std::io::Error),
    #[error("the lease was lost: another operator leads, or will")]
    Lost,
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let words = || std::env::args_os().skip(1);
    let ended = match words().next() {
        Some(word) if word == "probe" => probe::ready(Probe::parse_from(words()).url).await.map_err(Failure::from),
        _ => run(Args::parse()).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if matches!(error, Failure::Lost) { 3 } else { 1 };
            let mut text = format!("error: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            // A closed stderr leaves nobody to tell.
            writeln!(std::io::stderr(), "{text}").unwrap_or_default();
            ExitCode::from(code)
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Signals)?;
    let listener = TcpListener::bind(args.health).await;
    let listener = listener.map_err(|source| Failure::Listen { address: args.health, source })?;
    let (health, passes) = (Arc::new(Health::default()), Arc::new(Passes::default()));
    tokio::spawn(health::serve(listener, health.clone(), passes.clone()));

    // Before it stands for election: who leads must be able to work.
    let registries = Registries::new()?.plain_http(args.plain_http_registries);
    let client = client().await?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);
    let prepare = async {
        let installation = installation(&client, &args.namespace).await?;
        let relay = match args.relay_service.as_deref().filter(|service| !service.is_empty()) {
            Some(service) => Some(relay(&client, &args.namespace, service, &installation).await?),
            None => None,
        };
        Ok::<_, Failure>((installation, relay))
    };
    let (installation, relay) = tokio::select! {
        prepared = prepare => prepared?,
        () = &mut stop => return Ok(()),
    };
    let election = Election::stand(&client, &args.namespace, &args.identity);
    let mut leads = election.leads();
    health.starts();
    tokio::select! {
        leading = leads.wait_for(|leads| *leads) => if leading.is_err() {
            return Err(Failure::Lost);
        },
        () = &mut stop => {
            election.resign().await;
            return Ok(());
        }
    }
    tracing::info!(identity = args.identity, "leading");
    health.leads();

    let moved = {
        let (client, installation, known) = (client.clone(), installation.clone(), relay.clone());
        let (namespace, service) = (args.namespace.clone(), args.relay_service.clone());
        async move {
            match (service, known) {
                (Some(service), Some(known)) => {
                    relay::until_moved(&client, &namespace, &service, &installation, &known).await;
                }
                _ => std::future::pending().await,
            }
        }
    };
    let scope = Scope::new(args.watch_namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect());
    let settings = ClusterSettings {
        namespace: args.namespace,
        bridge_image: args.bridge_image,
        runner_image: args.runner_image,
        packages: PackageSettings {
            npm_registry: args.packages.npm_registry,
            pypi_index: args.packages.pypi_index,
            proxy: args.packages.package_proxy,
            no_proxy: args.packages.package_no_proxy,
            authorities: args.packages.package_ca,
        },
        gateway_image: args.gateway_image,
        network_policies_enforced: args.network_policies_enforced,
        relay,
    };
    let platform = args.architecture.as_deref().map_or_else(Platform::own, Platform::linux);
    let http = Arc::new(PodHttp::default());
    let askers =
        Askers { bridges: http.clone(), images: Arc::new(KubeImages::new(client.clone(), registries, platform)) };
    let runtime = KubeRuntime::start(&client, &scope, settings, &installation, askers);
    let sink = KubeSink::start(runtime.clone(), installation.clone(), http, args.wake_url.clone());
    let store = KubeStore::start(&client, &scope, &args.identity);
    // Who does not lead does not listen.
    let mut waking = JoinSet::new();
    if args.wake_url.is_some() {
        let listener = TcpListener::bind(args.wake).await;
        let listener = listener.map_err(|source| Failure::Listen { address: args.wake, source })?;
        let wakes = Wakes { store: store.clone(), sink: sink.clone(), installation: installation.clone() };
        waking.spawn(wake::serve(listener, wakes));
    }
    let ports = Ports { store, runtime, sink, installation };

    tokio::select! {
        () = controller::run(ports, passes, stop) => {
            election.resign().await;
            Ok(())
        }
        // Which address servers have is settled at the start.
        () = moved => {
            election.resign().await;
            Err(Failure::RelayMoved)
        }
        // Another one may be at work: what is under way here is left as it is, and the other goes on from there.
        _ = leads.wait_for(|leads| !*leads) => Err(Failure::Lost),
    }
}

/// Waits for an API server that is away: an operator that ended instead would be started ever more rarely, and come back
/// long after the API server.
async fn installation(client: &Client, namespace: &str) -> Result<Installation, IdentityError> {
    loop {
        match identity::installation(client, namespace).await {
            Err(error) if error.is_passing() => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, source, "trying again");
                tokio::time::sleep(TRY_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// Waits for the relay's address too: without it, servers that have a way out would lose it.
async fn relay(
    client: &Client,
    namespace: &str,
    service: &str,
    installation: &Installation,
) -> Result<Relay, RelayError> {
    loop {
        match relay::ready(client, namespace, service, installation).await {
            Err(error) if error.is_passing() => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, source, "trying again");
                tokio::time::sleep(TRY_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

async fn client() -> Result<Client, Failure> {
    let mut config = Config::infer().await.map_err(Failure::Config)?;
    // Fifteen retries with waits of minutes would hide an outage from the passes, which retry by themselves.
    config.default_retry = false;
    config.read_timeout = Some(client::SILENCE);
    // What a connection waited for its next request does not count.
    config.reset_reader_on_write = true;
    // By which audit logs and the API server's metrics tell who asked.
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(USER_AGENT)));
    Ok(client::patient(ClientBuilder::try_from(config).map_err(Failure::Client)?))
}
