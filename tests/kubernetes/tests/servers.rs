//! From an applied resource to a tool's answer, and what status says on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use mcp_hub_crds::MCPServer;
use mcp_hub_kubernetes_tests::{Place, condition, eventually, fixture, hub, ready_reason, remains};
use serde_json::json;

#[tokio::test]
async fn a_stdio_and_an_http_server_answer_a_client_through_the_hub() {
    let (place, _lease) = Place::new("answer").await;
    place.apply(&fixture("stdio", &["stdio"], "")).await;
    place
        .apply(&fixture("web", &["http", "--port", "9000"], "  transport: {type: streamable-http, port: 9000}\n"))
        .await;
    place.apply(&fixture("old", &["http", "--port", "7337", "--sse"], "  transport: {type: sse, port: 7337}\n")).await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    place.until_served("default", 3).await;

    let session = place.connect("default", None).await;
    session.until_listed(&["stdio_echo", "web_echo", "old_echo"]).await;
    for name in ["stdio", "web", "old"] {
        assert_eq!(session.call(&format!("{name}_echo"), json!({"text": name})).await.unwrap(), name);
    }
    let one = place.connect("default", Some("web")).await;
    assert_eq!(one.call("echo", json!({"text": "own name"})).await.unwrap(), "own name");

    // Three objects and one pod each.
    for name in ["stdio", "web", "old"] {
        let kinds: Vec<String> =
            remains(&place, name).await.into_keys().map(|key| key.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["Deployment", "NetworkPolicy", "Pod", "Service"], "{name}");
    }
    let server: MCPServer =
        place.until("stdio", "status", |server: &MCPServer| ready_reason(server) == Some("Ready")).await;
    let status = server.status.unwrap();
    assert_eq!(status.endpoint.unwrap(), format!("http://mcp-stdio.{}.svc:7337/mcp", place.name));
    assert_eq!(status.server.unwrap().name, "fixture-server");
    assert!(status.tools.unwrap().count > 10);
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let (place, _lease) = Place::new("why").await;
    place
        .apply(&fixture(
            "crash",
            &["stdio", "--exit-code", "3"],
            "  restart: {backoff: {initial: 100ms, max: 200ms}}\n",
        ))
        .await;
    place.apply(&fixture("mute", &["stdio", "--silent"], "  timeouts: {start: 2s}\n")).await;
    place.apply("apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: nowhere}\nspec:\n  source: {image: {ref: \"localhost/mcp-hub/nowhere:1\", command: [/x]}}\n").await;
    place.apply("apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: unknown}\nspec:\n  source: {image: {ref: \"localhost:1/unknown:1\"}}\n").await;
    place.apply(&fixture("huge", &["stdio"], "  resources: {requests: {memory: 900Ti}}\n")).await;
    place.apply(&fixture("lacking", &["stdio"], "  env: [{name: A, secretRef: {name: later, key: a}}]\n")).await;
    place.apply("apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: program}\nspec:\n  source: {command: {path: ./x}}\n").await;
    place.apply(&fixture("folder", &["stdio"], "  volumes: [{name: v, hostPath: /etc, mountPath: /v}]\n")).await;
    place.apply(&fixture("strong", &["stdio"], "  kubernetes: {podTemplate: {spec: {hostNetwork: true}}}\n")).await;

    let crash = place.until_reason("crash", "CrashLoop").await;
    let (_, _, message) = condition(&crash, "Ready").unwrap();
    assert!(message.contains('3'), "{message}");
    let mute = place.until("mute", "it to be given up on", |server: &MCPServer| {
        server.status.as_ref().and_then(|status| status.last_error.as_ref()).is_some()
    });
    let mute = mute.await;
    assert_eq!(condition(&mute, "Ready").unwrap().0, "False");

    let nowhere = place.until_reason("nowhere", "ImagePullFailed").await;
    let (_, _, message) = condition(&nowhere, "Ready").unwrap();
    assert!(message.contains("localhost/mcp-hub/nowhere:1") && message.contains("pullSecretRef"), "{message}");
    let unknown = place.until_reason("unknown", "ImageUnresolved").await;
    assert_eq!(condition(&unknown, "Resolved").unwrap().0, "False");
    assert!(condition(&unknown, "Resolved").unwrap().2.contains("spec.source.image.command"));
    let huge = place.until_reason("huge", "Unschedulable").await;
    assert!(condition(&huge, "Ready").unwrap().2.contains("memory"));

    for (name, field) in [
        ("program", "spec.source.command"),
        ("folder", "spec.volumes[v].hostPath"),
        ("strong", "spec.kubernetes.podTemplate.spec.hostNetwork"),
    ] {
        let server = place.until_reason(name, "Unsupported").await;
        let (status, _, message) = condition(&server, "Accepted").unwrap();
        assert!(status == "False" && message.contains(field), "{message}");
        assert!(remains(&place, name).await.is_empty(), "{name}");
    }

    // What was missing comes.
    let lacking = place.until_reason("lacking", "SecretMissing").await;
    assert!(condition(&lacking, "Resolved").unwrap().2.contains("later/a"));
    assert!(remains(&place, "lacking").await.is_empty());
    place.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: later}\nstringData: {a: from-the-secret}\n").await;
    place.until_reason("lacking", "Ready").await;
    place.apply(&hub("default", "{gateway: {replicas: 1}, servers: {include: [lacking]}}")).await;
    place.until_served("default", 1).await;
    let session = place.connect("default", None).await;
    assert_eq!(session.call("lacking_env", json!({"name": "A"})).await.unwrap(), "from-the-secret");
}

