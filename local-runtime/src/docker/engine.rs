//! One container engine: how it is reached, what it is, and what its errors mean.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::query_parameters::RemoveContainerOptions;
use mcp_hub_reconcile::error::{Retry, RuntimeError};

use super::pull::Refusal;
use crate::secret_source::SecretError;
use crate::wire::Address;

/// Longest wait for an answer to any one request. Pulls and logs are streams, which it does not bound as a whole.
const ANSWER: u64 = 60;

/// A client of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) api: Docker,
    pub(super) address: Address,
    facts: Facts,
}

/// What does not change while an engine is there, so that lowering stays pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a table of independent facts")]
pub struct Facts {
    /// `unix://PATH` or `tcp://HOST:PORT`.
    pub address: String,
    /// Tells this engine, with what it has, from others, and stays the same when it starts again.
    pub identity: String,
    /// For people: `Docker Engine 28.2.2`.
    pub product: String,
    pub version: String,
    pub is_podman: bool,
    /// Of the machine that runs containers, as images name it: `amd64`, `arm64`.
    pub architecture: String,
    pub memory_limit: bool,
    pub cpu_limit: bool,
    pub pids_limit: bool,
}

impl Facts {
    /// Whether containers of one network can be kept from each other. Podman does so only for those of different networks,
    /// of which it has enough for each server; Docker's are few.
    pub fn isolates_within_network(&self) -> bool {
        !self.is_podman
    }
}

/// A failure of a container engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{message}")]
    NotFound { message: String, hint: &'static str },
    #[error("{address} is no address of an engine: {problem}")]
    Address { address: String, problem: &'static str },
    #[error("the container engine at {address} does not answer")]
    Unreachable {
        address: String,
        #[source]
        source: Box<ApiError>,
    },
    #[error("could not {action} {object}: {message}")]
    Refused { action: &'static str, object: String, code: u16, message: String },
    #[error("could not {action} {object}")]
    Failed {
        action: &'static str,
        object: String,
        #[source]
        source: Box<ApiError>,
    },
    #[error("there is a container or network {name} that is not ours")]
    NameTaken { name: String },
    #[error("image {image} is not there any more: {problem}")]
    ImageGone { image: String, problem: String },
    #[error("{product} could not pull {image}: {said}")]
    PullRefused { product: String, architecture: String, image: String, said: String, why: Refusal },
    #[error("image {image} is for {}, and the engine runs linux/{architecture}", .made_for.join(", "))]
    WrongPlatform { image: String, made_for: Vec<String>, architecture: String },
    #[error("{product} stored {image} as something else than was asked for ({found})")]
    ImageAltered { product: String, image: String, found: String },
    #[error("what is noted of images that were brought cannot be read")]
    Ledger(#[source] std::io::Error),
    #[error("image {image} is named by its digest, by which engines know only what they pulled themselves")]
    Unnameable { image: String },
    #[error("the bridge of {owner} ended at once: {output}")]
    Ended { owner: String, output: String },
    #[error("the bridge of {owner} does not answer")]
    Mute { owner: String },
    #[error("this program carries no bridge for {architecture}")]
    NoBridge { architecture: String },
    #[error("this program carries no relay for {architecture}")]
    NoRelay { architecture: String },
    #[error("the relay of namespace {namespace} ended: {output}")]
    RelayEnded { namespace: String, output: String },
    #[error("the relay of namespace {namespace} does not answer")]
    RelayMute { namespace: String },
    #[error("network {network} has no IPv4 addresses for a relay")]
    NoSubnet { network: String },
    #[error("no port of 127.0.0.1 is free for {owner}")]
    NoPort {
        owner: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{owner} does not run")]
    NotRunning { owner: String },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("could not read {path}", path = .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} holds no {wanted}")]
    Malformed {
        what: String,
        wanted: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// What is usually behind an engine's words.
fn usual(message: &str) -> Option<&'static str> {
    let message = message.to_lowercase();
    let known = [
        ("bind source path does not exist", "the folder of spec.volumes[].hostPath has to be there"),
        ("no such file or directory", "check spec.volumes[].hostPath and the image's user"),
        ("address pools", "the engine has no addresses left for another network: remove unused ones"),
        ("no space left", "the engine's disk is full"),
        ("range of cpus", "the machine has fewer processors than spec.resources.limits.cpu"),
        ("unable to find user", "set spec.runAs.user to a number"),
        ("minimum memory limit", "raise spec.resources.limits.memory"),
        (
            "disable_ipv6",
            "this kernel has no IPv6 that could be switched off, which a server with an egress list needs",
        ),
    ];
    known.into_iter().find(|(words, _)| message.contains(words)).map(|(_, hint)| hint)
}

const ALTERED: &str = "the registry, or somebody on the way to it, changed the image; do not run it";

fn platform_hint(architecture: &str) -> String {
    format!("use an image for linux/{architecture}")
}

fn pull_refused(why: Refusal, architecture: &str) -> (&'static str, String) {
    let hint = match why {
        Refusal::Platform => return ("WrongPlatform", platform_hint(architecture)),
        Refusal::Altered => ALTERED,
        Refusal::Login => {
            "the registry wants another login, or there is no such image: `docker login`, or set pullSecretRef"
        }
        Refusal::Missing => "check the name and tag; an image that was built here need not be pulled",
        Refusal::DiskFull => "the engine's disk is full",
        Refusal::Other => "can the engine reach the registry?",
    };
    ("ImagePullFailed", hint.to_owned())
}

impl EngineError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        self.lot().1
    }

    /// Whether the engine refused something with these words, which is all that it says of the reason.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message.to_lowercase().contains(words))
    }

    /// What is wrong, without the address.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Unreachable { source, .. } => format!("nothing that speaks the Docker API answers: {source}"),
            other => other.to_string(),
        }
    }
}

