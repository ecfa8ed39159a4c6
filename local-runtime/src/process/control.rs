//! Client of a bridge's control socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::launch::control;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_dataplane_api::status::BridgeStatus;
use tokio::net::UnixStream;

/// A bridge answers within milliseconds; one that does not for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// A status has a bounded stderr tail.
const STATUS_MAX: usize = 1 << 20;

#[derive(Debug, Clone)]
pub(super) struct Control(PathBuf);

#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error("the control socket does not answer")]
    Unreachable,
    #[error("the control socket answered {0}")]
    Refused(StatusCode),
}

impl Control {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self(socket)
    }

    pub(super) async fn status(&self) -> Result<BridgeStatus, ControlError> {
        let ask = async {
            let body = self.send(Method::GET, control::STATUS, Bytes::new()).await?;
            let bytes = Limited::new(body, STATUS_MAX).collect().await.map_err(|_| ControlError::Unreachable)?;
            serde_json::from_slice(&bytes.to_bytes()).map_err(|_| ControlError::Unreachable)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ControlError::Unreachable))
    }

    pub(super) async fn push_secrets(&self, values: &BTreeMap<String, SecretString>) -> Result<(), ControlError> {
        let body = serde_json::to_vec(values).unwrap_or_default();
        let ask = self.send(Method::PUT, control::SECRETS, body.into());
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ControlError::Unreachable)).map(drop)
    }

    /// Answered when the server's whole tree is gone; the caller bounds the wait.
    pub(super) async fn stop(&self) -> Result<(), ControlError> {
        self.send(Method::POST, control::STOP, Bytes::new()).await.map(drop)
    }

    /// One item for each status that the bridge tells; ends with the bridge.
    pub(super) async fn events(&self) -> Result<BoxStream<'static, ()>, ControlError> {
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
        let lost = |_| ControlError::Unreachable;
        let stream = UnixStream::connect(&self.0).await.map_err(|_| ControlError::Unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // Ends with the response's body.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "bridge").body(Full::new(body));
        let request = request.map_err(|_| ControlError::Unreachable)?;
        let response = sender.send_request(request).await.map_err(lost)?;
        match response.status() {
            status if status.is_success() => Ok(response.into_body()),
            status => Err(ControlError::Refused(status)),
        }
    }
}
