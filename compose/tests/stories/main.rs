//! Manifests as Compose projects, stacks and manifests for kubectl, and back.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod engine;
mod generate;
mod import;
mod round_trip;
mod schema;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use mcp_hub_compose::engine::{Engine, Images, Key};
use mcp_hub_compose::project::Project;
use mcp_hub_compose::refusal::Refused;
use mcp_hub_compose::{File, Generated};
use mcp_hub_crds::source::ResolvedImage;
use mcp_hub_crds::validate::Rules;
use mcp_hub_crds::{Resource, manifest};

/// Keeps the compiled rules over all cases of a property: compiling them takes longer than a case.
fn keep_rules() {
    static RULES: OnceLock<Arc<Rules>> = OnceLock::new();
    RULES.get_or_init(Rules::compiled);
}

/// The resources of a text.
fn resources(text: &str) -> Vec<Resource> {
    let documents = manifest::parse(text, Path::new("servers.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    documents.into_iter().map(|document| document.resource).collect()
}

/// A server of this spec.
fn server(name: &str, spec: &str) -> String {
    format!("---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// What registries say in these tests.
fn facts() -> BTreeMap<String, ResolvedImage> {
    let image = |entrypoint: &[&str], cmd: &[&str], user: &str| ResolvedImage {
        id: None,
        index: format!("sha256:{}", "5a".repeat(32)),
        entrypoint: Some(entrypoint.iter().map(ToString::to_string).collect()),
        cmd: Some(cmd.iter().map(ToString::to_string).collect()),
        user: Some(user.to_owned()),
    };
    BTreeMap::from([
        ("ghcr.io/github/github-mcp-server:v0.20.1".to_owned(), image(&["/server/github-mcp-server"], &["stdio"], "")),
        ("mcp/files:1".to_owned(), image(&["node", "/app/index.js"], &["/data"], "1000:1000")),
        ("mcp/named:1".to_owned(), image(&["/named"], &[], "node")),
    ])
}

fn generate(engine: Engine, text: &str) -> Result<Generated, Refused> {
    let project = Project::of(resources(text), None).unwrap();
    let images = Images::of("localhost/mcp-hub", "0.1.0");
    mcp_hub_compose::engine::write(engine, &project, &facts(), &images, &Key::new([7; 32]))
}

fn file<'a>(generated: &'a Generated, name: &str) -> &'a File {
    generated.files.iter().find(|file| file.name == name).unwrap_or_else(|| panic!("{name} of {generated:?}"))
}

/// A file of an example, with others of the same example.
fn example(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path);
    std::fs::read_to_string(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()))
}
