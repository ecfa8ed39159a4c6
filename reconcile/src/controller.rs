//! The queue: when which object gets a pass.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use kube::{Resource, ResourceExt};
use kube_runtime::controller::{Action, Config, applier};
use kube_runtime::reflector::ObjectRef;
use mcp_hub_crds::{MCPHub, MCPServer};
use tokio::sync::watch;

use crate::error::{Error, Retry};
use crate::gateway;
use crate::owner::{OwnerKey, OwnerKind};
use crate::pass;
use crate::passes::Passes;
use crate::ports::{Change, Ports, RuntimeEvent, SinkEvent};
use crate::rest;

/// Objects reconciled at a time. Passes mostly wait for processes and sockets, so more than cores is right; the bound
/// keeps a cold start of hundreds of servers from opening everything at once.
const CONCURRENCY: u16 = 32;
/// Longest pass; the longest step is a whole-tree kill with its grace period.
const PASS_LIMIT: Duration = Duration::from_secs(120);
/// Without any event an object is looked at again after about this time.
const RESYNC: Duration = Duration::from_secs(3600);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Reconciles everything that the store holds until `shutdown` resolves; passes under way are finished first.
///
/// Servers and hubs have a queue each. Objects whose owner is gone are removed at the start and after each gap in the
/// runtime's events.
pub async fn run(ports: Ports, passes: Arc<Passes>, shutdown: impl Future<Output = ()> + Send) {
    let (stop, stopped) = watch::channel(false);
    let context = Arc::new(Context { ports, passes, failures: Mutex::default(), hub_passes: Mutex::default() });
    let servers = drive_servers(context.clone(), stopped.clone());
    let hubs = drive_hubs(context.clone(), stopped.clone());
    let sweeps = drive_sweeps(context, stopped);
    let ended = async {
        shutdown.await;
        // Receivers live as long as the loops below, so the only error is that they all ended already.
        stop.send_replace(true);
    };
    tokio::join!(servers, hubs, sweeps, ended);
}

#[derive(Debug)]
struct Context {
    ports: Ports,
    passes: Arc<Passes>,
    /// Failures in a row of each object, by uid.
    failures: Mutex<HashMap<String, u32>>,
    /// When the last pass over a hub began, by uid, as long as the sink's pace asks.
    hub_passes: Mutex<HashMap<String, tokio::time::Instant>>,
}

