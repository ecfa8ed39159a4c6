//! The configuration files of MCP clients, read as manifests: `mcpServers` of Claude and Cursor (`.mcp.json`), `servers`
//! of VS Code. JSON with comments.
//!
//! What a client would expand when it starts a server (`${VAR}`, `${env:VAR}`, `${input:x}`) is not expanded here: the
//! value would end up in the store. A value that is such a placeholder as a whole becomes a `secretRef`; one that only
//! contains it is refused. Keys beside the servers are the client's own and not looked at.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::command_line::{CommandError, secret_named, source_of_command};
use crate::field_path::FieldPath;
use crate::names::ServerName;
use crate::resource::DEFAULT_NAMESPACE;
use crate::server::{EnvVar, MCPServer, MCPServerSpec, Transport, TransportType};
use crate::source::{Header, RemoteSource, SecretKeyRef, Source};
use crate::validate::did_you_mean;

/// What of a client's configuration cannot become a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientConfigError {
    #[error("no server name can be made of `{0}`")]
    Name(String),
    #[error("expected {expected}")]
    Type { expected: &'static str },
    #[error("unknown field")]
    UnknownField { meant: Option<&'static str> },
    #[error("exactly one of `command` and `url` must be set")]
    CommandOrUrl,
    #[error("`{field}` belongs to a server with `{with}`")]
    WrongSection { field: &'static str, with: &'static str },
    #[error("transport `{0}` is not supported here")]
    Transport(String),
    /// Only the placeholder is kept: what stands around it may be part of a secret.
    #[error("the placeholder `{0}` is not expanded here")]
    Placeholder(String),
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl ClientConfigError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownField { meant: Some(meant) } => Some(format!("did you mean `{meant}`?")),
            Self::UnknownField { meant: None } => Some(format!("known here: {}", FIELDS.join(", "))),
            Self::Transport(_) => Some("a command is reached by stdio, a URL by http or sse".to_owned()),
            Self::Placeholder(_) => {
                Some("make the whole value a secret (`${NAME}` alone, in env or headers), or write it out".to_owned())
            }
            Self::Name(_) => Some("use letters, digits and hyphens".to_owned()),
            Self::Command(error) => error.hint(),
            Self::Type { .. } | Self::CommandOrUrl | Self::WrongSection { .. } => None,
        }
    }
}

const FIELDS: [&str; 8] = ["command", "args", "env", "cwd", "type", "url", "headers", "disabled"];
/// What clients keep beside a server for themselves.
const CLIENTS_OWN: [&str; 7] =
    ["alwaysAllow", "autoApprove", "description", "gallery", "timeout", "transportType", "version"];

/// A server made of an entry.
#[derive(Debug)]
pub(crate) struct Converted {
    pub(crate) server: MCPServer,
    pub(crate) warnings: Vec<String>,
}

type Faults = Vec<(FieldPath, ClientConfigError)>;

/// The key of the servers, if this is a client's configuration.
fn section(value: &Value) -> Option<(&'static str, &Map<String, Value>)> {
    if value.get("kind").is_some() || value.get("apiVersion").is_some() {
        return None;
    }
    ["mcpServers", "servers"].into_iter().find_map(|key| Some((key, value.get(key)?.as_object()?)))
}

pub(crate) fn is_client_config(value: &Value) -> bool {
    section(value).is_some()
}

/// Every server of a client's configuration with the place of its entry.
pub(crate) fn servers(value: &Value) -> Vec<(FieldPath, Result<Converted, Faults>)> {
    let Some((key, servers)) = section(value) else { return Vec::new() };
    let section = FieldPath::default().field(key);
    servers
        .iter()
        .map(|(name, entry)| {
            let path = section.field(name);
            let result = convert(name, entry, &path);
            (path, result)
        })
        .collect()
}

/// The name of a server made of any text: lower case, other characters than letters and digits as hyphens, at most
/// [`ServerName::MAX`] long. The same text always gives the same name.
pub fn server_name(text: &str) -> Result<ServerName, ClientConfigError> {
    let mut name = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.truncate(ServerName::MAX);
    name.trim_end_matches('-').parse().map_err(|_| ClientConfigError::Name(text.to_owned()))
}

fn convert(name: &str, entry: &Value, path: &FieldPath) -> Result<Converted, Faults> {
    let mut reading = Reading { path, faults: Vec::new(), warnings: Vec::new() };
    let Some(entry) = entry.as_object() else {
        return Err(vec![(path.clone(), ClientConfigError::Type { expected: "a mapping" })]);
    };
    let server = reading.server(name, entry);
    match server {
        Some(server) if reading.faults.is_empty() => Ok(Converted { server, warnings: reading.warnings }),
        _ => Err(reading.faults),
    }
}

struct Reading<'a> {
    path: &'a FieldPath,
    faults: Faults,
    warnings: Vec<String>,
}

