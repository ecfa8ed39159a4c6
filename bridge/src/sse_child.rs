//! A server that speaks HTTP+SSE of 2024-11-05: one stream of its messages, one address for ours.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mcp_hub_mcp::framing::LINE_MAX;
use mcp_hub_mcp::http_sse::{Address, ENDPOINT};
use mcp_hub_mcp::sse;

use crate::link::{Link, Outgoing};

/// Pause between two tries to reach a server that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);

type Http = Client<HttpConnector, Full<Bytes>>;

/// Connects to the server as soon as it listens. The link is closed when its stream ends.
pub fn attach(link: &Link, outgoing: Outgoing, port: u16, path: &str) {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let link = link.clone();
    tokio::spawn(async move {
        let closed = link.clone();
        tokio::select! {
            () = converse(&link, outgoing, format!("http://127.0.0.1:{port}"), &path) => {}
            () = closed.closed() => {}
        }
        link.close();
    });
}

async fn converse(link: &Link, outgoing: Outgoing, origin: String, path: &str) {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut stream = connect(&http, &format!("{origin}{path}")).await.into_body();
    let mut decoder = sse::Decoder::new(LINE_MAX);
    let mut outgoing = Some(outgoing);
    let mut events = Vec::new();
    while let Some(Ok(frame)) = stream.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        if decoder.feed_named(&data, |name, event| events.push((name == ENDPOINT.as_bytes(), event))).is_err() {
            return link.on_oversize(&[], &[], LINE_MAX as u64);
        }
        for (is_endpoint, event) in events.drain(..) {
            match outgoing.take() {
                // The first event names the address for messages. Only its path counts: they go nowhere else than to the
                // server itself.
                Some(outgoing) => {
                    let Some(address) = Address::read(&event, path).filter(|_| is_endpoint) else { return };
                    let address = format!("{origin}{}", address.path());
                    tokio::spawn(send(http.clone(), link.clone(), outgoing, address));
                }
                None => link.on_message(event).await,
            }
        }
    }
}

/// The stream, once there is one: a server may listen before its routes are there.
async fn connect(http: &Http, address: &str) -> Response<Incoming> {
    loop {
        let request = Request::get(address).header(ACCEPT, "text/event-stream").body(Full::default());
        if let Ok(request) = request
            && let Ok(response) = http.request(request).await
            && response.status() == StatusCode::OK
            && response
                .headers()
                .get(CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
        {
            return response;
        }
        // A port that is about to be bound gives no event. The start timeout ends this.
        tokio::time::sleep(RETRY).await;
    }
}

/// Posts one message after the other, so that they arrive in order.
async fn send(http: Http, link: Link, mut outgoing: Outgoing, address: String) {
    let pump = async {
        while let Some(mut queued) = outgoing.recv().await {
            let message = std::mem::take(&mut queued.message);
            let request = Request::builder()
                .method(Method::POST)
                .uri(&address)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::from(message));
            let Ok(request) = request else { return };
            let response = http.request(request).await;
            let is_lost = response.as_ref().is_err_and(|error| error.is_connect());
            if !is_lost {
                queued.delivered();
            }
            if response.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = pump => {}
        () = link.closed() => {}
    }
    link.close();
}
