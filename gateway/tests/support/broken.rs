//! A server that answers handshakes and lists as it should, and breaks in a call: written byte by byte, because a library
//! would not let it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mcp_hub_dataplane_api::gateway::{Target, ToolRules, Transport, Upstream, UpstreamEra};
use mcp_hub_dataplane_api::{Era, SessionMode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{MODERN, Task, tool};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The connection is reset before an answer begins.
    ResetUnanswered,
    /// A stream begins, and its connection is reset.
    ResetMidStream,
    /// A stream begins, and nothing more comes.
    StallMidStream,
    /// The headers of a small answer come, and half of it.
    StallMidAnswer,
    /// The same of an answer that is large enough to be passed on while it comes.
    StallMidLargeAnswer,
    /// Status 500 and a page.
    Page500,
    /// Status 500 and JSON that is no JSON-RPC.
    Json500,
    /// Status 307, to this address.
    Redirect(SocketAddr),
    /// Comments for ever.
    EndlessComments,
    /// Notifications for ever.
    EndlessNotifications,
    /// An event that never ends.
    EndlessEvent,
    /// A JSON body that never ends.
    EndlessAnswer,
    /// A body that ends before its declared length.
    HalfAnswer,
    /// What is no HTTP.
    Noise,
    /// An answer as it should be, with brackets nested so deep.
    Deep(usize),
}

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct Broken {
    pub address: SocketAddr,
    era: Era,
    /// Calls that arrived.
    pub calls: Arc<AtomicUsize>,
    /// Bytes of endless answers that somebody took.
    pub taken: Arc<AtomicUsize>,
    /// Endless answers that somebody still takes.
    pub open: Arc<AtomicUsize>,
    task: Task,
}

impl Broken {
    pub async fn start(era: Era, how: Break) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, taken, open) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let endless = Endless { taken: taken.clone(), open: open.clone() };
        let counted = calls.clone();
        let task = Task(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, era, how, counted.clone(), endless.clone()));
            }
        }));
        Self { address, era, calls, taken, open, task }
    }

    /// With a call timeout that is over soon.
    pub fn upstream(&self, name: &str) -> Upstream {
        Upstream {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            target: Target::Available { url: format!("http://{}/mcp", self.address), headers: BTreeMap::new() },
            era: UpstreamEra::Known(self.era),
            transport: Transport::StreamableHttp,
            sessions: SessionMode::Shared,
            tools: ToolRules::default(),
            call_timeout_ms: 1_000,
            definitions: None,
        }
    }
}

/// Body of the next request, or the end of the connection.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<(bool, Value)> {
    let (mut line, mut length, mut posts) = (String::new(), 0, None);
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let text = line.trim_end();
        posts = posts.or(Some(text.starts_with("POST ")));
        if text.is_empty() {
            break;
        }
        if let Some(value) = text.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((posts?, serde_json::from_slice(&body).unwrap_or_default()))
}

async fn serve(stream: TcpStream, era: Era, how: Break, calls: Arc<AtomicUsize>, endless: Endless) {
    let mut stream = BufReader::new(stream);
    while let Some((posts, message)) = request(&mut stream).await {
        let stream = stream.get_mut();
        let ended = match message["method"].as_str() {
            Some("tools/call") => {
                calls.fetch_add(1, Ordering::Relaxed);
                act(stream, how, &message["id"].to_string(), &endless).await.is_err() || how != Break::Page500
            }
            Some(method) if message.get("id").is_some() => {
                let result = result_of(era, method);
                let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string();
                stream.write_all(&with_length("200 OK", "application/json", &answer)).await.is_err()
            }
            _ => {
                let status = if posts { "202 Accepted" } else { "405 Method Not Allowed" };
                stream.write_all(&with_length(status, "text/plain", "")).await.is_err()
            }
        };
        if ended {
            return;
        }
    }
}

