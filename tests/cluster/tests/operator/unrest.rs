//! People who keep changing specs, at random, and an eye on the pods meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kube::runtime::{WatchStreamExt, watcher};
use mcp_hub_crds::{MCPHub, MCPServer};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::place::{Place, living, server};

/// Marsaglia's xorshift64: a seed tells the whole run, as far as time does not.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by `MCP_HUB_SEED`, or by the clock; the seed is printed.
    pub(crate) fn seeded() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let given = std::env::var("MCP_HUB_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::try_from(now % u128::from(u64::MAX)).unwrap() | 1);
        println!("MCP_HUB_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// Servers that keep one copy each, whatever changes, and servers that also stop, grow and go.
const STEADY: [&str; 3] = ["steady-0", "steady-1", "steady-2"];
const WILD: [&str; 3] = ["wild-0", "wild-1", "wild-2"];
const HUB: &str = "main";

/// What people want at the moment.
#[derive(Debug)]
pub(crate) struct Wishes<'a> {
    place: &'a Place,
    servers: BTreeMap<&'static str, Value>,
    pub(crate) changes: usize,
}

impl<'a> Wishes<'a> {
    /// Makes a hub and all servers.
    pub(crate) async fn begin(place: &'a Place) -> Self {
        let mut wishes = Self { place, servers: BTreeMap::new(), changes: 1 };
        place.hub(HUB, &json!({"gateway": {"replicas": 1}})).await;
        for name in STEADY.into_iter().chain(WILD) {
            wishes.want(name, server(json!({"env": [{"name": "ROUND", "value": "0"}]}))).await;
        }
        wishes
    }

    async fn want(&mut self, name: &'static str, spec: Value) {
        self.place.server(name, &spec).await;
        self.servers.insert(name, spec);
        self.changes += 1;
    }

    /// Changes something.
    pub(crate) async fn change(&mut self, random: &mut Random) {
        let round = self.changes.to_string();
        let pick = |random: &mut Random, names: [&'static str; 3]| names[usize::try_from(random.below(3)).unwrap()];
        let env = json!([{"name": "ROUND", "value": round}]);
        match random.below(8) {
            0..4 => {
                let name = pick(random, STEADY);
                let mut spec = server(json!({"env": env}));
                match random.below(4) {
                    0 => spec["args"] = json!(["--round", round]),
                    1 => spec["resources"] = json!({"limits": {"memory": format!("{round}Mi")}}),
                    2 => {
                        spec["permissions"] =
                            json!({"network": {"egress": [format!("10.0.0.1:{}", 1000 + self.changes)]}})
                    }
                    _ => {}
                }
                self.want(name, spec).await;
            }
            4 => {
                let replicas = 1 + random.below(2);
                self.place.hub(HUB, &json!({"gateway": {"replicas": replicas}})).await;
                self.changes += 1;
            }
            5 if self.servers.contains_key(WILD[0]) => {
                self.place.api::<MCPServer>().delete(WILD[0], &DeleteParams::default()).await.unwrap();
                self.servers.remove(WILD[0]);
                self.changes += 1;
            }
            6 => {
                let replicas = random.below(3);
                self.want(pick(random, WILD), server(json!({"env": env, "replicas": replicas}))).await;
            }
            _ => {
                let paused = random.below(2) == 0;
                self.want(pick(random, WILD), server(json!({"env": env, "paused": paused}))).await;
            }
        }
    }

    /// Lets everything run that was stopped: status remembers of a stopped server how it was when it ran.
    pub(crate) async fn resume(&mut self) {
        let stopped = |spec: &Value| spec["paused"] == true || spec["replicas"] == 0;
        let names: Vec<&'static str> =
            self.servers.iter().filter(|(_, spec)| stopped(spec)).map(|(name, _)| *name).collect();
        for name in names {
            self.want(name, server(json!({"env": [{"name": "ROUND", "value": "resumed"}]}))).await;
        }
    }

    /// Nothing that was wanted is lost, and what is not wanted is gone.
    pub(crate) async fn assert_granted(&self) {
        let servers = self.place.list::<MCPServer>().await;
        assert_eq!(servers.len(), self.servers.len());
        let children = self.place.children().await;
        for (name, spec) in &self.servers {
            let deployment = children.get(&format!("Deployment mcp-{name}"));
            if spec["paused"] == true || spec["replicas"] == 0 {
                assert_eq!(deployment, None, "{name} is to be stopped");
                continue;
            }
            let deployment = deployment.unwrap_or_else(|| panic!("{name} has no Deployment"));
            let env = deployment.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap();
            assert!(env.contains(&spec["env"][0]), "{name}: {env:?} and not {}", spec["env"]);
            assert_eq!(deployment["spec"]["replicas"], spec.get("replicas").cloned().unwrap_or(json!(1)), "{name}");
        }
        let hubs = self.place.list::<MCPHub>().await;
        assert_eq!(hubs.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), [HUB]);
    }
}

/// Counts the living pods of the steady servers as they come and go.
#[derive(Debug)]
pub(crate) struct Census {
    most: Arc<Mutex<BTreeMap<String, usize>>>,
    counting: JoinHandle<()>,
}

impl Census {
    pub(crate) fn of(place: &Place) -> Self {
        let most: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let events = watcher(place.api::<Pod>(), watcher::Config::default()).default_backoff();
        let counting = tokio::spawn({
            let most = most.clone();
            async move {
                let mut events = std::pin::pin!(events);
                let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
                let mut listed = BTreeMap::new();
                while let Some(event) = events.next().await {
                    match event {
                        Ok(watcher::Event::Init) => listed.clear(),
                        Ok(watcher::Event::InitApply(pod)) => drop(listed.insert(pod.uid().unwrap(), pod)),
                        Ok(watcher::Event::InitDone) => pods = std::mem::take(&mut listed),
                        Ok(watcher::Event::Apply(pod)) => drop(pods.insert(pod.uid().unwrap(), pod)),
                        Ok(watcher::Event::Delete(pod)) => drop(pods.remove(&pod.uid().unwrap())),
                        // The API server is away.
                        Err(_) => {}
                    }
                    let now: Vec<Pod> = pods.values().cloned().collect();
                    let mut most = most.lock().unwrap();
                    for (owner, count) in living(&now) {
                        let known = most.entry(owner).or_default();
                        *known = count.max(*known);
                    }
                }
            }
        });
        Self { most, counting }
    }

    /// Never was there a pod more than the one that a rolling update brings.
    pub(crate) fn assert_never_too_many(&self) {
        let most = self.most.lock().unwrap();
        for name in STEADY {
            assert!((1..=2).contains(&most[name]), "{name} had {} pods at a time", most[name]);
        }
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.counting.abort();
    }
}
