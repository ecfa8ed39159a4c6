//! Random walks: users create, change and delete, people reach into objects that are not theirs, the weather is bad, and
//! operators die. In the end all is as if only the last specs had ever been written.
//!
//! `SIM_SEED` repeats a run, `SIM_CASES` walks longer.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use mcp_hub_fakeapi::{Cut, Fault, When};
use mcp_hub_sim::bridges::Fate;
use mcp_hub_sim::canonical::{assert_same, end_state};
use mcp_hub_sim::gateways::Remote;
use mcp_hub_sim::oracle::{THREE_PASSES, calm, is_at_rest, truth};
use mcp_hub_sim::specs::{NAMESPACE, REMOTE, hub, image, remote, server, with_secret};
use mcp_hub_sim::world::{LONG_QUIET, OPERATOR, installation};
use mcp_hub_sim::{Operator, World};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::{Value, json};

/// Walks of a run that is told no other number: about half a minute.
const CASES: u64 = 8;
const SERVERS: [&str; 3] = ["a", "b", "c"];
const HUBS: [&str; 2] = ["h", "i"];
const KINDS: [&str; 10] = [
    "MCPServer",
    "MCPHub",
    "Deployment",
    "Service",
    "NetworkPolicy",
    "Secret",
    "Pod",
    "PodDisruptionBudget",
    "Ingress",
    "HTTPRoute",
];
const FAULTS: [Fault; 9] = [
    Fault::RequestLost,
    Fault::ResponseLost,
    Fault::Answer(409),
    Fault::Answer(422),
    Fault::Answer(500),
    Fault::Answer(503),
    Fault::TooManyRequests(3),
    Fault::Hang,
    Fault::HangAfter,
];
const FATES: [Fate; 6] = [Fate::Ready, Fate::Asleep, Fate::Starting, Fate::CrashLoop, Fate::NoImage, Fate::NoRoom];
const REMOTES: [Remote; 3] = [Remote::Ready, Remote::Unreachable, Remote::AuthRequired];

#[derive(Debug, Clone)]
enum Deed {
    Server {
        name: usize,
        spec: usize,
    },
    DeleteServer {
        name: usize,
    },
    Hub {
        name: usize,
        spec: usize,
    },
    DeleteHub {
        name: usize,
    },
    DeleteChild {
        nth: usize,
    },
    EditChild {
        nth: usize,
        how: usize,
    },
    Fare {
        server: usize,
        fate: usize,
    },
    FareRemote {
        remote: usize,
    },
    /// Gateways have the server woken.
    Call {
        server: usize,
    },
    /// Calls are under way to the server from now on, or no more.
    UnderWay {
        server: usize,
        calls: bool,
    },
    /// The registry does not tell of images for a while.
    Busy {
        times: u32,
    },
    DeleteSecrets,
    Fault {
        fault: usize,
        nth: u64,
        times: u64,
        writes: bool,
    },
    Hold {
        kind: usize,
    },
    Release {
        kind: usize,
    },
    CutWatches {
        kind: usize,
        closed: bool,
    },
    Compact,
    Kill,
    Wait {
        ms: u64,
    },
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        6 => (0..SERVERS.len(), 0..server_specs().len()).prop_map(|(name, spec)| Deed::Server { name, spec }),
        2 => (0..SERVERS.len()).prop_map(|name| Deed::DeleteServer { name }),
        3 => (0..HUBS.len(), 0..hub_specs().len()).prop_map(|(name, spec)| Deed::Hub { name, spec }),
        1 => (0..HUBS.len()).prop_map(|name| Deed::DeleteHub { name }),
        3 => (0..60_usize).prop_map(|nth| Deed::DeleteChild { nth }),
        3 => (0..60_usize, 0..6_usize).prop_map(|(nth, how)| Deed::EditChild { nth, how }),
        2 => (0..SERVERS.len(), 0..FATES.len()).prop_map(|(server, fate)| Deed::Fare { server, fate }),
        1 => (0..REMOTES.len()).prop_map(|remote| Deed::FareRemote { remote }),
        2 => (0..SERVERS.len()).prop_map(|server| Deed::Call { server }),
        1 => (0..SERVERS.len(), any::<bool>()).prop_map(|(server, calls)| Deed::UnderWay { server, calls }),
        1 => (1..4_u32).prop_map(|times| Deed::Busy { times }),
        1 => Just(Deed::DeleteSecrets),
        3 => (0..FAULTS.len(), 1..6_u64, 1..6_u64, any::<bool>())
            .prop_map(|(fault, nth, times, writes)| Deed::Fault { fault, nth, times, writes }),
        2 => (0..KINDS.len()).prop_map(|kind| Deed::Hold { kind }),
        2 => (0..KINDS.len()).prop_map(|kind| Deed::Release { kind }),
        1 => (0..KINDS.len(), any::<bool>()).prop_map(|(kind, closed)| Deed::CutWatches { kind, closed }),
        1 => Just(Deed::Compact),
        1 => Just(Deed::Kill),
        6 => prop_oneof![4 => 0..300_u64, 4 => 300..20_000_u64, 1 => 60_000..300_000_u64].prop_map(|ms| Deed::Wait { ms }),
    ];
    proptest::collection::vec(deed, 5..40)
}

