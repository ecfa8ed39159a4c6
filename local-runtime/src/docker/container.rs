//! A server's container: what it is asked to be, and what the engine says that it is, in one shape that can be compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, Mount as ApiMount, MountBindOptions, MountPoint,
    MountType, MountVolumeOptions, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Labels that a container carries. Of one installation only what has its label is seen.
pub(super) mod label {
    pub(crate) const INSTALLATION: &str = "mcphub.io/installation";
    pub(crate) const NAMESPACE: &str = "mcphub.io/namespace";
    pub(crate) const NAME: &str = "mcphub.io/name";
    pub(crate) const UID: &str = "mcphub.io/uid";
    pub(crate) const DIGEST: &str = "mcphub.io/digest";
    /// The lowered body, for what an engine does not show.
    pub(crate) const BODY: &str = "mcphub.io/body";
}

/// Address at which published ports are reached.
const LOOPBACK: &str = "127.0.0.1";
/// Beginning of an image's id.
const ID: &str = "sha256:";
const CAPABILITIES: &str = "ALL";
/// What Podman gives a container that asks for nothing; Docker gives some more.
const GIVEN: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const NO_NEW_PRIVILEGES: &str = "no-new-privileges";
/// Names of other namespaces than a container's own.
const SHARED: &[&str] = &["host", "container:", "ns:"];

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
    /// The bridge's port in the container; published on a free one of the loopback address.
    pub(super) port: u16,
    /// No capability, none to be had, no namespace of the machine or of another container.
    pub(super) confined: bool,
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
}

impl Container {
    /// The request that makes it.
    pub(super) fn request(&self, labels: HashMap<String, String>) -> ContainerCreateBody {
        let port = format!("{}/tcp", self.port);
        let binding = PortBinding { host_ip: Some(LOOPBACK.to_owned()), host_port: Some(String::new()) };
        let host = HostConfig {
            network_mode: Some(self.network.clone()),
            port_bindings: Some(HashMap::from([(port.clone(), Some(vec![binding]))])),
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
            exposed_ports: Some(vec![port]),
            labels: Some(labels),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    /// The volume with the bridge.
    pub(super) fn bridge_volume(&self) -> Option<&str> {
        match &self.mounts.get(super::lower::BRIDGE_DIR)?.from {
            MountedFrom::Volume(name) => Some(name),
            MountedFrom::Host(_) => None,
        }
    }

    /// What the engine shows of a container, where `wanted` says what to look for.
    pub(super) fn shown(found: &ContainerInspectResponse, wanted: &Self) -> Self {
        let config = found.config.clone().unwrap_or_default();
        let host = found.host_config.clone().unwrap_or_default();
        let env = config.env.unwrap_or_default();
        // Of the image's variables nothing was asked.
        let env = env.iter().filter_map(|variable| variable.split_once('='));
        let env = env.filter(|(name, _)| wanted.env.contains_key(*name));
        let limit = |number: Option<i64>| number.filter(|number| *number > 0);
        // Docker shows what it was asked for, which on a desktop is not what the machine behind it mounts; Podman only that.
        let mounts: BTreeMap<String, Mount> = match &host.mounts {
            Some(mounts) => mounts.iter().filter_map(Mount::shown).collect(),
            None => found.mounts.iter().flatten().filter_map(Mount::mounted).collect(),
        };
        let networks = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        let mut networks: Vec<&str> = networks.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        networks.sort_unstable();
        let policy = host.restart_policy.as_ref().and_then(|policy| policy.name);
        let state = found.state.clone().unwrap_or_default();
        Self {
            // By what it was asked for: a tag may mean another image by now.
            image: if wanted.image.starts_with(ID) { id_of(found) } else { config.image.unwrap_or_default() },
            command: config.entrypoint.unwrap_or_default(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            user: config.user.unwrap_or_default(),
            working_dir: config.working_dir.filter(|_| wanted.working_dir.is_some()),
            read_only: host.readonly_rootfs.unwrap_or(false),
            mounts,
            tmpfs: wanted.tmpfs.iter().filter_map(|(path, options)| shown_tmpfs(&host, path, options)).collect(),
            memory: limit(host.memory),
            nano_cpus: limit(host.nano_cpus),
            pids: limit(host.pids_limit),
            // One that was attached to another network besides could be reached from there.
            network: networks.join(","),
            port: if only_port(&host) == Some(wanted.port) { wanted.port } else { 0 },
            confined: is_confined(&host),
            restarted_by_engine: !matches!(
                policy,
                None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO)
            ),
            running: state.running.unwrap_or(false) && !state.paused.unwrap_or(false),
        }
    }
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
        }
    }

