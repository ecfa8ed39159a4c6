//! The three ports: where specs and statuses live, where servers run, where a hub's configuration goes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube_runtime::reflector::{ObjectRef, Store};
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus};
use mcp_hub_dataplane_api::gateway::{GatewayConfig, UpstreamStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::error::{Retry, RuntimeError, SinkError, StoreError};
use crate::installation::Installation;
use crate::lower::{Lowered, Object, ObjectId, Unsupported};
use crate::observed::{Failure, Observed};
use crate::owner::OwnerKey;
use crate::workload::{ServerWorkload, Workload};

/// What a pass runs on. Operator and local daemon differ in these values and in nothing else.
#[derive(Debug, Clone)]
pub struct Ports {
    pub store: Arc<dyn ResourceStore>,
    pub runtime: Arc<dyn Runtime>,
    pub sink: Arc<dyn GatewaySink>,
    pub installation: Installation,
}

/// Where `MCPServer` and `MCPHub` objects live.
///
/// # Guarantees
/// - `servers` and `hubs` hold what `changes` has told of, and a status written here shows there at once.
/// - A status write touches nothing but the status, and is refused (`Conflict`) if the object's uid is another's by now.
#[async_trait]
pub trait ResourceStore: fmt::Debug + Send + Sync {
    fn servers(&self) -> Store<MCPServer>;
    fn hubs(&self) -> Store<MCPHub>;

    /// Keys whose object was added, changed or deleted, or whose secret changed; begins with all that exist.
    fn changes(&self) -> BoxStream<'static, Change>;

    async fn write_server_status(&self, server: &MCPServer, status: &MCPServerStatus) -> Result<(), StoreError>;
    async fn write_hub_status(&self, hub: &MCPHub, status: &MCPHubStatus) -> Result<(), StoreError>;

    /// The value of a secret's key; `None` if there is no such secret or key.
    async fn secret(&self, namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, StoreError>;

    /// Lets an object go whose deletion was asked for and whose children are gone. A store whose runtime collects
    /// garbage has nothing to do.
    async fn release(&self, owner: &OwnerKey) -> Result<(), StoreError>;

    /// Records a transition for people. Never fails a pass; bounded.
    async fn publish(&self, event: Event);
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Server(ObjectRef<MCPServer>),
    Hub(ObjectRef<MCPHub>),
    /// The secret of this namespace and name.
    Secret {
        namespace: String,
        name: String,
    },
}

/// A real transition of an object, as `kubectl describe` or `mcpctl status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub owner: OwnerKey,
    pub kind: EventKind,
    /// CamelCase, constant.
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Normal,
    Warning,
}

/// A place where workloads run: processes of this machine, Docker, a cluster.
///
/// Two callers may drive one runtime for a moment: a lost lease is noticed late.
///
/// # Guarantees
/// - `execute` is idempotent: the same step twice leaves what one leaves.
/// - What `execute` applied, `observe` shows at once, with the digest and body it was given.
/// - Objects without our owner mark are never touched; those of one owner never by a step of another.
/// - After `Remove` nothing of the object is left, its processes included.
/// - `owners` names each owner of which anything is left.
///
/// # Errors
/// [`Unsupported`] from `lower` if a field cannot be honoured; none is dropped silently.
///
/// # Cancel safety
/// Dropping `execute` may leave a step half done; `observe` shows it and the next plan finishes it.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync {
    fn info(&self) -> &RuntimeInfo;

    /// What would run this server, where one runtime stands for several.
    fn info_for(&self, _server: &ServerWorkload) -> &RuntimeInfo {
        self.info()
    }

    /// Pure: neither clock nor disk nor network.
    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported>;

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError>;

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError>;

    /// Whether all that runs of it sleeps at this moment: where `observe` tells of that what was heard before, this asks
    /// anew. What cannot be found out does not sleep.
    async fn sleeps_now(&self, owner: &OwnerKey) -> bool {
        self.observe(owner).await.is_ok_and(|observed| observed.sleeps)
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError>;

    /// Hints that an owner's state may have changed; `Resync` after a gap.
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;

    fn console(&self) -> &dyn Console;
}

/// What a runtime is and what it enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// `process`, `docker`, `kubernetes`, …
    pub name: String,
    pub version: String,
    pub enforces: Enforces,
    /// Whether deleting the owner object removes its children.
    pub collects_garbage: bool,
    /// The bridge of servers whose spec changes from now on, where status is to remember it.
    pub bridge: Option<String>,
}

