//! A client that sees every byte.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::sse;
use serde_json::{Value, json};

use super::{MODERN, PATIENCE, TOKEN};

/// A client that builds each message itself.
#[derive(Debug, Clone)]
pub struct Client {
    pub url: String,
    pub era: Era,
    pub session: Option<String>,
    pub version: String,
    /// What a modern client says that it can do.
    pub capabilities: Value,
    pub http: hyper_util::client::legacy::Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Client {
    /// Of a gateway at this address.
    pub fn of(gateway: SocketAddr, path: &str, era: Era) -> Self {
        Self {
            url: format!("http://{gateway}{path}"),
            era,
            session: None,
            version: "2025-11-25".to_owned(),
            capabilities: json!({}),
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http(),
        }
    }

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
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = self.capabilities.clone();
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

    /// Waits for the end of the stream; nothing may come before it.
    pub async fn ended(&mut self) {
        let end = async {
            while let Some(frame) = self.body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                self.decoder.feed(&data, |event| panic!("{}", String::from_utf8_lossy(&event))).unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("the stream did not end");
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

/// A message from JSON or from the last event of a stream.
pub fn any(body: &[u8]) -> Value {
    if let Ok(message) = serde_json::from_slice(body) {
        return message;
    }
    let mut last = Value::Null;
    let mut decoder = sse::Decoder::new(1 << 26);
    decoder.feed(body, |event| last = serde_json::from_slice(&event).unwrap()).unwrap();
    last
}
