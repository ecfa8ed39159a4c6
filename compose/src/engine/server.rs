//! A server: a container whose first process is the bridge, and an installer before it if it comes from a package.

use mcp_hub_crds::MCPServer;
use mcp_hub_crds::server::{FilesystemPermission, RuntimeChoice, Volume};
use mcp_hub_crds::source::{ImageSource, PackageSource, Resolved, ResolvedImage, SecretKeyRef, Source};
use mcp_hub_dataplane_api::launch::{Child, Drain, LAUNCH_ENV, LogPolicy, SECRETS_ENV, in_pod_env};
use mcp_hub_reconcile::image;
use mcp_hub_reconcile::workload::{EnvValue, ServerWorkload};
use mcp_hub_supply::Reference;
use serde_json::{Map, Value, json};

use super::gateway::{mounted_secret, required};
use super::tokens::OWN_VARIABLES;
use super::{
    BRIDGE, Engine, INSTALL, Images, NAME_LABEL, OURS, PART_LABEL, SERVER_LABEL, Stack, TYPE_LABEL, service,
    swarm_secret,
};
use crate::refusal::Page;
use crate::variables::{literal, variable};

/// Where the bridge lies, and where its run folder is.
pub(super) const BRIDGE_DIR: &str = "/mcp-hub";
const RUN_DIR: &str = "/run/mcp-hub";
const TMP_DIR: &str = "/tmp";
/// Where the installed package lies. Not below the bridge's folder, which is mounted read-only.
const PACKAGE_DIR: &str = "/mcp-hub-package";
const RUNNER: &str = "/mcp-runner";
/// What every server has mounted besides its own volumes.
pub(crate) const OWN_FOLDERS: [&str; 3] = [BRIDGE_DIR, RUN_DIR, PACKAGE_DIR];
/// Volume with a package, beside volumes of the spec.
const PACKAGE: &str = "mcp-hub-package";
/// Where a Swarm puts secrets.
const SECRETS_DIR: &str = "/run/secrets";
/// By which a Swarm begins a template in variables and mounts (`{{.Node.Hostname}}`).
const TEMPLATE: &str = "{{";
const EXPANDS: &str = "a Swarm expands `{{`, and knows no way to write it";
const RUN_BYTES: u64 = 16 << 20;
/// Counts as memory of the container once it is used.
const TMP_BYTES: u64 = 256 << 20;
/// Docker keeps the container's stderr.
const NO_LOG: LogPolicy = LogPolicy { max_bytes: 0, files: 0 };
/// Nobody tells the gateway of a container's end before it comes; calls under way have half a minute.
const DRAIN: Drain = Drain { accept_ms: 500, finish_ms: 25_000 };
/// The drain, the five seconds that a server's processes have after it, and some.
const GRACE: &str = "40s";

/// What a registry said, as resolving would have it in the server's status.
pub(super) fn resolved(workload: &ServerWorkload, image: &ResolvedImage) -> Resolved {
    Resolved {
        source_digest: workload.source_digest.clone(),
        version: None,
        command: None,
        env: None,
        reads: None,
        image: Some(image.clone()),
        runner: None,
    }
}

/// Where a server that has a container comes from.
enum From<'a> {
    Image(&'a ImageSource),
    /// With its version.
    Package(&'a PackageSource, &'a str),
}

