//! The two smallest clients that measure anything: one on a program's pipes, one on a hub's endpoint.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::shell::Error;

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const LIST: &str = r#"{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{}}"#;

fn unexpected(command: &str, message: impl ToString) -> Error {
    Error::Output { command: command.to_owned(), message: message.to_string() }
}

/// Spawns a server bare and speaks to it up to its `tools/list` answer.
pub(super) fn bare(argv: &[String], folder: &Path) -> Result<Bare, Error> {
    let program = argv.first().cloned().unwrap_or_default();
    let mut child = Command::new(&program)
        .args(argv.iter().skip(1))
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| Error::Start { program: program.clone(), source })?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(unexpected(&program, "it has no pipes"));
    };
    let bare = Bare(child);
    let mut lines = BufReader::new(stdout).lines();
    let mut write = |line: &str| writeln!(stdin, "{line}").map_err(|error| unexpected(&program, error));
    let mut answer = |id: i64| loop {
        let line = lines.next().ok_or_else(|| unexpected(&program, "it ended"))?;
        let line = line.map_err(|error| unexpected(&program, error))?;
        if serde_json::from_str::<Value>(&line).is_ok_and(|message| message["id"] == id) {
            return Ok::<_, Error>(());
        }
    };
    write(INITIALIZE)?;
    answer(1)?;
    write(INITIALIZED)?;
    write(LIST)?;
    answer(2)?;
    Ok(bare)
}

/// A server that ends with this value.
#[derive(Debug)]
pub(super) struct Bare(Child);

impl Drop for Bare {
    fn drop(&mut self) {
        // Dead already is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A legacy session at an endpoint.
#[derive(Debug)]
pub(super) struct Session {
    agent: ureq::Agent,
    url: String,
    token: String,
    id: String,
}

impl Session {
    pub(super) fn open(url: &str, token: &str) -> Result<Self, Error> {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60)));
        let mut session = Self {
            agent: config.http_status_as_error(false).build().into(),
            url: url.to_owned(),
            token: token.to_owned(),
            id: String::new(),
        };
        let response = session.post(INITIALIZE)?;
        let id = response.headers().get("mcp-session-id").and_then(|id| id.to_str().ok());
        session.id = id.ok_or_else(|| unexpected(url, "no session id"))?.to_owned();
        session.post(INITIALIZED)?;
        Ok(session)
    }

    fn post(&self, body: &str) -> Result<http::Response<ureq::Body>, Error> {
        let mut request = self.agent.post(&self.url).header("authorization", format!("Bearer {}", self.token));
        request = request.header("content-type", "application/json");
        request = request.header("accept", "application/json, text/event-stream");
        if !self.id.is_empty() {
            request = request.header("mcp-session-id", &self.id);
        }
        request.send(body).map_err(|error| unexpected(&self.url, error))
    }

    /// Whether the tool answered in this very session.
    pub(super) fn call(&self, tool: &str, arguments: &Value) -> Result<bool, Error> {
        let message = json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": tool, "arguments": arguments}});
        let mut response = self.post(&message.to_string())?;
        let text = response.body_mut().read_to_string().map_err(|error| unexpected(&self.url, error))?;
        Ok(response.status() == 200 && text.contains(r#""result""#) && !text.contains(r#""isError":true"#))
    }

    /// Time until the tool answers again, asked without a pause.
    pub(super) fn until_answered(&self, tool: &str, arguments: &Value) -> Result<Duration, Error> {
        let start = Instant::now();
        while !self.call(tool, arguments)? {
            if start.elapsed() > Duration::from_secs(60) {
                return Err(unexpected(&self.url, "the server did not come back within 60 s"));
            }
        }
        Ok(start.elapsed())
    }
}
