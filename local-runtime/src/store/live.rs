//! The objects as passes and tables see them: reflector stores, and streams that tell of changes.

use futures::stream::BoxStream;
use kube_runtime::reflector::{ObjectRef, Store, store::Writer};
use kube_runtime::watcher;
use mcp_hub_crds::{MCPHub, MCPServer, Resource, ResourceKey, ResourceKind};
use mcp_hub_reconcile::ports::{Change, changes};
use tokio::sync::broadcast;

/// Changes that a slow listener may lag behind before it is told of everything. Their room, 128 bytes each, is taken at
/// once.
const CHANGES: usize = 512;

/// The side that writes; it lies behind the store's lock, so that what is shown has the order of the transactions.
#[derive(Debug)]
pub(super) struct Writers {
    servers: Writer<MCPServer>,
    hubs: Writer<MCPHub>,
}

/// The side that reads.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) servers: Store<MCPServer>,
    pub(super) hubs: Store<MCPHub>,
    changes: broadcast::Sender<Change>,
}

/// Shows these objects, all that there are.
pub(super) fn begin(objects: Vec<Resource>) -> (Writers, Live) {
    let (mut servers, mut hubs) = (Writer::new(()), Writer::new(()));
    servers.apply_watcher_event(&watcher::Event::Init);
    hubs.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        match object {
            Resource::Server(server) => servers.apply_watcher_event(&watcher::Event::InitApply(server)),
            Resource::Hub(hub) => hubs.apply_watcher_event(&watcher::Event::InitApply(hub)),
        }
    }
    servers.apply_watcher_event(&watcher::Event::InitDone);
    hubs.apply_watcher_event(&watcher::Event::InitDone);
    let changes = broadcast::Sender::new(CHANGES);
    let live = Live { servers: servers.as_reader(), hubs: hubs.as_reader(), changes };
    (Writers { servers, hubs }, live)
}

impl Writers {
    pub(super) fn show(&mut self, object: Resource) {
        match object {
            Resource::Server(server) => self.servers.apply_watcher_event(&watcher::Event::Apply(server)),
            Resource::Hub(hub) => self.hubs.apply_watcher_event(&watcher::Event::Apply(hub)),
        }
    }

    pub(super) fn hide(&mut self, key: &ResourceKey, live: &Live) {
        match key.kind {
            ResourceKind::MCPServer => {
                if let Some(server) = live.servers.get(&ObjectRef::new(&key.name).within(&key.namespace)) {
                    self.servers.apply_watcher_event(&watcher::Event::Delete((*server).clone()));
                }
            }
            ResourceKind::MCPHub => {
                if let Some(hub) = live.hubs.get(&ObjectRef::new(&key.name).within(&key.namespace)) {
                    self.hubs.apply_watcher_event(&watcher::Event::Delete((*hub).clone()));
                }
            }
        }
    }
}

impl Live {
    pub(super) fn tell(&self, change: Change) {
        // Nobody listening is no loss: who listens later begins with everything.
        self.changes.send(change).ok();
    }

    /// Begins with all that exist; so does a listener that lagged behind.
    pub(super) fn changes(&self) -> BoxStream<'static, Change> {
        changes(&self.changes, self.servers.clone(), self.hubs.clone())
    }
}

/// The change that tells of an object.
pub(super) fn change_of(key: &ResourceKey) -> Change {
    match key.kind {
        ResourceKind::MCPServer => Change::Server(ObjectRef::new(&key.name).within(&key.namespace)),
        ResourceKind::MCPHub => Change::Hub(ObjectRef::new(&key.name).within(&key.namespace)),
    }
}