/// Adds what the server becomes: nothing if it runs elsewhere or is paused. What cannot be honoured is refused on its page.
pub(super) fn lower(
    engine: Engine,
    name: &str,
    server: &MCPServer,
    workload: &ServerWorkload,
    images: &Images,
    page: &mut Page<'_>,
    stack: &mut Stack,
) {
    // Destructured so that a new field does not compile until it is decided.
    let ServerWorkload {
        source,
        source_digest: _,
        resolved,
        runtime,
        base_dir,
        transport,
        args,
        working_dir,
        env,
        volumes,
        resources,
        run_as,
        replicas,
        // Bridges stop and start their programs; containers stay.
        at_rest: _,
        permissions,
        pod_template,
        // A request to whoever runs servers; a file asks for nothing.
        restarted_at: _,
        // Read where the hub chose its servers.
        expose_to: _,
        // The file names the image.
        bridge: _,
        // Told to the bridge, see `ServerWorkload::launch`.
        owner: _,
        era: _,
        sessions: _,
        roots: _,
        lifecycle: _,
        health: _,
        restart: _,
        timeouts: _,
        token_sha256: _,
    } = workload;
    if let Some(choice) = runtime.filter(|choice| !runs(engine, *choice)) {
        page.refuse("spec.runtime", format!("it is not {}", choice.as_str()), Some("leave it out"));
    }
    if pod_template.is_some() {
        page.refuse("spec.kubernetes.podTemplate", "it has no pods", Some("leave it out"));
    }
    if let Some(why) = workload.unforwardable_roots() {
        page.refuse("spec.roots", why, None);
    }
    let facts = resolved.as_ref().and_then(|resolved| resolved.image.as_ref());
    let from = match source {
        Source::Remote(_) => return,
        Source::Command(_) => {
            return page.refuse(
                "spec.source.command",
                "a container has no program of this machine",
                Some("use an image or a package"),
            );
        }
        Source::Image(image) => From::Image(image),
        Source::Package(package) => match package.exact_version() {
            _ if engine == Engine::Swarm => {
                return page.refuse(
                    "spec.source.package",
                    "a service cannot wait for an installer",
                    Some("use an image"),
                );
            }
            Some(version) => From::Package(package, version),
            None => {
                return page.refuse(
                    "spec.source.package.version",
                    "a package is installed at each start, so it needs an exact version",
                    Some("name one that the registry has, such as 1.2.3"),
                );
            }
        },
    };
    if name == OURS || name == BRIDGE || name == INSTALL {
        page.refuse("metadata.name", format!("`{name}` is a service or network of MCP Hub itself"), Some("rename it"));
    }
    let network = permissions.as_ref().and_then(|permissions| permissions.network.as_ref());
    let egress = network.and_then(|network| network.egress.as_ref());
    if egress.is_some_and(|list| !list.is_empty()) {
        page.refuse(
            "spec.permissions.network.egress",
            "it knows networks with a way out and without, and none in between",
            Some("leave the list empty for no way out, or run the server in a cluster"),
        );
    }
    if resources.as_ref().is_some_and(|resources| resources.requests.is_some()) {
        stack.notices.push(format!("server {name}: spec.resources.requests applies in clusters only"));
    }
    if engine == Engine::Compose && *replicas > 1 {
        page.refuse("spec.replicas", "one machine runs one copy of a server", Some("leave it out"));
    }
    let program = match &from {
        From::Image(image) => of_image(engine, name, image, facts, args, page, stack),
        From::Package(..) => {
            let start = ["start", PACKAGE_DIR, "--"].map(str::to_owned);
            Some((RUNNER.to_owned(), start.into_iter().chain(args.iter().cloned()).collect()))
        }
    };
    let who = image::identity(run_as.as_ref(), facts);
    if let Some(user) = &who.named {
        stack.notices.push(format!(
            "server {name} runs as {}, because the image's user `{user}` is a name: set spec.runAs.user to its number",
            who.user
        ));
    }
    let user = format!("{}:{}", who.user, who.group);
    let Some((program, arguments)) = program else { return };

    let names: Vec<&str> = env.iter().map(EnvValue::name).collect();
    for ours in [LAUNCH_ENV, SECRETS_ENV] {
        if names.contains(&ours) {
            page.refuse("spec.env", format!("{ours} is the bridge's own variable"), Some("rename it"));
        }
    }
    // A Swarm gives secrets as files.
    let in_files: Vec<String> = match engine {
        Engine::Swarm => workload.secret_env().map(|(name, _)| name.to_owned()).collect(),
        Engine::Compose => Vec::new(),
    };
    let launch = workload.launch(
        Child::of_container(program, arguments, in_files.clone()),
        ([0, 0, 0, 0], image::bridge_port(transport)).into(),
        NO_LOG,
        DRAIN,
    );
    // Written so that it holds no `$`, by which Compose would find names in it, and no template. Two braces in a row stand
    // in strings only, where the second may be an escape.
    let launch = in_pod_env(&serde_json::to_string(&launch).unwrap_or_default()).replace(TEMPLATE, "{\\u007b");
    let mut environment = Map::new();
    environment.insert(LAUNCH_ENV.to_owned(), launch.into());
    if who.homeless && !names.contains(&"HOME") {
        environment.insert("HOME".to_owned(), TMP_DIR.into());
    }
    if !in_files.is_empty() {
        environment.insert(SECRETS_ENV.to_owned(), SECRETS_DIR.into());
    }
    let mut secrets = Vec::new();
    for value in env {
        match value {
            EnvValue::Plain { name, value } => {
                if is_template(engine, value) {
                    let hint = Some("make it a secret, which a Swarm takes as it is");
                    page.refuse(format!("spec.env[{name}]"), EXPANDS, hint);
                }
                environment.insert(name.clone(), literal(value).into());
            }
            EnvValue::Secret { name, key, fingerprint: _ } => {
                if !stack.needs(engine, &format!("spec.env[{name}]"), key, page) {
                    continue;
                }
                match engine {
                    Engine::Compose => {
                        environment.insert(name.clone(), required(&variable(key)).into());
                    }
                    Engine::Swarm => secrets.push(mounted_secret(&swarm_secret(key), name, &user)),
                }
            }
        }
    }
    let (image, kind) = match &from {
        From::Image(image) => (image::to_run(image, facts), "image"),
        From::Package(..) => (images.runner.clone(), "package"),
    };
    let unrestricted =
        permissions.as_ref().and_then(|permissions| permissions.filesystem) == Some(FilesystemPermission::Unrestricted);
    let mut mounts = vec![
        json!({"type": "volume", "source": BRIDGE, "target": BRIDGE_DIR, "read_only": true}),
        service::tmpfs(RUN_DIR, RUN_BYTES),
    ];
    if !volumes.iter().any(|volume| volume.mount_path == TMP_DIR) {
        mounts.push(service::tmpfs(TMP_DIR, TMP_BYTES));
    }
    mounts.extend(volumes.iter().filter_map(|volume| mount(engine, name, base_dir, volume, page, stack)));
    if let From::Package(..) = from {
        mounts.push(json!({
            "type": "volume", "source": format!("{name}_{PACKAGE}"), "target": PACKAGE_DIR, "read_only": true,
        }));
    }
    if *replicas == 0 {
        return;
    }
    let mut service = service::hardened(engine, &image, &user, !unrestricted);
    let mut set = |key: &str, value: Value| service.insert(key.to_owned(), value);
    set("entrypoint", json!([format!("{BRIDGE_DIR}/mcp-bridge"), "pod", format!("{RUN_DIR}/bridge")]));
    set("environment", Value::Object(environment));
    if let Some(folder) = working_dir {
        set("working_dir", literal(folder).into());
    }
    set("volumes", Value::from(mounts));
    set("networks", json!([name]));
    if egress.is_some() {
        // Engines before 25.0.5 ask the machine's name servers for whoever is on a network without a way out.
        set("dns", json!(["0.0.0.0"]));
    }
    set("stop_grace_period", GRACE.into());
    set(
        "labels",
        json!({NAME_LABEL: name, TYPE_LABEL: kind, SERVER_LABEL: in_pod_env(&remainder(server).to_string())}),
    );
    match engine {
        Engine::Compose => {
            set("restart", "unless-stopped".into());
            let mut after = json!({BRIDGE: {"condition": "service_completed_successfully"}});
            if let From::Package(package, version) = from {
                let installer = format!("{name}_install");
                after[&installer] = json!({"condition": "service_completed_successfully"});
                install(name, installer, package, version, &image, &user, stack);
            }
            set("depends_on", after);
        }
        Engine::Swarm => {
            if !secrets.is_empty() {
                set("secrets", Value::from(secrets));
            }
            // Each copy is asked by its own address: a session is one copy's.
            set(
                "deploy",
                json!({"replicas": replicas, "endpoint_mode": "dnsrr", "restart_policy": {"condition": "any", "delay": "2s"}}),
            );
        }
    }
    service::bound(engine, &mut service, resources.as_ref().and_then(|resources| resources.limits.as_ref()));
    let mut own_network = Map::new();
    if engine == Engine::Swarm {
        own_network.insert("driver".to_owned(), "overlay".into());
    }
    if egress.is_some() {
        own_network.insert("internal".to_owned(), true.into());
        if engine == Engine::Compose {
            // Else the machine has an address there, at which it offers whatever listens on all addresses.
            own_network.insert("driver_opts".to_owned(), json!({"com.docker.network.bridge.inhibit_ipv4": "true"}));
        }
    }
    stack.networks.insert(name.to_owned(), Value::Object(own_network));
    stack.services.insert(name.to_owned(), Value::Object(service));
}

