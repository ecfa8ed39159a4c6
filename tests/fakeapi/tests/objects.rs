//! Stories of reading and writing, through kube's own client.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use kube::api::{
    DeleteParams, ListParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::core::Status;
use kube::{Api, Error, ResourceExt};
use mcp_hub_crds::MCPServer;
use mcp_hub_fakeapi::{FakeApi, Verb};
use serde_json::{Value, json};

fn status<T: std::fmt::Debug>(result: Result<T, Error>) -> Status {
    match result {
        Err(Error::Api(status)) => *status,
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

fn map(name: &str, data: Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap()
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [
                {"name": "main", "image": "busybox:1", "ports": [{"containerPort": 80}],
                 "resources": {"limits": {"cpu": "1000m"}}}]}},
        },
    })
}

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let fake = FakeApi::new();
    let maps: Api<ConfigMap> = Api::default_namespaced(fake.client("story"));
    let made = maps.create(&PostParams::default(), &map("a", json!({"x": "1"}))).await.unwrap();
    assert_eq!(made.namespace().as_deref(), Some("default"));
    assert!(made.uid().is_some() && made.creation_timestamp().is_some() && made.metadata.generation.is_none());
    let entry = &made.managed_fields()[0];
    assert_eq!((entry.manager.as_deref(), entry.operation.as_deref()), (Some("story"), Some("Update")));

    let again = status(maps.create(&PostParams::default(), &map("a", json!({}))).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(again.details.unwrap().kind, "configmaps");

    let mut changed = maps.get("a").await.unwrap();
    changed.data.as_mut().unwrap().insert("y".to_owned(), "2".to_owned());
    let changed = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert!(changed.resource_version() > made.resource_version());
    let stale = status(maps.replace("a", &PostParams::default(), &made).await);
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));

    // What changes nothing is no write.
    let same = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(same.resource_version(), changed.resource_version());

    let patched =
        maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"x": null, "z": "3"}}))).await.unwrap();
    assert_eq!(json!(patched.data), json!({"y": "2", "z": "3"}));

    let gone = maps.delete("a", &DeleteParams::default()).await.unwrap().right().unwrap();
    assert_eq!(gone.details.unwrap().name, "a");
    assert_eq!(maps.get_opt("a").await.unwrap(), None);
    assert_eq!(status(maps.delete("a", &DeleteParams::default()).await).reason, "NotFound");
    assert_eq!(fake.writes(), 8);
    let verbs: Vec<Verb> = fake.log().iter().map(|entry| entry.verb).collect();
    assert_eq!(verbs[..4], [Verb::Create, Verb::Create, Verb::Get, Verb::Update]);
    assert!(fake.log().iter().all(|entry| entry.user_agent == "story"));
}

