//! The commands' side of the admin API.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Refusal;
use crate::error::{Error, Exit};

#[derive(Debug, Clone)]
pub(crate) struct Admin {
    socket: PathBuf,
}

impl Admin {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.exchange(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.exchange(Method::POST, path, encoded(path, body)?).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.exchange(Method::DELETE, path, encoded(path, body)?).await
    }

    /// Lines of an endless answer, without their ends.
    pub(crate) async fn lines(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<BoxStream<'static, Result<String, Error>>, Error> {
        let body = self.send(Method::POST, path, encoded(path, body)?).await?;
        let path = path.to_owned();
        let start = (body, Vec::new(), path);
        Ok(futures::stream::try_unfold(start, |(mut body, mut buffer, path)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let rest = buffer.split_off(end + 1);
                    buffer.pop();
                    let line = String::from_utf8_lossy(&buffer).into_owned();
                    return Ok(Some((line, (body, rest, path))));
                }
                match body.frame().await {
                    None => return Ok(None),
                    Some(Ok(frame)) => buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                    Some(Err(error)) => return Err(silent(&path, &error)),
                }
            }
        })
        .boxed())
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Error> {
        let body = self.send(method, path, body).await?;
        let bytes = body.collect().await.map_err(|error| silent(path, &error))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| silent(path, &error))
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            // No file, or one that a killed daemon left.
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Error::NoDaemon,
            _ => silent(path, &error),
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| silent(path, &error))?;
        // Ends with the answer's body.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "mcpctl");
        let request = request.header("content-type", "application/json").body(Full::new(body));
        let request = request.map_err(|error| silent(path, &error))?;
        let response = sender.send_request(request).await.map_err(|error| silent(path, &error))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|error| silent(path, &error))?.to_bytes();
        Err(match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) => {
                let exit = Exit::from_code(refusal.code);
                Error::Refused { exit, message: refusal.message, hint: refusal.hint }
            }
            Err(_) => silent(path, &format!("HTTP {status}")),
        })
    }
}

fn encoded(path: &str, body: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| silent(path, &error))
}

fn silent(path: &str, problem: &impl ToString) -> Error {
    Error::Silent { request: path.to_owned(), problem: problem.to_string() }
}
