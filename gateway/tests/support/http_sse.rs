//! A server that speaks HTTP+SSE of 2024-11-05: what a fake says is put on one stream a session.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{Target, Transport, Upstream, UpstreamEra};
use mcp_hub_mcp::sse;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Fake, Task};

/// How the stream of a session begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// With an event that names this address, before the session's own query.
    Endpoint(String),
    /// With a message.
    Message,
    /// With a comment, and nothing more.
    Silence,
    /// With a line that never ends.
    EndlessLine,
    /// With a page that says that there is none.
    NotFound,
}

#[derive(Debug)]
pub struct Streams {
    pub beginning: Beginning,
    /// Each byte of a stream comes by itself.
    pub drips: bool,
    /// A message is taken only when the fake has answered it.
    pub takes_late: bool,
    /// Streams that somebody reads.
    open: HashMap<u64, Session>,
    opened: u64,
    /// Requests for the stream's own address: its gets, and what was posted there in vain.
    pub gets: usize,
    pub refused_posts: usize,
}

type Part = Result<Bytes, std::io::Error>;

#[derive(Debug, Clone)]
struct Session {
    parts: mpsc::Sender<Part>,
    /// The fake's, once it has one.
    theirs: Option<String>,
}

#[derive(Debug, Clone)]
pub struct HttpSse {
    pub fake: Fake,
    pub address: SocketAddr,
    state: Arc<Mutex<Streams>>,
    task: Arc<Task>,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Http = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;

impl HttpSse {
    pub async fn start(name: &str) -> Self {
        let fake = Fake::start(Era::Legacy, name).await;
        let state = Streams {
            beginning: Beginning::Endpoint("/messages".to_owned()),
            drips: false,
            takes_late: false,
            open: HashMap::new(),
            opened: 0,
            gets: 0,
            refused_posts: 0,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server {
            state: Arc::new(Mutex::new(state)),
            fake: format!("http://{}/mcp", fake.address),
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http(),
            // Ends with the connections that it was made for.
            tasks: Arc::new(Mutex::new(JoinSet::new())),
        };
        let state = server.state.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| server.clone().answer(request));
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { fake, address, state, task: Arc::new(Task(task)) }
    }

    pub fn set(&self, change: impl FnOnce(&mut Streams)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn get<T>(&self, look: impl FnOnce(&Streams) -> T) -> T {
        look(&self.state.lock().unwrap())
    }

    /// Streams that somebody reads now.
    pub fn streams(&self) -> usize {
        self.get(|state| state.open.values().filter(|session| !session.parts.is_closed()).count())
    }

    /// Breaks every stream.
    pub async fn cut(&self) {
        let open: Vec<Session> = self.get(|state| state.open.values().cloned().collect());
        self.set(|state| state.open.clear());
        for session in open {
            session.parts.send(Err(std::io::Error::other("cut"))).await.ok();
        }
    }

    /// Says this so often on every stream that is open now, as it is.
    pub async fn say(&self, part: &'static [u8], times: usize) {
        let open: Vec<Session> = self.get(|state| state.open.values().cloned().collect());
        for session in open {
            for _ in 0..times {
                session.parts.send(Ok(Bytes::from_static(part))).await.ok();
            }
        }
    }

    /// A server of which is known only where it is.
    pub fn upstream(&self, name: &str) -> Upstream {
        let mut upstream = self.fake.upstream(name);
        let Target::Available { headers, .. } = &upstream.target else { panic!("a fake is there") };
        let (url, headers) = (format!("http://{}/sse?key=1", self.address), BTreeMap::clone(headers));
        upstream.target = Target::Available { url, headers };
        upstream.era = UpstreamEra::Probe;
        upstream.transport = Transport::Probe;
        upstream
    }
}

#[derive(Debug, Clone)]
struct Server {
    state: Arc<Mutex<Streams>>,
    fake: String,
    http: Http,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

fn page(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", "text/plain").body(body).unwrap()
}

impl Server {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        assert_eq!(request.headers()["authorization"], "Bearer inner", "what is configured comes with each request");
        let number = request.uri().query().and_then(|query| query.strip_prefix("session=")?.parse::<u64>().ok());
        match (request.method(), request.uri().path(), number) {
            (&Method::GET, "/sse", None) => Ok(self.open()),
            (&Method::POST, "/sse", None) => {
                self.state.lock().unwrap().refused_posts += 1;
                Ok(page(StatusCode::METHOD_NOT_ALLOWED, "get it"))
            }
            (&Method::POST, _, Some(number)) => {
                let session = self.state.lock().unwrap().open.get(&number).cloned();
                let Some(session) = session.filter(|session| !session.parts.is_closed()) else {
                    return Ok(page(StatusCode::NOT_FOUND, "no such session"));
                };
                let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
                let late = self.state.lock().unwrap().takes_late;
                let answering = self.clone().pass(number, session, body);
                if late {
                    answering.await;
                } else {
                    self.tasks.lock().unwrap().spawn(answering);
                }
                Ok(page(StatusCode::ACCEPTED, "Accepted"))
            }
            _ => Ok(page(StatusCode::NOT_FOUND, "nothing here")),
        }
    }

