//! What a server becomes as a process: nothing while it is paused, a preparation while its source is not resolved, else
//! one bridge.

use std::path::Path;

use mcp_hub_crds::Quantity;
use mcp_hub_crds::server::{FilesystemPermission, NetworkPermissions, Permissions, Resources, Volume};
use mcp_hub_crds::source::{Resolved, Source};
use mcp_hub_dataplane_api::launch::{Cgroup, Child, Drain, FilesystemAccess, LaunchSpec, Limits, LogPolicy};
use mcp_hub_reconcile::lower::{Change, Degraded, Lowered, Object, ObjectId, Stage, Unsupported};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};
use serde_json::{Value, json};

use super::NAME;
use super::folder::RunFolder;
use crate::cluster_only;
use crate::host::Host;
use crate::secret_source;

pub(super) const BRIDGE_STAGE: Stage = Stage::Workload;
/// Rotated at this size, three old files kept: 40 MiB a server at most.
const LOG: LogPolicy = LogPolicy { max_bytes: 10 << 20, files: 3 };
/// What every program needs to read to start: libraries, interpreters' shared files, name resolution, devices.
const SYSTEM: &[&str] =
    &["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys/devices/system/cpu", "/run/systemd/resolve"];
/// Written by programs that mean no file at all.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/tty"];

pub(super) fn bridge_id(owner: &OwnerKey) -> ObjectId {
    ObjectId::new("bridge", &owner.name)
}

/// Pure: what it says of the machine was read when the daemon started.
pub(super) fn lower(workload: &Workload, host: &Host, run_dir: &Path) -> Result<Lowered, Unsupported> {
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
        // The run folder pins it.
        bridge: _,
        // Told to the bridge, see `ServerWorkload::launch`.
        transport: _,
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
    let limits = limits_of(resources.as_ref(), host, RunFolder::of(run_dir, owner).name(), &mut degraded);
    if let Some(why) = server.unforwardable_roots() {
        return Err(no("spec.roots", why, None));
    }
    if let Some(run_as) = run_as {
        let other = |wanted: Option<i64>, own: u32| wanted.is_some_and(|wanted| wanted != i64::from(own));
        if other(run_as.user, host.uid) || other(run_as.group, host.gid) {
            return Err(no(
                "spec.runAs",
                "a process runs as the user of the daemon",
                Some("leave it out, or use an image"),
            ));
        }
    }
    if *replicas > 1 {
        return Err(no("spec.replicas", "one machine runs one copy of a process", None));
    }
    let writable = volumes_of(volumes, host, Path::new(base_dir), permissions.as_ref())?;
    let filesystem = filesystem_of(permissions.as_ref(), host, &writable, resolved.as_ref(), run_dir, owner)?;

    if *replicas == 0 || *at_rest {
        return Ok(Lowered { objects: Vec::new(), degraded });
    }
    let resolved = match (source, resolved) {
        (Source::Package(_) | Source::Command(_), Some(resolved)) => resolved,
        (Source::Package(_) | Source::Command(_), None) => {
            let body = json!({
                "source": serde_json::to_value(source).unwrap_or_default(),
                "sourceDigest": source_digest,
                "baseDir": base_dir,
                // A requested restart looks again for what was not found.
                "restartedAt": restarted_at,
            });
            let id = ObjectId::new("source", &owner.name);
            return Ok(Lowered { objects: vec![Object::new(id, Stage::Prepare, Change::InPlace, body)], degraded });
        }
        (Source::Image(_), _) => {
            return Err(no("spec.source.image", "an image cannot run as a process", Some("use a container engine")));
        }
        (Source::Remote(_), _) => return Err(no("spec.source.remote", "a remote server runs elsewhere", None)),
    };

    let mut command = resolved.command.clone().unwrap_or_default().into_iter();
    let Some(program) = command.next() else {
        return Err(no("spec.source", "resolving it found no program", None));
    };
    let mut plain = host.env.clone();
    plain.extend(resolved.env.clone().unwrap_or_default());
    if filesystem.is_some() {
        plain.insert("TMPDIR".to_owned(), RunFolder::of(run_dir, owner).temporary().to_string_lossy().into_owned());
    }
    let (own, secrets) = secret_source::split(env);
    plain.extend(own);
    plain.retain(|name, _| !secrets.contains_key(name));
    let start = if base_dir.is_empty() { &host.home } else { Path::new(base_dir) };
    let working_dir = working_dir.as_ref().map_or_else(|| start.to_owned(), |path| host.absolute(start, path));
    let launch = server.launch(
        Child {
            program,
            args: command.chain(args.iter().cloned()).collect(),
            working_dir: working_dir.to_string_lossy().into_owned(),
            inherit_env: false,
            env: plain,
            secret_env: secrets.keys().cloned().collect(),
            limits,
            filesystem,
        },
        ([127, 0, 0, 1], 0).into(),
        LOG,
        Drain::default(),
    );
    let mut launch = serde_json::to_value(launch).unwrap_or_default();
    if let Some(launch) = launch.as_object_mut() {
        // It is the object's own digest, so it cannot be part of what is hashed.
        launch.remove("digest");
    }
    let body = json!({"launch": launch, "secrets": secrets, "restartedAt": restarted_at});
    let bridge = Object::new(bridge_id(owner), BRIDGE_STAGE, Change::Recreate, body);
    Ok(Lowered { objects: vec![bridge], degraded })
}

