//! One service as the spec of a server.

use std::collections::BTreeMap;

use mcp_hub_crds::FieldPath;
use mcp_hub_crds::tree::{Entry, Kind, Node};
use mcp_hub_dataplane_api::launch::{LAUNCH_ENV, SECRETS_ENV};
use serde_json::{Map, Value, json};

use super::compose::{Reading, scalar};
use super::label::Label;
use super::{environment, mounts, secrets};
use crate::engine::{self, TYPE_LABEL};

/// What MCP Hub does for every server in its own way.
const OUR_BUSINESS: [(&str, &str); 17] = [
    ("cap_drop", "every server runs without capabilities"),
    ("container_name", "containers are named after their servers"),
    ("expose", "a server is reached through the hub"),
    ("healthcheck", "a server is asked by MCP whether it is alive"),
    ("hostname", "a server is reached through the hub"),
    ("init", "the bridge in front of a server reaps its processes"),
    ("logging", "`mcpctl logs` shows them"),
    ("networks", "a server has a network of its own, and reaches other services by published ports only"),
    ("oom_kill_disable", "a server that takes too much memory is restarted"),
    ("pids_limit", "every server has a bound of its own"),
    ("pull_policy", "an image runs by the digest that its reference has when it is resolved"),
    ("restart", "the bridge restarts a server; see spec.restart"),
    ("stdin_open", "a server on stdio has its stdin open"),
    ("stop_grace_period", "calls under way are finished before a server ends"),
    ("stop_signal", "a server ends by SIGTERM"),
    ("tty", "MCP has no terminal"),
    ("userns_mode", "a server runs as a user without rights"),
];

/// The spec. `ours`: what our own label holds, of a file that `mcpctl generate` wrote. `None` if there is no source.
pub(super) fn read(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    service: &Node,
    labels: &BTreeMap<String, String>,
    ours: Option<&Label>,
) -> Option<Map<String, Value>> {
    let mut spec = ours.map(|ours| ours.spec.clone()).unwrap_or_default();
    let mut volumes = Vec::new();
    let known_volumes = spec.remove("volumes");
    let mut image = None;
    for entry in service.entries() {
        let path = path.field(&entry.key);
        match (entry.key.as_str(), ours) {
            ("image", _) => image = reading.literal(&path, &entry.value),
            ("environment", _) => variables(reading, &path, &entry.value, ours, &mut spec),
            ("volumes", _) => {
                for mount in mounts::read(reading, &path, &entry.value) {
                    if ours.is_some() && is_bridges(&mount) {
                        continue;
                    }
                    let same = |volume: &&Value| volume["mountPath"] == mount.target.as_str();
                    let known = known_volumes.as_ref().and_then(|known| known.as_array()?.iter().find(same));
                    volumes.extend(mounts::volume(reading, &mount, volumes.len(), known));
                }
            }
            ("working_dir", _) => {
                spec.extend(
                    reading.literal(&path, &entry.value).map(|folder| ("workingDir".to_owned(), folder.into())),
                );
            }
            ("mem_limit", _) => limit(reading, &path, &entry.value, "limits", Amount::Memory, &mut spec),
            ("mem_reservation", None) => limit(reading, &path, &entry.value, "requests", Amount::Memory, &mut spec),
            ("cpus", _) => limit(reading, &path, &entry.value, "limits", Amount::Cpu, &mut spec),
            // Written beside mem_limit, which counts.
            ("memswap_limit", _) => {}
            ("deploy", _) => deploy(reading, &path, &entry.value, ours.is_some(), &mut spec),
            ("scale", _) => replicas(reading, &path, &entry.value, &mut spec),
            // All else of ours is what every server gets.
            (_, Some(_)) => {}
            (_, None) => foreign(reading, &path, entry, labels, &mut spec, &mut volumes),
        }
    }
    if !volumes.is_empty() {
        spec.insert("volumes".to_owned(), volumes.into());
    }
    source(reading, path, service, image, ours, &mut spec)?;
    let speaks_http =
        labels.get(TYPE_LABEL).is_some_and(|kind| ["http", "sse", "streamable-http"].contains(&kind.as_str()));
    if ours.is_none() && speaks_http && !spec.contains_key("transport") {
        let hint = Some("name it by `ports`, or write spec.transport by hand");
        reading.miss(&path.field("labels").field(TYPE_LABEL), "a server that speaks HTTP needs its port", hint);
    }
    Some(spec)
}