#[tokio::test]
async fn a_name_can_be_left_to_the_server() {
    let fake = FakeApi::new();
    let maps: Api<ConfigMap> = Api::default_namespaced(fake.client("story"));
    let named = |prefix: &str| ConfigMap {
        metadata: ObjectMeta { generate_name: Some(prefix.to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let a = maps.create(&PostParams::default(), &named("a-")).await.unwrap().name_any();
    let b = maps.create(&PostParams::default(), &named("a-")).await.unwrap().name_any();
    assert!(a.starts_with("a-") && a.len() == 7 && a != b, "{a} {b}");
    assert_eq!(status(maps.create(&PostParams::default(), &ConfigMap::default()).await).code, 422);
}

#[tokio::test]
async fn lists_select_page_and_show_one_moment() {
    let fake = FakeApi::new();
    fake.namespace("other");
    let client = fake.client("story");
    for (namespace, name, tier) in
        [("default", "a", "x"), ("default", "b", "y"), ("default", "c", "x"), ("other", "a", "x")]
    {
        fake.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": name, "namespace": namespace, "labels": {"tier": tier}}}))
            .unwrap();
    }
    let here: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let all: Api<ConfigMap> = Api::all(client);
    let names = |list: &kube::core::ObjectList<ConfigMap>| {
        list.items.iter().map(|one| format!("{}/{}", one.namespace().unwrap(), one.name_any())).collect::<Vec<_>>()
    };
    let of = |labels: &str| ListParams::default().labels(labels);
    assert_eq!(names(&here.list(&of("tier=x")).await.unwrap()), ["default/a", "default/c"]);
    assert_eq!(names(&all.list(&of("tier in (x),tier")).await.unwrap()), ["default/a", "default/c", "other/a"]);
    let one = ListParams::default().fields("metadata.name=a");
    assert_eq!(names(&all.list(&one).await.unwrap()), ["default/a", "other/a"]);
    assert_eq!(status(all.list(&ListParams::default().fields("data.x=1")).await).code, 400);

    let first = all.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(names(&first), ["default/a", "default/b"]);
    assert_eq!(first.metadata.remaining_item_count, Some(2));
    // The second page knows nothing of what happens in between.
    fake.delete("ConfigMap", "default", "c");
    let token = first.metadata.continue_.unwrap();
    let second = all.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!(names(&second), ["default/c", "other/a"]);
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(second.metadata.continue_, None);

    fake.compact();
    let late = status(all.list(&ListParams::default().limit(2).continue_token(&token)).await);
    assert_eq!((late.code, late.reason.as_str()), (410, "Expired"));
}

#[tokio::test]
async fn metadata_alone_is_sent_to_those_who_ask_for_it() {
    let fake = FakeApi::new();
    fake.create(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}))
        .unwrap();
    let secrets: Api<Secret> = Api::default_namespaced(fake.client("story"));
    let list = secrets.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].name_any(), "s");
    assert_eq!(list.items[0].types.as_ref().unwrap().kind, "PartialObjectMetadata");
    let one: PartialObjectMeta<Secret> = secrets.get_metadata("s").await.unwrap();
    assert_eq!(one.name_any(), "s");
    let whole = secrets.get("s").await.unwrap();
    assert_eq!(whole.data.unwrap()["k"].0, b"v");
    assert_eq!(whole.type_.as_deref(), Some("Opaque"));
}

#[tokio::test]
async fn the_server_fills_in_what_a_deployment_and_a_service_leave_out() {
    let fake = FakeApi::new();
    let deployments: Api<Deployment> = Api::default_namespaced(fake.client("story"));
    let params = PatchParams::apply("story");
    deployments.patch("web", &params, &Patch::Apply(deployment("web"))).await.unwrap();
    let stored = fake.get("Deployment", "default", "web").unwrap();
    assert_eq!(stored["metadata"]["generation"], 1);
    assert_eq!(stored["spec"]["replicas"], 1);
    assert_eq!(stored["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    let container = &stored["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(container["resources"]["limits"]["cpu"], "1");
    // Only what was applied is owned.
    let owned = stored["metadata"]["managedFields"][0]["fieldsV1"].to_string();
    assert!(owned.contains("f:image") && !owned.contains("f:replicas") && !owned.contains("f:imagePullPolicy"));

    let services: Api<Service> = Api::default_namespaced(fake.client("story"));
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}});
    services.patch("web", &params, &Patch::Apply(&service)).await.unwrap();
    let stored = services.get("web").await.unwrap().spec.unwrap();
    let address = stored.cluster_ip.clone().unwrap();
    assert!(address.starts_with("10.96."), "{address}");
    assert_eq!(stored.cluster_ips, Some(vec![address]));
    let mut headless = service.clone();
    headless["spec"]["clusterIP"] = json!("None");
    let refused = status(services.patch("web", &params, &Patch::Apply(&headless)).await);
    assert_eq!(refused.details.unwrap().causes[0].field, "spec.clusterIPs[0]");
    // Applied again, nothing changes.
    let revision = fake.revision();
    services.patch("web", &params, &Patch::Apply(&service)).await.unwrap();
    deployments.patch("web", &params, &Patch::Apply(deployment("web"))).await.unwrap();
    assert_eq!(fake.revision(), revision);
}

