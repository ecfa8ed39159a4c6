//! The gateway of a cluster as it runs there: a process, a mounted configuration, a control listener.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::control::ControlKeys;
use mcp_hub_dataplane_api::document;
use mcp_hub_dataplane_api::gateway::{GatewayConfig, ReplicaStatus, UpstreamStatus};
use serde_json::json;

use super::{Client, PATIENCE};

pub const KEY: [u8; 32] = [9; 32];

/// A gateway process; killed when dropped.
#[derive(Debug)]
pub struct Replica {
    pub listen: SocketAddr,
    pub control: SocketAddr,
    child: Child,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
    mounts: usize,
}

impl Replica {
    /// With this configuration mounted, and arguments besides the necessary ones.
    pub async fn start(config: &GatewayConfig, arguments: &[&str]) -> Self {
        let port = || SocketAddr::from(([127, 0, 0, 1], mcp_hub_test_port::free_port().unwrap()));
        Self::at(port(), port(), config, arguments).await
    }

    /// Several of one hub, who know each other.
    pub async fn several(count: usize, config: &GatewayConfig, arguments: &[&str]) -> Vec<Self> {
        let port = || SocketAddr::from(([127, 0, 0, 1], mcp_hub_test_port::free_port().unwrap()));
        let controls: Vec<SocketAddr> = (0..count).map(|_| port()).collect();
        let mut replicas = Vec::new();
        for control in &controls {
            let advertise = control.ip().to_string();
            let mut all = vec!["--advertise".to_owned(), advertise];
            all.extend(controls.iter().flat_map(|peer| ["--peers".to_owned(), peer.to_string()]));
            all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            replicas.push(Self::at(port(), *control, config, &all).await);
        }
        for replica in &replicas {
            replica.ready().await;
        }
        replicas
    }

    pub async fn at(listen: SocketAddr, control: SocketAddr, config: &GatewayConfig, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), hex::encode(KEY)).unwrap();
        symlink("data/config", folder.path().join("config")).unwrap();
        let mut mounts = 0;
        mount(folder.path().to_owned(), &mut mounts, config);
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(listen, control, folder.path(), &arguments);
        let replica = Self { listen, control, child, arguments, folder, mounts };
        replica.listens().await;
        replica
    }

    /// Starts one that was killed again.
    pub async fn restart(&mut self) {
        self.child = spawn(self.listen, self.control, self.folder.path(), &self.arguments);
        self.listens().await;
        self.ready().await;
    }

    async fn listens(&self) {
        self.until("it listens", || async { self.get("/healthz").await.0 == StatusCode::OK }).await;
    }

    /// Replaces the mounted configuration as a kubelet does: by a link.
    pub fn mount(&mut self, config: &GatewayConfig) {
        mount(self.folder.path().to_owned(), &mut self.mounts, config);
    }

    pub fn terminate(&self) {
        let id = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    /// As a node that loses power, but for its open connections.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(std::time::Instant::now() < deadline, "the process did not end");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Of the control listener, without a token.
    pub async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        send(Method::GET, &format!("http://{}{path}", self.control), None, Bytes::new()).await
    }

    /// Of the control listener, with the token.
    pub async fn asked(&self, path: &str) -> (StatusCode, Bytes) {
        let keys = ControlKeys::of(&KEY);
        let token = keys.token().expose_secret();
        send(Method::GET, &format!("http://{}{path}", self.control), Some(token), Bytes::new()).await
    }

    pub async fn status(&self) -> ReplicaStatus {
        let (status, body) = self.asked("/status").await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).unwrap()
    }

    pub async fn push(&self, body: Vec<u8>) -> (StatusCode, Bytes) {
        send(Method::PUT, &format!("http://{}/config", self.control), None, body.into()).await
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").await;
        let text = String::from_utf8(text.to_vec()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until all servers have shaken hands.
    pub async fn ready(&self) {
        self.until("all servers are ready", || async {
            let upstreams = self.status().await.status.upstreams;
            upstreams.values().all(|status| matches!(status, UpstreamStatus::Ready { .. }))
        })
        .await;
    }

    pub async fn until<F: Future<Output = bool>>(&self, what: &str, reached: impl Fn() -> F) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !reached().await {
            assert!(std::time::Instant::now() < deadline, "waited in vain until {what}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// A client's next requests, sent here.
    pub fn instead(&self, client: &Client) -> Client {
        let path = client.url.split_once("//").unwrap().1.split_once('/').unwrap().1;
        let elsewhere = Client::of(self.listen, &format!("/{path}"), client.era);
        Client { url: elsewhere.url, http: elsewhere.http, ..client.clone() }
    }

    pub async fn forwarded(&self) -> u64 {
        self.metric("mcp_hub_gateway_forwarded_total").await
    }

    pub fn client(&self, path: &str, era: Era) -> Client {
        Client::of(self.listen, path, era)
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

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(listen: SocketAddr, control: SocketAddr, folder: &Path, arguments: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mcp-hub-gateway"))
        .arg("--config")
        .arg(folder.join("config"))
        .arg("--sealing-key")
        .arg(folder.join("key"))
        .args(["--listen", &listen.to_string(), "--control", &control.to_string()])
        .args(arguments)
        .spawn()
        .unwrap()
}

fn mount(folder: PathBuf, mounts: &mut usize, config: &GatewayConfig) {
    *mounts += 1;
    let version = format!("v{mounts}");
    std::fs::create_dir(folder.join(&version)).unwrap();
    std::fs::write(folder.join(&version).join("config"), document::write(config).unwrap()).unwrap();
    symlink(&version, folder.join("next")).unwrap();
    std::fs::rename(folder.join("next"), folder.join("data")).unwrap();
}

/// A refused connection is answered with 502.
pub async fn send(method: Method, url: &str, token: Option<&str>, body: Bytes) -> (StatusCode, Bytes) {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let client = HttpClient::builder(TokioExecutor::new()).build_http();
    let sent = client.request(request.body(Full::new(body)).unwrap());
    match tokio::time::timeout(PATIENCE, sent).await.expect("no answer in time") {
        Ok(response) => (response.status(), response.into_body().collect().await.unwrap().to_bytes()),
        Err(_) => (StatusCode::BAD_GATEWAY, Bytes::new()),
    }
}
