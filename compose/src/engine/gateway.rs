//! The gateway: its configuration, which holds no secret, and its service.

use std::collections::BTreeMap;

use kube::ResourceExt;
use mcp_hub_crds::server::EraChoice;
use mcp_hub_crds::source::{SecretKeyRef, Source};
use mcp_hub_crds::{MCPServer, Resource};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{Target, UpstreamEra};
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::gateway;
use mcp_hub_reconcile::image::bridge_port;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::ports::Addresses;
use mcp_hub_reconcile::status::reason;
use mcp_hub_reconcile::workload::{child_transport, is_stopped};
use serde_json::{Value, json};

use super::tokens::{TOKENS_FILE, bridge_variable};
use super::{Engine, Images, NAME_LABEL, OURS, PART_LABEL, Stack, service, swarm_secret};
use crate::project::Project;
use crate::refusal::Ledger;
use crate::variables::{literal, variable};

/// The gateway's configuration.
pub(super) const CONFIG_FILE: &str = "gateway.json";
/// Where it lies in the container.
const CONFIG_PATH: &str = "/etc/mcp-hub/gateway.json";
/// Where a Swarm puts secrets; of Compose there is no such folder, and the environment has them.
const SECRETS_DIR: &str = "/run/secrets";
const PORT: u16 = 8080;
/// A gateway in front of twenty servers needs a tenth.
const MEMORY: &str = "256Mi";
const USER: &str = "65532:65532";