/// `source.image`: from the service, unless our label knows it better.
fn source(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    service: &Node,
    image: Option<String>,
    ours: Option<&Label>,
    spec: &mut Map<String, Value>,
) -> Option<()> {
    if ours.is_some() {
        let known = spec.get_mut("source").and_then(|source| source.get_mut("image"));
        if let (Some(known), Some(image)) = (known, image) {
            // Generated with the digest of then; another reference is somebody's edit.
            let same =
                known["ref"].as_str().is_some_and(|known| image == known || image.starts_with(&format!("{known}@")));
            if !same {
                known["ref"] = image.into();
            }
        }
        return Some(());
    }
    let Some(image) = image else {
        // What is built is said where it says so.
        if service.get("image").is_none() && service.get("build").is_none() {
            reading.miss(path, "it has no image", None);
        }
        return None;
    };
    let mut source = json!({"ref": image});
    if let Some(command) = spec.remove("command") {
        source["command"] = command;
    }
    spec.insert("source".to_owned(), json!({"image": source}));
    Some(())
}

fn variables(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    node: &Node,
    ours: Option<&Label>,
    spec: &mut Map<String, Value>,
) {
    let mut known: Vec<Value> = spec.remove("env").and_then(|env| env.as_array().cloned()).unwrap_or_default();
    let given = environment::read(reading, path, node, |name, value| {
        let is_home = name == "HOME" && value == Some("/tmp");
        ours.is_some()
            && (is_home
                || [LAUNCH_ENV, SECRETS_ENV].contains(&name)
                || known.iter().any(|variable| variable["name"] == name))
    });
    known.extend(given);
    if !known.is_empty() {
        spec.insert("env".to_owned(), known.into());
    }
}

/// What every server of a generated file has mounted.
fn is_bridges(mount: &mounts::Mount) -> bool {
    engine::OWN_FOLDERS.contains(&mount.target.as_str()) || (mount.kind == "tmpfs" && mount.target == "/tmp")
}

#[derive(Clone, Copy)]
enum Amount {
    Cpu,
    Memory,
}

fn limit(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    node: &Node,
    section: &str,
    amount: Amount,
    spec: &mut Map<String, Value>,
) {
    let Some(text) = reading.literal(path, node) else { return };
    let (key, quantity) = match amount {
        Amount::Cpu => ("cpu", cores(&text)),
        Amount::Memory => ("memory", bytes(&text)),
    };
    match quantity {
        Some(quantity) => {
            let resources = spec.entry("resources").or_insert_with(|| json!({}));
            resources[section][key] = quantity.into();
        }
        None => reading.miss(path, format!("`{text}` is no amount"), None),
    }
}

/// `0.5` as `500m`.
fn cores(text: &str) -> Option<String> {
    let cores: f64 = text.parse().ok().filter(|cores| (0.001..=100_000.0).contains(cores))?;
    Some(format!("{}m", (cores * 1000.0).round()))
}

/// `256m`, `1gb`, `1.5g`, `1024`: powers of 1024, as engines read them.
fn bytes(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 1.0,
        "k" => 1024.0,
        "m" => 1_048_576.0,
        "g" => 1_073_741_824.0,
        "t" => 1_099_511_627_776.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok().filter(|number: &f64| *number > 0.0 && *number < 1e12)?;
    let mut amount = format!("{:.0}", number * unit).parse::<u64>().ok()?;
    for suffix in ["", "Ki", "Mi"] {
        if !amount.is_multiple_of(1024) || suffix == "Mi" {
            return Some(format!("{amount}{suffix}"));
        }
        amount /= 1024;
    }
    None
}

fn deploy(reading: &mut Reading<'_>, path: &FieldPath, node: &Node, is_ours: bool, spec: &mut Map<String, Value>) {
    for entry in node.entries() {
        let path = path.field(&entry.key);
        match entry.key.as_str() {
            "replicas" => replicas(reading, &path, &entry.value, spec),
            "resources" => {
                for (section, ours) in [("limits", "limits"), ("reservations", "requests")] {
                    let Some(amounts) = entry.value.get(section) else { continue };
                    for amount in amounts.value.entries() {
                        let path = path.field(section).field(&amount.key);
                        match amount.key.as_str() {
                            "cpus" => limit(reading, &path, &amount.value, ours, Amount::Cpu, spec),
                            "memory" => limit(reading, &path, &amount.value, ours, Amount::Memory, spec),
                            "pids" => {}
                            _ => reading.miss(&path, "it has no counterpart", None),
                        }
                    }
                }
            }
            _ if is_ours => {}
            "restart_policy" | "update_config" | "rollback_config" | "endpoint_mode" | "labels" => {
                reading.tell(&path, "MCP Hub does this in its own way");
            }
            "mode" if scalar(&entry.value).as_deref() == Some("replicated") => {}
            _ => reading.miss(&path, "it has no counterpart", None),
        }
    }
}

