//! One container engine: how it is reached, what it is, and what its errors mean.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::models::ContainerInspectResponse;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use mcp_hub_reconcile::error::{Retry, RuntimeError};

use serde::Deserialize;
use serde_json::Value;

use crate::secret_source::SecretError;
use crate::wire::Address;

/// Longest wait for an answer to any one request. Pulls and logs are streams, which it does not bound as a whole.
const ANSWER: u64 = 60;
/// Longest wait for a document about what is there, which takes milliseconds: whoever waits for a stuck engine holds up others.
const LOOK: Duration = Duration::from_secs(10);
/// Largest document that is read: labels and mounts of thousands of containers.
const ANSWER_MAX: usize = 32 << 20;
/// An engine that is there says so within milliseconds; one that is starting is found at the next look.
const HELLO: Duration = Duration::from_secs(5);

/// A client of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) api: Docker,
    address: Address,
    facts: Facts,
}

/// What does not change while an engine is there, so that lowering stays pure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a table of independent facts")]
pub struct Facts {
    /// `unix://PATH` or `tcp://HOST:PORT`.
    pub address: String,
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
    #[error("the bridge of {owner} ended at once: {output}")]
    Ended { owner: String, output: String },
    #[error("the bridge of {owner} does not answer")]
    Mute { owner: String },
    #[error("this program carries no bridge for {architecture}")]
    NoBridge { architecture: String },
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
    ];
    known.into_iter().find(|(words, _)| message.contains(words)).map(|(_, hint)| hint)
}

impl EngineError {
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

impl From<EngineError> for RuntimeError {
    fn from(error: EngineError) -> Self {
        let hint = |text: &str| Some(text.to_owned());
        let (reason, hint, retry) = match &error {
            EngineError::NotFound { hint: what, .. } => ("EngineNotFound", hint(what), Retry::Backoff),
            EngineError::Address { .. } => ("EngineNotFound", hint("check DOCKER_HOST"), Retry::Backoff),
            EngineError::Unreachable { .. } => (
                "EngineUnreachable",
                hint("is it running? its servers are looked after again when it is; start the daemon anew if it moved"),
                Retry::Backoff,
            ),
            EngineError::Refused { message, .. } => ("EngineRefused", usual(message).and_then(hint), Retry::Backoff),
            EngineError::Failed { .. } => ("EngineRefused", None, Retry::Backoff),
            EngineError::NameTaken { .. } => ("NameTaken", hint("remove or rename it"), Retry::Backoff),
            EngineError::ImageGone { .. } => {
                ("ImageGone", hint("pull or build it again, or change spec.source"), Retry::Backoff)
            }
            EngineError::Ended { .. } => ("BridgeFailed", None, Retry::Backoff),
            EngineError::Mute { .. } => ("BridgeMute", None, Retry::Backoff),
            EngineError::NoBridge { .. } => {
                ("BridgeMissing", hint("use a release, or build one with `cargo xtask dist`"), Retry::OnChange)
            }
            EngineError::NotRunning { .. } => ("NotRunning", hint("start the server first"), Retry::OnChange),
            EngineError::Secret(error) => (error.reason(), None, Retry::Backoff),
            EngineError::File { .. } => ("BridgeMissing", None, Retry::Backoff),
            EngineError::Malformed { .. } => ("ObjectUnreadable", None, Retry::Backoff),
        };
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
    /// Asks the engine at this address what it is.
    ///
    /// # Errors
    /// Nothing answers there within five seconds, or it does not speak the Docker API.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn connect(address: &str) -> Result<Self, EngineError> {
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
            let api = api.negotiate_version().await?;
            let version = api.version().await?;
            let info = api.info().await?;
            Ok((api, version, info))
        };
        let (api, version, info) = tokio::time::timeout(HELLO, hello)
            .await
            .unwrap_or(Err(ApiError::RequestTimeoutError))
            .map_err(unreachable)?;
        let is_podman =
            version.components.iter().flatten().any(|component| component.name.to_lowercase().contains("podman"));
        let number = version.version.unwrap_or_default();
        let facts = Facts {
            address: address.to_owned(),
            product: format!("{} {number}", if is_podman { "Podman" } else { "Docker Engine" }),
            version: number,
            is_podman,
            architecture: architecture(version.arch.as_deref().unwrap_or_default()),
            memory_limit: info.memory_limit.unwrap_or(false),
            cpu_limit: info.cpu_cfs_quota.unwrap_or(false),
            pids_limit: info.pids_limit.unwrap_or(false),
        };
        Ok(Self { api, address: direct, facts })
    }

    /// The labels of all containers that bear these, running or not.
    pub(super) async fn labels(&self, labels: &[String]) -> Result<Vec<HashMap<String, String>>, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Summary {
            labels: Option<HashMap<String, String>>,
        }
        let filters = serde_json::json!({"label": labels}).to_string();
        let query: String = url::form_urlencoded::byte_serialize(filters.as_bytes()).collect();
        let path = format!("/containers/json?all=true&filters={query}");
        let found = self.get(&path).await.and_then(|found| found.ok_or_else(|| absent("containers")));
        let found = found.map_err(|error| self.failed("list", "containers", error))?;
        let found: Vec<Summary> = serde_json::from_value(found).map_err(|source| unreadable("containers", source))?;
        Ok(found.into_iter().filter_map(|summary| summary.labels).collect())
    }

    /// What the engine says of a container, if there is one of this name.
    pub(super) async fn container(&self, name: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let found = self.get(&format!("/containers/{name}/json")).await;
        let Some(mut found) = found.map_err(|error| self.failed("inspect", name, error))? else { return Ok(None) };
        if let Some(status) = found.pointer_mut("/State/Status")
            && *status == "stopped"
        {
            // Podman's word for one that has ended and is not cleaned up yet, which Docker's API does not know.
            *status = "exited".into();
        }
        serde_json::from_value(found).map(Some).map_err(|source| unreadable(name, source))
    }

    /// A document of the API; `None` if there is none. For answers whose words differ from engine to engine, which the
    /// library takes for broken.
    async fn get(&self, path: &str) -> Result<Option<Value>, ApiError> {
        let refused = |status_code, message| ApiError::DockerResponseServerError { status_code, message };
        let version = self.api.client_version();
        let uri = format!("/v{}.{}{path}", version.major_version, version.minor_version);
        let request = Request::builder().uri(uri).header(HOST, "engine").body(Full::default())?;
        let asked = async {
            let response = self.address.ask(request).await.map_err(std::io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(std::io::Error::other)?;
            let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
            match status {
                StatusCode::NOT_FOUND => Ok(None),
                status if status.is_success() => Ok(Some(body)),
                status => Err(refused(status.as_u16(), body["message"].as_str().unwrap_or_default().to_owned())),
            }
        };
        tokio::time::timeout(LOOK, asked).await.unwrap_or(Err(ApiError::RequestTimeoutError))
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

fn absent(what: &str) -> ApiError {
    ApiError::DockerResponseServerError { status_code: 404, message: format!("no {what}") }
}

fn unreadable(what: &str, source: serde_json::Error) -> EngineError {
    EngineError::Malformed { what: what.to_owned(), wanted: "answer of the Docker API", source }
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
