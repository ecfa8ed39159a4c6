//! An image of a bundle for one platform, as container engines load it.
//!
//! The archive is an OCI image layout of this one image, with Docker's own `manifest.json` beside it: Docker before version 25
//! reads nothing else, and Podman and later Dockers keep the manifest of the layout, and so its digest.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::json;
use tokio::io::AsyncWrite;

use super::read::{Bundle, Bundled, Part};
use super::write::Tar;
use super::{BundleError, INDEX_FILE, LAYOUT, LAYOUT_FILE, NAME, REF_NAME, path_of};
use crate::content::{Blob, Source};
use crate::documents::{self, Document, INDEX, ImageConfig, Manifest};
use crate::error::RegistryError;
use crate::platform::Platform;
use crate::progress::{Event, Tell};
use crate::reference::Reference;

/// What Docker reads.
const DOCKERS: &str = "manifest.json";

/// An image that an engine may be given.
#[derive(Debug)]
pub struct Chosen<'a> {
    bundle: &'a Bundle,
    name: &'a Reference,
    media_type: String,
    digest: String,
    manifest: Bytes,
    /// First the configuration, then the layers from below.
    blobs: Vec<Blob>,
}

impl Bundle {
    /// One of its images for a platform.
    ///
    /// # Errors
    /// It is not there for this platform, or the file changed since it was opened.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn choose<'a>(&'a self, image: &'a Bundled, wanted: &Platform) -> Result<Chosen<'a>, BundleError> {
        let (name, top) = (&image.name, &image.tree.top);
        let missing =
            |available| RegistryError::WrongPlatform { image: name.to_string(), wanted: wanted.clone(), available };
        let (digest, body, manifest) = match documents::parse(&top.body, name)? {
            Document::Manifest(manifest) => (&top.digest, &top.body, manifest),
            Document::Index(index) => {
                let entry = index.choose(wanted).ok_or_else(|| missing(index.platforms()))?;
                let named = image.tree.manifests.iter().find(|named| named.digest == entry.digest);
                let named = named.ok_or_else(|| missing(index.platforms()))?;
                (&named.digest, &named.body, documents::parse(&named.body, name)?.manifest(name)?)
            }
        };
        // Of a manifest alone nothing else tells, and an index may say anything.
        let config = Part { bundle: self, image: name }.document(manifest.config_digest(name)?).await?;
        let made_for = ImageConfig::parse(&config, name)?.platform;
        if !made_for.fits(wanted) {
            return Err(missing(vec![made_for]).into());
        }
        Ok(Chosen {
            bundle: self,
            name,
            media_type: Manifest::media_type(&manifest),
            digest: digest.clone(),
            manifest: body.clone(),
            blobs: manifest.blobs(name)?,
        })
    }
}

impl Chosen<'_> {
    /// Whether an engine that knows an image by this id has this one: by the digest of its configuration, as most do, or of
    /// its manifest.
    pub fn is(&self, id: &str) -> bool {
        self.digest == id || self.blobs.first().is_some_and(|config| config.digest == id)
    }

    /// Writes the archive. What says what is in it comes last, so that one that breaks off is none; and each blob is held
    /// against its digest once more, before its last piece goes.
    ///
    /// # Errors
    /// [`BundleError`] says which. What was written until then is of no use.
    ///
    /// # Cancel safety
    /// As on an error.
    pub async fn write(&self, out: impl AsyncWrite + Unpin, tell: Tell<'_>) -> Result<(), BundleError> {
        let part = Part { bundle: self.bundle, image: self.name };
        let mut tar = Tar(out);
        tar.file(LAYOUT_FILE, LAYOUT).await?;
        tar.file(&path_of(&self.digest), &self.manifest).await?;
        // An image may have a layer twice.
        let blobs: BTreeMap<&str, &Blob> = self.blobs.iter().map(|blob| (&*blob.digest, blob)).collect();
        tell(Event::Begins { image: self.name, bytes: blobs.values().map(|blob| blob.size).sum() });
        for blob in blobs.values() {
            let content: BoxStream<'_, _> = part.blob(blob);
            tar.blob(blob, self.name, content, tell).await?;
        }
        let name = self.name.to_string();
        let entry = json!({"mediaType": self.media_type, "digest": self.digest, "size": self.manifest.len(),
                           "annotations": {NAME: name, REF_NAME: name}});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        tar.file(INDEX_FILE, index.to_string().as_bytes()).await?;
        let mut paths = self.blobs.iter().map(|blob| path_of(&blob.digest));
        let dockers = json!([{"Config": paths.next(), "RepoTags": [name], "Layers": paths.collect::<Vec<_>>()}]);
        tar.file(DOCKERS, dockers.to_string().as_bytes()).await?;
        tar.end().await
    }
}
