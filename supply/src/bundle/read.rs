//! Bundles as they are read: all of one is looked at before any of it is used, and nothing is unpacked.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, BufReader, Read, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{BLOBS, BundleError, INDEX_FILE, LAYOUT_FILE, NAME, REF_NAME};
use crate::content::{Blob, Room, Source, Tree};
use crate::credentials::Credentials;
use crate::progress::Tell;
use crate::publish::Published;
use crate::reference::{Reference, is_digest};
use crate::registry::{MANIFEST_MAX, Registries};

/// Most files of a bundle; one of a hundred images has some two thousand.
const FILES_MAX: usize = 100_000;
/// Largest `index.json` and `oci-layout`.
const INDEX_MAX: u64 = MANIFEST_MAX as u64;
/// What is read at once.
const PIECE: usize = 64 << 10;

/// A bundle of which every file is what its name says, and every image is whole.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    images: Vec<Bundled>,
    files: Files,
}

/// Where each blob's content lies in the archive, by digest.
type Files = BTreeMap<String, Span>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    offset: u64,
    size: u64,
}

/// An image of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundled {
    /// Its full name, as it was saved.
    pub name: Reference,
    /// Of whichever images have the same digest.
    pub(super) tree: Arc<Tree>,
}

impl Bundled {
    /// Of its index, or of its manifest if it has none.
    pub fn digest(&self) -> &str {
        &self.tree.top.digest
    }
}

impl Bundle {
    /// Reads a bundle once from its beginning to its end.
    ///
    /// # Errors
    /// [`BundleError`] says which; one thing that is wrong and the whole bundle is refused.
    ///
    /// # Cancel safety
    /// May be dropped at any time; what is being read is read on in the background to its end.
    pub async fn open(path: &Path) -> Result<Self, BundleError> {
        let owned = path.to_owned();
        let scanned = tokio::task::spawn_blocking(move || scan(&owned)).await;
        let (index, files) = scanned.map_err(|error| BundleError::Read(io::Error::other(error)))??;
        let mut bundle = Self { path: path.to_owned(), images: Vec::new(), files };
        let (mut trees, mut room) = (BTreeMap::new(), Room::new());
        for (name, digest) in index.images()? {
            let tree = match trees.entry(digest) {
                Entry::Occupied(known) => Arc::clone(known.get()),
                Entry::Vacant(place) => {
                    let tree = Part { bundle: &bundle, image: &name }.tree(place.key(), &mut room).await?;
                    Arc::clone(place.insert(Arc::new(tree)))
                }
            };
            bundle.images.push(Bundled { name, tree });
        }
        if bundle.images.is_empty() {
            return Err(BundleError::NoLayout("it holds no image"));
        }
        Ok(bundle)
    }

    /// In the order of the bundle's index.
    pub fn images(&self) -> &[Bundled] {
        &self.images
    }

    /// Sends one of its images to a registry, as [`Registries::copy`] does.
    ///
    /// # Errors
    /// As there, and if the file changed since it was opened.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn publish(
        &self,
        image: &Bundled,
        to: &Reference,
        registries: &Registries,
        credentials: &Credentials,
        tell: Tell<'_>,
    ) -> Result<Published, BundleError> {
        let source = Part { bundle: self, image: &image.name };
        registries.publish((&source, &image.tree), to, None, credentials, tell).await
    }
}

/// What one image needs of a bundle.
pub(super) struct Part<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) image: &'a Reference,
}

impl Part<'_> {
    /// The documents of the image, if the rest of it is there.
    async fn tree(&self, digest: &str, room: &mut Room) -> Result<Tree, BundleError> {
        let tree = Tree::read(self, self.image, digest, room).await?;
        for blob in tree.blobs.values() {
            if self.span(&blob.digest)?.size != blob.size {
                return Err(BundleError::Odd {
                    path: super::path_of(&blob.digest),
                    found: "of another size than its manifest says",
                });
            }
        }
        Ok(tree)
    }

    fn span(&self, digest: &str) -> Result<Span, BundleError> {
        let missing = || BundleError::Missing { digest: digest.to_owned(), image: self.image.to_string() };
        self.bundle.files.get(digest).copied().ok_or_else(missing)
    }

    async fn open(&self, span: Span) -> io::Result<impl tokio::io::AsyncRead + Send + Unpin + use<>> {
        let mut file = tokio::fs::File::open(&self.bundle.path).await?;
        file.seek(SeekFrom::Start(span.offset)).await?;
        Ok(file.take(span.size))
    }
}

