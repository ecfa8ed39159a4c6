//! The crash sweep on real processes and the real store: the daemon dies before any file that it writes, any process that
//! it starts or ends, and before or after any transaction. The next daemon ends where an undisturbed one ends, and nothing
//! is orphaned.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod place;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use kube::ResourceExt;
use kube_runtime::reflector::Store;
use mcp_hub_crds::manifest;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_local_runtime::process::ProcessRuntime;
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_local_runtime::store::LocalStore;
use mcp_hub_reconcile::error::StoreError;
use mcp_hub_reconcile::fake::{Cut, FakeSink, Lost, Writes};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::{Change, Event, Ports, ResourceStore};
use mcp_hub_reconcile::status::is_ready;
use mcp_hub_secrets::Environment;
use place::{PATIENCE, PYTHON, Place};
use serde_json::{Value, json};

/// What outlives a daemon, and the count of what daemons do.
struct World {
    place: Place,
    /// What the followed manifest says: one document, or nothing.
    manifest: RefCell<Option<String>>,
    writes: Writes,
}

/// What users do, in turn; after each all has to settle.
const DEEDS: [fn(&World); 4] = [create, change, stop, delete];

fn create(w: &World) {
    w.write_manifest("stray", &with_secret());
}

fn change(w: &World) {
    w.write_manifest("plain", &with_secret());
}

fn stop(w: &World) {
    w.write_manifest("plain", &json!({"paused": true}));
}

fn delete(w: &World) {
    w.manifest.replace(None);
}

fn with_secret() -> Value {
    json!({"env": [{"name": "TOKEN", "secretRef": {"name": "login", "key": "token"}}]})
}

/// The store of one daemon, each of whose transactions is a cut point: not begun, or done and nobody told.
#[derive(Debug)]
struct Cuttable {
    store: Arc<LocalStore>,
    writes: Writes,
}

impl Cuttable {
    fn transaction<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T, StoreError> {
        Ok(self.writes.write(what, || work.now_or_never().expect("a transaction waits for nothing"))?)
    }
}

#[async_trait]
impl ResourceStore for Cuttable {
    fn servers(&self) -> Store<MCPServer> {
        self.store.servers()
    }

    fn hubs(&self) -> Store<MCPHub> {
        self.store.hubs()
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        self.store.changes()
    }

    async fn write_server_status(&self, server: &MCPServer, status: &MCPServerStatus) -> Result<(), StoreError> {
        self.transaction("store: status", self.store.write_server_status(server, status))?
    }

    async fn write_hub_status(&self, hub: &MCPHub, status: &MCPHubStatus) -> Result<(), StoreError> {
        self.transaction("store: hub status", self.store.write_hub_status(hub, status))?
    }

    async fn secret(&self, namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, StoreError> {
        self.store.secret(namespace, key).await
    }

    async fn release(&self, owner: &OwnerKey) -> Result<(), StoreError> {
        self.transaction("store: release", self.store.release(owner))?
    }

    async fn publish(&self, event: Event) {
        // Events fail no pass; a daemon that is cut off here learns of it at its next write.
        self.transaction("store: event", self.store.publish(event)).ok();
    }
}

impl World {
    fn new() -> Self {
        let mut place = Place::new();
        place.secrets.set("login", "token", "1");
        place.installation = open_store(&place).installation().id().to_owned();
        Self { place, manifest: RefCell::default(), writes: Writes::default() }
    }

