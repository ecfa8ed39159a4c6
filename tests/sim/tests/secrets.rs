//! Secrets: awaited, followed, and shown nowhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mcp_hub_fakeapi::FakeApi;
use mcp_hub_sim::World;
use mcp_hub_sim::canonical::{assert_same, end_state};
use mcp_hub_sim::oracle::{THREE_PASSES, calm, condition, is_ready, leaks, truth};
use mcp_hub_sim::specs::{NAMESPACE, hub, remote, server, with_secret};
use mcp_hub_sim::world::{QUIET, installation};
use serde_json::json;
use tracing_subscriber::util::SubscriberInitExt;

const GITHUB: &str = "a-token-of-github";
const DOCS: &str = "a-token-of-docs";

fn install(world: &World) {
    world.apply(&server("github", &with_secret("registry.example.com/github:1")));
    world.apply(&server("docs", &remote()));
    world.apply(&hub("default", &json!({})));
}

fn reason(api: &FakeApi, name: &str) -> String {
    let server = api.get("MCPServer", NAMESPACE, name).unwrap();
    condition(&server, "Ready").map(|ready| ready["reason"].as_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn servers_wait_for_their_secrets_and_start_when_they_come() {
    let world = World::new();
    let _operator = world.operator("one");
    install(&world);
    world.settle(QUIET).await;
    for name in ["github", "docs"] {
        assert_eq!(reason(&world.api, name), "SecretMissing", "{name}");
    }
    assert_eq!(world.api.get("Deployment", NAMESPACE, "mcp-github"), None, "nothing starts without its secret");
    truth(&world, "without secrets");
    calm(&world, THREE_PASSES, "without secrets").await;

    world.secret("github", "token", GITHUB);
    world.secret("docs", "token", DOCS);
    let ready =
        |api: &FakeApi| ["github", "docs"].iter().all(|name| is_ready(&api.get("MCPServer", NAMESPACE, name).unwrap()));
    world.api.wait_until(Duration::from_secs(30), ready).await.unwrap();
    world.settle(QUIET).await;
    truth(&world, "with secrets");

    let fresh = World::new();
    fresh.secret("github", "token", GITHUB);
    fresh.secret("docs", "token", DOCS);
    install(&fresh);
    let _another = fresh.operator("fresh");
    fresh.settle(QUIET).await;
    assert_same(&end_state(&world), &end_state(&fresh), "secrets that came late");
    calm(&world, THREE_PASSES, "with secrets").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_changed_secret_reaches_the_gateways_within_the_hour() {
    let world = World::new();
    let _operator = world.operator("one");
    world.secret("docs", "token", DOCS);
    world.apply(&server("docs", &remote()));
    world.apply(&hub("default", &json!({})));
    world.settle(QUIET).await;
    let header = |world: &World| {
        let pods = world.api.list("Pod");
        let config = world.gateways.config(&pods[0]).unwrap();
        serde_json::to_value(&config.upstreams[0].target).unwrap()["headers"]["authorization"].clone()
    };
    assert_eq!(header(&world), DOCS);
    world.secret("docs", "token", "another-token-of-docs");
    tokio::time::sleep(Duration::from_secs(3600 * 5 / 4)).await;
    assert_eq!(header(&world), "another-token-of-docs");
    calm(&world, THREE_PASSES, "a changed secret").await;
}

/// Where log lines go.
#[derive(Debug, Clone, Default)]
struct Book(Arc<Mutex<Vec<u8>>>);

impl Write for Book {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_values_of_secrets_are_in_secrets_and_nowhere_else() {
    let book = Book::default();
    let writer = book.clone();
    let _logged = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_writer(move || writer.clone())
        .finish()
        .set_default();
    let world = World::new();
    let _operator = world.operator("one");
    install(&world);
    world.settle(QUIET).await;
    world.secret("github", "token", GITHUB);
    world.secret("docs", "token", DOCS);
    world.settle(QUIET).await;
    // Failures, too, are told without what they were about.
    world.api.inject(mcp_hub_fakeapi::When::write().kind("Secret").times(6), mcp_hub_fakeapi::Fault::Answer(422));
    world.api.delete("Secret", NAMESPACE, "mcp-hub-default-config");
    world.api.delete("Secret", NAMESPACE, "mcp-hub-default-token");
    world.gateways.set(mcp_hub_sim::specs::REMOTE, mcp_hub_sim::gateways::Remote::Unreachable);
    world.settle(QUIET).await;
    world.api.clear_faults();
    world.settle(QUIET).await;

    let mut secrets = world.secrets();
    for (kind, object) in ["MCPServer", "MCPHub"]
        .into_iter()
        .flat_map(|kind| world.api.list(kind).into_iter().map(move |object| (kind, object)))
    {
        let uid = object["metadata"]["uid"].as_str().unwrap();
        let installation = installation();
        match kind {
            "MCPServer" => secrets.push(installation.bridge_token(uid, 0).expose_secret().to_owned()),
            _ => secrets.push(installation.hub_token(uid, 0).expose_secret().to_owned()),
        }
        secrets.push(hex::encode(installation.sealing_key(uid)));
    }
    for (key, object) in world.api.snapshot() {
        let found = leaks(&object.to_string(), &secrets);
        assert!(key.starts_with("Secret/") || found.is_empty(), "{key} holds {found:?}: {object:#}");
    }
    let log = String::from_utf8(book.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("pass failed"), "the log is there");
    let lines: Vec<&str> = log.lines().filter(|line| !leaks(line, &secrets).is_empty()).collect();
    assert!(lines.is_empty(), "{lines:#?}");
    world.assert_clean();
}
