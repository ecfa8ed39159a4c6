//! Requests to bridges and gateways in pods.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mcp_hub_dataplane_api::control;
use mcp_hub_dataplane_api::gateway::{Definitions, InForce, ReplicaStatus};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::BridgeStatus;

use crate::bridges::AskBridge;
use crate::gateways::AskGateway;

/// A pod that has not answered by then is asked again later.
const PATIENCE: Duration = Duration::from_secs(5);
/// A gateway says something at least every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// A status holds twenty lines of stderr and a page of conditions at most.
const STATUS_MAX: usize = 1 << 20;
/// A gateway tells of each server; a line of a thousand is about half a megabyte.
const LINE_MAX: usize = 16 << 20;

/// HTTP/1.1 without TLS on the pod network; what is secret there is sealed.
#[derive(Debug, Clone)]
pub struct PodHttp {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for PodHttp {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(PATIENCE));
        // Asked rarely: a kept connection would only keep a place.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { client }
    }
}

impl PodHttp {
    async fn send(
        &self,
        method: Method,
        url: &str,
        token: Option<&SecretString>,
        body: Bytes,
    ) -> Option<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
        }
        let request = request.body(Full::new(body)).ok()?;
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request)).await.ok()?.ok()?;
        answer.status().is_success().then_some(answer)
    }

    async fn read<T: serde::de::DeserializeOwned>(answer: Response<Incoming>) -> Option<T> {
        let body = Limited::new(answer.into_body(), STATUS_MAX).collect();
        let bytes = tokio::time::timeout(PATIENCE, body).await.ok()?.ok()?.to_bytes();
        serde_json::from_slice(&bytes).ok()
    }
}

/// `http://ADDRESS:PORT` + path, an IPv6 address in brackets.
fn url(address: &str, port: u16, path: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{port}{path}")
    } else {
        format!("http://{address}:{port}{path}")
    }
}

#[async_trait]
impl AskBridge for PodHttp {
    async fn status(&self, address: &str, port: u16, token: &SecretString) -> Option<BridgeStatus> {
        Self::read(self.send(Method::GET, &url(address, port, "/status"), Some(token), Bytes::new()).await?).await
    }
}

#[async_trait]
impl AskGateway for PodHttp {
    async fn push(&self, address: &str, port: u16, sealed: Vec<u8>) -> Option<InForce> {
        Self::read(self.send(Method::PUT, &url(address, port, control::CONFIG), None, sealed.into()).await?).await
    }

    async fn definitions(&self, address: &str, port: u16, token: &SecretString, server: &str) -> Option<Definitions> {
        let path = format!("{}{server}", control::DEFINITIONS);
        Self::read(self.send(Method::GET, &url(address, port, &path), Some(token), Bytes::new()).await?).await
    }

    async fn events(&self, address: &str, port: u16, token: &SecretString) -> BoxStream<'static, ReplicaStatus> {
        let answer = self.send(Method::GET, &url(address, port, control::EVENTS), Some(token), Bytes::new()).await;
        let Some(answer) = answer else { return futures::stream::empty().boxed() };
        futures::stream::unfold((answer.into_body(), Vec::new()), |(mut body, mut buffer)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    // What cannot be read ends the stream; it is opened anew.
                    return Some((serde_json::from_slice(&line).ok()?, (body, buffer)));
                }
                let frame = tokio::time::timeout(SILENCE, body.frame()).await.ok()??.ok()?;
                if let Ok(bytes) = frame.into_data() {
                    buffer.extend_from_slice(&bytes);
                }
                if buffer.len() > LINE_MAX {
                    return None;
                }
            }
        })
        .boxed()
    }
}
