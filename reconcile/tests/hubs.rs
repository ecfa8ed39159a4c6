//! Passes over hubs, as stories.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::collections::BTreeMap;
use std::time::Duration;

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{Target, Transport, UpstreamEra};
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::fake::Bridges;
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::ports::Demand;
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

/// A server that sleeps when nobody calls it, on a sink whose gateways can have it woken, asleep in its place.
async fn sleeping(s: &Scenario) {
    s.sink.set_demand("", Demand::Unknown);
    s.store.apply_hub(hub("default", json!({})));
    let mut github = command("github", &[]);
    github.spec.lifecycle = serde_json::from_value(json!({"mode": "onDemand", "idleTimeout": "5m"})).unwrap();
    s.store.apply_server(github);
    s.settle().await;
    s.runtime.set_bridge("github", |bridge| bridge.phase = Phase::Asleep);
    s.settle().await;
    assert_eq!(s.ready("github"), "True Asleep");
    assert!(runs(s), "its bridge can start it at once");
}

fn runs(s: &Scenario) -> bool {
    !s.runtime.inventory().is_empty()
}

const LONG: Demand = Demand::Idle(Duration::from_secs(300));

#[tokio::test]
async fn a_server_that_nobody_calls_is_put_to_rest_and_a_call_wakes_it() {
    let s = Scenario::new();
    sleeping(&s).await;
    let before = s.store.find_server("github").unwrap().status.clone().unwrap();
    s.sink.set_demand("", LONG);
    let written = s.settle().await;
    assert_eq!(written, ["remove bridge github", "status of github", "sink: apply default", "status of default"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Asleep (generation 1)
    + Accepted Accepted: every field is honoured
    + Resolved Resolved: the source and its secrets are there
    + Available Asleep: nothing is to run for want of calls
    + Ready Asleep: nothing runs for want of calls; the next call starts it
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    ");
    let after = s.store.find_server("github").unwrap().status.clone().unwrap();
    assert_eq!((after.replicas, &after.tools, &after.server), (Some(0), &before.tools, &before.server));
    assert_eq!(after.endpoint, before.endpoint);
    assert_eq!(upstreams(&s, "default"), ["github asleep"]);
    let told = s.sink.config("default").unwrap().wake.expect("somebody to ask");
    assert_eq!(told.url, "http://operator/wake");
    assert!(s.hub_status("default").starts_with("1/1 servers"));

    // A gateway that says nothing for a while does not call it.
    s.sink.set_demand("", Demand::Unknown);
    assert_eq!(s.settle().await, Vec::<String>::new());

    s.runtime.set_bridges(Bridges::ByHand);
    s.sink.set_demand("", Demand::Called);
    assert_eq!(s.settle().await, ["make bridge github", "status of github"]);
    assert_eq!(s.ready("github"), "True Waking");
    assert_eq!(upstreams(&s, "default"), ["github asleep"], "calls wait on");
    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::Ready;
        bridge.handshake = Some(mcp_hub_reconcile::fake::ready());
    });
    s.settle().await;
    assert_eq!(s.ready("github"), "True Ready");
    assert_eq!(upstreams(&s, "default"), ["github http://127.0.0.1/github with authorization"]);
}

#[tokio::test]
async fn a_server_that_cannot_be_woken_ends_the_wait_with_the_reason() {
    let s = Scenario::new();
    sleeping(&s).await;
    s.sink.set_demand("", LONG);
    s.settle().await;
    s.runtime.set_bridges(Bridges::ByHand);
    s.sink.set_demand("", Demand::Called);
    s.settle().await;
    s.runtime.set_bridge("github", |bridge| {
        bridge.phase = Phase::CrashLoop { retry_at: "2026-08-01T00:00:00Z".to_owned() };
        bridge.last_error = Some("the server exited with code 1".to_owned());
    });
    s.settle().await;
    assert_eq!(upstreams(&s, "default"), ["github CrashLoop: the server exited with code 1"]);
}

#[tokio::test]
async fn calls_wait_for_what_may_pass_by_itself_and_no_longer() {
    let s = Scenario::new();
    sleeping(&s).await;
    s.sink.set_demand("", LONG);
    s.settle().await;
    s.runtime.set_bridges(Bridges::ByHand);
    let no_room = |retry| Failure { reason: "NoRoom", message: "no room".to_owned(), hint: None, retry };
    s.runtime.set_failure(Some(no_room(Retry::After(Duration::from_secs(30)))));
    s.sink.set_demand("", Demand::Called);
    s.settle().await;
    assert_eq!(s.ready("github"), "False Waking");
    assert_eq!(upstreams(&s, "default"), ["github asleep"]);
    s.runtime.set_failure(Some(no_room(Retry::OnChange)));
    s.settle().await;
    assert_eq!(s.ready("github"), "False NoRoom");
    assert_eq!(upstreams(&s, "default"), ["github NoRoom: no room"]);
}

#[tokio::test]
async fn a_server_at_rest_runs_again_when_its_spec_changes_and_when_no_hub_could_have_it_woken() {
    let s = Scenario::new();
    sleeping(&s).await;
    s.sink.set_demand("", LONG);
    s.settle().await;
    let changed =
        with((*s.store.find_server("github").unwrap()).clone(), |it| it.spec.args = Some(vec!["x".to_owned()]));
    s.store.apply_server(changed);
    s.settle().await;
    assert_eq!(s.ready("github"), "True Ready", "another spec shakes hands once");
    s.runtime.set_bridge("github", |bridge| bridge.phase = Phase::Asleep);
    s.settle().await;
    assert!(!runs(&s));
    s.store.delete("default");
    s.settle().await;
    assert_eq!((s.ready("github"), runs(&s)), ("True Ready".to_owned(), true));
}

#[tokio::test]
async fn what_a_server_offers_is_kept_before_it_is_put_to_rest() {
    let s = Scenario::new();
    sleeping(&s).await;
    s.sink.lose_definitions(true);
    s.sink.set_demand("", LONG);
    s.settle().await;
    assert!(runs(&s));
    assert!(s.status("github").contains("Its place is kept: no gateway knows"), "{}", s.status("github"));
    s.sink.lose_definitions(false);
    s.settle().await;
    assert!(!runs(&s));
}