impl Source for Part<'_> {
    type Error = BundleError;

    async fn document(&self, digest: &str) -> Result<Bytes, BundleError> {
        let span = self.span(digest)?;
        if span.size > MANIFEST_MAX as u64 {
            return Err(BundleError::Odd { path: super::path_of(digest), found: "too large for a manifest" });
        }
        let mut body = Vec::new();
        self.open(span).await.map_err(BundleError::Read)?.read_to_end(&mut body).await.map_err(BundleError::Read)?;
        let got = crate::registry::digest_of(&body);
        if got != digest {
            return Err(BundleError::Digest { path: super::path_of(digest), got });
        }
        Ok(body.into())
    }

    fn blob<'s>(&'s self, blob: &'s Blob) -> BoxStream<'s, Result<Bytes, BundleError>> {
        let opened = async {
            let file = self.open(self.span(&blob.digest)?).await.map_err(BundleError::Read)?;
            Ok::<_, BundleError>(stream::try_unfold(file, |mut file| async move {
                let mut piece = BytesMut::with_capacity(PIECE);
                let read = file.read_buf(&mut piece).await.map_err(BundleError::Read)?;
                Ok((read > 0).then(|| (piece.freeze(), file)))
            }))
        };
        futures::TryStreamExt::try_flatten(stream::once(opened)).boxed()
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Index {
    fn images(self) -> Result<Vec<(Reference, String)>, BundleError> {
        let images = self.manifests.into_iter().map(|entry| {
            let name = entry.annotations.get(NAME).or(entry.annotations.get(REF_NAME)).cloned().unwrap_or_default();
            // A tag alone says nothing of the repository.
            let full = name.parse().ok().filter(|_| name.contains('/'));
            let full = full.ok_or_else(|| BundleError::Name { name: name.chars().take(255).collect() })?;
            if !is_digest(&entry.digest) {
                return Err(BundleError::NoLayout("its index names something by another digest than SHA-256"));
            }
            Ok((full, entry.digest))
        });
        images.collect()
    }
}

/// What an archive holds: its index, and its blobs, each held against its digest.
fn scan(path: &Path) -> Result<(Index, Files), BundleError> {
    let file = File::open(path).map_err(BundleError::Read)?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(PIECE, file));
    let (mut index, mut is_layout, mut files) = (None, false, Files::new());
    let (mut seen, mut last) = (0, String::new());
    // Raw: extensions, which may be of any size, are used by nobody. No name in a bundle needs one.
    for entry in archive.entries().map_err(BundleError::NoTar)?.raw(true) {
        let mut entry = entry.map_err(|source| match seen {
            0 => BundleError::NoTar(source),
            _ => BundleError::Damaged { after: std::mem::take(&mut last), source },
        })?;
        seen += 1;
        if seen > FILES_MAX {
            return Err(BundleError::NoLayout("it holds more than 100,000 files"));
        }
        let kind = entry.header().entry_type();
        if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            // Their own names stand for nothing: some are in `/tmp`, or beside the file that they are of.
            continue;
        }
        let name = name(&entry)?;
        last.clone_from(&name);
        if !kind.is_file() {
            if kind.is_dir() || !name.starts_with(BLOBS) {
                continue;
            }
            return Err(BundleError::Odd { path: name, found: "no plain file" });
        }
        match &*name {
            LAYOUT_FILE => is_layout = true,
            INDEX_FILE if index.is_some() => {
                return Err(BundleError::Odd { path: name, found: "there twice" });
            }
            INDEX_FILE => index = Some(parse_index(&mut entry, &name)?),
            other => {
                // Others may lie in a layout, as Docker's `manifest.json`.
                let Some(hex) = other.strip_prefix(BLOBS) else { continue };
                let (span, got) =
                    (Span { offset: entry.raw_file_position(), size: entry.size() }, sum(&mut entry, &name)?);
                if got != hex {
                    return Err(BundleError::Digest { path: name, got: format!("sha256:{got}") });
                }
                files.insert(format!("sha256:{hex}"), span);
            }
        }
    }
    match (index, is_layout) {
        (Some(index), true) => Ok((index, files)),
        _ => Err(BundleError::NoLayout("it holds no OCI image layout")),
    }
}

/// A file's path, with nothing in it that leads elsewhere.
fn name(entry: &tar::Entry<'_, impl Read>) -> Result<String, BundleError> {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&path).components().all(is_inside) {
        return Err(BundleError::Path { path });
    }
    Ok(path.strip_prefix("./").unwrap_or(&path).to_owned())
}

fn parse_index(entry: &mut impl Read, path: &str) -> Result<Index, BundleError> {
    let mut text = Vec::new();
    entry.take(INDEX_MAX + 1).read_to_end(&mut text).map_err(|error| broken(error, path))?;
    if text.len() as u64 > INDEX_MAX {
        return Err(BundleError::Odd { path: path.to_owned(), found: "larger than 4 MiB" });
    }
    serde_json::from_slice(&text).map_err(BundleError::Index)
}

/// The digest of a file, in hexadecimal.
fn sum(entry: &mut tar::Entry<'_, impl Read>, path: &str) -> Result<String, BundleError> {
    let (size, mut read, mut digest, mut piece) = (entry.size(), 0, Sha256::new(), vec![0; PIECE]);
    loop {
        match entry.read(&mut piece).map_err(|error| broken(error, path))? {
            0 if read < size => return Err(BundleError::Truncated { path: path.to_owned() }),
            0 => return Ok(hex::encode(digest.finalize())),
            length => {
                read += length as u64;
                digest.update(&piece[..length]);
            }
        }
    }
}

fn broken(error: io::Error, path: &str) -> BundleError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BundleError::Truncated { path: path.to_owned() },
        _ => BundleError::Read(error),
    }
}