/// Limits and permissions that hold on this runtime, on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "a table of independent facts")]
pub struct Enforces {
    pub memory_limit: bool,
    pub cpu_limit: bool,
    pub filesystem: bool,
    pub egress: bool,
    pub user: bool,
}

/// One piece of work. The planner orders steps; each is idempotent.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Starts or joins the background task that resolves the source.
    Prepare(Object),
    /// Creates the object, or changes it in place.
    Apply(Object),
    /// Removes the object, then creates it anew.
    Replace(Object),
    Remove(ObjectId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// Goes on in the background; an event will tell.
    Pending,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    Changed(OwnerKey),
    /// Anything may have changed.
    Resync,
}

/// The events of a runtime from now on; whoever lags behind is told to look at everything.
pub fn hints(events: &broadcast::Sender<RuntimeEvent>) -> BoxStream<'static, RuntimeEvent> {
    told(events, || vec![RuntimeEvent::Resync])
}

/// The changes of a store: begins with all that exist, and so does whoever lagged behind.
pub fn changes(
    events: &broadcast::Sender<Change>,
    servers: Store<MCPServer>,
    hubs: Store<MCPHub>,
) -> BoxStream<'static, Change> {
    let everything = move || -> Vec<Change> {
        let servers = servers.state().into_iter().map(|server| Change::Server(ObjectRef::from_obj(&*server)));
        servers.chain(hubs.state().into_iter().map(|hub| Change::Hub(ObjectRef::from_obj(&*hub)))).collect()
    };
    // Listening comes first: what changes between the two is told twice, not never.
    let later = told(events, everything.clone());
    stream::iter(everything()).chain(later).boxed()
}

/// The events of gateways from now on. Whoever lags behind misses hints; the hourly look at each object makes up.
pub fn news(events: &broadcast::Sender<SinkEvent>) -> BoxStream<'static, SinkEvent> {
    told(events, || {
        tracing::warn!("events of gateways were missed");
        Vec::new()
    })
}

/// What is sent from now on; `instead` stands for what a slow listener missed.
fn told<T: Clone + Send + 'static>(
    events: &broadcast::Sender<T>,
    instead: impl Fn() -> Vec<T> + Send + 'static,
) -> BoxStream<'static, T> {
    let listening = events.subscribe();
    stream::unfold((listening, instead), |(mut listening, instead)| async move {
        let told = match listening.recv().await {
            Ok(event) => vec![event],
            Err(RecvError::Lagged(_)) => instead(),
            Err(RecvError::Closed) => return None,
        };
        Some((stream::iter(told), (listening, instead)))
    })
    .flatten()
    .boxed()
}

/// Logs and commands of running servers.
#[async_trait]
pub trait Console: fmt::Debug + Send + Sync {
    /// The server's log lines, oldest first: the last `tail`, then, if `follow`, new ones as they come. Ends when the
    /// server's objects are gone.
    async fn logs(&self, owner: &OwnerKey, query: LogQuery) -> Result<BoxStream<'static, LogLine>, RuntimeError>;

    /// Runs a command where the server runs.
    async fn exec(&self, owner: &OwnerKey, argv: &[String]) -> Result<ExecOutput, RuntimeError>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// At most this many past lines.
    pub tail: usize,
    pub follow: bool,
}