    fn mounted(point: &MountPoint) -> Option<(String, Self)> {
        let from = match point.typ.as_deref()? {
            "bind" => MountedFrom::Host(point.source.clone()?),
            "volume" => MountedFrom::Volume(point.name.clone()?),
            _ => return None,
        };
        Some((point.destination.clone()?, Self { from, read_only: !point.rw.unwrap_or(true) }))
    }

    fn shown(mount: &ApiMount) -> Option<(String, Self)> {
        let source = mount.source.clone().unwrap_or_default();
        let from = match mount.typ? {
            MountType::BIND => MountedFrom::Host(source),
            MountType::VOLUME => MountedFrom::Volume(source),
            _ => return None,
        };
        Some((mount.target.clone()?, Self { from, read_only: mount.read_only.unwrap_or(false) }))
    }
}

/// A folder in memory as it was asked for, if that is what it is. Podman adds options, and folders of its own.
fn shown_tmpfs(host: &HostConfig, path: &str, wanted: &str) -> Option<(String, String)> {
    let found = host.tmpfs.as_ref()?.get(path)?;
    let own = |option: &&str| !matches!(*option, "rprivate" | "tmpcopyup");
    let set = |options: &str| options.split(',').filter(own).map(str::to_owned).collect::<BTreeSet<_>>();
    let same = set(found) == set(wanted);
    Some((path.to_owned(), if same { wanted.to_owned() } else { found.clone() }))
}

/// The one port that is published, if it is so on the loopback address only.
fn only_port(host: &HostConfig) -> Option<u16> {
    let ports = host.port_bindings.as_ref()?;
    let mut ports = ports.iter().filter(|(_, bindings)| bindings.as_ref().is_some_and(|all| !all.is_empty()));
    let (Some((name, Some(bindings))), None) = (ports.next(), ports.next()) else { return None };
    let local = bindings.iter().all(|binding| binding.host_ip.as_deref() == Some(LOOPBACK));
    if local { name.strip_suffix("/tcp")?.parse().ok() } else { None }
}

fn is_confined(host: &HostConfig) -> bool {
    let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    let own =
        |mode: &Option<String>| mode.as_ref().is_none_or(|mode| !SHARED.iter().any(|shared| mode.starts_with(shared)));
    let dropped: BTreeSet<&str> =
        host.cap_drop.iter().flatten().map(|name| name.strip_prefix("CAP_").unwrap_or(name)).collect();
    // Podman names what `ALL` took away.
    let drops = dropped.contains(CAPABILITIES) || GIVEN.iter().all(|name| dropped.contains(name));
    let options = host.security_opt.iter().flatten();
    let keeps = options.clone().any(|option| option.starts_with(NO_NEW_PRIVILEGES) && !option.ends_with("false"));
    let unconfined = options.clone().any(|option| option.ends_with("unconfined") || option.ends_with("disable"));
    drops
        && keeps
        && !unconfined
        && !host.privileged.unwrap_or(false)
        && none(&host.cap_add)
        && host.devices.as_ref().is_none_or(Vec::is_empty)
        && [&host.pid_mode, &host.ipc_mode, &host.uts_mode, &host.network_mode, &host.userns_mode].into_iter().all(own)
}

/// Podman leaves the algorithm out.
fn id_of(found: &ContainerInspectResponse) -> String {
    let id = found.image.clone().unwrap_or_default();
    if id.starts_with(ID) { id } else { format!("{ID}{id}") }
}

/// The published port of a running container.
pub(super) fn published(found: &ContainerInspectResponse, port: u16) -> Option<u16> {
    let ports = found.network_settings.as_ref()?.ports.as_ref()?;
    let bindings = ports.get(&format!("{port}/tcp"))?.as_ref()?;
    bindings.iter().find_map(|binding| binding.host_port.as_ref()?.parse().ok())
}

/// The labels of an owner's object.
pub(super) fn labels(owner: &OwnerKey, object: &Object) -> HashMap<String, String> {
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    HashMap::from([
        text(label::INSTALLATION, &owner.installation),
        text(label::NAMESPACE, &owner.namespace),
        text(label::NAME, &owner.name),
        text(label::UID, &owner.uid),
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
