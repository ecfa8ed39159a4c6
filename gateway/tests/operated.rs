//! The gateway process of a cluster: how an operator gives it configurations and learns what it does, and how it ends.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::control::{ControlKeys, PUSH_MAX};
use mcp_hub_dataplane_api::gateway::{Definitions, GatewayConfig, HubRef, InForce, ReplicaStatus, Target};
use mcp_hub_dataplane_api::secret::SecretString;
use serde_json::json;
use support::{Fake, Fault, KEY, Replica, config, send, wait_for};

const SEALING_KEY: &str = "MCP_HUB_SEALING_KEY";

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn sealed(config: &GatewayConfig) -> Vec<u8> {
    sealed_at(now_ms(), config)
}

fn sealed_at(at_ms: u64, config: &GatewayConfig) -> Vec<u8> {
    ControlKeys::of(&KEY).seal(config, at_ms).unwrap()
}

/// This configuration as the hub's `sequence`th.
fn numbered(sequence: u64, config: GatewayConfig) -> GatewayConfig {
    GatewayConfig { version: format!("v{sequence}"), sequence, ..config }
}

async fn in_force(replica: &Replica, version: &str) {
    replica.until(version, || async { replica.status().await.status.version == version }).await;
}

#[tokio::test]
async fn a_push_is_in_force_at_once_and_an_older_mounted_file_does_not_take_it_back() {
    let (one, two) = (Fake::start(Era::Legacy, "one").await, Fake::start(Era::Modern, "two").await);
    let of = |names: &[&Fake]| {
        config(names.iter().map(|fake| fake.upstream(&fake.get(|state| state.name.clone()))).collect())
    };
    let mut replica = Replica::start(&numbered(1, of(&[&one])), &[]).await;
    let client = replica.connected("/mcp", Era::Legacy).await;
    assert_eq!(client.tool_names().await, ["one_echo", "one_zeta", "one_alpha"]);

    let (status, answer) = replica.push(sealed(&numbered(3, of(&[&two])))).await;
    assert_eq!(status, StatusCode::OK);
    let answer: InForce = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer, InForce { version: "v3".to_owned(), sequence: 3 });
    assert_eq!(client.tool_names().await, ["two_echo", "two_zeta", "two_alpha"]);

    // The mounted file arrives late, first with what was pushed over already.
    replica.mount(&numbered(2, of(&[&one])));
    let superseded = r#"mcp_hub_gateway_configs_total{outcome="superseded"}"#;
    replica.until("the file is looked at", || async { replica.metric(superseded).await == 1 }).await;
    assert_eq!(replica.status().await.status.version, "v3");
    let (status, answer) = replica.push(sealed(&numbered(2, of(&[&one])))).await;
    assert_eq!((status, serde_json::from_slice::<InForce>(&answer).unwrap().sequence), (StatusCode::CONFLICT, 3));
    assert_eq!(client.tool_names().await, ["two_echo", "two_zeta", "two_alpha"]);
    replica.mount(&numbered(4, of(&[&one, &two])));
    in_force(&replica, "v4").await;
    let (status, _) = replica.push(sealed(&numbered(4, of(&[&one, &two])))).await;
    assert_eq!(status, StatusCode::OK, "the same once more");
}

#[tokio::test]
async fn only_a_fresh_push_sealed_for_this_hub_is_taken() {
    let replica = Replica::start(&config(Vec::new()), &[]).await;
    let other_hub = HubRef { namespace: "n".to_owned(), name: "h".to_owned(), uid: "other".to_owned() };
    let elsewhere = GatewayConfig { hub: other_hub, ..config(Vec::new()) };
    let stranger = ControlKeys::of(&[1; 32]).seal(&config(Vec::new()), now_ms()).unwrap();
    let old = ControlKeys::of(&KEY).seal(&config(Vec::new()), now_ms() - 70_000).unwrap();
    let cases = [
        ("another key", stranger, StatusCode::UNAUTHORIZED),
        ("another hub", sealed(&elsewhere), StatusCode::UNAUTHORIZED),
        ("plain", serde_json::to_vec(&config(Vec::new())).unwrap(), StatusCode::UNAUTHORIZED),
        ("too old", old, StatusCode::CONFLICT),
        ("too large", vec![0; PUSH_MAX + 1], StatusCode::PAYLOAD_TOO_LARGE),
    ];
    for (what, body, wanted) in cases {
        assert_eq!(replica.push(body).await.0, wanted, "{what}");
    }
    // What was pushed once cannot be repeated over what came later.
    let now = now_ms();
    let first = sealed_at(now - 1, &GatewayConfig { version: "first".to_owned(), ..config(Vec::new()) });
    assert_eq!(replica.push(first.clone()).await.0, StatusCode::OK);
    let second = sealed_at(now, &GatewayConfig { version: "second".to_owned(), ..config(Vec::new()) });
    assert_eq!(replica.push(second).await.0, StatusCode::OK);
    assert_eq!(replica.push(first).await.0, StatusCode::CONFLICT);
    assert_eq!(replica.status().await.status.version, "second");
}

