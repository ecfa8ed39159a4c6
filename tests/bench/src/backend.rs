//! The echo server on HTTP, in whichever era it is asked.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_mcp::headers;
use tokio::net::TcpListener;

use crate::echo::Echo;

/// A body of parts that are there already.
#[derive(Debug, Default)]
struct Parts(VecDeque<Bytes>);

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

/// Servers by the number of their tools.
type Servers = Arc<Mutex<HashMap<usize, Echo>>>;

pub(crate) async fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let servers = Servers::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let servers = servers.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, servers.clone()));
            // A client that went away is no failure.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

async fn answer(request: Request<Incoming>, servers: Servers) -> Result<Response<Parts>, hyper::Error> {
    let empty = |status| {
        let mut response = Response::new(Parts::default());
        *response.status_mut() = status;
        response
    };
    let tools = request.uri().path().strip_prefix('/').and_then(|rest| rest.strip_suffix("/mcp")?.parse().ok());
    let (Some(tools), &Method::POST) = (tools, request.method()) else {
        return Ok(empty(StatusCode::METHOD_NOT_ALLOWED));
    };
    let message = request.into_body().collect().await?.to_bytes();
    let echo = {
        let mut servers = servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.entry(tools).or_insert_with(|| Echo::new(tools)).clone()
    };
    let Some(answer) = echo.answer(&message) else { return Ok(empty(StatusCode::ACCEPTED)) };
    let mut response = Response::new(Parts(answer.parts.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if answer.opens_session {
        response.headers_mut().insert(headers::SESSION_ID, HeaderValue::from_static("everybody"));
    }
    Ok(response)
}
