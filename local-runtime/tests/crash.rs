//! The crash sweep on real processes: the daemon dies before any file that it writes, any process that it starts or
//! ends, any status that it stores. The next daemon ends where an undisturbed one ends, and nothing is orphaned.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod place;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use mcp_hub_local_runtime::process::ProcessRuntime;
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_reconcile::fake::{Cut, FakeSink, FakeStore, Lost, Writes};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::{Ports, ResourceStore};
use mcp_hub_reconcile::status::is_ready;
use place::{PATIENCE, Place};
use serde_json::json;

/// What outlives a daemon, and the count of what daemons do.
struct World {
    place: Place,
    store: FakeStore,
    writes: Writes,
}

/// What users do, in turn; after each all has to settle.
const DEEDS: [fn(&World); 4] = [create, change, stop, delete];

fn create(w: &World) {
    let env = json!({"env": [{"name": "TOKEN", "secretRef": {"name": "login", "key": "token"}}]});
    w.store.apply_server(w.place.server_with("tiny", &["stray"], env));
}

fn change(w: &World) {
    let env = json!({"env": [{"name": "TOKEN", "secretRef": {"name": "login", "key": "token"}}]});
    w.store.apply_server(w.place.server_with("tiny", &["plain", "changed"], env));
}

fn stop(w: &World) {
    w.store.apply_server(w.place.server_with("tiny", &["plain"], json!({"paused": true})));
}

fn delete(w: &World) {
    w.store.delete("tiny");
}

impl World {
    fn new() -> Self {
        let place = Place::new();
        place.secrets.set("login", "token", "1");
        let writes = Writes::default();
        let store = FakeStore::new(writes.clone());
        store.set_secret("login", "token", Some("1"));
        Self { place, store, writes }
    }

    /// A daemon's life: passes until all is settled, or until it is cut off; gives whether it lived.
    async fn daemon(&self) -> bool {
        let hook = {
            let writes = self.writes.clone();
            move |deed: &'static str| writes.write(deed, || ()).is_ok()
        };
        let process =
            ProcessRuntime::with_hook(self.place.config(), self.place.secrets.clone(), Arc::new(hook)).unwrap();
        let ports = Ports {
            store: Arc::new(self.store.clone()),
            runtime: Arc::new(RuntimeSet::new(process)),
            sink: Arc::new(FakeSink::new(Writes::default())),
            installation: Installation::new(&self.place.installation, [7; 32]),
        };
        let started = Instant::now();
        let mut calm = 0;
        while calm < 4 {
            let count = self.writes.count();
            for server in self.store.servers().state() {
                // A failed pass says so in the status, and is repeated.
                pass::server(&server, &ports).await.ok();
                if self.writes.was_cut() {
                    return false;
                }
            }
            let settled = self.store.servers().state().iter().all(|server| is_ready(server) || is_paused(server));
            calm = if settled && self.writes.count() == count { calm + 1 } else { 0 };
            assert!(started.elapsed() < PATIENCE, "does not settle: {:#?}\n{}", self.writes.all(), self.end_state());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// What is there after a deed, without what depends on the way.
    fn end_state(&self) -> String {
        let mut text =
            format!("{:#?}\n", self.place.everything().iter().map(|line| line.split(' ').next()).collect::<Vec<_>>());
        for server in self.store.servers().state() {
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
                let lived = tokio.block_on(self.daemon());
                drop(tokio);
                if lived {
                    break;
                }
                self.writes.heal();
            }
            states.push(self.end_state());
        }
        states
    }
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
        let stored = point.starts_with("status") || point.starts_with("release");
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
