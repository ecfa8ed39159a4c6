//! Index, manifest and configuration of an image (OCI image specification, and Docker's older names for the same).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use crate::content::Blob;
use crate::error::RegistryError;
use crate::platform::Platform;
use crate::reference::{Reference, is_digest};

/// Media types that are asked for. Without them a registry may answer in a form of ten years ago.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Configurations that a container can be made of.
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What a document is that does not say so itself; Docker's always do.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    media_type: Option<String>,
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
pub(crate) struct Entry {
    pub(crate) digest: String,
    platform: Option<Place>,
}

/// A platform, and the release of Windows that an image is made for.
#[derive(Deserialize)]
struct Place {
    #[serde(flatten)]
    platform: Platform,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    media_type: Option<String>,
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

/// The parts by which a document is told from others.
#[derive(Deserialize)]
struct Shape {
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

pub(crate) fn parse(body: &[u8], image: &Reference) -> Result<Document, RegistryError> {
    let shape: Shape = json(body, "the manifest", image)?;
    match (shape.manifests, shape.config, shape.layers) {
        // Both at once would be read as the one by some and as the other by others (CVE-2021-41190).
        (Some(_), None, None) => Ok(Document::Index(json(body, "the index", image)?)),
        (None, Some(_), _) => Ok(Document::Manifest(json(body, "the manifest", image)?)),
        (Some(_), _, _) => Err(no_image(image, "index and manifest in one document")),
        (None, None, _) => Err(no_image(image, "a manifest without a configuration")),
    }
}

impl Index {
    pub(crate) fn choose(&self, wanted: &Platform) -> Option<&Entry> {
        let of = |entry: &&Entry| entry.platform.as_ref().is_some_and(|place| place.platform.fits(wanted));
        let exactly = |entry: &&Entry| entry.platform.as_ref().is_some_and(|place| place.platform == *wanted);
        let chosen = self.manifests.iter().find(exactly).or_else(|| self.manifests.iter().find(of));
        chosen.filter(|entry| is_digest(&entry.digest))
    }

    pub(crate) fn platforms(&self) -> Vec<Platform> {
        let platforms = self.manifests.iter().filter_map(|entry| entry.platform.as_ref());
        platforms.map(|place| place.platform.clone()).filter(|platform| !platform.is_unknown()).collect()
    }

    /// Digest of each platform's manifest. Of several for one platform the first counts, as for whoever starts it.
    pub(crate) fn locked(&self, image: &Reference) -> Result<BTreeMap<String, String>, RegistryError> {
        let mut locked = BTreeMap::new();
        for entry in &self.manifests {
            let Some(place) = entry.platform.as_ref().filter(|place| !place.platform.is_unknown()) else { continue };
            locked.entry(place.to_string()).or_insert(sha256(&entry.digest, image)?.to_owned());
        }
        if locked.is_empty() {
            return Err(no_image(image, "an index without an image for any platform"));
        }
        Ok(locked)
    }

    /// Of all that it names, each once.
    pub(crate) fn digests(&self, image: &Reference) -> Result<BTreeSet<String>, RegistryError> {
        self.manifests.iter().map(|entry| sha256(&entry.digest, image).map(str::to_owned)).collect()
    }

    pub(crate) fn media_type(&self) -> String {
        self.media_type.clone().unwrap_or_else(|| INDEX.to_owned())
    }
}

/// As containerd writes it: `linux/arm64`, `windows(10.0.17763.1)/amd64`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.platform.to_string();
        match (&self.os_version, text.split_once('/')) {
            (Some(version), Some((os, rest))) => write!(f, "{os}({version})/{rest}"),
            _ => f.write_str(&text),
        }
    }
}

impl Document {
    /// What an index may name.
    pub(crate) fn manifest(self, image: &Reference) -> Result<Manifest, RegistryError> {
        match self {
            Self::Manifest(manifest) => Ok(manifest),
            Self::Index(_) => Err(no_image(image, "an index of indexes")),
        }
    }
}

impl Manifest {
    pub(crate) fn config_digest(&self, image: &Reference) -> Result<&str, RegistryError> {
        if !CONFIGS.contains(&&*self.config.media_type) {
            return Err(no_image(image, &format!("an artifact of type {:.100}", self.config.media_type)));
        }
        sha256(&self.config.digest, image)
    }

    /// Configuration and layers.
    pub(crate) fn blobs(&self, image: &Reference) -> Result<Vec<Blob>, RegistryError> {
        let all = std::iter::once(&self.config).chain(&self.layers);
        let blobs = all.map(|one| {
            // Old images for Windows: their base is to be had from its maker only.
            if one.media_type.contains("nondistributable") || one.media_type.contains(".foreign.") {
                return Err(no_image(image, "one with layers that may not be passed on"));
            }
            Ok(Blob { digest: sha256(&one.digest, image)?.to_owned(), size: one.size })
        });
        blobs.collect()
    }

    pub(crate) fn media_type(&self) -> String {
        self.media_type.clone().unwrap_or_else(|| MANIFEST.to_owned())
    }
}

#[derive(Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default)]
    pub(crate) config: Start,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Start {
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) user: Option<String>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
}

impl ImageConfig {
    pub(crate) fn parse(body: &[u8], image: &Reference) -> Result<Self, RegistryError> {
        json(body, "the configuration", image)
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8], what: &'static str, image: &Reference) -> Result<T, RegistryError> {
    serde_json::from_slice(body).map_err(|source| RegistryError::Malformed { what, image: image.to_string(), source })
}

fn sha256<'a>(digest: &'a str, image: &Reference) -> Result<&'a str, RegistryError> {
    match is_digest(digest) {
        true => Ok(digest),
        false => Err(no_image(image, "a document with a digest that is not SHA-256")),
    }
}

fn no_image(image: &Reference, found: &str) -> RegistryError {
    RegistryError::NoImage { image: image.to_string(), found: found.to_owned() }
}
