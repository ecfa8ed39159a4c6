//! The images that an engine has, for who brings them there: by a lock file, or from a bundle.

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::query_parameters::{ImportImageOptions, ListImagesOptions, RemoveImageOptions, TagImageOptions};
use bytes::BytesMut;
use futures::{StreamExt, stream};
use mcp_hub_supply::bundle::{Bundle, BundleError, Bundled, Chosen};
use mcp_hub_supply::lock::Locked;
use mcp_hub_supply::progress::{Event, Tell};
use mcp_hub_supply::{Credentials, Platform, Reference};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::time::Instant;

use super::engine::{Engine, EngineError, is_absent};
use super::image::full_id;
use super::look::FoundImage;
use super::pull;

/// An engine that takes nothing and says nothing for so long has stalled; it unpacks layers in between.
const SILENCE: Duration = Duration::from_secs(300);
/// Longest load of all, which only the library needs: it counts from the first byte to the engine's first word.
const LOAD_MAX: Duration = Duration::from_secs(24 * 3600);
/// What is on its way to the engine.
const BUFFER: usize = 256 << 10;

/// Why an image of a bundle did not come into an engine.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An image that was asked for and is on the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    /// What the engine knows it by: `sha256:…`.
    pub id: String,
    /// The engine had it before, under whatever name or none: it is not ours.
    pub was_there: bool,
    /// The image that its name stood for on this engine until now.
    pub displaced: Option<String>,
}

impl Engine {
    /// Makes sure that the engine has exactly the image that is locked, under its name, and that it is for the engine's
    /// platform. It is fetched by its digest unless it is there; it gets its name last, so that what is not right never bears
    /// it.
    ///
    /// # Errors
    /// It is not for this platform, could not be pulled after several attempts, or is not what was asked for.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the image may be there then without its name.
    pub async fn bring(
        &self,
        locked: &Locked,
        credentials: &Credentials,
        tell: Tell<'_>,
    ) -> Result<Brought, EngineError> {
        let pinned = locked.image.pinned(&locked.digest);
        let name = pinned.to_string();
        if !locked.is_made_for(&Platform::linux(&self.facts().architecture)) {
            return Err(self.wrong_platform(&locked.image, locked.platforms.keys().cloned().collect()));
        }
        let found = self.image(&name).await?;
        let (was_there, found) = match found {
            Some(found) => (true, found),
            None => {
                let before = self.image_ids().await?;
                self.pull_insistently(&pinned, pull::login(credentials, &pinned), tell).await?;
                let gone = || self.pull_refused(&pinned, "it is not there after it was pulled");
                let found = self.image(&name).await?.ok_or_else(gone)?;
                (before.contains(&full_id(found.id.clone())), found)
            }
        };
        if let Err(error) = self.check(&pinned, &found) {
            if !was_there {
                // Left there, it would be taken for the right one by its name.
                self.remove_wrong(&name).await;
            }
            return Err(error);
        }
        let id = full_id(found.id);
        Ok(Brought { displaced: self.name(&locked.image, &id).await?, id, was_there })
    }

    /// Loads an image of a bundle for the engine's platform, under its name.
    ///
    /// # Errors
    /// It is not for this platform, is named by a digest, was refused, or is not what the bundle has.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the engine has the image whole then, or not.
    pub async fn load(&self, bundle: &Bundle, image: &Bundled, tell: Tell<'_>) -> Result<Brought, LoadError> {
        let name = image.name.to_string();
        if image.name.digest().is_some() {
            return Err(EngineError::Unnameable { image: name }.into());
        }
        let chosen = bundle.choose(image, &Platform::linux(&self.facts().architecture)).await?;
        let before = self.image(&name).await?.map(|found| full_id(found.id));
        if let Some(id) = before.clone().filter(|id| chosen.is(id)) {
            return Ok(Brought { id, was_there: true, displaced: None });
        }
        let there = self.image_ids().await?;
        self.send(&name, &chosen, tell).await?;
        let found = self.image(&name).await?.map(|found| full_id(found.id));
        if let Some(id) = found.clone().filter(|id| chosen.is(id)) {
            return Ok(Brought { was_there: there.contains(&id), id, displaced: before });
        }
        // It may have done nothing; then the name is still another image's.
        if found != before {
            if found.as_ref().is_some_and(|id| !there.contains(id)) {
                self.remove_wrong(&name).await;
            }
            if let Some(before) = &before
                && let Err(error) = self.name(&image.name, before).await
            {
                tracing::warn!(image = %name, %error, "an image did not get its name back");
            }
        }
        Err(self.altered(&image.name, found.unwrap_or_default()).into())
    }