#[tokio::test]
async fn spec_and_status_have_their_own_doors() {
    let fake = FakeApi::new();
    let servers: Api<MCPServer> = Api::default_namespaced(fake.client("operator"));
    let spec = json!({"source": {"image": {"ref": "busybox:1"}}});
    let server = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": "a"},
        "spec": spec, "status": {"phase": "Ready"}});
    let params = PatchParams::apply("operator").force();
    let made = servers.patch("a", &params, &Patch::Apply(&server)).await.unwrap();
    assert_eq!((made.status.is_none(), made.metadata.generation), (true, Some(1)));

    let condition = json!({"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status_only = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
        "spec": {"source": {"image": {"ref": "other"}}},
        "status": {"phase": "Ready", "observedGeneration": 1, "conditions": [condition]}});
    let seen = servers.patch_status("a", &params, &Patch::Apply(&status_only)).await.unwrap();
    assert_eq!((json!(seen.spec), seen.metadata.generation), (spec, Some(1)));
    assert_eq!(json!(seen.status.as_ref().unwrap().phase), "Ready");
    let managers: Vec<_> = seen.managed_fields().iter().map(|entry| entry.subresource.clone()).collect();
    assert_eq!(managers, [None, Some("status".to_owned())]);

    let mut changed = server.clone();
    changed["spec"]["paused"] = json!(true);
    let changed = servers.patch("a", &params, &Patch::Apply(&changed)).await.unwrap();
    assert_eq!((changed.metadata.generation, changed.status), (Some(2), seen.status));
}

#[tokio::test]
async fn our_resources_are_held_to_their_rules() {
    let fake = FakeApi::new();
    let servers: Api<MCPServer> = Api::default_namespaced(fake.client("person"));
    let create = |name: &str, spec: Value| {
        let server =
            json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": name}, "spec": spec});
        fake.create(&server)
    };
    let refused = create("a", json!({"source": {"image": {"ref": "x"}}, "replicas": 1000})).unwrap_err();
    assert_eq!(refused.status()["code"], 422);
    assert_eq!(refused.status()["details"]["causes"][0]["field"], "spec.replicas");
    let refused = create("a", json!({"source": {"image": {"ref": "x"}}, "roots": "Forward"})).unwrap_err();
    assert!(refused.to_string().contains("perClient"), "{refused}");
    let refused = create("an_underscore", json!({"source": {"image": {"ref": "x"}}})).unwrap_err();
    assert_eq!(refused.status()["code"], 422);
    // An unknown field is dropped, unless the client is strict.
    let made = create("a", json!({"source": {"image": {"ref": "x"}}, "typo": 1})).unwrap();
    assert_eq!(made["spec"], json!({"source": {"image": {"ref": "x"}}}));
    let params =
        PatchParams { field_validation: Some(kube::api::ValidationDirective::Strict), ..PatchParams::default() };
    let strict = status(servers.patch("a", &params, &Patch::Merge(json!({"spec": {"typo": 1}}))).await);
    assert!(strict.message.contains("spec.typo"), "{}", strict.message);
}

#[tokio::test]
async fn a_finalizer_keeps_an_object_until_it_is_taken_away() {
    let fake = FakeApi::new();
    let maps: Api<ConfigMap> = Api::default_namespaced(fake.client("story"));
    let mut object = map("a", json!({}));
    object.metadata.finalizers = Some(vec!["story/keep".to_owned()]);
    maps.create(&PostParams::default(), &object).await.unwrap();
    let going = maps.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    let more = Patch::Merge(json!({"metadata": {"finalizers": ["story/keep", "story/more"]}}));
    assert_eq!(status(maps.patch("a", &PatchParams::default(), &more).await).code, 422);
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("a", &PatchParams::default(), &none).await.unwrap();
    assert_eq!(maps.get_opt("a").await.unwrap(), None);
}

