//! The relay of a namespace on an engine: one container through which its servers with an egress list reach what their lists
//! name, and through which they are reached.
//!
//! Each of these servers is on an *inner* network of its own, which leads nowhere. The relay is on all of them, and on one that
//! leads out. It is the relay of a cluster as it is: it knows no server, and what one may reach travels with each request as a
//! permit. So it is made once, and no server's list concerns it.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bollard::models::{EndpointIpamConfig, EndpointSettings, NetworkConnectRequest};
use bollard::query_parameters::{CreateContainerOptions, ImportImageOptions, UploadToContainerOptions};
use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http::header::HOST as HOST_HEADER;
use http_body_util::Full;
use mcp_hub_reconcile::image::NOBODY;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_supply::Platform;
use mcp_hub_supply::layout::{self, Image, Layer, Start};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::carry::Program;
use super::container::{Container, Mount, MountedFrom, has_ended, is_running, label, published};
use super::detect::EngineKind;
use super::engine::{Engine, EngineError, Facts};
use super::look::Found;
use super::{console, names};
use crate::wire::Address;

/// Name by which servers reach it.
pub(super) const HOST: &str = "mcp-hub-relay";
/// Port on which it listens, for servers and, published, for the way in.
pub(super) const PORT: u16 = 3128;
/// Connections from and to one server at a time, each way.
pub(super) const CONNECTIONS: usize = 512;
/// Role of a relay's container, in its label.
pub(super) const ROLE: &str = "relay";

const PROGRAM: &str = "/mcp-hub-relay";
const KEY_DIR: &str = "/run/mcp-hub-relay";
const KEY: &str = "key";
/// Its own limit of connections takes less.
const MEMORY: i64 = 512 << 20;
const PIDS: i64 = 64;
/// It listens within milliseconds.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// One that takes longer to refuse a request does not serve.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server's way through the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Way {
    /// The server's inner network.
    pub(super) network: String,
    pub(super) relay: Container,
}

/// The relays of an installation on one engine.
#[derive(Debug)]
pub(super) struct Relays {
    kind: EngineKind,
    installation: Installation,
    programs: Vec<Program>,
}

impl Relays {
    /// `programs`: one for each architecture.
    pub(super) fn new(kind: EngineKind, installation: Installation, programs: Vec<Program>) -> Self {
        Self { kind, installation, programs }
    }

    pub(super) fn installation(&self) -> &Installation {
        &self.installation
    }