#[tokio::test]
async fn a_program_that_eats_its_memory_is_shown_as_out_of_memory() {
    let (place, _lease) = Place::new("memory").await;
    place.apply(&fixture("eater", &["stdio"], "  resources: {limits: {memory: 48Mi}}\n")).await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    place.until_served("default", 1).await;
    let session = place.connect("default", None).await;
    // Sixty megabytes of text do not fit.
    session.call("eater_big", json!({"bytes": 60 << 20})).await.unwrap_err();
    place
        .until("eater", "the kill to be told", |server: &MCPServer| {
            let status = server.status.as_ref().unwrap();
            let text = format!("{:?} {:?}", status.last_error, condition(server, "Available"));
            text.contains("memory")
        })
        .await;
    place.until_reason("eater", "Ready").await;
}

#[tokio::test]
async fn whatever_is_done_to_its_objects_is_undone() {
    let (place, _lease) = Place::new("mend").await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    place.until_reason("a", "Ready").await;
    let before = remains(&place, "a").await;

    // Deleted.
    let gone = DeleteParams::default();
    place.api::<Deployment>().delete("mcp-a", &gone).await.unwrap();
    place.api::<Service>().delete("mcp-a", &gone).await.unwrap();
    place.api::<NetworkPolicy>().delete("mcp-a", &gone).await.unwrap();
    for (kind, old) in &before {
        if !kind.starts_with("Pod") {
            eventually(&format!("{kind} to come back"), async || {
                let now = remains(&place, "a").await;
                if now.get(kind).is_some_and(|new| new != old) { Ok(()) } else { Err(format!("{now:?}")) }
            })
            .await;
        }
    }
    place.until_reason("a", "Ready").await;

    // Edited: values of ours, values beside ours, labels.
    let edits = [
        json!({"spec": {"template": {"spec": {"hostNetwork": true, "containers": [{"name": "side", "image": "x"}]}}}}),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "evil", "env": [{"name": "X", "value": "1"}]}]}}}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}),
        json!({"spec": {"replicas": 3}}),
    ];
    let good: Deployment = place.api::<Deployment>().get("mcp-a").await.unwrap();
    for edit in edits {
        let params = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
        place.api::<Deployment>().patch("mcp-a", &params, &Patch::Strategic(&edit)).await.unwrap();
        place
            .until("mcp-a", &format!("{edit} to be undone"), |now: &Deployment| {
                now.spec == good.spec && now.labels() == good.labels()
            })
            .await;
    }
    let params = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
    let wide = json!({"spec": {"selector": {"more": "x"}, "externalIPs": ["192.0.2.1"]}});
    place.api::<Service>().patch("mcp-a", &params, &Patch::Merge(&wide)).await.unwrap();
    place
        .until("mcp-a", "the service to be ours again", |now: &Service| {
            let spec = now.spec.as_ref().unwrap();
            spec.external_ips.is_none() && spec.selector.as_ref().unwrap().len() == 1
        })
        .await;
    let open = json!({"spec": {"ingress": [{}]}});
    place.api::<NetworkPolicy>().patch("mcp-a", &params, &Patch::Merge(&open)).await.unwrap();
    place
        .until("mcp-a", "the policy to be ours again", |now: &NetworkPolicy| {
            now.spec.as_ref().unwrap().ingress.as_ref().unwrap()[0].ports.is_some()
        })
        .await;
    place.until_reason("a", "Ready").await;
}

