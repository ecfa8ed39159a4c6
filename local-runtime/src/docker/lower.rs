//! What a server becomes on a container engine: nothing while it is paused, a preparation while its image is not known,
//! else one container with the bridge before the image's program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mcp_hub_crds::Quantity;
use mcp_hub_crds::server::{FilesystemPermission, NetworkPermissions, Resources, RunAs, Volume};
use mcp_hub_crds::source::{ImageSource, ResolvedImage, Source};
use mcp_hub_dataplane_api::launch::{Child, Drain, LAUNCH_ENV, LogPolicy};
use mcp_hub_reconcile::egress;
use mcp_hub_reconcile::image::{self, NOBODY};
use mcp_hub_reconcile::lower::{Change, Degraded, Lowered, Object, ObjectId, Stage, Unsupported};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};
use serde_json::json;

use super::carry::Bridges;
use super::container::{Container, Mount, MountedFrom};
use super::detect::EngineKind;
use super::engine::Facts;
use super::relay::{self, Relays, Way};
use super::{carry, names};
use crate::cluster_only;
use crate::host::Host;
use crate::secret_source;

/// Where the bridge lies in a container.
pub(super) const BRIDGE_DIR: &str = "/mcp-hub";
/// Its run folder.
const RUN_DIR: &str = "/run/mcp-hub";
const TMP_DIR: &str = "/tmp";
/// A browser with its helpers stays below; a fork bomb does not.
const PIDS: i64 = 1_024;
/// Files in memory that belong to whoever runs there.
const SCRATCH: &str = "rw,nosuid,nodev,mode=1777";
/// The engine keeps what the bridge writes to stderr.
const NO_LOG: LogPolicy = LogPolicy { max_bytes: 0, files: 0 };

