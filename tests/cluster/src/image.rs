//! Images made from scratch: an archive of one OCI layout, as container engines import it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::cluster::Shape;
use crate::error::Error;
use crate::{process, tools};

/// The node's images: what holds a pod's namespaces, and a shell with tools for tests.
pub(crate) const PAUSE: &str = "localhost/pause:1";
pub const BUSYBOX: &str = "localhost/busybox:1";

/// An image of one layer. The same value makes the same bytes.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// With its tag, such as `localhost/tool:1`. A tag other than `latest` is taken from the node without asking a registry.
    pub name: String,
    /// By absolute path. Folders above them are made.
    pub files: BTreeMap<String, Content>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// As in `USER`: empty is root.
    pub user: String,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
}

#[derive(Debug, Clone)]
pub enum Content {
    /// A static program, readable and executable by all.
    Program(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
    /// A folder that all may write to, as `/tmp`.
    Scratch,
}

impl Image {
    /// The image [`BUSYBOX`] or, with a program that only waits, the one that holds a pod's namespaces: the machine's own
    /// busybox, with all its applets.
    pub(crate) fn busybox(name: &str) -> Result<Self, Error> {
        let path = tools::busybox().ok_or_else(|| Error::NotInstalled(tools::missing(Shape::Node)))?;
        let program = std::fs::read(&path).map_err(Error::file("read", &path))?;
        let applets = process::output(Command::new(&path).arg("--list"))?;
        let links = applets.lines().filter(|applet| *applet != "busybox");
        let mut files: BTreeMap<String, Content> =
            links.map(|applet| (format!("/bin/{applet}"), Content::Link("busybox".to_owned()))).collect();
        files.insert("/bin/busybox".to_owned(), Content::Program(program));
        files.insert("/tmp".to_owned(), Content::Scratch);
        let cmd = ["/bin/sleep", "2147483647"].map(str::to_owned).to_vec();
        Ok(Self { name: name.to_owned(), files, cmd, env: vec!["PATH=/bin".to_owned()], ..Self::default() })
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let archive = || -> io::Result<Vec<u8>> {
            let layer = self.layer()?;
            let config = self.config(&layer);
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described("application/vnd.oci.image.config.v1+json", &config),
                "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
            });
            let manifest = manifest.to_string().into_bytes();
            let mut entry = described(MANIFEST, &manifest);
            entry["annotations"] = json!({"io.containerd.image.name": self.name});
            let index = json!({"schemaVersion": 2, "manifests": [entry]});
            let mut archive = Builder::new(Vec::new());
            add(&mut archive, "oci-layout", EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            add(&mut archive, "index.json", EntryType::Regular, 0o644, index.to_string().as_bytes())?;
            for blob in [&config, &manifest, &layer] {
                add(&mut archive, &format!("blobs/sha256/{}", digest(blob)), EntryType::Regular, 0o644, blob)?;
            }
            archive.into_inner()
        };
        archive().and_then(|bytes| std::fs::write(path, bytes)).map_err(Error::file("write", path))
    }

    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        let mut folders = std::collections::BTreeSet::new();
        for (path, content) in &self.files {
            let path = path.trim_start_matches('/');
            for (end, _) in path.match_indices('/') {
                let folder = path.get(..end).unwrap_or_default();
                if folders.insert(folder) {
                    add(&mut layer, folder, EntryType::Directory, 0o755, &[])?;
                }
            }
            match content {
                Content::Program(bytes) => add(&mut layer, path, EntryType::Regular, 0o755, bytes)?,
                Content::Scratch => add(&mut layer, path, EntryType::Directory, 0o1777, &[])?,
                Content::Link(target) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    layer.append_link(&mut header, path, target)?;
                }
            }
        }
        layer.into_inner()
    }

    fn config(&self, layer: &[u8]) -> Vec<u8> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.cmd, "User": self.user, "Env": self.env},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))]},
        });
        config.to_string().into_bytes()
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn described(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", digest(blob)), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    hex::encode(Sha256::digest(blob))
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // Memory holds it, so it fits.
    header.set_size(u64::try_from(size).unwrap_or(u64::MAX));
    header
}

fn add(archive: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, content.len()), path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> Image {
        Image {
            name: "localhost/tool:1".to_owned(),
            files: BTreeMap::from([
                ("/opt/bin/tool".to_owned(), Content::Program(b"program".to_vec())),
                ("/tool".to_owned(), Content::Link("opt/bin/tool".to_owned())),
                ("/tmp".to_owned(), Content::Scratch),
            ]),
            entrypoint: vec!["/tool".to_owned()],
            user: "65532".to_owned(),
            ..Image::default()
        }
    }

    #[test]
    fn a_layer_has_the_folders_above_its_files() {
        let layer = tool().layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, entry.header().entry_type(), entry.header().mode().unwrap())
        });
        let expected = [
            ("opt", EntryType::Directory, 0o755),
            ("opt/bin", EntryType::Directory, 0o755),
            ("opt/bin/tool", EntryType::Regular, 0o755),
            ("tmp", EntryType::Directory, 0o1777),
            ("tool", EntryType::Symlink, 0o777),
        ];
        assert_eq!(entries.collect::<Vec<_>>(), expected.map(|(path, kind, mode)| (path.to_owned(), kind, mode)));
    }

    #[test]
    fn the_same_image_is_the_same_archive() {
        let folder = tempfile::tempdir().unwrap();
        let written = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            tool().write(&path).unwrap();
            std::fs::read(path).unwrap()
        });
        assert_eq!(written[0], written[1]);
    }
}
