//! A server: a Deployment whose pods bring the bridge, a headless Service, a NetworkPolicy.

use mcp_hub_crds::server::{FilesystemPermission, Permissions, RunAs, Volume};
use mcp_hub_crds::source::{ImageSource, PackageSource, Resolved, Source};
use mcp_hub_dataplane_api::launch::{Child, Drain, LAUNCH_ENV, LogPolicy, in_pod_env};
use mcp_hub_reconcile::image::{self, Identity, bridge_port};
use mcp_hub_reconcile::lower::{Change, Degraded, Lowered, Object, ObjectId, Stage, Unsupported};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::{EnvValue, RESTARTED_AT_ANNOTATION, ServerWorkload};
use serde_json::{Value, json};

use super::{ClusterSettings, NAME, child, egress, network, no, package, pod, template};
use crate::children::ChildKind;
use crate::labels;
use crate::pods::{BRIDGE, SERVER};

/// Where the bridge and its run folder lie in a pod.
const BRIDGE_DIR: &str = "/mcp-hub";
const TMP_DIR: &str = "/tmp";
/// Where the installed package lies.
const PACKAGE_DIR: &str = "/mcp-hub/package";
/// The largest published servers install 300 MB; a pod that needs more is ended by the kubelet.
const PACKAGE_SIZE: &str = "1Gi";
/// A pod writes no log files; the kubelet keeps its stderr.
const NO_LOG: LogPolicy = LogPolicy { max_bytes: 0, files: 0 };
/// Endpoints are told of a pod's end within a few seconds; what is under way has half a minute.
const DRAIN: Drain = Drain { accept_ms: 3_000, finish_ms: 25_000 };
/// The drain, the five seconds that a server's processes have after it, and some.
const GRACE_SECONDS: u64 = 40;

/// Name of a server's Deployment, Service and NetworkPolicy.
pub(crate) fn server_name(owner: &OwnerKey) -> String {
    format!("mcp-{}", owner.name)
}

