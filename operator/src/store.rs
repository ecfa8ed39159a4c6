//! Specs and statuses in the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope, ObjectMeta};
use kube::runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::controller::uses_secret;
use mcp_hub_reconcile::error::StoreError;
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::ports::{Change, Event, EventKind, ResourceStore, changes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::scope::{PAGE, Scope};

/// Field manager of statuses.
const STATUS_MANAGER: &str = "mcp-hub/status";
/// Changes that a slow listener may lag behind before it is told of everything.
const CHANGES: usize = 4096;
/// The API server refuses longer notes of events.
const NOTE: usize = 1_000;
/// A secret that was missing is looked for again this often: the operator may read users' secrets, not watch them.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Where `kubectl apply` keeps the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Events after which the recorder is replaced. It keeps each for six minutes, to count repeats, and searches all of them
/// for each: thousands of new servers would have it hold more than everything else.
const EVENTS_KEPT: usize = 500;

/// The store of a cluster. Its watches end with the last value.
pub struct KubeStore {
    client: Client,
    servers: Shelf<MCPServer>,
    hubs: Shelf<MCPHub>,
    changes: broadcast::Sender<Change>,
    missing: Arc<Mutex<BTreeSet<(String, String)>>>,
    reporter: Reporter,
    /// With the number of Events that it has written.
    recorder: Mutex<(Recorder, usize)>,
    _watches: JoinSet<()>,
}

impl Debug for KubeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeStore").field("servers", &self.servers.store.len()).finish_non_exhaustive()
    }
}

impl KubeStore {
    /// Starts the watches. `instance` names this operator in events.
    pub fn start(client: &Client, scope: &Scope, instance: &str) -> Arc<Self> {
        let changes = broadcast::Sender::new(CHANGES);
        let mut watches = JoinSet::new();
        let servers = Shelf::start(client, scope, &mut watches, changes.clone(), |server| {
            Change::Server(ObjectRef::from_obj(server))
        });
        let hubs =
            Shelf::start(client, scope, &mut watches, changes.clone(), |hub| Change::Hub(ObjectRef::from_obj(hub)));
        let missing: Arc<Mutex<BTreeSet<(String, String)>>> = Arc::default();
        watches.spawn(look_for(client.clone(), servers.store.clone(), missing.clone(), changes.clone()));
        let reporter = Reporter { controller: "mcp-hub-operator".into(), instance: Some(instance.to_owned()) };
        let recorder = Mutex::new((Recorder::new(client.clone(), reporter.clone()), 0));
        let client = client.clone();
        Arc::new(Self { client, servers, hubs, changes, missing, reporter, recorder, _watches: watches })
    }

    fn recorder(&self) -> Recorder {
        let mut kept = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let (recorder, written) = &mut *kept;
        *written += 1;
        if *written > EVENTS_KEPT {
            (*recorder, *written) = (Recorder::new(self.client.clone(), self.reporter.clone()), 1);
        }
        recorder.clone()
    }

    async fn write_status<K>(&self, shelf: &Shelf<K>, object: &K, status: &impl Serialize) -> Result<(), StoreError>
    where
        K: Kept,
    {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            // With its uid a namesake that came since refuses the write.
            "metadata": {"name": name, "uid": object.uid()},
            "status": status,
        });
        let params = PatchParams::apply(STATUS_MANAGER).force();
        let shown = format!("{} {namespace}/{name}", K::kind(&()));
        match api.patch_status(&name, &params, &Patch::Apply(&patch)).await {
            Ok(written) => {
                if let Some(change) = shelf.answered(written) {
                    self.changes.send(change).ok();
                }
                Ok(())
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 409 || refusal.code == 404 => {
                // If it is gone, the watch is late, and whoever went on with it would make what the garbage collector takes
                // away. A failure to find out is the next pass's to meet.
                // By a list, because roles allow that for the watch already.
                let named = ListParams::default().fields(&format!("metadata.name={name}"));
                let gone = match api.list_metadata(&named).await {
                    Ok(found) => !found.items.iter().any(|found| found.uid() == object.uid()),
                    Err(_) => false,
                };
                if let Some(change) = Some(object).filter(|_| gone).and_then(|object| shelf.outdated(object)) {
                    self.changes.send(change).ok();
                }
                Err(StoreError::Conflict { object: shown })
            }
            Err(source) => {
                Err(StoreError::Io { action: "write the status of", object: shown, source: Box::new(source) })
            }
        }
    }
}

