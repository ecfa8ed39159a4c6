//! One stand-in for the bridges of all pods that KWOK plays: they share one address.

use std::net::TcpListener;

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Handshake, Phase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// Answers `/status` to whoever asks. Ends with the value.
#[derive(Debug)]
pub(crate) struct Bridges {
    serving: JoinHandle<()>,
}

impl Drop for Bridges {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Bridges {
    pub(crate) fn listen(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        Self { serving: tokio::spawn(serve(listener)) }
    }
}

async fn serve(listener: tokio::net::TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let body = serde_json::to_string(&status()).unwrap();
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_buf(&mut request).await {
                    Ok(read) if read > 0 => {}
                    // The asker was killed.
                    _ => return,
                }
            }
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
            let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.ok();
        });
    }
}

fn status() -> BridgeStatus {
    let handshake = Handshake {
        era: Era::Modern,
        server_name: "stand-in".to_owned(),
        server_version: "1.0.0".to_owned(),
        protocol_versions: vec!["2026-07-28".to_owned()],
        tools: None,
        duration_ms: 12,
        at: "2026-08-01T00:00:00Z".to_owned(),
    };
    BridgeStatus {
        bridge_version: "1".to_owned(),
        digest: String::new(),
        // Whoever asks knows where the pod is.
        endpoint: String::new(),
        phase: Phase::Ready,
        handshake: Some(handshake),
        restarts: 0,
        last_exit: None,
        last_error: None,
        stderr_tail: Vec::new(),
        notices: Vec::new(),
        activity: Activity::default(),
    }
}
