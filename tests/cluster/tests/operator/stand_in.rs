//! Servers of few words that stand in for what an operator talks to in the cluster's network.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// What is said to a path: the content's type and the content; nothing is a 404.
type Answer = dyn Fn(&str) -> Option<(&'static str, String)> + Send + Sync;

/// Answers GET requests, one a connection. Ends with the value.
#[derive(Debug)]
pub(crate) struct StandIn {
    serving: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl StandIn {
    pub(crate) fn listen(
        listener: TcpListener,
        answer: impl Fn(&str) -> Option<(&'static str, String)> + Send + Sync + 'static,
    ) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        Self { serving: tokio::spawn(serve(listener, Arc::new(answer))) }
    }
}

async fn serve(listener: tokio::net::TcpListener, answer: Arc<Answer>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_buf(&mut request).await {
                    Ok(read) if read > 0 => {}
                    // The asker was killed.
                    _ => return,
                }
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap();
            let (status, (kind, body)) = match answer(path) {
                Some(said) => ("200 OK", said),
                None => ("404 Not Found", ("text/plain", String::new())),
            };
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length");
            let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.ok();
        });
    }
}
