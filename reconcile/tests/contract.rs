//! The fake passes the contract suite, and a fake that breaks a guarantee fails at it: so the suite notices.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use kube::api::ObjectMeta;
use mcp_hub_crds::MCPServer;
use mcp_hub_reconcile::contract::{GUARANTEES, Harness, run};
use mcp_hub_reconcile::fake::{FakeRuntime, Fault, Writes};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::Runtime;
use mcp_hub_reconcile::workload::ServerWorkload;
use serde_json::json;

struct Fake(Mutex<FakeRuntime>);

fn server(name: &str, spec: serde_json::Value) -> ServerWorkload {
    let mut server = MCPServer::new(name, serde_json::from_value(spec).unwrap());
    server.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some(format!("uid-{name}")),
        ..ObjectMeta::default()
    };
    ServerWorkload::of(&server, &Installation::new("test", [7; 32]), &Default::default()).unwrap()
}

#[async_trait]
impl Harness for Fake {
    async fn runtime(&self) -> Arc<dyn Runtime> {
        let mut fake = self.0.lock().unwrap();
        *fake = fake.restarted();
        Arc::new(fake.clone())
    }

    fn workload(&self, name: &str) -> ServerWorkload {
        server(name, json!({"source": {"command": {"path": "./run"}}, "args": ["one"]}))
    }

    fn changed(&self, workload: &ServerWorkload) -> ServerWorkload {
        ServerWorkload { args: vec!["two".to_owned()], ..workload.clone() }
    }

    fn unsupported(&self) -> Vec<(&'static str, ServerWorkload)> {
        let source = json!({"command": {"path": "./run"}});
        vec![
            ("spec.runtime", server("swarm", json!({"source": source, "runtime": "swarm"}))),
            (
                "spec.volumes",
                server("pvc", json!({"source": source, "volumes": [{"name": "d", "mountPath": "/d", "pvc": "d"}]})),
            ),
        ]
    }

    async fn settled(&self, _: &OwnerKey) {}

    async fn remains(&self, owner: &OwnerKey) -> Vec<String> {
        self.0.lock().unwrap().remains(owner)
    }

    async fn plant_foreign(&self, name: &str) -> usize {
        let fake = self.0.lock().unwrap();
        fake.plant_foreign(name);
        fake.foreign()
    }

    async fn foreign(&self) -> usize {
        self.0.lock().unwrap().foreign()
    }

    async fn drift(&self, owner: &OwnerKey) -> bool {
        self.0.lock().unwrap().drift(&owner.name);
        true
    }
}

#[tokio::test]
async fn the_fake_passes() {
    assert_eq!(run(&Fake(Mutex::new(FakeRuntime::new(Writes::default())))).await, []);
}

/// Each guarantee with the fault that breaks it.
const FAULTS: &[(Fault, &str)] = &[
    (Fault::LowersAtRandom, "lower_is_pure"),
    (Fault::DropsFields, "lower_refuses_by_name_what_it_cannot_honour"),
    (Fault::ObservesLate, "what_was_applied_is_observed_at_once"),
    (Fault::LosesDigest, "what_was_applied_is_observed_at_once"),
    (Fault::HidesBody, "a_settled_object_needs_no_step"),
    (Fault::AppliesTwice, "execute_is_idempotent"),
    (Fault::OverlooksDrift, "drift_is_observed"),
    (Fault::TouchesForeign, "foreign_objects_are_never_touched"),
    (Fault::TouchesOthers, "steps_of_one_owner_leave_others_alone"),
    (Fault::LeavesProcess, "nothing_is_left_after_remove"),
    (Fault::ForgetsOwners, "owners_names_each_owner_of_which_anything_is_left"),
    (Fault::ForgetsAtRestart, "a_new_value_sees_what_the_old_one_made"),
    (Fault::StopsHalfway, "a_dropped_execute_is_finished_by_the_next_plan"),
    (Fault::Mute, "changes_are_told"),
];

#[tokio::test(start_paused = true)]
async fn a_fake_that_breaks_a_guarantee_fails_at_it() {
    for (fault, guarantee) in FAULTS {
        let breaches = run(&Fake(Mutex::new(FakeRuntime::broken(Writes::default(), *fault)))).await;
        let names: Vec<_> = breaches.iter().map(|breach| breach.guarantee).collect();
        assert!(names.contains(guarantee), "{fault:?} was not noticed as {guarantee}: {breaches:#?}");
    }
}

#[test]
fn each_guarantee_has_a_fault_that_breaks_it() {
    for (guarantee, _) in GUARANTEES {
        assert!(FAULTS.iter().any(|(_, broken)| broken == guarantee), "nothing shows that {guarantee} is checked");
    }
}
