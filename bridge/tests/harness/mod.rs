//! A real bridge in a run folder of its own, in front of the fixture server, and a client for it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::SessionMode;
use mcp_hub_dataplane_api::launch::{
    BridgeRecord, Child as Program, ChildTransport, Drain, EraChoice, Health, LAUNCH_ENV, LaunchSpec, Lifecycle,
    Limits, LogPolicy, OWNER_ENV, Owner, Restart, RestartPolicy, Roots, Sessions, Timeouts, in_pod_env,
};
use mcp_hub_dataplane_api::status::{BridgeStatus, Phase};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const TOKEN: &str = "a token for tests";
/// Longest wait for a state on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The fixture server, built beside the bridge.
pub fn fixture() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_mcp-bridge")).with_file_name("fixture-server");
    assert!(path.exists(), "{} is missing: cargo build -p mcp-hub-fixture-server", path.display());
    path
}

/// A launch specification for the fixture server with these arguments, to be changed by the test.
pub fn launch(args: &[&str]) -> LaunchSpec {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let unique = format!("test/{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    LaunchSpec {
        owner: Owner { id: unique, namespace: "default".to_owned(), name: "fixture".to_owned() },
        digest: "digest".to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        token_sha256: hex::encode(Sha256::digest(TOKEN)),
        child: Program {
            program: fixture().to_string_lossy().into_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            working_dir: "/".to_owned(),
            inherit_env: false,
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            secret_env: Vec::new(),
            limits: Limits::default(),
            filesystem: None,
        },
        transport: ChildTransport::Stdio,
        era: EraChoice::Auto,
        sessions: Sessions { mode: SessionMode::Shared, max: 20 },
        roots: Roots::Deny,
        lifecycle: Lifecycle::AlwaysOn,
        health: Health { period_ms: 30_000, timeout_ms: 5_000, failure_threshold: 3 },
        restart: Restart { policy: RestartPolicy::Always, initial_ms: 50, max_ms: 200 },
        timeouts: Timeouts { call_ms: 60_000, start_ms: 30_000 },
        log: LogPolicy { max_bytes: 1 << 20, files: 2 },
        drain: Drain::default(),
    }
}

pub struct Bridge {
    pub folder: tempfile::TempDir,
    pub spec: LaunchSpec,
    place: Place,
    process: Child,
}

/// How a bridge is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Over the control socket of its folder.
    Folder,
    /// Over the network alone, as a pod's.
    Pod,
}

