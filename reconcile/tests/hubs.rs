//! Passes over hubs, as stories.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::collections::BTreeMap;

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{Target, Transport, UpstreamEra};
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_reconcile::fake::Bridges;
use scenario::{Scenario, command, hub, server, with};
use serde_json::json;

/// The upstreams of a hub: name and whether it can be called.
fn upstreams(s: &Scenario, hub: &str) -> Vec<String> {
    let config = s.sink.config(hub).expect("a configuration");
    let line = |target: &Target| match target {
        Target::Available { url, headers } => {
            format!("{url} with {}", headers.keys().cloned().collect::<Vec<_>>().join(", "))
        }
        Target::Unavailable { reason, message, .. } => format!("{reason}: {message}"),
        Target::Asleep => "asleep".to_owned(),
    };
    config.upstreams.iter().map(|upstream| format!("{} {}", upstream.name, line(&upstream.target))).collect()
}

#[tokio::test]
async fn a_hub_follows_its_servers() {
    let s = Scenario::new();
    s.runtime.set_bridges(Bridges::ByHand);
    s.store.apply_hub(hub("default", json!({})));
    s.settle().await;
    insta::assert_snapshot!(s.hub_status("default"), @r"
    0/0 servers (generation 1)
    + Accepted Accepted: every field is honoured
    + Ready Ready: the endpoint answers
    + ConfigSynced Synced: every gateway serves the newest configuration
    endpoint: http://127.0.0.1:7337/mcp
    ");

    s.store.apply_server(command("github", &[]));
    s.settle().await;
    insta::assert_snapshot!(s.hub_status("default"), @r"
    0/1 servers (generation 1)
    + Accepted Accepted: every field is honoured
    + Ready Ready: the endpoint answers
    + ConfigSynced Synced: every gateway serves the newest configuration
    endpoint: http://127.0.0.1:7337/mcp
    ");
    assert_eq!(upstreams(&s, "default"), ["github Starting: the MCP handshake has not finished"]);

    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::Ready;
        bridge.handshake = Some(mcp_hub_reconcile::fake::ready());
    });
    assert_eq!(s.settle().await, ["status of github", "sink: apply default", "status of default"]);
    insta::assert_snapshot!(s.hub_status("default"), @r"
    1/1 servers (generation 1)
    + Accepted Accepted: every field is honoured
    + Ready Ready: the endpoint answers
    + ConfigSynced Synced: every gateway serves the newest configuration
    endpoint: http://127.0.0.1:7337/mcp
    ");
    assert_eq!(upstreams(&s, "default"), ["github http://127.0.0.1/github with authorization"]);

    s.store.apply_server(with(command("github", &[]), |server| server.spec.paused = Some(true)));
    s.settle().await;
    assert_eq!(upstreams(&s, "default"), ["github Paused: stopped on request"]);

    s.store.delete("github");
    s.settle().await;
    assert_eq!(upstreams(&s, "default"), Vec::<String>::new());
}

#[tokio::test]
async fn a_hub_selects_by_name_by_label_and_across_namespaces_only_what_is_exposed() {
    let s = Scenario::new();
    let labelled = |name: &str, namespace: &str, expose: bool| {
        with(command(name, &[]), |server| {
            server.metadata.namespace = Some(namespace.to_owned());
            server.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "dev".to_owned())]));
            server.spec.expose_to = expose.then(|| vec!["default".to_owned()]);
        })
    };
    s.store.apply_server(command("named", &[]));
    s.store.apply_server(command("neither", &[]));
    s.store.apply_server(labelled("labelled", "default", false));
    s.store.apply_server(labelled("exposed", "other", true));
    s.store.apply_server(labelled("hidden", "other", false));
    s.store.apply_hub(hub(
        "default",
        json!({"servers": {
            "selector": {"matchLabels": {"team": "dev"}}, "include": ["named"], "namespaces": ["default", "other"],
        }}),
    ));
    s.settle().await;
    let names: Vec<String> =
        s.sink.config("default").unwrap().upstreams.into_iter().map(|upstream| upstream.name).collect();
    assert_eq!(names, ["labelled", "named", "other.exposed"]);
}