    /// The stream of a new session.
    fn open(&self) -> Response<Body> {
        let (parts, mut receiver) = mpsc::channel::<Part>(64);
        let mut state = self.state.lock().unwrap();
        state.gets += 1;
        state.opened += 1;
        let number = state.opened;
        let first = match &state.beginning {
            Beginning::Endpoint(address) => format!("event: endpoint\ndata: {address}?session={number}\n\n"),
            Beginning::Message => "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n".to_owned(),
            Beginning::Silence | Beginning::EndlessLine => ": wait\n\n".to_owned(),
            Beginning::NotFound => return page(StatusCode::NOT_FOUND, "no stream here"),
        };
        if state.beginning == Beginning::EndlessLine {
            let parts = parts.clone();
            self.tasks
                .lock()
                .unwrap()
                .spawn(async move { while parts.send(Ok(Bytes::from_static(&[b'x'; 60_000]))).await.is_ok() {} });
        }
        parts.try_send(Ok(first.into())).unwrap();
        state.open.insert(number, Session { parts, theirs: None });
        let drips = state.drips;
        drop(state);
        let mut rest = Bytes::new();
        let frames = futures::stream::poll_fn(move |cx| {
            if drips && !rest.is_empty() {
                return std::task::Poll::Ready(Some(Ok(rest.split_to(1))));
            }
            receiver.poll_recv(cx).map(|part| match part {
                Some(Ok(part)) if drips => {
                    rest = part;
                    Some(Ok(rest.split_to(1)))
                }
                part => part,
            })
        });
        let body = StreamBody::new(futures::StreamExt::map(frames, |part: Part| part.map(Frame::data))).boxed_unsync();
        Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
    }

    fn request(&self, method: Method, session: &Session, body: Bytes) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(&self.fake);
        let request = session.theirs.iter().fold(request, |request, id| request.header("mcp-session-id", id));
        request.body(Full::new(body)).unwrap()
    }

    /// Puts what the fake says to a message on the session's stream, which breaks where the fake's answer does.
    async fn pass(self, number: u64, session: Session, body: Bytes) {
        let response = self.http.request(self.request(Method::POST, &session, body)).await;
        let said = match response {
            Ok(response) => self.say(number, &session, response).await,
            Err(_) => None,
        };
        if said.is_none() {
            self.state.lock().unwrap().open.remove(&number);
            session.parts.send(Err(std::io::Error::other("broken"))).await.ok();
        }
    }

    async fn say(&self, number: u64, session: &Session, response: Response<Incoming>) -> Option<()> {
        let id = |headers: &HeaderMap| Some(headers.get("mcp-session-id")?.to_str().unwrap().to_owned());
        if let Some(theirs) = id(response.headers()) {
            let opened = Session { theirs: Some(theirs), ..session.clone() };
            self.state.lock().unwrap().open.insert(number, opened.clone());
            let beside = self.http.request(self.request(Method::GET, &opened, Bytes::new())).await.ok()?;
            let parts = opened.parts.clone();
            self.tasks.lock().unwrap().spawn(async move {
                copy(beside.into_body(), &parts).await;
            });
        }
        if response.headers()["content-type"] == "text/event-stream" {
            return copy(response.into_body(), &session.parts).await;
        }
        let message = response.into_body().collect().await.ok()?.to_bytes();
        if serde_json::from_slice::<Value>(&message).is_ok() {
            session.parts.send(Ok(sse::event(&message))).await.ok();
        }
        Some(())
    }
}

/// Until its end; `None` if it breaks off, or nobody reads on.
async fn copy(mut body: Incoming, parts: &mpsc::Sender<Part>) -> Option<()> {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = parts.closed() => return None,
        };
        match frame {
            None => return Some(()),
            Some(frame) => parts.send(Ok(frame.ok()?.into_data().ok()?)).await.ok()?,
        }
    }
}

/// Long enough for what must not happen.
pub const MOMENT: Duration = Duration::from_millis(100);