#[tokio::test]
async fn a_delete_hits_only_what_was_meant() {
    let fake = FakeApi::new();
    let maps: Api<ConfigMap> = Api::default_namespaced(fake.client("story"));
    let made = maps.create(&PostParams::default(), &map("a", json!({}))).await.unwrap();
    let when = |uid: Option<String>, resource_version: Option<String>| {
        DeleteParams::default().preconditions(Preconditions { uid, resource_version })
    };
    assert_eq!(status(maps.delete("a", &when(Some("other".to_owned()), None)).await).reason, "Conflict");
    assert_eq!(status(maps.delete("a", &when(None, Some("1".to_owned()))).await).reason, "Conflict");
    maps.delete("a", &when(made.uid(), made.resource_version())).await.unwrap();

    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &map(name, json!({}))).await.unwrap();
    }
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().fields("metadata.name!=b")).await.unwrap();
    let left = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn what_has_lost_its_owner_is_collected() {
    let fake = FakeApi::new();
    let owner = fake.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})).unwrap();
    let child = |name: &str, owner: &Value| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "ownerReferences": [{
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true}]}})
    };
    let first = fake.create(&child("first", &owner)).unwrap();
    fake.create(&child("second", &first)).unwrap();
    assert_eq!(fake.collect_garbage(), 0);
    fake.delete("ConfigMap", "default", "owner");
    assert_eq!(fake.list("Secret").len(), 2);
    assert_eq!(fake.collect_garbage(), 2);
    assert_eq!(fake.list("Secret").len(), 0);

    // Foreground: the owner goes last. Orphan: the dependents stay.
    let maps: Api<ConfigMap> = Api::default_namespaced(fake.client("story"));
    for (policy, left) in [(PropagationPolicy::Foreground, 0), (PropagationPolicy::Orphan, 1)] {
        let owner =
            fake.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})).unwrap();
        fake.create(&child("first", &owner)).unwrap();
        let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
        assert!(maps.delete("owner", &params).await.unwrap().is_left());
        fake.collect_garbage();
        assert_eq!(fake.get("ConfigMap", "default", "owner"), None);
        assert_eq!(fake.list("Secret").len(), left);
    }
    // A name used again is another owner.
    let imposter = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "uid": "x"}});
    fake.create(&child("third", &imposter)).unwrap();
    fake.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})).unwrap();
    fake.collect_garbage();
    assert_eq!(fake.get("Secret", "default", "third"), None);
}

#[tokio::test]
async fn a_namespace_takes_all_with_it() {
    let fake = FakeApi::new();
    let client = fake.client("story");
    let in_nowhere: Api<ConfigMap> = Api::namespaced(client.clone(), "nowhere");
    let missing = status(in_nowhere.create(&PostParams::default(), &map("a", json!({}))).await);
    assert_eq!((missing.code, missing.details.unwrap().kind.as_str()), (404, "namespaces"));
    fake.namespace("nowhere");
    in_nowhere.create(&PostParams::default(), &map("a", json!({}))).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client);
    let going = namespaces.delete("nowhere", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(going.status.unwrap().phase.as_deref(), Some("Terminating"));
    let refused = status(in_nowhere.create(&PostParams::default(), &map("b", json!({}))).await);
    assert_eq!((refused.code, refused.details.unwrap().causes[0].reason.as_str()), (403, "NamespaceTerminating"));
    fake.collect_garbage();
    assert_eq!(namespaces.get_opt("nowhere").await.unwrap(), None);
    assert_eq!(fake.list("ConfigMap").len(), 0);
}

#[tokio::test]
async fn a_lease_is_held_by_one() {
    let fake = FakeApi::new();
    let leases: Api<Lease> = Api::default_namespaced(fake.client("operator"));
    let lease = |holder: &str, version: Option<String>| Lease {
        metadata: ObjectMeta { name: Some("leader".to_owned()), resource_version: version, ..ObjectMeta::default() },
        spec: Some(serde_json::from_value(json!({"holderIdentity": holder, "leaseDurationSeconds": 15})).unwrap()),
    };
    let first = leases.create(&PostParams::default(), &lease("a", None)).await.unwrap();
    let blind = status(leases.replace("leader", &PostParams::default(), &lease("b", None)).await);
    assert_eq!(blind.code, 422);
    leases.replace("leader", &PostParams::default(), &lease("b", first.resource_version())).await.unwrap();
    assert_eq!(
        status(leases.replace("leader", &PostParams::default(), &lease("c", first.resource_version())).await).code,
        409
    );
}

#[tokio::test]
async fn pods_on_a_node_end_in_their_own_time() {
    let fake = FakeApi::new();
    let pods: Api<Pod> = Api::default_namespaced(fake.client("story"));
    let pod = |name: &str, node: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "a", "image": "x:1"}]}})
    };
    fake.create(&pod("free", Value::Null)).unwrap();
    fake.create(&pod("placed", json!("node-1"))).unwrap();
    pods.delete("free", &DeleteParams::default()).await.unwrap();
    assert_eq!(pods.get_opt("free").await.unwrap(), None);
    pods.delete("placed", &DeleteParams::default()).await.unwrap();
    let going = pods.get("placed").await.unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("placed", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(pods.get_opt("placed").await.unwrap(), None);
}
