//! Images on their way into a registry.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::content::{Blob, Named, Room, Source, Tree};
use crate::credentials::Credentials;
use crate::error::RegistryError;
use crate::progress::{Event, Tell};
use crate::reference::Reference;
use crate::registry::uploads::{Begun, SendError};
use crate::registry::{MANIFEST_MAX, Registries, Session};
use crate::retry;

/// Blobs on their way at once: enough to hide the answers' delay, and few enough for a registry's limits.
const BLOBS_AT_ONCE: usize = 4;
/// Manifests that are stored at once.
const DOCUMENTS_AT_ONCE: usize = 4;

/// What an image's publication took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// Bytes of configurations and layers that were sent.
    pub sent: u64,
    /// Bytes that the registry had, in this repository or in another.
    pub spared: u64,
}

impl Registries {
    /// Copies an image for all its platforms from one repository to another, byte for byte. What is there already is not
    /// sent again, so that an interrupted copy goes on where it was. The copy gets its name last.
    ///
    /// `from` names the image by its digest.
    ///
    /// # Errors
    /// [`RegistryError`] says which; what time may mend is tried again first.
    ///
    /// # Cancel safety
    /// May be dropped at any time; what was stored stays, without a name.
    pub async fn copy(
        &self,
        from: &Reference,
        to: &Reference,
        credentials: &Credentials,
        tell: Tell<'_>,
    ) -> Result<Published, RegistryError> {
        let source = Repository { registries: self, session: self.session(from, credentials, None), tell };
        let tree = Tree::read(&source, from, from.version(), &mut Room::new()).await?;
        let mount = (from.registry() == to.registry() && from.repository() != to.repository())
            .then(|| from.repository().to_owned());
        self.publish((&source, &tree), to, mount.as_deref(), credentials, tell).await
    }

    /// `mount`: a repository of the same registry that has it all.
    pub(crate) async fn publish<S: Source>(
        &self,
        (source, tree): (&S, &Tree),
        to: &Reference,
        mount: Option<&str>,
        credentials: &Credentials,
        tell: Tell<'_>,
    ) -> Result<Published, S::Error> {
        let mut scope = format!("repository:{}:pull,push", to.repository());
        if let Some(mount) = mount {
            scope.push_str(&format!(" repository:{mount}:pull"));
        }
        let session = self.session(to, credentials, Some(scope));
        let target = Target { session: &session, mount, registries: self, tell };
        tell(Event::Begins { image: to, bytes: tree.bytes() });
        let published = stream::iter(tree.blobs.values().map(|blob| target.blob(source, blob)))
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_fold(Published::default(), async |sum, one: Published| {
                Ok(Published { sent: sum.sent + one.sent, spared: sum.spared + one.spared })
            })
            .await?;
        stream::iter(tree.manifests.iter().map(|manifest| target.document(manifest, &manifest.digest)))
            .buffer_unordered(DOCUMENTS_AT_ONCE)
            .try_for_each(async |()| Ok(()))
            .await?;
        target.document(&tree.top, to.tag().unwrap_or(&tree.top.digest)).await?;
        Ok(published)
    }
}

/// A repository that is read.
pub(crate) struct Repository<'a> {
    pub(crate) registries: &'a Registries,
    pub(crate) session: Session<'a>,
    pub(crate) tell: Tell<'a>,
}

impl Source for Repository<'_> {
    type Error = RegistryError;

    async fn document(&self, digest: &str) -> Result<Bytes, RegistryError> {
        let ask = || self.session.manifest(digest, Some(digest), MANIFEST_MAX);
        retry::insist(self.registries.wait(), self.tell, ask).await
    }

    fn blob<'s>(&'s self, blob: &'s Blob) -> BoxStream<'s, Result<Bytes, RegistryError>> {
        self.session.read(blob, self.registries.attempts(), self.tell)
    }
}

/// A repository that is written.
struct Target<'a> {
    session: &'a Session<'a>,
    mount: Option<&'a str>,
    registries: &'a Registries,
    tell: Tell<'a>,
}

impl Target<'_> {
    async fn blob<S: Source>(&self, source: &S, blob: &Blob) -> Result<Published, S::Error> {
        let (mut attempts, mut has_renewed) = (self.registries.attempts(), false);
        loop {
            let sent = AtomicU64::new(0);
            let count = |event: Event<'_>| {
                if let Event::Moved(bytes) = event {
                    sent.fetch_add(bytes, Ordering::Relaxed);
                }
                (self.tell)(event);
            };
            let error = match self.try_blob(source, blob, &count).await {
                Ok(published) => return Ok(published),
                Err(SendError::Source(error)) => return Err(error),
                Err(SendError::Expired(error)) if std::mem::replace(&mut has_renewed, true) => return Err(error.into()),
                Err(SendError::Expired(_)) => {
                    (self.tell)(Event::Again(sent.into_inner()));
                    continue;
                }
                Err(SendError::Registry(error)) => error,
            };
            (self.tell)(Event::Again(sent.into_inner()));
            let Some(wait) = attempts.after(&error) else { return Err(error.into()) };
            (self.tell)(Event::Waits { wait, error: &error });
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_blob<S: Source>(
        &self,
        source: &S,
        blob: &Blob,
        tell: Tell<'_>,
    ) -> Result<Published, SendError<S::Error>> {
        let spared = || {
            tell(Event::Spared(blob.size));
            Ok(Published { sent: 0, spared: blob.size })
        };
        if self.session.has(&blob.digest).await.map_err(SendError::Registry)? {
            return spared();
        }
        match self.session.begin(&blob.digest, self.mount).await.map_err(SendError::Registry)? {
            Begun::Mounted => spared(),
            Begun::At(place) => {
                self.session.send_blob(&place, blob, source.blob(blob), tell).await?;
                Ok(Published { sent: blob.size, spared: 0 })
            }
        }
    }

    async fn document(&self, document: &Named, version: &str) -> Result<(), RegistryError> {
        retry::insist(self.registries.wait(), self.tell, || self.session.put(document, version)).await
    }
}