#[tokio::test]
async fn what_is_not_ours_is_never_touched() {
    let (place, _lease) = Place::new("foreign").await;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "mcp-a"}, "spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]},
    }))
    .unwrap();
    let mine = place.api::<Service>().create(&Default::default(), &service).await.unwrap();
    place.apply(&fixture("a", &["stdio"], "")).await;
    let server = place.until("a", "the name to be told as taken", |server: &MCPServer| {
        server
            .status
            .as_ref()
            .and_then(|status| status.last_error.as_ref())
            .is_some_and(|error| error.contains("exists and is not"))
    });
    let server = server.await;
    assert!(server.status.unwrap().last_error.unwrap().contains("Service mcp-a"));
    let now = place.api::<Service>().get("mcp-a").await.unwrap();
    assert_eq!(now.spec, mine.spec);
    place.api::<MCPServer>().delete("a", &DeleteParams::default()).await.unwrap();
    eventually("the rest to go", async || {
        let left = remains(&place, "a").await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert_eq!(place.api::<Service>().get("mcp-a").await.unwrap().uid(), mine.uid());
}

#[tokio::test]
async fn a_server_is_paused_resumed_restarted_and_removed() {
    let (place, _lease) = Place::new("life").await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    place.until_reason("a", "Ready").await;
    place.apply(&fixture("a", &["stdio"], "  paused: true\n")).await;
    place.until_reason("a", "Paused").await;
    eventually("nothing of it to run", async || {
        let left = remains(&place, "a").await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    place.until_reason("a", "Ready").await;

    let pod = place.pods_of("a").await[0].name_any();
    let restart = json!({"metadata": {"annotations": {"mcphub.io/restarted-at": "now"}}});
    place.api::<MCPServer>().patch("a", &PatchParams::default(), &Patch::Merge(&restart)).await.unwrap();
    eventually("another pod", async || {
        let pods: Vec<String> = place.pods_of("a").await.iter().map(ResourceExt::name_any).collect();
        if pods.len() == 1 && pods[0] != pod { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
    place
        .until("a", "the restart to be told", |server: &MCPServer| {
            server.status.as_ref().unwrap().restarted_at.as_deref() == Some("now")
        })
        .await;
    place.until_reason("a", "Ready").await;

    place.api::<MCPServer>().delete("a", &DeleteParams::default()).await.unwrap();
    eventually("everything to go", async || {
        let left = remains(&place, "a").await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_changed_secret_reaches_its_user_at_the_next_restart() {
    let (place, _lease) = Place::new("secret").await;
    let secret =
        |value: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{k: {value}}}\n");
    place.apply(&secret("one")).await;
    place
        .apply(&fixture(
            "a",
            &["stdio"],
            "  env: [{name: K, secretRef: {name: s, key: k}}, {name: P, value: \"$(K) $$ x\"}]\n",
        ))
        .await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    place.until_served("default", 1).await;
    let session = place.connect("default", None).await;
    assert_eq!(session.call("a_env", json!({"name": "K"})).await.unwrap(), "one");
    assert_eq!(session.call("a_env", json!({"name": "P"})).await.unwrap(), "$(K) $$ x");
    // The value stands in no object but its Secret.
    let deployment: Deployment = place.api::<Deployment>().get("mcp-a").await.unwrap();
    assert!(!serde_json::to_string(&deployment).unwrap().contains("\"one\""));

    place.apply(&secret("two")).await;
    let restart = json!({"metadata": {"annotations": {"mcphub.io/restarted-at": "later"}}});
    place.api::<MCPServer>().patch("a", &PatchParams::default(), &Patch::Merge(&restart)).await.unwrap();
    eventually("the new value", async || match session.call("a_env", json!({"name": "K"})).await {
        Ok(value) if value == "two" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// The gateway of a hub is what is to be reached: its policy lets everybody come.
#[tokio::test]
async fn a_server_with_host_names_in_its_list_gets_out_through_the_relay_and_nowhere_else() {
    let (place, _lease) = Place::new("way-out").await;
    let host = format!("mcp-hub-default.{}.svc.cluster.local", place.name);
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    let gateway: Service = place
        .until("mcp-hub-default", "the gateway's address", |service: &Service| {
            service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.is_some())
        })
        .await;
    let address = gateway.spec.unwrap().cluster_ip.unwrap();
    let listing = |targets: &[String]| format!("  permissions: {{network: {{egress: {targets:?}}}}}\n");
    let named = format!("{host}:8080");
    place.apply(&fixture("meant", &["stdio"], &listing(&[named.clone(), format!("{address}:8080")]))).await;
    place.apply(&fixture("named", &["stdio"], &listing(&[named.clone(), "*.example.com:8080".to_owned()]))).await;
    place.until_served("default", 2).await;
    let session = place.connect("default", None).await;
    session.until_listed(&["meant_fetch", "named_fetch"]).await;
    let fetch = async |server: &str, url: &str| {
        session.call(&format!("{server}_fetch"), json!({"url": url})).await.unwrap_or_else(|error| error)
    };

    // Its policy names the relay's pods beside the address, and nobody's DNS.
    let policy: NetworkPolicy = place.api().get("mcp-meant").await.unwrap();
    let rules = serde_json::to_value(policy.spec.unwrap().egress.unwrap()).unwrap();
    assert_eq!(rules.as_array().unwrap().len(), 2, "{rules}");
    assert_eq!(rules[1]["to"][0]["podSelector"]["matchLabels"]["mcphub.io/role"], "relay", "{rules}");

    let healthz = format!("http://{named}/healthz");
    let answer = fetch("meant", &healthz).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    // Another path of one host is none of the relay's business; another port, host or address is.
    for url in
        [format!("http://{host}:8081/"), "http://www.example.org/".to_owned(), "http://10.1.2.3:8080/".to_owned()]
    {
        let answer = fetch("meant", &url).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("may not connect to"), "{url}: {answer}");
    }
    // A name alone does not lead into the cluster.
    let answer = fetch("named", &healthz).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(&format!("add {address}:8080")), "{answer}");

    // A variable that would lead elsewhere is refused.
    let other = listing(&[named]) + "  env: [{name: HTTPS_PROXY, value: \"http://10.0.0.1:1\"}]\n";
    place.apply(&fixture("other", &["stdio"], &other)).await;
    let other = place.until_reason("other", "Unsupported").await;
    let (_, _, message) = condition(&other, "Accepted").unwrap();
    assert!(message.contains("HTTPS_PROXY leads to the relay"), "{message}");
}