pub(super) fn lower(server: &ServerWorkload, settings: &ClusterSettings) -> Result<Lowered, Unsupported> {
    // Destructured so that a new field does not compile until it is decided.
    let ServerWorkload {
        owner,
        source,
        source_digest,
        resolved,
        runtime,
        // Folders of a machine; a cluster has none.
        base_dir: _,
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
        pod_template,
        restarted_at,
        expose_to,
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
    } = server;
    if let Some(choice) = runtime {
        let message = format!("a cluster has no runtime {}", choice.as_str());
        return Err(no("spec.runtime", message, Some("leave it empty")));
    }
    if let Some(why) = server.unforwardable_roots() {
        return Err(no("spec.roots", why, None));
    }
    let from = match source {
        Source::Image(image) => From::Image(image),
        Source::Package(package) => From::Package(package, package::version(package)?),
        Source::Remote(_) => return Ok(Lowered::default()),
        Source::Command(_) => {
            return Err(no("spec.source.command", "a cluster has no programs of its own", Some("use an image")));
        }
    };
    let mut degraded = Vec::new();
    let network = permissions.as_ref().and_then(|permissions| permissions.network.as_ref());
    let egress = network.and_then(|network| network.egress.as_deref());
    if egress.is_some() && !settings.network_policies_enforced {
        degraded.push(Degraded {
            field: "spec.permissions.network.egress".to_owned(),
            message: "written as a NetworkPolicy; whether it is enforced is up to the cluster's network plugin, which \
                      the operator was not told of"
                .to_owned(),
        });
    }
    if let (From::Package(..), Some(_)) = (&from, egress) {
        degraded.push(package::under_egress_list());
    }
    let port = bridge_port(transport);
    let egress = egress.map(|list| egress::lower(owner, list, settings)).transpose()?;
    let policy = network::of_server(&labels::pods_of(owner), port, expose_to, egress.as_ref(), settings);
    let volumes = volumes.iter().map(volume).collect::<Result<Vec<_>, _>>()?;
    if *replicas == 0 {
        return Ok(Lowered { objects: Vec::new(), degraded });
    }
    let Some(resolved) = resolved else {
        let mut body =
            json!({"source": serde_json::to_value(source).unwrap_or_default(), "sourceDigest": source_digest});
        if let From::Package(..) = from {
            body["runner"] = Value::from(settings.runner_image.clone());
        }
        let id = ObjectId::new(source.kind(), &owner.name);
        return Ok(Lowered { objects: vec![Object::new(id, Stage::Prepare, Change::InPlace, body)], degraded });
    };
    let (image_to_run, (program, arguments)) = match &from {
        From::Image(image) => {
            degraded.extend(unpinned(image, resolved)?);
            let facts = resolved.image.as_ref();
            (image::to_run(image, facts), image::program(NAME, image, facts, args)?)
        }
        From::Package(..) => {
            let runner = resolved.runner.as_ref().unwrap_or(&settings.runner_image);
            (runner.clone(), package::command(PACKAGE_DIR, args))
        }
    };
    let who = identity(run_as.as_ref(), resolved, &mut degraded);
    let launch =
        server.launch(Child::of_container(program, arguments, Vec::new()), ([0, 0, 0, 0], port).into(), NO_LOG, DRAIN);
    let mut variables = vec![json!({
        "name": LAUNCH_ENV,
        "value": in_pod_env(&serde_json::to_string(&launch).unwrap_or_default()),
    })];
    let names: Vec<&str> = env.iter().map(EnvValue::name).collect();
    if names.contains(&LAUNCH_ENV) {
        return Err(no("spec.env", format!("{LAUNCH_ENV} is the bridge's own variable"), None));
    }
    if let Some(name) = names.iter().find(|name| egress.as_ref().is_some_and(|egress| egress.claims(name))) {
        return Err(no(
            "spec.env",
            format!("{name} leads to the relay, because spec.permissions.network.egress names hosts"),
            Some("leave it out, or name addresses only"),
        ));
    }
    if who.homeless && !names.contains(&"HOME") {
        variables.push(pod::variable("HOME", TMP_DIR));
    }
    for (name, value) in egress.iter().flat_map(|egress| &egress.env).filter(|(name, _)| !names.contains(name)) {
        variables.push(pod::variable(name, value));
    }
    variables.extend(env.iter().map(|variable| match variable {
        EnvValue::Plain { name, value } => pod::variable(name, value),
        // Its value comes at the pod's next start; a changed one rolls nothing by itself.
        EnvValue::Secret { name, key, fingerprint: _ } => {
            json!({"name": name, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}})
        }
    }));

    let read_only = !unrestricted(permissions.as_ref());
    let mounts = |more: &[Mounted]| {
        let mut mounts = vec![json!({"name": "mcp-hub", "mountPath": BRIDGE_DIR})];
        let own_tmp = more.iter().any(|mounted| mounted.mount["mountPath"] == TMP_DIR);
        if !own_tmp {
            mounts.push(json!({"name": "mcp-hub-tmp", "mountPath": TMP_DIR}));
        }
        mounts.extend(more.iter().map(|mounted| mounted.mount.clone()));
        if let From::Package(..) = from {
            // A server cannot change what its next start runs.
            mounts.push(json!({"name": package::VOLUME, "mountPath": PACKAGE_DIR, "readOnly": true}));
        }
        mounts
    };
    let bridge_image = bridge.as_deref().unwrap_or(&settings.bridge_image);
    let mut container = json!({
        "name": SERVER,
        "image": image_to_run.clone(),
        "command": [format!("{BRIDGE_DIR}/mcp-bridge"), "pod", format!("{BRIDGE_DIR}/run")],
        "env": variables,
        "ports": [{"name": "mcp", "containerPort": port, "protocol": "TCP"}],
        "securityContext": pod::confined(read_only),
        "volumeMounts": mounts(&volumes),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "readinessProbe": pod::probe("/readyz", port, 2, 3),
        "livenessProbe": pod::probe("/healthz", port, 10, 6),
    });
    if let Some(folder) = working_dir {
        container["workingDir"] = Value::from(folder.clone());
    }
    if let Some(resources) = pod::resources(resources.as_ref()) {
        container["resources"] = resources;
    }
    let mut all_volumes = vec![json!({"name": "mcp-hub", "emptyDir": {"sizeLimit": "64Mi"}})];
    if !volumes.iter().any(|mounted| mounted.mount["mountPath"] == TMP_DIR) {
        all_volumes.push(json!({"name": "mcp-hub-tmp", "emptyDir": {}}));
    }
    all_volumes.extend(volumes.iter().map(|mounted| mounted.volume.clone()));
    let mut init_containers = vec![json!({
        "name": BRIDGE,
        "image": bridge_image,
        "args": ["install", BRIDGE_DIR],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": pod::confined(true),
        "volumeMounts": [{"name": "mcp-hub", "mountPath": BRIDGE_DIR}],
    })];
    if let From::Package(source, version) = from {
        let installer =
            package::init_container(source, version, &image_to_run, PACKAGE_DIR, &settings.packages, egress.as_ref());
        init_containers.push(installer);
        all_volumes.push(json!({"name": package::VOLUME, "emptyDir": {"sizeLimit": PACKAGE_SIZE}}));
    }
    let mut pod_labels = labels::of(owner);
    pod_labels.insert(labels::ROLE.to_owned(), "server".to_owned());
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod::identity(who.user, who.group),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": init_containers,
        "containers": [container],
        "volumes": all_volumes,
    });
    if let From::Image(ImageSource { pull_secret_ref: Some(secret), .. }) = from {
        spec["imagePullSecrets"] = json!([{"name": secret.name}]);
    }
    let mut pods = json!({"metadata": {"labels": pod_labels}, "spec": spec});
    if let Some(at) = restarted_at {
        pods["metadata"]["annotations"] = json!({RESTARTED_AT_ANNOTATION: at});
    }
    if let Some(patch) = pod_template {
        template::merge(&mut pods, patch)?;
    }
    // Two pods cannot hold a volume that one node at a time may write.
    let exclusive = volumes.iter().any(|mounted| mounted.exclusive);
    let strategy = match exclusive {
        true => json!({"type": "Recreate"}),
        false => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
    };
    let deployment = json!({
        "replicas": if *at_rest { 0 } else { *replicas },
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": labels::pods_of(owner)},
        "strategy": strategy,
        "template": pods,
    });
    let service = json!({
        "clusterIP": "None",
        "selector": labels::pods_of(owner),
        "ports": [{"name": "mcp", "port": port, "targetPort": port, "protocol": "TCP"}],
    });
    let name = server_name(owner);
    let objects = vec![
        child(ChildKind::NetworkPolicy, owner, name.clone(), &policy),
        child(ChildKind::Deployment, owner, name.clone(), &deployment),
        child(ChildKind::Service, owner, name, &service),
    ];
    Ok(Lowered { objects, degraded })
}

