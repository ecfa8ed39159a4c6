//! One stand-in for the bridges of all pods that KWOK plays: they share one address.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Handshake, Phase, ToolsSummary};
use tokio::net::TcpListener;

/// Answers `/status` as the bridge of a server that is ready, whoever asks: its pods have no token to check.
pub(crate) async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let said = Bytes::from(serde_json::to_vec(&status())?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let said = said.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let is_asked = request.uri().path() == "/status";
                let mut answer = Response::new(Full::new(if is_asked { said.clone() } else { Bytes::new() }));
                if !is_asked {
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                }
                async move { Ok::<_, Infallible>(answer) }
            });
            // An asker that went away is no failure.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

fn status() -> BridgeStatus {
    BridgeStatus {
        bridge_version: env!("CARGO_PKG_VERSION").to_owned(),
        digest: String::new(),
        // Whoever asks knows where the pod is.
        endpoint: String::new(),
        phase: Phase::Ready,
        handshake: Some(Handshake {
            era: Era::Modern,
            server_name: "stand-in".to_owned(),
            server_version: "1.0.0".to_owned(),
            protocol_versions: vec!["2026-07-28".to_owned()],
            tools: Some(ToolsSummary { count: 10, digest: "0".repeat(64) }),
            duration_ms: 12,
            at: "2026-11-01T00:00:00Z".to_owned(),
        }),
        restarts: 0,
        last_exit: None,
        last_error: None,
        stderr_tail: Vec::new(),
        notices: Vec::new(),
        activity: Activity::default(),
    }
}
