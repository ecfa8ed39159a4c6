//! Bundles as they are written: of layers nothing but what passes by is in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{BundleError, INDEX_FILE, LAYOUT, LAYOUT_FILE, NAME, REF_NAME, path_of};
use crate::content::{Blob, Check, Room, Source, Tree};
use crate::credentials::Credentials;
use crate::documents::INDEX;
use crate::layout::header;
use crate::progress::{Event, Tell};
use crate::publish::Repository;
use crate::reference::Reference;
use crate::registry::Registries;

/// A tar's unit.
const BLOCK: usize = 512;

/// Writes images, each the one of its digest, under their names. Returns the bytes of their layers and configurations.
///
/// # Errors
/// [`BundleError`] says which. What was written until then is of no use.
///
/// # Cancel safety
/// As on an error.
pub async fn save(
    images: &[(Reference, String)],
    registries: &Registries,
    credentials: &Credentials,
    tell: Tell<'_>,
    out: impl AsyncWrite + Unpin,
) -> Result<u64, BundleError> {
    let sources = images.iter().map(|(image, _)| Repository {
        registries,
        session: registries.session(image, credentials, None),
        tell,
    });
    let sources: Vec<_> = sources.collect();
    let (mut trees, mut room) = (Vec::new(), Room::new());
    for ((image, digest), source) in images.iter().zip(&sources) {
        trees.push(Tree::read(source, image, digest, &mut room).await?);
    }
    let mut tar = Tar(out);
    tar.file(LAYOUT_FILE, LAYOUT).await?;
    tar.file(INDEX_FILE, index(images, &trees).as_bytes()).await?;

    let (mut parts, mut bytes) = (BTreeMap::new(), 0);
    for (tree, source) in trees.iter().zip(&sources) {
        let before = bytes;
        for document in tree.manifests.iter().chain([&tree.top]) {
            parts.insert(&*document.digest, Part::Document(&document.body));
        }
        for (digest, blob) in &tree.blobs {
            // Images share layers.
            parts.entry(digest).or_insert_with(|| {
                bytes += blob.size;
                Part::Blob(blob, source)
            });
        }
        tell(Event::Begins { image: source.session.image, bytes: bytes - before });
    }
    for (digest, part) in parts {
        match part {
            Part::Document(body) => tar.file(&path_of(digest), body).await?,
            Part::Blob(blob, source) => tar.blob(blob, source.session.image, source.blob(blob), tell).await?,
        }
    }
    tar.end().await?;
    Ok(bytes)
}

enum Part<'a> {
    Document(&'a Bytes),
    Blob(&'a Blob, &'a Repository<'a>),
}

fn index(images: &[(Reference, String)], trees: &[Tree]) -> String {
    let manifests = images.iter().zip(trees).map(|((image, _), Tree { top, .. })| {
        let name = image.to_string();
        json!({"mediaType": top.media_type, "digest": top.digest, "size": top.body.len(),
               "annotations": {NAME: name, REF_NAME: name}})
    });
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests.collect::<Vec<_>>()}).to_string()
}

/// A tar archive that is written as its content comes.
pub(super) struct Tar<W>(pub(super) W);

impl<W: AsyncWrite + Unpin> Tar<W> {
    pub(super) async fn file(&mut self, path: &str, content: &[u8]) -> Result<(), BundleError> {
        self.begin(path, content.len() as u64).await?;
        self.write(content).await?;
        self.pad(content.len() as u64).await
    }

    pub(super) async fn blob<E: Into<BundleError>>(
        &mut self,
        blob: &Blob,
        image: &Reference,
        mut content: BoxStream<'_, Result<Bytes, E>>,
        tell: Tell<'_>,
    ) -> Result<(), BundleError> {
        self.begin(&path_of(&blob.digest), blob.size).await?;
        let mut check = Check::new(image, blob);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(Into::into)?;
            check.take(&piece)?;
            self.write(&piece).await?;
            tell(Event::Moved(piece.len() as u64));
        }
        check.end()?;
        self.pad(blob.size).await
    }

    async fn begin(&mut self, path: &str, size: u64) -> Result<(), BundleError> {
        let mut header = header(0o644, 0);
        header.set_path(path).map_err(BundleError::Write)?;
        header.set_size(size);
        header.set_cksum();
        self.write(header.as_bytes()).await
    }

    /// Content ends where a block ends.
    async fn pad(&mut self, size: u64) -> Result<(), BundleError> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        self.write(&[0; BLOCK][..(BLOCK - over) % BLOCK]).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.0.write_all(bytes).await.map_err(BundleError::Write)
    }

    /// Two empty blocks.
    pub(super) async fn end(mut self) -> Result<(), BundleError> {
        self.write(&[0; 2 * BLOCK]).await?;
        self.0.flush().await.map_err(BundleError::Write)
    }
}
