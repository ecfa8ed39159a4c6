//! What can go wrong in a command, what the user does next, and the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

/// Exit codes, as `mcpctl --help` lists them. 2 is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    NotFound = 3,
    NoDaemon = 4,
    TimedOut = 5,
    Invalid = 6,
    ToolError = 7,
    Held = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The code as the admin API transports it.
    pub(crate) fn from_code(code: u8) -> Self {
        let known = [Self::NotFound, Self::NoDaemon, Self::TimedOut, Self::Invalid, Self::ToolError, Self::Held];
        known.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Failed)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no daemon is running")]
    NoDaemon,
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
            Self::NoDaemon => Exit::NoDaemon,
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
            Self::Refused { hint, .. } | Self::NotFound { hint, .. } | Self::Invalid { hint, .. } => hint.clone(),
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
