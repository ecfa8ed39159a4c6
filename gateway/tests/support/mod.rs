//! A scriptable MCP server of either era, a gateway in front of such servers, and a client that sees every byte.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mcp_hub_dataplane_api::gateway::{
    ClientAuth, GatewayConfig, GatewayLimits, HubRef, Naming, NamingMode, Target, ToolRules, Upstream, UpstreamEra,
};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::{Era, SessionMode};
use mcp_hub_gateway::Gateway;
use mcp_hub_mcp::sse;
use serde_json::{Value, json};
use sha2::Digest;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

pub const TOKEN: &str = "token of the tests";
pub const MODERN: &str = "2026-07-28";
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server does with the next `tools/call`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Closes the connection after it has read the request.
    DropUnanswered,
    /// Begins a stream, sends progress, closes it.
    DropMidStream,
    /// Never answers.
    Hang,
    /// Answers as bytes in a stream after a progress notification.
    Stream,
    /// Asks the client for a sampling before it answers.
    Ask,
    InputRequired,
}

#[derive(Debug)]
pub struct State {
    pub era: Era,
    pub name: String,
    pub tools: Vec<Value>,
    pub sessions: HashSet<String>,
    pub opened: usize,
    pub deleted: usize,
    pub fault: Fault,
    /// 401 for everything.
    pub unauthorized: bool,
    /// Requests in order: headers and body.
    pub seen: Vec<(HeaderMap, Value)>,
    pub id_last: bool,
    pub large: usize,
    /// Calls whose connection was closed by the other side before they were answered.
    pub abandoned: usize,
    /// A header without which calls are refused.
    pub wanted_header: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    notify: broadcast::Sender<Bytes>,
    task: Arc<Task>,
}

#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub fn tool(name: &str) -> Value {
    json!({"name": name, "inputSchema": {"type": "object", "properties": {"z": {}, "a": {}}}, "x-unknown": 1.0})
}

impl Fake {
    pub async fn start(era: Era, name: &str) -> Self {
        Self::bound(era, name, TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    pub async fn at(era: Era, name: &str, address: SocketAddr) -> Self {
        Self::bound(era, name, TcpListener::bind(address).await.unwrap()).await
    }

    async fn bound(era: Era, name: &str, listener: TcpListener) -> Self {
        let state = State {
            era,
            name: name.to_owned(),
            tools: vec![tool("echo"), tool("zeta"), tool("alpha")],
            sessions: HashSet::new(),
            opened: 0,
            deleted: 0,
            fault: Fault::None,
            unauthorized: false,
            seen: Vec::new(),
            id_last: false,
            large: 0,
            abandoned: 0,
            wanted_header: None,
        };
        let state = Arc::new(Mutex::new(state));
        let address = listener.local_addr().unwrap();
        let notify = broadcast::Sender::new(16);
        let (shared, notifying) = (state.clone(), notify.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, notify) = (shared.clone(), notifying.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, state.clone(), notify.clone()));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Self { state, address, notify, task: Arc::new(Task(task)) }
    }

    /// Stops listening and closes every connection; the address is free again.
    pub async fn stop(self) -> SocketAddr {
        let address = self.address;
        self.task.0.abort();
        drop(self);
        wait_for("the port to be free", || std::net::TcpListener::bind(address).is_ok()).await;
        address
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn get<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap())
    }

    pub fn calls(&self) -> Vec<(HeaderMap, Value)> {
        self.get(|state| state.seen.iter().filter(|(_, body)| body["method"] == "tools/call").cloned().collect())
    }

    pub fn seen(&self, method: &str) -> Vec<Value> {
        self.get(|s| s.seen.iter().filter(|(_, body)| body["method"] == method).map(|(_, body)| body.clone()).collect())
    }

    pub fn tell(&self, method: &str) {
        self.notify.send(json!({"jsonrpc": "2.0", "method": method}).to_string().into()).ok();
    }

