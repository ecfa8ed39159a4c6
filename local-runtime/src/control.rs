//! Client of a bridge: over its control socket, or where a container publishes its port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::header::{AUTHORIZATION, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use mcp_hub_dataplane_api::launch::control;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::BridgeStatus;

use crate::wire::Address;

/// A bridge answers within milliseconds; one that does not for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// A status has a bounded stderr tail.
const STATUS_MAX: usize = 1 << 20;

/// A bridge that can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    address: Address,
    /// A socket's file mode is its authentication; where a port is open to others, the token is.
    token: Option<SecretString>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the bridge does not answer")]
    Unreachable,
    #[error("the bridge answered {0}")]
    Refused(StatusCode),
}

impl Control {
    pub(crate) fn at_socket(socket: PathBuf) -> Self {
        Self { address: Address::Socket(socket), token: None }
    }

    /// A bridge whose port is published at this address.
    pub(crate) fn at_port(address: SocketAddr, token: SecretString) -> Self {
        Self { address: Address::Port(address), token: Some(token) }
    }

    pub(crate) async fn status(&self) -> Result<BridgeStatus, ControlError> {
        let ask = async {
            let body = self.send(Method::GET, control::STATUS, Bytes::new()).await?;
            let bytes = Limited::new(body, STATUS_MAX).collect().await.map_err(|_| ControlError::Unreachable)?;
            serde_json::from_slice(&bytes.to_bytes()).map_err(|_| ControlError::Unreachable)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ControlError::Unreachable))
    }

    pub(crate) async fn push_secrets(&self, values: &BTreeMap<String, SecretString>) -> Result<(), ControlError> {
        let body = serde_json::to_vec(values).unwrap_or_default();
        let ask = self.send(Method::PUT, control::SECRETS, body.into());
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ControlError::Unreachable)).map(drop)
    }

    /// Answered when the server's whole tree is gone; the caller bounds the wait.
    pub(crate) async fn stop(&self) -> Result<(), ControlError> {
        self.send(Method::POST, control::STOP, Bytes::new()).await.map(drop)
    }

    /// One item for each status that the bridge tells; ends with the bridge.
    pub(crate) async fn events(&self) -> Result<BoxStream<'static, ()>, ControlError> {
        let ask = self.send(Method::GET, control::EVENTS, Bytes::new());
        let body = tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ControlError::Unreachable))?;
        let frames = futures::stream::unfold(body, |mut body| async move {
            match body.frame().await {
                Some(Ok(_)) => Some(((), body)),
                Some(Err(_)) | None => None,
            }
        });
        Ok(frames.boxed())
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, ControlError> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "bridge");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
        }
        let request = request.body(Full::new(body)).map_err(|_| ControlError::Unreachable)?;
        let response = self.address.ask(request).await.map_err(|_| ControlError::Unreachable)?;
        match response.status() {
            status if status.is_success() => Ok(response.into_body()),
            status => Err(ControlError::Refused(status)),
        }
    }
}