impl Bridge {
    /// Starts a bridge; it answers on its control socket when this returns.
    pub async fn start(spec: LaunchSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, spec).await
    }

    pub async fn start_in(folder: tempfile::TempDir, spec: LaunchSpec) -> Self {
        std::fs::write(folder.path().join("launch.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        std::fs::remove_file(folder.path().join("control.sock")).ok();
        let process = Command::new(env!("CARGO_BIN_EXE_mcp-bridge"))
            .arg(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let bridge = Self { folder, spec, place: Place::Folder, process };
        bridge.answering().await
    }

    /// Starts a pod's bridge from what an init container installed; the command starts whatever is its container, with
    /// this environment of image and pod. It answers on the network when this returns.
    pub async fn in_pod(spec: LaunchSpec, container: Command, env: &[(&str, &str)]) -> Self {
        Self::in_pod_with(tempfile::tempdir().unwrap(), spec, container, env).await
    }

    pub async fn in_pod_with(
        folder: tempfile::TempDir,
        mut spec: LaunchSpec,
        mut container: Command,
        env: &[(&str, &str)],
    ) -> Self {
        spec.listen.set_port(mcp_hub_test_port::free_port().unwrap());
        let install =
            Command::new(env!("CARGO_BIN_EXE_mcp-bridge")).arg("install").arg(folder.path()).status().unwrap();
        assert!(install.success());
        let log = std::fs::File::options().create(true).append(true).open(folder.path().join("stderr")).unwrap();
        let process = container
            .arg(folder.path().join("mcp-bridge"))
            .arg("pod")
            .arg(folder.path().join("run"))
            .env_clear()
            .envs(env.iter().copied())
            .env(LAUNCH_ENV, in_pod_env(&serde_json::to_string(&spec).unwrap()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let bridge = Self { folder, spec, place: Place::Pod, process };
        bridge.answering().await
    }

    async fn answering(mut self) -> Self {
        let started = Instant::now();
        while self.try_control(Method::GET, "/status", Bytes::new()).await.is_none() {
            assert!(self.process.try_wait().unwrap().is_none(), "the bridge ended at once\n{}", self.log());
            assert!(started.elapsed() < PATIENCE, "the bridge does not answer\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self
    }

    /// A bridge whose server is ready.
    pub async fn ready(spec: LaunchSpec) -> Self {
        let bridge = Self::start(spec).await;
        bridge.until(is_ready).await;
        bridge
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn record(&self) -> BridgeRecord {
        let run_dir = if self.place == Place::Pod { "run" } else { "" };
        serde_json::from_slice(&std::fs::read(self.folder.path().join(run_dir).join("bridge.json")).unwrap()).unwrap()
    }

    pub fn log(&self) -> String {
        let name = if self.place == Place::Pod { "stderr" } else { "server.log" };
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    async fn try_control(&self, method: Method, path: &str, body: Bytes) -> Option<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "bridge")
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(Full::new(body))
            .ok()?;
        let (mut sender, connection) = match self.place {
            Place::Folder => {
                let stream = tokio::net::UnixStream::connect(self.folder.path().join("control.sock")).await.ok()?;
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
                (sender, tokio::spawn(connection))
            }
            Place::Pod => {
                let stream = tokio::net::TcpStream::connect(self.spec.listen).await.ok()?;
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
                (sender, tokio::spawn(connection))
            }
        };
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        connection.abort();
        Some((status, body))
    }

    pub async fn control(&self, method: Method, path: &str, body: Value) -> StatusCode {
        self.try_control(method, path, body.to_string().into()).await.unwrap().0
    }

    pub async fn status(&self) -> BridgeStatus {
        let (status, body) = self.try_control(Method::GET, "/status", Bytes::new()).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).unwrap()
    }

    /// Waits until the status is so.
    pub async fn until(&self, wanted: impl Fn(&BridgeStatus) -> bool) -> BridgeStatus {
        let started = Instant::now();
        loop {
            let status = self.status().await;
            if wanted(&status) {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "still {status:#?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the server's log holds a text.
    pub async fn until_logged(&self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            assert!(started.elapsed() < PATIENCE, "no {text:?} in\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn child_pid(&self) -> u32 {
        self.until(|status| is_ready(status) && status.activity.child_pid.is_some()).await.activity.child_pid.unwrap()
    }

    /// A connection to the MCP side.
    pub async fn connection(&self) -> tokio::net::TcpStream {
        if self.place == Place::Pod {
            return tokio::net::TcpStream::connect(self.spec.listen).await.unwrap();
        }
        let endpoint: http::Uri = self.status().await.endpoint.parse().unwrap();
        tokio::net::TcpStream::connect(endpoint.authority().unwrap().as_str()).await.unwrap()
    }

    /// An HTTP request to the bridge, on a connection of its own.
    pub async fn http(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = self.connection().await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    pub async fn get(&self, path: &str, token: Option<&str>) -> (StatusCode, String) {
        let mut request = Request::get(path).header("host", "bridge");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.http(request.body(Full::default()).unwrap()).await;
        let status = response.status();
        (status, String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned())
    }

    /// Posts a message.
    pub async fn post(&self, message: &Value, headers: &[(&str, &str)]) -> Response<Incoming> {
        let mut request = Request::post("/mcp")
            .header("host", "bridge")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.http(request.body(Full::from(message.to_string())).unwrap()).await
    }

    /// A request of the modern era; gives the response message.
    pub async fn modern(&self, method: &str, params: Value) -> Value {
        let mut params = params;
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        params["_meta"]["io.modelcontextprotocol/clientInfo"] = json!({"name": "test", "version": "1"});
        if params["_meta"]["io.modelcontextprotocol/clientCapabilities"].is_null() {
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        }
        let message = json!({"jsonrpc": "2.0", "id": "m", "method": method, "params": params});
        let name = params["name"].as_str().or(params["uri"].as_str()).unwrap_or_default().to_owned();
        let mut headers = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
        if !name.is_empty() {
            headers.push(("mcp-name", &name));
        }
        last(self.post(&message, &headers).await).await
    }

    /// A legacy session.
    pub async fn session(&self, client: &str) -> Session<'_> {
        self.session_with(client, json!({})).await
    }

    pub async fn session_with(&self, client: &str, capabilities: Value) -> Session<'_> {
        match self.try_session(client, capabilities).await {
            Ok(session) => session,
            Err(answer) => panic!("no session: {answer}\n{}", self.log()),
        }
    }

    pub async fn try_session(&self, client: &str, capabilities: Value) -> Result<Session<'_>, Value> {
        let params = json!({
            "protocolVersion": "2025-11-25",
            "capabilities": capabilities,
            "clientInfo": {"name": client, "version": "1"},
        });
        let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let response = self.post(&message, &[]).await;
        let id = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        let answer = last(response).await;
        let Some(id) = id else { return Err(answer) };
        let session = Session { bridge: self, id, next: AtomicU64::new(1) };
        session.notify("notifications/initialized", json!({})).await;
        Ok(session)
    }

    pub fn kill(&self, pid: u32) {
        kill(pid, Signal::KILL);
    }

    /// Asks it to stop over the control socket and waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        assert_eq!(self.control(Method::POST, "/stop", Value::Null).await, StatusCode::NO_CONTENT);
        self.wait().await
    }

    pub async fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the bridge does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    pub fn highest_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap_or(Some(ExitStatus::from_raw(0))).is_none() {
            kill(self.process.id(), Signal::KILL);
            self.process.wait().ok();
        }
        // Also after a panic nothing of the test's own is left.
        for pid in marked(&self.spec.owner.id) {
            kill(pid, Signal::KILL);
        }
    }
}

/// Processes that carry an owner's mark.
pub fn marked(owner: &str) -> Vec<u32> {
    let mark = format!("{OWNER_ENV}={owner}");
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    })
    .collect()
}

pub fn kill(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).ok();
}

/// Whether a process lives; a zombie does not.
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

pub async fn until_gone(pid: u32) {
    let started = Instant::now();
    while lives(pid) {
        assert!(started.elapsed() < PATIENCE, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn is_ready(status: &BridgeStatus) -> bool {
    status.phase == Phase::Ready
}

/// A legacy session of a client.
pub struct Session<'a> {
    pub bridge: &'a Bridge,
    pub id: String,
    next: AtomicU64,
}

impl Session<'_> {
    fn headers(&self) -> [(&str, &str); 2] {
        [("mcp-session-id", &self.id), ("mcp-protocol-version", "2025-11-25")]
    }

    pub async fn post(&self, message: &Value) -> Response<Incoming> {
        self.bridge.post(message, &self.headers()).await
    }

    pub async fn notify(&self, method: &str, params: Value) {
        let response = self.post(&json!({"jsonrpc": "2.0", "method": method, "params": params})).await;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
    }

    /// Gives the response message.
    pub async fn request(&self, method: &str, params: Value) -> Value {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let answer = last(self.post(&message).await).await;
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        self.request("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// The text that a tool returned.
    pub async fn text(&self, tool: &str, arguments: Value) -> String {
        text_of(&self.call(tool, arguments).await)
    }

    /// The session's stream of messages that belong to no request.
    pub async fn stream(&self) -> Events {
        let mut request = Request::get("/mcp")
            .header("host", "bridge")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("accept", "text/event-stream");
        for (name, value) in self.headers() {
            request = request.header(name, value);
        }
        let response = self.bridge.http(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Events::of(response)
    }
}

pub fn text_of(answer: &Value) -> String {
    let text = answer["result"]["content"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("no text in {answer}")).to_owned()
}

/// Messages of a response, one after the other.
pub struct Events {
    body: Incoming,
    decoder: mcp_hub_mcp::sse::Decoder,
    ready: std::collections::VecDeque<Value>,
}

impl Events {
    pub fn of(response: Response<Incoming>) -> Self {
        assert!(is_stream(response.headers()));
        Self {
            body: response.into_body(),
            decoder: mcp_hub_mcp::sse::Decoder::new(64 << 20),
            ready: std::collections::VecDeque::new(),
        }
    }

    /// `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        let wait = async {
            loop {
                if let Some(message) = self.ready.pop_front() {
                    return Some(message);
                }
                let frame = self.body.frame().await?.ok()?;
                if let Ok(data) = frame.into_data() {
                    // Servers may begin a stream with an empty event, from which a client could resume.
                    let mut take = |event: Vec<u8>| {
                        if !event.is_empty() {
                            self.ready.push_back(serde_json::from_slice(&event).unwrap());
                        }
                    };
                    self.decoder.feed(&data, &mut take).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("nothing came on the stream")
    }

    /// The next message of a method.
    pub async fn until(&mut self, method: &str) -> Value {
        loop {
            let message = self.next().await.expect("the stream ended");
            if message["method"] == method {
                return message;
            }
        }
    }
}

pub fn is_stream(headers: &HeaderMap) -> bool {
    headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The response message of an answer, whatever its form.
pub async fn last(response: Response<Incoming>) -> Value {
    if is_stream(response.headers()) {
        let mut events = Events::of(response);
        let mut found = Value::Null;
        while let Some(message) = events.next().await {
            if message.get("method").is_none() {
                found = message;
                break;
            }
        }
        return found;
    }
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{status}: {}", String::from_utf8_lossy(&body)))
}

/// All results, in order; what the tests need of the crate `futures`.
pub async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (place, future) in futures.iter_mut().enumerate() {
            if done[place].is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                done[place] = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
