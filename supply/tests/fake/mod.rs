//! A registry of the test's own: images by name, logins, and faults on demand.

#![expect(unreachable_pub, reason = "a part of each test file")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_supply::Reference;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const USER: &str = "reader";
pub const PASSWORD: &str = "hunter2:and more";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Everybody,
    /// Everybody who fetched a token for it, as Docker Hub has it.
    AnyToken,
    /// Whoever fetched a token with the password, or for the refresh token that is the password.
    UsersToken,
    Password,
}

/// What happens instead of an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// The right length, and another content.
    Corrupt,
    Longer(usize),
    Never,
    /// The connection is closed in the middle of the body.
    Cut,
}

#[derive(Debug)]
struct State {
    access: Access,
    /// Manifests by repository and version, blobs by repository and digest.
    content: BTreeMap<String, (String, Bytes)>,
    faults: BTreeMap<&'static str, Fault>,
    tokens: BTreeSet<String>,
    requests: Vec<String>,
}

pub struct Registry {
    pub host: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Registry {
    pub async fn start(access: Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            access,
            content: BTreeMap::new(),
            faults: BTreeMap::new(),
            tokens: BTreeSet::new(),
            requests: Vec::new(),
        }));
        let server = tokio::spawn(serve(listener, host.clone(), state.clone()));
        Self { host, state, server }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn image(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    /// What happens to requests whose path holds this.
    pub fn fault(&self, path: &'static str, fault: Fault) {
        self.state().faults.insert(path, fault);
    }

    pub fn mend(&self) {
        self.state().faults.clear();
    }

    /// Digests of a repository's blobs.
    pub fn blobs(&self, repository: &str) -> Vec<String> {
        let prefix = format!("/v2/{repository}/blobs/");
        self.state().content.keys().filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// `METHOD PATH AUTHORIZATION-SCHEME` of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    pub fn blob(&self, repository: &str, content: impl Into<Bytes>) -> String {
        let content = content.into();
        let digest = digest(&content);
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.state().content.insert(path, ("application/octet-stream".to_owned(), content));
        digest
    }

    /// Stores a manifest under its digest, and under a tag if one is given.
    pub fn manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, document: &Value) -> String {
        let content = Bytes::from(document.to_string());
        let digest = digest(&content);
        for version in std::iter::once(&*digest).chain(tag) {
            let path = format!("/v2/{repository}/manifests/{version}");
            self.state().content.insert(path, (media_type.to_owned(), content.clone()));
        }
        digest
    }

    /// An image for one platform.
    pub fn push(&self, repository: &str, tag: Option<&str>, platform: &str, config: &Value) -> String {
        let (os, architecture) = platform.split_once('/').unwrap();
        let config = json!({"os": os, "architecture": architecture, "config": config, "rootfs": {}}).to_string();
        let size = config.len();
        let config = self.blob(repository, config);
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
                              "config": {"mediaType": CONFIG, "digest": config, "size": size}});
        self.manifest(repository, tag, MANIFEST, &manifest)
    }

    /// An image for several platforms, each with its name as entrypoint.
    pub fn push_index(&self, repository: &str, tag: &str, platforms: &[&str]) -> String {
        let entries = platforms.iter().map(|platform| {
            let digest = self.push(repository, None, platform, &json!({"Entrypoint": [platform]}));
            let (os, architecture) = platform.split_once('/').unwrap();
            json!({"mediaType": MANIFEST, "digest": digest, "size": 1,
                   "platform": {"os": os, "architecture": architecture}})
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries.collect::<Vec<_>>()});
        self.manifest(repository, Some(tag), INDEX, &index)
    }
}

async fn serve(listener: TcpListener, host: String, state: Arc<Mutex<State>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (host, state) = (host.clone(), state.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &host, &state));
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

type Answer = Response<http_body_util::Either<Full<Bytes>, Half>>;