fn result_of(era: Era, method: &str) -> Value {
    match (era, method) {
        (Era::Legacy, "initialize") => json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
            "serverInfo": {"name": "broken", "version": "1"}}),
        (Era::Modern, "server/discover") => json!({"resultType": "complete", "supportedVersions": [MODERN],
            "capabilities": {"tools": {}}, "ttlMs": 1000, "cacheScope": "public"}),
        (_, "tools/list") => json!({"resultType": "complete", "tools": [tool("echo")], "ttlMs": 1000,
            "cacheScope": "public"}),
        _ => json!({"resultType": "complete"}),
    }
}

fn with_length(status: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// One chunk of a chunked body.
fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

async fn act(stream: &mut TcpStream, how: Break, id: &str, endless: &Endless) -> std::io::Result<()> {
    let begun = |kind: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes()
    };
    let progress =
        b"data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":1}}\n\n";
    // A reset, not an end, when the connection is dropped.
    let reset = |stream: &TcpStream| stream.set_zero_linger();
    let declared = |length: usize| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n").into_bytes()
    };
    match how {
        Break::ResetUnanswered => reset(stream)?,
        Break::ResetMidStream => {
            stream.write_all(&[begun("text/event-stream"), chunk(progress)].concat()).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            reset(stream)?;
        }
        Break::StallMidStream => {
            stream.write_all(&[begun("text/event-stream"), chunk(progress)].concat()).await?;
            gone(stream).await;
        }
        Break::StallMidAnswer => {
            stream.write_all(&[&declared(100)[..], b"{\"jsonrpc\":\"2.0\","].concat()).await?;
            gone(stream).await;
        }
        Break::StallMidLargeAnswer => {
            stream.write_all(&[&declared(1 << 20)[..], &vec![b' '; 100_000]].concat()).await?;
            gone(stream).await;
        }
        Break::Page500 => {
            stream.write_all(&with_length("500 Internal Server Error", "text/html", "<h1>oops</h1>")).await?;
        }
        Break::Json500 => {
            let body = r#"{"message":"oops"}"#;
            stream.write_all(&with_length("500 Internal Server Error", "application/json", body)).await?;
        }
        Break::Redirect(to) => {
            let head =
                format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{to}/mcp\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
        }
        Break::EndlessComments => endless.write(stream, &begun("text/event-stream"), b": still there\n\n").await?,
        Break::EndlessNotifications => endless.write(stream, &begun("text/event-stream"), progress).await?,
        Break::EndlessEvent => {
            stream.write_all(&[begun("text/event-stream"), chunk(b"data: ")].concat()).await?;
            endless.write(stream, b"", &[b'x'; 60_000]).await?;
        }
        Break::EndlessAnswer => endless.write(stream, &begun("application/json"), &[b' '; 60_000]).await?,
        Break::HalfAnswer => stream.write_all(&[&declared(100)[..], b"{\"jsonrpc\":\"2.0\","].concat()).await?,
        Break::Noise => stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").await?,
        Break::Deep(depth) => {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            let result =
                format!(r#"{{"resultType":"complete","content":[],"structuredContent":{{"deep":{open}{close}}}}}"#);
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
            stream.write_all(&with_length("200 OK", "application/json", &answer)).await?;
        }
    }
    Ok(())
}

/// Answers without an end.
#[derive(Debug, Clone)]
struct Endless {
    taken: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Endless {
    /// Writes the same for ever, until the other side is gone.
    async fn write(&self, stream: &mut TcpStream, first: &[u8], data: &[u8]) -> std::io::Result<()> {
        self.open.fetch_add(1, Ordering::Relaxed);
        let data = chunk(data);
        let writing = async {
            stream.write_all(first).await?;
            loop {
                stream.write_all(&data).await?;
                self.taken.fetch_add(data.len(), Ordering::Relaxed);
            }
        };
        let ended = writing.await;
        self.open.fetch_sub(1, Ordering::Relaxed);
        ended
    }
}

/// Resolves when the other side has closed the connection.
async fn gone(stream: &mut TcpStream) {
    stream.read_u8().await.ok();
}
