//! A small MCP client over a hub's endpoint, in the stateless era: one POST a request (2026-07-28, "Streamable HTTP").

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::MODERN_VERSIONS;
use mcp_hub_mcp::{headers, methods, sse};
use serde_json::{Value, json};

use crate::admin::{HubEndpoint, Name};
use crate::error::Error;
use crate::target::{Door, Target};

/// Largest event that is read.
const EVENT_MAX: usize = 64 << 20;
/// Most pages of a list.
const PAGES_MAX: usize = 1000;

#[derive(Debug)]
pub(crate) struct McpClient {
    /// `HOST:PORT`.
    authority: String,
    path: String,
    url: String,
    token: Option<String>,
    door: Arc<dyn Door>,
}

impl McpClient {
    /// A client of a target's hub, or of one server of it.
    pub(crate) async fn of(target: &dyn Target, hub: &Name, server: Option<&str>) -> Result<Self, Error> {
        Self::new(&target.endpoint(hub).await?, target.door(hub).await?, server)
    }

    fn new(endpoint: &HubEndpoint, door: Arc<dyn Door>, server: Option<&str>) -> Result<Self, Error> {
        let url = match server {
            None => endpoint.url.clone(),
            Some(server) => {
                let base = endpoint.url.strip_suffix("/mcp").unwrap_or(&endpoint.url);
                format!("{base}/servers/{server}/mcp")
            }
        };
        // A door to a cluster's hub leads through the API server, which secures it: TLS is for those who come from outside.
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let parts = rest.and_then(|rest| rest.split_once('/'));
        let Some((authority, path)) = parts else {
            return Err(Error::Endpoint { url, problem: "it is no http URL".to_owned() });
        };
        Ok(Self {
            authority: authority.to_owned(),
            path: format!("/{path}"),
            token: endpoint.token.as_ref().map(|token| token.expose_secret().to_owned()),
            url,
            door,
        })
    }

    /// The result of a request; notifications that come before it are skipped.
    pub(crate) async fn request(&self, method: &str, params: Value, limit: Duration) -> Result<Value, Error> {
        tokio::time::timeout(limit, self.exchange(method, params))
            .await
            .map_err(|_| Error::TimedOut(format!("no answer to {method} within {} s", limit.as_secs())))?
    }

    /// All pages of a list.
    pub(crate) async fn list(&self, method: &str, key: &str, limit: Duration) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut cursor = None;
        for _ in 0..PAGES_MAX {
            let params = cursor.take().map_or_else(|| json!({}), |cursor: Value| json!({"cursor": cursor}));
            let mut page = self.request(method, params, limit).await?;
            if let Value::Array(more) = page[key].take() {
                items.extend(more);
            }
            match page["nextCursor"].take() {
                Value::Null => break,
                next => cursor = Some(next),
            }
        }
        Ok(items)
    }

    async fn exchange(&self, method: &str, mut params: Value) -> Result<Value, Error> {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": MODERN_VERSIONS[0],
            "io.modelcontextprotocol/clientInfo": {"name": "mcpctl", "version": env!("CARGO_PKG_VERSION")},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let named = params["name"].as_str().or_else(|| params["uri"].as_str()).map(str::to_owned);
        let mut extra =
            vec![(headers::PROTOCOL_VERSION, MODERN_VERSIONS[0].to_owned()), (headers::METHOD, method.to_owned())];
        if [methods::TOOLS_CALL, methods::PROMPTS_GET, methods::RESOURCES_READ].contains(&method) {
            extra.extend(named.map(|name| (headers::NAME, headers::encode(&name).into_owned())));
        }
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let response = self.send(Method::POST, &extra, message.to_string()).await?;
        let answer = self.answer(response).await?;
        match (answer.get("result"), answer.get("error")) {
            (Some(result), _) => Ok(result.clone()),
            (None, error) => Err(Error::Protocol {
                method: method.to_owned(),
                code: error.and_then(|error| error["code"].as_i64()).unwrap_or_default(),
                message: error.and_then(|error| error["message"].as_str()).unwrap_or("no reason given").to_owned(),
            }),
        }
    }

    /// The response among what came back: the body itself, or the event that is no notification.
    async fn answer(&self, response: Response<Incoming>) -> Result<Value, Error> {
        let status = response.status();
        let streams = response
            .headers()
            .get("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let mut body = response.into_body();
        if !streams {
            let bytes = body.collect().await.map_err(|error| self.lost(&error))?.to_bytes();
            return serde_json::from_slice(&bytes).map_err(|_| Error::Http {
                status: status.as_u16(),
                message: String::from_utf8_lossy(&bytes).chars().take(300).collect(),
            });
        }
        let mut decoder = sse::Decoder::new(EVENT_MAX);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.lost(&error))?;
            let mut found = None;
            decoder
                .feed(frame.data_ref().unwrap_or(&Bytes::new()), |event| {
                    let message = serde_json::from_slice::<Value>(&event).unwrap_or_default();
                    if message.get("result").is_some() || message.get("error").is_some() {
                        found = Some(message);
                    }
                })
                .map_err(|error| self.lost(&error))?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(self.lost(&"the stream ended before the answer"))
    }

    /// Sends a body with the token and these headers.
    pub(crate) async fn send(
        &self,
        method: Method,
        extra: &[(&str, String)],
        body: String,
    ) -> Result<Response<Incoming>, Error> {
        let stream = self.door.open(&self.authority).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.lost(&error))?;
        // Ends with the answer's body.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(&self.path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in extra {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| self.lost(&error))?;
        sender.send_request(request).await.map_err(|error| self.lost(&error))
    }

    pub(crate) fn lost(&self, problem: &impl ToString) -> Error {
        Error::Endpoint { url: self.url.clone(), problem: problem.to_string() }
    }
}