impl Context {
    fn succeeded(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn failed(&self, uid: &str) -> u32 {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// Takes a hub's turn; if it is too early for one, the time until then.
    fn hub_turn(&self, hub: &MCPHub) -> Option<Duration> {
        let (uid, pace) = (hub.uid().unwrap_or_default(), self.ports.sink.pace());
        let mut passes = self.hub_passes.lock().unwrap_or_else(PoisonError::into_inner);
        passes.retain(|_, begun| begun.elapsed() < pace);
        if let Some(begun) = passes.get(&uid) {
            return Some(pace.saturating_sub(begun.elapsed()));
        }
        passes.insert(uid, tokio::time::Instant::now());
        None
    }

    /// When an object is looked at again if nothing happens.
    fn next<K: Resource>(&self, object: &K, result: &Result<Option<Duration>, Error>) -> Action {
        let uid = object.meta().uid.clone().unwrap_or_default();
        match result {
            Ok(look_again) => {
                self.succeeded(&uid);
                Action::requeue(look_again.unwrap_or_else(|| jittered(RESYNC, &uid)))
            }
            Err(error) => {
                let count = self.failed(&uid);
                tracing::warn!(reason = error.reason(), error = error.chain(), "pass failed");
                match error.retry() {
                    Retry::After(time) => Action::requeue(time),
                    Retry::OnChange => Action::requeue(jittered(RESYNC, &uid)),
                    Retry::Backoff => {
                        let wait = BACKOFF_FIRST.saturating_mul(1 << (count - 1).min(16));
                        Action::requeue(jittered(wait.min(BACKOFF_MAX), &uid))
                    }
                }
            }
        }
    }
}

/// Spreads `time` by up to a quarter, by object, so that thousands do not come due at once.
fn jittered(time: Duration, uid: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    time + time.mul_f64(f64::from(u8::try_from(hasher.finish() % 256).unwrap_or(0)) / 1024.0)
}

async fn limited<T>(object: &str, pass: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PASS_LIMIT, pass)
        .await
        .unwrap_or_else(|_| Err(Error::Timeout { object: object.to_owned(), limit: PASS_LIMIT }))
}

/// The applier's error type: none reaches it, because a failed pass decides its own next time.
#[derive(Debug, thiserror::Error)]
enum Never {}

async fn drive_servers(context: Arc<Context>, stopped: watch::Receiver<bool>) {
    let queue = until_stopped(server_queue(&context), stopped).map(Ok::<_, Never>);
    let store = context.ports.store.servers();
    let reconcile = |server: Arc<MCPServer>, context: Arc<Context>| {
        Box::pin(async move {
            let begun = Instant::now();
            let result = limited(&server.name_any(), pass::server(&server, &context.ports)).await;
            context.passes.count("server", &result, begun.elapsed());
            Ok::<_, Never>(context.next(&*server, &result))
        })
    };
    let config = Config::default().concurrency(CONCURRENCY);
    applier(reconcile, |_, never, _| match *never {}, context, store, queue, config).for_each(|_| async {}).await;
}

async fn drive_hubs(context: Arc<Context>, stopped: watch::Receiver<bool>) {
    let queue = until_stopped(hub_queue(&context), stopped).map(Ok::<_, Never>);
    let store = context.ports.store.hubs();
    let reconcile = |hub: Arc<MCPHub>, context: Arc<Context>| {
        Box::pin(async move {
            if let Some(wait) = context.hub_turn(&hub) {
                return Ok(Action::requeue(wait));
            }
            let begun = Instant::now();
            let result = limited(&hub.name_any(), pass::hub(&hub, &context.ports)).await;
            context.passes.count("hub", &result, begun.elapsed());
            Ok::<_, Never>(context.next(&*hub, &result.map(|()| None)))
        })
    };
    let config = Config::default().concurrency(CONCURRENCY);
    applier(reconcile, |_, never, _| match *never {}, context, store, queue, config).for_each(|_| async {}).await;
}

fn until_stopped<T: Send + 'static>(
    queue: BoxStream<'static, T>,
    mut stopped: watch::Receiver<bool>,
) -> BoxStream<'static, T> {
    queue
        .take_until(async move {
            // An error means that the sender is gone, which is a stop too.
            stopped.wait_for(|stopped| *stopped).await.is_err()
        })
        .boxed()
}

/// Servers to look at: changed ones, those the runtime or a gateway has news of, and users of a changed secret.
fn server_queue(context: &Arc<Context>) -> BoxStream<'static, ObjectRef<MCPServer>> {
    let (store, hubs) = (context.ports.store.servers(), context.ports.store.hubs());
    let changes = context.ports.store.changes().flat_map({
        let store = store.clone();
        move |change| {
            stream::iter(match change {
                Change::Server(server) => vec![server],
                Change::Secret { namespace, name } => {
                    let state = store.state();
                    let users = state.iter().filter(|server| {
                        server.namespace().as_deref() == Some(&namespace) && uses_secret(server, &name)
                    });
                    users.map(|server| ObjectRef::from(&**server)).collect()
                }
                // Who could have a server at rest woken may be gone.
                Change::Hub(hub) if hubs.get(&hub).is_none_or(|hub| is_news(&hub)) => {
                    let state = store.state();
                    let at_rest = state.iter().filter(|server| rest::is_at_rest(server));
                    at_rest.map(|server| ObjectRef::from(&**server)).collect()
                }
                Change::Hub(_) => Vec::new(),
            })
        }
    });
    let runtime = context.ports.runtime.events().flat_map({
        let store = store.clone();
        move |event| {
            stream::iter(match event {
                RuntimeEvent::Changed(owner) => match owner.kind {
                    OwnerKind::MCPServer => vec![ObjectRef::new(&owner.name).within(&owner.namespace)],
                    OwnerKind::MCPHub => Vec::new(),
                },
                RuntimeEvent::Resync => store.state().iter().map(|server| ObjectRef::from(&**server)).collect(),
            })
        }
    });
    let sink = context.ports.sink.events().flat_map(move |event| {
        stream::iter(match event {
            SinkEvent::Upstream(uid) => {
                let state = store.state();
                let named = state.iter().filter(|server| server.uid().as_deref() == Some(&uid));
                named.map(|server| ObjectRef::from(&**server)).collect()
            }
            SinkEvent::Hub(_) => Vec::new(),
        })
    });
    stream::select(changes, stream::select(runtime, sink)).boxed()
}

