//! Registries as they are read and written, with all that they do wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bundles;
mod copying;
mod pinning;
mod resolving;

use std::error::Error;
use std::time::Duration;

use mcp_hub_fakeregistry::{Fault, LAYER, PASSWORD, Registry, USER};
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::{Credentials, Platform, Registries};
use serde_json::{Value, json};

fn amd64() -> Platform {
    Platform::linux("amd64")
}

fn login(host: &str, entry: Value) -> Credentials {
    let config = json!({"auths": {host: entry}}).to_string();
    Credentials::from_docker_config(config.as_bytes()).unwrap()
}

fn password(host: &str) -> Credentials {
    login(host, json!({"username": USER, "password": PASSWORD}))
}

/// A client that does not wait long before it tries again.
fn impatient() -> Registries {
    Registries::new().unwrap().first_wait(Duration::from_millis(5))
}

fn tell_nobody(_: Event<'_>) {}

/// As an edge prints it.
fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Fault::Answer { status, headers, body: body.to_owned() }
}

/// The content of a layer, unlike that of others.
fn layer(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| seed.wrapping_add((at % 251) as u8)).collect()
}

/// An image for two platforms with a layer that both have and one of their own, and what was said of its making.
/// Returns the index's digest.
fn push_example(registry: &Registry, repository: &str, tag: &str, layer_size: usize) -> String {
    let shared = layer(0, layer_size);
    let mut entries = Vec::new();
    for (architecture, seed) in [("amd64", 1), ("arm64", 2)] {
        let config = json!({"os": "linux", "architecture": architecture, "config": {}}).to_string();
        let digest = registry.push_parts(repository, None, config, &[&shared, &layer(seed, 1000)]);
        entries.push(json!({"mediaType": mcp_hub_fakeregistry::MANIFEST, "digest": digest, "size": 1,
                            "platform": {"os": "linux", "architecture": architecture}}));
    }
    let said = registry.blob(repository, "how it was made");
    let config = registry.blob(repository, "{}");
    let provenance = json!({"schemaVersion": 2, "mediaType": mcp_hub_fakeregistry::MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": LAYER, "digest": said, "size": 15}]});
    let provenance = registry.manifest(repository, None, mcp_hub_fakeregistry::MANIFEST, &provenance);
    entries.push(json!({"mediaType": mcp_hub_fakeregistry::MANIFEST, "digest": provenance, "size": 1,
                        "platform": {"os": "unknown", "architecture": "unknown"}}));
    let index = json!({"schemaVersion": 2, "mediaType": mcp_hub_fakeregistry::INDEX, "manifests": entries});
    registry.manifest(repository, Some(tag), mcp_hub_fakeregistry::INDEX, &index)
}
