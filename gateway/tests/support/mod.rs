//! A gateway in front of scriptable servers, and clients of it.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test uses its part")]

mod asking;
mod broken;
mod client;
mod http_sse;
mod process;
mod server;
mod streams;

use std::net::SocketAddr;
use std::time::Duration;

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{
    ClientAuth, GatewayConfig, GatewayLimits, HubRef, Naming, NamingMode, Upstream, UpstreamStatus,
};
use mcp_hub_gateway::Gateway;
use serde_json::json;
use sha2::Digest;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use self::broken::{Break, Broken};
pub use self::client::{Client, Reader, any, read};
pub use self::http_sse::{Beginning, HttpSse, MOMENT};
pub use self::process::{KEY, Replica, send};
pub use self::server::{Fake, Fault, Manner, State, tool};

pub const TOKEN: &str = "token of the tests";
pub const MODERN: &str = "2026-07-28";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub fn config(upstreams: Vec<Upstream>) -> GatewayConfig {
    GatewayConfig {
        version: "v1".to_owned(),
        sequence: 0,
        hub: HubRef { namespace: "default".to_owned(), name: "default".to_owned(), uid: "hub".to_owned() },
        upstreams,
        naming: Naming { mode: NamingMode::Prefix, separator: "_".to_owned(), max_length: 48 },
        auth: ClientAuth::Bearer { tokens_sha256: vec![hex::encode(sha2::Sha256::digest(TOKEN))] },
        limits: GatewayLimits {
            message_bytes: 1 << 20,
            result_bytes: None,
            concurrent_calls: 64,
            stale_for_ms: 60_000,
        },
        allowed_hosts: vec![],
        allowed_origins: vec![],
        wake: None,
    }
}

/// A running gateway; stopped when dropped.
#[derive(Debug)]
pub struct Hub {
    pub gateway: Gateway,
    pub address: SocketAddr,
    task: Task,
}

impl Hub {
    pub async fn start(config: GatewayConfig) -> Self {
        Self::with_key([7; 32], config).await
    }

    pub async fn with_key(key: [u8; 32], config: GatewayConfig) -> Self {
        let gateway = Gateway::new(key, config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = gateway.clone();
        let task = Task(tokio::spawn(async move { serving.serve(listener, std::future::pending()).await.unwrap() }));
        Self { gateway, address, task }
    }

    pub fn client(&self, path: &str, era: Era) -> Client {
        Client::of(self.address, path, era)
    }

    /// A legacy client that has shaken hands, or a modern one.
    pub async fn connected(&self, path: &str, era: Era) -> Client {
        let mut client = self.client(path, era);
        if era == Era::Legacy {
            client.initialize(json!({})).await;
        }
        client
    }
}

/// Waits for a state, boundedly.
pub async fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !reached() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A server of this era that its clients share, called `one`, with a gateway in front of it that knows it.
pub async fn one_server(era: Era) -> (Fake, Hub) {
    let fake = Fake::start(era, "one").await;
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    (fake, hub)
}

pub async fn ready(hub: &Hub) {
    wait_for("all servers to be ready", || {
        hub.gateway.status().upstreams.values().all(|status| matches!(status, UpstreamStatus::Ready { .. }))
    })
    .await;
}
