//! What an engine says of what is there, and what of that we read. Engines differ in words that we do not look at, over which a
//! library that knows all of them stumbles.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::engine::{Engine, EngineError};
use super::image::full_id;

/// Longest wait for an answer, which takes milliseconds: whoever waits for a stuck engine holds up others.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer that is read: labels and mounts of thousands of containers.
const ANSWER_MAX: usize = 32 << 20;

/// A container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Found {
    pub(super) config: Labelled,
    pub(super) state: State,
    pub(super) host_config: Limits,
    pub(super) network_settings: Networking,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Labelled {
    pub(super) labels: Option<HashMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct State {
    /// `created`, `running`, `paused`, `exited`, `dead`, …; Podman says `stopped` of one that is not cleaned up yet.
    pub(super) status: String,
    pub(super) running: bool,
    pub(super) paused: bool,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: bool,
    pub(super) exit_code: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Limits {
    pub(super) memory: Option<i64>,
    pub(super) nano_cpus: Option<i64>,
    pub(super) pids_limit: Option<i64>,
    pub(super) restart_policy: Named,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Networking {
    networks: Option<HashMap<String, Endpoint>>,
    pub(super) ports: Option<HashMap<String, Option<Vec<Port>>>>,
}

impl Networking {
    /// Names of the networks that it is attached to.
    pub(super) fn networks(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.networks.iter().flatten().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Its address on one of them, while it runs.
    pub(super) fn address_on(&self, network: &str) -> Option<IpAddr> {
        self.networks.as_ref()?.get(network)?.ip_address.parse().ok()
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "IPAddress")]
    ip_address: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Port {
    pub(super) host_port: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Named {
    pub(super) name: String,
}

/// A network.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct FoundNetwork {
    pub(super) name: String,
    pub(super) labels: Option<HashMap<String, String>>,
    pub(super) internal: bool,
    pub(super) options: Option<HashMap<String, String>>,
    #[serde(rename = "IPAM")]
    pools: Pools,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Pools {
    config: Option<Vec<Pool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Pool {
    subnet: String,
}

impl FoundNetwork {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Its addresses, as `ADDRESS/BITS`.
    pub(super) fn subnets(&self) -> impl Iterator<Item = &str> {
        self.pools.config.iter().flatten().map(|pool| pool.subnet.as_str())
    }
}

/// An image.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct FoundImage {
    pub(super) id: String,
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) repo_digests: Option<Vec<String>>,
    pub(super) size: u64,
    pub(super) os: String,
    pub(super) architecture: String,
    pub(super) config: Option<Starts>,
}

/// What an image starts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Starts {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) user: String,
}

/// What an engine is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) version: String,
    pub(super) arch: String,
    pub(super) components: Option<Vec<Named>>,
}

/// What it can enforce.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Info {
    pub(super) memory_limit: bool,
    pub(super) cpu_cfs_quota: bool,
    pub(super) pids_limit: bool,
    #[serde(rename = "ID")]
    pub(super) id: String,
    pub(super) docker_root_dir: String,
}

impl Engine {
    pub(super) async fn version(&self) -> Result<Version, EngineError> {
        Ok(self.get("/version", "what it is").await?.unwrap_or_default())
    }

    pub(super) async fn info(&self) -> Result<Info, EngineError> {
        Ok(self.get("/info", "what it can do").await?.unwrap_or_default())
    }

    /// The labels of all containers that bear these, running or not.
    pub(super) async fn labels(&self, labels: &[String]) -> Result<Vec<HashMap<String, String>>, EngineError> {
        let path = format!("/containers/json?all=true&{}", bearing(labels));
        let found: Option<Vec<Labelled>> = self.get(&path, "containers").await?;
        Ok(found.into_iter().flatten().filter_map(|container| container.labels).collect())
    }

    /// Ids of the images that containers are made of, running or not.
    pub(super) async fn images_in_use(&self) -> Result<HashSet<String>, EngineError> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Made {
            #[serde(rename = "ImageID")]
            image_id: String,
        }
        let found: Option<Vec<Made>> = self.get("/containers/json?all=true", "containers").await?;
        Ok(found.into_iter().flatten().map(|container| full_id(container.image_id)).collect())
    }

    pub(super) async fn container(&self, name: &str) -> Result<Option<Found>, EngineError> {
        self.get(&format!("/containers/{name}/json"), name).await
    }

    /// By any name that the engine knows it by.
    pub(super) async fn image(&self, name: &str) -> Result<Option<FoundImage>, EngineError> {
        self.get(&format!("/images/{name}/json"), name).await
    }

    pub(super) async fn network(&self, name: &str) -> Result<Option<FoundNetwork>, EngineError> {
        self.get(&format!("/networks/{name}"), name).await
    }

    /// The networks that bear these labels.
    pub(super) async fn networks(&self, labels: &[String]) -> Result<Vec<FoundNetwork>, EngineError> {
        Ok(self.get(&format!("/networks?{}", bearing(labels)), "networks").await?.unwrap_or_default())
    }

    /// Names of the images that bear these labels.
    pub(super) async fn images(&self, labels: &[String]) -> Result<Vec<String>, EngineError> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Tagged {
            repo_tags: Option<Vec<String>>,
        }
        let found: Option<Vec<Tagged>> = self.get(&format!("/images/json?{}", bearing(labels)), "images").await?;
        Ok(found.into_iter().flatten().filter_map(|image| image.repo_tags).flatten().collect())
    }

    pub(super) async fn has_volume(&self, name: &str) -> Result<bool, EngineError> {
        Ok(self.get::<Named>(&format!("/volumes/{name}"), name).await?.is_some())
    }

    /// Names of the volumes that bear these labels.
    pub(super) async fn volumes(&self, labels: &[String]) -> Result<Vec<String>, EngineError> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Volumes {
            volumes: Option<Vec<Named>>,
        }
        let found: Option<Volumes> = self.get(&format!("/volumes?{}", bearing(labels)), "volumes").await?;
        Ok(found.and_then(|found| found.volumes).into_iter().flatten().map(|volume| volume.name).collect())
    }

    /// Makes a network by Podman's own API: Docker's has no word for one that names no containers.
    pub(super) async fn make_podman_network(&self, name: &str, request: &Value) -> Result<(), EngineError> {
        let request = Request::post("/v4.0.0/libpod/networks/create")
            .header(HOST, "engine")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(request.to_string()));
        match self.ask(request, "create network", name).await? {
            // Somebody else was first.
            (StatusCode::CONFLICT, _) => Ok(()),
            (status, body) => self.succeeded(status, &body, "create network", name),
        }
    }

    /// A document of the API; `None` if there is none.
    async fn get<T: DeserializeOwned>(&self, path: &str, object: &str) -> Result<Option<T>, EngineError> {
        let version = self.api.client_version();
        let uri = format!("/v{}.{}{path}", version.major_version, version.minor_version);
        let request = Request::get(uri).header(HOST, "engine").body(Full::default());
        let (status, body) = self.ask(request, "look at", object).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.succeeded(status, &body, "look at", object)?;
        serde_json::from_slice(&body).map(Some).map_err(|source| EngineError::Malformed {
            what: object.to_owned(),
            wanted: "answer of the Docker API",
            source,
        })
    }

    async fn ask(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
        action: &'static str,
        object: &str,
    ) -> Result<(StatusCode, Bytes), EngineError> {
        let asked = async {
            let request = request?;
            let response = self.address.ask(request).await.map_err(std::io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(std::io::Error::other)?;
            Ok((status, body.to_bytes()))
        };
        let asked = tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(ApiError::RequestTimeoutError));
        asked.map_err(|error| self.failed(action, object, error))
    }

    fn succeeded(
        &self,
        status: StatusCode,
        body: &[u8],
        action: &'static str,
        object: &str,
    ) -> Result<(), EngineError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Refusal {
            message: String,
        }
        if status.is_success() {
            return Ok(());
        }
        let Refusal { message } = serde_json::from_slice(body).unwrap_or_default();
        let refused = ApiError::DockerResponseServerError { status_code: status.as_u16(), message };
        Err(self.failed(action, object, refused))
    }
}