#[async_trait]
impl ResourceStore for KubeStore {
    fn servers(&self) -> Store<MCPServer> {
        self.servers.store.clone()
    }

    fn hubs(&self) -> Store<MCPHub> {
        self.hubs.store.clone()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        changes(&self.changes, self.servers.store.clone(), self.hubs.store.clone())
    }

    async fn write_server_status(&self, server: &MCPServer, status: &MCPServerStatus) -> Result<(), StoreError> {
        self.write_status(&self.servers, server, status).await
    }

    async fn write_hub_status(&self, hub: &MCPHub, status: &MCPHubStatus) -> Result<(), StoreError> {
        self.write_status(&self.hubs, hub, status).await
    }

    async fn secret(&self, namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, StoreError> {
        let value = read_secret(&self.client, namespace, key).await?;
        if value.is_none() {
            let wanted = (namespace.to_owned(), key.name.clone());
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted);
        }
        Ok(value)
    }

    async fn release(&self, _: &OwnerKey) -> Result<(), StoreError> {
        // The garbage collector follows owner references; there is no finalizer to take away.
        Ok(())
    }

    async fn publish(&self, event: Event) {
        let owner = event.owner;
        let reference = ObjectReference {
            api_version: Some("mcphub.io/v1alpha1".to_owned()),
            kind: Some(match owner.kind {
                OwnerKind::MCPServer => "MCPServer".to_owned(),
                OwnerKind::MCPHub => "MCPHub".to_owned(),
            }),
            namespace: Some(owner.namespace),
            name: Some(owner.name),
            uid: Some(owner.uid),
            ..ObjectReference::default()
        };
        let mut note = event.message;
        note.truncate(note.floor_char_boundary(NOTE));
        let event = KubeEvent {
            type_: match event.kind {
                EventKind::Normal => EventType::Normal,
                EventKind::Warning => EventType::Warning,
            },
            reason: event.reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder().publish(&event, &reference).await {
            // An event is for people; the status says the same.
            tracing::warn!(error = %error, reason = event.reason, "an event was not written");
        }
    }
}

/// The value of a Secret's key; `None` if there is no such Secret or key.
pub(crate) async fn read_secret(
    client: &Client,
    namespace: &str,
    key: &SecretKeyRef,
) -> Result<Option<SecretString>, StoreError> {
    let failed = |message: String, hint: Option<String>| StoreError::Secret {
        name: key.name.clone(),
        key: key.key.clone(),
        message,
        hint,
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get_opt(&key.name).await.map_err(|error| {
        let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
        failed(error.to_string(), forbidden.then(|| "a role must allow to get this Secret".to_owned()))
    })?;
    let Some(bytes) = secret.and_then(|secret| secret.data?.remove(&key.key)) else { return Ok(None) };
    match String::from_utf8(bytes.0) {
        Ok(value) => Ok(Some(SecretString::new(value))),
        Err(_) => Err(failed("its value is no UTF-8 text".to_owned(), None)),
    }
}

/// A kind of ours, in its reflector.
trait Kept:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Whether everything that a pass depends on is the same.
    fn means_the_same(&self, other: &Self) -> bool;
}

impl Kept for MCPServer {
    fn means_the_same(&self, other: &Self) -> bool {
        same_meta(&self.metadata, &other.metadata) && self.spec == other.spec && self.status == other.status
    }
}

impl Kept for MCPHub {
    fn means_the_same(&self, other: &Self) -> bool {
        same_meta(&self.metadata, &other.metadata) && self.spec == other.spec
    }
}

fn same_meta(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let looked_at = |meta: &ObjectMeta| (meta.generation, meta.deletion_timestamp.clone());
    looked_at(one) == looked_at(other)
        && one.uid == other.uid
        && one.labels == other.labels
        && one.annotations == other.annotations
}

/// Objects of one kind as passes see them.
struct Shelf<K: Kept> {
    store: Store<K>,
    writer: Arc<Mutex<Writer<K>>>,
    change: fn(&K) -> Change,
}

impl<K: Kept> Clone for Shelf<K> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), writer: self.writer.clone(), change: self.change }
    }
}

