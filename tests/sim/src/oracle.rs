//! What must hold, as functions that say what does not.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mcp_hub_dataplane_api::gateway::{Target, UpstreamStatus};
use mcp_hub_fakeapi::FakeApi;
use serde_json::Value;

use crate::bridges::{Bridges, Fate};
use crate::gateways::Gateways;
use crate::world::{World, tail};

/// Three passes over each object: one an hour, and up to a quarter more.
pub const THREE_PASSES: Duration = Duration::from_secs(4 * 3600);

/// Fails if an operator writes anything within `time`: who has nothing to do writes nothing.
pub async fn calm(world: &World, time: Duration, of: &str) {
    world.api.clear_log();
    tokio::time::sleep(time).await;
    calm_so_far(world, of);
}

/// Fails if an operator has written anything since the log was cleared.
pub fn calm_so_far(world: &World, of: &str) {
    let writes = world.writes();
    assert!(writes.is_empty(), "{of}: nothing was to do, and this was written: {:#?}", tail(&writes));
}

/// Fails if a status says what is not so. All has to be settled.
pub fn truth(world: &World, of: &str) {
    let lies = lies(world);
    assert!(lies.is_empty(), "{of}: {lies:#?}");
}

fn lies(world: &World) -> Vec<String> {
    let pods = world.api.list("Pod");
    let alive = |owner: &Value| -> Vec<&Value> {
        let of = |pod: &&Value| {
            pod["metadata"]["labels"]["mcphub.io/owner-uid"] == owner["metadata"]["uid"]
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        pods.iter().filter(of).collect()
    };
    let hubs = world.api.list("MCPHub");
    let gateways: Vec<&Value> = hubs.iter().flat_map(&alive).collect();
    let servers = world.api.list("MCPServer");
    let mut lies = Vec::new();
    for server in &servers {
        let name = full_name(server);
        let stopped = server["spec"]["paused"] == true || server["spec"]["replicas"] == 0;
        let uid = server["metadata"]["uid"].as_str().unwrap_or_default();
        let reached = |pod: &&&Value| matches!(world.gateways.finds(pod, uid), Some(UpstreamStatus::Ready { .. }));
        let elsewhere = server["spec"]["source"]["remote"].is_object();
        let truth = match elsewhere {
            true => !stopped && gateways.iter().any(|pod| reached(&pod)),
            false => {
                let up = alive(server).iter().any(|pod| is_ready(pod));
                !stopped && up && matches!(world.bridges.fate(&name), Fate::Ready | Fate::Asleep)
            }
        };
        let said = condition(server, "Ready");
        // It can be called: gateways have it woken.
        let truth = truth || is_at_rest(server);
        if said.is_some_and(|said| said["status"] == "True") != truth {
            lies.push(format!("MCPServer {name} is ready: {truth}; its status says {said:?}"));
        }
        if server["status"]["observedGeneration"] != server["metadata"]["generation"] {
            lies.push(format!("the status of MCPServer {name} is of an older spec"));
        }
        let nothing = stopped || elsewhere || is_at_rest(server);
        let wanted = if nothing { 0 } else { server["spec"]["replicas"].as_u64().unwrap_or(1) };
        let running = alive(server).len() as u64;
        if running != wanted && !is_held_back(server) {
            lies.push(format!("MCPServer {name} wants {wanted} pods and has {running}"));
        }
    }
    let is_ready_server = |server: &&Value| condition(server, "Ready").is_some_and(|said| said["status"] == "True");
    for hub in &hubs {
        let (name, status) = (full_name(hub), &hub["status"]);
        let of = |server: &&Value| server["metadata"]["namespace"] == hub["metadata"]["namespace"];
        let selected: Vec<&Value> = servers.iter().filter(of).collect();
        let ready = selected.iter().filter(|server| is_ready_server(server)).count();
        let said = format!("{ready}/{}", selected.len());
        if status["servers"]["summary"] != said.as_str() {
            lies.push(format!("hub {name} has {said} servers ready; its status says {}", status["servers"]));
        }
        let replicas = alive(hub);
        let secret = format!("mcp-hub-{}-config", hub["metadata"]["name"].as_str().unwrap_or_default());
        let namespace = hub["metadata"]["namespace"].as_str().unwrap_or_default();
        let secret = world.api.get("Secret", namespace, &secret).unwrap_or_default();
        let version = &secret["metadata"]["annotations"]["mcphub.io/config-version"];
        let configs: Vec<_> = replicas.iter().filter_map(|pod| world.gateways.config(pod)).collect();
        let synced = configs.iter().filter(|config| *version == config.version.as_str()).count();
        let (said_synced, said_version) = (&status["gateway"]["synced"], &status["gateway"]["version"]);
        // Gateways that lack their certificate are not made, and nothing is said of them.
        let none = replicas.is_empty() && status["gateway"].is_null();
        if synced != replicas.len() || (!none && (*said_synced != synced || said_version != version)) {
            lies.push(format!(
                "hub {name}: {synced} of {} gateways serve version {version}; its status says {}",
                replicas.len(),
                status["gateway"]
            ));
        }
        let serves = replicas.iter().any(|pod| is_ready(pod));
        if condition(hub, "Ready").is_some_and(|said| said["status"] == "True") != serves {
            lies.push(format!("hub {name} serves: {serves}; its status says {:?}", condition(hub, "Ready")));
        }
        for config in configs {
            for server in &selected {
                let uid = server["metadata"]["uid"].as_str().unwrap_or_default();
                let upstream = config.upstreams.iter().find(|upstream| upstream.uid == uid);
                let offered = upstream.is_some_and(|up| match up.target {
                    Target::Available { .. } => !is_at_rest(server),
                    Target::Asleep => is_at_rest(server) && up.definitions.is_some() && config.wake.is_some(),
                    Target::Unavailable { .. } => false,
                });
                // A remote server is tried before it is known to be ready.
                if is_ready_server(server) && !offered {
                    lies.push(format!("a gateway of hub {name} does not offer {}, which is ready", full_name(server)));
                }
            }
            if config.upstreams.len() != selected.len() {
                lies.push(format!(
                    "a gateway of hub {name} knows {} of {} servers",
                    config.upstreams.len(),
                    selected.len()
                ));
            }
        }
    }
    lies
}

/// Whether status says that nothing runs for want of calls.
pub fn is_at_rest(server: &Value) -> bool {
    server["status"]["phase"] == "Asleep" && server["status"]["replicas"] == 0
}

/// Servers whose spec is refused or lacks a secret: what ran before goes on, be it nothing.
fn is_held_back(server: &Value) -> bool {
    let says_no = |name: &str| condition(server, name).filter(|said| said["status"] == "False");
    says_no("Accepted").is_some() || says_no("Resolved").is_some_and(|said| said["reason"] == "SecretMissing")
}

fn full_name(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

pub fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

pub fn is_ready(object: &Value) -> bool {
    condition(object, "Ready").is_some_and(|condition| condition["status"] == "True")
}

/// A status that says ready of a server of which neither a bridge nor a gateway ever said so.
pub(crate) fn unfounded_ready(
    path: &str,
    body: &[u8],
    api: &FakeApi,
    bridges: &Bridges,
    gateways: &Gateways,
) -> Option<String> {
    if !path.ends_with("/status") || !path.contains("/mcpservers/") {
        return None;
    }
    let said: Value = serde_json::from_slice(body).ok()?;
    let uid = said["metadata"]["uid"].as_str()?;
    if !is_ready(&said) || bridges.has_said_ready(uid) || gateways.has_reached(uid) {
        return None;
    }
    let known = api.list("MCPServer").into_iter().any(|server| server["metadata"]["uid"] == uid);
    known.then(|| format!("{path} says ready, and nobody ever said so: {said}"))
}

/// A secret's value in a write to anything but a Secret.
pub(crate) fn exposed(path: &str, body: &[u8], secrets: &[String]) -> Vec<String> {
    if path.contains("/secrets/") {
        return Vec::new();
    }
    let body = String::from_utf8_lossy(body);
    leaks(&body, secrets).into_iter().map(|leak| format!("a write to {path} holds {leak}: {body}")).collect()
}

/// The values, in any form in which they might be written, that the text holds.
pub fn leaks(text: &str, secrets: &[String]) -> Vec<String> {
    let forms = |secret: &String| [secret.clone(), STANDARD.encode(secret), hex::encode(secret)];
    secrets.iter().flat_map(forms).filter(|form| text.contains(form)).collect()
}

/// Deployments with more pods than a rolling update may have. `most`: the most replicas that each ever asked for.
pub(crate) fn too_many_pods(api: &FakeApi, most: &mut BTreeMap<String, usize>) -> Vec<String> {
    let pods = api.list("Pod");
    let mut found = Vec::new();
    for deployment in api.list("Deployment") {
        let owner = &deployment["metadata"]["labels"]["mcphub.io/owner-uid"];
        let wanted =
            deployment["spec"]["replicas"].as_u64().and_then(|wanted| usize::try_from(wanted).ok()).unwrap_or(1);
        let most = most.entry(deployment["metadata"]["uid"].to_string()).or_default();
        *most = wanted.max(*most);
        let alive = |pod: &&Value| {
            pod["metadata"]["labels"]["mcphub.io/owner-uid"] == *owner && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let count = pods.iter().filter(alive).count();
        if owner.is_string() && count > *most + 1 {
            found.push(format!("{} has {count} pods, and never asked for more than {most}", full_name(&deployment)));
        }
    }
    found
}
