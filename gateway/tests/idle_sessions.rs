//! Sessions that nobody uses cost nothing, and those that are used are bounded.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use mcp_hub_dataplane_api::{Era, SessionMode};
use serde_json::json;
use support::{Client, Fake, Hub, TOKEN, config, ready, wait_for};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A gateway in a process of its own, whose memory is nobody else's.
struct Process {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Process {
    async fn start(fake: &Fake) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config_file, key_file) = (folder.path().join("config.json"), folder.path().join("key"));
        std::fs::write(&config_file, serde_json::to_vec(&config(vec![fake.upstream("one")])).unwrap()).unwrap();
        std::fs::write(&key_file, "07".repeat(32)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], mcp_hub_test_port::free_port().unwrap()));
        let child = Command::new(env!("CARGO_BIN_EXE_mcp-hub-gateway"))
            .args(["--listen", &address.to_string()])
            .arg("--config")
            .arg(&config_file)
            .arg("--sealing-key")
            .arg(&key_file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, address, _folder: folder };
        wait_for("the gateway to listen", || std::net::TcpStream::connect(address).is_ok()).await;
        process
    }

    fn resident_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }
}

/// So many sessions, opened one after the other on one connection; their ids.
async fn open(address: SocketAddr, count: usize) -> Vec<String> {
    let capabilities = json!({"roots": {"listChanged": true}, "sampling": {}, "elicitation": {}});
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": capabilities,
        "clientInfo": {"name": "idle", "version": "1"}});
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}).to_string();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n{message}",
        message.len()
    );
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let mut ids = Vec::with_capacity(count);
    let (mut line, mut body) = (String::new(), Vec::new());
    for _ in 0..count {
        stream.get_mut().write_all(request.as_bytes()).await.unwrap();
        let mut length = 0;
        loop {
            line.clear();
            assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "the connection ended");
            match line.trim_end().split_once(": ") {
                Some(("mcp-session-id", id)) => ids.push(id.to_owned()),
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None if line == "\r\n" => break,
                None => assert!(line.starts_with("HTTP/1.1 200 "), "{line}"),
            }
        }
        body.resize(length, 0);
        stream.read_exact(&mut body).await.unwrap();
    }
    ids
}

const IDLE: usize = 100_000;
const CONNECTIONS: usize = 8;
/// How long this may take in a build without optimization; fewer sessions are opened on a slow machine.
const LONGEST: Duration = Duration::from_secs(25);
/// Fewer could be remembered without being noticed here.
const FEWEST: usize = 20_000;
/// Less than any key of a session, so that not even that is kept.
const BYTES_EACH: usize = 8;
/// By which a process that does nothing new grows and shrinks.
const NOISE_KIB: usize = 384;

#[tokio::test]
async fn idle_sessions_take_no_memory_and_all_are_alive() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let gateway = Process::start(&fake).await;
    let batch = |count: usize| join_all((0..CONNECTIONS).map(move |_| open(gateway.address, count / CONNECTIONS)));
    // What connections, threads and the allocator take anyhow.
    batch(4_000).await;
    let before = gateway.resident_kib();
    let started = Instant::now();
    let mut ids = HashSet::new();
    while ids.len() < IDLE && started.elapsed() < LONGEST {
        ids.extend(batch(5_000).await.into_iter().flatten());
    }
    assert!(ids.len() >= FEWEST, "{} sessions only", ids.len());
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown <= BYTES_EACH * ids.len() / 1024 + NOISE_KIB, "{grown} KiB for {} sessions", ids.len());
    assert_eq!(fake.get(|state| state.opened), 1, "the server has seen one session, the gateway's");
    let client = Client { url: format!("http://{}/mcp", gateway.address), ..any_client(Era::Legacy) };
    for id in ids.iter().step_by(ids.len() / 20) {
        let client = Client { session: Some(id.clone()), ..client.clone() };
        assert!(client.call("one_echo", json!({})).await["result"].is_object());
    }
}

fn any_client(era: Era) -> Client {
    let http = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let (url, version) = (String::new(), "2025-11-25".to_owned());
    Client { url, era, session: None, version, capabilities: json!({}), http }
}

/// Sessions that a gateway keeps with one server that has one for each client.
const KEPT: usize = 1024;

#[tokio::test]
async fn sessions_with_a_server_are_bounded_and_the_one_unused_for_longest_is_ended() {
    let fake = Fake::start(Era::Legacy, "own").await;
    let mut upstream = fake.upstream("own");
    upstream.sessions = SessionMode::PerClient;
    let hub = Hub::start(config(vec![upstream])).await;
    ready(&hub).await;
    let ids = join_all((0..4).map(|_| open(hub.address, (KEPT + 76) / 4))).await.concat();
    let base = hub.client("/mcp", Era::Legacy);
    let clients: Vec<Client> = ids.into_iter().map(|id| Client { session: Some(id), ..base.clone() }).collect();
    let opened = fake.get(|state| state.opened);
    for some in clients.chunks(20) {
        for answer in join_all(some.iter().map(|client| client.call("own_echo", json!({})))).await {
            assert!(answer["result"].is_object(), "{answer}");
        }
    }
    assert_eq!(fake.get(|state| state.opened) - opened, clients.len());
    wait_for("the end of the oldest", || fake.get(|state| state.sessions.len()) <= KEPT).await;
    // The client of one that was ended gets another.
    assert!(clients[0].call("own_echo", json!({})).await["result"].is_object());
    assert_eq!(fake.get(|state| state.opened) - opened, clients.len() + 1);
}