impl<K: Kept> Shelf<K> {
    fn start(
        client: &Client,
        scope: &Scope,
        watches: &mut JoinSet<()>,
        changes: broadcast::Sender<Change>,
        change: fn(&K) -> Change,
    ) -> Self {
        let writer = Writer::<K>::default();
        let shelf = Self { store: writer.as_reader(), writer: Arc::new(Mutex::new(writer)), change };
        let watched = scope.namespaces().into_iter().map(|namespace| {
            let api = Scope::api(client, namespace.as_deref());
            (namespace, api)
        });
        watches.spawn(shelf.clone().follow(watched.collect(), changes));
        shelf
    }

    fn writer(&self) -> MutexGuard<'_, Writer<K>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a watch shows, unless a newer one is known; the change, if a pass could do anything about it.
    fn see(&self, object: K) -> Option<Change> {
        let writer = self.writer();
        let known = self.store.get(&ObjectRef::from_obj(&object));
        self.take(writer, known, object)
    }

    /// Takes the answer to a write. It may come after the watch told that the object is gone; then it is no news.
    fn answered(&self, object: K) -> Option<Change> {
        let writer = self.writer();
        let known = self.store.get(&ObjectRef::from_obj(&object)).filter(|known| known.uid() == object.uid())?;
        self.take(writer, Some(known), object)
    }

    /// Forgets an object of which the API server said that it is no more.
    fn outdated(&self, object: &K) -> Option<Change> {
        self.store.get(&ObjectRef::from_obj(object)).filter(|known| known.uid() == object.uid())?;
        self.forget(&key(object))
    }

    fn take(&self, mut writer: MutexGuard<'_, Writer<K>>, known: Option<Arc<K>>, mut object: K) -> Option<Change> {
        // Large, and nothing that a pass looks at.
        object.meta_mut().managed_fields = None;
        if let Some(annotations) = &mut object.meta_mut().annotations {
            annotations.remove(LAST_APPLIED);
        }
        if known.as_ref().is_some_and(|known| version(&**known) > version(&object) && known.uid() == object.uid()) {
            return None;
        }
        let change = (self.change)(&object);
        let means_more = known.is_none_or(|known| !known.means_the_same(&object));
        writer.apply_watcher_event(&watcher::Event::Apply(object));
        means_more.then_some(change)
    }