#[tokio::test]
async fn what_a_replica_tells_needs_the_token_and_its_probes_need_none() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let replica = Replica::start(&config(vec![fake.upstream("one")]), &[]).await;
    for path in ["/status", "/events", "/definitions/uid-one", "/elsewhere"] {
        assert_eq!(replica.get(path).await.0, StatusCode::UNAUTHORIZED, "{path}");
        let url = format!("http://{}{path}", replica.control);
        let (status, _) = send(Method::GET, &url, Some(support::TOKEN), Default::default()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "a client's token opens nothing here");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(replica.get(path).await.0, StatusCode::OK, "{path}");
    }
    replica.ready().await;
    let (_, definitions) = replica.asked("/definitions/uid-one").await;
    let definitions: Definitions = serde_json::from_slice(&definitions).unwrap();
    assert_eq!(definitions.era, Era::Legacy);
    let tools: Vec<serde_json::Value> = serde_json::from_str(&definitions.tools.unwrap()).unwrap();
    assert_eq!(tools, fake.get(|state| state.tools.clone()));
    assert_eq!(replica.asked("/definitions/nobody").await.0, StatusCode::NOT_FOUND);
    // Clients find none of it.
    let url = format!("http://{}/status", replica.listen);
    assert_eq!(send(Method::GET, &url, Some(support::TOKEN), Default::default()).await.0, StatusCode::NOT_FOUND);
}

/// Lines of a replica's events.
struct Events(hyper::body::Incoming, Vec<u8>);

impl Events {
    async fn of(replica: &Replica) -> Self {
        let keys = ControlKeys::of(&KEY);
        let request = Request::get(format!("http://{}/events", replica.control))
            .header("authorization", format!("Bearer {}", keys.token().expose_secret()))
            .body(Full::<bytes::Bytes>::default())
            .unwrap();
        let client = replica.client("/", Era::Legacy);
        let response = client.send(request).await;
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Self(response.into_body(), Vec::new())
    }

    async fn next(&mut self) -> ReplicaStatus {
        let line = async {
            loop {
                if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.1.drain(..=end).collect();
                    return serde_json::from_slice(&line).unwrap();
                }
                self.1.extend(self.0.frame().await.expect("the events ended").unwrap().into_data().unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(20), line).await.expect("nothing was told")
    }

    async fn until(&mut self, what: &str, told: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
        for _ in 0..20 {
            let status = self.next().await;
            if told(&status) {
                return status;
            }
        }
        panic!("it was never told that {what}");
    }
}

#[tokio::test]
async fn a_replica_tells_of_itself_when_a_server_is_used_and_not_when_it_is_only_looked_at() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let replica = Replica::start(&config(vec![fake.upstream("one")]), &[]).await;
    replica.ready().await;
    let mut events = Events::of(&replica).await;
    let first = events.next().await;
    assert_eq!(first.activity["uid-one"].calls_in_flight, 0);
    let client = replica.connected("/servers/one/mcp", Era::Legacy).await;
    client.tool_names().await;
    client.ask("ping", json!({})).await;
    assert_eq!(replica.status().await.activity["uid-one"].idle_ms, None, "lists and probes are no use");
    fake.set(|state| state.fault = Fault::Hang);
    let message = client.message(json!(1), "tools/call", json!({"name": "echo"}));
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.messages(&message).await }
    });
    events.until("a call is under way", |told| told.activity["uid-one"].calls_in_flight == 1).await;
    client.notify(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})).await;
    let after = events.until("the call has ended", |told| told.activity["uid-one"].calls_in_flight == 0).await;
    assert!(after.activity["uid-one"].idle_ms.is_some_and(|idle| idle < 15_000));
    call.abort();
    assert_eq!(replica.push(sealed(&numbered(9, config(Vec::new())))).await.0, StatusCode::OK);
    let last = events.until("another configuration is in force", |told| told.sequence == 9).await;
    assert!(last.activity.is_empty());
}