/// A query for what bears these labels.
fn bearing(labels: &[String]) -> String {
    let filters = serde_json::json!({"label": labels}).to_string();
    format!("filters={}", url::form_urlencoded::byte_serialize(filters.as_bytes()).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podman_says_otherwise_is_read_all_the_same() {
        let podman = r#"{
            "State": {"Status": "stopped", "Running": false, "OOMKilled": false, "ExitCode": 137, "Dead": false},
            "Config": {"Labels": {"a": "b"}, "Entrypoint": null},
            "HostConfig": {"Memory": 0, "NanoCpus": 0, "PidsLimit": 1024, "RestartPolicy": {"Name": "", "MaximumRetryCount": 0}},
            "NetworkSettings": {"Ports": {"7337/tcp": [{"HostIp": "127.0.0.1", "HostPort": "4711"}], "80/tcp": null},
                "Networks": {"b": {}, "a": {"IPAddress": ""}}}
        }"#;
        let found: Found = serde_json::from_str(podman).unwrap();
        assert_eq!((found.state.status.as_str(), found.state.exit_code), ("stopped", 137));
        assert_eq!(found.network_settings.networks(), ["a", "b"]);
        assert_eq!(found.network_settings.ports.unwrap()["7337/tcp"].as_ref().unwrap()[0].host_port, "4711");
    }

    #[test]
    fn what_an_engine_can_do_is_read_as_it_spells_it() {
        let info: Info =
            serde_json::from_str(r#"{"MemoryLimit": true, "CpuCfsQuota": true, "PidsLimit": true}"#).unwrap();
        assert!(info.memory_limit && info.cpu_cfs_quota && info.pids_limit);
    }
}