    fn write_manifest(&self, mode: &str, more: &Value) {
        let mut spec = json!({
            "source": {"command": {"path": PYTHON.to_string_lossy()}},
            "args": [self.place.script(), mode],
            "transport": {"era": "legacy"},
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let document = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": "tiny"}, "spec": spec});
        self.manifest.replace(Some(document.to_string()));
    }

    /// A daemon's life: it reads the manifest and makes passes until all is settled, or until it is cut off; gives the
    /// state in which it leaves everything, if it lived.
    async fn daemon(&self) -> Option<String> {
        let hook = {
            let writes = self.writes.clone();
            move |deed: &'static str| writes.write(deed, || ()).is_ok()
        };
        let store = self.writes.write("store: open", || open_store(&self.place)).ok()?;
        let path = self.place.path().join("servers.yaml");
        let text = self.manifest.borrow().clone();
        let documents = text.map(|text| manifest::parse(&text, &path).unwrap()).unwrap_or_default();
        self.writes.write("store: manifest", || store.sync(&path, &documents).unwrap()).ok()?;

        let process =
            ProcessRuntime::with_hook(self.place.config(), self.place.secrets.clone(), Arc::new(hook)).unwrap();
        let ports = Ports {
            store: Arc::new(Cuttable { store: store.clone(), writes: self.writes.clone() }),
            runtime: Arc::new(RuntimeSet::new(process, Vec::new(), None)),
            sink: Arc::new(FakeSink::new(Writes::default())),
            installation: store.installation(),
        };
        let started = Instant::now();
        let mut calm = 0;
        while calm < 4 {
            let count = self.writes.count();
            for server in store.servers().state() {
                // A failed pass says so in the status, and is repeated.
                pass::server(&server, &ports).await.ok();
                if self.writes.was_cut() {
                    return None;
                }
            }
            let settled = store.servers().state().iter().all(|server| is_ready(server) || is_paused(server));
            calm = if settled && self.writes.count() == count { calm + 1 } else { 0 };
            assert!(
                started.elapsed() < PATIENCE,
                "does not settle: {:#?}\n{}",
                self.writes.all(),
                self.end_state(&store)
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Some(self.end_state(&store))
    }

    /// What is there after a deed, without what depends on the way.
    fn end_state(&self, store: &LocalStore) -> String {
        let mut text =
            format!("{:#?}\n", self.place.everything().iter().map(|line| line.split(' ').next()).collect::<Vec<_>>());
        for server in store.servers().state() {
            let status = server.status.clone().unwrap_or_default();
            text.push_str(&format!("{} {:?} {:?}\n", server.name_any(), status.phase, status.observed_generation));
            for condition in status.conditions.unwrap_or_default() {
                text.push_str(&format!("{} {} {}\n", condition.type_, condition.reason, condition.message));
            }
        }
        text
    }

    /// Does all deeds under daemons that die and are replaced; gives the state after each.
    fn live(&self, cut: Option<Cut>) -> Vec<String> {
        if let Some(cut) = cut {
            self.writes.cut(cut);
        }
        let mut states = Vec::new();
        for deed in DEEDS {
            deed(self);
            loop {
                // A runtime of its own, so that the daemon's background tasks die with it.
                let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let state = tokio.block_on(self.daemon());
                drop(tokio);
                if let Some(state) = state {
                    states.push(state);
                    break;
                }
                self.writes.heal();
            }
        }
        states
    }
}

fn open_store(place: &Place) -> Arc<LocalStore> {
    let secrets = Environment::new([("MCP_LOGIN_TOKEN".to_owned(), "1".to_owned())]);
    LocalStore::open(&place.path().join("state"), Arc::new(secrets), 7337).unwrap()
}

fn is_paused(server: &mcp_hub_crds::MCPServer) -> bool {
    let status = server.status.clone().unwrap_or_default();
    status.observed_generation == server.metadata.generation
        && status.conditions.unwrap_or_default().iter().any(|condition| condition.reason == "Paused")
}

#[test]
fn the_daemon_may_die_at_any_point() {
    let golden = World::new();
    let want = golden.live(None);
    let points = golden.writes.all();
    assert!(points.len() > 25, "the golden run is worth sweeping: {points:#?}");
    assert_eq!(golden.place.everything(), Vec::<String>::new(), "everything is deleted in the end");
    for (at, point) in points.iter().enumerate() {
        // A file or process that was dealt with and a daemon that died right after is the next point's lost request.
        let stored = point.starts_with("store:");
        for lost in [Lost::Request, Lost::Response].into_iter().filter(|lost| stored || *lost == Lost::Request) {
            let cut = Cut { at, lost, fatal: true };
            let world = World::new();
            let got = world.live(Some(cut));
            for (deed, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got, want, "after deed {deed}, cut at `{point}`: {cut:?}, did {:#?}", world.writes.all());
            }
        }
    }
}