/// A body of which only a half ever comes.
pub struct Half(Option<Bytes>);

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(Some(match self.0.take() {
            Some(half) => Ok(hyper::body::Frame::data(half)),
            None => Err(std::io::ErrorKind::ConnectionReset.into()),
        }))
    }
}

fn plain(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(http_body_util::Either::Left(Full::new(body.into())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn error(status: u16, message: &str) -> Answer {
    plain(status, json!({"errors": [{"code": "X", "message": message}]}).to_string())
}

async fn answer(request: Request<Incoming>, host: &str, state: &Mutex<State>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let authorization = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let scheme = authorization.as_deref().and_then(|value| value.split(' ').next()).unwrap_or("-");
    let path = head.uri.path().to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{} {path} {scheme}", head.method));
        state.faults.iter().find(|(part, _)| path.contains(*part)).map(|(_, fault)| fault.clone())
    };
    let answered = match path.as_str() {
        "/token" => token(head.uri.query().unwrap_or_default(), &body, authorization.as_deref(), state),
        _ => content(&path, authorization.as_deref(), host, state),
    };
    Ok(match fault {
        None => answered,
        Some(Fault::Answer { status, headers, body }) => {
            let mut response = plain(status, body);
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Some(Fault::Never) => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            answered
        }
        Some(changed) => {
            let (head, body) = answered.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = match changed {
                Fault::Corrupt => http_body_util::Either::Left(Full::from(vec![b' '; body.len()])),
                Fault::Longer(length) => http_body_util::Either::Left(Full::from(vec![b' '; length])),
                _ => http_body_util::Either::Right(Half(Some(body.slice(..body.len() / 2)))),
            };
            Response::from_parts(head, body)
        }
    })
}

fn content(path: &str, authorization: Option<&str>, host: &str, state: &Mutex<State>) -> Answer {
    let state = state.lock().unwrap();
    let bearer = authorization.and_then(|value| value.strip_prefix("Bearer "));
    let is_known = match state.access {
        Access::Everybody => true,
        Access::AnyToken | Access::UsersToken => {
            let repository = path
                .strip_prefix("/v2/")
                .and_then(|rest| rest.split_once("/manifests/").or(rest.split_once("/blobs/")));
            let wanted = format!("repository:{}:pull", repository.unwrap().0);
            bearer.is_some_and(|token| state.tokens.contains(token) && token.contains(&wanted))
        }
        Access::Password => authorization == Some(&*basic()),
    };
    if !is_known {
        let challenge = match state.access {
            Access::Password => "Basic realm=\"the registry\"".to_owned(),
            _ => format!("Bearer realm=\"http://{host}/token\",service=\"{host}\""),
        };
        let mut refusal = error(401, "authentication required");
        refusal.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        return refusal;
    }
    match state.content.get(path) {
        Some((media_type, content)) => {
            let mut response = plain(200, content.clone());
            response.headers_mut().insert("content-type", media_type.parse().unwrap());
            response.headers_mut().insert("docker-content-digest", digest(content).parse().unwrap());
            response
        }
        None => error(404, "manifest unknown"),
    }
}

fn basic() -> String {
    use base64::Engine;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

fn token(query: &str, body: &[u8], authorization: Option<&str>, state: &Mutex<State>) -> Answer {
    let mut state = state.lock().unwrap();
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .chain(url::form_urlencoded::parse(body).into_owned())
        .collect();
    let of = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let is_user = authorization == Some(&*basic())
        || (of("grant_type") == "refresh_token" && of("refresh_token") == PASSWORD && !of("client_id").is_empty());
    let is_anonymous = authorization.is_none() && of("grant_type").is_empty();
    let is_given = is_user || (is_anonymous && state.access == Access::AnyToken);
    if !is_given || of("service").is_empty() {
        return error(401, "incorrect username or password");
    }
    let token = format!("token-{}-{}", state.tokens.len(), of("scope"));
    state.tokens.insert(token.clone());
    let name = if is_user { "access_token" } else { "token" };
    plain(200, json!({name: token}).to_string())
}