/// A value as the client's file gives it.
enum Given {
    Literal(String),
    Secret(SecretKeyRef),
}

impl Reading<'_> {
    fn refuse(&mut self, field: &str, error: ClientConfigError) {
        self.faults.push((self.path.field(field), error));
    }

    fn server(&mut self, name: &str, entry: &Map<String, Value>) -> Option<MCPServer> {
        for field in entry.keys().filter(|field| !FIELDS.contains(&field.as_str())) {
            if CLIENTS_OWN.contains(&field.as_str()) {
                self.warnings.push(format!("`{field}` is the client's own and has no effect here"));
            } else {
                self.refuse(field, ClientConfigError::UnknownField { meant: did_you_mean(field, FIELDS) });
            }
        }
        let server_name = match server_name(name) {
            Ok(server_name) => server_name,
            Err(error) => {
                self.faults.push((self.path.clone(), error));
                return None;
            }
        };
        if server_name.as_str() != name {
            self.warnings.push(format!("`{name}` is named `{server_name}` here"));
        }
        let spec = match (self.text(entry, "command"), self.text(entry, "url")) {
            (Some(command), None) => self.local(&command, entry),
            (None, Some(url)) => self.remote(url, entry),
            _ => {
                if self.faults.is_empty() {
                    self.faults.push((self.path.clone(), ClientConfigError::CommandOrUrl));
                }
                None
            }
        };
        let paused = match entry.get("disabled") {
            None | Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(true),
            Some(_) => {
                self.refuse("disabled", ClientConfigError::Type { expected: "true or false" });
                None
            }
        };
        let mut server = MCPServer::new(server_name.as_str(), MCPServerSpec { paused, ..spec? });
        server.metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
        Some(server)
    }

    fn local(&mut self, command: &str, entry: &Map<String, Value>) -> Option<MCPServerSpec> {
        if entry.contains_key("headers") {
            self.refuse("headers", ClientConfigError::WrongSection { field: "headers", with: "url" });
        }
        if let Some(kind) = self.text(entry, "type").filter(|kind| kind != "stdio") {
            self.refuse("type", ClientConfigError::Transport(kind));
        }
        let mut argv = vec![command.to_owned()];
        match entry.get("args") {
            None => {}
            Some(Value::Array(args)) => {
                for (index, arg) in args.iter().enumerate() {
                    match arg.as_str() {
                        Some(arg) => argv.push(arg.to_owned()),
                        None => self
                            .faults
                            .push((self.path.field("args").index(index), ClientConfigError::Type { expected: "text" })),
                    }
                }
            }
            Some(_) => self.refuse("args", ClientConfigError::Type { expected: "a list" }),
        }
        for (index, arg) in argv.iter().enumerate().filter(|(_, arg)| arg.contains("${")) {
            let path = match index {
                0 => self.path.field("command"),
                _ => self.path.field("args").index(index - 1),
            };
            self.faults.push((path, ClientConfigError::Placeholder(first_placeholder(arg))));
        }
        let mut literals = BTreeMap::new();
        let mut secrets = BTreeMap::new();
        for (name, given) in self.values(entry, "env") {
            // A secret takes part as an empty literal, so that `docker run -e NAME` is told apart from no value at all.
            literals.insert(name.clone(), String::new());
            match given {
                Given::Literal(value) => {
                    literals.insert(name, value);
                }
                Given::Secret(secret) => {
                    secrets.insert(name, secret);
                }
            }
        }
        let cwd = self.text(entry, "cwd");
        if let Some(cwd) = cwd.as_ref().filter(|cwd| cwd.contains("${")) {
            self.refuse("cwd", ClientConfigError::Placeholder(first_placeholder(cwd)));
        }
        let invocation = match source_of_command(&argv, &literals) {
            Ok(invocation) => invocation,
            Err(error) => {
                self.refuse("command", error.into());
                return None;
            }
        };
        self.warnings.extend(invocation.warnings);
        let env: Vec<EnvVar> = invocation
            .env
            .into_iter()
            .map(|variable| match secrets.get(&variable.name) {
                Some(secret) if variable.secret_ref.is_none() => {
                    EnvVar { value: None, secret_ref: Some(secret.clone()), ..variable }
                }
                _ => variable,
            })
            .collect();
        Some(MCPServerSpec {
            runtime: invocation.runtime,
            args: not_empty(invocation.args),
            working_dir: invocation.working_dir.or(cwd),
            env: not_empty(env),
            volumes: not_empty(invocation.volumes),
            ..spec(invocation.source)
        })
    }

    fn remote(&mut self, url: String, entry: &Map<String, Value>) -> Option<MCPServerSpec> {
        for field in ["args", "env", "cwd"].into_iter().filter(|field| entry.contains_key(*field)) {
            self.refuse(field, ClientConfigError::WrongSection { field, with: "command" });
        }
        let transport = match self.text(entry, "type").as_deref() {
            None | Some("http" | "streamable-http" | "streamableHttp" | "streamable_http") => None,
            Some("sse") => Some(Transport { r#type: Some(TransportType::Sse), port: None, path: None, era: None }),
            Some(other) => {
                self.refuse("type", ClientConfigError::Transport(other.to_owned()));
                None
            }
        };
        if url.contains("${") {
            self.refuse("url", ClientConfigError::Placeholder(first_placeholder(&url)));
        }
        let headers: Vec<Header> = self
            .values(entry, "headers")
            .into_iter()
            .map(|(name, given)| match given {
                Given::Literal(value) => Header { name, value: Some(value), secret_ref: None },
                Given::Secret(secret) => Header { name, value: None, secret_ref: Some(secret) },
            })
            .collect();
        let source = Source::Remote(RemoteSource { url, headers: not_empty(headers), auth: None });
        Some(MCPServerSpec { transport, ..spec(source) })
    }

    fn text(&mut self, entry: &Map<String, Value>, field: &str) -> Option<String> {
        match entry.get(field)? {
            Value::String(text) => Some(text.clone()),
            _ => {
                self.refuse(field, ClientConfigError::Type { expected: "text" });
                None
            }
        }
    }

    /// The members of `env` or `headers`.
    fn values(&mut self, entry: &Map<String, Value>, field: &str) -> Vec<(String, Given)> {
        let members = match entry.get(field) {
            None => return Vec::new(),
            Some(Value::Object(members)) => members,
            Some(_) => {
                self.refuse(field, ClientConfigError::Type { expected: "a mapping" });
                return Vec::new();
            }
        };
        let mut values = Vec::new();
        for (name, value) in members {
            let path = self.path.field(field).field(name);
            let text = match value {
                Value::String(text) => text.clone(),
                // Clients take `"PORT": 8080` as text.
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    self.faults.push((path, ClientConfigError::Type { expected: "text" }));
                    continue;
                }
            };
            if !text.contains("${") {
                values.push((name.clone(), Given::Literal(text)));
            } else if let Some(secret) = placeholder(&text) {
                self.warnings.push(format!("{name} comes from the secret `{}` (was `{text}`)", secret.name));
                values.push((name.clone(), Given::Secret(secret)));
            } else {
                self.faults.push((path, ClientConfigError::Placeholder(first_placeholder(&text))));
            }
        }
        values
    }
}

