//! A server's container: what it is asked to be, and what the engine says that it is, in one shape that can be compared.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};

use bollard::models::{
    ContainerCreateBody, HostConfig, Mount as ApiMount, MountBindOptions, MountType, MountVolumeOptions, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::detect::EngineKind;
use super::look::Found;

/// Labels that a container carries. Of one installation only what has its label is seen.
pub(super) mod label {
    pub(crate) const INSTALLATION: &str = "mcphub.io/installation";
    pub(crate) const NAMESPACE: &str = "mcphub.io/namespace";
    pub(crate) const NAME: &str = "mcphub.io/name";
    pub(crate) const UID: &str = "mcphub.io/uid";
    /// Which engine it was made for: one that goes by two names is two engines to us.
    pub(crate) const ENGINE: &str = "mcphub.io/engine";
    pub(crate) const DIGEST: &str = "mcphub.io/digest";
    /// The lowered body, for what an engine does not show.
    pub(crate) const BODY: &str = "mcphub.io/body";
    /// Marks what is no server's.
    pub(crate) const ROLE: &str = "mcphub.io/role";
}

/// Address at which published ports are reached.
const LOOPBACK: &str = "127.0.0.1";
const CAPABILITIES: &str = "ALL";
const NO_NEW_PRIVILEGES: &str = "no-new-privileges";
const NO_IPV6: &str = "net.ipv6.conf.all.disable_ipv6";

/// All that we set of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "a table of independent facts")]
pub(super) struct Container {
    /// Reference by digest, or the engine's own id of an image that no registry has.
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// Number or name, with or without a group.
    pub(super) user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) working_dir: Option<String>,
    /// Whether nothing but mounts can be written.
    pub(super) read_only: bool,
    /// By the path at which the server sees them.
    pub(super) mounts: BTreeMap<String, Mount>,
    /// Folders in memory: options by path.
    pub(super) tmpfs: BTreeMap<String, String>,
    /// Bytes, swap included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<i64>,
    /// Billionths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nano_cpus: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pids: Option<i64>,
    pub(super) network: String,
    /// Whether that network is an inner one, from which only the relay is reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) enclosed: bool,
    /// Its port; published on a free one of the loopback address unless it is enclosed.
    pub(super) port: u16,
    /// The engine restarts nothing: we do, and know why.
    pub(super) restarted_by_engine: bool,
    pub(super) running: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    #[serde(flatten)]
    pub(super) from: MountedFrom,
    pub(super) read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum MountedFrom {
    /// An absolute path of the machine.
    Host(String),
    /// A volume of the engine, by name.
    Volume(String),
    /// A new volume that goes with the container.
    Fresh,
}

impl Container {
    /// The request that makes it. `relay`: its address, if the engine does not look it up for an enclosed one.
    pub(super) fn request(&self, labels: HashMap<String, String>, relay: Option<Ipv4Addr>) -> ContainerCreateBody {
        let port = format!("{}/tcp", self.port);
        let binding = PortBinding { host_ip: Some(LOOPBACK.to_owned()), host_port: Some(String::new()) };
        let is_published = !self.enclosed;
        let host = HostConfig {
            network_mode: Some(self.network.clone()),
            port_bindings: is_published.then(|| HashMap::from([(port.clone(), Some(vec![binding]))])),
            // Nobody: whom an engine asks by itself carries any name outside.
            dns: self.enclosed.then(|| vec![LOOPBACK.to_owned()]),
            extra_hosts: relay.map(|address| vec![format!("{}:{address}", super::relay::HOST)]),
            // Docker leaves out what a network has not; elsewhere each interface has an address of its own link, by which
            // the machine would be reached.
            sysctls: relay.map(|_| HashMap::from([(NO_IPV6.to_owned(), "1".to_owned())])),
            mounts: Some(self.mounts.iter().map(|(path, mount)| mount.request(path)).collect()),
            tmpfs: Some(self.tmpfs.clone().into_iter().collect()),
            readonly_rootfs: Some(self.read_only),
            memory: self.memory,
            // What is swapped out counts too, or the limit would be none.
            memory_swap: self.memory,
            nano_cpus: self.nano_cpus,
            pids_limit: self.pids,
            cap_drop: Some(vec![CAPABILITIES.to_owned()]),
            security_opt: Some(vec![NO_NEW_PRIVILEGES.to_owned()]),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(self.image.clone()),
            // The whole command, so that nothing of the image's own is added to it.
            entrypoint: Some(self.command.clone()),
            cmd: Some(Vec::new()),
            env: Some(self.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            user: Some(self.user.clone()),
            working_dir: self.working_dir.clone(),
            exposed_ports: is_published.then(|| vec![port]),
            labels: Some(labels),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    /// The volume with the bridge.
    pub(super) fn bridge_volume(&self) -> Option<&str> {
        match &self.mounts.get(super::lower::BRIDGE_DIR)?.from {
            MountedFrom::Volume(name) => Some(name),
            MountedFrom::Host(_) | MountedFrom::Fresh => None,
        }
    }

    /// Volumes with the user's data.
    pub(super) fn data_volumes(&self) -> impl Iterator<Item = &str> {
        let others = self.mounts.iter().filter(|(path, _)| *path != super::lower::BRIDGE_DIR);
        others.filter_map(|(_, mount)| match &mount.from {
            MountedFrom::Volume(name) => Some(name.as_str()),
            MountedFrom::Host(_) | MountedFrom::Fresh => None,
        })
    }

    /// What a container that was made as `self` is now: an engine can change these of a container, and nothing else.
    pub(super) fn now(&self, found: &Found) -> Self {
        let host = &found.host_config;
        let limit = |number: Option<i64>| number.filter(|number| *number > 0);
        Self {
            memory: limit(host.memory),
            nano_cpus: limit(host.nano_cpus),
            pids: limit(host.pids_limit),
            // One that was attached to another network besides could be reached from there.
            network: found.network_settings.networks().join(","),
            restarted_by_engine: !matches!(host.restart_policy.name.as_str(), "" | "no"),
            running: is_running(found),
            ..self.clone()
        }
    }
}

/// Whether its processes run.
pub(super) fn is_running(found: &Found) -> bool {
    found.state.running && !found.state.paused
}

impl Mount {
    fn request(&self, path: &str) -> ApiMount {
        let mount = ApiMount { target: Some(path.to_owned()), read_only: Some(self.read_only), ..ApiMount::default() };
        match &self.from {
            MountedFrom::Host(folder) => ApiMount {
                typ: Some(MountType::BIND),
                source: Some(folder.clone()),
                // A folder that is not there is a mistake, and none that root should make.
                bind_options: Some(MountBindOptions { create_mountpoint: Some(false), ..MountBindOptions::default() }),
                ..mount
            },
            MountedFrom::Volume(name) => ApiMount {
                typ: Some(MountType::VOLUME),
                source: Some(name.clone()),
                volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
                ..mount
            },
            MountedFrom::Fresh => ApiMount { typ: Some(MountType::VOLUME), ..mount },
        }
    }
}

/// Whether it ran, and ended by itself.
pub(super) fn has_ended(found: &Found) -> bool {
    matches!(found.state.status.as_str(), "exited" | "stopped" | "dead")
}

/// Where a port of a running container is published.
pub(super) fn published(found: &Found, port: u16) -> Option<SocketAddr> {
    let bindings = found.network_settings.ports.as_ref()?.get(&format!("{port}/tcp"))?.as_ref()?;
    let port = bindings.iter().find_map(|binding| binding.host_port.parse().ok())?;
    Some((Ipv4Addr::LOCALHOST, port).into())
}

/// The labels of an owner's object.
pub(super) fn labels(engine: EngineKind, owner: &OwnerKey, object: &Object) -> HashMap<String, String> {
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    HashMap::from([
        text(label::INSTALLATION, &owner.installation),
        text(label::NAMESPACE, &owner.namespace),
        text(label::NAME, &owner.name),
        text(label::UID, &owner.uid),
        text(label::ENGINE, engine.as_str()),
        text(label::DIGEST, &object.digest),
        text(label::BODY, &object.body.to_string()),
    ])
}

/// Whose a thing with these labels is.
pub(super) fn owner(labels: &HashMap<String, String>) -> Option<OwnerKey> {
    let text = |name: &str| labels.get(name).cloned();
    Some(OwnerKey {
        installation: text(label::INSTALLATION)?,
        kind: OwnerKind::MCPServer,
        namespace: text(label::NAMESPACE)?,
        name: text(label::NAME)?,
        uid: text(label::UID)?,
    })
}

/// The body that a container was made with.
pub(super) fn body(labels: &HashMap<String, String>) -> Option<Value> {
    serde_json::from_str(labels.get(label::BODY)?).ok()
}