/// Whether the engine is what the spec means.
fn runs(engine: Engine, choice: RuntimeChoice) -> bool {
    match choice {
        RuntimeChoice::Process => false,
        RuntimeChoice::Docker | RuntimeChoice::Podman | RuntimeChoice::Vessel => engine == Engine::Compose,
        RuntimeChoice::Swarm => engine == Engine::Swarm,
    }
}

/// What the bridge starts of an image.
fn of_image(
    engine: Engine,
    name: &str,
    image: &ImageSource,
    facts: Option<&ResolvedImage>,
    args: &[String],
    page: &mut Page<'_>,
    stack: &mut Stack,
) -> Option<(String, Vec<String>)> {
    if let Err(problem) = image.r#ref.parse::<Reference>() {
        page.refuse("spec.source.image.ref", problem.to_string(), Some("name an image as `docker pull` would"));
    }
    match image.pin_digest {
        _ if facts.is_some() || image.r#ref.contains('@') => {}
        Some(false) => {}
        Some(true) => page.refuse(
            "spec.source.image.pinDigest",
            "the registry did not tell the image's digest",
            Some("leave it out, or make the registry reachable from here"),
        ),
        None => stack.notices.push(format!(
            "server {name} runs what {} means when it is pulled: the registry did not tell its digest",
            image.r#ref
        )),
    }
    if let Some(secret) = &image.pull_secret_ref {
        stack.notices.push(format!(
            "server {name} needs a login at the registry of {} (secret {}): docker login",
            image.r#ref, secret.name
        ));
    }
    image::program(engine.name(), image, facts, args).map_err(|unknown| page.because(unknown)).ok()
}

