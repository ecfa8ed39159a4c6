//! The crash sweep: whichever write is cut off, before or after it took place, passes that start anew end where an
//! undisturbed run ends, and then write nothing.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use kube::ResourceExt;
use mcp_hub_reconcile::fake::{Cut, Lost};
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::ResourceStore;
use scenario::{Scenario, command, hub, server};
use serde_json::json;

/// What users do, in turn; after each all has to settle.
const DEEDS: [fn(&Scenario); 5] = [create, change, break_secret, mend_secret, delete];

fn create(s: &Scenario) {
    s.store.set_secret("docs", "token", Some("1"));
    s.store.apply_server(server(
        "github",
        json!({"source": {"command": {"path": "./run"}}, "permissions": {"network": {"egress": ["a:1"]}}}),
    ));
    s.store.apply_server(command("plain", &[]));
    s.store.apply_server(server(
        "docs",
        json!({"source": {"remote": {
            "url": "https://docs.example.com/mcp",
            "headers": [{"name": "authorization", "secretRef": {"name": "docs", "key": "token"}}],
        }}}),
    ));
    s.store.apply_hub(hub("default", json!({})));
}

fn change(s: &Scenario) {
    s.store.apply_server(server(
        "github",
        json!({"source": {"command": {"path": "./other"}}, "permissions": {"network": {"egress": ["b:2"]}}}),
    ));
    s.store.apply_server(server("plain", json!({"source": {"command": {"path": "./run"}}, "paused": true})));
    s.store.apply_hub(hub("default", json!({"naming": {"separator": "-"}})));
}

fn break_secret(s: &Scenario) {
    s.store.set_secret("docs", "token", None);
}

fn mend_secret(s: &Scenario) {
    s.store.set_secret("docs", "token", Some("2"));
    s.store.apply_server(command("plain", &["more"]));
}

fn delete(s: &Scenario) {
    for name in ["github", "plain", "docs", "default"] {
        s.store.delete(name);
    }
}

/// Whether the gateways die with the daemon (one machine) or live on (cluster).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gateways {
    Die,
    Live,
}

/// One round, ended by the cut if that is fatal; gives whether the daemon lives.
async fn round(s: &Scenario, fatal: bool) -> bool {
    let ports = s.ports();
    let mut servers = s.store.servers().state();
    servers.sort_by_key(|server| server.name_any());
    for server in servers {
        // A failed pass is repeated by the next round.
        pass::server(&server, &ports).await.ok();
        if fatal && s.writes.was_cut() {
            return false;
        }
    }
    let mut hubs = s.store.hubs().state();
    hubs.sort_by_key(|hub| hub.name_any());
    for hub in hubs {
        pass::hub(&hub, &ports).await.ok();
        if fatal && s.writes.was_cut() {
            return false;
        }
    }
    true
}

/// Does all deeds; gives the end state after each.
async fn live(s: &mut Scenario, cut: Option<Cut>, gateways: Gateways) -> Vec<String> {
    let mut states = Vec::new();
    if let Some(cut) = cut {
        s.writes.cut(cut);
    }
    for deed in DEEDS {
        deed(s);
        let mut calm = 0;
        for _ in 0..40 {
            let count = s.writes.count();
            let hit_before = s.writes.was_cut();
            if !round(s, cut.is_some_and(|cut| cut.fatal)).await {
                s.restart();
                if gateways == Gateways::Die {
                    s.sink.forget();
                }
                calm = 0;
                continue;
            }
            let quiet = s.writes.count() == count && s.writes.was_cut() == hit_before;
            calm = if quiet { calm + 1 } else { 0 };
            if calm == 4 {
                break;
            }
        }
        assert_eq!(calm, 4, "settles, and then writes nothing in three more rounds");
        states.push(s.end_state());
    }
    states
}

#[tokio::test]
async fn any_write_may_be_cut_off() {
    let mut golden = Scenario::new();
    let want = live(&mut golden, None, Gateways::Live).await;
    let count = golden.writes.count();
    assert!(count > 25, "the golden run is worth sweeping: {:#?}", golden.writes.all());
    assert_eq!(golden.runtime.inventory(), Vec::<String>::new(), "everything is deleted in the end");

    let mut points = 0;
    for at in 0..count {
        for lost in [Lost::Request, Lost::Response] {
            for (fatal, gateways) in [(true, Gateways::Die), (true, Gateways::Live), (false, Gateways::Live)] {
                let cut = Cut { at, lost, fatal };
                let mut s = Scenario::new();
                let got = live(&mut s, Some(cut), gateways).await;
                assert!(s.writes.was_cut() || fatal, "{cut:?} was reached");
                for (deed, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert_eq!(got, want, "after deed {deed}, {cut:?}, gateways {gateways:?}");
                }
                points += 1;
            }
        }
    }
    assert_eq!(points, 6 * count);
}
