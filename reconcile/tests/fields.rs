//! No field of `MCPHub` is silent: each one, set alone, changes the configuration or the status, or is refused by name.
//! The table is complete, because it is compared with the schema. (For `MCPServer` see `contract::fields`, which each
//! runtime's tests go through.)

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::collections::BTreeMap;

use mcp_hub_crds::resource::ResourceKind;
use mcp_hub_crds::validate::Rules;
use mcp_hub_reconcile::contract::effect::fields_of_schema;
use mcp_hub_reconcile::contract::fields::of_hub;
use scenario::{Scenario, command, hub, with};
use serde_json::{Value, json};

#[test]
fn the_table_is_complete() {
    let definition = mcp_hub_crds::schema::definitions().remove(1);
    let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let mut wanted = fields_of_schema(&serde_json::to_value(schema).unwrap());
    let table = of_hub();
    let mut listed: Vec<_> = table.iter().map(|(path, ..)| *path).collect();
    wanted.sort();
    listed.sort_unstable();
    assert_eq!(listed, wanted);
}

/// What a hub of this spec brings about next to two servers: configuration, status, gateways.
async fn effect(spec: &Value) -> (String, String) {
    let s = Scenario::new();
    s.store.apply_server(command("one", &[]));
    s.store.apply_server(with(command("two", &[]), |server| {
        server.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "dev".to_owned())]));
    }));
    s.store.apply_hub(hub("default", spec.clone()));
    s.settle().await;
    let status = s.store.find_hub("default").unwrap().status.clone().unwrap();
    let replicas = status.gateway.map(|gateway| gateway.replicas);
    // What the sink makes besides is told by conditions.
    let door = status.conditions.into_iter().flatten().filter(|c| ["Resolved", "Exposed"].contains(&&*c.type_));
    let door: Vec<String> = door.map(|condition| condition.message).collect();
    (format!("{:?} {replicas:?} {door:?}", s.sink.config("default")), s.hub_status("default"))
}

#[tokio::test]
async fn each_field_alone_has_an_effect_or_is_refused_by_name() {
    let rules = Rules::compiled();
    for (field, without, with) in of_hub() {
        let resource = json!({
            "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": "default"}, "spec": with,
        });
        assert_eq!(rules.violations(ResourceKind::MCPHub, &resource), [], "{field}");
        let ((before, _), (after, status)) = (effect(&without).await, effect(&with).await);
        match status.lines().find(|line| line.starts_with("- Accepted")) {
            Some(refusal) => {
                let named = refusal.split([' ', ',']).filter(|word| word.starts_with("spec."));
                assert!(named.into_iter().any(|path| field.starts_with(path)), "{field} is refused as {refusal}");
            }
            None => assert!(
                before != after || status.contains("http://127.0.0.1:9000/mcp"),
                "{field} is silent: {after}\n{status}"
            ),
        }
    }
}