/// Pure: what it says of machine and engine was read when the engine was found.
pub(super) fn lower(
    workload: &Workload,
    engine: EngineKind,
    facts: &Facts,
    host: &Host,
    bridges: &Bridges,
    relays: &Relays,
) -> Result<Lowered, Unsupported> {
    let engine = engine.as_str();
    let no = |field: &str, message: &str, hint: Option<&str>| Unsupported {
        runtime: engine.to_owned(),
        field: field.to_owned(),
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    };
    let Workload::Server(server) = workload else {
        return Err(no("MCPHub", "gateways are part of the daemon here", None));
    };
    // Destructured so that a new field does not compile until it is decided.
    let ServerWorkload {
        owner,
        source,
        source_digest,
        resolved,
        // Decided by the runtime set.
        runtime: _,
        base_dir,
        transport,
        args,
        working_dir,
        env,
        volumes,
        resources,
        run_as,
        replicas,
        at_rest,
        permissions,
        // Said to mean nothing here.
        pod_template: _,
        restarted_at,
        // One machine has one namespace of gateways: this process.
        expose_to: _,
        bridge,
        // Told to the bridge, see `ServerWorkload::launch`.
        era: _,
        sessions: _,
        roots: _,
        lifecycle: _,
        health: _,
        restart: _,
        timeouts: _,
        token_sha256: _,
    } = server.as_ref();

    let mut degraded = cluster_only::fields(server);
    if let Some(why) = server.unforwardable_roots() {
        return Err(no("spec.roots", why, None));
    }
    if *replicas > 1 {
        return Err(no("spec.replicas", "one machine runs one container of a server", None));
    }
    let Source::Image(from) = source else {
        let hint = Some("leave spec.runtime out, or set it to process");
        return Err(no(&format!("spec.source.{}", source.kind()), "only images run in containers", hint));
    };
    let ImageSource { r#ref, command: _, pull_secret_ref, pin_digest, verify: _ } = from;
    let network = permissions.as_ref().and_then(|permissions| permissions.network.as_ref());
    let list = network.and_then(|NetworkPermissions { egress }| egress.as_deref());
    let egress = list.map(|list| Egress::of(engine, owner, list, facts, relays)).transpose()?;
    degraded.extend(egress.iter().flat_map(|egress| &egress.unreachable).map(|entry| Degraded {
        field: egress::FIELD.to_owned(),
        message: format!("{entry} leads nowhere: the networks that engines make by themselves have no IPv6"),
    }));
    if !facts.pids_limit {
        degraded.push(Degraded {
            field: "spec.resources".to_owned(),
            message: format!("{} cannot bound the number of processes on this machine", facts.product),
        });
    }
    let limits = Limited::of(resources.as_ref(), facts).map_err(|field| {
        let hint = "leave it out, or use an engine that runs as root or a machine with cgroup v2";
        no(field, &format!("{} cannot limit it on this machine", facts.product), Some(hint))
    })?;
    let mut tmpfs =
        BTreeMap::from([(RUN_DIR.to_owned(), SCRATCH.to_owned()), (TMP_DIR.to_owned(), SCRATCH.to_owned())]);
    let mut mounts = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for volume in volumes {
        let refused =
            |(what, message, hint): Refusal| no(&format!("spec.volumes[{}]{what}", volume.name), &message, hint);
        let path = clean(&volume.mount_path).map_err(refused)?;
        if !taken.insert(path.clone()) {
            return Err(refused((".mountPath", format!("another volume is at {path} already"), None)));
        }
        match mounted(volume, owner, host, Path::new(base_dir), facts).map_err(refused)? {
            Place::Memory(options) => {
                tmpfs.insert(path, options);
            }
            Place::Mount(mount) => {
                tmpfs.remove(&path);
                mounts.insert(path, mount);
            }
        }
    }
    if *replicas == 0 || *at_rest {
        return Ok(Lowered { objects: Vec::new(), degraded });
    }
    let known = resolved.as_ref().and_then(|resolved| resolved.image.as_ref());
    // An id is one engine's: on another the image is looked for anew.
    let own = format!("{engine}:");
    let Some((facts_of_image, id)) = known.and_then(|image| Some((image, image.id.as_ref()?.strip_prefix(&*own)?)))
    else {
        let body = json!({
            "source": serde_json::to_value(source).unwrap_or_default(),
            "sourceDigest": source_digest,
            // A requested restart looks again for what was not found.
            "restartedAt": restarted_at,
        });
        let id = ObjectId::new(format!("{engine} image"), &owner.name);
        return Ok(Lowered { objects: vec![Object::new(id, Stage::Prepare, Change::InPlace, body)], degraded });
    };
    let (program, arguments) = image::program(engine, from, Some(facts_of_image), args)?;
    let (user, homeless) = identity(run_as.as_ref(), facts_of_image);
    let (mut plain, secrets) = secret_source::split(env);
    if plain.contains_key(LAUNCH_ENV) || secrets.contains_key(LAUNCH_ENV) {
        return Err(no("spec.env", &format!("{LAUNCH_ENV} is the bridge's own variable"), None));
    }
    let names = || plain.keys().chain(secrets.keys());
    let proxies = egress.iter().flat_map(|egress| &egress.env);
    if proxies.clone().next().is_some()
        && let Some(name) = names().find(|name| egress::claims(name))
    {
        let message = format!("{name} leads to the relay, because of spec.permissions.network.egress");
        return Err(no("spec.env", &message, Some("leave it out")));
    }
    let proxies: Vec<_> = proxies.filter(|(name, _)| !names().any(|own| own == name)).collect();
    plain.extend(proxies.into_iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    if homeless && !secrets.contains_key("HOME") {
        plain.entry("HOME".to_owned()).or_insert_with(|| TMP_DIR.to_owned());
    }
    let Some(bridge) = bridges.choose(bridge.as_deref(), &facts.architecture) else {
        let message = format!("this program carries no bridge for {}", facts.architecture);
        return Err(no("spec.source.image", &message, Some("use a release, or build one with `cargo xtask dist`")));
    };
    let port = image::bridge_port(transport);
    let launch = server.launch(
        Child::of_container(program, arguments, secrets.keys().cloned().collect()),
        ([0, 0, 0, 0], port).into(),
        NO_LOG,
        Drain::default(),
    );
    plain.insert(LAUNCH_ENV.to_owned(), serde_json::to_string(&launch).unwrap_or_default());
    mounts.insert(
        BRIDGE_DIR.to_owned(),
        Mount { from: MountedFrom::Volume(names::bridge_volume(&owner.installation, &bridge.digest)), read_only: true },
    );
    let unrestricted =
        permissions.as_ref().and_then(|permissions| permissions.filesystem) == Some(FilesystemPermission::Unrestricted);
    let container = Container {
        image: if *pin_digest == Some(false) { r#ref.clone() } else { id.to_owned() },
        command: vec![format!("{BRIDGE_DIR}/{}", carry::PROGRAM), "pod".to_owned(), RUN_DIR.to_owned()],
        env: plain,
        user,
        working_dir: working_dir.clone(),
        read_only: !unrestricted,
        mounts,
        tmpfs,
        memory: limits.memory,
        nano_cpus: limits.nano_cpus,
        pids: facts.pids_limit.then_some(PIDS),
        network: match &egress {
            Some(egress) => egress.way.network.clone(),
            None => names::network(owner, facts.isolates_within_network()),
        },
        enclosed: egress.is_some(),
        port,
        restarted_by_engine: false,
        running: true,
    };
    let body = json!({
        "container": serde_json::to_value(container).unwrap_or_default(),
        // To fetch it again, should somebody remove it.
        "image": {
            "ref": r#ref,
            "index": facts_of_image.index,
            "id": id,
            "pullSecret": pull_secret_ref.as_ref().map(|secret| &secret.name),
        },
        "secrets": secrets,
        "restartedAt": restarted_at,
    });
    let mut objects = vec![Object::new(container_id(engine, owner), Stage::Workload, Change::Recreate, body)];
    // An object of its own, so that a relay that is made anew leaves the server as it is.
    objects.extend(egress.map(|Egress { way, .. }| {
        let body = serde_json::to_value(way).unwrap_or_default();
        Object::new(way_id(engine, owner), Stage::Network, Change::InPlace, body)
    }));
    Ok(Lowered { objects, degraded })
}

/// What an egress list becomes.
struct Egress {
    way: Way,
    /// Variables by which the server's program finds the relay; none if it may reach nothing.
    env: Vec<(&'static str, String)>,
    /// Entries that the relay does not get to.
    unreachable: Vec<String>,
}

impl Egress {
    fn of(
        engine: &str,
        owner: &OwnerKey,
        list: &[String],
        facts: &Facts,
        relays: &Relays,
    ) -> Result<Self, Unsupported> {
        let targets = egress::targets(engine, list)?;
        let relay = relays.container(&owner.namespace, facts).ok_or_else(|| Unsupported {
            runtime: engine.to_owned(),
            field: egress::FIELD.to_owned(),
            message: format!("this program carries no relay for {}", facts.architecture),
            hint: Some("use a release, or build one with `cargo xtask dist`".to_owned()),
        })?;
        let place = format!("{}:{}", relay::HOST, relay::PORT);
        let key = relays.installation().permit_key();
        let is_v6 = |entry: &String| entry.starts_with('[');
        let unreachable = targets.iter().map(ToString::to_string).filter(is_v6).collect();
        let env = match targets.is_empty() {
            true => Vec::new(),
            // Nothing is reached directly: addresses of the list are the relay's to connect to as well.
            false => egress::variables(engine, owner, targets, &key, &place, [])?,
        };
        Ok(Self { way: Way { network: names::inner(owner), relay }, env, unreachable })
    }
}

/// The way through the relay, of a kind of its own for each engine as well.
pub(super) fn way_id(engine: &str, owner: &OwnerKey) -> ObjectId {
    ObjectId::new(format!("{engine} way"), &owner.name)
}

/// Each engine's containers are of a kind of their own, so that a server that moves from one to another leaves the first.
pub(super) fn container_id(engine: &str, owner: &OwnerKey) -> ObjectId {
    ObjectId::new(format!("{engine} container"), &owner.name)
}

struct Limited {
    /// Bytes.
    memory: Option<i64>,
    /// Billionths of a processor.
    nano_cpus: Option<i64>,
}

impl Limited {
    /// The limits that are wanted, or the field that this engine cannot limit.
    fn of(resources: Option<&Resources>, facts: &Facts) -> Result<Self, &'static str> {
        let wanted = resources.and_then(|resources| resources.limits.as_ref());
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        // None is what engines take for no limit.
        let some = |number: &i64| *number > 0;
        let memory = wanted.and_then(|limits| limits.memory.as_ref()).map(Quantity::units).map(number).filter(some);
        let cpu = wanted.and_then(|limits| limits.cpu.as_ref()).map(Quantity::millis).map(number).filter(some);
        match (memory, cpu) {
            (Some(_), _) if !facts.memory_limit => Err("spec.resources.limits.memory"),
            (_, Some(_)) if !facts.cpu_limit => Err("spec.resources.limits.cpu"),
            (memory, cpu) => Ok(Self { memory, nano_cpus: cpu.map(|millis| millis.saturating_mul(1_000_000)) }),
        }
    }
}

/// The user of the spec, else the image's unless that is root, else nobody. With it whether it is another than the image
/// was made for, whose home it may not write.
fn identity(run_as: Option<&RunAs>, image: &ResolvedImage) -> (String, bool) {
    let group = |user: i64| run_as.and_then(|run_as| run_as.group).unwrap_or(user);
    if let Some(user) = run_as.and_then(|run_as| run_as.user) {
        return (format!("{user}:{}", group(user)), true);
    }
    let named = image.user.as_deref().unwrap_or_default();
    let (user, _) = named.split_once(':').unwrap_or((named, ""));
    match (user, run_as.and_then(|run_as| run_as.group)) {
        ("" | "root" | "0", _) => (format!("{NOBODY}:{}", group(NOBODY)), true),
        (user, Some(group)) => (format!("{user}:{group}"), false),
        (_, None) => (named.to_owned(), false),
    }
}

enum Place {
    Memory(String),
    Mount(Mount),
}

type Refusal = (&'static str, String, Option<&'static str>);

/// A path in a container as the engine reads it, so that none is there twice under two names.
fn clean(path: &str) -> Result<String, Refusal> {
    if !path.starts_with('/') {
        let message = "a container has no folder that this could be relative to".to_owned();
        return Err((".mountPath", message, Some("begin it with /")));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err((".mountPath", "it has to be a folder below /, named without `..`".to_owned(), None));
    }
    let path = format!("/{}", parts.join("/"));
    for own in [BRIDGE_DIR, RUN_DIR] {
        if own == path || Path::new(&path).starts_with(own) || Path::new(own).starts_with(&path) {
            return Err((".mountPath", format!("{own} is the bridge's own"), None));
        }
    }
    Ok(path)
}

/// Whoever has an engine's socket has the machine.
fn holds_an_engine(path: &Path, facts: &Facts, host: &Host) -> bool {
    let own = facts.address.strip_prefix("unix://").map(PathBuf::from);
    let usual = ["docker.sock", "podman/podman.sock", "vessel/docker.sock"];
    let folders = ["/run".to_owned(), "/var/run".to_owned(), format!("/run/user/{}", host.uid)];
    let mut sockets = folders.iter().flat_map(|folder| usual.map(|socket| Path::new(folder).join(socket))).chain(own);
    sockets.any(|socket| socket.starts_with(path))
}

fn mounted(volume: &Volume, owner: &OwnerKey, host: &Host, base: &Path, facts: &Facts) -> Result<Place, Refusal> {
    // Its path was looked at.
    let Volume { name: _, mount_path: _, read_only, host_path, empty_dir, pvc, config_map } = volume;
    let read_only = read_only.unwrap_or(false);
    if config_map.is_some() {
        return Err((".configMap", "a machine has no ConfigMaps".to_owned(), Some("use hostPath")));
    }
    let from = match (host_path, pvc) {
        (Some(path), _) => {
            let path = host.absolute(base, path);
            if holds_an_engine(&path, facts, host) {
                let message =
                    "it holds the socket of a container engine, which is all rights on the machine".to_owned();
                return Err((".hostPath", message, Some("mount the folder that the server needs")));
            }
            MountedFrom::Host(path.to_string_lossy().into_owned())
        }
        (None, Some(claim)) => MountedFrom::Volume(names::data_volume(&owner.installation, &owner.namespace, claim)),
        (None, None) => {
            let limit = empty_dir.as_ref().and_then(|folder| folder.size_limit.as_ref()).map(Quantity::units);
            let size = limit.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
            let mode = if read_only { SCRATCH.replacen("rw", "ro", 1) } else { SCRATCH.to_owned() };
            return Ok(Place::Memory(format!("{mode}{size}")));
        }
    };
    Ok(Place::Mount(Mount { from, read_only }))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mcp_hub_crds::MCPServer;
    use mcp_hub_reconcile::installation::Installation;
    use serde_json::Value;

    use super::*;
    use crate::docker::{Program, ProgramImage};

    fn program(digest: &str) -> Program {
        Program {
            architecture: "amd64".to_owned(),
            digest: digest.repeat(carry::DIGITS),
            image: ProgramImage::Kept(PathBuf::from("/nowhere")),
        }
    }

    /// What a server with more in its spec becomes on Docker, beside a relay of this digest.
    fn lowered(more: &Value, relay: &str) -> Result<Lowered, Unsupported> {
        let mut spec = json!({"source": {"image": {"ref": "localhost/units:1"}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut server = MCPServer::new("github", serde_json::from_value(spec).unwrap());
        server.metadata.namespace = Some("team".to_owned());
        server.metadata.uid = Some("uid".to_owned());
        let installation = Installation::new("i", [7; 32]);
        let mut workload = ServerWorkload::of(&server, &installation, &BTreeMap::new()).unwrap();
        let image = json!({"index": "", "id": "docker:sha256:1", "entrypoint": ["/server"]});
        workload.resolved = Some(serde_json::from_value(json!({"sourceDigest": "", "image": image})).unwrap());
        let facts = Facts { architecture: "amd64".to_owned(), pids_limit: true, ..Facts::default() };
        let host = Host::of_this_process();
        let bridges = Bridges::new(vec![program("a")], PathBuf::from("/nowhere"));
        let relays = Relays::new(EngineKind::Docker, installation, vec![program(relay)]);
        let workload = Workload::Server(Box::new(workload));
        super::lower(&workload, EngineKind::Docker, &facts, &host, &bridges, &relays)
    }

    fn with_list(list: &[&str]) -> Value {
        json!({"permissions": {"network": {"egress": list}}})
    }

    fn env(lowered: &Lowered) -> Value {
        lowered.objects[0].body["container"]["env"].clone()
    }

    #[test]
    fn a_list_is_the_containers_and_the_relay_is_nobodys() {
        let one = lowered(&with_list(&["api.example.com:443"]), "b").unwrap();
        assert_eq!(one.objects.len(), 2);
        let (container, way) = (&one.objects[0], &one.objects[1]);
        assert_eq!(container.body["container"]["network"], way.body["network"]);
        assert!(env(&one)["HTTPS_PROXY"].as_str().unwrap().ends_with("@mcp-hub-relay:3128"));
        // As it is written into labels and read back.
        let read: Way = serde_json::from_value(way.body.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), way.body);

        let another = lowered(&with_list(&["api.example.com:80"]), "b").unwrap();
        assert_eq!(another.objects[1], *way, "a list is nothing to the relay");
        assert_ne!(another.objects[0].digest, container.digest);
        let newer = lowered(&with_list(&["api.example.com:443"]), "c").unwrap();
        assert_eq!(newer.objects[0], *container, "a new relay is nothing to servers");
        assert_ne!(newer.objects[1].digest, way.digest);
    }

    #[test]
    fn an_empty_list_is_a_network_without_a_permit_and_no_list_is_neither() {
        let nothing = lowered(&with_list(&[]), "b").unwrap();
        assert_eq!(nothing.objects.len(), 2);
        assert_eq!(env(&nothing).get("HTTP_PROXY"), None);
        let free = lowered(&json!({}), "b").unwrap();
        assert_eq!(free.objects.len(), 1);
        assert_eq!(free.objects[0].body["container"].get("enclosed"), None, "earlier containers are as they were");
    }

    #[test]
    fn what_a_list_does_not_take_is_refused_by_name_or_said() {
        let refused = lowered(&with_list(&["a.example.com"]), "b").unwrap_err();
        assert_eq!(refused.field, "spec.permissions.network.egress[0]");
        let mut own = with_list(&["a.example.com:1"]);
        own["env"] = json!([{"name": "no_proxy", "value": "*"}]);
        assert_eq!(lowered(&own, "b").unwrap_err().field, "spec.env");
        own["env"] = json!([{"name": "NODE_USE_ENV_PROXY", "value": "0"}]);
        assert_eq!(env(&lowered(&own, "b").unwrap())["NODE_USE_ENV_PROXY"], "0");
        let v6 = lowered(&with_list(&["[2001:db8::1]:443"]), "b").unwrap();
        assert!(v6.degraded[0].message.starts_with("[2001:db8::1]:443 leads nowhere"), "{:?}", v6.degraded);
    }
}