    pub fn upstream(&self, name: &str) -> Upstream {
        let era = UpstreamEra::Known(self.get(|state| state.era));
        Upstream {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            target: Target::Available {
                url: format!("http://{}/mcp", self.address),
                headers: BTreeMap::from([("authorization".to_owned(), SecretString::new("Bearer inner"))]),
            },
            era,
            sessions: SessionMode::Shared,
            tools: ToolRules::default(),
            call_timeout_ms: 20_000,
        }
    }
}

fn whole(status: StatusCode, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn stream(mut receiver: mpsc::Receiver<Result<Bytes, std::io::Error>>) -> Response<Body> {
    let frames = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).map_frames();
    Response::builder().header("content-type", "text/event-stream").body(frames).unwrap()
}

trait MapFrames {
    fn map_frames(self) -> Body;
}

impl<S: futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static> MapFrames for S {
    fn map_frames(self) -> Body {
        use futures::StreamExt;
        StreamBody::new(self.map(|part| part.map(Frame::data))).boxed_unsync()
    }
}

/// Notices a request that ends before its answer.
struct Abandoned(Option<Arc<Mutex<State>>>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(state) = self.0.take() {
            state.lock().unwrap().abandoned += 1;
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    notify: broadcast::Sender<Bytes>,
) -> Result<Response<Body>, std::io::Error> {
    let headers = request.headers().clone();
    let session = headers.get("mcp-session-id").map(|value| value.to_str().unwrap().to_owned());
    if state.lock().unwrap().unauthorized {
        let mut refusal = whole(StatusCode::UNAUTHORIZED, String::new());
        let challenge = "Bearer resource_metadata=\"https://example.com/x\"".parse().unwrap();
        refusal.headers_mut().insert("www-authenticate", challenge);
        return Ok(refusal);
    }
    let era = state.lock().unwrap().era;
    if let Some(session) = &session
        && !state.lock().unwrap().sessions.contains(session)
    {
        return Ok(whole(StatusCode::NOT_FOUND, String::new()));
    }
    let (method, _) = (request.method().clone(), ());
    if method == Method::GET {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(forward(notify.subscribe(), sender, None));
        return Ok(stream(receiver));
    }
    if method == Method::DELETE {
        let mut state = state.lock().unwrap();
        state.sessions.remove(&session.unwrap());
        state.deleted += 1;
        return Ok(whole(StatusCode::NO_CONTENT, String::new()));
    }
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap();
    let (fault, id_last, large) = {
        let mut state = state.lock().unwrap();
        state.seen.push((headers.clone(), message.clone()));
        (state.fault, state.id_last, state.large)
    };
    if message.get("id").is_none() || message.get("method").is_none() {
        return Ok(whole(StatusCode::ACCEPTED, String::new()));
    }
    let id = message["id"].clone();
    let name = message["method"].as_str().unwrap().to_owned();
    if era == Era::Modern {
        assert_eq!(headers["mcp-protocol-version"], MODERN, "every modern request says its version");
        assert_eq!(headers["mcp-method"], name.as_str());
        assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"], MODERN);
        let wanted = message["params"]["name"].as_str().or(message["params"]["uri"].as_str());
        if ["tools/call", "prompts/get", "resources/read"].contains(&&*name) {
            assert_eq!(headers.get("mcp-name").map(|value| value.to_str().unwrap()), wanted);
        }
    } else if name != "initialize" && name != "server/discover" {
        assert!(session.is_some(), "{name} came without a session");
        let meta = message["params"]["_meta"].as_object();
        assert!(meta.is_none_or(|m| m.keys().all(|key| !key.starts_with("io.modelcontextprotocol/"))), "{message}");
    }
    if name == "initialize" && era == Era::Legacy {
        let mut state = state.lock().unwrap();
        state.opened += 1;
        let session = format!("session-{}-{}", state.name, state.opened);
        state.sessions.insert(session.clone());
        let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": true},
            "prompts": {}, "resources": {"subscribe": true}, "logging": {}}, "serverInfo": {"name": state.name, "version": "1"},
            "instructions": format!("Use {}.", state.name)});
        let mut response = whole(StatusCode::OK, json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string());
        response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
        return Ok(response);
    }
    if name == "subscriptions/listen" && era == Era::Modern {
        let (sender, receiver) = mpsc::channel(16);
        let meta = json!({"io.modelcontextprotocol/subscriptionId": id});
        let params = json!({"notifications": message["params"]["notifications"], "_meta": meta});
        let acknowledged =
            json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params});
        sender.send(Ok(sse::event(acknowledged.to_string().as_bytes()))).await.unwrap();
        tokio::spawn(forward(notify.subscribe(), sender, Some(meta)));
        return Ok(stream(receiver));
    }
    let reply = |result: Result<Value, (i64, &str)>| {
        let message = match result {
            Ok(result) if id_last => json!({"result": result, "jsonrpc": "2.0", "id": id}),
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err((code, text)) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}}),
        };
        message.to_string()
    };
    let wanted_header = state.lock().unwrap().wanted_header;
    if name == "tools/call" && wanted_header.is_some_and(|wanted| !headers.contains_key(wanted)) {
        return Ok(whole(StatusCode::BAD_REQUEST, reply(Err((-32020, "a header is missing")))));
    }
    if name == "tools/call" && fault != Fault::None {
        let token = message["params"]["_meta"]["progressToken"].clone();
        let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress",
            "params": {"progressToken": token, "progress": 1}});
        let (sender, receiver) = mpsc::channel(16);
        match fault {
            Fault::None => {}
            Fault::DropUnanswered => return Err(std::io::Error::other("dropped")),
            Fault::Hang => {
                let _noticed = Abandoned(Some(state.clone()));
                std::future::pending::<()>().await;
            }
            Fault::DropMidStream => {
                sender.send(Ok(sse::event(progress.to_string().as_bytes()))).await.unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    sender.send(Err(std::io::Error::other("dropped"))).await.ok();
                });
                return Ok(stream(receiver));
            }
            Fault::Stream => {
                sender.send(Ok(sse::event(progress.to_string().as_bytes()))).await.unwrap();
                let done = reply(Ok(result_of(era, &name, &message, &state)?.unwrap()));
                sender.send(Ok(sse::event(done.as_bytes()))).await.unwrap();
                return Ok(stream(receiver));
            }
            Fault::Ask => {
                let question = json!({"jsonrpc": "2.0", "id": "q1", "method": "sampling/createMessage", "params": {}});
                sender.send(Ok(sse::event(question.to_string().as_bytes()))).await.unwrap();
                let done = reply(Ok(json!({"content": []})));
                tokio::spawn(async move {
                    let answered = |state: &State| state.seen.iter().any(|(_, body)| body["id"] == "q1");
                    while !answered(&state.lock().unwrap()) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    sender.send(Ok(sse::event(done.as_bytes()))).await.ok();
                });
                return Ok(stream(receiver));
            }
            Fault::InputRequired => {
                let result = json!({"resultType": "input_required", "inputRequests": {}, "requestState": "x"});
                return Ok(whole(StatusCode::OK, reply(Ok(result))));
            }
        }
    }
    let mut result = result_of(era, &name, &message, &state)?;
    if let (Ok(result), true) = (&mut result, large > 0 && name == "tools/call") {
        result["content"][0]["text"] = "x".repeat(large).into();
    }
    let status = if era == Era::Modern && result.as_ref().is_err_and(|(code, _)| *code == -32601) {
        StatusCode::NOT_FOUND
    } else {
        StatusCode::OK
    };
    Ok(whole(status, reply(result)))
}