/// The service that installs a package into a volume, and ends. It reaches the registry, also for a server that reaches
/// nothing.
fn install(
    server: &str,
    name: String,
    source: &PackageSource,
    version: &str,
    image: &str,
    user: &str,
    stack: &mut Stack,
) {
    let PackageSource { registry, name: package, version: _, executable } = source;
    let volume = format!("{server}_{PACKAGE}");
    // A name may look like an option.
    let mut command = vec!["install", "--", PACKAGE_DIR, registry.as_str(), package, version];
    command.extend(executable.as_deref());
    let mut service = service::hardened(Engine::Compose, image, user, true);
    service.insert("command".to_owned(), json!(command));
    service.insert("volumes".to_owned(), json!([{"type": "volume", "source": volume, "target": PACKAGE_DIR}]));
    service.insert("networks".to_owned(), json!([INSTALL]));
    service.insert("restart".to_owned(), "no".into());
    service.insert("labels".to_owned(), json!({PART_LABEL: "package"}));
    service.insert("depends_on".to_owned(), json!({BRIDGE: {"condition": "service_completed_successfully"}}));
    stack.networks.insert(INSTALL.to_owned(), json!({}));
    stack.volumes.insert(volume.clone(), json!({}));
    stack.folders.push(volume);
    stack.services.insert(name, Value::Object(service));
}