/// Where a server that has pods comes from.
#[derive(Clone, Copy)]
enum From<'a> {
    Image(&'a ImageSource),
    /// With its version.
    Package(&'a PackageSource, &'a str),
}

/// What is to be said of an image that runs by its tag, if nobody asked for that.
fn unpinned(image: &ImageSource, resolved: &Resolved) -> Result<Option<Degraded>, Unsupported> {
    match image.pin_digest {
        _ if resolved.image.is_some() => Ok(None),
        Some(false) => Ok(None),
        Some(true) => Err(no(
            "spec.source.image.pinDigest",
            "the registry did not tell the image's digest",
            Some("leave it out, or make the registry reachable from the operator"),
        )),
        None => Ok(Some(Degraded {
            field: "spec.source.image.pinDigest".to_owned(),
            message: "the registry did not tell the image's digest, so that pods run what the tag means at their start"
                .to_owned(),
        })),
    }
}

fn identity(run_as: Option<&RunAs>, resolved: &Resolved, degraded: &mut Vec<Degraded>) -> Identity {
    let who = image::identity(run_as, resolved.image.as_ref());
    if let Some(name) = &who.named {
        degraded.push(Degraded {
            field: "spec.runAs".to_owned(),
            message: format!(
                "the image's user `{name}` is a name, which a cluster cannot check: it runs as {}; set spec.runAs.user to \
                 its number",
                who.user
            ),
        });
    }
    who
}

fn unrestricted(permissions: Option<&Permissions>) -> bool {
    permissions.and_then(|permissions| permissions.filesystem) == Some(FilesystemPermission::Unrestricted)
}

struct Mounted {
    volume: Value,
    mount: Value,
    exclusive: bool,
}

fn volume(wanted: &Volume) -> Result<Mounted, Unsupported> {
    let Volume { name, mount_path, read_only, host_path, empty_dir, pvc, config_map } = wanted;
    let field = |what: &str| format!("spec.volumes[{name}]{what}");
    if ["mcp-hub", "mcp-hub-tmp", package::VOLUME].contains(&name.as_str()) {
        return Err(no(field(".name"), "this name is the bridge's own", None));
    }
    if mount_path == BRIDGE_DIR || mount_path.starts_with(&format!("{BRIDGE_DIR}/")) {
        return Err(no(field(".mountPath"), format!("{BRIDGE_DIR} is the bridge's own"), None));
    }
    if !mount_path.starts_with('/') {
        return Err(no(
            field(".mountPath"),
            "a container has no folder that this could be relative to",
            Some("begin it with /"),
        ));
    }
    let read_only = read_only.unwrap_or(false);
    let (source, exclusive) = if host_path.is_some() {
        return Err(no(
            field(".hostPath"),
            "a server does not see the node's files",
            Some("use pvc, configMap or emptyDir"),
        ));
    } else if let Some(claim) = pvc {
        (json!({"persistentVolumeClaim": {"claimName": claim}}), !read_only)
    } else if let Some(map) = config_map {
        (json!({"configMap": {"name": map}}), false)
    } else {
        let mut folder = json!({});
        if let Some(limit) = empty_dir.as_ref().and_then(|folder| folder.size_limit.as_ref()) {
            folder["sizeLimit"] = Value::from(super::quantity::canonical(limit));
        }
        (json!({"emptyDir": folder}), false)
    };
    let mut volume = source;
    volume["name"] = Value::from(name.clone());
    let mut mount = json!({"name": name, "mountPath": mount_path});
    if read_only {
        mount["readOnly"] = Value::from(true);
    }
    Ok(Mounted { volume, mount, exclusive })
}
