//! Writes images as archives: the tar of an OCI image layout, made from scratch.
//!
//! The same input gives the same bytes: times are zero, entries stand in the order given, layers are not compressed (who
//! pushes an image compresses them, `skopeo copy` for one). `ctr images import`, `docker load` and `skopeo copy
//! oci-archive:` read it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::platform::Platform;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    pub platform: Platform,
    pub layers: Vec<Layer>,
    pub start: Start,
}

/// What a container of the image starts.
#[derive(Debug, Clone, Default)]
pub struct Start {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Number or name, with or without a group; empty is root.
    pub user: String,
    pub env: BTreeMap<String, String>,
    /// Empty is `/`.
    pub working_dir: String,
    pub labels: BTreeMap<String, String>,
}

/// One layer: entries in the order in which they are unpacked, a folder before what lies in it.
#[derive(Debug, Clone, Default)]
pub struct Layer(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    /// Without a leading `/`.
    path: String,
    kind: Kind,
    mode: u32,
    /// User and group.
    owner: u32,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder,
    File(Vec<u8>),
    Link(String),
}

impl Layer {
    /// Adds a folder, owned by root.
    #[must_use]
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.entry(path, Kind::Folder, mode)
    }

    /// Adds a file, owned by root.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.entry(path, Kind::File(content.into()), mode)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, Kind::Link(target.to_owned()), 0o777)
    }

    /// Gives the entry added last to a user and the group of the same number.
    #[must_use]
    pub fn owned_by(mut self, owner: u32) -> Self {
        if let Some(entry) = self.0.last_mut() {
            entry.owner = owner;
        }
        self
    }

    /// Adds what an archive holds, under the paths that `place` gives; what it gives none for is left out. All is root's,
    /// and no program runs as another user than whoever starts it.
    ///
    /// # Errors
    /// If the archive cannot be read, or what is wanted of it is neither folder, file nor symbolic link.
    pub fn unpacked(mut self, archive: impl Read, place: impl Fn(&str) -> Option<String>) -> io::Result<Self> {
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let Some(path) = place(path.trim_start_matches("./").trim_end_matches('/')) else { continue };
            let mode = entry.header().mode()? & 0o777;
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory => Kind::Folder,
                tar::EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Kind::File(content)
                }
                tar::EntryType::Symlink => {
                    let target = entry.link_name()?.unwrap_or_default();
                    Kind::Link(target.to_string_lossy().into_owned())
                }
                other => {
                    let message = format!("{path} is {other:?}, which no layer holds");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            };
            self = self.entry(&path, kind, mode);
        }
        Ok(self)
    }

    fn entry(mut self, path: &str, kind: Kind, mode: u32) -> Self {
        self.0.push(Entry { path: path.trim_start_matches('/').to_owned(), kind, mode, owner: 0 });
        self
    }

    fn tar(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for Entry { path, kind, mode, owner } in &self.0 {
            let mut header = header(*mode, *owner);
            match kind {
                Kind::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    archive.append_data(&mut header, format!("{}/", path.trim_end_matches('/')), io::empty())?;
                }
                Kind::File(content) => {
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, &content[..])?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        archive.into_inner()
    }
}

pub(crate) fn header(mode: u32, owner: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_mtime(0);
    header
}

/// Writes the archive of an image under its name, such as `localhost/mcp-hub/bridge:1`. One image for several platforms
/// is given once for each.
///
/// # Errors
/// If `out` cannot be written, or a path is longer than a tar can hold.
pub fn write(name: &str, images: &[Image], out: impl Write) -> io::Result<()> {
    let mut blobs = Blobs::default();
    let manifests = images.iter().map(|image| blobs.image(image)).collect::<io::Result<Vec<_>>>()?;
    // Docker before version 25 reads this and nothing else, and it can name one platform only.
    let for_docker = match &manifests[..] {
        [one] => Some(json!([{"Config": one.config, "RepoTags": [name], "Layers": one.layers}])),
        _ => None,
    };
    let mut top = match manifests.len() {
        1 => manifests.into_iter().map(|manifest| manifest.descriptor).collect(),
        _ => {
            let descriptors: Vec<Value> = manifests.into_iter().map(|manifest| manifest.descriptor).collect();
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors});
            vec![blobs.json(INDEX, &index)]
        }
    };
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    for descriptor in &mut top {
        // containerd takes the name from the one, the specification and skopeo from the other.
        descriptor["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": top});

    let mut archive = tar::Builder::new(out);
    let mut add = |path: &str, content: &[u8]| {
        let mut header = header(0o644, 0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index.to_string().as_bytes())?;
    if let Some(for_docker) = for_docker {
        add("manifest.json", for_docker.to_string().as_bytes())?;
    }
    for (digest, content) in &blobs.0 {
        add(&path_of(digest), content)?;
    }
    archive.into_inner()?.flush()
}

/// Content by its digest in hexadecimal.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

/// A manifest among the blobs.
struct Written {
    descriptor: Value,
    /// Paths in the archive.
    config: String,
    layers: Vec<String>,
}

fn path_of(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

impl Blobs {
    fn image(&mut self, image: &Image) -> io::Result<Written> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(self.add(LAYER, layer.tar()?));
        }
        let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let mut config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": image.platform.architecture,
            "os": image.platform.os,
            "config": start(&image.start),
            // Of a layer that is not compressed both digests are one.
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        if let Some(variant) = &image.platform.variant {
            config["variant"] = json!(variant);
        }
        let config = self.json(CONFIG, &config);
        let path = |descriptor: &Value| {
            path_of(descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).unwrap_or_default())
        };
        let (config_path, layer_paths) = (path(&config), layers.iter().map(path).collect());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.json(MANIFEST, &manifest);
        descriptor["platform"] = json!(image.platform);
        Ok(Written { descriptor, config: config_path, layers: layer_paths })
    }

    fn json(&mut self, media_type: &str, document: &Value) -> Value {
        self.add(media_type, document.to_string().into_bytes())
    }

    /// Gives the descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = hex::encode(Sha256::digest(&content));
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()});
        self.0.insert(digest, content);
        descriptor
    }
}

fn start(start: &Start) -> Value {
    let Start { entrypoint, cmd, user, env, working_dir, labels } = start;
    let mut config = json!({});
    let mut set = |name: &str, value: Value| config[name] = value;
    if !entrypoint.is_empty() {
        set("Entrypoint", json!(entrypoint));
    }
    if !cmd.is_empty() {
        set("Cmd", json!(cmd));
    }
    if !user.is_empty() {
        set("User", json!(user));
    }
    if !env.is_empty() {
        set("Env", env.iter().map(|(name, value)| format!("{name}={value}")).collect());
    }
    if !working_dir.is_empty() {
        set("WorkingDir", json!(working_dir));
    }
    if !labels.is_empty() {
        set("Labels", json!(labels));
    }
    config
}
