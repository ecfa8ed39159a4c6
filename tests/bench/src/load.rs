//! The load on an endpoint: connections that ask the same question again and again.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use mcp_hub_dataplane_api::LEGACY_VERSIONS;
use mcp_hub_mcp::methods;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::Connection;
use crate::message::{Era, Question, post};
use crate::samples::Samples;

/// Connections over which sessions are opened.
const OPENING: usize = 8;

#[derive(Debug, Clone, Args)]
pub(crate) struct Endpoint {
    /// Address of the endpoint
    #[arg(long)]
    address: SocketAddr,
    /// Its path
    #[arg(long)]
    path: String,
    /// Its bearer token
    #[arg(long)]
    token: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    question: Question,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Seconds that are measured; a fifth as many go before
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Sessions {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Sessions to open
    #[arg(long)]
    count: usize,
}

/// What one connection saw.
#[derive(Debug, Default)]
struct Seen {
    samples: Samples,
    /// Requests that were answered, also before the measurement began.
    total: usize,
}

impl Endpoint {
    /// The head that all requests have.
    fn head(&self) -> String {
        format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n",
            self.path, self.address, self.token
        )
    }

    /// Shakes hands on a connection; the session's id, if there is one.
    async fn initialize(&self, connection: &mut Connection) -> io::Result<Option<String>> {
        let hello = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"{}","params":{{"protocolVersion":"{}","capabilities":{{}},"clientInfo":{{"name":"bench","version":"1"}}}}}}"#,
            methods::INITIALIZE,
            LEGACY_VERSIONS[0]
        );
        let response = connection.exchange(&post(&self.head(), &hello)).await?;
        if response.status != 200 || memchr::memmem::find(response.body, br#""protocolVersion""#).is_none() {
            return Err(refused(response.status, response.body));
        }
        let session = response.session.map(str::to_owned);
        let mut head = self.head();
        if let Some(session) = &session {
            head.push_str(&format!("mcp-session-id: {session}\r\n"));
        }
        let ready = format!(r#"{{"jsonrpc":"2.0","method":"{}"}}"#, methods::INITIALIZED);
        connection.exchange(&post(&head, &ready)).await?;
        Ok(session)
    }
}

/// Asks until the time is over. Any answer that is not the right one ends it.
pub(crate) async fn run(plan: Plan) -> io::Result<Value> {
    let begins = Instant::now() + Duration::from_secs_f64(plan.seconds / 5.0);
    let ends = begins + Duration::from_secs_f64(plan.seconds);
    let mut asking = JoinSet::new();
    for _ in 0..plan.connections {
        asking.spawn(ask(plan.clone(), begins, ends));
    }
    let mut all = Seen::default();
    while let Some(seen) = asking.join_next().await {
        let seen = seen.map_err(io::Error::other)??;
        all.samples.merge(seen.samples);
        all.total += seen.total;
    }
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let per_second = all.samples.count() as f64 / plan.seconds;
    Ok(json!({
        "total": all.total,
        "per_second": per_second,
        "p50_us": all.samples.percentile_us(0.5),
        "p99_us": all.samples.percentile_us(0.99),
    }))
}

async fn ask(plan: Plan, begins: Instant, ends: Instant) -> io::Result<Seen> {
    let mut connection = Connection::open(plan.endpoint.address).await?;
    let session = match plan.question.era {
        Era::Legacy => plan.endpoint.initialize(&mut connection).await?,
        Era::Modern => None,
    };
    let mut message = plan.question.http(&plan.endpoint.head(), session.as_deref());
    let mut seen = Seen::default();
    let mut started = Instant::now();
    while started < ends {
        let response = connection.exchange(message.next()).await?;
        let ended = Instant::now();
        if response.status != 200 || !message.is_answered_by(response.body) {
            return Err(refused(response.status, response.body));
        }
        seen.total += 1;
        if started >= begins && ended <= ends {
            seen.samples.add(ended - started);
        }
        started = ended;
    }
    Ok(seen)
}

/// Opens sessions without ending them.
pub(crate) async fn open_sessions(plan: Sessions) -> io::Result<Value> {
    let mut opening = JoinSet::new();
    for place in 0..OPENING {
        let plan = plan.clone();
        opening.spawn(async move {
            let mut connection = Connection::open(plan.endpoint.address).await?;
            for _ in (place..plan.count).step_by(OPENING) {
                plan.endpoint.initialize(&mut connection).await?;
            }
            Ok::<_, io::Error>(())
        });
    }
    while let Some(opened) = opening.join_next().await {
        opened.map_err(io::Error::other)??;
    }
    Ok(json!({"total": plan.count}))
}

fn refused(status: u16, body: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(&body[..body.len().min(400)]).into_owned();
    io::Error::other(format!("HTTP {status}, and not the answer: {text}"))
}