fn mount(
    engine: Engine,
    server: &str,
    base_dir: &str,
    wanted: &Volume,
    page: &mut Page<'_>,
    stack: &mut Stack,
) -> Option<Value> {
    let Volume { name, mount_path, read_only, host_path, empty_dir, pvc, config_map } = wanted;
    let field = |what: &str| format!("spec.volumes[{name}]{what}");
    let is_in = |folder: &str| mount_path == folder || mount_path.starts_with(&format!("{folder}/"));
    if let Some(ours) = [BRIDGE_DIR, RUN_DIR, PACKAGE_DIR, SECRETS_DIR].into_iter().find(|folder| is_in(folder)) {
        page.refuse(field(".mountPath"), format!("{ours} is the bridge's own"), Some("choose another path"));
    }
    if !is_normal(mount_path) {
        page.refuse(
            field(".mountPath"),
            "it is not the plain, absolute path of a folder",
            Some("begin it with /, end it without, and leave `.`, `..` and `//` out"),
        );
    }
    if is_template(engine, mount_path) {
        page.refuse(field(".mountPath"), EXPANDS, Some("choose another path"));
    }
    if name == PACKAGE {
        page.refuse(field(".name"), "this name is the bridge's own", Some("rename it"));
    }
    let instead = Some("use hostPath or emptyDir");
    let mut mount = if let Some(path) = host_path {
        if engine == Engine::Swarm {
            page.refuse(field(".hostPath"), "a server does not know which node it runs on", Some("use emptyDir"));
        }
        let source = literal(&host_folder(base_dir, path));
        json!({"type": "bind", "source": source, "target": literal(mount_path), "bind": {"create_host_path": false}})
    } else if pvc.is_some() {
        page.refuse(field(".pvc"), "claims are a cluster's", instead);
        return None;
    } else if config_map.is_some() {
        page.refuse(field(".configMap"), "ConfigMaps are a cluster's", instead);
        return None;
    } else {
        if empty_dir.as_ref().is_some_and(|folder| folder.size_limit.is_some()) {
            page.refuse(field(".emptyDir.sizeLimit"), "volumes have no limit", Some("leave it out"));
        }
        let volume = format!("{server}_{name}");
        stack.volumes.insert(volume.clone(), json!({}));
        stack.folders.push(volume.clone());
        json!({"type": "volume", "source": volume, "target": literal(mount_path)})
    };
    if *read_only == Some(true) {
        mount["read_only"] = true.into();
    }
    Some(mount)
}

fn is_template(engine: Engine, text: &str) -> bool {
    engine == Engine::Swarm && text.contains(TEMPLATE)
}

/// Whether this is the one way to write an absolute path, so that what is compared with it is what an engine mounts.
fn is_normal(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|path| path.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

/// A folder of the machine. Relative to the manifest, which lies beside the file if there is no other folder.
fn host_folder(base_dir: &str, path: &str) -> String {
    match path {
        _ if path.starts_with('/') || path == "~" || path.starts_with("~/") => path.to_owned(),
        _ if !base_dir.is_empty() => format!("{}/{}", base_dir.trim_end_matches('/'), path.trim_start_matches("./")),
        _ if path == "." || path.starts_with("./") || path.starts_with("../") => path.to_owned(),
        // Without it a name would mean a volume.
        _ => format!("./{path}"),
    }
}

/// What of the spec a file of this form has no word for, or spells in a way of its own.
fn remainder(server: &MCPServer) -> Value {
    let mut spec = serde_json::to_value(&server.spec).unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        for said in ["workingDir", "replicas"] {
            spec.remove(said);
        }
        if let Some(limits) = spec.get_mut("resources").and_then(Value::as_object_mut) {
            limits.remove("limits");
        }
        // Values in clear stand in the service's environment.
        if let Some(env) = spec.get_mut("env").and_then(Value::as_array_mut) {
            env.retain(|variable| variable.get("secretRef").is_some());
        }
        let is_empty =
            |value: &Value| value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        spec.retain(|_, value| !is_empty(value));
    }
    json!({"labels": server.metadata.labels, "spec": spec})
}

impl Stack {
    /// Notes a secret. Whether there is a name for it, which no other secret has.
    pub(super) fn needs(&mut self, engine: Engine, field: &str, secret: &SecretKeyRef, page: &mut Page<'_>) -> bool {
        let name = variable(secret);
        if name.starts_with(OWN_VARIABLES) {
            let message = format!("its variable would be {name}, and {OWN_VARIABLES}* are MCP Hub's own");
            page.refuse(field, message, Some("rename the secret"));
            return false;
        }
        if let Some(other) = self.variables.get(&name).filter(|other| *other != secret) {
            let message = format!("{name} stands for secret {}, key {} already", other.name, other.key);
            page.refuse(field, message, Some("rename one of the two secrets"));
            return false;
        }
        let own = swarm_secret(secret);
        // As Docker bounds names of secrets.
        if engine == Engine::Swarm && own.len() > 64 {
            page.refuse(field, "names of secrets have at most 64 characters, with the key", Some("rename it"));
            return false;
        }
        if engine == Engine::Swarm {
            self.secrets.insert(own, json!({"external": true}));
        }
        self.variables.insert(name, secret.clone());
        true
    }
}
