//! Stories of server-side apply: who owns what.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, Error, ResourceExt};
use mcp_hub_fakeapi::FakeApi;
use serde_json::{Value, json};

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data})
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Status {
    match result {
        Err(Error::Api(status)) => *status,
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

struct Story {
    fake: FakeApi,
    maps: Api<ConfigMap>,
    deployments: Api<Deployment>,
}

impl Story {
    fn new() -> Self {
        let fake = FakeApi::new();
        let client = fake.client("story");
        Self { maps: Api::default_namespaced(client.clone()), deployments: Api::default_namespaced(client), fake }
    }

    async fn apply(&self, manager: &str, data: Value) -> Result<ConfigMap, Error> {
        self.maps.patch("m", &PatchParams::apply(manager), &Patch::Apply(map(data))).await
    }

    async fn deploy(&self, manager: &str, pod: Value) -> Value {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}});
        self.deployments.patch("d", &PatchParams::apply(manager).force(), &Patch::Apply(deployment)).await.unwrap();
        self.pod()
    }

    fn pod(&self) -> Value {
        self.fake.get("Deployment", "default", "d").unwrap()["spec"]["template"]["spec"].clone()
    }

    fn data(&self) -> Value {
        self.fake.get("ConfigMap", "default", "m").unwrap()["data"].clone()
    }
}

#[tokio::test]
async fn two_managers_share_an_object_and_each_takes_back_its_own() {
    let story = Story::new();
    story.apply("one", json!({"a": "1", "shared": "s"})).await.unwrap();
    story.apply("two", json!({"b": "2", "shared": "s"})).await.unwrap();
    assert_eq!(story.data(), json!({"a": "1", "b": "2", "shared": "s"}));

    let conflict = refusal(story.apply("two", json!({"a": "x", "b": "2", "shared": "s"})).await);
    assert_eq!((conflict.code, conflict.reason.as_str()), (409, "Conflict"));
    let cause = &conflict.details.unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".data.a"));
    assert_eq!(cause.message, "conflict with \"one\"");

    // Both own what both say; it goes with the last of them.
    story.apply("one", json!({"a": "1"})).await.unwrap();
    assert_eq!(story.data(), json!({"a": "1", "b": "2", "shared": "s"}));
    story.apply("two", json!({"b": "2"})).await.unwrap();
    assert_eq!(story.data(), json!({"a": "1", "b": "2"}));

    // By force, the other one loses the field and does not take it back later.
    let params = PatchParams::apply("two").force();
    story.maps.patch("m", &params, &Patch::Apply(map(json!({"a": "x"})))).await.unwrap();
    assert_eq!(story.data(), json!({"a": "x"}));
    story.apply("one", json!({})).await.unwrap();
    assert_eq!(story.data(), json!({"a": "x"}));
}

#[tokio::test]
async fn an_update_takes_what_it_changes_and_apply_takes_it_back_by_force() {
    let story = Story::new();
    let made = story.apply("operator", json!({"a": "1", "b": "1"})).await.unwrap();
    let mut edited = made.clone();
    edited.data = Some([("a".to_owned(), "edited".to_owned()), ("b".to_owned(), "1".to_owned())].into());
    story
        .maps
        .replace("m", &PostParams { field_manager: Some("person".to_owned()), ..PostParams::default() }, &edited)
        .await
        .unwrap();

    let conflict = refusal(story.apply("operator", json!({"a": "1", "b": "1"})).await);
    assert_eq!(conflict.details.unwrap().causes[0].message, "conflict with \"person\" using v1");
    let params = PatchParams::apply("operator").force();
    let mended = story.maps.patch("m", &params, &Patch::Apply(map(json!({"a": "1", "b": "1"})))).await.unwrap();
    assert_eq!(story.data(), json!({"a": "1", "b": "1"}));
    assert_eq!(mended.managed_fields().len(), 1);
}

#[tokio::test]
async fn applying_the_same_again_is_no_write() {
    let story = Story::new();
    let first = story.apply("one", json!({"a": "1"})).await.unwrap();
    let again = story.apply("one", json!({"a": "1"})).await.unwrap();
    assert_eq!(first.resource_version(), again.resource_version());
    assert_eq!(story.fake.log().last().unwrap().revision, None);
    // Another owner of the same value is a change of the owners.
    let other = story.apply("two", json!({"a": "1"})).await.unwrap();
    assert_ne!(other.resource_version(), again.resource_version());
}

