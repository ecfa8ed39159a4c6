//! What images consist of, wherever it lies: documents that name blobs, and blobs.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use sha2::{Digest, Sha256};

use crate::documents::{self, Document, Manifest};
use crate::error::RegistryError;
use crate::reference::Reference;

/// Documents that are asked for at once.
const AT_ONCE: usize = 4;
/// Largest sum of the indexes and manifests of what is on its way at once, an image or a bundle, which are kept in memory.
/// An index for twenty platforms, with provenance of each, takes 200 KB; most images take a tenth of that.
const DOCUMENTS_MAX: usize = 32 << 20;

/// Where images lie: a repository of a registry, or an archive.
pub(crate) trait Source {
    type Error: From<RegistryError>;

    /// An index or a manifest, checked against its digest.
    async fn document(&self, digest: &str) -> Result<Bytes, Self::Error>;

    /// The bytes of a blob, which whoever takes them checks.
    fn blob<'s>(&'s self, blob: &'s Blob) -> BoxStream<'s, Result<Bytes, Self::Error>>;
}

/// A configuration or a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// What may still be kept in memory of documents.
pub(crate) struct Room(usize);

impl Room {
    pub(crate) fn new() -> Self {
        Self(DOCUMENTS_MAX)
    }

    fn take(&mut self, document: &Bytes, image: &Reference) -> Result<(), RegistryError> {
        let left = self.0.checked_sub(document.len());
        self.0 = left.ok_or_else(|| RegistryError::TooLarge {
            what: "the sum of all manifests up to those",
            image: image.to_string(),
            limit: DOCUMENTS_MAX,
        })?;
        Ok(())
    }
}

/// All of an image, for every platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// What the image's name stands for.
    pub(crate) top: Named,
    /// The manifests that it names, if it is an index.
    pub(crate) manifests: Vec<Named>,
    /// By digest.
    pub(crate) blobs: BTreeMap<String, Blob>,
}

/// An index or a manifest as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) body: Bytes,
}

impl Tree {
    /// Reads all documents of an image.
    pub(crate) async fn read<S: Source>(
        source: &S,
        image: &Reference,
        digest: &str,
        room: &mut Room,
    ) -> Result<Self, S::Error> {
        let body = source.document(digest).await?;
        room.take(&body, image)?;
        let mut blobs = BTreeMap::new();
        let mut manifests = Vec::new();
        let media_type = match documents::parse(&body, image)? {
            Document::Manifest(manifest) => {
                gather(&manifest, image, &mut blobs)?;
                manifest.media_type()
            }
            Document::Index(index) => {
                let digests = index.digests(image)?;
                let bodies = digests.into_iter().map(|digest| async { (source.document(&digest).await, digest) });
                let mut bodies = stream::iter(bodies).buffered(AT_ONCE);
                while let Some((body, digest)) = bodies.next().await {
                    let body = body?;
                    room.take(&body, image)?;
                    let manifest = documents::parse(&body, image)?.manifest(image)?;
                    gather(&manifest, image, &mut blobs)?;
                    manifests.push(Named { digest, media_type: manifest.media_type(), body });
                }
                index.media_type()
            }
        };
        Ok(Self { top: Named { digest: digest.to_owned(), media_type, body }, manifests, blobs })
    }

    /// Of configurations and layers.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs.values().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }
}

fn gather(manifest: &Manifest, image: &Reference, blobs: &mut BTreeMap<String, Blob>) -> Result<(), RegistryError> {
    for blob in manifest.blobs(image)? {
        blobs.entry(blob.digest.clone()).or_insert(blob);
    }
    Ok(())
}

/// Holds a blob against its digest as it goes by.
pub(crate) struct Check<'a> {
    image: &'a Reference,
    blob: &'a Blob,
    seen: u64,
    digest: Sha256,
}

impl<'a> Check<'a> {
    pub(crate) fn new(image: &'a Reference, blob: &'a Blob) -> Self {
        Self { image, blob, seen: 0, digest: Sha256::new() }
    }

    /// To be asked before a piece is handed on: so the last one goes only if all of them are what they are to be.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<(), RegistryError> {
        self.seen += piece.len() as u64;
        if self.seen > self.blob.size {
            return Err(self.wrong_size());
        }
        self.digest.update(piece);
        if self.seen == self.blob.size { self.is_right() } else { Ok(()) }
    }

    /// After the last piece.
    pub(crate) fn end(&self) -> Result<(), RegistryError> {
        if self.seen < self.blob.size { Err(self.wrong_size()) } else { self.is_right() }
    }

    fn is_right(&self) -> Result<(), RegistryError> {
        let got = format!("sha256:{}", hex::encode(self.digest.clone().finalize()));
        if got == self.blob.digest {
            return Ok(());
        }
        Err(RegistryError::DigestMismatch {
            what: "a layer",
            image: self.image.to_string(),
            wanted: self.blob.digest.clone(),
            got,
        })
    }

    fn wrong_size(&self) -> RegistryError {
        RegistryError::WrongSize {
            image: self.image.to_string(),
            digest: self.blob.digest.clone(),
            wanted: self.blob.size,
            got: self.seen,
        }
    }
}