/// Whether no pass has looked at this spec yet.
fn is_news(hub: &MCPHub) -> bool {
    let ends = hub.meta().deletion_timestamp.is_some();
    ends || hub.status.as_ref().is_none_or(|status| status.observed_generation != hub.metadata.generation)
}

/// Hubs to look at: changed ones, those whose gateway has news, and those that select a changed server.
fn hub_queue(context: &Arc<Context>) -> BoxStream<'static, ObjectRef<MCPHub>> {
    let (hubs, servers) = (context.ports.store.hubs(), context.ports.store.servers());
    let changes = context.ports.store.changes().flat_map(move |change| {
        stream::iter(match change {
            Change::Hub(hub) => vec![hub],
            Change::Server(reference) => {
                let server = servers.get(&reference);
                let state = hubs.state();
                // A server that is gone, or moved out by new labels, leaves hubs that no longer select it.
                let concerned = state.iter().filter(|hub| {
                    server.as_ref().is_none_or(|server| gateway::selects(hub, server) || hub.spec.servers.is_some())
                });
                concerned.map(|hub| ObjectRef::from(&**hub)).collect()
            }
            Change::Secret { .. } => hubs.state().iter().map(|hub| ObjectRef::from(&**hub)).collect(),
        })
    });
    let sink = context.ports.sink.events().filter_map(|event| async move {
        match event {
            SinkEvent::Hub(owner) => Some(ObjectRef::new(&owner.name).within(&owner.namespace)),
            SinkEvent::Upstream(_) => None,
        }
    });
    stream::select(changes, sink).boxed()
}

/// Whether a server's environment or headers refer to a secret of this name.
pub fn uses_secret(server: &MCPServer, name: &str) -> bool {
    pass::secrets_of(server).any(|key| key.name == name)
}

/// Removes what is left of owners that the store no longer has.
async fn drive_sweeps(context: Arc<Context>, stopped: watch::Receiver<bool>) {
    let gaps = context.ports.runtime.events().filter(|event| futures::future::ready(*event == RuntimeEvent::Resync));
    let start = stream::once(async { RuntimeEvent::Resync });
    let mut due = until_stopped(start.chain(gaps).boxed(), stopped);
    while due.next().await.is_some() {
        if let Err(error) = sweep(&context.ports).await {
            tracing::warn!(reason = error.reason(), error = error.chain(), "sweep of orphans failed");
        }
    }
}

/// Removes what is left of owners that the store no longer has; the first failure is returned after all were tried.
pub async fn sweep(ports: &Ports) -> Result<(), Error> {
    // A store that was dropped holds nothing to protect, and its controller is ending.
    if ports.store.servers().wait_until_ready().await.is_err() {
        return Ok(());
    }
    // What owner references collect is nobody's to guess about: an object that cannot be read is no orphan.
    if ports.runtime.info().collects_garbage {
        return Ok(());
    }
    let owners = ports.runtime.owners().await?;
    // Looked at after the owners: whatever has objects was in the store before it had them, so a server that is created
    // at this moment is not taken for an orphan.
    let known: HashSet<String> = ports.store.servers().state().iter().filter_map(|server| server.uid()).collect();
    let mut result = Ok(());
    for owner in owners {
        let ours = owner.installation == ports.installation.id() && owner.kind == OwnerKind::MCPServer;
        if ours && !known.contains(&owner.uid) {
            result = result.and(remove_orphan(&owner, ports).await);
        }
    }
    result
}

async fn remove_orphan(owner: &OwnerKey, ports: &Ports) -> Result<(), Error> {
    tracing::info!(owner = %owner, "removing what is left of a deleted server");
    pass::delete(owner, ports).await
}
