//! One HTTP request on a connection of its own, to something on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Where something listens.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// Nothing answers.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {address:?}: {problem}")]
pub(crate) struct Lost {
    address: Address,
    problem: String,
}

trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl Address {
    /// The caller bounds the wait, and what it reads of the answer.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the other side may have acted.
    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Lost> {
        let lost = |problem: String| Lost { address: self.clone(), problem };
        let stream: Pin<Box<dyn Stream>> = match self {
            Self::Socket(path) => Box::pin(UnixStream::connect(path).await.map_err(|error| lost(error.to_string()))?),
            Self::Port(address) => {
                Box::pin(TcpStream::connect(address).await.map_err(|error| lost(error.to_string()))?)
            }
        };
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| lost(error.to_string()))?;
        // Ends with the response's body.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| lost(error.to_string()))
    }
}
