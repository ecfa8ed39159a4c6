//! A store in memory, as strict as a real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use kube_runtime::reflector::{self, ObjectRef, Store};
use kube_runtime::watcher;
use mcp_hub_crds::resource::DEFAULT_NAMESPACE;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use tokio::sync::broadcast;

use super::Writes;
use crate::error::StoreError;
use crate::owner::{OwnerKey, OwnerKind};
use crate::ports::{Change, Event, ResourceStore, changes};

/// Clones are the same store. Names of tests' objects are unique over both namespaces, so that a name says which is meant.
#[derive(Debug, Clone)]
pub struct FakeStore(Arc<Inner>);

struct Inner {
    servers: Store<MCPServer>,
    hubs: Store<MCPHub>,
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
    writes: Writes,
}

struct State {
    servers: reflector::store::Writer<MCPServer>,
    hubs: reflector::store::Writer<MCPHub>,
    secrets: BTreeMap<SecretKeyRef, SecretString>,
    broken: Option<String>,
    events: Vec<Event>,
    objects: u32,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeStore").field("servers", &self.servers.len()).finish_non_exhaustive()
    }
}

impl FakeStore {
    pub fn new(writes: Writes) -> Self {
        let (servers, mut server_writer) = reflector::store();
        let (hubs, mut hub_writer) = reflector::store();
        server_writer.apply_watcher_event(&watcher::Event::InitDone);
        hub_writer.apply_watcher_event(&watcher::Event::InitDone);
        let state = Mutex::new(State {
            servers: server_writer,
            hubs: hub_writer,
            secrets: BTreeMap::new(),
            broken: None,
            events: Vec::new(),
            objects: 0,
        });
        Self(Arc::new(Inner { servers, hubs, state, changes: broadcast::Sender::new(1024), writes }))
    }

    /// Creates the server, or gives it this spec, these labels and annotations; a changed spec is a new generation.
    pub fn apply_server(&self, mut server: MCPServer) {
        let mut state = self.state();
        let old = self.find_server(&server.name_any());
        let meta =
            self.stamp(&mut state, &server.metadata, old.as_ref().map(|old| (&old.metadata, old.spec == server.spec)));
        server.metadata = meta;
        server.status = old.and_then(|old| old.status.clone());
        state.servers.apply_watcher_event(&watcher::Event::Apply(server.clone()));
        self.tell(Change::Server(ObjectRef::from_obj(&server)));
    }

    /// As [`FakeStore::apply_server`].
    pub fn apply_hub(&self, mut hub: MCPHub) {
        let mut state = self.state();
        let old = self.find_hub(&hub.name_any());
        let meta = self.stamp(&mut state, &hub.metadata, old.as_ref().map(|old| (&old.metadata, old.spec == hub.spec)));
        hub.metadata = meta;
        hub.status = old.and_then(|old| old.status.clone());
        state.hubs.apply_watcher_event(&watcher::Event::Apply(hub.clone()));
        self.tell(Change::Hub(ObjectRef::from_obj(&hub)));
    }

    fn stamp(&self, state: &mut State, given: &ObjectMeta, old: Option<(&ObjectMeta, bool)>) -> ObjectMeta {
        let mut meta = match old {
            Some((old, same_spec)) => {
                let mut meta = old.clone();
                meta.generation = old.generation.map(|generation| generation + i64::from(!same_spec));
                meta
            }
            None => {
                state.objects += 1;
                ObjectMeta {
                    name: given.name.clone(),
                    namespace: Some(given.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
                    uid: Some(format!("uid-{}", state.objects)),
                    generation: Some(1),
                    ..ObjectMeta::default()
                }
            }
        };
        meta.labels.clone_from(&given.labels);
        meta.annotations.clone_from(&given.annotations);
        meta
    }

    /// Asks for the object's deletion; it goes when it is released.
    pub fn delete(&self, name: &str) {
        let now = Some(Time(Timestamp::UNIX_EPOCH));
        if let Some(server) = self.find_server(name) {
            let mut server = (*server).clone();
            server.metadata.deletion_timestamp = now;
            self.state().servers.apply_watcher_event(&watcher::Event::Apply(server.clone()));
            self.tell(Change::Server(ObjectRef::from_obj(&server)));
        } else if let Some(hub) = self.find_hub(name) {
            let mut hub = (*hub).clone();
            hub.metadata.deletion_timestamp = now;
            self.state().hubs.apply_watcher_event(&watcher::Event::Apply(hub.clone()));
            self.tell(Change::Hub(ObjectRef::from_obj(&hub)));
        }
    }

    pub fn find_server(&self, name: &str) -> Option<Arc<MCPServer>> {
        self.0.servers.find(|server| server.name_any() == name)
    }

    pub fn find_hub(&self, name: &str) -> Option<Arc<MCPHub>> {
        self.0.hubs.find(|hub| hub.name_any() == name)
    }

    /// Gives a secret's key a value, or takes it away.
    pub fn set_secret(&self, name: &str, key: &str, value: Option<&str>) {
        let reference = SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
        match value {
            Some(value) => self.state().secrets.insert(reference, SecretString::new(value)),
            None => self.state().secrets.remove(&reference),
        };
        self.tell(Change::Secret { namespace: DEFAULT_NAMESPACE.to_owned(), name: name.to_owned() });
    }

    /// Makes reading any secret fail with this message, or work again.
    pub fn break_secrets(&self, message: Option<&str>) {
        self.state().broken = message.map(str::to_owned);
    }

    /// Events published so far, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: Change) {
        // Nobody listening is no loss: who listens later gets all there is.
        self.0.changes.send(change).ok();
    }
}

