//! Passes over servers that run elsewhere, as stories.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use mcp_hub_dataplane_api::gateway::UpstreamStatus;
use mcp_hub_reconcile::fake::ready;
use scenario::{Scenario, server};
use serde_json::json;

#[tokio::test]
async fn a_remote_server_is_as_ready_as_gateways_find_it() {
    let s = Scenario::new();
    s.store.apply_server(server("docs", json!({"source": {"remote": {"url": "https://docs.example.com/mcp"}}})));
    assert_eq!(s.settle().await, ["status of docs"]);
    let mut phases = vec![s.status("docs")];
    let answers = [
        UpstreamStatus::Unknown,
        UpstreamStatus::Ready { handshake: ready() },
        UpstreamStatus::AuthRequired { message: "the server asks for OAuth".to_owned() },
        UpstreamStatus::Failed { message: "connection refused".to_owned() },
    ];
    for answer in answers {
        s.sink.set_upstream(&s.uid("docs"), answer);
        assert_eq!(s.settle().await, ["status of docs"]);
        phases.push(s.status("docs"));
    }
    insta::assert_snapshot!(phases.join("---\n"), @r"
    Pending (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Remote: the server runs elsewhere
    - Ready NotSelected: no hub offers this server, so nothing calls it
    + RuntimeSupported Supported: the runtime honours the spec in full
    - AuthRequired Authorized: the server asked for no authorization
    endpoint: https://docs.example.com/mcp
    ---
    Starting (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Remote: the server runs elsewhere
    - Ready Starting: the gateway has not reached the server yet
    + RuntimeSupported Supported: the runtime honours the spec in full
    - AuthRequired Authorized: the server asked for no authorization
    endpoint: https://docs.example.com/mcp
    ---
    Ready (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Remote: the server runs elsewhere
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: the runtime honours the spec in full
    - AuthRequired Authorized: the server asked for no authorization
    endpoint: https://docs.example.com/mcp
    server: fake-server 1.2.3
    tools: 3
    ---
    Failed (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Remote: the server runs elsewhere
    - Ready AuthRequired: the server asks for OAuth
    + RuntimeSupported Supported: the runtime honours the spec in full
    + AuthRequired AuthRequired: the server asks for OAuth
    endpoint: https://docs.example.com/mcp
    server: fake-server 1.2.3
    tools: 3
    ---
    Failed (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Remote: the server runs elsewhere
    - Ready Unreachable: connection refused
    + RuntimeSupported Supported: the runtime honours the spec in full
    - AuthRequired Authorized: the server asked for no authorization
    endpoint: https://docs.example.com/mcp
    server: fake-server 1.2.3
    tools: 3
    ");
}

#[tokio::test]
async fn fields_that_a_remote_server_cannot_have_are_refused_by_name() {
    let s = Scenario::new();
    s.store.apply_server(server(
        "docs",
        json!({
            "source": {"remote": {"url": "https://docs.example.com/mcp"}},
            "health": {"period": "10s"}, "timeouts": {"call": "1m", "start": "1m"},
        }),
    ));
    s.settle().await;
    insta::assert_snapshot!(s.status("docs"), @r"
    Failed (generation 1)
    - Accepted NotImplemented: not implemented yet: spec.health, spec.timeouts.start
    + Resolved Resolved: the source and its secrets are there
    + Available Remote: the server runs elsewhere
    - Ready NotImplemented: not implemented yet: spec.health, spec.timeouts.start
    + RuntimeSupported Supported: the runtime honours the spec in full
    - AuthRequired Authorized: the server asked for no authorization
    endpoint: https://docs.example.com/mcp
    ");
}
