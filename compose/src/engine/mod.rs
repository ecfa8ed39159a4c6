//! A project for a container engine: a Compose file, or a stack of a Swarm.
//!
//! One service for each server, with the bridge as its first process; one that brings the bridge into a volume that all
//! share, and ends; one gateway, which alone is reachable from outside. A server shares its network with the gateway only.
//! What the two forms have in common is written once; [`Engine`] says where they differ.

mod gateway;
mod hub;
mod server;
mod service;
mod tokens;

use std::collections::BTreeMap;

use kube::ResourceExt;
use mcp_hub_crds::Resource;
use mcp_hub_crds::source::{ResolvedImage, SecretKeyRef, Source};
use mcp_hub_reconcile::accept;
use mcp_hub_reconcile::workload::ServerWorkload;
use serde_json::{Map, Value, json};

pub(crate) use self::server::OWN_FOLDERS;
pub use self::tokens::{Key, TOKENS_FILE};
use crate::project::Project;
use crate::refusal::{Ledger, Refused};
use crate::{Access, File, Generated, MARK};

/// The gateway's service and the networks that it has for itself begin so; servers are not called like that.
const OURS: &str = "mcp-hub";
/// Brings the bridge.
const BRIDGE: &str = "mcp-hub-bridge";
/// Network of installers.
const INSTALL: &str = "mcp-hub-install";
/// Label of services that are no servers.
pub(crate) const PART_LABEL: &str = "mcphub.io/part";
/// Label with what a file of this form has no word for, as JSON.
pub(crate) const SERVER_LABEL: &str = "mcphub.io/server";
/// Labels that MCP Hub's predecessor wrote, too.
pub(crate) const NAME_LABEL: &str = "mcp-hub.service";
pub(crate) const TYPE_LABEL: &str = "mcp-hub.type";

/// Which engine reads the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Compose,
    Swarm,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Compose => "compose",
            Self::Swarm => "swarm",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Compose => "compose.yaml",
            Self::Swarm => "stack.yaml",
        }
    }
}

/// Images of MCP Hub itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    pub bridge: String,
    pub gateway: String,
    /// In which packages are installed and run.
    pub runner: String,
}

impl Images {
    /// `prefix`: registry and path before the image's own name.
    pub fn of(prefix: &str, version: &str) -> Self {
        let image = |name: &str| format!("{prefix}/{name}:{version}");
        Self { bridge: image("bridge"), gateway: image("gateway"), runner: image("runner") }
    }
}

/// All sections of the file.
#[derive(Debug, Default)]
struct Stack {
    services: Map<String, Value>,
    networks: Map<String, Value>,
    volumes: Map<String, Value>,
    configs: Map<String, Value>,
    secrets: Map<String, Value>,
    /// Volumes that are opened for servers' users.
    folders: Vec<String>,
    /// The variables that have to be set, with the secrets that they stand for.
    variables: BTreeMap<String, SecretKeyRef>,
    notices: Vec<String>,
}

