//! Clients that would do harm: bounded memory, a clear answer, everyone else unharmed.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use http_body_util::BodyExt;
use mcp_hub_dataplane_api::Era;
use serde_json::{Value, json};
use support::{Fake, Hub, TOKEN, config, ready};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What sockets of this machine may hold on both sides of a connection.
const IN_SOCKETS: usize = 16 << 20;

/// A hub with one good server and room for messages of 1 MiB.
async fn hub() -> (Fake, Hub) {
    let good = Fake::start(Era::Legacy, "good").await;
    let hub = Hub::start(config(vec![good.upstream("good")])).await;
    ready(&hub).await;
    (good, hub)
}

async fn serves(hub: &Hub) {
    for era in [Era::Legacy, Era::Modern] {
        let answer = hub.connected("/mcp", era).await.call("good_echo", json!({})).await;
        assert!(answer["result"].is_object(), "{answer}");
    }
}

fn head(more: &str) -> String {
    format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\naccept: application/json\r\n{more}"
    )
}

/// What the hub answered, and how many bytes it took before.
struct Exchange {
    answer: String,
    taken: usize,
}

/// Sends a beginning and then one part again and again, until the hub closes the connection or takes no more.
async fn pour(hub: &Hub, first: &str, part: &[u8], most: usize) -> Exchange {
    let (mut reading, mut writing) = TcpStream::connect(hub.address).await.unwrap().into_split();
    let mut taken = 0;
    let mut answer = Vec::new();
    let write = async {
        let mut result = writing.write_all(first.as_bytes()).await;
        while result.is_ok() && taken < most {
            result = writing.write_all(part).await;
            taken += part.len();
        }
        // Closed by the hub, or all is sent: what it answers is what counts.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        // A connection that is reset has said what it had to say.
        _ = reading.read_to_end(&mut answer) => {}
    }
    Exchange { answer: String::from_utf8_lossy(&answer).into_owned(), taken }
}

#[tokio::test]
async fn a_body_of_a_gigabyte_is_refused_and_not_read() {
    let (_good, hub) = hub().await;
    let declared = head("content-type: application/json\r\ncontent-length: 1073741824\r\n\r\n");
    let chunked = head("content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n", &[b' '; 1 << 16][..], b"\r\n"].concat();
    for (first, part) in [(declared, vec![b' '; 1 << 16]), (chunked, chunk)] {
        let Exchange { answer, taken } = pour(&hub, &first, &part, 1 << 30).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["error"]["code"], 1007);
        assert!(body["error"]["message"].as_str().unwrap().contains("spec.limits.messageBytes"), "{body}");
        assert!(taken < (1 << 20) + IN_SOCKETS, "{taken} bytes were taken");
        serves(&hub).await;
    }
}

/// A client in the middle of sending would not see a refusal on a connection that is closed under it.
#[tokio::test]
async fn a_message_somewhat_over_the_limit_is_refused_so_that_its_client_sees_it() {
    let (_good, hub) = hub().await;
    for times in [2, 16] {
        for era in [Era::Legacy, Era::Modern] {
            let client = hub.connected("/mcp", era).await;
            let arguments = json!({"text": "x".repeat(times << 20)});
            let message = client.message(json!(1), "tools/call", json!({"name": "good_echo", "arguments": arguments}));
            let response = client.send(client.request(&message)).await;
            assert_eq!(response.status(), 413, "{times} MiB");
            assert_eq!(support::read(response).await[0]["error"]["code"], 1007);
        }
    }
    serves(&hub).await;
}

#[tokio::test]
async fn headers_without_an_end_are_refused_and_not_read() {
    let (_good, hub) = hub().await;
    let many = b"x-filler: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n";
    for (first, part) in [(head(""), &many[..]), (head("x-filler: "), &[b'y'; 4096][..])] {
        let Exchange { answer, taken } = pour(&hub, &first, part, 1 << 30).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(taken < IN_SOCKETS, "{taken} bytes were taken");
        serves(&hub).await;
    }
}