/// Adds the gateway's service; gives the configuration.
pub(super) fn lower(
    engine: Engine,
    project: &Project,
    installation: &Installation,
    images: &Images,
    published: i32,
    ledger: &mut Ledger,
    stack: &mut Stack,
) -> String {
    let secrets = header_secrets(engine, project, ledger, stack);
    // The gateway takes `$` for the beginning of a name; what the spec has in clear is meant as it is.
    let servers: Vec<MCPServer> = project.servers.iter().cloned().map(with_literal_headers).collect();
    let servers: Vec<std::sync::Arc<MCPServer>> = servers.into_iter().map(std::sync::Arc::new).collect();
    let placeholders: BTreeMap<_, _> =
        secrets.iter().map(|(place, name)| (place.clone(), SecretString::new(format!("${{{name}}}")))).collect();
    let mut config = gateway::compose(&project.hub, &servers, &placeholders, &Addresses::default(), installation);
    for upstream in &mut config.upstreams {
        let server = project.servers.iter().find(|server| server.uid().as_ref() == Some(&upstream.uid));
        let Some(server) = server.filter(|server| !matches!(server.spec.source, Source::Remote(_))) else { continue };
        upstream.target = if is_stopped(server) {
            Target::Unavailable {
                reason: reason::PAUSED.to_owned(),
                message: "the server is paused".to_owned(),
                hint: None,
            }
        } else {
            let bearer = SecretString::new(format!("Bearer ${{{}}}", bridge_variable(server)));
            let port = bridge_port(&child_transport(server.spec.transport.as_ref()));
            Target::Available {
                url: format!("http://{}:{port}/mcp", upstream.name),
                headers: BTreeMap::from([("authorization".to_owned(), bearer)]),
            }
        };
        upstream.era = match server.spec.transport.as_ref().and_then(|transport| transport.era) {
            // Nobody is there to be told what a bridge found out.
            None | Some(EraChoice::Auto) => UpstreamEra::Probe,
            Some(EraChoice::Modern) => UpstreamEra::Known(Era::Modern),
            Some(EraChoice::Legacy) => UpstreamEra::Known(Era::Legacy),
        };
    }
    config.version = String::new();
    config.version = installation.fingerprint(&serde_json::to_string(&config).unwrap_or_default());

    let mut service = service::hardened(engine, &images.gateway, USER, true);
    service.insert(
        "command".to_owned(),
        json!(["--config", CONFIG_PATH, "--listen", format!("0.0.0.0:{PORT}"), "--secrets", SECRETS_DIR]),
    );
    service.insert("env_file".to_owned(), json!([TOKENS_FILE]));
    let limits = serde_json::from_value(json!({"memory": MEMORY})).ok();
    service::bound(engine, &mut service, limits.as_ref());
    // A changed configuration is a changed service, which is made anew.
    service.insert("labels".to_owned(), json!({PART_LABEL: "gateway", "mcphub.io/config": config.version.clone()}));
    // Where clients come from; servers have networks of their own.
    let mut networks = vec![OURS.to_owned()];
    let own = |name: &String| stack.services.get(name).is_some_and(|service| !service["labels"][NAME_LABEL].is_null());
    networks.extend(stack.services.keys().filter(|name| own(name)).cloned());
    service.insert("networks".to_owned(), json!(networks));
    let names = secrets.into_values().collect::<std::collections::BTreeSet<String>>();
    match engine {
        Engine::Compose => {
            service.insert(
                "volumes".to_owned(),
                json!([{"type": "bind", "source": format!("./{CONFIG_FILE}"), "target": CONFIG_PATH, "read_only": true}]),
            );
            if !names.is_empty() {
                let environment = names.iter().map(|name| (name.clone(), Value::from(required(name))));
                service.insert("environment".to_owned(), Value::Object(environment.collect()));
            }
            service.insert("ports".to_owned(), json!([format!("127.0.0.1:{published}:{PORT}")]));
            service.insert("restart".to_owned(), "unless-stopped".into());
            service.insert("stop_grace_period".to_owned(), "40s".into());
            let after: serde_json::Map<String, Value> =
                networks[1..].iter().map(|name| (name.clone(), json!({"condition": "service_started"}))).collect();
            if !after.is_empty() {
                service.insert("depends_on".to_owned(), Value::Object(after));
            }
            stack.networks.insert(OURS.to_owned(), json!({}));
        }
        Engine::Swarm => {
            // A Swarm's configuration never changes: each has a name of its own.
            let name = format!("mcp-hub-gateway-{}", config.version.chars().take(12).collect::<String>());
            stack.configs.insert(OURS.to_owned(), json!({"name": name, "file": format!("./{CONFIG_FILE}")}));
            service.insert("configs".to_owned(), json!([{"source": OURS, "target": CONFIG_PATH}]));
            let secrets: Vec<Value> = names
                .iter()
                .filter_map(|name| Some((name, stack.variables.get(name)?)))
                .map(|(name, secret)| mounted_secret(&swarm_secret(secret), name, USER))
                .collect();
            if !secrets.is_empty() {
                service.insert("secrets".to_owned(), Value::from(secrets));
            }
            service.insert("ports".to_owned(), json!([{"target": PORT, "published": published, "protocol": "tcp"}]));
            service.insert("stop_grace_period".to_owned(), "40s".into());
            service["deploy"]["restart_policy"] = json!({"condition": "any"});
            stack.networks.insert(OURS.to_owned(), json!({"driver": "overlay"}));
            stack.notices.push(format!(
                "port {published} is open on every node, without TLS: put a proxy with TLS in front, and name it in \
                 spec.gateway.allowedHosts"
            ));
        }
    }
    stack.services.insert(OURS.to_owned(), Value::Object(service));
    // JSON has no comments: the mark that it may be written over is that it reads as a configuration.
    serde_json::to_string_pretty(&config).unwrap_or_default() + "\n"
}

/// A value that Compose takes from its environment and does not start without.
pub(super) fn required(variable: &str) -> String {
    format!("${{{variable}:?set {variable}}}")
}

/// A secret of a Swarm as a file in a container.
pub(super) fn mounted_secret(source: &str, target: &str, user: &str) -> Value {
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    json!({"source": source, "target": target, "uid": user, "gid": group, "mode": 0o400})
}

/// The secrets that headers of remote servers need: which variable stands for which.
fn header_secrets(
    engine: Engine,
    project: &Project,
    ledger: &mut Ledger,
    stack: &mut Stack,
) -> BTreeMap<(String, SecretKeyRef), String> {
    let mut found = BTreeMap::new();
    for server in &project.servers {
        let mut page = ledger.of(Resource::Server(server.clone()).key());
        for secret in gateway::header_secrets(server) {
            if stack.needs(engine, "spec.source.remote.headers", secret, &mut page) {
                let namespace = server.namespace().unwrap_or_default();
                found.insert((namespace, secret.clone()), variable(secret));
            }
        }
    }
    found
}

fn with_literal_headers(mut server: MCPServer) -> MCPServer {
    if let Source::Remote(remote) = &mut server.spec.source {
        for header in remote.headers.iter_mut().flatten() {
            header.value = header.value.as_deref().map(literal);
        }
    }
    server
}
