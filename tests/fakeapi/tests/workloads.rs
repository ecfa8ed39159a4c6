//! Stories of Deployments that are rolled out, step by step or to the end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use mcp_hub_fakeapi::{FakeApi, PodState};
use serde_json::{Value, json};

fn deployment(replicas: i64, image: &str, strategy: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "main", "image": image}]}}}})
}

fn rolling() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
}

fn fares(state: PodState) -> BTreeMap<String, PodState> {
    BTreeMap::from([("default/web".to_owned(), state)])
}

fn status(fake: &FakeApi) -> Value {
    fake.get("Deployment", "default", "web").unwrap()["status"].clone()
}

fn condition(object: &Value, name: &str) -> Value {
    let conditions = object["conditions"].as_array().unwrap();
    conditions.iter().find(|one| one["type"] == name).unwrap().clone()
}

fn images(fake: &FakeApi) -> Vec<String> {
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    let mut images: Vec<String> = fake.list("Pod").iter().map(image).collect();
    images.sort();
    images
}

#[tokio::test]
async fn a_deployment_becomes_pods_that_are_ready() {
    let fake = FakeApi::new();
    fake.create(&deployment(2, "x:1", &rolling())).unwrap();
    assert!(fake.run_workloads(&BTreeMap::new()) > 0);
    let now = status(&fake);
    assert_eq!((&now["readyReplicas"], &now["updatedReplicas"]), (&json!(2), &json!(2)));
    assert_eq!(condition(&now, "Available")["status"], "True");
    assert_eq!(condition(&now, "Progressing")["reason"], "NewReplicaSetAvailable");
    let deployment = fake.get("Deployment", "default", "web").unwrap();
    assert_eq!(now["observedGeneration"], deployment["metadata"]["generation"]);
    assert_eq!(condition(&fake.list("Pod")[0]["status"], "Ready")["status"], "True");
    // All has settled.
    assert_eq!(fake.run_workloads(&BTreeMap::new()), 0);
    // A deleted pod ends and comes back.
    let name = fake.list("Pod")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    fake.delete("Pod", "default", &name);
    fake.run_workloads(&BTreeMap::new());
    assert_eq!(status(&fake)["readyReplicas"], 2);
    assert_eq!(fake.get("Pod", "default", &name), None);
    // With the Deployment goes all that came from it.
    fake.delete("Deployment", "default", "web");
    fake.collect_garbage();
    fake.run_workloads(&BTreeMap::new());
    assert_eq!((fake.list("ReplicaSet").len(), fake.list("Pod").len()), (0, 0));
}

#[tokio::test]
async fn a_rolling_update_never_has_too_few_ready() {
    let fake = FakeApi::new();
    fake.create(&deployment(3, "x:1", &rolling())).unwrap();
    fake.run_workloads(&BTreeMap::new());
    fake.edit("Deployment", "default", "web", |web| {
        web["spec"]["template"]["spec"]["containers"][0]["image"] = json!("x:2");
    })
    .unwrap();
    for _ in 0..100 {
        if fake.step_workloads(&BTreeMap::new()) == 0 {
            break;
        }
        let ready = fake
            .list("Pod")
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| {
                pod["status"]["conditions"].is_array() && condition(&pod["status"], "Ready")["status"] == "True"
            })
            .count();
        assert!(ready >= 3, "{ready} ready of {:?}", images(&fake));
        let alive = fake.list("Pod").iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count();
        assert!(alive <= 4, "{:?}", images(&fake));
    }
    assert_eq!(images(&fake), ["x:2", "x:2", "x:2"]);
    assert_eq!(fake.list("ReplicaSet").len(), 2);
}

#[tokio::test]
async fn a_bad_image_leaves_the_old_pods_running() {
    let fake = FakeApi::new();
    fake.create(&deployment(1, "x:1", &rolling())).unwrap();
    fake.run_workloads(&BTreeMap::new());
    fake.edit("Deployment", "default", "web", |web| {
        web["spec"]["template"]["spec"]["containers"][0]["image"] = json!("x:typo");
    })
    .unwrap();
    // Only the new pod is told to wait: the old one was ready and stays so.
    let waiting = PodState::Waiting { reason: "ImagePullBackOff".to_owned(), message: "not found".to_owned() };
    fake.run_workloads_for(&fares(waiting), |pod| pod["spec"]["containers"][0]["image"] == "x:typo");
    assert_eq!(images(&fake), ["x:1", "x:typo"]);
    let now = status(&fake);
    assert_eq!(condition(&now, "Available")["status"], "True");
    assert_eq!((&now["availableReplicas"], &now["unavailableReplicas"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn recreate_ends_the_old_before_it_starts_the_new() {
    let fake = FakeApi::new();
    fake.create(&deployment(1, "x:1", &json!({"type": "Recreate"}))).unwrap();
    fake.run_workloads(&BTreeMap::new());
    fake.edit("Deployment", "default", "web", |web| {
        web["spec"]["template"]["spec"]["containers"][0]["image"] = json!("x:2");
    })
    .unwrap();
    for _ in 0..100 {
        assert!(images(&fake).len() <= 1, "{:?}", images(&fake));
        if fake.step_workloads(&BTreeMap::new()) == 0 {
            break;
        }
    }
    assert_eq!(images(&fake), ["x:2"]);
}

#[tokio::test(start_paused = true)]
async fn pods_fare_as_the_test_says() {
    let fake = FakeApi::new();
    fake.create(&deployment(1, "x:1", &rolling())).unwrap();
    let pod = |state: PodState| {
        fake.run_workloads(&fares(state));
        fake.list("Pod")[0]["status"].clone()
    };
    assert_eq!(pod(PodState::Pending)["phase"], "Pending");
    let unschedulable = pod(PodState::Unschedulable { message: "0/1 nodes are available".to_owned() });
    assert_eq!(condition(&unschedulable, "PodScheduled")["reason"], "Unschedulable");
    let crash = PodState::CrashLoop { restarts: 3, exit_code: 137, reason: "OOMKilled".to_owned() };
    let crashed = pod(crash)["containerStatuses"][0].clone();
    assert_eq!(crashed["restartCount"], 3);
    assert_eq!(crashed["lastState"]["terminated"]["reason"], "OOMKilled");
    assert_eq!(condition(&pod(PodState::Running), "Ready")["status"], "False");
    assert_eq!(condition(&status(&fake), "Available")["status"], "False");
    // Ten minutes later the Deployment gives up waiting.
    tokio::time::advance(std::time::Duration::from_secs(700)).await;
    fake.run_workloads(&fares(PodState::Running));
    assert_eq!(condition(&status(&fake), "Progressing")["reason"], "ProgressDeadlineExceeded");
    assert_eq!(condition(&pod(PodState::Ready), "Ready")["status"], "True");
    assert_eq!(condition(&status(&fake), "Progressing")["status"], "True");
}