fn replicas(reading: &mut Reading<'_>, path: &FieldPath, node: &Node, spec: &mut Map<String, Value>) {
    match reading.literal(path, node).map(|text| text.parse::<i32>()) {
        None => {}
        Some(Ok(1)) => {}
        Some(Ok(count)) => {
            spec.insert("replicas".to_owned(), count.into());
        }
        Some(Err(_)) => reading.miss(path, "it is no number", None),
    }
}

/// A key of a service that we did not write.
fn foreign(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    entry: &Entry,
    labels: &BTreeMap<String, String>,
    spec: &mut Map<String, Value>,
    volumes: &mut Vec<Value>,
) {
    let node = &entry.value;
    match entry.key.as_str() {
        "entrypoint" => {
            spec.extend(words(reading, path, node).map(|words| ("command".to_owned(), json!(words))));
        }
        "command" => {
            spec.extend(words(reading, path, node).map(|words| ("args".to_owned(), json!(words))));
        }
        "user" => user(reading, path, node, spec),
        "ports" => ports(reading, path, node, labels, spec),
        "labels" => foreign_labels(reading, path, labels),
        "read_only" => {
            if scalar(node).as_deref() != Some("true") {
                reading.tell(path, "its root is read-only unless spec.permissions.filesystem is unrestricted");
            }
        }
        "security_opt" => {
            if !matches!(&node.kind, Kind::List(items) if items.iter().all(|item| scalar(item).is_some_and(|text| text.starts_with("no-new-privileges"))))
            {
                reading.miss(path, "a server's confinement cannot be changed", None);
            }
        }
        "network_mode" => match scalar(node).as_deref() {
            Some("none") => {
                spec.insert("permissions".to_owned(), json!({"network": {"egress": []}}));
            }
            Some("bridge") => {}
            _ => reading.miss(path, "a server has a network of its own", None),
        },
        "depends_on" => {
            let names: Vec<String> = match &node.kind {
                Kind::Map(entries) => entries.iter().map(|entry| entry.key.clone()).collect(),
                Kind::List(items) => items.iter().filter_map(scalar).collect(),
                Kind::Scalar(_) => Vec::new(),
            };
            match names.iter().find(|name| !reading.servers.contains(*name)) {
                None => reading.tell(path, "servers start in no order: the hub waits for each"),
                Some(other) => {
                    let hint = Some("run it in another way, and let the server reach it");
                    reading.miss(path, format!("`{other}` is no MCP server, and does not run here"), hint);
                }
            }
        }
        "tmpfs" => {
            let items = match &node.kind {
                Kind::List(items) => items.iter().collect(),
                Kind::Scalar(_) | Kind::Map(_) => vec![node],
            };
            for item in items {
                let Some(text) = reading.literal(path, item) else { continue };
                let target = text.split(':').next().unwrap_or_default();
                // Every server has one there.
                if target != "/tmp" {
                    let mount = mounts::Mount {
                        kind: "tmpfs".to_owned(),
                        target: target.to_owned(),
                        path: path.clone(),
                        ..Default::default()
                    };
                    volumes.extend(mounts::volume(reading, &mount, volumes.len(), None));
                }
            }
        }
        "build" => reading.miss(path, "images are not built here", Some("build it, push it, and name it by `image`")),
        "env_file" => reading.miss(
            path,
            "files of variables are not read",
            Some("write its variables into spec.env, secrets by secretRef"),
        ),
        "secrets" | "configs" => reading.miss(
            path,
            "files of secrets have no counterpart",
            Some("give the server a variable with a secretRef"),
        ),
        "privileged" if scalar(node).as_deref() == Some("false") => {}
        key if key.starts_with("x-") => {}
        key => match OUR_BUSINESS.iter().find(|(known, _)| *known == key) {
            Some((_, why)) => reading.tell(path, *why),
            None => reading.miss(path, "it has no counterpart", None),
        },
    }
}

