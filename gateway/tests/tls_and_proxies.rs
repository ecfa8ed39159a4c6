//! TLS on both sides: servers elsewhere with the certificates that the environment names, HTTP/2, and proxies; clients with the
//! certificate that is mounted. The gateway is a program of its own here, because it reads its environment.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{Target, Upstream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;
use support::{Client, Fake, Fault, Replica, config, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The gateway as a process, with an environment of its own. Dropped, it ends.
struct Program {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Program {
    async fn start(upstreams: Vec<Upstream>, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("config.json"), serde_json::to_vec(&config(upstreams)).unwrap()).unwrap();
        std::fs::write(path("key"), "07".repeat(32)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], mcp_hub_test_port::free_port().unwrap()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcp-hub-gateway"));
        command.arg("--config").arg(path("config.json")).arg("--sealing-key").arg(path("key"));
        command.args(["--listen", &address.to_string()]).env_clear().envs(environment.iter().copied());
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let program = Self { child, address, _folder: folder };
        wait_for("the gateway to listen", || std::net::TcpStream::connect(address).is_ok()).await;
        program
    }

    fn client(&self) -> Client {
        Client::of(self.address, "/servers/far/mcp", Era::Modern)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already is as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An authority that vouches for `far.test` and 127.0.0.1.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn bundle(&self) -> String {
        self.folder.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    /// A TLS server that hands every request on to the fake; gives its address and the HTTP versions that it saw.
    async fn front(&self, fake: &Fake) -> (SocketAddr, Arc<Mutex<Vec<http::Version>>>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["far.test".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (versions, fake) = (seen.clone(), fake.address);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, versions) = (acceptor.clone(), versions.clone());
                tokio::spawn(async move {
                    // Whoever does not trust it goes away.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        versions.lock().unwrap().push(http::Request::version(&request));
                        hand_on(request, fake)
                    });
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        (address, seen)
    }
}

async fn hand_on(
    request: http::Request<hyper::body::Incoming>,
    to: SocketAddr,
) -> Result<http::Response<hyper::body::Incoming>, hyper_util::client::legacy::Error> {
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("http://{to}{}", parts.uri.path()).parse().unwrap();
    parts.version = http::Version::HTTP_11;
    let body =
        Full::new(body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_else(|_| Bytes::new()));
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    client.request(http::Request::from_parts(parts, body)).await
}

/// A proxy that leads every name to one address, and notes what it is asked: the first line and who asks.
async fn proxy(to: SocketAddr, refuses: bool) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let notes = notes.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                let first = text.lines().next().unwrap_or_default().to_owned();
                let who = text.lines().find(|line| line.to_ascii_lowercase().starts_with("proxy-authorization:"));
                notes.lock().unwrap().push(format!("{first} {}", who.unwrap_or("nobody")));
                if refuses {
                    client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.ok();
                    return;
                }
                let mut server = TcpStream::connect(to).await.unwrap();
                if first.starts_with("CONNECT") {
                    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                } else {
                    server.write_all(&head).await.unwrap();
                }
                // Either side may end it.
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    (address, asked)
}

fn far(fake: &Fake, url: &str) -> Upstream {
    let mut upstream = fake.upstream("far");
    if let Target::Available { url: old, .. } = &mut upstream.target {
        url.clone_into(old);
    }
    upstream
}

fn text(answer: &serde_json::Value) -> String {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test]
async fn a_server_behind_tls_is_verified_by_the_bundle_of_the_environment_and_spoken_to_in_http_2() {
    let (fake, authority) = (Fake::start(Era::Modern, "far").await, Authority::new());
    let (address, versions) = authority.front(&fake).await;
    let upstream = far(&fake, &format!("https://{address}/mcp"));
    let program = Program::start(vec![upstream], &[("SSL_CERT_FILE", &authority.bundle())]).await;
    let answer = program.client().call("echo", json!({"text": "hello"})).await;
    assert_eq!(answer["result"]["isError"].as_bool(), None, "{answer}");
    assert_eq!(fake.calls().len(), 1);
    assert!(versions.lock().unwrap().iter().all(|version| *version == http::Version::HTTP_2));
}

#[tokio::test]
async fn a_server_whose_certificate_nobody_vouches_for_is_told_nothing() {
    let (fake, authority) = (Fake::start(Era::Modern, "far").await, Authority::new());
    let (address, _) = authority.front(&fake).await;
    let upstream = far(&fake, &format!("https://{address}/mcp"));
    let stranger = Authority::new();
    let program = Program::start(vec![upstream], &[("SSL_CERT_FILE", &stranger.bundle())]).await;
    let answer = program.client().call("echo", json!({})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    assert!(text(&answer).contains("certificate"), "{answer}");
    assert_eq!(fake.get(|state| state.seen.len()), 0);
}

#[tokio::test]
async fn https_goes_through_a_tunnel_of_the_proxy() {
    let (fake, authority) = (Fake::start(Era::Modern, "far").await, Authority::new());
    let (address, _) = authority.front(&fake).await;
    let (proxy, asked) = proxy(address, false).await;
    let environment = [("SSL_CERT_FILE", authority.bundle()), ("HTTPS_PROXY", format!("http://user:secret@{proxy}"))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    // No resolver knows this name, so only the proxy can lead there.
    let program = Program::start(vec![far(&fake, "https://far.test/mcp")], &environment).await;
    program.client().call("echo", json!({})).await;
    assert_eq!(fake.calls().len(), 1);
    let asked = asked.lock().unwrap().clone();
    assert!(asked.iter().all(|line| line.starts_with("CONNECT far.test:443 HTTP/1.1")), "{asked:?}");
    assert!(asked.iter().all(|line| line.to_ascii_lowercase().contains("authorization: basic")), "{asked:?}");
}

#[tokio::test]
async fn plain_http_goes_to_the_proxy_with_its_whole_url_and_this_machine_goes_past_it() {
    let (fake, near) = (Fake::start(Era::Modern, "far").await, Fake::start(Era::Modern, "near").await);
    let (proxy, asked) = proxy(fake.address, false).await;
    let upstreams = vec![far(&fake, "http://far.test:8080/mcp"), near.upstream("near")];
    let program = Program::start(upstreams, &[("http_proxy", &format!("http://{proxy}"))]).await;
    program.client().call("echo", json!({})).await;
    Client::of(program.address, "/servers/near/mcp", Era::Modern).call("echo", json!({})).await;
    assert_eq!((fake.calls().len(), near.calls().len()), (1, 1));
    let asked = asked.lock().unwrap().clone();
    assert!(asked.iter().all(|line| line.starts_with("POST http://far.test:8080/mcp HTTP/1.1 nobody")), "{asked:?}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let fake = Fake::start(Era::Modern, "far").await;
    let (proxy, _) = proxy(fake.address, true).await;
    let environment = [("HTTPS_PROXY", format!("http://user:secret@{proxy}"))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let program = Program::start(vec![far(&fake, "https://far.test/mcp")], &environment).await;
    let answer = program.client().call("echo", json!({})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    assert!(text(&answer).contains(&format!("proxy {proxy}")), "{answer}");
    assert!(!text(&answer).contains("secret"), "{answer}");
    assert_eq!(fake.calls().len(), 0);
}

/// A folder with the gateway's own certificate, replaced as a kubelet does: by a link.
struct Shown {
    folder: tempfile::TempDir,
    times: usize,
}

impl Shown {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["tls.crt", "tls.key"] {
            symlink(format!("data/{file}"), folder.path().join(file)).unwrap();
        }
        Self { folder, times: 0 }
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// Puts a new certificate of the authority there; gives it.
    fn mount(&mut self, authority: &Authority) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["hub.test".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        self.times += 1;
        let at = self.folder.path().join(format!("v{}", self.times));
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(at.join("tls.key"), key.serialize_pem()).unwrap();
        symlink(&at, self.folder.path().join("next")).unwrap();
        std::fs::rename(self.folder.path().join("next"), self.folder.path().join("data")).unwrap();
        certificate.der().clone()
    }
}

/// A connection of a client that trusts the authority, and the certificate that it was shown.
async fn secured(to: SocketAddr, authority: &Authority) -> (SendRequest<Full<Bytes>>, CertificateDer<'static>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from("hub.test").unwrap();
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    // It ends with its sender.
    tokio::spawn(connection);
    (sender, shown)
}

#[tokio::test]
async fn another_certificate_is_shown_to_new_clients_while_a_call_over_the_old_one_goes_on() {
    let (fake, authority, mut shown) = (Fake::start(Era::Modern, "one").await, Authority::new(), Shown::new());
    let first = shown.mount(&authority);
    let replica = Replica::start(&config(vec![fake.upstream("one")]), &["--tls", shown.path()]).await;
    replica.ready().await;
    let (mut early, certificate) = secured(replica.listen, &authority).await;
    assert_eq!(certificate, first);
    let client = replica.client("/mcp", Era::Modern);
    let request = |id: i32| {
        let mut request = client.request(&client.message(json!(id), "tools/call", json!({"name": "one_echo"})));
        request.headers_mut().insert("host", http::HeaderValue::from_static("localhost"));
        request
    };
    let answer = async |response: http::Response<hyper::body::Incoming>| {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    fake.set(|state| state.fault = Fault::Hang);
    let call = tokio::spawn(early.send_request(request(7)));
    wait_for("the call to be under way", || fake.calls().len() == 1).await;

    let second = shown.mount(&authority);
    replica
        .until("the new certificate is shown", || async { secured(replica.listen, &authority).await.1 == second })
        .await;
    assert!(!call.is_finished());
    fake.set(|state| state.fault = Fault::None);
    fake.release();
    let said = answer(call.await.unwrap().unwrap()).await;
    assert!(said.contains(r#""id":7"#) && said.contains(r#""result""#), "{said}");
    // And the connection serves the next call too.
    let said = answer(early.send_request(request(8)).await.unwrap()).await;
    assert!(said.contains(r#""id":8"#) && said.contains(r#""result""#), "{said}");
    // By a forwarded port, which ends on loopback, there may be a client without TLS.
    let plain = client.call("one_echo", json!({})).await;
    assert!(plain["result"].is_object(), "{plain}");
}
