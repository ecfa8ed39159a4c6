//! Which container engine there is: a socket that answers counts, a program on PATH does not.
//!
//! An explicit address (`DOCKER_HOST`, a docker context) goes before the usual places, in which the engines of this user
//! and of the system listen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::engine::{Engine, EngineError};

/// An engine that speaks the Docker API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineKind {
    Docker,
    Podman,
    Vessel,
}

impl EngineKind {
    /// In the order in which they are looked for.
    pub const ALL: [Self; 3] = [Self::Docker, Self::Podman, Self::Vessel];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Vessel => "vessel",
        }
    }
}

/// What this user's environment and files say of engines, read once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    pub home: PathBuf,
    pub uid: u32,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `DOCKER_HOST`, `DOCKER_CONTEXT`, `DOCKER_CONFIG`, `CONTAINER_HOST`, `VESSEL_HOST`.
    pub env: BTreeMap<String, String>,
}

const VARIABLES: &[&str] = &["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CONTAINER_HOST", "VESSEL_HOST"];

impl Surroundings {
    pub fn of_this_process() -> Self {
        let env = VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        Self {
            home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from),
            uid: rustix::process::getuid().as_raw(),
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
            env: env.filter(|(_, value)| !value.is_empty()).collect(),
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    /// Whether the user says where Vessel is.
    pub(super) fn names_vessel(&self) -> bool {
        self.variable("VESSEL_HOST").is_some()
    }

    /// The folder of docker's own configuration.
    pub(super) fn docker_config(&self) -> PathBuf {
        self.variable("DOCKER_CONFIG").map_or_else(|| self.home.join(".docker"), PathBuf::from)
    }
}

/// A place where an engine may listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// `unix://PATH` or `tcp://HOST:PORT`.
    pub address: String,
    /// Who names it.
    pub source: &'static str,
}

/// No engine of a kind answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    pub kind: EngineKind,
    /// Each place with what was wrong there.
    pub tried: Vec<(Candidate, String)>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tried = self.tried.iter().map(|(place, why)| format!("{} ({}): {why}", place.address, place.source));
        write!(f, "{} does not answer; tried {}", self.kind.as_str(), tried.collect::<Vec<_>>().join("; "))
    }
}

impl NotFound {
    /// What the user does next.
    pub fn hint(&self) -> &'static str {
        match self.kind {
            EngineKind::Docker if cfg!(target_os = "macos") => "start Docker Desktop or colima, or set DOCKER_HOST",
            EngineKind::Docker => {
                "start it (`systemctl start docker`), install it (`apt-get install docker.io`, or docs.docker.com/engine/install), or set DOCKER_HOST"
            }
            EngineKind::Podman => {
                "start its socket (`systemctl --user start podman.socket`), install it (`apt-get install podman`, or podman.io), or set CONTAINER_HOST"
            }
            EngineKind::Vessel => {
                "install Vessel so that `vessel` is on the PATH, or set VESSEL_HOST to its Docker-compatible socket"
            }
        }
    }
}

/// Places where an engine of this kind may listen, best first, each once.
///
/// A place that the user names leaves no other: what runs elsewhere by chance is not what was meant.
pub fn candidates(kind: EngineKind, around: &Surroundings) -> Result<Vec<Candidate>, String> {
    let named = match kind {
        EngineKind::Docker => match around.variable("DOCKER_HOST") {
            Some(host) => Some(Candidate { address: host.to_owned(), source: "DOCKER_HOST" }),
            None => context(around)?.map(|address| Candidate { address, source: "docker context" }),
        },
        EngineKind::Podman => around
            .variable("CONTAINER_HOST")
            .map(|host| Candidate { address: host.to_owned(), source: "CONTAINER_HOST" }),
        EngineKind::Vessel => {
            around.variable("VESSEL_HOST").map(|host| Candidate { address: host.to_owned(), source: "VESSEL_HOST" })
        }
    };
    if let Some(named) = named {
        return Ok(vec![named]);
    }
    let runtime_dir = around.runtime_dir.clone().unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", around.uid)));
    let home = &around.home;
    let usual: Vec<(PathBuf, &'static str)> = match kind {
        EngineKind::Docker => vec![
            (PathBuf::from("/var/run/docker.sock"), "docker"),
            (runtime_dir.join("docker.sock"), "rootless docker"),
            (home.join(".docker/run/docker.sock"), "Docker Desktop"),
            (home.join(".docker/desktop/docker.sock"), "Docker Desktop on Linux"),
            (home.join(".colima/default/docker.sock"), "colima"),
        ],
        // Of two the user's own: root's is root's business.
        EngineKind::Podman if around.uid != 0 => vec![
            (runtime_dir.join("podman/podman.sock"), "rootless podman"),
            (PathBuf::from("/run/podman/podman.sock"), "podman"),
        ],
        EngineKind::Podman => vec![(PathBuf::from("/run/podman/podman.sock"), "podman")],
        EngineKind::Vessel => vec![
            (runtime_dir.join("vessel/docker.sock"), "vessel"),
            (home.join(".vessel/docker.sock"), "vessel"),
            (PathBuf::from("/var/run/vessel/docker.sock"), "vessel"),
        ],
    };
    Ok(usual
        .into_iter()
        .map(|(path, source)| Candidate { address: format!("unix://{}", path.display()), source })
        .collect())
}