impl EngineError {
    /// Its reason, what the user does next, and whether time mends it.
    fn lot(&self) -> (&'static str, Option<String>, Retry) {
        let hint = |text: &str| Some(text.to_owned());
        match self {
            EngineError::NotFound { hint: what, .. } => ("EngineNotFound", hint(what), Retry::Backoff),
            EngineError::Address { .. } => ("EngineNotFound", hint("check DOCKER_HOST"), Retry::Backoff),
            EngineError::Unreachable { .. } => (
                "EngineUnreachable",
                hint("is it running? its servers are looked after again when it is; start the daemon anew if it moved"),
                Retry::Backoff,
            ),
            EngineError::Refused { message, .. } => ("EngineRefused", usual(message).and_then(hint), Retry::Backoff),
            EngineError::Failed { .. } | EngineError::Ledger(_) => ("EngineRefused", None, Retry::Backoff),
            EngineError::NameTaken { .. } => ("NameTaken", hint("remove or rename it"), Retry::Backoff),
            EngineError::ImageGone { .. } => {
                ("ImageGone", hint("pull or build it again, or change spec.source"), Retry::Backoff)
            }
            EngineError::PullRefused { why, architecture, .. } => {
                let (reason, what) = pull_refused(*why, architecture);
                // It may be pushed, or the registry be back, at any time.
                (reason, Some(what), Retry::Backoff)
            }
            EngineError::WrongPlatform { architecture, .. } => {
                ("WrongPlatform", Some(platform_hint(architecture)), Retry::OnChange)
            }
            EngineError::ImageAltered { .. } => ("ImageAltered", hint(ALTERED), Retry::Backoff),
            EngineError::Unnameable { .. } => (
                "ImageUnpinned",
                hint("load the bundle into a registry, and pull it from there; or name it by a tag"),
                Retry::OnChange,
            ),
            EngineError::Ended { .. } => ("BridgeFailed", None, Retry::Backoff),
            EngineError::Mute { .. } => ("BridgeMute", None, Retry::Backoff),
            EngineError::NoBridge { .. } => {
                ("BridgeMissing", hint("use a release, or build one with `cargo xtask dist`"), Retry::OnChange)
            }
            EngineError::NoRelay { .. } => {
                ("RelayMissing", hint("use a release, or build one with `cargo xtask dist`"), Retry::OnChange)
            }
            EngineError::RelayEnded { .. } => ("RelayFailed", None, Retry::Backoff),
            EngineError::RelayMute { .. } => ("RelayMute", None, Retry::Backoff),
            EngineError::NoSubnet { .. } => ("EngineRefused", hint("remove that network"), Retry::Backoff),
            EngineError::NoPort { .. } => ("NoPort", None, Retry::Backoff),
            EngineError::NotRunning { .. } => ("NotRunning", hint("start the server first"), Retry::OnChange),
            EngineError::Secret(error) => (error.reason(), None, Retry::Backoff),
            EngineError::File { .. } => ("BridgeMissing", None, Retry::Backoff),
            EngineError::Malformed { .. } => ("ObjectUnreadable", None, Retry::Backoff),
        }
    }
}

impl From<EngineError> for RuntimeError {
    fn from(error: EngineError) -> Self {
        let (reason, hint, retry) = error.lot();
        Self {
            reason,
            message: error.to_string(),
            hint,
            retry,
            source: std::error::Error::source(&error).map(|source| source.to_string().into()),
        }
    }
}

