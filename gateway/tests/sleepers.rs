//! Servers whose pods are gone for want of calls: a call has them started, and waits.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{Definitions, GatewayConfig, Target, Upstream, UpstreamStatus, Wake};
use mcp_hub_dataplane_api::secret::SecretString;
use serde_json::{Value, json};
use support::{Client, Fake, Hub, config, ready, wait_for};
use tokio::net::TcpListener;

/// Who can start servers: notes what it is asked for, and answers with the statuses given, the last for ever.
#[derive(Debug, Clone)]
struct Waker {
    url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Waker {
    async fn start(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/wake", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let noted = asked.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let noted = noted.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let noted = noted.clone();
                    async move {
                        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/wake"));
                        let token = request.headers()["authorization"].to_str().unwrap().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let place = {
                            let mut noted = noted.lock().unwrap();
                            noted.push((token, serde_json::from_slice(&body).unwrap()));
                            noted.len() - 1
                        };
                        let status = *statuses.get(place).or(statuses.last()).unwrap();
                        let mut response = Response::new(Empty::<bytes::Bytes>::new());
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                tokio::spawn(async move {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().unwrap().clone()
    }

    /// A hub over this server that can have it woken.
    fn config(&self, upstream: Upstream) -> GatewayConfig {
        let wake = Wake { url: self.url.clone(), token: SecretString::new("waker's") };
        GatewayConfig { wake: Some(wake), ..config(vec![upstream]) }
    }
}

fn asleep(upstream: &Upstream) -> Upstream {
    Upstream { target: Target::Asleep, ..upstream.clone() }
}

/// A call under way.
fn calling(client: &Client, tool: &str) -> tokio::task::JoinHandle<Value> {
    let (client, tool) = (client.clone(), tool.to_owned());
    tokio::spawn(async move { client.call(&tool, json!({})).await })
}

const ENDPOINTS: [(&str, &str); 2] = [("/mcp", "one_echo"), ("/servers/one/mcp", "echo")];

#[tokio::test]
async fn calls_to_a_sleeping_server_wait_for_it_and_have_it_woken_once() {
    for era in [Era::Legacy, Era::Modern] {
        let waker = Waker::start(&[202]).await;
        let fake = Fake::start(era, "one").await;
        let awake = fake.upstream("one");
        let hub = Hub::start(waker.config(awake.clone())).await;
        ready(&hub).await;
        hub.gateway.apply(waker.config(asleep(&awake)));
        let mut calls = Vec::new();
        for era in [Era::Legacy, Era::Modern] {
            for (path, tool) in ENDPOINTS {
                let client = hub.connected(path, era).await;
                assert_eq!(client.tool_names().await.len(), 3, "its definitions stay listed");
                assert_eq!(waker.asked().len(), usize::from(!calls.is_empty()), "and to list them wakes nobody");
                calls.push(calling(&client, tool));
                wait_for("the server to be asked for", || !waker.asked().is_empty()).await;
            }
        }
        assert!(calls.iter().all(|call| !call.is_finished()) && fake.calls().is_empty());
        hub.gateway.apply(waker.config(awake));
        for call in calls {
            let answer = call.await.unwrap();
            assert!(answer["result"]["content"][0]["text"].is_string(), "{answer}");
        }
        assert_eq!(fake.calls().len(), 4);
        assert_eq!(waker.asked(), [("Bearer waker's".to_owned(), json!({"server": "uid-one"}))]);
    }
}

#[tokio::test]
async fn whoever_cannot_wake_a_server_now_is_asked_again() {
    let waker = Waker::start(&[503, 500, 202]).await;
    let fake = Fake::start(Era::Legacy, "one").await;
    let hub = Hub::start(waker.config(asleep(&fake.upstream("one")))).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let call = calling(&client, "one_echo");
    wait_for("three attempts", || waker.asked().len() == 3).await;
    hub.gateway.apply(waker.config(fake.upstream("one")));
    assert!(call.await.unwrap()["result"].is_object());
    assert_eq!(waker.asked().len(), 3);
}

#[tokio::test]
async fn a_call_waits_no_longer_than_it_may_take_and_says_what_it_waited_for() {
    let waker = Waker::start(&[403]).await;
    let fake = Fake::start(Era::Legacy, "one").await;
    let short = Upstream { call_timeout_ms: 400, ..asleep(&fake.upstream("one")) };
    let hub = Hub::start(waker.config(short)).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let answer = client.call("one_echo", json!({})).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(answer["result"]["isError"], true);
    assert!(text.contains("did not wake") && text.contains("403") && text.contains("NotWoken"), "{text}");
    assert!(text.ends_with("The tool was not called."), "{text}");
    // Nobody waits, nobody is asked any more: the next attempt would have been due within this time.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = waker.asked().len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(waker.asked().len(), asked);
}

#[tokio::test]
async fn a_server_that_cannot_be_started_ends_the_wait_with_its_reason() {
    let waker = Waker::start(&[202]).await;
    let fake = Fake::start(Era::Legacy, "one").await;
    let hub = Hub::start(waker.config(asleep(&fake.upstream("one")))).await;
    let client = hub.connected("/mcp", Era::Modern).await;
    let call = calling(&client, "one_echo");
    wait_for("the server to be asked for", || !waker.asked().is_empty()).await;
    let (reason, message) = ("CrashLoop".to_owned(), "it exits with 1".to_owned());
    let target = Target::Unavailable { reason, message, hint: Some("read its log".to_owned()) };
    hub.gateway.apply(waker.config(Upstream { target, ..fake.upstream("one") }));
    let answer = call.await.unwrap();
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(text.contains("CrashLoop") && text.contains("read its log"), "{text}");
}

#[tokio::test]
async fn a_server_that_falls_asleep_under_a_call_is_woken_for_it() {
    let waker = Waker::start(&[202]).await;
    let fake = Fake::start(Era::Legacy, "one").await;
    let awake = fake.upstream("one");
    let hub = Hub::start(waker.config(awake.clone())).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    // Its pod is gone before the gateway hears that it sleeps.
    let address = fake.stop().await;
    let call = calling(&client, "one_echo");
    wait_for("it to be away", || matches!(hub.gateway.upstream("uid-one"), Some(UpstreamStatus::Failed { .. }))).await;
    hub.gateway.apply(waker.config(asleep(&awake)));
    wait_for("the server to be asked for", || !waker.asked().is_empty()).await;
    let again = Fake::at(Era::Legacy, "one", address).await;
    hub.gateway.apply(waker.config(awake));
    assert!(call.await.unwrap()["result"].is_object());
    assert_eq!(again.calls().len(), 1);
}

#[tokio::test]
async fn a_gateway_that_never_met_a_sleeping_server_lists_what_its_configuration_tells() {
    let waker = Waker::start(&[202]).await;
    let fake = Fake::start(Era::Modern, "one").await;
    let definitions = Definitions {
        era: Era::Modern,
        introduction: json!({"supportedVersions": [support::MODERN], "capabilities": {"tools": {}},
            "instructions": "Use it."})
        .to_string(),
        tools: Some(Value::from(fake.get(|state| state.tools.clone())).to_string()),
        prompts: None,
        resources: None,
        resource_templates: None,
    };
    let told = Upstream { definitions: Some(definitions), ..asleep(&fake.upstream("one")) };
    let mut stale_at_once = waker.config(told);
    stale_at_once.limits.stale_for_ms = 0;
    let hub = Hub::start(stale_at_once).await;
    for era in [Era::Legacy, Era::Modern] {
        for (path, tool) in ENDPOINTS {
            let client = hub.connected(path, era).await;
            assert_eq!(client.tool_names().await[0], tool);
        }
    }
    assert!(waker.asked().is_empty());
}

#[tokio::test]
async fn without_anybody_to_wake_it_a_sleeping_server_is_an_unavailable_one() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let hub = Hub::start(config(vec![asleep(&fake.upstream("one"))])).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let answer = client.call("one_echo", json!({})).await;
    assert_eq!(answer["result"]["isError"], true);
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("asleep"), "{answer}");
}