fn same<K: Resource>(stored: &K, given: &K) -> bool {
    stored.meta().uid == given.meta().uid
}

#[async_trait]
impl ResourceStore for FakeStore {
    fn servers(&self) -> Store<MCPServer> {
        self.0.servers.clone()
    }

    fn hubs(&self) -> Store<MCPHub> {
        self.0.hubs.clone()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        changes(&self.0.changes, self.0.servers.clone(), self.0.hubs.clone())
    }

    async fn write_server_status(&self, server: &MCPServer, status: &MCPServerStatus) -> Result<(), StoreError> {
        let conflict = || StoreError::Conflict { object: format!("server {}", server.name_any()) };
        let stored = self.find_server(&server.name_any()).filter(|stored| same(&**stored, server));
        let mut changed = (*stored.ok_or_else(conflict)?).clone();
        changed.status = Some(status.clone());
        self.0.writes.write(format!("status of {}", server.name_any()), || {
            self.state().servers.apply_watcher_event(&watcher::Event::Apply(changed));
            self.tell(Change::Server(ObjectRef::from_obj(server)));
        })?;
        Ok(())
    }

    async fn write_hub_status(&self, hub: &MCPHub, status: &MCPHubStatus) -> Result<(), StoreError> {
        let conflict = || StoreError::Conflict { object: format!("hub {}", hub.name_any()) };
        let stored = self.find_hub(&hub.name_any()).filter(|stored| same(&**stored, hub));
        let mut changed = (*stored.ok_or_else(conflict)?).clone();
        changed.status = Some(status.clone());
        self.0.writes.write(format!("status of {}", hub.name_any()), || {
            self.state().hubs.apply_watcher_event(&watcher::Event::Apply(changed));
            self.tell(Change::Hub(ObjectRef::from_obj(hub)));
        })?;
        Ok(())
    }

    async fn secret(&self, _namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, StoreError> {
        let state = self.state();
        match &state.broken {
            Some(message) => Err(StoreError::Secret {
                name: key.name.clone(),
                key: key.key.clone(),
                message: message.clone(),
                hint: None,
            }),
            None => Ok(state.secrets.get(key).cloned()),
        }
    }

    async fn release(&self, owner: &OwnerKey) -> Result<(), StoreError> {
        let uid = Some(owner.uid.as_str());
        match owner.kind {
            OwnerKind::MCPServer => {
                let doomed = |server: &MCPServer| server.metadata.deletion_timestamp.is_some();
                let found = self.0.servers.find(|server| server.uid().as_deref() == uid && doomed(server));
                let Some(server) = found else { return Ok(()) };
                self.0.writes.write(format!("release {}", owner.name), || {
                    self.state().servers.apply_watcher_event(&watcher::Event::Delete((*server).clone()));
                    self.tell(Change::Server(ObjectRef::from_obj(&*server)));
                })?;
            }
            OwnerKind::MCPHub => {
                let doomed = |hub: &MCPHub| hub.metadata.deletion_timestamp.is_some();
                let found = self.0.hubs.find(|hub| hub.uid().as_deref() == uid && doomed(hub));
                let Some(hub) = found else { return Ok(()) };
                self.0.writes.write(format!("release {}", owner.name), || {
                    self.state().hubs.apply_watcher_event(&watcher::Event::Delete((*hub).clone()));
                    self.tell(Change::Hub(ObjectRef::from_obj(&*hub)));
                })?;
            }
        }
        Ok(())
    }

    async fn publish(&self, event: Event) {
        self.state().events.push(event);
    }
}