fn first_placeholder(text: &str) -> String {
    let tail = text.find("${").map_or(text, |start| &text[start..]);
    tail.split_inclusive('}').next().unwrap_or(tail).chars().take(60).collect()
}

/// The secret that a value stands for which is one placeholder as a whole.
fn placeholder(text: &str) -> Option<SecretKeyRef> {
    let inner = text.strip_prefix("${")?.strip_suffix('}')?;
    let name = ["env:", "input:", "SECRET:"].iter().find_map(|kind| inner.strip_prefix(kind)).unwrap_or(inner);
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    // `${workspaceFolder}` and its like are places, not secrets.
    let place = ["workspaceFolder", "userHome", "workspaceFolderBasename", "pathSeparator"].contains(&name);
    let secret = secret_named(name);
    (plain && !place && !secret.name.is_empty()).then_some(secret)
}

fn not_empty<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

fn spec(source: Source) -> MCPServerSpec {
    MCPServerSpec {
        source,
        runtime: None,
        transport: None,
        args: None,
        working_dir: None,
        env: None,
        volumes: None,
        resources: None,
        run_as: None,
        replicas: None,
        lifecycle: None,
        sessions: None,
        roots: None,
        health: None,
        restart: None,
        timeouts: None,
        tools: None,
        permissions: None,
        expose_to: None,
        paused: None,
        kubernetes: None,
    }
}

/// JSON without its comments and with blanks for tabs, every other character where it was, so that places stay right.
/// YAML reads the rest of JSON, and a comma after the last item, by itself.
pub fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                in_string = !in_string;
                plain.push(c);
            }
            '\\' if in_string => {
                plain.push(c);
                plain.extend(chars.next());
            }
            '/' if !in_string && chars.peek() == Some(&'/') => {
                plain.push(' ');
                while let Some(inner) = chars.next_if(|c| *c != '\n') {
                    plain.push(if inner == '\r' { '\r' } else { ' ' });
                }
            }
            '/' if !in_string && chars.peek() == Some(&'*') => {
                plain.push(' ');
                let mut star = false;
                // The first star of `/*` does not end it: `/*/` is still open.
                plain.extend(chars.next().map(|_| ' '));
                for inner in chars.by_ref() {
                    plain.push(if inner == '\n' || inner == '\r' { inner } else { ' ' });
                    if star && inner == '/' {
                        break;
                    }
                    star = inner == '*';
                }
            }
            '\t' if !in_string => plain.push(' '),
            _ => plain.push(c),
        }
    }
    plain
}