#[tokio::test]
async fn json_of_any_depth_is_answered() {
    let (_good, hub) = hub().await;
    let deep = |open: &str, close: &str| open.repeat(100_000) + "null" + &close.repeat(100_000);
    for value in [deep("[", "]"), deep("{\"a\":", "}")] {
        for path in ["/mcp", "/servers/good/mcp"] {
            let name = if path == "/mcp" { "good_echo" } else { "echo" };
            for era in [Era::Legacy, Era::Modern] {
                let client = hub.connected(path, era).await;
                for place in ["arguments", "_meta", "name", "requestState", "inputResponses"] {
                    let mut params = json!({"name": name, "arguments": {}});
                    params[place] = if place == "_meta" { json!({"x": "DEEP"}) } else { json!("DEEP") };
                    let message = client.message(json!(1), "tools/call", params);
                    let mut request = client.request(&message);
                    *request.body_mut() = message.to_string().replace("\"DEEP\"", &value).into();
                    let response = client.send(request).await;
                    let answer = response.into_body().collect().await.unwrap().to_bytes();
                    let answer = support::any(&answer);
                    assert!(answer["error"]["code"].is_i64() || answer["result"].is_object(), "{place}: {answer}");
                }
            }
        }
        serves(&hub).await;
    }
}

/// With the clock of the test: it goes on to the next time at which something is due when nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn a_client_that_dribbles_is_cut_off() {
    let hub = Hub::start(config(vec![])).await;
    let body = head("content-type: application/json\r\ncontent-length: 100\r\n\r\n{");
    for (first, part, limit) in [(head(""), "x-a: b\r\n", 10), (body, " ", 60)] {
        let mut stream = TcpStream::connect(hub.address).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let before = tokio::time::Instant::now();
        let mut answer = Vec::new();
        loop {
            let mut some = [0; 4096];
            tokio::select! {
                read = stream.read(&mut some) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => answer.extend_from_slice(&some[..count]),
                },
                // Something every second, so that it is never silent for long.
                () = tokio::time::sleep(Duration::from_secs(1)) => drop(stream.write_all(part.as_bytes()).await),
            }
            assert!(before.elapsed() < Duration::from_secs(200), "it is served for ever");
        }
        assert!(before.elapsed() <= Duration::from_secs(limit + 2), "{:?}", before.elapsed());
        let answer = String::from_utf8(answer).unwrap();
        assert!(limit == 10 || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
}

/// Takes as long as the kernel waits for a client that takes nothing.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_gives_its_place_back() {
    let good = Fake::start(Era::Modern, "good").await;
    let mut upstream = good.upstream("good");
    // Enough for the answer to begin on a busy machine.
    upstream.call_timeout_ms = 5_000;
    let mut configured = config(vec![upstream]);
    configured.limits.concurrent_calls = 1;
    let hub = Hub::start(configured).await;
    ready(&hub).await;
    // More than sockets hold, passed on while it comes.
    good.set(|state| state.large = 12 << 20);
    let client = hub.connected("/mcp", Era::Modern).await;
    let message = client.message(json!(1), "tools/call", json!({"name": "echo"})).to_string();
    let modern = "mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: echo\r\n";
    let request = head(&format!("{modern}content-length: {}\r\n\r\n{message}", message.len()));
    let request = request.replace("/mcp", "/servers/good/mcp");
    let stalled = tokio::net::TcpSocket::new_v4().unwrap();
    // Set, it does not grow to the tens of megabytes that a kernel may allow.
    stalled.set_recv_buffer_size(64 << 10).unwrap();
    let mut stalled = stalled.connect(hub.address).await.unwrap();
    stalled.write_all(request.as_bytes()).await.unwrap();
    stalled.peek(&mut [0]).await.unwrap();
    good.set(|state| state.large = 0);
    let code = client.call("good_echo", json!({})).await["error"]["code"].clone();
    assert_eq!(code, 1005, "the only place is taken");
    let served = async { while client.call("good_echo", json!({})).await["result"].is_null() {} };
    tokio::time::timeout(Duration::from_secs(90), served).await.expect("its place is never given back");
}