#[tokio::test]
async fn a_remote_server_whose_header_has_no_value_is_listed_as_unavailable() {
    let s = Scenario::new();
    let headers = json!([
        {"name": "x-team", "value": "dev"},
        {"name": "authorization", "secretRef": {"name": "docs", "key": "token"}},
    ]);
    s.store.apply_server(server(
        "docs",
        json!({"source": {"remote": {"url": "https://docs.example.com/mcp", "headers": headers}}}),
    ));
    s.store.apply_hub(hub("default", json!({})));
    s.settle().await;
    assert_eq!(upstreams(&s, "default"), ["docs SecretMissing: no value for header authorization"]);
    assert_eq!(s.ready("docs"), "False SecretMissing");

    s.store.set_secret("docs", "token", Some("Bearer hunter2"));
    s.settle().await;
    assert_eq!(upstreams(&s, "default"), ["docs https://docs.example.com/mcp with authorization, x-team"]);
    assert!(!format!("{:?}", s.sink.config("default")).contains("hunter2"));
}

#[tokio::test]
async fn a_remote_server_is_reached_in_the_way_that_its_transport_names_or_in_any() {
    let s = Scenario::new();
    s.store.apply_hub(hub("default", json!({})));
    let (any, http, sse) = (Transport::Probe, Transport::StreamableHttp, Transport::HttpSse);
    for (transport, reached) in [
        (json!(null), (UpstreamEra::Probe, any)),
        (json!({"era": "auto"}), (UpstreamEra::Probe, any)),
        (json!({"era": "legacy"}), (UpstreamEra::Known(Era::Legacy), any)),
        (json!({"era": "modern"}), (UpstreamEra::Known(Era::Modern), any)),
        (json!({"type": "streamable-http"}), (UpstreamEra::Probe, http)),
        (json!({"type": "sse"}), (UpstreamEra::Probe, sse)),
        (json!({"type": "sse", "era": "legacy"}), (UpstreamEra::Known(Era::Legacy), sse)),
    ] {
        let remote = json!({"source": {"remote": {"url": "https://docs.example.com/mcp"}}, "transport": transport});
        s.store.apply_server(server("docs", remote));
        s.settle().await;
        let docs = s.sink.config("default").unwrap().upstreams.remove(0);
        assert!(matches!(docs.target, Target::Available { .. }), "{transport}");
        assert_eq!((docs.era, docs.transport), reached, "{transport}");
    }
}

#[tokio::test]
async fn a_deleted_hub_loses_its_endpoint_and_is_released() {
    let s = Scenario::new();
    s.store.apply_hub(hub("default", json!({})));
    s.settle().await;
    s.store.delete("default");
    assert_eq!(s.settle().await, ["sink: remove default", "release default"]);
    assert!(s.sink.config("default").is_none());
}

#[tokio::test]
async fn a_hub_field_that_is_not_built_yet_keeps_the_door_as_it_was() {
    let s = Scenario::new();
    s.store.apply_hub(hub("default", json!({})));
    s.settle().await;
    let before = s.sink.config("default");
    s.store.apply_hub(hub(
        "default",
        json!({"auth": {"mode": "oidc", "oidc": {"issuer": "https://id.example.com", "audiences": ["hub"]}}}),
    ));
    s.settle().await;
    assert_eq!(s.sink.config("default"), before);
    insta::assert_snapshot!(s.hub_status("default"), @r"
    0/0 servers (generation 2)
    - Accepted NotImplemented: not implemented yet: spec.auth.oidc
    + Ready Ready: the endpoint answers
    - ConfigSynced OutOfSync: a gateway serves an older configuration
    endpoint: http://127.0.0.1:7337/mcp
    ");
}

#[tokio::test]
async fn names_that_collide_in_a_bare_hub_are_shown() {
    let s = Scenario::new();
    s.store.apply_hub(hub("default", json!({"naming": {"mode": "Bare"}})));
    s.sink.set_collisions(BTreeMap::from([("search".to_owned(), vec!["docs".to_owned(), "github".to_owned()])]));
    s.settle().await;
    insta::assert_snapshot!(s.hub_status("default"), @r"
    0/0 servers (generation 1)
    + Accepted Accepted: every field is honoured
    + Ready NameCollisions: left out because several servers offer them: search (docs, github)
    + ConfigSynced Synced: every gateway serves the newest configuration
    endpoint: http://127.0.0.1:7337/mcp
    ");
}
