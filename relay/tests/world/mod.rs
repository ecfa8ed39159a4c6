//! A relay, names that lead where the test says, and addresses behind which listeners of this machine are.

#![allow(unreachable_pub, reason = "a module of the test alone")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mcp_hub_dataplane_api::egress::{self, HostName};
use mcp_hub_dataplane_api::permit::{Permit, PermitKey};
use mcp_hub_relay::dial::Network;
use mcp_hub_relay::{Bounds, Drain, Relay};
use mcp_hub_test_port::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// An address of the internet, which no test connects to.
pub const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn key() -> PermitKey {
    PermitKey::new([7; 32])
}

/// Credentials, as `USER:PASSWORD`.
pub fn signed(server: &str, targets: &[&str], key: &PermitKey) -> String {
    let targets = targets.iter().map(|text| text.parse().unwrap()).collect();
    let password = Permit { server: server.to_owned(), targets }.password(key).unwrap();
    format!("{server}:{}", password.expose_secret())
}

#[derive(Debug, Clone, Default)]
struct Names {
    names: HashMap<String, Vec<IpAddr>>,
    slow: Vec<String>,
    silent: Vec<IpAddr>,
    listeners: HashMap<SocketAddr, u16>,
    lookups: Arc<Mutex<Vec<String>>>,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
}

#[async_trait]
impl Network for Names {
    async fn lookup(&self, host: &HostName) -> io::Result<Vec<IpAddr>> {
        self.lookups.lock().unwrap().push(host.to_string());
        if self.slow.iter().any(|slow| slow == host.as_str()) {
            std::future::pending::<()>().await;
        }
        self.names.get(host.as_str()).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dialled.lock().unwrap().push(address);
        if self.silent.contains(&address.ip()) {
            std::future::pending::<()>().await;
        }
        let port = self.listeners.get(&address).ok_or(io::ErrorKind::ConnectionRefused)?;
        TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await
    }
}

pub struct Making {
    names: Names,
    bounds: Bounds,
    local: Vec<egress::Network>,
    drain: Drain,
}

pub struct World {
    pub relay: Arc<Relay>,
    names: Names,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Making {
    pub fn name(mut self, name: &str, addresses: &[IpAddr]) -> Self {
        self.names.names.insert(name.to_owned(), addresses.to_vec());
        self
    }

    /// A name whose servers do not answer.
    pub fn slow(mut self, name: &str) -> Self {
        self.names.slow.push(name.to_owned());
        self
    }

    /// An address that does not answer.
    pub fn silent(mut self, address: IpAddr) -> Self {
        self.names.silent.push(address);
        self
    }

    /// Puts a listener of this machine behind an address and port.
    pub fn listen(mut self, address: IpAddr, port: u16, local: u16) -> Self {
        self.names.listeners.insert(SocketAddr::new(address, port), local);
        self
    }

    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// A network that is no part of the internet here.
    pub fn local(mut self, network: &str) -> Self {
        self.local.push(network.parse().unwrap());
        self
    }

    pub fn drain(mut self, drain: Drain) -> Self {
        self.drain = drain;
        self
    }

    pub async fn start(self) -> World {
        let relay = Relay::new(key(), self.names.clone(), self.bounds, self.local);
        let (listener, port) = listener().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            stopped.await.ok();
        };
        let serving = tokio::spawn(relay.clone().serve(listener, stopped, self.drain));
        World { relay, names: self.names, port, stop: Some(stop), serving }
    }
}

impl World {
    #[expect(clippy::new_ret_no_self, reason = "a world begins by being made")]
    pub fn new() -> Making {
        let drain = Drain { delay: Duration::ZERO, limit: Duration::ZERO };
        Making { names: Names::default(), bounds: Bounds::default(), local: Vec::new(), drain }
    }

    /// Credentials of the server `team.a`.
    pub fn permit(&self, targets: &[&str]) -> String {
        signed("team.a", targets, &key())
    }

