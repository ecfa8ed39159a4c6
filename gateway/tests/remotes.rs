//! Servers that break in the middle of a call: a clear answer for that call alone, in bounded time and memory.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use mcp_hub_dataplane_api::Era;
use serde_json::json;
use support::{Break, Broken, Client, Fake, Hub, config, ready, wait_for};

/// A hub with a server that breaks so and one that does not.
async fn beside_a_good_one(era: Era, how: Break) -> (Broken, Fake, Hub) {
    let (broken, good) = (Broken::start(era, how).await, Fake::start(Era::Modern, "good").await);
    let hub = Hub::start(config(vec![broken.upstream("broken"), good.upstream("good")])).await;
    ready(&hub).await;
    (broken, good, hub)
}

/// The code with which a call fails, while another server's answers as ever.
async fn code_of(client: &Client) -> i64 {
    let (broken, good) = tokio::join!(client.call("broken_echo", json!({})), client.call("good_echo", json!({"n": 1})));
    assert!(good["result"].is_object(), "{good}");
    let message = broken["error"]["message"].as_str().unwrap_or_else(|| panic!("{broken}"));
    assert!(message.contains("server `broken`"), "{message}");
    broken["error"]["code"].as_i64().unwrap()
}

async fn each_pair_of_eras_sees(how: Break, code: i64) {
    for server in [Era::Legacy, Era::Modern] {
        let (broken, _good, hub) = beside_a_good_one(server, how).await;
        for era in [Era::Legacy, Era::Modern] {
            let client = hub.connected("/mcp", era).await;
            assert_eq!(code_of(&client).await, code, "{how:?}, {era:?} client, {server:?} server");
        }
        assert_eq!(broken.calls.load(Ordering::Relaxed), 2, "{how:?}: no call is made twice");
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_ends_its_call_with_an_error() {
    each_pair_of_eras_sees(Break::ResetUnanswered, 1001).await;
    each_pair_of_eras_sees(Break::ResetMidStream, 1001).await;
    each_pair_of_eras_sees(Break::HalfAnswer, 1001).await;
}

#[tokio::test]
async fn a_server_that_stalls_in_its_answer_ends_its_call_when_the_time_is_up() {
    each_pair_of_eras_sees(Break::StallMidStream, 1003).await;
    each_pair_of_eras_sees(Break::StallMidAnswer, 1003).await;
}

/// Its headers are the client's already, so all that is left is to cut it.
#[tokio::test]
async fn a_large_answer_that_stalls_is_cut_and_gives_its_place_back() {
    let (broken, good) =
        (Broken::start(Era::Modern, Break::StallMidLargeAnswer).await, Fake::start(Era::Modern, "good").await);
    let mut configured = config(vec![broken.upstream("broken"), good.upstream("good")]);
    configured.limits.concurrent_calls = 1;
    let hub = Hub::start(configured).await;
    ready(&hub).await;
    // On its own endpoint nothing is rewritten, so it is passed on while it comes.
    let client = hub.connected("/servers/broken/mcp", Era::Modern).await;
    let message = client.message(json!(1), "tools/call", json!({"name": "echo"}));
    let response = client.send(client.request(&message)).await;
    assert_eq!(response.headers()["content-length"], "1048576");
    let cut = tokio::time::timeout(std::time::Duration::from_secs(20), response.into_body().collect()).await;
    assert!(cut.expect("it is not waited for for ever").is_err());
    let other = hub.connected("/mcp", Era::Modern).await;
    assert!(other.call("good_echo", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn what_is_no_answer_is_named_for_that_call_alone() {
    each_pair_of_eras_sees(Break::Page500, 1004).await;
    each_pair_of_eras_sees(Break::Json500, 1004).await;
    each_pair_of_eras_sees(Break::Noise, 1001).await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    // Whatever a server says: what is configured for it, its credentials too, goes nowhere else.
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    each_pair_of_eras_sees(Break::Redirect(elsewhere.local_addr().unwrap()), 1004).await;
    let visit = tokio::time::timeout(std::time::Duration::from_millis(100), elsewhere.accept()).await;
    assert!(visit.is_err(), "somebody went there");
}

#[tokio::test]
async fn a_stream_without_an_end_ends_with_the_calls_time() {
    each_pair_of_eras_sees(Break::EndlessComments, 1003).await;
    each_pair_of_eras_sees(Break::EndlessNotifications, 1003).await;
}

/// Largest message, 32 MiB, and what sockets and buffers on the way hold.
const TAKEN_MAX: usize = (32 << 20) + (16 << 20);

#[tokio::test]
async fn an_answer_without_an_end_is_read_up_to_the_limit_only() {
    for how in [Break::EndlessEvent, Break::EndlessAnswer] {
        let (broken, good, hub) = beside_a_good_one(Era::Modern, how).await;
        let mut patient = broken.upstream("broken");
        patient.call_timeout_ms = 60_000;
        hub.gateway.apply(config(vec![patient, good.upstream("good")]));
        let client = hub.connected("/mcp", Era::Modern).await;
        assert_eq!(code_of(&client).await, 1004, "{how:?}");
        wait_for("the end of the connection", || broken.open.load(Ordering::Relaxed) == 0).await;
        let taken = broken.taken.load(Ordering::Relaxed);
        assert!((32 << 20..TAKEN_MAX).contains(&taken), "{how:?}: {taken} bytes were taken");
    }
}

#[tokio::test]
async fn an_answer_of_any_depth_passes_or_is_named() {
    for server in [Era::Legacy, Era::Modern] {
        let (_broken, _good, hub) = beside_a_good_one(server, Break::Deep(200_000)).await;
        for path in ["/mcp", "/servers/broken/mcp"] {
            for era in [Era::Legacy, Era::Modern] {
                let client = hub.connected(path, era).await;
                let name = if path == "/mcp" { "broken_echo" } else { "echo" };
                let message = client.message(json!(1), "tools/call", json!({"name": name}));
                let response = client.send(client.request(&message)).await;
                let text = response.into_body().collect().await.unwrap().to_bytes();
                let depth = text.iter().filter(|byte| **byte == b'[').count();
                assert!(depth > 200_000, "{era:?} client, {server:?} server: {}", String::from_utf8_lossy(&text));
                let others = hub.connected("/mcp", era).await.call("good_echo", json!({})).await;
                assert!(others["result"].is_object());
            }
        }
    }
}