#[tokio::test]
async fn a_call_under_way_and_one_that_comes_late_are_answered_when_a_replica_ends() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut replica = Replica::start(&config(vec![fake.upstream("one")]), &["--drain-delay", "2"]).await;
    replica.ready().await;
    let client = replica.connected("/mcp", Era::Legacy).await;
    let mut stream = client.stream().await;
    // A server that asks its client: the call lasts until the client answers.
    fake.set(|state| state.fault = Fault::Hang);
    let (early, message) = (client.clone(), client.message(json!(7), "tools/call", json!({"name": "one_echo"})));
    let call = tokio::spawn(async move { early.messages(&message).await });
    wait_for("the call to be under way", || fake.calls().len() == 1).await;
    fake.set(|state| state.fault = Fault::None);

    replica.terminate();
    replica
        .until("it is not ready", || async { replica.get("/readyz").await.0 == StatusCode::SERVICE_UNAVAILABLE })
        .await;
    assert!(replica.status().await.draining);
    let late = replica.connected("/mcp", Era::Legacy).await;
    assert!(late.call("one_echo", json!({})).await["result"].is_object(), "calls within the delay are answered");
    // Streams end with the delay, so that clients open them elsewhere; the call goes on.
    stream.ended().await;
    assert_eq!(
        send(Method::GET, &format!("http://{}/healthz", replica.listen), None, Default::default()).await.0,
        StatusCode::BAD_GATEWAY,
        "no new connections"
    );
    assert!(!call.is_finished());
    fake.release();
    let answer = call.await.unwrap().pop().unwrap();
    assert_eq!((&answer["id"], answer["result"].is_object()), (&json!(7), true), "{answer}");
    assert_eq!(replica.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_replica_ends_in_its_time_whatever_a_server_does() {
    let fake = Fake::start(Era::Modern, "one").await;
    let arguments = ["--drain-delay", "0", "--drain-limit", "1"];
    let mut replica = Replica::start(&config(vec![fake.upstream("one")]), &arguments).await;
    replica.ready().await;
    fake.set(|state| state.fault = Fault::Hang);
    let client = replica.client("/mcp", Era::Modern);
    let request = client.request(&client.message(json!(7), "tools/call", json!({"name": "one_echo"})));
    let call = tokio::spawn(client.http.request(request));
    wait_for("the call to be under way", || fake.calls().len() == 1).await;
    let begun = std::time::Instant::now();
    replica.terminate();
    assert_eq!(replica.ended().await.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(call.await.unwrap().is_err());
}

/// A server whose bearer token the configuration only names.
fn naming(fake: &Fake, secret: &str) -> GatewayConfig {
    let mut upstream = fake.upstream("one");
    let Target::Available { headers, .. } = &mut upstream.target else { panic!("available") };
    headers.insert("authorization".to_owned(), SecretString::new(format!("Bearer ${{{secret}}}")));
    config(vec![upstream])
}

#[tokio::test]
async fn secrets_that_a_configuration_only_names_reach_servers() {
    let secrets = tempfile::tempdir().unwrap();
    std::fs::write(secrets.path().join("TOKEN"), "inner\n").unwrap();
    let fake = Fake::start(Era::Legacy, "one").await;
    let replica = Replica::start(&naming(&fake, "TOKEN"), &["--secrets", secrets.path().to_str().unwrap()]).await;
    replica.ready().await;
    let told = fake.get(|state| state.seen.iter().map(|(headers, _)| headers["authorization"].clone()).collect());
    let told: Vec<http::HeaderValue> = told;
    assert!(!told.is_empty() && told.iter().all(|header| header == "Bearer inner"), "{told:?}");
}

#[tokio::test]
async fn a_gateway_without_its_secrets_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let fake = Fake::start(Era::Legacy, "one").await;
    std::fs::write(&path, serde_json::to_vec(&naming(&fake, "NO_SUCH_SECRET")).unwrap()).unwrap();
    let said = |key: Option<&str>, arguments: &[&str]| {
        let mut gateway = std::process::Command::new(env!("CARGO_BIN_EXE_mcp-hub-gateway"));
        // An address that nobody may listen on ends the process as soon as all was read.
        gateway.arg("--config").arg(&path).args(["--listen", "192.0.2.1:1"]).args(arguments);
        let output = gateway.env_remove(SEALING_KEY).envs(key.map(|key| (SEALING_KEY, key))).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for key in [None, Some("07")] {
        let said = said(key, &[]);
        assert!(said.contains("MCP_HUB_SEALING_KEY holds no 64 hexadecimal digits"), "{said}");
    }
    let key = "07".repeat(32);
    let missing = said(Some(&key), &["--secrets", "/no/such/folder"]);
    assert!(
        missing.contains("server one needs NO_SUCH_SECRET, which is neither a file in /no/such/folder"),
        "{missing}"
    );
    // Who does not say that secrets are named means what is written.
    let literal = said(Some(&key), &[]);
    assert!(literal.contains("could not listen on 192.0.2.1:1"), "{literal}");
}