/// A command line as a list, or as text that a shell would take apart, without secrets.
fn words(reading: &mut Reading<'_>, path: &FieldPath, node: &Node) -> Option<Vec<String>> {
    let (words, places) = secrets::without(written(reading, path, node)?);
    for place in places {
        let path = if matches!(node.kind, Kind::List(_)) { path.index(place) } else { path.clone() };
        reading.miss(&path, secrets::ARGUMENT, Some(secrets::ARGUMENT_HINT));
    }
    Some(words)
}

fn written(reading: &mut Reading<'_>, path: &FieldPath, node: &Node) -> Option<Vec<String>> {
    match &node.kind {
        Kind::Scalar(Value::Null) => None,
        Kind::Scalar(_) => {
            let text = reading.literal(path, node)?;
            let words = shlex::split(&text);
            if words.is_none() {
                reading.miss(path, "its quotes are not closed", None);
            }
            words
        }
        Kind::List(items) => {
            items.iter().enumerate().map(|(index, item)| reading.literal(&path.index(index), item)).collect()
        }
        Kind::Map(_) => {
            reading.miss(path, "expected a list or text", None);
            None
        }
    }
}

fn user(reading: &mut Reading<'_>, path: &FieldPath, node: &Node, spec: &mut Map<String, Value>) {
    let Some(text) = reading.literal(path, node) else { return };
    let (user, group) = text.split_once(':').map_or((text.as_str(), None), |(user, group)| (user, Some(group)));
    match (user.parse::<u32>(), group.map(str::parse::<u32>)) {
        (Ok(0), _) => {
            reading.miss(path, "a server does not run as root", Some("if it must, write runAs with allowRoot by hand"))
        }
        (Ok(user), None) => {
            spec.insert("runAs".to_owned(), json!({"user": user}));
        }
        (Ok(user), Some(Ok(group))) => {
            spec.insert("runAs".to_owned(), json!({"user": user, "group": group}));
        }
        _ if text == "root" => reading.miss(path, "a server does not run as root", None),
        _ => reading.miss(
            path,
            "users and groups by name are not known outside of the image",
            Some("write their numbers"),
        ),
    }
}

/// The port that a server listens on: a server with a published port speaks HTTP.
fn ports(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    node: &Node,
    labels: &BTreeMap<String, String>,
    spec: &mut Map<String, Value>,
) {
    let Kind::List(items) = &node.kind else { return reading.miss(path, "expected a list", None) };
    let mut found = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = path.index(index);
        let text = match &item.kind {
            Kind::Map(_) => item.get("target").and_then(|target| reading.literal(&path.field("target"), &target.value)),
            Kind::Scalar(_) | Kind::List(_) => reading.literal(&path, item),
        };
        let Some(text) = text else { continue };
        let inner = text.rsplit(':').next().unwrap_or_default().trim_end_matches("/tcp");
        match inner.parse::<u16>() {
            Ok(port) => found.push(port),
            Err(_) => reading.miss(&path, format!("`{inner}` is no port of TCP"), None),
        }
    }
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [] => {}
        [port] => {
            let kind = if labels.get(TYPE_LABEL).is_some_and(|kind| kind == "sse") { "sse" } else { "streamable-http" };
            spec.insert("transport".to_owned(), json!({"type": kind, "port": port}));
            reading.tell(
                path,
                format!("taken for MCP by {kind} on port {port}; it is reached through the hub and not published"),
            );
        }
        _ => reading.miss(path, "a server has one port", Some("write spec.transport by hand")),
    }
}

fn foreign_labels(reading: &mut Reading<'_>, path: &FieldPath, labels: &BTreeMap<String, String>) {
    for name in labels.keys() {
        match name.as_str() {
            engine::NAME_LABEL | engine::TYPE_LABEL | "mcp-hub.description" => {}
            _ => reading.tell(&path.field(name), "it has no use here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_engines_read_them() {
        for (text, wanted) in [
            ("256m", Some("256Mi")),
            ("256M", Some("256Mi")),
            ("1g", Some("1024Mi")),
            ("1.5gb", Some("1536Mi")),
            ("1GiB", Some("1024Mi")),
            ("64k", Some("64Ki")),
            ("1000", Some("1000")),
            ("1000b", Some("1000")),
            ("2t", Some("2097152Mi")),
            ("-1", None),
            ("0", None),
            ("lots", None),
            ("1x", None),
        ] {
            assert_eq!(bytes(text).as_deref(), wanted, "{text}");
        }
        for (text, wanted) in [("0.5", Some("500m")), ("2", Some("2000m")), ("0", None), ("-1", None), ("NaN", None)] {
            assert_eq!(cores(text).as_deref(), wanted, "{text}");
        }
    }
}
