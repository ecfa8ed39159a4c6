//! What can go wrong with a cluster.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::tools::Tool;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the cluster's programs are not built; build them with `cargo xtask cluster build`")]
    NotBuilt,
    #[error("not installed: {}; `cargo xtask test --setup --level cluster` installs it", names(.0))]
    NotInstalled(Vec<Tool>),
    #[error("only root can start a cluster, which needs network namespaces, mounts and control groups")]
    NotRoot,
    #[error("`{0}` cannot be a cluster's name: 1 to 20 lower-case letters, digits and dashes")]
    BadName(String),
    #[error("cluster `{0}` is up already; `cargo xtask cluster down --name {0}` ends it")]
    AlreadyUp(String),
    #[error("there is no cluster `{0}`; start it with `cargo xtask cluster up --name {0}`")]
    NotUp(String),
    #[error("{part} of cluster `{cluster}` does not run")]
    NotRunning { cluster: String, part: &'static str },
    #[error("could not {action} {path}", path = .path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("could not start `{program}`")]
    Start { program: String, source: std::io::Error },
    #[error("`{command}` failed ({status}): {output}")]
    Failed { command: String, status: ExitStatus, output: String },
    #[error("{part} ended ({status}); the end of its log:\n{log}")]
    Ended { part: &'static str, status: ExitStatus, log: String },
    #[error("{what}: not after {} s; the logs are in {logs}", .after.as_secs(), logs = .logs.display())]
    Late { what: String, after: Duration, logs: PathBuf },
    #[error("could not enter the network namespace {path}", path = .path.display())]
    Enter { path: PathBuf, source: std::io::Error },
    #[error("could not open a door to {target}")]
    Door { target: String, source: std::io::Error },
    #[error("could not listen on {address} in the cluster's network")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("could not make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("cluster `{cluster}` is not wholly gone, {left}; `cargo xtask cluster down --name {cluster}` tries again")]
    Remains { cluster: String, left: String },
}

impl Error {
    /// For `map_err` on what is done with a file.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

fn names(tools: &[Tool]) -> String {
    tools.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ")
}
