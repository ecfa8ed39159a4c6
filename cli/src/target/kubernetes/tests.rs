//! Stories of commands on a cluster that a fake API server plays.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use kube::{Client, Config, ResourceExt};
use mcp_hub_crds::source::{ImageSource, ResolvedImage};
use mcp_hub_crds::{MCPServer, ResourceKey, ResourceKind};
use mcp_hub_fakeapi::{Cut, FakeApi, Fault, Verb, When};
use mcp_hub_operator::runtime::{Askers, KubeRuntime};
use mcp_hub_operator::sink::KubeSink;
use mcp_hub_operator::store::KubeStore;
use mcp_hub_operator::{
    ClusterSettings, PackageSettings, PodHttp, ResolveError, ResolveImage, Scope as OperatorScope, identity,
};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::pass;
use mcp_hub_reconcile::ports::{LogQuery, Ports, ResourceStore};
use serde_json::{Value, json};

use super::Cluster;
use crate::admin::{Action, Name};
use crate::args::{Apply, Namespace, Wait};
use crate::commands::apply;
use crate::commands::wait::{self, Of};
use crate::error::{Error, Exit};
use crate::target::{Scope, Target};

struct Story {
    fake: FakeApi,
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Story {
    fn new() -> Self {
        let fake = FakeApi::new();
        for namespace in ["prod", "other", "mcp-hub-system"] {
            fake.namespace(namespace);
        }
        let cluster = Cluster::new(fake.client("mcpctl"), "team/a".to_owned(), "prod".to_owned());
        Self { fake, cluster, folder: tempfile::tempdir().unwrap() }
    }

    fn target(&self) -> &dyn Target {
        &self.cluster
    }

    fn has(&self, namespace: &str, name: &str, spec: &Value) -> Value {
        let metadata = json!({"name": name, "namespace": namespace});
        let object =
            json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": metadata, "spec": spec});
        self.fake.create(&object).unwrap()
    }

    fn server(&self, name: &str) -> Value {
        self.fake.get("MCPServer", "prod", name).unwrap()
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.folder.path().join("servers.yaml");
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn apply(&self, text: &str, namespace: Option<&str>, force_conflicts: bool) -> Result<(), Error> {
        let args = Apply {
            file: self.file(text),
            namespace: Namespace { namespace: namespace.map(str::to_owned) },
            force_conflicts,
            wait: Wait { wait: false, timeout: "1m".parse().unwrap() },
        };
        apply::apply(self.target(), &args).await
    }
}

fn image() -> Value {
    json!({"source": {"image": {"ref": "example.org/a:1", "command": ["/a"], "pinDigest": false}}})
}

fn manifest(name: &str, more: &str) -> String {
    format!(
        "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n  source: {{image: {{ref: \
         'example.org/a:1', command: [/a], pinDigest: false}}}}\n{more}---\n"
    )
}

fn named(name: &str) -> Name {
    Name { namespace: "prod".to_owned(), name: name.to_owned() }
}

fn key(name: &str) -> ResourceKey {
    named(name).key(ResourceKind::MCPServer)
}

/// What a person reads, and the exit code.
fn told<T: std::fmt::Debug>(result: Result<T, Error>) -> (Exit, String) {
    let error = result.unwrap_err();
    (error.exit(), format!("{error}\n{}", error.hint().unwrap_or_default()))
}

#[tokio::test]
async fn a_cluster_shows_the_contexts_namespace_unless_it_is_asked_for_others() {
    let story = Story::new();
    for (namespace, name) in [("prod", "b"), ("prod", "a"), ("other", "c")] {
        story.has(namespace, name, &image());
    }
    let names = async |scope: Scope| {
        let servers = story.target().servers(&scope).await.unwrap();
        assert!(servers.iter().all(|server| server.metadata.managed_fields.is_none()));
        servers.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    };
    assert_eq!(names(Scope::Usual).await, ["a", "b"]);
    assert_eq!(names(Scope::of("other")).await, ["c"]);
    assert_eq!(names(Scope::All).await, ["c", "a", "b"]);
}

#[tokio::test]
async fn manifests_go_to_the_contexts_namespace_or_to_the_one_they_name() {
    let story = Story::new();
    story.apply(&(manifest("a", "") + &manifest("b, namespace: other", "")), None, false).await.unwrap();
    assert_eq!(story.server("a")["metadata"]["managedFields"][0]["manager"], "mcpctl");
    assert!(story.server("a")["metadata"]["annotations"].is_null(), "a cluster has no folders");
    assert!(story.fake.get("MCPServer", "other", "b").is_some());

    story.apply(&manifest("c", ""), Some("other"), false).await.unwrap();
    assert!(story.fake.get("MCPServer", "other", "c").is_some());
    let (exit, text) = told(story.apply(&manifest("d, namespace: prod", ""), Some("other"), false).await);
    assert_eq!(exit, Exit::Invalid);
    assert!(text.contains("servers.yaml:1: MCPServer prod/d is not in namespace other"), "{text}");

    let (exit, text) = told(story.apply(&manifest("e, namespace: nowhere", ""), None, false).await);
    assert_eq!(exit, Exit::NotFound);
    assert!(text.contains("no namespace `nowhere`") && text.contains("kubectl create namespace nowhere"), "{text}");
}

#[tokio::test]
async fn a_mistake_in_a_manifest_is_found_before_anything_is_written() {
    let story = Story::new();
    let (exit, text) = told(story.apply(&(manifest("a", "") + &manifest("b", "  argz: [x]\n")), None, false).await);
    assert_eq!(exit, Exit::Invalid);
    assert!(text.contains("spec.argz") && text.contains("did you mean `args`?"), "{text}");
    assert_eq!(story.fake.writes(), 0);
}

#[tokio::test]
async fn fields_of_others_are_taken_over_only_by_force() {
    let story = Story::new();
    story.apply(&manifest("a", "  args: [mine]\n"), None, false).await.unwrap();
    story.fake.edit("MCPServer", "prod", "a", |server| server["spec"]["args"] = json!(["theirs"])).unwrap();

    let (exit, text) = told(story.apply(&manifest("a", "  args: [again]\n"), None, false).await);
    assert_eq!(exit, Exit::Held);
    assert!(text.contains("MCPServer prod/a is not applied: spec.args: conflict with \"test\""), "{text}");
    assert!(text.contains("--force-conflicts"), "{text}");
    assert_eq!(story.server("a")["spec"]["args"], json!(["theirs"]));

    story.apply(&manifest("a", "  args: [again]\n"), None, true).await.unwrap();
    assert_eq!(story.server("a")["spec"]["args"], json!(["again"]));
}

#[tokio::test]
async fn stop_start_and_restart_are_annotations_that_apply_leaves_alone() {
    let story = Story::new();
    story.apply(&(manifest("a", "") + &manifest("b", "")), None, false).await.unwrap();
    let annotations = |name: &str| story.server(name)["metadata"]["annotations"].clone();

    let (exit, text) = told(story.target().act(Action::Stop, &[named("a"), named("typo")]).await);
    assert_eq!(exit, Exit::NotFound);
    assert!(text.contains("there is no server `typo`\nthere are: a, b"), "{text}");
    assert!(annotations("a").is_null(), "all are known before anything is done");

    story.target().act(Action::Stop, &[named("a"), named("b")]).await.unwrap();
    assert_eq!(annotations("a"), json!({"mcphub.io/stopped": "true"}));
    story.apply(&manifest("a", "  args: [x]\n"), None, false).await.unwrap();
    assert_eq!(annotations("a"), json!({"mcphub.io/stopped": "true"}));
    story.target().act(Action::Start, &[named("a")]).await.unwrap();
    assert_eq!(annotations("a").as_object().map_or(0, serde_json::Map::len), 0);
    assert_eq!(annotations("b"), json!({"mcphub.io/stopped": "true"}));

    story.target().act(Action::Restart, &[named("a")]).await.unwrap();
    let at = annotations("a")["mcphub.io/restarted-at"].as_str().unwrap().to_owned();
    assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_what_is_not_there_is_named() {
    let story = Story::new();
    story.has("prod", "a", &image());
    story.has("prod", "b", &image());
    story.target().delete(&key("a")).await.unwrap();
    assert!(story.fake.get("MCPServer", "prod", "a").is_none());
    let (exit, text) = told(story.target().delete(&key("a")).await);
    assert_eq!((exit, text.as_str()), (Exit::NotFound, "there is no server `a`\nthere are: b"));
}

#[tokio::test]
async fn a_cluster_without_mcp_hub_says_how_to_install_it() {
    let story = Story::new();
    story.fake.undefine("mcphub.io", "mcpservers");
    for (exit, text) in [
        told(story.target().servers(&Scope::Usual).await),
        told(story.apply(&manifest("a", ""), None, false).await),
        told(story.target().delete(&key("a")).await),
        told(story.target().watch(&Scope::Usual).await.unwrap().next().await.unwrap()),
    ] {
        assert_eq!(exit, Exit::NoAnswer, "{text}");
        assert!(
            text.contains("cluster team/a knows no mcpservers.mcphub.io") && text.contains("helm install"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn what_a_role_forbids_is_said_with_verb_and_resource() {
    let story = Story::new();
    story.has("prod", "a", &image());
    let deny = |verb: Verb| story.fake.inject(When::verb(verb).kind("MCPServer"), Fault::Answer(403));
    deny(Verb::List);
    let (exit, text) = told(story.target().servers(&Scope::Usual).await);
    assert_eq!(exit, Exit::Forbidden);
    assert!(text.contains("does not let you list mcpservers.mcphub.io in namespace prod"), "{text}");
    assert!(text.contains("a role that allows to list mcpservers.mcphub.io in namespace prod"), "{text}");
    deny(Verb::List);
    let (_, text) = told(story.target().servers(&Scope::All).await);
    assert!(text.contains("list mcpservers.mcphub.io in all namespaces"), "{text}");
    deny(Verb::Apply);
    let (_, text) = told(story.apply(&manifest("a", ""), None, false).await);
    assert!(text.contains("let you patch mcpservers.mcphub.io"), "{text}");
    deny(Verb::Watch);
    // A wait ends at once instead of asking again and again.
    let mut watch = story.target().watch(&Scope::Usual).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 1);
    let (exit, text) = told(watch.next().await.unwrap());
    assert_eq!(exit, Exit::Forbidden);
    assert!(text.contains("let you watch mcpservers.mcphub.io in namespace prod"), "{text}");

    story.fake.inject(When::verb(Verb::List), Fault::Answer(401));
    let (exit, text) = told(story.target().servers(&Scope::Usual).await);
    assert_eq!(exit, Exit::Forbidden);
    assert!(text.contains("does not accept your credentials"), "{text}");
}

#[tokio::test]
async fn an_api_server_that_is_down_is_told_from_one_that_refuses() {
    let port = mcp_hub_test_port::free_port().unwrap();
    let mut config = Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    config.default_retry = false;
    let cluster = Cluster::new(Client::try_from(config).unwrap(), "far".to_owned(), "prod".to_owned());
    let (exit, text) = told(cluster.servers(&Scope::Usual).await);
    assert_eq!(exit, Exit::NoAnswer);
    assert!(text.starts_with("cluster far cannot be reached: Connection refused"), "{text}");

    let story = Story::new();
    story.fake.inject(When::verb(Verb::List), Fault::Answer(500));
    assert_eq!(told(story.target().servers(&Scope::Usual).await).0, Exit::Failed);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_waited_for_for_ever() {
    let story = Story::new();
    story.fake.inject(When::verb(Verb::List), Fault::Hang);
    let (exit, text) = told(story.target().servers(&Scope::Usual).await);
    assert_eq!(exit, Exit::NoAnswer);
    assert!(text.contains("no answer within 60 s"), "{text}");
}

#[tokio::test]
async fn a_wait_ends_with_the_status_also_after_its_watch_broke() {
    let story = Story::new();
    story.has("prod", "a", &image());
    story.has("prod", "bystander", &image());
    let wait = Wait { wait: true, timeout: "1m".parse().unwrap() };
    let names = Of::Named(vec![named("a")]);
    let settles = wait::settle(story.target(), wait, &names);
    let happens = async {
        // A watch changes nothing that could be waited for.
        while !story.fake.log().iter().any(|entry| entry.verb == Verb::Watch) {
            tokio::task::yield_now().await;
        }
        story.fake.cut_watches("MCPServer", Cut::Broken);
        story.fake.edit("MCPServer", "prod", "a", |server| {
            server["status"] = json!({"observedGeneration": 1, "phase": "CrashLoop", "conditions": [{
                "type": "Ready", "status": "False", "reason": "CrashLoop", "message": "it ends",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        })
    };
    let (settled, happened) = tokio::join!(settles, happens);
    happened.unwrap();
    let (exit, text) = told(settled);
    assert_eq!(exit, Exit::Failed);
    assert!(text.starts_with("a is not ready (CrashLoop): it ends"), "{text}");
}

#[tokio::test]
async fn a_hubs_token_is_its_own_and_not_a_namesakes() {
    let story = Story::new();
    let hub = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": "h", "namespace": "prod"}, "spec": {}});
    let uid = story.fake.create(&hub).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let (exit, text) = told(story.target().endpoint(&named("h")).await);
    assert_eq!((exit, text.trim_end()), (Exit::Failed, "hub `h` has no endpoint: it has not started yet"));
    let (exit, text) = told(story.target().endpoint(&named("x")).await);
    assert_eq!((exit, text.as_str()), (Exit::NotFound, "there is no hub `x`\nthere are: h"));

    let secret = |uid: &str| {
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "mcp-hub-h-token", "namespace": "prod", "labels": {"mcphub.io/owner-uid": uid}},
            "stringData": {"token": "t0ken", "url": "http://mcp-hub-h.prod.svc:8080/mcp"}})
    };
    story.fake.create(&secret("of-the-one-before")).unwrap();
    assert_eq!(told(story.target().endpoint(&named("h")).await).0, Exit::Failed);
    story.fake.delete("Secret", "prod", "mcp-hub-h-token");
    story.fake.create(&secret(&uid)).unwrap();
    let endpoint = story.target().endpoint(&named("h")).await.unwrap();
    assert_eq!(endpoint.url, "http://mcp-hub-h.prod.svc:8080/mcp");
    assert_eq!(endpoint.token.unwrap().expose_secret(), "t0ken");
}

#[tokio::test]
async fn a_hub_without_a_ready_gateway_and_a_server_without_a_pod_are_no_mystery() {
    let story = Story::new();
    let hub = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": "h", "namespace": "prod"}, "spec": {}});
    story.fake.create(&hub).unwrap();
    let door = story.target().door(&named("h")).await.unwrap();
    let (exit, text) = told(door.open("mcp-hub-h.prod.svc:8080").await.map(drop));
    assert_eq!(exit, Exit::Failed);
    assert!(text.starts_with("none of the 0 gateways of hub `h` is ready"), "{text}");

    story.has("prod", "a", &image());
    let (exit, text) = told(story.target().logs(&named("a"), LogQuery { tail: 10, follow: false }).await.map(drop));
    assert_eq!(exit, Exit::NotFound);
    assert!(text.starts_with("there is no pod of server `a`\na cluster keeps no log"), "{text}");
}

#[tokio::test]
async fn events_are_those_of_servers_and_hubs_oldest_first() {
    let story = Story::new();
    let event = |name: &str, kind: &str, at: &str, count: Value| {
        let series =
            if count.is_null() { json!({}) } else { json!({"series": {"count": count, "lastObservedTime": at}}) };
        let mut event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": format!("{name}-{kind}").to_lowercase(), "namespace": "prod"}, "type": "Warning", "reason": "NotReady",
            "note": "CrashLoop: it ends", "action": "Reconcile", "eventTime": at, "reportingController": "mcp-hub-operator",
            "reportingInstance": "o", "regarding": {"kind": kind, "name": name, "namespace": "prod"}});
        event.as_object_mut().unwrap().extend(series.as_object().unwrap().clone());
        story.fake.create(&event).unwrap();
    };
    event("h", "MCPHub", "2026-01-02T00:00:00.000000Z", json!(3));
    event("a", "MCPServer", "2026-01-01T00:00:00.000000Z", Value::Null);
    event("x", "Pod", "2026-01-01T00:00:00.000000Z", Value::Null);
    let events = story.target().events(&Scope::Usual).await.unwrap();
    let shown: Vec<_> =
        events.iter().map(|event| (event.object.as_str(), event.count, event.message.as_str())).collect();
    assert_eq!(shown, [("MCPServer prod/a", 1, "CrashLoop: it ends"), ("MCPHub prod/h", 3, "CrashLoop: it ends")]);
}

#[derive(Debug)]
struct NoRegistry;

#[async_trait]
impl ResolveImage for NoRegistry {
    async fn resolve(&self, _: &ImageSource, _: &str) -> Result<ResolvedImage, ResolveError> {
        Err(ResolveError { message: "there is none".to_owned(), hint: None, retry: Retry::OnChange })
    }
}

impl Story {
    fn operator_pod(&self, args: &Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "operator-1", "namespace": "mcp-hub-system", "labels": {"mcphub.io/role": "operator"}},
            "spec": {"containers": [{"name": "operator", "image": "operator:1", "args": args}]}});
        self.fake.create(&pod).unwrap();
    }

    /// An operator as `operator_pod` says it was started.
    async fn operator(&self) -> (Ports, Arc<KubeStore>) {
        let client = self.fake.client("mcp-hub-operator");
        let installation = identity::installation(&client, "mcp-hub-system").await.unwrap();
        let settings = ClusterSettings {
            namespace: "mcp-hub-system".to_owned(),
            bridge_image: "bridge:1".to_owned(),
            runner_image: "runner:1".to_owned(),
            packages: PackageSettings::default(),
            gateway_image: "gateway:1".to_owned(),
            network_policies_enforced: false,
            relay: None,
        };
        let scope = OperatorScope::default();
        let http = Arc::new(PodHttp::default());
        let askers = Askers { bridges: http.clone(), images: Arc::new(NoRegistry) };
        let runtime = KubeRuntime::start(&client, &scope, settings, &installation, askers);
        let sink = KubeSink::start(runtime.clone(), installation.clone(), http, None);
        let store = KubeStore::start(&client, &scope, "o");
        (Ports { store: store.clone(), runtime, sink, installation }, store)
    }

    async fn plan(&self, file: Option<&Path>) -> Vec<String> {
        let planned = self.target().plan(file, &Scope::Usual).await.unwrap();
        let lines = planned.into_iter().flat_map(|server| match server.problem {
            Some(problem) => vec![format!("! {}: {problem}", server.server)],
            None => server.steps,
        });
        lines.collect()
    }
}

#[tokio::test]
async fn a_plan_is_what_the_operator_then_does_and_does_nothing_itself() {
    let story = Story::new();
    story.operator_pod(&json!(["--bridge-image=bridge:1", "--runner-image=runner:1", "--gateway-image=gateway:1"]));
    let (ports, store) = story.operator().await;
    let file = story.file(&manifest("a", ""));
    assert_eq!(story.plan(Some(&file)).await, [". prepare image a"]);
    assert!(story.fake.get("MCPServer", "prod", "a").is_none(), "a plan applies nothing");

    story.apply(&manifest("a", ""), None, false).await.unwrap();
    assert_eq!(story.plan(None).await, [". prepare image a"]);
    let reconcile = async || {
        let server: MCPServer = serde_json::from_value(story.server("a")).unwrap();
        store.servers().wait_until_ready().await.unwrap();
        pass::server(&server, &ports).await.unwrap();
    };
    reconcile().await;
    assert_eq!(story.plan(None).await, [] as [&str; 0]);
    assert!(story.fake.get("Deployment", "prod", "mcp-a").is_some());

    let before = story.fake.snapshot();
    let changed = story.file(&manifest("a", "  args: [x]\n"));
    assert_eq!(story.plan(Some(&changed)).await, ["+ apply Deployment mcp-a"]);
    assert_eq!(story.fake.snapshot(), before);
    story.apply(&manifest("a", "  args: [x]\n"), None, false).await.unwrap();
    assert_eq!(story.plan(None).await, ["+ apply Deployment mcp-a"]);
    reconcile().await;
    assert_eq!(story.plan(None).await, [] as [&str; 0]);

    story.target().act(Action::Stop, &[named("a")]).await.unwrap();
    assert_eq!(
        story.plan(None).await,
        ["- remove Service mcp-a", "- remove Deployment mcp-a", "- remove NetworkPolicy mcp-a"]
    );
}

#[tokio::test]
async fn what_a_plan_cannot_know_is_said_and_not_guessed() {
    let story = Story::new();
    story.has("prod", "a", &image());
    let plan = async || told(story.target().plan(None, &Scope::Usual).await);
    let (exit, text) = plan().await;
    assert_eq!(exit, Exit::NoAnswer);
    assert!(text.contains("no operator runs on this cluster"), "{text}");

    story.operator_pod(&json!([
        "--bridge-image=bridge:1",
        "--runner-image=runner:1",
        "--gateway-image=gateway:1",
        "--watch-namespaces=other"
    ]));
    let (exit, text) = plan().await;
    assert_eq!(exit, Exit::Failed);
    assert!(text.contains("has not made its Secret mcp-hub-installation"), "{text}");
    story.fake.inject(When::verb(Verb::Get).kind("Secret"), Fault::Answer(403));
    let (exit, text) = plan().await;
    assert_eq!(exit, Exit::Forbidden);
    assert!(text.contains("let you get secrets/mcp-hub-installation in namespace mcp-hub-system"), "{text}");

    let (_ports, _store) = story.operator().await;
    assert_eq!(story.plan(None).await, ["! a: the operator does not look after namespace prod"]);
}

#[tokio::test]
async fn the_versions_of_a_cluster_name_the_operator_or_say_that_there_is_none() {
    let story = Story::new();
    let versions = async || {
        let versions = story.target().versions().await.unwrap();
        versions.into_iter().map(|version| (version.of, version.text)).collect::<Vec<_>>()
    };
    let [(cluster, server), (_, operator)] = versions().await.try_into().unwrap();
    assert!(cluster == "cluster" && server.ends_with("(context team/a)"), "{server}");
    assert_eq!(operator, "not running");
    story.operator_pod(&json!(["--bridge-image=b", "--runner-image=r", "--gateway-image=g"]));
    assert_eq!(versions().await[1], ("operator", "operator:1 (pod mcp-hub-system/operator-1)".to_owned()));
}