    pub fn lookups(&self) -> Vec<String> {
        self.names.lookups.lock().unwrap().clone()
    }

    pub fn dialled(&self) -> Vec<SocketAddr> {
        self.names.dialled.lock().unwrap().clone()
    }

    pub async fn try_open(&self) -> io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await
    }

    pub async fn open(&self) -> TcpStream {
        self.try_open().await.unwrap()
    }

    /// Asks for a tunnel.
    pub async fn connect(&self, to: &str, credentials: &str) -> Answer {
        let authorization = authorization(credentials);
        self.send(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n")).await
    }

    /// Asks for a URL, with these header lines and this body.
    pub async fn ask(&self, method: &str, url: &str, credentials: &str, more: &str, body: &str) -> Answer {
        let authorization = authorization(credentials);
        let length = body.len();
        self.send(format!("{method} {url} HTTP/1.1\r\nContent-Length: {length}\r\n{more}{authorization}\r\n{body}"))
            .await
    }

    /// Asks the relay itself.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n")).await
    }

    async fn send(&self, request: String) -> Answer {
        let mut stream = self.open().await;
        // Whoever turns a connection away need not read what it says.
        stream.write_all(request.as_bytes()).await.ok();
        timeout(PATIENCE, Answer::read(stream)).await.unwrap()
    }

    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub async fn ended(&mut self) {
        timeout(PATIENCE, &mut self.serving).await.unwrap().unwrap();
    }
}

fn authorization(credentials: &str) -> String {
    match credentials {
        "" => String::new(),
        _ => format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(credentials)),
    }
}

/// What came back, and the connection that it came by.
pub struct Answer {
    /// 0 if none came.
    pub status: u16,
    pub head: String,
    pub text: String,
    stream: TcpStream,
}

impl Answer {
    async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let end = loop {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
            if end.is_some() || stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                break end;
            }
        };
        let Some(end) = end else { return Self { status: 0, head: String::new(), text: String::new(), stream } };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let field = |name: &str| {
            let lower = head.to_ascii_lowercase();
            let line = lower.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let length: usize = field("content-length:").map_or(0, |length| length.parse().unwrap());
        let mut body = bytes[end + 4..].to_vec();
        while body.len() < length && stream.read_buf(&mut body).await.unwrap() > 0 {}
        Self { status, head, text: String::from_utf8(body).unwrap(), stream }
    }

    pub fn tunnel(self) -> Tunnel {
        assert_eq!(self.status, 200, "{}", self.text);
        Tunnel(self.stream)
    }
}

pub struct Tunnel(TcpStream);

impl Tunnel {
    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    pub async fn say(&mut self, text: &str) -> String {
        self.send(text).await;
        let mut answer = vec![0; text.len()];
        timeout(PATIENCE, self.0.read_exact(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    pub async fn finish(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    pub async fn rest(&mut self) -> String {
        rest(&mut self.0).await
    }
}

/// What still comes until the other side ends it.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    // A cut is an end, too.
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().ok();
    String::from_utf8(rest).unwrap()
}

async fn listener() -> (TcpListener, u16) {
    let port = free_port().unwrap();
    (TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap(), port)
}

/// A listener that gives back what it gets.
pub async fn echo() -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await.ok();
                writer.shutdown().await.ok();
            });
        }
    });
    port
}

/// A listener that answers each request with its text.
pub async fn http_server() -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.ends_with(b"the body") && stream.read_buf(&mut seen).await.unwrap_or(0) > 0 {}
                let head = format!(
                    "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nContent-Length: {}\r\n\r\n",
                    seen.len()
                );
                stream.write_all(&[head.as_bytes(), &seen].concat()).await.ok();
            });
        }
    });
    port
}

/// Waits for a state.
pub async fn eventually(mut look: impl AsyncFnMut() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(last) = look().await {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?}; last: {last}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
