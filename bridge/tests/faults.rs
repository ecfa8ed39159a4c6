//! What a server may do wrong on its pipe, and what clients may do on theirs: a clear answer for that call alone, bounded
//! memory, everyone else unharmed.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use harness::{Bridge, Session, TOKEN, is_ready, launch, text_of};
use mcp_hub_mcp::error;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn misbehave(session: &Session<'_>, how: &str, n: u64) -> Value {
    session.call("misbehave", json!({"how": how, "n": n})).await
}

#[tokio::test]
async fn the_id_may_come_last() {
    for era in ["legacy", "modern"] {
        let bridge = Bridge::ready(launch(&["stdio", "--era", era])).await;
        let arguments = json!({"name": "misbehave", "arguments": {"how": "id last"}});
        let answer = match era {
            "modern" => bridge.modern("tools/call", arguments).await,
            _ => bridge.session("test").await.request("tools/call", arguments).await,
        };
        assert_eq!(text_of(&answer), "id last");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_fails_for_that_call_alone_and_at_once() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    for how in ["invalid UTF-8", "broken JSON"] {
        let (sleeping, answer) = tokio::join!(session.call("sleep", json!({"ms": 300})), misbehave(&session, how, 1));
        assert_eq!(answer["error"]["code"], error::ANSWER_UNREADABLE, "{how}: {answer}");
        assert_eq!(text_of(&sleeping), "awake");
    }
    assert_eq!(bridge.status().await.restarts, 0);
}

#[tokio::test]
async fn half_a_line_at_the_end_is_no_answer() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let answer = misbehave(&session, "half a line", 1).await;
    assert_eq!(answer["error"]["code"], error::SERVER_GONE, "{answer}");
    assert_eq!(session.text("echo", json!({"text": "after"})).await, "after");
    bridge.until(|status| is_ready(status) && status.restarts == 1).await;
}

#[tokio::test]
async fn a_second_answer_and_answers_that_nobody_asked_for_reach_nobody() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let sleeping = session.call("sleep", json!({"ms": 500}));
    let wrong = async {
        bridge.until(|status| status.activity.calls_in_flight == 1).await;
        assert_eq!(text_of(&misbehave(&session, "twice", 1).await), "first");
        assert_eq!(text_of(&misbehave(&session, "unasked", 1).await), "unasked");
        // Calls that follow get their own answers.
        for text in ["a", "b"] {
            assert_eq!(session.text("echo", json!({"text": text})).await, text);
        }
    };
    let (slept, ()) = tokio::join!(sleeping, wrong);
    assert_eq!(text_of(&slept), "awake");
    bridge.until_logged("an answer that nobody waits for").await;
    assert_eq!(bridge.status().await.restarts, 0);
}

#[tokio::test]
async fn a_line_of_a_hundred_megabytes_fails_for_its_call_and_is_never_held() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let (huge, small) =
        tokio::join!(session.call("big", json!({"bytes": 100 << 20})), session.call("echo", json!({"text": "small"})));
    assert_eq!(huge["error"]["code"], error::ANSWER_UNREADABLE, "{}", huge["error"]);
    assert_eq!(text_of(&small), "small");
    assert_eq!(session.text("echo", json!({"text": "after"})).await, "after");
    assert_eq!(bridge.status().await.restarts, 0);
    // The 32 MiB that a line may have, and the program itself.
    let most = bridge.highest_kib();
    assert!(most < 48 << 10, "{most} KiB");
}

