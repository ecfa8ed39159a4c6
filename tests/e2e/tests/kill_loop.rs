//! Servers, bridges and the daemon are killed at random times under one session with calls in flight.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mcp_hub_e2e::{Hub, PATIENCE, binary, eventually, kill, lives};
use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::service::{RoleClient, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::json;

const ROUNDS: usize = 100;
const CALLERS: usize = 4;
const SERVERS: [&str; 2] = ["one", "two"];

/// Marsaglia's xorshift64: a seed tells the whole run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

type Client = RunningService<RoleClient, ()>;

/// The text echoed by the server, or the error as text.
async fn echo(client: &Client, server: &str, text: &str) -> Result<String, String> {
    let arguments = json!({"text": text}).as_object().unwrap().clone();
    let call = CallToolRequestParams::new(format!("{server}_echo")).with_arguments(arguments);
    let result = client.call_tool(call).await.map_err(|error| error.to_string())?;
    let content =
        result.content.first().and_then(|part| part.as_text()).map(|part| part.text.clone()).unwrap_or_default();
    if result.is_error == Some(true) { Err(content) } else { Ok(content) }
}

/// Process ids of a server and of its bridge.
fn processes_of(hub: &Hub, name: &str) -> Option<(u32, u32)> {
    let uid = hub.server(name)?["metadata"]["uid"].as_str()?.to_owned();
    let mut server = None;
    for pid in hub.processes() {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mark = format!("/{uid}\0");
        if environ.windows(mark.len()).any(|window| window == mark.as_bytes()) {
            server = Some(pid);
        }
    }
    let server = server?;
    let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).ok()?;
    let bridge = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    Some((server, bridge))
}

#[test]
fn one_session_survives_a_hundred_kills_and_nothing_is_orphaned() {
    let seed = std::env::var("MCP_HUB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        u64::try_from(
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
                % u128::from(u64::MAX),
        )
        .unwrap()
            | 1
    });
    println!("MCP_HUB_SEED={seed}");
    let mut random = Random(seed);
    // Waits between restarts would only make a run of a hundred kills long; that they grow is another test's business.
    let manifest: String = SERVERS
        .iter()
        .map(|name| mcp_hub_e2e::fixture(name, &[]) + "  restart: {backoff: {initial: 1ms, max: 50ms}}\n")
        .collect();
    let mut hub = Hub::with(&manifest);
    SERVERS.iter().for_each(|name| drop(hub.wait_reason(name, "Ready")));
    let endpoint = hub.endpoint();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut config =
        StreamableHttpClientTransportConfig::with_uri(endpoint.url.clone()).auth_header(endpoint.token.clone());
    // A session that has to be initialised again is a failure.
    config.reinit_on_expired_session = false;
    let client = Arc::new(
        runtime
            .block_on(async { ().serve(StreamableHttpClientTransport::from_config(config)).await })
            .expect("the session is initialised"),
    );

    let stop = Arc::new(AtomicBool::new(false));
    let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (client, stop, answered, failed) = (client.clone(), stop.clone(), answered.clone(), failed.clone());
            runtime.spawn(async move {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let text = format!("caller {caller} call {number}");
                    match echo(&client, SERVERS[caller % SERVERS.len()], &text).await {
                        // An answer is the answer to this very call, whatever was killed in the meantime.
                        Ok(answer) => {
                            assert_eq!(answer, text);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert!(!error.to_lowercase().contains("session"), "the session was lost: {error}");
                            failed.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            })
        })
        .collect();

    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let name = SERVERS[usize::try_from(random.below(2)).unwrap()];
        let victim = random.below(10);
        let (server, bridge) = eventually("the server runs", || processes_of(&hub, name));
        match victim {
            0..5 => kill(server),
            5..8 => kill(bridge),
            _ => {
                hub.kill_daemon();
                std::thread::sleep(Duration::from_millis(random.below(30)));
                hub.start();
            }
        }
        // Both servers answer again in the very session.
        for name in SERVERS {
            let text = format!("round {round}");
            let start = Instant::now();
            loop {
                match runtime.block_on(echo(&client, name, &text)) {
                    Ok(answer) => {
                        assert_eq!(answer, text);
                        break;
                    }
                    Err(error) => assert!(start.elapsed() < PATIENCE, "round {round}, {name}: {error}\n{}", hub.log()),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if victim < 8 {
            let dead = if victim < 5 { server } else { bridge };
            assert!(!lives(dead), "process {dead} outlived SIGKILL");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        runtime.block_on(caller).expect("no caller got another's answer");
    }
    println!(
        "{} calls answered, {} failed while something was dead",
        answered.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed)
    );
    // A failed call is the exception: each kill hits what is in flight at that moment.
    assert!(answered.load(Ordering::Relaxed) > 0);

    SERVERS.iter().for_each(|name| drop(hub.wait_reason(name, "Ready")));
    // One server each, and no other that bears their mark.
    let fixture = binary("fixture-server");
    let running = hub
        .processes()
        .into_iter()
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == fixture));
    assert_eq!(running.count(), SERVERS.len());
    drop(client);
    hub.ok(&["down", "--all"]);
    eventually("nothing is left", || hub.processes().is_empty().then_some(()));
}
