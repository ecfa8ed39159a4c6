//! Volumes of a service.

use mcp_hub_crds::FieldPath;
use mcp_hub_crds::tree::{Kind, Node};
use serde_json::{Map, Value, json};

use super::Relative;
use super::compose::{Reading, scalar};

/// One mount, whatever its notation.
#[derive(Debug, Default)]
pub(super) struct Mount {
    pub(super) kind: String,
    pub(super) source: String,
    pub(super) target: String,
    pub(super) read_only: bool,
    pub(super) path: FieldPath,
}

/// The mounts of a service. What is wrong with one is said.
pub(super) fn read(reading: &mut Reading<'_>, path: &FieldPath, node: &Node) -> Vec<Mount> {
    let Kind::List(items) = &node.kind else {
        reading.miss(path, "expected a list", None);
        return Vec::new();
    };
    let mut mounts = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = path.index(index);
        let mount = match &item.kind {
            Kind::Map(_) => long(reading, &path, item),
            Kind::Scalar(_) | Kind::List(_) => short(reading, &path, item),
        };
        mounts.extend(mount.map(|mount| Mount { path, ..mount }));
    }
    mounts
}

/// `[SOURCE:]TARGET[:MODE]`.
fn short(reading: &mut Reading<'_>, path: &FieldPath, node: &Node) -> Option<Mount> {
    let text = reading.literal(path, node)?;
    let (rest, mode) = match text.rsplit_once(':') {
        Some((rest, mode)) if !mode.contains('/') => (rest.to_owned(), mode.to_owned()),
        _ => (text.clone(), String::new()),
    };
    let (source, target) = rest.rsplit_once(':').unwrap_or(("", rest.as_str()));
    let mut read_only = false;
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => {}
            // Labels of SELinux, and how a Mac keeps files in step.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {
                reading.tell(path, format!("the option `{option}` is the engine's own"));
            }
            _ => reading.miss(path, format!("the option `{option}` has no counterpart"), None),
        }
    }
    let kind = if is_path(source) { "bind" } else { "volume" };
    Some(Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        path: path.clone(),
    })
}

fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~', '\\']) || source.contains('/')
}

fn long(reading: &mut Reading<'_>, path: &FieldPath, node: &Node) -> Option<Mount> {
    let mut mount = Mount { kind: "volume".to_owned(), ..Mount::default() };
    for entry in node.entries() {
        let path = path.field(&entry.key);
        match entry.key.as_str() {
            "type" => mount.kind = reading.literal(&path, &entry.value)?,
            "source" | "src" => mount.source = reading.literal(&path, &entry.value)?,
            "target" | "dst" | "destination" => mount.target = reading.literal(&path, &entry.value)?,
            "read_only" => mount.read_only = scalar(&entry.value).as_deref() == Some("true"),
            // How an engine makes it; a manifest makes no folder and copies nothing.
            "bind" | "volume" | "tmpfs" | "consistency" => {}
            key if key.starts_with("x-") => {}
            _ => reading.miss(&path, "it has no counterpart", None),
        }
    }
    Some(mount)
}

/// The volume of a manifest. `known`: the same one as the manifest had it from which the file was generated.
pub(super) fn volume(reading: &mut Reading<'_>, mount: &Mount, index: usize, known: Option<&Value>) -> Option<Value> {
    let Mount { kind, source, target, read_only, path } = mount;
    let mut volume = Map::new();
    let given = known.and_then(|known| known["name"].as_str()).map(str::to_owned);
    volume.insert("name".to_owned(), given.unwrap_or_else(|| name(source, target, index)).into());
    volume.insert("mountPath".to_owned(), target.clone().into());
    if *read_only {
        volume.insert("readOnly".to_owned(), true.into());
    }
    match kind.as_str() {
        "bind" if source.ends_with("docker.sock") || source.ends_with("podman.sock") => {
            let hint =
                Some("whoever has the engine's socket has the machine; write the manifest by hand if you want that");
            reading.miss(path, format!("{source} is a container engine's socket"), hint);
            return None;
        }
        "bind" => {
            volume.insert("hostPath".to_owned(), absolute(reading.relative, source).into());
        }
        "volume" => {
            if known.is_none() {
                reading.tell(
                    path,
                    format!(
                        "a volume of the server's own, which is empty at first: what is in `{source}` is not copied"
                    ),
                );
            }
            volume.insert("emptyDir".to_owned(), json!({}));
        }
        "tmpfs" => {
            volume.insert("emptyDir".to_owned(), json!({}));
        }
        other => {
            reading.miss(path, format!("a mount of type `{other}` has no counterpart"), None);
            return None;
        }
    }
    Some(Value::Object(volume))
}

fn absolute(relative: Relative<'_>, source: &str) -> String {
    match relative {
        Relative::To(folder) if !source.starts_with(['/', '~']) => {
            let tail = source.strip_prefix("./").unwrap_or(source);
            let tail = if tail == "." { "" } else { tail };
            folder.join(tail).to_string_lossy().trim_end_matches('/').to_owned()
        }
        Relative::To(_) | Relative::Kept => source.to_owned(),
    }
}

/// A name after the source's or the target's last part.
fn name(source: &str, target: &str, index: usize) -> String {
    let part =
        |text: &str| text.rsplit('/').find(|part| !part.is_empty() && *part != ".").unwrap_or_default().to_owned();
    let text = if source.is_empty() { part(target) } else { part(source) };
    match mcp_hub_crds::client_config::server_name(&text) {
        // Two folders may end alike.
        Ok(name) => format!("{name}-{}", index + 1),
        Err(_) => format!("volume-{}", index + 1),
    }
}
