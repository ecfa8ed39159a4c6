//! From a package in a registry to a tool's answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use mcp_hub_crds::MCPServer;
use mcp_hub_kubernetes_tests::{Place, condition, hub, serve_packages};
use serde_json::json;

fn package(name: &str, package: &str, more: &str) -> String {
    format!(
        "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n  source: {{package: \
         {package}}}\n{more}"
    )
}

#[tokio::test]
async fn packages_of_npm_and_pypi_answer_a_client_and_what_cannot_be_installed_says_why() {
    let _registry = serve_packages().await;
    let (place, _lease) = Place::new("packages").await;
    let npm = |version: &str| format!("{{registry: npm, name: \"@story/teller\", version: {version}}}");
    place.apply(&package("node", &npm("1.0.0"), "  args: [\"--help\"]\n")).await;
    let pypi = "{registry: pypi, name: story-teller, version: 1.0.0}";
    place.apply(&package("python", pypi, "  permissions: {network: {egress: [\"0.0.0.0/0:80\"]}}\n")).await;
    place.apply(&package("wrong", &npm("9.9.9"), "")).await;
    place.apply(&package("absent", "{registry: pypi, name: story-writer, version: 1.0.0}", "")).await;
    let program = "{registry: npm, name: \"@story/teller\", version: 1.0.0, executable: writer}";
    place.apply(&package("program", program, "")).await;
    place.apply(&package("any", "{registry: npm, name: \"@story/teller\"}", "")).await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;

    place.until_served("default", 2).await;
    let session = place.connect("default", None).await;
    session.until_listed(&["node_tell", "python_tell"]).await;
    for (server, told) in [("node", "node tells all --help"), ("python", "python tells all")] {
        let answer = session.call(&format!("{server}_tell"), json!({"text": "all"})).await.unwrap();
        assert_eq!(answer.trim(), told);
    }
    let node: MCPServer = place.until_reason("node", "Ready").await;
    let resolved = node.status.unwrap().resolved.unwrap();
    assert_eq!(resolved.version.as_deref(), Some("1.0.0"));
    assert!(resolved.runner.unwrap().contains("/runner:"));
    let python = place.until_reason("python", "Ready").await;
    let (_, _, supported) = condition(&python, "RuntimeSupported").unwrap();
    assert!(supported.contains("egress holds for the installation"), "{supported}");

    for (server, reason, told) in [
        ("wrong", "PackageNotFound", "there is no package `@story/teller@9.9.9` in npm"),
        ("absent", "PackageNotFound", "there is no package `story-writer==1.0.0` in PyPI"),
        ("program", "ProgramNotFound", "brings no program `writer`, but teller"),
        ("any", "Unsupported", "spec.source.package.version"),
    ] {
        let found = place.until_reason(server, reason).await;
        let (status, _, message) = condition(&found, "Ready").unwrap();
        assert!(status == "False" && message.contains(told), "{server}: {message}");
    }
    place.apply(&package("wrong", &npm("1.0.0"), "")).await;
    place.until_reason("wrong", "Ready").await;
}