/// The files of a project. `facts`: what registries said of images, by their references; of those that are missing the
/// program must be in the spec.
///
/// # Errors
/// [`Refused`]: all that the engine cannot honour as the spec has it.
pub fn write(
    engine: Engine,
    project: &Project,
    facts: &BTreeMap<String, ResolvedImage>,
    images: &Images,
    key: &Key,
) -> Result<Generated, Refused> {
    let installation = key.installation();
    let mut ledger = Ledger::new(engine.name());
    let mut stack = Stack::default();
    let port = hub::published(engine, &project.hub, &mut ledger, &mut stack.notices);
    for server in &project.servers {
        let mut page = ledger.of(Resource::Server(server.clone()).key());
        let unimplemented = accept::unimplemented_in_server(&server.spec);
        if !unimplemented.is_empty() {
            page.unimplemented(unimplemented);
            continue;
        }
        // Every server has a uid here.
        let Ok(mut workload) = ServerWorkload::of(server, &installation, &BTreeMap::new()) else { continue };
        let image = match &server.spec.source {
            Source::Image(image) => facts.get(&image.r#ref),
            Source::Package(_) | Source::Command(_) | Source::Remote(_) => None,
        };
        workload.resolved = image.map(|image| server::resolved(&workload, image));
        server::lower(engine, &name_of(project, server), server, &workload, images, &mut page, &mut stack);
    }
    let config = gateway::lower(engine, project, &installation, images, port, &mut ledger, &mut stack);
    ledger.conclude()?;
    bring_bridge(engine, images, &mut stack);

    stack.notices.extend(
        project.left_out.iter().map(|server| format!("server {server} is left out: the hub does not offer it")),
    );
    for (variable, secret) in &stack.variables {
        stack.notices.push(match engine {
            Engine::Compose => {
                format!("set the environment variable {variable} (secret {}, key {})", secret.name, secret.key)
            }
            Engine::Swarm => format!("create the secret {0}: docker secret create {0} -", swarm_secret(secret)),
        });
    }
    let files = vec![
        File { name: TOKENS_FILE, content: key.file(project, &installation), access: Access::Owner },
        File { name: gateway::CONFIG_FILE, content: config, access: Access::Everybody },
        File { name: engine.file(), content: file(engine, &stack), access: Access::Everybody },
    ];
    Ok(Generated { files, notices: stack.notices })
}

/// Name of a server's service, and of its network: as the gateway calls it.
fn name_of(project: &Project, server: &mcp_hub_crds::MCPServer) -> String {
    match server.namespace() {
        namespace if namespace == project.hub.namespace() => server.name_any(),
        namespace => format!("{}.{}", namespace.unwrap_or_default(), server.name_any()),
    }
}

/// Name under which a Swarm keeps a value of a secret.
fn swarm_secret(secret: &SecretKeyRef) -> String {
    format!("{}.{}", secret.name, secret.key)
}

/// The service that puts the bridge into the volume and opens new volumes. It is root there, without any right but to its
/// own files, and without a network.
fn bring_bridge(engine: Engine, images: &Images, stack: &mut Stack) {
    if stack.services.keys().all(|name| name == OURS) {
        return;
    }
    let mut command = vec!["install".to_owned(), server::BRIDGE_DIR.to_owned()];
    let mut mounts = vec![json!({"type": "volume", "source": BRIDGE, "target": server::BRIDGE_DIR})];
    for volume in &stack.folders {
        let target = format!("/volumes/{volume}");
        mounts.push(json!({"type": "volume", "source": volume, "target": target}));
        command.push(target);
    }
    let mut service = service::hardened(engine, &images.bridge, "0:0", true);
    service.insert("command".to_owned(), json!(command));
    service.insert("volumes".to_owned(), Value::from(mounts));
    service.insert("labels".to_owned(), json!({PART_LABEL: "bridge"}));
    match engine {
        Engine::Compose => {
            service.insert("network_mode".to_owned(), "none".into());
            service.insert("restart".to_owned(), "no".into());
        }
        Engine::Swarm => {
            // Each node's volume is its own. A server that is there first is started anew until it finds the bridge.
            service.insert("networks".to_owned(), json!([BRIDGE]));
            service
                .insert("deploy".to_owned(), json!({"mode": "global", "restart_policy": {"condition": "on-failure"}}));
            stack.networks.insert(BRIDGE.to_owned(), json!({"driver": "overlay", "internal": true}));
        }
    }
    service::bound(engine, &mut service, None);
    stack.volumes.insert(BRIDGE.to_owned(), json!({}));
    let servers = std::mem::take(&mut stack.services);
    stack.services.insert(BRIDGE.to_owned(), Value::Object(service));
    stack.services.extend(servers);
}

fn file(engine: Engine, stack: &Stack) -> String {
    let mut document = Map::new();
    if engine == Engine::Swarm {
        // `docker stack deploy` of older engines reads no file without it.
        document.insert("version".to_owned(), "3.9".into());
    }
    let sections = [
        ("services", &stack.services),
        ("networks", &stack.networks),
        ("volumes", &stack.volumes),
        ("configs", &stack.configs),
        ("secrets", &stack.secrets),
    ];
    for (name, section) in sections.into_iter().filter(|(_, section)| !section.is_empty()) {
        document.insert(name.to_owned(), Value::Object(section.clone()));
    }
    let how = match engine {
        Engine::Compose => "docker compose up -d",
        Engine::Swarm => "docker stack deploy -c stack.yaml NAME",
    };
    let yaml = yaml(&Value::Object(document));
    format!("{MARK}: run it again instead of editing.\n# Start it with `{how}`.\n{yaml}")
}

/// All text in quotes: readers of YAML 1.1 take `1000:50` for a number and `on` for a truth.
fn yaml(document: &Value) -> String {
    // A JSON value always has a YAML form.
    serde_saphyr::to_string_with_options(document, serde_saphyr::ser_options! { quote_all: true }).unwrap_or_default()
}