fn server_specs() -> Vec<Value> {
    let with = |more: Value| {
        let mut spec = image("registry.example.com/one:1");
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    vec![
        image("registry.example.com/one:1"),
        image("registry.example.com/two:1"),
        with(json!({"replicas": 3, "args": ["--more"]})),
        with(json!({"transport": {"type": "streamable-http", "port": 8000}, "exposeTo": ["elsewhere"]})),
        with(json!({"volumes": [{"name": "data", "mountPath": "/data", "pvc": "data"}], "workingDir": "/data"})),
        with(json!({"permissions": {"network": {"egress": ["10.0.0.0/8:5432"]}}, "tools": {"deny": ["delete_*"]}})),
        with(json!({"permissions": {"network": {"egress": ["api.example.com:443", "*.example.org:8443"]}}})),
        with(json!({"lifecycle": {"mode": "onDemand", "idleTimeout": "1m"}})),
        with(json!({"lifecycle": {"mode": "onDemand", "idleTimeout": "3m"}, "replicas": 2})),
        with(json!({"paused": true})),
        // Refused: a cluster has no such runtime.
        with(json!({"runtime": "docker"})),
        with_secret("registry.example.com/two:1"),
        remote(),
    ]
}

fn hub_specs() -> Vec<Value> {
    vec![
        json!({}),
        json!({"naming": {"separator": "-"}}),
        json!({"gateway": {"replicas": 1}}),
        json!({"gateway": {"port": 9000, "replicas": 3}}),
        json!({"gateway": {"ingress": {"host": "hub.example.com", "className": "web"}}}),
        json!({"gateway": {"httpRoute": {"host": "hub.example.com", "gateway": "public"}}}),
        json!({"gateway": {"tls": {"secretRef": {"name": "cert"}}, "ingress": {"host": "hub.example.com"}}}),
    ]
}

/// Whether nothing new comes of this spec: what it ends in depends on what was before.
fn halts(spec: &Value) -> bool {
    spec["paused"] == true || spec["runtime"].is_string()
}

/// One for all walks, so that end states can be compared.
static CERTIFICATE: LazyLock<Value> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["hub.example.com".to_owned()]).unwrap();
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "cert", "namespace": NAMESPACE},
        "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()},
    })
});

fn edit(object: &mut Value, how: usize) {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    match how {
        0 => object["metadata"]["labels"]["mcphub.io/owner-uid"] = json!("evil"),
        1 => object["metadata"]["annotations"] = json!({}),
        _ => {}
    }
    if kind == "Secret" && how == 2 {
        object["data"] = json!({"token": "ZXZpbA=="});
    } else if kind == "Secret" && how > 2 {
        object["data"]["more"] = json!("bW9yZQ==");
    }
    let spec = &mut object["spec"];
    match (kind.as_str(), how) {
        ("Pod" | "Secret", _) | (_, 0 | 1) => {}
        ("Deployment", 2) => spec["replicas"] = json!(4),
        ("Deployment", 3) => spec["template"]["spec"]["containers"][0]["args"] = json!(["evil"]),
        ("Deployment", _) => spec["template"]["spec"]["hostNetwork"] = json!(true),
        ("Service", _) => spec["selector"] = json!({"app": "evil"}),
        ("NetworkPolicy", 2) => spec["ingress"] = json!([{}]),
        ("NetworkPolicy", _) => spec["policyTypes"] = json!(["Ingress", "Egress"]),
        ("PodDisruptionBudget", _) => spec["maxUnavailable"] = json!(2),
        ("Ingress", _) => spec["rules"][0]["host"] = json!("evil.example.com"),
        ("HTTPRoute", _) => spec["hostnames"] = json!(["evil.example.com"]),
        _ => {}
    }
}