impl Engine {
    /// Removes a container by force, with the volumes that are its own.
    pub(super) async fn discard(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        match self.api.remove_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            // Gone, or somebody else is removing it.
            Err(error) if is_absent(&error) || is_conflict(&error) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    /// Asks the engine at this address what it is.
    ///
    /// # Errors
    /// Nothing answers there in time, or it does not speak the Docker API.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, EngineError> {
        let unreachable = |source| EngineError::Unreachable { address: address.to_owned(), source: Box::new(source) };
        let version = bollard::API_DEFAULT_VERSION;
        let (api, direct) = match address.split_once("://") {
            Some(("unix", path)) => (Docker::connect_with_unix(address, ANSWER, version), Address::Socket(path.into())),
            // A published port of another machine would be that machine's own.
            Some(("tcp" | "http", host)) if let Some(port) = loopback(host) => {
                (Docker::connect_with_http(address, ANSWER, version), Address::Port(port))
            }
            Some(("tcp" | "http" | "https" | "ssh", _)) => {
                let problem =
                    "servers' ports are published on the engine's own loopback, so it has to be on this machine";
                return Err(EngineError::Address { address: address.to_owned(), problem });
            }
            _ => {
                let problem = "it begins with neither unix:// nor tcp://";
                return Err(EngineError::Address { address: address.to_owned(), problem });
            }
        };
        let api = api.map_err(unreachable)?;
        let hello = async {
            let api = api.negotiate_version().await.map_err(unreachable)?;
            let mut engine =
                Self { api, address: direct, facts: Facts { address: address.to_owned(), ..Facts::default() } };
            let (version, info) = (engine.version().await?, engine.info().await?);
            let is_podman = version.components.iter().flatten().any(|part| part.name.to_lowercase().contains("podman"));
            engine.facts = Facts {
                address: address.to_owned(),
                identity: match is_podman {
                    // It makes up another id each time.
                    true => format!("{address} {}", info.docker_root_dir),
                    false => format!("{} {}", info.id, info.docker_root_dir),
                },
                product: format!("{} {}", if is_podman { "Podman" } else { "Docker Engine" }, version.version),
                version: version.version,
                is_podman,
                architecture: architecture(&version.arch),
                memory_limit: info.memory_limit,
                cpu_limit: info.cpu_cfs_quota,
                pids_limit: info.pids_limit,
            };
            Ok(engine)
        };
        tokio::time::timeout(patience, hello).await.unwrap_or_else(|_| Err(unreachable(ApiError::RequestTimeoutError)))
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What an answer means that is no success.
    pub(super) fn failed(&self, action: &'static str, object: &str, error: ApiError) -> EngineError {
        match error {
            ApiError::DockerResponseServerError { status_code, message } => {
                EngineError::Refused { action, object: object.to_owned(), code: status_code, message }
            }
            error @ (ApiError::HyperResponseError { .. }
            | ApiError::HyperLegacyError { .. }
            | ApiError::RequestTimeoutError
            | ApiError::SocketNotFoundError(_)
            | ApiError::IOError { .. }) => {
                EngineError::Unreachable { address: self.facts.address.clone(), source: Box::new(error) }
            }
            error => EngineError::Failed { action, object: object.to_owned(), source: Box::new(error) },
        }
    }
}

/// Nothing is there, or no longer.
pub(super) fn is_absent(error: &ApiError) -> bool {
    matches!(error, ApiError::DockerResponseServerError { status_code: 404, .. })
}

/// It is there already, or somebody else is at it.
pub(super) fn is_conflict(error: &ApiError) -> bool {
    match error {
        ApiError::DockerResponseServerError { status_code: 409, .. } => true,
        // Podman's way to say it.
        ApiError::DockerResponseServerError { status_code: 500, message } => message.contains("already in use"),
        _ => false,
    }
}

/// The address of this very machine that a `HOST:PORT` means.
fn loopback(host: &str) -> Option<SocketAddr> {
    let host = host.trim_end_matches('/').replacen("localhost", "127.0.0.1", 1);
    host.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback())
}

/// Engines name the machine as Go or as the kernel does; images as Go does.
fn architecture(name: &str) -> String {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_is_not_on_this_machine_is_refused_and_not_asked() {
        for address in ["tcp://192.0.2.1:2375", "ssh://somebody@192.0.2.1", "https://127.0.0.1:2376", "127.0.0.1:2375"]
        {
            let refused = Engine::connect(address, Duration::ZERO).await.unwrap_err();
            assert!(matches!(&refused, EngineError::Address { .. }), "{address}: {refused}");
            assert!(refused.to_string().contains(address), "{refused}");
        }
    }
}