/// The launch specification of a lowered bridge, with its digest.
pub(super) fn launch(object: &Object) -> Result<LaunchSpec, serde_json::Error> {
    let mut launch = object.body["launch"].clone();
    launch["digest"] = Value::from(object.digest.clone());
    serde_json::from_value(launch)
}

/// A control group limits all processes of a server together. Without one there is a limit of memory for each of them,
/// and none of processor time.
fn limits_of(resources: Option<&Resources>, host: &Host, group: &str, degraded: &mut Vec<Degraded>) -> Limits {
    let wanted = resources.and_then(|resources| resources.limits.as_ref());
    let memory = wanted.and_then(|limits| limits.memory.as_ref()).map(Quantity::units);
    let cpu = wanted.and_then(|limits| limits.cpu.as_ref()).map(Quantity::millis);
    let (memory_grouped, cpu_grouped) = host.cgroup.as_ref().map_or((false, false), |group| (group.memory, group.cpu));
    if memory.is_some() && !memory_grouped {
        degraded.push(Degraded {
            field: "spec.resources.limits.memory".to_owned(),
            message: "limits each process of the server, not all of them together; no control group is delegated to \
                      the daemon"
                .to_owned(),
        });
    }
    if cpu.is_some() && !cpu_grouped {
        degraded.push(Degraded {
            field: "spec.resources.limits.cpu".to_owned(),
            message: "not limited: no control group is delegated to the daemon".to_owned(),
        });
    }
    let (grouped_memory, grouped_cpu) = (memory.filter(|_| memory_grouped), cpu.filter(|_| cpu_grouped));
    let cgroup = host.cgroup.as_ref().filter(|_| grouped_memory.is_some() || grouped_cpu.is_some());
    Limits {
        memory_bytes: memory.filter(|_| !memory_grouped),
        cgroup: cgroup.map(|delegation| Cgroup {
            path: delegation.path.join(format!("mcphub-{group}")).to_string_lossy().into_owned(),
            memory_bytes: grouped_memory,
            cpu_millis: grouped_cpu,
        }),
    }
}

/// Volumes as a process can have them: folders of the machine where they are. Gives the path of each and whether it may
/// be written.
fn volumes_of(
    volumes: &[Volume],
    host: &Host,
    base: &Path,
    permissions: Option<&Permissions>,
) -> Result<Vec<(String, bool)>, Unsupported> {
    let confined = permissions.and_then(|p| p.filesystem).is_some_and(|f| f != FilesystemPermission::Unrestricted);
    let mut paths = Vec::new();
    for volume in volumes {
        let field = format!("spec.volumes[{}]", volume.name);
        let Some(path) = &volume.host_path else {
            return Err(no(&field, "a process sees the machine's own folders only", Some("use hostPath, or an image")));
        };
        let real = host.absolute(base, path);
        if host.absolute(base, &volume.mount_path) != real {
            let hint = format!("set mountPath to {}", real.display());
            return Err(no(&field, "a process sees a folder where it is, under no other path", Some(&hint)));
        }
        let read_only = volume.read_only.unwrap_or(false);
        if read_only && !confined {
            let hint = "set permissions.filesystem to volumes or readOnly";
            return Err(no(&field, "readOnly cannot be enforced on an unconfined process", Some(hint)));
        }
        paths.push((real.to_string_lossy().into_owned(), !read_only));
    }
    Ok(paths)
}

fn filesystem_of(
    permissions: Option<&Permissions>,
    host: &Host,
    volumes: &[(String, bool)],
    resolved: Option<&Resolved>,
    run_dir: &Path,
    owner: &OwnerKey,
) -> Result<Option<FilesystemAccess>, Unsupported> {
    let Some(Permissions { network, filesystem }) = permissions else { return Ok(None) };
    if let Some(NetworkPermissions { egress: Some(_) }) = network {
        let hint = Some("leave it out, or use a cluster");
        return Err(no("spec.permissions.network.egress", "a process cannot be kept from the network", hint));
    }
    let mut read: Vec<String> = match filesystem {
        None | Some(FilesystemPermission::Unrestricted) => return Ok(None),
        Some(_) if !host.landlock => {
            let message = "this machine's kernel cannot confine a process (Landlock)";
            return Err(no("spec.permissions.filesystem", message, Some("use Linux 5.13 or later, or an image")));
        }
        Some(FilesystemPermission::ReadOnly) => vec!["/".to_owned()],
        Some(FilesystemPermission::Volumes) => {
            let own = resolved.and_then(|resolved| resolved.reads.clone()).unwrap_or_default();
            SYSTEM.iter().map(|path| (*path).to_owned()).chain(own).collect()
        }
    };
    read.extend(volumes.iter().filter(|(_, writable)| !writable).map(|(path, _)| path.clone()));
    let mut write: Vec<String> =
        volumes.iter().filter(|(_, writable)| *writable).map(|(path, _)| path.clone()).collect();
    write.extend(DEVICES.iter().map(|path| (*path).to_owned()));
    write.push(RunFolder::of(run_dir, owner).temporary().to_string_lossy().into_owned());
    Ok(Some(FilesystemAccess { read, write }))
}

fn no(field: &str, message: &str, hint: Option<&str>) -> Unsupported {
    Unsupported {
        runtime: NAME.to_owned(),
        field: field.to_owned(),
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    }
}
