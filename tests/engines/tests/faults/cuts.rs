//! The crash sweep on a real engine: the daemon dies at any request that changes something there, which was lost or whose
//! answer was. The next daemon ends where an undisturbed one ends, and nothing is there twice or left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use mcp_hub_crds::manifest::{Document, parse};
use mcp_hub_engine_tests::{PATIENCE, Scene, UNITS, manifest};
use mcp_hub_local_runtime::docker::{DockerConfig, DockerRuntime};
use mcp_hub_local_runtime::store::LocalStore;
use mcp_hub_reconcile::controller::sweep;
use mcp_hub_reconcile::fake::{Cut, FakeSink, Lost, Writes};
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::{Ports, ResourceStore};
use mcp_hub_reconcile::status::is_ready;
use mcp_hub_secrets::Environment;
use mcp_hub_test_cluster::{EngineKind, Tap, Verdict};
use serde_json::json;
use tokio::runtime::Runtime;

/// What a user does, in turn; after each all has to settle. With a secret, which is no request to the engine but has to have
/// come to a server that is ready.
fn deeds() -> [Vec<Document>; 3] {
    let spec = |args: &[&str]| {
        let secret = json!({"name": "login", "key": "token"});
        json!({"env": [{"name": "TOKEN", "secretRef": secret}, {"name": "WORDS", "value": args.join(" ")}]})
    };
    let mut enclosed = spec(&["second"]);
    enclosed["permissions"] = json!({"network": {"egress": ["api.example.com:443"]}});
    let documents = |text: &str| parse(text, "servers.yaml".as_ref()).unwrap();
    [
        documents(&manifest("units", UNITS, &spec(&["first"]))),
        documents(&manifest("units", UNITS, &enclosed)),
        Vec::new(),
    ]
}

/// What outlives daemons.
struct World<'a> {
    /// Of the scene's own requests.
    tokio: &'a Runtime,
    scene: &'a Scene,
    tap: &'a Tap,
    writes: &'a Writes,
    state: tempfile::TempDir,
}

impl World<'_> {
    fn store(&self) -> Arc<LocalStore> {
        let secrets = Environment::new([("MCP_LOGIN_TOKEN".to_owned(), "1".to_owned())]);
        LocalStore::open(self.state.path(), Arc::new(secrets), 7337).unwrap()
    }

    /// A daemon's life: passes until all is settled, or until it is cut off; gives how it leaves everything, if it lived.
    async fn daemon(&self, documents: &[Document]) -> Option<Vec<String>> {
        let store = self.store();
        store.sync("servers.yaml".as_ref(), documents).unwrap();
        let config = DockerConfig { installation: store.installation(), ..self.scene.config_at(self.tap.address()) };
        let ports = Ports {
            store: store.clone(),
            runtime: DockerRuntime::start(config, self.scene.secrets.clone()).await,
            sink: Arc::new(FakeSink::new(Writes::default())),
            installation: store.installation(),
        };
        // As at the start of every daemon; what it could not do is for the next one.
        sweep(&ports).await.ok();
        let (started, mut calm) = (Instant::now(), 0);
        while calm < 4 {
            let count = self.writes.count();
            for server in store.servers().state() {
                // A failed pass says so in the status, and is repeated.
                pass::server(&server, &ports).await.ok();
            }
            if self.writes.was_cut() {
                return None;
            }
            let settled = store.servers().state().iter().all(|server| is_ready(server));
            calm = if settled && self.writes.count() == count { calm + 1 } else { 0 };
            assert!(started.elapsed() < PATIENCE, "does not settle: {:#?}", self.writes.all());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let told = store.servers().state().into_iter().map(|server| {
            let status = server.status.clone().unwrap_or_default();
            format!("{} {:?} {:?}", server.name_any(), status.phase, status.observed_generation)
        });
        Some(told.collect())
    }

    /// All deeds under daemons that die and are replaced; gives what is there after each.
    fn live(&self, cut: Option<Cut>) -> Vec<Vec<String>> {
        cut.into_iter().for_each(|cut| self.writes.cut(cut));
        // A runtime of its own, so that the daemon's background tasks die with it.
        let life = |documents: &[Document]| runtime().block_on(self.daemon(documents));
        let mut states = Vec::new();
        for documents in &deeds() {
            let told = life(documents).or_else(|| {
                self.writes.heal();
                life(documents)
            });
            let there = self.tokio.block_on(self.scene.everybodys());
            let mut state: Vec<String> = there.iter().map(|line| nameless(line)).chain(told.unwrap()).collect();
            state.sort();
            states.push(state);
        }
        states
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Without the parts of a name that tell one installation and uid from another.
fn nameless(line: &str) -> String {
    let is_random = |part: &str| part.len() >= 8 && part.chars().all(|c| c.is_ascii_hexdigit());
    let mut named = String::new();
    for piece in line.split_inclusive(['-', '.', '/', ' ']) {
        let part = piece.trim_end_matches(['-', '.', '/', ' ']);
        if !is_random(part) {
            named.push_str(piece);
            continue;
        }
        named.push('#');
        match &piece[part.len()..] {
            // How a container does is not its name.
            " " => break,
            end => named.push_str(end),
        }
    }
    named
}

#[test]
fn the_daemon_may_die_at_any_request_to_the_engine() {
    let tokio = runtime();
    let scene = tokio.block_on(Scene::up(EngineKind::Docker));
    scene.secrets.set("login", "token", "1");
    let writes = Writes::default();
    let log = writes.clone();
    let tap = Tap::before(&scene.engine, move |line| {
        if ["GET ", "HEAD "].iter().any(|reads| line.starts_with(reads)) {
            return Verdict::Pass;
        }
        let mut done = false;
        match log.write(nameless(line), || done = true) {
            Ok(()) => Verdict::Pass,
            Err(_) if done => Verdict::LoseAnswer,
            Err(_) => Verdict::LoseRequest,
        }
    })
    .unwrap();
    let world =
        || World { tokio: &tokio, scene: &scene, tap: &tap, writes: &writes, state: tempfile::tempdir().unwrap() };

    let want = world().live(None);
    let points = writes.all();
    assert!(points.len() > 10, "the golden run is worth sweeping: {points:#?}");
    assert_eq!(want[2], Vec::<String>::new(), "everything is deleted in the end");
    for (at, point) in points.iter().enumerate() {
        for lost in [Lost::Request, Lost::Response] {
            let before = writes.count();
            let got = world().live(Some(Cut { at, lost, fatal: true }));
            assert_eq!(got, want, "cut at `{point}` ({lost:?}), did {:#?}", writes.since(before));
        }
    }
}