/// One line without its line end; at most 64 KiB, longer ones are cut.
pub type LogLine = String;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Where a hub's configuration goes: a gateway in this process, or a Secret and the pods that mount it.
///
/// # Guarantees
/// - `apply` of a configuration whose version is already in force writes nothing.
#[async_trait]
pub trait GatewaySink: fmt::Debug + Send + Sync {
    /// Serves the configuration, and lets clients in as the spec says. What stands in the way of the latter alone is told by
    /// the [`Door`], not by an error.
    async fn apply(&self, hub: &OwnerKey, hub_spec: &MCPHub, config: &GatewayConfig) -> Result<Door, SinkError>;

    /// Where the hub's endpoint is reached, and where its gateways reach us.
    fn addresses(&self, hub: &OwnerKey) -> Addresses;

    /// Ends the hub's endpoint.
    async fn remove(&self, hub: &OwnerKey) -> Result<(), SinkError>;

    /// What serves the hub now; `None` if nothing was ever applied.
    async fn observe(&self, hub: &OwnerKey) -> Result<Option<HubState>, SinkError>;

    /// Least time between two passes over one hub. Every server that becomes ready changes the configuration of its hubs:
    /// where each configuration is a write, what changes within this time is written once. The first change after it does not wait.
    fn pace(&self) -> Duration {
        Duration::ZERO
    }

    /// What gateways found of the server with this uid, the best answer over all hubs. Waits for gateways that were not heard
    /// yet, a few seconds at most.
    async fn upstream(&self, server_uid: &str) -> Option<UpstreamStatus>;

    /// Whether the gateways of these hubs, which are all that offer the server with this uid, call it.
    async fn demand(&self, server_uid: &str, hubs: &[OwnerKey]) -> Demand;

    /// Keeps what these gateways know of the server, so that they offer it also if they start while it is at rest.
    ///
    /// # Errors
    /// None of them knows it, or there is no room: a server at rest would vanish from lists.
    async fn keep_definitions(&self, server_uid: &str, hubs: &[OwnerKey]) -> Result<(), SinkError>;

    fn events(&self) -> BoxStream<'static, SinkEvent>;
}

/// Addresses that a configuration tells of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Names under which clients reach the endpoint, besides loopback ones: the gateway accepts them as `Host`.
    pub hosts: Vec<String>,
    /// Where the gateway asks for servers at rest; `None` where none ever is.
    pub wake: Option<String>,
}

/// Whether anybody calls a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// No gateway offers it, or none could have it woken.
    Unwakeable,
    /// Some gateway has not told.
    Unknown,
    /// A call is under way, or waits for the server.
    Called,
    /// No call is under way, nor was for so long.
    Idle(Duration),
}

/// How clients come in: the endpoint's certificate, and what leads to it from outside. Each is `None` if the hub asks for
/// none, else what is so or what is wrong, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Door {
    pub certificate: Option<Result<String, Failure>>,
    pub exposure: Option<Result<String, Failure>>,
}

impl Door {
    /// What is wrong and is to be tried again although no event will tell.
    pub fn open_failure(&self) -> Option<&Failure> {
        let failures =
            [&self.certificate, &self.exposure].into_iter().filter_map(|found| found.as_ref()?.as_ref().err());
        failures.into_iter().find(|failure| failure.retry != Retry::OnChange)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct HubState {
    /// URL of the aggregate endpoint.
    pub endpoint: String,
    pub replicas: i32,
    /// Replicas that take calls.
    pub serving: i32,
    /// Why there are fewer than there should be, as far as is known.
    pub problem: Option<String>,
    /// Replicas that serve `version`.
    pub synced: i32,
    pub version: String,
    /// Names left out of a `Bare` hub, with the servers that offer them.
    pub collisions: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkEvent {
    Hub(OwnerKey),
    /// A gateway learned something of the server with this uid.
    Upstream(String),
}