#[tokio::test]
async fn lists_merge_by_their_keys() {
    let story = Story::new();
    let names = |list: &Value| {
        list.as_array().into_iter().flatten().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    story
        .deploy("operator", json!({
            "containers": [{"name": "main", "image": "x:1", "args": ["a", "b"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
                "ports": [{"containerPort": 80}], "securityContext": {"runAsNonRoot": true}}],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }))
        .await;
    // Somebody adds a container and a variable of their own.
    let pod = story
        .deploy(
            "injector",
            json!({"containers": [
            {"name": "sidecar", "image": "y:1"}, {"name": "main", "env": [{"name": "C", "value": "1"}]}]}),
        )
        .await;
    // Both sides have `main`; where they disagree on the order, the applied side leads.
    assert_eq!(names(&pod["containers"]), ["sidecar", "main"]);
    assert_eq!(names(&pod["containers"][1]["env"]), ["A", "B", "C"]);

    // The operator takes away a variable, the arguments, the volume and the security context, and no more than that.
    let pod = story
        .deploy("operator", json!({"containers": [{"name": "main", "image": "x:1", "env": [{"name": "B", "value": "2"}], "ports": [{"containerPort": 80}]}]}))
        .await;
    assert_eq!(names(&pod["containers"]), ["sidecar", "main"]);
    let main = &pod["containers"][1];
    assert_eq!(main["env"], json!([{"name": "B", "value": "2"}, {"name": "C", "value": "1"}]));
    assert_eq!((main.get("args"), main.get("securityContext"), pod.get("volumes")), (None, None, None));
    assert_eq!(main["ports"][0]["containerPort"], 80);
}

#[tokio::test]
async fn a_list_that_names_one_key_twice_or_not_at_all_is_refused() {
    let story = Story::new();
    for containers in [json!([{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]), json!([{"image": "x"}])] {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}}});
        let refused =
            refusal(story.deployments.patch("d", &PatchParams::apply("one"), &Patch::Apply(deployment)).await);
        assert!(refused.message.contains(".spec.template.spec.containers"), "{}", refused.message);
    }
}

#[tokio::test]
async fn conditions_of_two_managers_live_side_by_side() {
    let story = Story::new();
    story
        .fake
        .create(&json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": "s"},
        "spec": {"source": {"image": {"ref": "x:1"}}}}))
        .unwrap();
    let servers: Api<mcp_hub_crds::MCPServer> = Api::default_namespaced(story.fake.client("story"));
    let condition = |name: &str, status: &str| json!({"type": name, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    for (manager, name) in [("one", "Ready"), ("two", "Resolved")] {
        let status = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "status": {"conditions": [condition(name, "True")]}});
        servers.patch_status("s", &PatchParams::apply(manager).force(), &Patch::Apply(status)).await.unwrap();
    }
    let types = || {
        let server = story.fake.get("MCPServer", "default", "s").unwrap();
        let conditions = server["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(types(), ["Ready", "Resolved"]);
    let none = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "status": {}});
    servers.patch_status("s", &PatchParams::apply("one").force(), &Patch::Apply(none)).await.unwrap();
    assert_eq!(types(), ["Resolved"]);
}

#[tokio::test]
async fn apply_needs_a_manager_and_no_owners_of_its_own() {
    let story = Story::new();
    let nobody = refusal(story.maps.patch("m", &PatchParams::apply(""), &Patch::Apply(map(json!({})))).await);
    assert_eq!(nobody.code, 422);
    let mut config = map(json!({}));
    config["metadata"] = json!({"managedFields": []});
    assert_eq!(refusal(story.maps.patch("m", &PatchParams::apply("one"), &Patch::Apply(config)).await).code, 400);
}

#[tokio::test]
async fn an_empty_list_in_a_network_policy_is_a_change_every_time() {
    // As seen on the real server, which compares the empty list with the missing one that it stored.
    let story = Story::new();
    let policies: Api<NetworkPolicy> = Api::default_namespaced(story.fake.client("story"));
    let apply = async |spec: Value| {
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec});
        let params = PatchParams::apply("one").force();
        policies.patch("p", &params, &Patch::Apply(policy)).await.unwrap().metadata.generation
    };
    let full = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    assert_eq!((apply(full.clone()).await, apply(full.clone()).await), (Some(1), Some(1)));
    let mut hollow = full.clone();
    hollow["ingress"] = json!([]);
    assert_eq!((apply(hollow.clone()).await, apply(hollow).await), (Some(2), Some(3)));
    assert_eq!(apply(full).await, Some(3));
}
