//! What can go wrong in a command, what the user does next, and the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use kube::ResourceExt;

use mcp_hub_local_runtime::docker::{EngineError, NotFound};
use mcp_hub_supply::RegistryError;
use mcp_hub_supply::bundle::BundleError;
use mcp_hub_supply::credentials::CredentialsError;
use mcp_hub_supply::lock::LockError;

use crate::target::kubernetes::ClusterError;

/// Exit codes, as `mcpctl --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    /// Clap's own, too.
    Usage = 2,
    NotFound = 3,
    /// No daemon, no container engine, no API server, or none that knows MCP Hub.
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
    #[error("{}", chain(.0))]
    Registry(#[from] RegistryError),
    #[error("{}", chain(.0))]
    Credentials(#[from] CredentialsError),
    #[error("{}", chain(&**.0))]
    Engine(Box<EngineError>),
    /// Nothing answers of all that was looked for, which is at least one.
    #[error("there is no container engine: {}", .0.iter().map(NotFound::to_string).collect::<Vec<_>>().join("; "))]
    NoEngine(Vec<NotFound>),
    #[error("{path}: {problem}", path = .path.display(), problem = chain(&**.source))]
    Bundle { path: PathBuf, source: Box<BundleError> },
    #[error("{path} is no lock file: {source}", path = .path.display())]
    Lock { path: PathBuf, source: LockError },
    /// Each of them was told already.
    #[error("{failed} of {of} images could not be {done}{}", .so.map(|so| format!("; {so}")).unwrap_or_default())]
    Images { failed: usize, of: usize, done: &'static str, so: Option<&'static str> },
    #[error("could not write: {0}")]
    Output(std::io::Error),
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .reduce(|text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") })
        .unwrap_or_default()
}

/// What a user of registries does next; in a cluster it is another's to do.
fn registry_hint(error: &RegistryError) -> String {
    match error {
        RegistryError::Unauthorized { with_credentials: false, registry, .. } => {
            format!("check the name; if it takes a login, `docker login {registry}` keeps one")
        }
        RegistryError::Unauthorized { with_credentials: true, registry, .. } => {
            format!("check the name, and whether the login for {registry} in Docker's config.json may do this")
        }
        RegistryError::NotFound { .. } => {
            "check the name; some registries want a repository to be made before anything goes into it".to_owned()
        }
        RegistryError::RateLimited { retry_after: Some(wait), .. } => {
            format!("run it again in {} s; a login has a higher limit", wait.as_secs())
        }
        RegistryError::RateLimited { .. } => "run it again later; a login has a higher limit".to_owned(),
        RegistryError::Unreachable { .. }
        | RegistryError::Interrupted { .. }
        | RegistryError::TimedOut { .. }
        | RegistryError::Status { status: 500.., .. } => {
            "run it again; what a registry has already is not sent twice".to_owned()
        }
        RegistryError::Redirect { .. } | RegistryError::Challenge { .. } => {
            "check that the host is a registry of images".to_owned()
        }
        other => other.hint(),
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self::Engine(error.into())
    }
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoDaemon | Self::NoEngine(_) => Exit::NoAnswer,
            Self::Elsewhere { .. } => Exit::Usage,
            Self::Cluster(error) => error.exit(),
            Self::Refused { exit, .. } => *exit,
            Self::NotFound { .. } => Exit::NotFound,
            Self::Invalid { .. } => Exit::Invalid,
            Self::TimedOut(_) => Exit::TimedOut,
            Self::Tool { .. } => Exit::ToolError,
            Self::Registry(RegistryError::NotFound { .. }) => Exit::NotFound,
            Self::Registry(RegistryError::TimedOut { .. }) => Exit::TimedOut,
            Self::Bundle { source, .. } if !source.is_of_the_file() => Exit::Failed,
            Self::Bundle { .. } | Self::Lock { .. } => Exit::Invalid,
            Self::Silent { .. }
            | Self::File { .. }
            | Self::NotReady(_)
            | Self::Endpoint { .. }
            | Self::Http { .. }
            | Self::Protocol { .. }
            | Self::DaemonStart(_)
            | Self::Secret(_)
            | Self::Registry(_)
            | Self::Credentials(_)
            | Self::Engine(_)
            | Self::Images { .. }
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
            Self::Registry(error) => Some(registry_hint(error)),
            Self::Engine(error) => error.hint(),
            Self::NoEngine(missing) => missing.first().map(|missing| missing.hint().to_owned()),
            Self::Bundle { source, .. } => match &**source {
                BundleError::Registry(error) => Some(registry_hint(error)),
                source => source.hint().map(str::to_owned),
            },
            Self::Lock { .. } => Some("`mcpctl lock-images` writes it anew once it is out of the way".to_owned()),
            Self::Credentials(error) => Some(error.hint()),
            Self::Silent { .. }
            | Self::File { .. }
            | Self::Http { .. }
            | Self::Protocol { .. }
            | Self::Tool { .. }
            | Self::DaemonStart(_)
            | Self::Images { .. }
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