    async fn send(&self, name: &str, chosen: &Chosen<'_>, tell: Tell<'_>) -> Result<(), LoadError> {
        let sign_of_life = Mutex::new(Instant::now());
        let lives = || *sign_of_life.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let tell = |event: Event<'_>| {
            lives();
            tell(event);
        };
        let (writer, reader) = tokio::io::duplex(BUFFER);
        let refused = |message: String| EngineError::Refused {
            action: "load image",
            object: name.to_owned(),
            code: 500,
            message,
        };
        let write = chosen.write(writer, &tell);
        let take = async {
            let api = self.api.clone().with_timeout(LOAD_MAX);
            let body = bollard::body_try_stream(pieces(reader));
            let mut steps = api.import_image(ImportImageOptions::default(), body, None);
            while let Some(step) = steps.next().await {
                lives();
                match step {
                    Ok(_) => {}
                    Err(ApiError::DockerStreamError { error }) => return Err(refused(error)),
                    Err(error) => return Err(self.failed("load image", name, error)),
                }
            }
            Ok(())
        };
        let stalled = async {
            loop {
                let end = *sign_of_life.lock().unwrap_or_else(PoisonError::into_inner) + SILENCE;
                if end <= Instant::now() {
                    return refused(format!("it took nothing for {} s", SILENCE.as_secs()));
                }
                tokio::time::sleep_until(end).await;
            }
        };
        let (mut write, mut take) = (std::pin::pin!(write), std::pin::pin!(take));
        let mut stalled = std::pin::pin!(stalled);
        tokio::select! {
            written = &mut write => match written {
                Ok(()) => {}
                // The engine took no more, and says why.
                Err(BundleError::Write(_)) => {}
                Err(error) => return Err(error.into()),
            },
            taken = &mut take => return taken.map_err(Into::into),
            error = &mut stalled => return Err(error.into()),
        }
        tokio::select! {
            taken = &mut take => taken.map_err(Into::into),
            error = &mut stalled => Err(error.into()),
        }
    }

    /// Whether an image is what it was asked for as. The digest counts, wherever it is from: Podman finds by one repository's
    /// name what it has of another.
    fn check(&self, pinned: &Reference, found: &FoundImage) -> Result<(), EngineError> {
        let digests = found.repo_digests.as_deref().unwrap_or_default();
        let is_it = |name: &Reference| name.digest() == pinned.digest();
        if !digests.iter().any(|name| name.parse().is_ok_and(|known| is_it(&known))) {
            return Err(self.altered(pinned, digests.join(", ")));
        }
        self.check_platform(pinned, found)
    }

    pub(super) fn check_platform(&self, image: &Reference, found: &FoundImage) -> Result<(), EngineError> {
        if (&*found.os, &*found.architecture) != ("linux", &self.facts().architecture) {
            return Err(self.wrong_platform(image, vec![format!("{}/{}", found.os, found.architecture)]));
        }
        Ok(())
    }

    /// Of all images that are there: who pulls one does not know by what other names it is there already, if by any.
    pub(super) async fn image_ids(&self) -> Result<HashSet<String>, EngineError> {
        let options = ListImagesOptions { all: true, ..ListImagesOptions::default() };
        let images = self.api.list_images(Some(options)).await;
        let images = images.map_err(|error| self.failed("look at", "images", error))?;
        Ok(images.into_iter().map(|image| full_id(image.id)).collect())
    }

    /// Lets an image's tag stand for this one. An image that is named by its digest needs no other name.
    async fn name(&self, image: &Reference, id: &str) -> Result<Option<String>, EngineError> {
        let (Some(tag), None) = (image.tag(), image.digest()) else { return Ok(None) };
        let name = image.to_string();
        let before = self.image(&name).await?.map(|found| full_id(found.id));
        if before.as_deref() == Some(id) {
            return Ok(None);
        }
        let repo = format!("{}/{}", image.registry(), image.repository());
        let options = TagImageOptions { repo: Some(repo), tag: Some(tag.to_owned()) };
        let named = self.api.tag_image(id, Some(options)).await;
        named.map_err(|error| self.failed("name image", &name, error))?;
        Ok(before)
    }

    /// Takes a name away, and the image with it if it has no other. By an image's id it goes unless it has names.
    pub(super) async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        match self.api.remove_image(name, None::<RemoveImageOptions>, None).await {
            Err(error) if !is_absent(&error) => Err(self.failed("remove image", name, error)),
            _ => Ok(()),
        }
    }

    /// As [`Engine::remove_image`], for one that is refused: why counts, and not what becomes of it.
    async fn remove_wrong(&self, name: &str) {
        if let Err(error) = self.remove_image(name).await {
            tracing::warn!(image = %name, %error, "what is not the right image was left there");
        }
    }

    fn altered(&self, image: &Reference, found: String) -> EngineError {
        EngineError::ImageAltered { product: self.facts().product.clone(), image: image.to_string(), found }
    }

    fn wrong_platform(&self, image: &Reference, made_for: Vec<String>) -> EngineError {
        EngineError::WrongPlatform {
            image: image.to_string(),
            made_for,
            architecture: self.facts().architecture.clone(),
        }
    }
}

/// What is written at the other end.
fn pieces(reader: DuplexStream) -> impl futures::Stream<Item = io::Result<bytes::Bytes>> + Send + 'static {
    stream::try_unfold(reader, async |mut reader| {
        let mut piece = BytesMut::with_capacity(BUFFER);
        let read = reader.read_buf(&mut piece).await?;
        Ok((read > 0).then(|| (piece.freeze(), reader)))
    })
}
