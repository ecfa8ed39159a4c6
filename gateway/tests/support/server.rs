//! A scriptable MCP server of either era.

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
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::gateway::{Target, ToolRules, Transport, Upstream, UpstreamEra};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::{Era, SessionMode};
use mcp_hub_mcp::sse;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, mpsc};

use super::asking::{ask, next_round, say_beside};
use super::streams::{Listening, Told, forward};
use super::{MODERN, Task, wait_for};

/// What the server does with the next `tools/call`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Closes the connection after it has read the request.
    DropUnanswered,
    /// Begins a stream, sends progress, closes it.
    DropMidStream,
    /// Never answers, unless it is [released](Fake::release).
    Hang,
    /// Answers as bytes in a stream after a progress notification.
    Stream,
    /// Logs on the call's stream before it answers: an error, and what is worth a debug message.
    Log,
    /// Asks the client for what [`State::rounds`] says before it answers with what it was told.
    Ask,
}

/// How a legacy server asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// On the call's stream, and answers the call in the end.
    Well,
    /// On the stream of the session, before the call's response begins.
    Outside,
    /// On the call's stream, and says nothing more after the last answer.
    Hanging,
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
    /// What the server asks in the middle of a call, round after round: requests without ids.
    pub rounds: Vec<Vec<Value>>,
    pub manner: Manner,
    /// `ttlMs` and `cacheScope`.
    pub caching: (u32, &'static str),
    /// With which every call is refused.
    pub refusal: Option<(i64, &'static str)>,
    /// What it says that it offers.
    pub capabilities: Value,
    /// Questions asked so far.
    pub asked: usize,
    /// Requests in order: headers and body.
    pub seen: Vec<(HeaderMap, Value)>,
    pub id_last: bool,
    pub large: usize,
    /// Calls whose connection was closed by the other side before they were answered.
    pub abandoned: usize,
    /// A header without which calls are refused.
    pub wanted_header: Option<&'static str>,
    /// Lets calls go on that hang.
    pub released: Arc<Notify>,
}

impl Fault {
    /// By which a call may say what is to become of it.
    fn named(name: &str) -> Option<Self> {
        let all = [Self::None, Self::DropUnanswered, Self::DropMidStream, Self::Hang, Self::Stream, Self::Ask];
        all.into_iter().find(|fault| format!("{fault:?}") == name)
    }
}

#[derive(Debug, Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    notify: broadcast::Sender<Told>,
    task: Arc<Task>,
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
            rounds: Vec::new(),
            asked: 0,
            manner: Manner::Well,
            caching: (1000, "public"),
            refusal: None,
            capabilities: json!({"tools": {"listChanged": true}, "prompts": {}, "resources": {"subscribe": true},
                "completions": {}, "logging": {}}),
            seen: Vec::new(),
            id_last: false,
            large: 0,
            abandoned: 0,
            wanted_header: None,
            released: Arc::default(),
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

    /// Lets the calls that hang now be answered.
    pub fn release(&self) {
        self.get(|state| state.released.clone()).notify_waiters();
    }

    pub fn tell(&self, method: &str) {
        self.say(None, json!({"jsonrpc": "2.0", "method": method}));
    }

    /// Says this on the streams of one session, or of all.
    pub fn say(&self, session: Option<&str>, message: Value) {
        self.notify.send(Told { session: session.map(str::to_owned), message }).ok();
    }

    /// Open streams of sessions and subscriptions.
    pub fn streams(&self) -> usize {
        self.notify.receiver_count()
    }

    pub fn update(&self, uri: &str) {
        self.say(None, json!({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}}));
    }

    pub fn log(&self, level: &str) {
        let params = json!({"level": level, "logger": "db", "data": level});
        self.say(None, json!({"jsonrpc": "2.0", "method": "notifications/message", "params": params}));
    }

    /// As [`Fake::upstream`], with a session for each client.
    pub fn per_client(&self, name: &str) -> Upstream {
        Upstream { sessions: SessionMode::PerClient, ..self.upstream(name) }
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
            transport: Transport::StreamableHttp,
            sessions: SessionMode::Shared,
            tools: ToolRules::default(),
            call_timeout_ms: 20_000,
            definitions: None,
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
    notify: broadcast::Sender<Told>,
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
        tokio::spawn(forward(notify.subscribe(), sender, Listening::Session(session)));
        return Ok(stream(receiver));
    }
    if method == Method::DELETE {
        let mut state = state.lock().unwrap();
        state.sessions.remove(&session.unwrap());
        state.deleted += 1;
        return Ok(whole(StatusCode::NO_CONTENT, String::new()));
    }
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        // Nested too deep for this server.
        let refusal = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"too deep"}}"#;
        return Ok(whole(StatusCode::BAD_REQUEST, refusal.to_owned()));
    };
    let (fault, id_last, large) = {
        let mut state = state.lock().unwrap();
        state.seen.push((headers.clone(), message.clone()));
        let wanted = message["params"]["arguments"]["fault"].as_str().and_then(Fault::named);
        (wanted.unwrap_or(state.fault), state.id_last, state.large)
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
        let result = json!({"protocolVersion": "2025-06-18", "capabilities": state.capabilities, "serverInfo": {"name": state.name, "version": "1"},
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
        let wanted = message["params"]["notifications"].clone();
        tokio::spawn(forward(notify.subscribe(), sender, Listening::Subscription { wanted, meta }));
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
                let mut noticed = Abandoned(Some(state.clone()));
                let released = state.lock().unwrap().released.clone();
                released.notified().await;
                noticed.0 = None;
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
            Fault::Log => {
                let levels = ["debug", "error"];
                let from = message["params"]["_meta"]["io.modelcontextprotocol/logLevel"].as_str();
                let from = from.map(|level| levels.iter().position(|known| *known == level).unwrap());
                for (place, level) in levels.into_iter().enumerate() {
                    if era == Era::Modern && from.is_none_or(|from| place < from) {
                        continue;
                    }
                    let log = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level}});
                    sender.send(Ok(sse::event(log.to_string().as_bytes()))).await.unwrap();
                }
                let done = reply(Ok(result_of(era, &name, &message, &state)?.unwrap()));
                sender.send(Ok(sse::event(done.as_bytes()))).await.unwrap();
                return Ok(stream(receiver));
            }
            Fault::Ask => {
                if era == Era::Modern {
                    return Ok(whole(StatusCode::OK, reply(Ok(next_round(&message["params"], &state)))));
                }
                let (rounds, manner) = {
                    let state = state.lock().unwrap();
                    (state.rounds.clone(), state.manner)
                };
                let call = message["params"]["arguments"]["call"].clone();
                let progress = (!token.is_null()).then(|| sse::event(progress.to_string().as_bytes()));
                let answered = move |told: Vec<Value>| {
                    let content = json!([{"type": "text", "text": Value::from(told).to_string()}]);
                    let result = json!({"content": content, "call": call});
                    json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()
                };
                if manner == Manner::Outside {
                    // The call's own response begins when all is known.
                    let (beside, asked) = mpsc::channel(16);
                    let saying = tokio::spawn(say_beside(asked, notify, session));
                    let mut told = Vec::new();
                    for round in rounds {
                        told = ask(round, &beside, &state).await;
                    }
                    saying.abort();
                    return Ok(whole(StatusCode::OK, answered(told)));
                }
                tokio::spawn(async move {
                    let mut told = Vec::new();
                    for round in rounds {
                        told = ask(round, &sender, &state).await;
                    }
                    if manner == Manner::Hanging {
                        return sender.closed().await;
                    }
                    if let Some(progress) = progress {
                        sender.send(Ok(progress)).await.ok();
                    }
                    sender.send(Ok(sse::event(answered(told).as_bytes()))).await.ok();
                });
                return Ok(stream(receiver));
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
            "capabilities": state.capabilities,
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
        "tools/call" if state.refusal.is_some() => return Ok(Err(state.refusal.unwrap())),
        "tools/call" if state.tools.iter().any(|tool| tool["name"] == params["name"]) => {
            let text = json!({"server": state.name, "tool": params["name"], "arguments": params["arguments"]});
            json!({"content": [{"type": "text", "text": text.to_string()}], "n": 1.0,
                "call": params["arguments"]["call"]})
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
        "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe" if era == Era::Legacy => json!({}),
        _ => return Ok(Err((-32601, "no such method"))),
    };
    if era == Era::Modern {
        result["resultType"] = "complete".into();
        if lists || method == "resources/read" || method == "server/discover" {
            result["ttlMs"] = state.caching.0.into();
            result["cacheScope"] = state.caching.1.into();
        }
    }
    Ok(Ok(result))
}
