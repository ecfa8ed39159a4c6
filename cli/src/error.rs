//! What can go wrong in a command, what the user does next, and the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use kube::ResourceExt;

use crate::target::kubernetes::ClusterError;

/// Exit codes, as `mcpctl --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    /// Clap's own, too.
    Usage = 2,
    NotFound = 3,
    /// No daemon, no API server, or none that knows MCP Hub.
    NoAnswer = 4,
    TimedOut = 5,
    Invalid = 6,
    ToolError = 7,
    Held = 8,
    Forbidden = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The code as the admin API transports it.
    pub(crate) fn from_code(code: u8) -> Self {
        let known = [
            Self::Usage,
            Self::NotFound,
            Self::NoAnswer,
            Self::TimedOut,
            Self::Invalid,
            Self::ToolError,
            Self::Held,
            Self::Forbidden,
        ];
        known.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Failed)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no daemon is running")]
    NoDaemon,
    /// The target has no such thing.
    #[error("{what}")]
    Elsewhere { what: String, hint: Option<String> },
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("the daemon did not answer {request}: {problem}")]
    Silent { request: String, problem: String },
    /// The daemon's own words.
    #[error("{message}")]
    Refused { exit: Exit, message: String, hint: Option<String> },
    #[error("there is no {what} `{name}`")]
    NotFound { what: &'static str, name: String, hint: Option<String> },
    #[error("{message}")]
    Invalid { message: String, hint: Option<String> },
    #[error("could not {action} {path}: {source}", path = .path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    NotReady(String),
    #[error("timed out: {0}")]
    TimedOut(String),
    #[error("{url} cannot be reached: {problem}")]
    Endpoint { url: String, problem: String },
    #[error("the hub answered HTTP {status}: {message}")]
    Http { status: u16, message: String },
    #[error("the hub refused {method}: {message} (code {code})")]
    Protocol { method: String, code: i64, message: String },
    /// What the tool said goes to stderr in front of this.
    #[error("the tool {tool} answered with an error")]
    Tool { tool: String },
    #[error("the daemon did not start: {0}")]
    DaemonStart(String),
    #[error(transparent)]
    Secret(#[from] mcp_hub_secrets::SecretError),
    #[error("could not write: {0}")]
    Output(std::io::Error),
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoDaemon => Exit::NoAnswer,
            Self::Elsewhere { .. } => Exit::Usage,
            Self::Cluster(error) => error.exit(),
            Self::Refused { exit, .. } => *exit,
            Self::NotFound { .. } => Exit::NotFound,
            Self::Invalid { .. } => Exit::Invalid,
            Self::TimedOut(_) => Exit::TimedOut,
            Self::Tool { .. } => Exit::ToolError,
            Self::Silent { .. }
            | Self::File { .. }
            | Self::NotReady(_)
            | Self::Endpoint { .. }
            | Self::Http { .. }
            | Self::Protocol { .. }
            | Self::DaemonStart(_)
            | Self::Secret(_)
            | Self::Output(_) => Exit::Failed,
        }
    }

    /// What the user does next; printed after `hint:`.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoDaemon => Some("start it with `mcpctl up` or `mcpctl up -d`".to_owned()),
            Self::Refused { hint, .. }
            | Self::NotFound { hint, .. }
            | Self::Invalid { hint, .. }
            | Self::Elsewhere { hint, .. } => hint.clone(),
            Self::Cluster(error) => error.hint(),
            Self::NotReady(_) | Self::TimedOut(_) => {
                Some("`mcpctl status` says why, `mcpctl logs NAME` shows what a server wrote".to_owned())
            }
            Self::Endpoint { .. } => Some("`mcpctl get hubs` says whether the hub is ready".to_owned()),
            Self::Secret(error) => error.hint(),
            Self::Silent { .. }
            | Self::File { .. }
            | Self::Http { .. }
            | Self::Protocol { .. }
            | Self::Tool { .. }
            | Self::DaemonStart(_)
            | Self::Output(_) => None,
        }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// Nothing bears this name; what does is named. `beginning`: how people get the first of all.
pub(crate) fn absent<K: ResourceExt>(what: &'static str, name: &str, there: &[K], beginning: &str) -> Error {
    let names: Vec<String> = there.iter().map(ResourceExt::name_any).collect();
    let hint = match names.is_empty() {
        true => format!("there are none; {beginning}"),
        false => format!("there are: {}", names.join(", ")),
    };
    Error::NotFound { what, name: name.to_owned(), hint: Some(hint) }
}