    pub(super) fn program(&self, architecture: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.architecture == architecture)
    }

    pub(super) fn name(&self, namespace: &str) -> String {
        names::relay(self.installation.id(), self.kind.as_str(), namespace)
    }

    /// What a namespace's relay is; `None` if this program carries none for the engine's machine.
    pub(super) fn container(&self, namespace: &str, facts: &Facts) -> Option<Container> {
        let program = self.program(&facts.architecture)?;
        let words = ["--listen", &format!("0.0.0.0:{PORT}"), "--key", &format!("{KEY_DIR}/{KEY}")].map(str::to_owned);
        let bound = ["--connections-of-a-server".to_owned(), CONNECTIONS.to_string()];
        Some(Container {
            image: names::relay_image(self.installation.id(), &program.digest),
            command: std::iter::once(PROGRAM.to_owned()).chain(words).chain(bound).collect(),
            env: BTreeMap::new(),
            user: format!("{NOBODY}:{NOBODY}"),
            working_dir: None,
            read_only: true,
            // Filled before it starts; a read-only root takes no file.
            mounts: BTreeMap::from([(KEY_DIR.to_owned(), Mount { from: MountedFrom::Fresh, read_only: false })]),
            tmpfs: BTreeMap::new(),
            memory: facts.memory_limit.then_some(MEMORY),
            nano_cpus: None,
            pids: facts.pids_limit.then_some(PIDS),
            network: names::outer(self.installation.id(), namespace, facts.isolates_within_network()),
            enclosed: false,
            port: PORT,
            restarted_by_engine: false,
            running: true,
        })
    }

    /// The namespace's relay, if one is there with our mark.
    pub(super) async fn find(&self, engine: &Engine, namespace: &str) -> Result<Option<Found>, EngineError> {
        let found = engine.container(&self.name(namespace)).await?;
        Ok(found.filter(|found| self.is_ours(found)))
    }

    fn is_ours(&self, found: &Found) -> bool {
        let labels = found.config.labels.iter().flatten();
        let has = |name: &str, value: &str| labels.clone().any(|(own, found)| own == name && found == value);
        has(label::ROLE, ROLE)
            && has(label::INSTALLATION, self.installation.id())
            && has(label::ENGINE, self.kind.as_str())
    }

    fn labels(&self, namespace: &str, wanted: &Container) -> HashMap<String, String> {
        let body = serde_json::to_value(wanted).unwrap_or_default().to_string();
        let all = [
            (label::INSTALLATION, self.installation.id()),
            (label::ENGINE, self.kind.as_str()),
            (label::ROLE, ROLE),
            (label::NAMESPACE, namespace),
            (label::BODY, &body),
        ];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// The way of a server as it is; `None` if the relay is not on its network.
    pub(super) fn way(&self, relay: &Found, network: &str) -> Option<Value> {
        let is_there = relay.network_settings.networks().contains(&network);
        is_there.then(|| json!({"network": network, "relay": serde_json::to_value(now(relay)).unwrap_or_default()}))
    }

    /// Makes sure that the namespace's relay runs as it is wanted. Another one goes first.
    ///
    /// # Errors
    /// Besides the engine's: one that ended by itself is removed, and told once.
    pub(super) async fn bring(
        &self,
        engine: &Engine,
        namespace: &str,
        wanted: &Container,
    ) -> Result<Found, EngineError> {
        let name = self.name(namespace);
        if let Some(found) = engine.container(&name).await? {
            if !self.is_ours(&found) {
                return Err(EngineError::NameTaken { name });
            }
            let is_wanted = now(&found).as_ref() == Some(wanted);
            if is_wanted && answers(&found).await {
                return Ok(found);
            }
            let ended = has_ended(&found);
            let output = if ended { console::last_lines(engine, &name).await } else { String::new() };
            engine.discard(&name).await?;
            if ended {
                return Err(EngineError::RelayEnded { namespace: namespace.to_owned(), output });
            }
            if is_wanted {
                return Err(EngineError::RelayMute { namespace: namespace.to_owned() });
            }
        }
        self.load(engine, &wanted.image).await?;
        let request = wanted.request(self.labels(namespace, wanted), None);
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        let made = engine.api.create_container(Some(options), request).await;
        made.map_err(|error| engine.failed("create", &name, error))?;
        let started = async {
            self.give_key(engine, &name).await?;
            engine.api.start_container(&name, None).await.map_err(|error| engine.failed("start", &name, error))
        };
        if let Err(error) = started.await {
            // What stands in the way of that is no reason to hide this.
            engine.discard(&name).await.unwrap_or_default();
            return Err(error);
        }
        self.listening(engine, namespace).await
    }

    /// The image with nothing but the program, unless the engine has it: none that a stranger made is to run here.
    async fn load(&self, engine: &Engine, image: &str) -> Result<(), EngineError> {
        if engine.image(image).await?.is_some() {
            return Ok(());
        }
        let architecture = &engine.facts().architecture;
        let missing = || EngineError::NoRelay { architecture: architecture.clone() };
        let program = self.program(architecture).ok_or_else(missing)?.read()?.ok_or_else(missing)?;
        let labels = [(label::INSTALLATION.to_owned(), self.installation.id().to_owned())].into();
        let made = Image {
            platform: Platform::linux(architecture),
            layers: vec![Layer::default().file(PROGRAM, 0o755, program)],
            start: Start { entrypoint: vec![PROGRAM.to_owned()], labels, ..Start::default() },
        };
        let mut archive = Vec::new();
        layout::write(image, &[made], &mut archive)
            .map_err(|source| EngineError::File { path: image.into(), source })?;
        let mut steps =
            engine.api.import_image(ImportImageOptions::default(), bollard::body_full(archive.into()), None);
        while let Some(step) = steps.next().await {
            step.map_err(|error| engine.failed("load", image, error))?;
        }
        Ok(())
    }

    /// Into a volume of the container's own, which goes with it: neither its image, nor what the engine shows of it, nor its
    /// arguments hold the key.
    async fn give_key(&self, engine: &Engine, name: &str) -> Result<(), EngineError> {
        let key = self.installation.permit_key().to_hex();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o400);
        let owner = u64::try_from(NOBODY).unwrap_or_default();
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(key.expose_secret().len() as u64);
        header.set_mtime(0);
        let mut archive = tar::Builder::new(Vec::new());
        let written = archive
            .append_data(&mut header, KEY, key.expose_secret().as_bytes())
            .and_then(|()| archive.into_inner())
            .map_err(|source| EngineError::File { path: KEY.into(), source })?;
        let options = UploadToContainerOptions { path: KEY_DIR.to_owned(), ..Default::default() };
        let sent = engine.api.upload_to_container(name, Some(options), bollard::body_full(written.into())).await;
        sent.map_err(|error| engine.failed("fill", name, error))
    }

    /// The relay once it answers.
    async fn listening(&self, engine: &Engine, namespace: &str) -> Result<Found, EngineError> {
        let (name, started) = (self.name(namespace), Instant::now());
        loop {
            let found = engine.container(&name).await?;
            let Some(found) = found.filter(is_running) else {
                let output = console::last_lines(engine, &name).await;
                engine.discard(&name).await?;
                return Err(EngineError::RelayEnded { namespace: namespace.to_owned(), output });
            };
            if answers(&found).await {
                return Ok(found);
            }
            if started.elapsed() > START {
                // Left there it would be taken for one that serves.
                engine.discard(&name).await?;
                return Err(EngineError::RelayMute { namespace: namespace.to_owned() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Puts the relay on a server's inner network, unless it is there.
    pub(super) async fn join(
        &self,
        engine: &Engine,
        namespace: &str,
        relay: &Found,
        network: &str,
    ) -> Result<(), EngineError> {
        if relay.network_settings.networks().contains(&network) {
            return Ok(());
        }
        let name = self.name(namespace);
        let address = fixed_address(engine, network).await?;
        let request = NetworkConnectRequest {
            container: name.clone(),
            endpoint_config: Some(EndpointSettings {
                aliases: Some(vec![HOST.to_owned()]),
                ipam_config: address.map(|address| EndpointIpamConfig {
                    ipv4_address: Some(address.to_string()),
                    ..EndpointIpamConfig::default()
                }),
                ..EndpointSettings::default()
            }),
        };
        let joined = engine.api.connect_network(network, request).await;
        joined.map_err(|error| engine.failed("connect the relay to network", network, error))
    }
}

/// The relay's address on an inner network, where servers are told it when they are made: on Podman a network that names
/// containers looks up other names as well, which would be a way out. Docker looks names up for containers itself.
pub(super) async fn fixed_address(engine: &Engine, network: &str) -> Result<Option<Ipv4Addr>, EngineError> {
    if !engine.facts().is_podman {
        return Ok(None);
    }
    let last = engine.network(network).await?.and_then(|found| found.subnets().find_map(last_of));
    last.map(Some).ok_or_else(|| EngineError::NoSubnet { network: network.to_owned() })
}

/// The last address of an IPv4 network that a host may have.
fn last_of(subnet: &str) -> Option<Ipv4Addr> {
    let (first, bits) = subnet.split_once('/')?;
    let (first, bits): (Ipv4Addr, u32) = (first.parse().ok()?, bits.parse().ok()?);
    let hosts = u32::MAX.checked_shr(bits)?;
    (hosts > 2).then(|| Ipv4Addr::from_bits((first.to_bits() | hosts) - 1))
}

/// What a relay is now, its servers' networks apart; `None` if its mark was lost.
fn now(found: &Found) -> Option<Container> {
    let body = found.config.labels.as_ref()?.get(label::BODY)?;
    let wanted: Container = serde_json::from_str(body).ok()?;
    let networks = found.network_settings.networks();
    let outer: Vec<&str> = networks.into_iter().filter(|name| !names::is_inner(name)).collect();
    Some(Container { network: outer.join(","), ..wanted.now(found) })
}

/// Whether it listens. It refuses what is no request for a proxy, which is an answer.
pub(super) async fn answers(relay: &Found) -> bool {
    let Some(address) = door(relay) else { return false };
    let Ok(request) = Request::get("/").header(HOST_HEADER, HOST).body(Full::<Bytes>::default()) else { return false };
    tokio::time::timeout(PATIENCE, Address::Port(address).ask(request)).await.is_ok_and(|answer| answer.is_ok())
}

/// Where the way in begins; `None` while it does not run.
pub(super) fn door(relay: &Found) -> Option<SocketAddr> {
    published(relay, PORT).filter(|_| is_running(relay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_has_the_last_address_of_a_network() {
        for (subnet, last) in [
            ("10.89.0.0/24", Some([10, 89, 0, 254])),
            ("172.20.0.0/16", Some([172, 20, 255, 254])),
            ("10.1.2.8/29", Some([10, 1, 2, 14])),
            ("10.1.2.8/31", None),
            ("10.1.2.8/32", None),
            ("fd00::/64", None),
            ("10.1.2.8", None),
        ] {
            assert_eq!(last_of(subnet), last.map(Ipv4Addr::from), "{subnet}");
        }
    }
}
