//! A test's world: the three fakes, passes over them, and what a reader wants to see of the outcome.

#![allow(dead_code, unreachable_pub, reason = "each test binary includes it and uses a part")]

use std::fmt::Write;

use kube::ResourceExt;
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_reconcile::fake::{FakeRuntime, FakeSink, FakeStore, Writes};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::{EventKind, Ports, ResourceStore};
use serde_json::{Value, json};

#[derive(Debug)]
pub struct Scenario {
    pub store: FakeStore,
    pub runtime: FakeRuntime,
    pub sink: FakeSink,
    pub writes: Writes,
}

/// More rounds than any story takes.
const ROUNDS: usize = 20;

impl Scenario {
    pub fn new() -> Self {
        let writes = Writes::default();
        Self {
            store: FakeStore::new(writes.clone()),
            runtime: FakeRuntime::new(writes.clone()),
            sink: FakeSink::new(writes.clone()),
            writes,
        }
    }

    pub fn ports(&self) -> Ports {
        Ports {
            store: std::sync::Arc::new(self.store.clone()),
            runtime: std::sync::Arc::new(self.runtime.clone()),
            sink: std::sync::Arc::new(self.sink.clone()),
            installation: Installation::new("test", [7; 32]),
        }
    }

    /// The daemon dies and a new one comes.
    pub fn restart(&mut self) {
        self.writes.heal();
        self.runtime = self.runtime.restarted();
    }

    /// One pass over each server, then over each hub; gives what was written.
    pub async fn round(&self) -> Vec<String> {
        let (ports, count) = (self.ports(), self.writes.count());
        let mut servers = self.store.servers().state();
        servers.sort_by_key(|server| server.name_any());
        for server in servers {
            // A pass that fails says so in the status, which is what tests look at.
            pass::server(&server, &ports).await.ok();
        }
        let mut hubs = self.store.hubs().state();
        hubs.sort_by_key(|hub| hub.name_any());
        for hub in hubs {
            pass::hub(&hub, &ports).await.ok();
        }
        self.writes.since(count)
    }

    /// Rounds until one writes nothing, then two more that must not write either; gives what was written.
    pub async fn settle(&self) -> Vec<String> {
        let mut written = Vec::new();
        for _ in 0..ROUNDS {
            let new = self.round().await;
            if new.is_empty() {
                for _ in 0..2 {
                    assert_eq!(self.round().await, Vec::<String>::new(), "a write after settling");
                }
                return written;
            }
            written.extend(new);
        }
        panic!("does not settle: {written:#?}");
    }

    pub fn uid(&self, server: &str) -> String {
        self.store.find_server(server).and_then(|server| server.uid()).expect("the server is in the store")
    }

    /// A server's status as people read it.
    pub fn status(&self, server: &str) -> String {
        let server = self.store.find_server(server).expect("the server is in the store");
        let Some(status) = &server.status else { return "no status".to_owned() };
        let mut text = String::new();
        writeln!(
            text,
            "{} (generation {})",
            status.phase.expect("a phase").as_str(),
            status.observed_generation.unwrap()
        )
        .unwrap();
        conditions(&mut text, status.conditions.as_deref());
        let found = [
            ("endpoint", status.endpoint.clone()),
            ("version", status.resolved.as_ref().and_then(|resolved| resolved.version.clone())),
            ("server", status.server.as_ref().map(|server| format!("{} {}", server.name, server.version))),
            ("tools", status.tools.as_ref().map(|tools| tools.count.to_string())),
            ("restarts", status.restarts.filter(|count| *count > 0).map(|count| count.to_string())),
            ("last error", status.last_error.clone()),
        ];
        for (name, value) in found {
            if let Some(value) = value {
                writeln!(text, "{name}: {value}").unwrap();
            }
        }
        text
    }

    /// As [`Scenario::status`].
    pub fn hub_status(&self, hub: &str) -> String {
        let hub = self.store.find_hub(hub).expect("the hub is in the store");
        let Some(status) = &hub.status else { return "no status".to_owned() };
        let mut text = String::new();
        let servers = status.servers.as_ref().map(|servers| servers.summary.clone()).unwrap_or_default();
        writeln!(text, "{servers} servers (generation {})", status.observed_generation.unwrap()).unwrap();
        conditions(&mut text, status.conditions.as_deref());
        if let Some(endpoint) = &status.endpoint {
            writeln!(text, "endpoint: {endpoint}").unwrap();
        }
        text
    }

    /// `Ready` of a server: its status and reason.
    pub fn ready(&self, server: &str) -> String {
        let server = self.store.find_server(server).expect("the server is in the store");
        let conditions = server.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").expect("condition Ready");
        format!("{} {}", ready.status, ready.reason)
    }

    /// Events so far, one a line.
    pub fn events(&self) -> String {
        let mut text = String::new();
        for event in self.store.events() {
            let kind = match event.kind {
                EventKind::Normal => "  ",
                EventKind::Warning => "! ",
            };
            writeln!(text, "{kind}{} {}: {}", event.owner.name, event.reason, event.message).unwrap();
        }
        text
    }

    /// All that is there in the end, without what depends on the way: times and the count of generations observed.
    pub fn end_state(&self) -> String {
        let mut text = String::new();
        for line in self.runtime.inventory() {
            writeln!(text, "{line}").unwrap();
        }
        let mut servers = self.store.servers().state();
        servers.sort_by_key(|server| server.name_any());
        for server in servers {
            writeln!(text, "{}:\n{}", server.name_any(), self.status(&server.name_any())).unwrap();
        }
        let mut hubs = self.store.hubs().state();
        hubs.sort_by_key(|hub| hub.name_any());
        for hub in hubs {
            let name = hub.name_any();
            writeln!(text, "{name}:\n{}{:?}", self.hub_status(&name), self.sink.config(&name)).unwrap();
        }
        text
    }
}

fn conditions(text: &mut String, conditions: Option<&[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]>) {
    for condition in conditions.into_iter().flatten() {
        let sign = if condition.status == "True" { '+' } else { '-' };
        writeln!(text, "{sign} {} {}: {}", condition.type_, condition.reason, condition.message).unwrap();
    }
}

/// A server of this spec.
pub fn server(name: &str, spec: Value) -> MCPServer {
    serde_json::from_value(json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": name}, "spec": spec,
    }))
    .expect("a spec of MCPServer")
}

/// A server that is a program of the machine, with these arguments.
pub fn command(name: &str, args: &[&str]) -> MCPServer {
    server(name, json!({"source": {"command": {"path": "./run"}}, "args": args}))
}

pub fn with(mut server: MCPServer, change: impl FnOnce(&mut MCPServer)) -> MCPServer {
    change(&mut server);
    server
}

pub fn hub(name: &str, spec: Value) -> MCPHub {
    serde_json::from_value(json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": name}, "spec": spec,
    }))
    .expect("a spec of MCPHub")
}
