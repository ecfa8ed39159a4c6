//! Registries of the test's own: one in memory, with images by name, logins, uploads, and faults on demand; and a real one.
#![expect(clippy::unwrap_used, reason = "test support fails by panicking")]

mod distribution;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mcp_hub_supply::Reference;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use distribution::Distribution;

pub const USER: &str = "reader";
pub const PASSWORD: &str = "hunter2:and more";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Who may read, and write.
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
    /// The connection is closed in the middle of the answer's body.
    Cut,
    /// The connection is closed in the middle of the request's body.
    Deaf,
}

#[derive(Debug)]
struct State {
    access: Access,
    /// Manifests by repository and version, blobs by repository and digest.
    content: BTreeMap<String, (String, Bytes)>,
    /// By a part of `METHOD PATH`; how often, if not always.
    faults: Vec<(&'static str, Option<u32>, Fault)>,
    /// Uploads that have begun.
    uploads: BTreeMap<String, Vec<u8>>,
    /// How many have begun so far.
    begun: usize,
    knows_ranges: bool,
    tokens: BTreeSet<String>,
    requests: Vec<String>,
}

/// Dropped, it ends.
#[derive(Debug)]
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
        Self::at("127.0.0.1:0", access).await
    }

    /// One at this address, where the calling thread's network is.
    pub async fn at(address: &str, access: Access) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            access,
            content: BTreeMap::new(),
            faults: Vec::new(),
            uploads: BTreeMap::new(),
            begun: 0,
            knows_ranges: true,
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

    /// What happens to requests whose `METHOD PATH` holds this, until it is mended.
    pub fn fault(&self, part: &'static str, fault: Fault) {
        self.state().faults.push((part, None, fault));
    }

    /// What happens to the next so many of them.
    pub fn fault_times(&self, part: &'static str, times: u32, fault: Fault) {
        self.state().faults.push((part, Some(times), fault));
    }

    /// From now on everything is sent from its beginning.
    pub fn forget_ranges(&self) {
        self.state().knows_ranges = false;
    }

    /// All tokens given so far are worth nothing any more.
    pub fn expire_tokens(&self) {
        self.state().tokens.clear();
    }

    pub fn mend(&self) {
        self.state().faults.clear();
    }

    /// How many requests so far hold this.
    pub fn count(&self, part: &str) -> usize {
        self.state().requests.iter().filter(|request| request.contains(part)).count()
    }

    pub fn forget_requests(&self) {
        self.state().requests.clear();
    }

    /// Whether a repository has a manifest or index of this tag or digest.
    pub fn has(&self, repository: &str, version: &str) -> bool {
        self.state().content.contains_key(&format!("/v2/{repository}/manifests/{version}"))
    }

    /// A manifest or index of this tag or digest.
    pub fn document(&self, repository: &str, version: &str) -> Bytes {
        self.state().content[&format!("/v2/{repository}/manifests/{version}")].1.clone()
    }

    /// Digests of a repository's blobs.
    pub fn blobs(&self, repository: &str) -> Vec<String> {
        let prefix = format!("/v2/{repository}/blobs/");
        self.state().content.keys().filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// `METHOD PATH AUTHORIZATION-SCHEME` of each request so far, and the range that it asks for.
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
        self.push_parts(repository, tag, config, &[])
    }

    /// An image of any configuration, with layers of any content.
    pub fn push_parts(&self, repository: &str, tag: Option<&str>, config: String, layers: &[&[u8]]) -> String {
        let descriptor = |media_type: &str, content: &[u8]| {
            let digest = self.blob(repository, content.to_vec());
            json!({"mediaType": media_type, "digest": digest, "size": content.len()})
        };
        let layers: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
                              "config": descriptor(CONFIG, config.as_bytes())});
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
#[derive(Debug)]
struct Half(Option<Bytes>);

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