#[tokio::test]
async fn a_server_that_floods_holds_up_nobody_and_fills_nothing() {
    let mut spec = launch(&["stdio", "--era", "legacy"]);
    spec.log.max_bytes = 1 << 20;
    let bridge = Bridge::ready(spec).await;
    let (session, other) = (bridge.session("test").await, bridge.session("other").await);
    // A stream that nobody reads.
    let _stream = other.stream().await;
    // 75 MB in all.
    let (flooded, answer) =
        tokio::join!(misbehave(&session, "flood", 30_000), other.text("echo", json!({"text": "on"})));
    assert_eq!((text_of(&flooded).as_str(), answer.as_str()), ("flood", "on"));
    let most = bridge.highest_kib();
    assert!(most < 24 << 10, "{most} KiB");
    let kept: u64 = std::fs::read_dir(bridge.folder.path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("server.log"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(kept <= 3 << 20, "{kept} bytes of log");
    assert_eq!(bridge.status().await.restarts, 0);
}

fn head(more: &str) -> String {
    format!("POST /mcp HTTP/1.1\r\nhost: bridge\r\nauthorization: Bearer {TOKEN}\r\n{more}")
}

/// Sends a beginning and then one part again and again, until the bridge closes the connection; what it answered, and how
/// many bytes it took.
async fn pour(bridge: &Bridge, first: &str, part: &[u8], most: usize) -> (String, usize) {
    let (mut reading, mut writing) = bridge.connection().await.into_split();
    let (mut taken, mut answer) = (0, Vec::new());
    let write = async {
        let mut result = writing.write_all(first.as_bytes()).await;
        while result.is_ok() && taken < most {
            result = writing.write_all(part).await;
            taken += part.len();
        }
        std::future::pending::<()>().await;
    };
    let read = tokio::time::timeout(harness::PATIENCE, reading.read_to_end(&mut answer));
    tokio::select! {
        () = write => {}
        // A connection that is reset has said what it had to say.
        read = read => drop(read.expect("it is served for ever")),
    }
    (String::from_utf8_lossy(&answer).into_owned(), taken)
}

#[tokio::test]
async fn a_body_of_a_gigabyte_and_headers_without_an_end_are_refused_and_never_held() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let filler = format!("x-filler: {}\r\n", "y".repeat(100));
    let spaces = vec![b' '; 1 << 16];
    let chunk = [b"10000\r\n", &spaces[..], b"\r\n"].concat();
    for (first, part, status) in [
        (head("content-length: 1073741824\r\n\r\n"), &spaces[..], "413"),
        (head("transfer-encoding: chunked\r\n\r\n"), &chunk[..], "413"),
        (head(""), filler.as_bytes(), "431"),
        (head("x-filler: "), &[b'y'; 4096][..], "431"),
    ] {
        let (answer, taken) = pour(&bridge, &first, part, 1 << 30).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        if status == "413" {
            let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert_eq!(body["error"]["code"], error::MESSAGE_TOO_LARGE);
        }
        assert!(taken < 256 << 20, "{taken} bytes were taken");
        assert_eq!(session.text("echo", json!({"text": "on"})).await, "on");
    }
    let most = bridge.highest_kib();
    assert!(most < 80 << 10, "{most} KiB");
}

#[tokio::test]
async fn a_client_that_dribbles_its_headers_is_cut_off() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let mut stream = bridge.connection().await;
    stream.write_all(head("").as_bytes()).await.unwrap();
    let ended = async {
        loop {
            tokio::select! {
                read = stream.read_u8() => if read.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(500)) => drop(stream.write_all(b"x-a: b\r\n").await),
            }
        }
    };
    tokio::time::timeout(harness::PATIENCE, ended).await.expect("it is served for ever");
    assert_eq!(bridge.session("test").await.text("echo", json!({"text": "on"})).await, "on");
}

#[tokio::test]
async fn json_of_any_depth_is_passed_on_or_refused() {
    let bridge = Bridge::ready(launch(&["stdio", "--era", "legacy"])).await;
    let session = bridge.session("test").await;
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let message = json!({"jsonrpc": "2.0", "method": "notifications/deep", "params": {"deep": "DEEP"}});
    let request = http::Request::post("/mcp")
        .header("host", "bridge")
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("mcp-session-id", &session.id)
        .body(http_body_util::Full::from(message.to_string().replace("\"DEEP\"", &deep)))
        .unwrap();
    assert_eq!(bridge.http(request).await.status(), http::StatusCode::ACCEPTED);
    assert_eq!(session.text("echo", json!({"text": "on"})).await, "on");
    assert_eq!(bridge.status().await.restarts, 0);
}