/// The address of docker's context, unless it is the default one.
fn context(around: &Surroundings) -> Result<Option<String>, String> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Config {
        current_context: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Meta {
        endpoints: BTreeMap<String, Endpoint>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Endpoint {
        host: String,
    }
    let folder = around.docker_config();
    let name = match around.variable("DOCKER_CONTEXT") {
        Some(name) => name.to_owned(),
        None => {
            let Ok(bytes) = std::fs::read(folder.join("config.json")) else { return Ok(None) };
            serde_json::from_slice::<Config>(&bytes).unwrap_or_default().current_context
        }
    };
    if name.is_empty() || name == "default" {
        return Ok(None);
    }
    let meta = folder.join("contexts/meta").join(hex::encode(Sha256::digest(&name))).join("meta.json");
    let broken =
        |what: &dyn fmt::Display| format!("docker's context `{name}` cannot be read from {}: {what}", meta.display());
    let bytes = std::fs::read(&meta).map_err(|error| broken(&error))?;
    let found: Meta = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
    let endpoint = found.endpoints.get("docker").ok_or_else(|| broken(&"it has no docker endpoint"))?;
    Ok(Some(endpoint.host.clone()))
}

/// The first engine of this kind that answers, each within `patience`.
pub async fn find(kind: EngineKind, around: &Surroundings, patience: Duration) -> Result<Engine, NotFound> {
    let places = match candidates(kind, around) {
        Ok(places) => places,
        Err(why) => {
            let place = Candidate { address: around.docker_config().display().to_string(), source: "docker context" };
            return Err(NotFound { kind, tried: vec![(place, why)] });
        }
    };
    let mut tried = Vec::new();
    for place in places {
        if let Some(path) = place.address.strip_prefix("unix://")
            && !Path::new(path).exists()
        {
            tried.push((place, "there is no such socket".to_owned()));
            continue;
        }
        match Engine::connect(&place.address, patience).await {
            Ok(engine) if fits(kind, &engine) => return Ok(engine),
            Ok(engine) => tried.push((place, format!("{} answers there", engine.facts().product))),
            Err(error) => tried.push((place, error.why())),
        }
    }
    Err(NotFound { kind, tried })
}

/// Podman tells who it is; Vessel may look like Docker, and so may others that are named as Docker's host.
fn fits(kind: EngineKind, engine: &Engine) -> bool {
    match kind {
        EngineKind::Podman => engine.facts().is_podman,
        EngineKind::Docker | EngineKind::Vessel => true,
    }
}

impl From<&NotFound> for EngineError {
    fn from(missing: &NotFound) -> Self {
        Self::NotFound { message: missing.to_string(), hint: missing.hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(home: &Path, env: &[(&str, &str)]) -> Surroundings {
        Surroundings {
            home: home.to_owned(),
            uid: 1000,
            runtime_dir: Some("/run/user/1000".into()),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn addresses(kind: EngineKind, around: &Surroundings) -> Vec<String> {
        candidates(kind, around).unwrap().into_iter().map(|place| place.address).collect()
    }

    fn with_context(home: &Path, name: &str, host: &str) {
        let folder = home.join(".docker/contexts/meta").join(hex::encode(Sha256::digest(name)));
        std::fs::create_dir_all(&folder).unwrap();
        let meta = serde_json::json!({"Name": name, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": false}}});
        std::fs::write(folder.join("meta.json"), meta.to_string()).unwrap();
        let config = serde_json::json!({"auths": {}, "currentContext": name});
        std::fs::write(home.join(".docker/config.json"), config.to_string()).unwrap();
    }

    #[test]
    fn what_is_named_goes_before_what_is_usual() {
        let home = tempfile::tempdir().unwrap();
        let plain = around(home.path(), &[]);
        assert_eq!(addresses(EngineKind::Docker, &plain)[0], "unix:///var/run/docker.sock");
        with_context(home.path(), "colima", "unix:///colima.sock");
        assert_eq!(addresses(EngineKind::Docker, &plain), ["unix:///colima.sock"]);
        let named = around(home.path(), &[("DOCKER_HOST", "tcp://127.0.0.1:2375")]);
        assert_eq!(addresses(EngineKind::Docker, &named), ["tcp://127.0.0.1:2375"]);
        let default = around(home.path(), &[("DOCKER_CONTEXT", "default")]);
        assert_eq!(addresses(EngineKind::Docker, &default)[0], "unix:///var/run/docker.sock");
    }

    #[test]
    fn a_context_that_is_gone_is_named_and_nothing_else_is_taken_for_it() {
        let home = tempfile::tempdir().unwrap();
        let lost = around(home.path(), &[("DOCKER_CONTEXT", "lost")]);
        assert!(candidates(EngineKind::Docker, &lost).unwrap_err().contains("docker's context `lost`"));
    }

    #[test]
    fn a_user_is_led_to_their_own_podman_first() {
        let user = around(Path::new("/home/user"), &[]);
        let wanted = ["unix:///run/user/1000/podman/podman.sock", "unix:///run/podman/podman.sock"];
        assert_eq!(addresses(EngineKind::Podman, &user), wanted);
    }

    #[tokio::test]
    async fn what_was_tried_is_told_with_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("no.sock");
        let address = format!("unix://{}", socket.display());
        let around = around(home.path(), &[("DOCKER_HOST", &address)]);
        let missing = find(EngineKind::Docker, &around, Duration::ZERO).await.unwrap_err();
        assert_eq!(
            missing.to_string(),
            format!("docker does not answer; tried {address} (DOCKER_HOST): there is no such socket")
        );
        assert!(missing.hint().contains("DOCKER_HOST"));
    }
}