    /// Follows the watches for ever. The store is ready when each of them has listed all that it watches.
    async fn follow(
        self,
        watched: Vec<(Option<String>, Api<DeserializeGuard<K>>)>,
        changes: broadcast::Sender<Change>,
    ) {
        let mut awaited: BTreeSet<Option<String>> = watched.iter().map(|(namespace, _)| namespace.clone()).collect();
        let mut listed: BTreeMap<Option<String>, BTreeSet<Key>> = BTreeMap::new();
        let mut events = stream::select_all(watched.into_iter().map(|(namespace, api)| {
            watcher(api, watcher::Config::default().page_size(PAGE))
                .default_backoff()
                .map(move |event| (namespace.clone(), event))
                .boxed()
        }));
        while let Some((namespace, event)) = events.next().await {
            let told = match event {
                Ok(watcher::Event::Init) => {
                    listed.insert(namespace, BTreeSet::new());
                    Vec::new()
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed.entry(namespace).or_default().insert(key(&object));
                    read(object).and_then(|object| self.see(object)).into_iter().collect()
                }
                Ok(watcher::Event::InitDone) => {
                    let told = self.retain(namespace.as_deref(), &listed.remove(&namespace).unwrap_or_default());
                    if awaited.remove(&namespace) && awaited.is_empty() {
                        self.complete();
                    }
                    told
                }
                Ok(watcher::Event::Apply(object)) => {
                    read(object).and_then(|object| self.see(object)).into_iter().collect()
                }
                Ok(watcher::Event::Delete(object)) => self.forget(&key(&object)).into_iter().collect(),
                Err(error) => {
                    // The watcher waits and lists anew; what is known stands meanwhile.
                    tracing::warn!(error = %error, kind = %K::kind(&()), "a watch broke");
                    Vec::new()
                }
            };
            for change in told {
                changes.send(change).ok();
            }
        }
    }

    /// Tells those who wait for the store that it is whole.
    fn complete(&self) {
        let mut writer = self.writer();
        writer.apply_watcher_event(&watcher::Event::Init);
        for object in self.store.state() {
            writer.apply_watcher_event(&watcher::Event::InitApply((*object).clone()));
        }
        writer.apply_watcher_event(&watcher::Event::InitDone);
    }

    /// Forgets what a list of a namespace, or of all, did not hold.
    fn retain(&self, namespace: Option<&str>, listed: &BTreeSet<Key>) -> Vec<Change> {
        let known = self.store.state().into_iter().map(|object| key(&*object));
        let gone = known.filter(|key| namespace.is_none_or(|namespace| key.0 == namespace) && !listed.contains(key));
        gone.filter_map(|key| self.forget(&key)).collect()
    }

    fn forget(&self, key: &Key) -> Option<Change> {
        let mut writer = self.writer();
        let object = self.store.get(&ObjectRef::new(&key.1).within(&key.0))?;
        writer.apply_watcher_event(&watcher::Event::Delete((*object).clone()));
        Some((self.change)(&object))
    }
}

/// Namespace and name.
type Key = (String, String);

fn key(object: &impl Resource) -> Key {
    (object.meta().namespace.clone().unwrap_or_default(), object.meta().name.clone().unwrap_or_default())
}

fn version(object: &impl Resource) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// An object that cannot be read is left as it was known: its last good version stands.
fn read<K: Resource>(object: DeserializeGuard<K>) -> Option<K> {
    match object.0 {
        Ok(object) => Some(object),
        Err(error) => {
            let name = error.metadata.name.unwrap_or_default();
            tracing::warn!(object = name, error = error.error, "an object cannot be read");
            None
        }
    }
}

/// Looks for secrets that were missing, and tells when one is there.
async fn look_for(
    client: Client,
    servers: Store<MCPServer>,
    missing: Arc<Mutex<BTreeSet<(String, String)>>>,
    changes: broadcast::Sender<Change>,
) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let names: Vec<(String, String)> = {
            let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
            if !missing.is_empty() {
                let state = servers.state();
                let in_use = |namespace: &str, name: &str| {
                    let mut here = state.iter().filter(|server| server.namespace().as_deref() == Some(namespace));
                    here.any(|server| uses_secret(server, name))
                };
                // Nobody asks for what a deleted server lacked.
                missing.retain(|(namespace, name)| in_use(namespace, name));
            }
            missing.iter().cloned().collect()
        };
        for (namespace, name) in names {
            let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
            // A failure is the next pass's to report.
            if let Ok(Some(_)) = api.get_metadata_opt(&name).await {
                missing.lock().unwrap_or_else(PoisonError::into_inner).remove(&(namespace.clone(), name.clone()));
                changes.send(Change::Secret { namespace, name }).ok();
            }
        }
    }
}