/// A world in which things happen, and what users want by now.
struct Walk {
    world: World,
    operator: Option<Operator>,
    starts: usize,
    wanted: BTreeMap<String, Value>,
}

impl Walk {
    fn new() -> Self {
        let world = World::new();
        secrets(&world);
        let mut walk = Self { world, operator: None, starts: 0, wanted: BTreeMap::new() };
        walk.start();
        walk
    }

    fn start(&mut self) {
        self.starts += 1;
        self.operator = Some(self.world.operator(&self.starts.to_string()));
    }

    fn want(&mut self, object: Value) {
        self.world.apply(&object);
        self.wanted.insert(format!("{}/{}", object["kind"], object["metadata"]["name"]), object);
    }

    fn unwant(&mut self, kind: &str, name: &str) {
        self.world.api.delete(kind, NAMESPACE, name);
        self.wanted.remove(&format!("{}/{}", json!(kind), json!(name)));
    }

    async fn act(&mut self, deed: &Deed) {
        match *deed {
            Deed::Server { name, spec } => self.want(server(SERVERS[name], &server_specs()[spec])),
            Deed::DeleteServer { name } => self.unwant("MCPServer", SERVERS[name]),
            Deed::Hub { name, spec } => self.want(hub(HUBS[name], &hub_specs()[spec])),
            Deed::DeleteHub { name } => self.unwant("MCPHub", HUBS[name]),
            Deed::Kill => {
                if let Some(operator) = self.operator.take() {
                    operator.kill().await;
                }
                self.start();
            }
            Deed::Wait { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Deed::Call { server } => self.call(SERVERS[server]).await,
            _ => self.happen(deed),
        }
    }

    /// As every gateway that there may be, with a call for the server.
    async fn call(&self, server: &str) {
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
        let Some(server) = self.world.api.get("MCPServer", NAMESPACE, server) else { return };
        for hub in self.world.api.list("MCPHub").iter().map(uid) {
            if let Some(operator) = &self.operator {
                operator.wake(&hub, &installation().wake_token(&hub), &uid(&server)).await;
            }
        }
    }

    /// What others than users do.
    fn happen(&self, deed: &Deed) {
        let world = &self.world;
        match *deed {
            Deed::DeleteChild { nth } => {
                let children = super::children(world, &KINDS);
                if let Some((kind, child)) = children.get(nth % children.len().max(1)) {
                    world.api.delete(kind, NAMESPACE, child["metadata"]["name"].as_str().unwrap());
                }
            }
            Deed::EditChild { nth, how } => {
                let children = super::children(world, &KINDS);
                if let Some((kind, child)) = children.get(nth % children.len().max(1)) {
                    let name = child["metadata"]["name"].as_str().unwrap();
                    // What the API server refuses of it, it would refuse to people as well.
                    world.api.edit(kind, NAMESPACE, name, |object| edit(object, how)).ok();
                }
            }
            Deed::Fare { server, fate } => world.fate(SERVERS[server], FATES[fate]),
            Deed::FareRemote { remote } => world.gateways.set(REMOTE, REMOTES[remote]),
            Deed::UnderWay { server, calls } => {
                if let Some(server) = world.api.get("MCPServer", NAMESPACE, SERVERS[server]) {
                    world.gateways.call(server["metadata"]["uid"].as_str().unwrap(), calls);
                }
            }
            Deed::Busy { times } => {
                for image in ["registry.example.com/one:1", "registry.example.com/two:1"] {
                    world.registry.fail(image, times);
                }
            }
            Deed::DeleteSecrets => {
                for name in ["docs", "github", "cert"] {
                    world.api.delete("Secret", NAMESPACE, name);
                }
            }
            Deed::Fault { fault, nth, times, writes } => {
                let when = if writes { When::write() } else { When::any() };
                world.api.inject(when.user_agent(OPERATOR).nth(nth).times(times), FAULTS[fault]);
            }
            Deed::Hold { kind } => world.api.hold(KINDS[kind]),
            Deed::Release { kind } => world.api.release(KINDS[kind]),
            Deed::CutWatches { kind, closed } => {
                world.api.cut_watches(KINDS[kind], if closed { Cut::Closed } else { Cut::Broken });
            }
            Deed::Compact => world.api.compact(),
            Deed::Server { .. }
            | Deed::DeleteServer { .. }
            | Deed::Hub { .. }
            | Deed::DeleteHub { .. }
            | Deed::Kill
            | Deed::Call { .. }
            | Deed::Wait { .. } => {}
        }
    }

    /// The weather clears up; only what users wrote, and how servers fare, remains.
    fn clear_up(&self) {
        self.world.api.clear_faults();
        for kind in KINDS {
            self.world.api.release(kind);
        }
        for server in self.world.api.list("MCPServer") {
            self.world.gateways.call(server["metadata"]["uid"].as_str().unwrap(), false);
        }
    }

    /// And now all servers run and fare well, have their secrets, and are offered by a hub.
    async fn mend(&mut self) {
        for server in SERVERS {
            self.world.fate(server, Fate::Ready);
        }
        self.world.gateways.set(REMOTE, Remote::Ready);
        secrets(&self.world);
        let halted: Vec<Value> = self.wanted.values().filter(|object| halts(&object["spec"])).cloned().collect();
        for object in halted {
            self.want(server(object["metadata"]["name"].as_str().unwrap(), &server_specs()[0]));
        }
        if !self.wanted.values().any(|object| object["kind"] == "MCPHub") {
            self.want(hub(HUBS[0], &json!({})));
        }
        self.world.settle(LONG_QUIET).await;
        for server in self.world.api.list("MCPServer").iter().filter(|server| is_at_rest(server)) {
            self.call(server["metadata"]["name"].as_str().unwrap()).await;
        }
    }
}

fn secrets(world: &World) {
    world.secret("github", "token", "a-token-of-github");
    world.secret("docs", "token", "a-token-of-docs");
    world.apply(&CERTIFICATE);
}

async fn walk(deeds: &[Deed]) {
    let mut walk = Walk::new();
    for deed in deeds {
        walk.act(deed).await;
    }
    walk.clear_up();
    walk.world.settle(LONG_QUIET).await;
    // What tells nobody of its change, such as a secret, is seen at the hourly look.
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    walk.world.settle(LONG_QUIET).await;
    truth(&walk.world, "when the weather has cleared up");
    walk.mend().await;
    walk.world.settle(LONG_QUIET).await;
    truth(&walk.world, "when all is mended");

    let fresh = World::new();
    let _operator = fresh.operator("fresh");
    secrets(&fresh);
    for object in walk.wanted.values() {
        fresh.apply(object);
    }
    fresh.settle(LONG_QUIET).await;
    assert_same(&end_state(&walk.world), &end_state(&fresh), "a fresh installation");
    calm(&walk.world, THREE_PASSES, "after the walk").await;
    walk.world.assert_clean();
}

#[test]
fn every_walk_ends_where_a_fresh_installation_ends() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let random = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
    let seed = number("SIM_SEED").unwrap_or_else(random);
    let config = Config {
        cases: u32::try_from(number("SIM_CASES").unwrap_or(CASES)).unwrap(),
        failure_persistence: None,
        // Milliseconds.
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let result = runner.run(&deeds(), |deeds| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.map_err(|error| TestCaseError::fail(error.to_string()))?.block_on(walk(&deeds));
        Ok(())
    });
    if let Err(error) = result {
        eprintln!("SIM_SEED={seed} cargo test -p mcp-hub-sim --test weather walk");
        panic!("{error}");
    }
}