async fn answer(request: Request<Incoming>, host: &str, state: &Mutex<State>) -> Result<Answer, io::Error> {
    let (head, mut body) = request.into_parts();
    let authorization = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let scheme = authorization.as_deref().and_then(|value| value.split(' ').next()).unwrap_or("-");
    let path = head.uri.path().to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        let request = format!("{} {path}", head.method);
        let range = head.headers.get("range").map(|range| format!(" {}", range.to_str().unwrap())).unwrap_or_default();
        state.requests.push(format!("{request} {scheme}{range}"));
        state.fault(&request)
    };
    if let Some(Fault::Deaf) = fault {
        body.frame().await;
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let query = head.uri.query().unwrap_or_default();
    let refusal = refusal(&head.method, &path, authorization.as_deref(), host, state);
    // What has a fault is not done.
    let answered = match (path.as_str(), refusal) {
        ("/token", _) => token(query, &body, authorization.as_deref(), state),
        (_, Some(refusal)) => refusal,
        ("/v2/", None) => plain(200, "{}"),
        _ if head.method.is_safe() => content(&path, &head.headers, state),
        _ if fault.is_some() => plain(500, ""),
        _ => store(&head.method, &path, query, (&head.headers, body), state),
    };
    Ok(match fault {
        None | Some(Fault::Deaf) => answered,
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

impl State {
    fn fault(&mut self, request: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(part, times, _)| *times != Some(0) && request.contains(part))?;
        let (_, times, fault) = &mut self.faults[at];
        *times = times.map(|times| times - 1);
        Some(fault.clone())
    }
}

/// `REPOSITORY` and what follows of `/v2/REPOSITORY/manifests/…` or `/v2/REPOSITORY/blobs/…`.
fn parts(path: &str) -> (&str, &str) {
    let rest = path.strip_prefix("/v2/").unwrap();
    rest.split_once("/manifests/").or(rest.split_once("/blobs/")).unwrap()
}

fn refusal(
    method: &Method,
    path: &str,
    authorization: Option<&str>,
    host: &str,
    state: &Mutex<State>,
) -> Option<Answer> {
    if path == "/token" {
        return None;
    }
    let state = state.lock().unwrap();
    let bearer = authorization.and_then(|value| value.strip_prefix("Bearer "));
    // Engines ask first what is there, and in which way they are to say who they are.
    let is_ping = path == "/v2/";
    let is_known = match state.access {
        Access::Everybody => true,
        Access::AnyToken | Access::UsersToken if is_ping => bearer.is_some_and(|token| state.tokens.contains(token)),
        Access::AnyToken | Access::UsersToken => {
            let rights = if method.is_safe() { "pull" } else { "pull,push" };
            let wanted = format!("repository:{}:{rights}", parts(path).0);
            bearer.is_some_and(|token| state.tokens.contains(token) && token.contains(&wanted))
        }
        Access::Password => authorization == Some(&*basic()),
    };
    if is_known {
        return None;
    }
    let challenge = match state.access {
        Access::Password => "Basic realm=\"the registry\"".to_owned(),
        Access::UsersToken if is_ping => format!("Bearer realm=\"http://{host}/token\",service=\"{host}\""),
        Access::AnyToken => format!("Bearer realm=\"http://{host}/token\",service=\"{host}\""),
        // Of what this one request needs.
        Access::UsersToken | Access::Everybody => {
            let rights = if method.is_safe() { "pull" } else { "pull,push" };
            let scope = format!("repository:{}:{rights}", parts(path).0);
            format!("Bearer realm=\"http://{host}/token\",service=\"{host}\",scope=\"{scope}\"")
        }
    };
    let mut refusal = error(401, "authentication required");
    refusal.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
    Some(refusal)
}

fn content(path: &str, headers: &HeaderMap, state: &Mutex<State>) -> Answer {
    let state = state.lock().unwrap();
    let Some((media_type, content)) = state.content.get(path) else { return error(404, "manifest unknown") };
    let range = headers.get("range").and_then(|range| range.to_str().unwrap().strip_prefix("bytes="));
    let mut response = match range.filter(|_| state.knows_ranges) {
        Some(range) => {
            let from: usize = range.strip_suffix('-').unwrap().parse().unwrap();
            plain(206, content.slice(from..))
        }
        None => plain(200, content.clone()),
    };
    response.headers_mut().insert("content-type", media_type.parse().unwrap());
    response.headers_mut().insert("docker-content-digest", digest(content).parse().unwrap());
    response
}

/// Takes blobs and manifests as registries do: a blob by its digest only, a manifest when all that it names is there.
fn store(
    method: &Method,
    path: &str,
    query: &str,
    (headers, body): (&HeaderMap, Bytes),
    state: &Mutex<State>,
) -> Answer {
    let mut state = state.lock().unwrap();
    let (repository, rest) = parts(path);
    let query: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let at = |status, location: &str| {
        let mut response = plain(status, "");
        response.headers_mut().insert("location", location.parse().unwrap());
        response
    };
    let blob = |digest: &str| format!("/v2/{repository}/blobs/{digest}");
    let octets = || "application/octet-stream".to_owned();
    if path.contains("/manifests/") {
        let document: Value = serde_json::from_slice(&body).unwrap();
        let named = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        let digest_in = |one: &Value| one["digest"].as_str().unwrap_or_default().to_owned();
        let layers = named("layers");
        let blobs = layers.iter().chain(document.get("config")).map(|one| blob(&digest_in(one)));
        let manifests = named("manifests");
        let manifests = manifests.iter().map(|one| format!("/v2/{repository}/manifests/{}", digest_in(one)));
        let needed: Vec<String> = blobs.chain(manifests).collect();
        if let Some(missing) = needed.iter().find(|path| !state.content.contains_key(*path)) {
            return error(400, &format!("blob unknown to registry: {missing}"));
        }
        let media_type = headers["content-type"].to_str().unwrap().to_owned();
        let digest = digest(&body);
        for version in [&*digest, rest] {
            let path = format!("/v2/{repository}/manifests/{version}");
            state.content.insert(path, (media_type.clone(), body.clone()));
        }
        let mut response = plain(201, "");
        response.headers_mut().insert("docker-content-digest", digest.parse().unwrap());
        return response;
    }
    match *method {
        Method::POST => {
            let token = headers.get("authorization").map(|token| token.to_str().unwrap()).unwrap_or_default();
            let may_read =
                |from: &str| !token.starts_with("Bearer") || token.contains(&format!("repository:{from}:pull"));
            if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from"))
                && may_read(from)
                && let Some(content) = state.content.get(&format!("/v2/{from}/blobs/{digest}")).cloned()
            {
                state.content.insert(blob(digest), content);
                return at(201, &blob(digest));
            }
            state.begun += 1;
            let place = format!("/v2/{repository}/blobs/uploads/{}", state.begun);
            state.uploads.insert(place.clone(), Vec::new());
            at(202, &format!("{place}?state=begun"))
        }
        Method::PATCH => {
            let Some(upload) = state.uploads.get_mut(path) else { return error(404, "upload unknown") };
            upload.extend_from_slice(&body);
            at(202, &format!("{path}?state=written"))
        }
        _ => {
            let Some(upload) = state.uploads.remove(path) else { return error(404, "upload unknown") };
            if query.get("state").map(String::as_str) != Some("written") || digest(&upload) != query["digest"] {
                return error(400, "provided digest did not match uploaded content");
            }
            state.content.insert(blob(&query["digest"]), (octets(), upload.into()));
            plain(201, "")
        }
    }
}

fn basic() -> String {
    use base64::Engine;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

fn token(query: &str, body: &[u8], authorization: Option<&str>, state: &Mutex<State>) -> Answer {
    let mut state = state.lock().unwrap();
    let form: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .chain(url::form_urlencoded::parse(body).into_owned())
        .collect();
    // Of scopes there may be several.
    let of = |name: &str| {
        let values = form.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>().join(";")
    };
    let is_user = authorization == Some(&*basic())
        || (of("grant_type") == "refresh_token" && of("refresh_token") == PASSWORD && !of("client_id").is_empty());
    let is_anonymous = authorization.is_none() && of("grant_type").is_empty();
    let is_given = is_user || (is_anonymous && state.access == Access::AnyToken);
    if !is_given || of("service").is_empty() {
        return error(401, "incorrect username or password");
    }
    // Never the same twice.
    let token = format!("token-{}-{}", state.requests.len(), of("scope"));
    state.tokens.insert(token.clone());
    let name = if is_user { "access_token" } else { "token" };
    plain(200, json!({name: token}).to_string())
}
