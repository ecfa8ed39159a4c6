//! Index, manifest and configuration of an image (OCI image specification, and Docker's older names for the same).

use serde::Deserialize;

use crate::error::RegistryError;
use crate::platform::Platform;
use crate::reference::{Reference, is_digest};

/// Media types that are asked for. Without them a registry may answer in a form of ten years ago.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Configurations that a container can be made of.
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

#[derive(Deserialize)]
pub(super) struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
pub(super) struct Entry {
    pub(super) digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
pub(super) struct Manifest {
    config: Descriptor,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
}

/// The parts by which a document is told from others.
#[derive(Deserialize)]
struct Shape {
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

pub(super) fn parse(body: &[u8], image: &Reference) -> Result<Document, RegistryError> {
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
    pub(super) fn choose(&self, wanted: &Platform) -> Option<&Entry> {
        let of = |entry: &&Entry| entry.platform.as_ref().is_some_and(|platform| platform.fits(wanted));
        let exactly = |entry: &&Entry| entry.platform.as_ref() == Some(wanted);
        let chosen = self.manifests.iter().find(exactly).or_else(|| self.manifests.iter().find(of));
        chosen.filter(|entry| is_digest(&entry.digest))
    }

    pub(super) fn platforms(&self) -> Vec<Platform> {
        let platforms = self.manifests.iter().filter_map(|entry| entry.platform.clone());
        platforms.filter(|platform| !platform.is_unknown()).collect()
    }
}

impl Manifest {
    pub(super) fn config_digest(&self, image: &Reference) -> Result<&str, RegistryError> {
        if !CONFIGS.contains(&&*self.config.media_type) {
            return Err(no_image(image, &format!("an artifact of type {:.100}", self.config.media_type)));
        }
        match is_digest(&self.config.digest) {
            true => Ok(&self.config.digest),
            false => Err(no_image(image, "a manifest with a digest that is not SHA-256")),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ImageConfig {
    #[serde(flatten)]
    pub(super) platform: Platform,
    #[serde(default)]
    pub(super) config: Start,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Start {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) user: Option<String>,
    pub(super) env: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
}

impl ImageConfig {
    pub(super) fn parse(body: &[u8], image: &Reference) -> Result<Self, RegistryError> {
        json(body, "the configuration", image)
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8], what: &'static str, image: &Reference) -> Result<T, RegistryError> {
    serde_json::from_slice(body).map_err(|source| RegistryError::Malformed { what, image: image.to_string(), source })
}

fn no_image(image: &Reference, found: &str) -> RegistryError {
    RegistryError::NoImage { image: image.to_string(), found: found.to_owned() }
}