/// A result or an error in the server's own era.
fn result_of(
    era: Era,
    method: &str,
    message: &Value,
    state: &Arc<Mutex<State>>,
) -> Result<Result<Value, (i64, &'static str)>, std::io::Error> {
    let state = state.lock().unwrap();
    let params = &message["params"];
    let lists = method.ends_with("/list");
    let mut result = match method {
        "server/discover" if era == Era::Modern => json!({"supportedVersions": [MODERN],
            "capabilities": {"tools": {"listChanged": true}, "prompts": {}, "resources": {}},
            "instructions": format!("Use {}.", state.name),
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": state.name, "version": "1"}}}),
        "tools/list" => match params["cursor"].as_str() {
            // Two pages.
            None => json!({"tools": state.tools[..1], "nextCursor": "2"}),
            Some(_) => json!({"tools": state.tools[1..]}),
        },
        "prompts/list" => json!({"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}]}),
        "resources/list" => json!({"resources": [{"uri": "test://text", "name": "text"}]}),
        "resources/templates/list" => json!({"resourceTemplates": [{"uriTemplate": "test://{id}", "name": "t"}]}),
        "tools/call" if state.tools.iter().any(|tool| tool["name"] == params["name"]) => {
            let text = json!({"server": state.name, "tool": params["name"], "arguments": params["arguments"]});
            json!({"content": [{"type": "text", "text": text.to_string()}], "n": 1.0})
        }
        "tools/call" => return Ok(Err((-32602, "unknown tool"))),
        "prompts/get" => {
            json!({"messages": [{"role": "user", "content": {"type": "text", "text": params["arguments"]["who"]}}]})
        }
        "resources/read" if params["uri"] == "test://missing" => {
            return Ok(Err((if era == Era::Legacy { -32002 } else { -32602 }, "not found")));
        }
        "resources/read" => json!({"contents": [{"uri": params["uri"], "text": state.name}]}),
        "completion/complete" => json!({"completion": {"values": [params["ref"]["name"]]}}),
        "logging/setLevel" | "resources/subscribe" if era == Era::Legacy => json!({}),
        _ => return Ok(Err((-32601, "no such method"))),
    };
    if era == Era::Modern {
        result["resultType"] = "complete".into();
        if lists || method == "resources/read" || method == "server/discover" {
            result["ttlMs"] = 1000.into();
            result["cacheScope"] = "public".into();
        }
    }
    Ok(Ok(result))
}

async fn forward(
    mut notifications: broadcast::Receiver<Bytes>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
    meta: Option<Value>,
) {
    sender.send(Ok(Bytes::from_static(sse::COMMENT))).await.ok();
    loop {
        tokio::select! {
            received = notifications.recv() => {
                let Ok(received) = received else { return };
                let mut message: Value = serde_json::from_slice(&received).unwrap();
                if let Some(meta) = &meta { message["params"] = json!({"_meta": meta}) }
                if sender.send(Ok(sse::event(message.to_string().as_bytes()))).await.is_err() { return }
            }
            () = sender.closed() => return,
        }
    }
}

pub fn config(upstreams: Vec<Upstream>) -> GatewayConfig {
    GatewayConfig {
        version: "v1".to_owned(),
        hub: HubRef { namespace: "default".to_owned(), name: "default".to_owned(), uid: "hub".to_owned() },
        upstreams,
        naming: Naming { mode: NamingMode::Prefix, separator: "_".to_owned(), max_length: 48 },
        auth: ClientAuth::Bearer { tokens_sha256: vec![hex::encode(sha2::Sha256::digest(TOKEN))] },
        limits: GatewayLimits { message_bytes: 1 << 20, concurrent_calls: 64, stale_for_ms: 60_000 },
        allowed_hosts: vec![],
        allowed_origins: vec![],
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
        Client {
            url: format!("http://{}{path}", self.address),
            era,
            session: None,
            version: "2025-11-25".to_owned(),
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http(),
        }
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

/// A client that builds each message itself.
#[derive(Debug, Clone)]
pub struct Client {
    pub url: String,
    pub era: Era,
    pub session: Option<String>,
    pub version: String,
    pub http: hyper_util::client::legacy::Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Client {
    pub async fn initialize(&mut self, capabilities: Value) -> Value {
        let params = json!({"protocolVersion": self.version, "capabilities": capabilities,
            "clientInfo": {"name": "test", "version": "1"}});
        let message = json!({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params});
        let response = self.send(self.request(&message)).await;
        let session = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        let answer: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        if let Some(version) = answer["result"]["protocolVersion"].as_str() {
            self.version = version.to_owned();
        }
        self.session = Some(session.unwrap_or_else(|| panic!("no session: {answer}")));
        self.notify(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        answer["result"].clone()
    }

    pub fn request(&self, message: &Value) -> Request<Full<Bytes>> {
        let mut request = Request::post(&self.url)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json");
        if self.era == Era::Modern {
            request = request.header("mcp-protocol-version", MODERN);
            request = request.header("mcp-method", message["method"].as_str().unwrap_or_default());
            let name = message["params"]["name"].as_str().or(message["params"]["uri"].as_str());
            if let Some(name) = name {
                request = request.header("mcp-name", name);
            }
        } else if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session).header("mcp-protocol-version", &self.version);
        }
        request.body(Full::new(Bytes::from(message.to_string()))).unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        tokio::time::timeout(PATIENCE, self.http.request(request)).await.expect("no answer in time").unwrap()
    }

    pub async fn notify(&self, message: Value) {
        assert_eq!(self.send(self.request(&message)).await.status(), StatusCode::ACCEPTED);
    }

    pub fn message(&self, id: Value, method: &str, mut params: Value) -> Value {
        if self.era == Era::Modern {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = MODERN.into();
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        }
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
    }

    /// All messages that answer a request, the last of them the response.
    pub async fn messages(&self, message: &Value) -> Vec<Value> {
        read(self.send(self.request(message)).await).await
    }

    pub async fn ask(&self, method: &str, params: Value) -> Value {
        let message = self.message(json!("id-1"), method, params);
        let answer = self.messages(&message).await.pop().unwrap();
        assert_eq!(answer["id"], "id-1", "{answer}");
        assert_eq!(answer["jsonrpc"], "2.0");
        answer
    }

    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    pub async fn tool_names(&self) -> Vec<String> {
        let answer = self.ask("tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn stream(&self) -> Reader {
        let request = Request::get(&self.url)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("accept", "text/event-stream")
            .header("mcp-session-id", self.session.as_deref().unwrap())
            .body(Full::default())
            .unwrap();
        Reader::of(self.send(request).await)
    }
}

/// Messages of an open stream.
#[derive(Debug)]
pub struct Reader {
    body: Incoming,
    decoder: sse::Decoder,
    ready: std::collections::VecDeque<Value>,
}

impl Reader {
    pub fn of(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), decoder: sse::Decoder::new(1 << 24), ready: Default::default() }
    }

    pub async fn next(&mut self) -> Value {
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(message) = self.ready.pop_front() {
                    return message;
                }
                let frame = self.body.frame().await.expect("the stream ended").unwrap();
                let ready = &mut self.ready;
                let data = frame.into_data().unwrap();
                self.decoder.feed(&data, |event| ready.push_back(serde_json::from_slice(&event).unwrap())).unwrap();
            }
        })
        .await
        .expect("nothing came in time")
    }
}

pub async fn read(response: Response<Incoming>) -> Vec<Value> {
    let events = response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("no end in time").unwrap();
    let body = body.to_bytes();
    if !events {
        return vec![serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&body)))];
    }
    let mut messages = Vec::new();
    let mut decoder = sse::Decoder::new(1 << 26);
    decoder.feed(&body, |event| messages.push(serde_json::from_slice(&event).unwrap())).unwrap();
    messages
}

/// Waits for a state, boundedly.
pub async fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !reached() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn ready(hub: &Hub) {
    use mcp_hub_dataplane_api::gateway::UpstreamStatus;
    wait_for("all servers to be ready", || {
        hub.gateway.status().upstreams.values().all(|status| matches!(status, UpstreamStatus::Ready { .. }))
    })
    .await;
}
