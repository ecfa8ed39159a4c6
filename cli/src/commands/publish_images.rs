//! `mcpctl publish-images`: locked images in a registry of one's own.

use std::path::Path;

use jiff::Timestamp;
use mcp_hub_supply::lock::Locked;
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::{Credentials, ImageLock, Reference, Registries, RegistryError};

use crate::args::{LockFile, PublishImages};
use crate::error::Error;
use crate::images::{self, Progress};
use crate::output;
use crate::target::local::Local;

pub(crate) async fn run(local: &Local, args: &PublishImages) -> Result<(), Error> {
    let lock = images::locked(&args.lock)?;
    let locked = images::chosen(&lock, &args.lock, local, args.file.as_deref())?;
    let names = images::names(&args.registry, locked.iter().map(|one| (&one.image, &*one.digest)))?;
    let registries = images::registries(&args.transport)?;
    let credentials = images::logins(locked.iter().map(|one| &one.image).chain(&names)).await?;

    let progress = Progress::new();
    let tell = |event: Event<'_>| progress.tell(&event);
    let mut failed = 0;
    for (locked, name) in locked.iter().zip(&names) {
        match registries.copy(&locked.image.pinned(&locked.digest), name, &credentials, &tell).await {
            Ok(published) => progress.say(|| images::published(name, published)),
            Err(error) => {
                failed += 1;
                progress.say(|| images::failed(&locked.image, &error.into()));
            }
        }
    }
    drop(progress);
    if failed > 0 {
        return Err(Error::Images { failed, of: locked.len(), done: "published", so: None });
    }
    match &args.write_lock {
        Some(path) => write_lock(path, locked.iter().copied().zip(&names), &registries, &credentials).await,
        None => Ok(()),
    }
}

/// What the registry says now of what it was given. Others may write to it as well, and what they write is locked by
/// nobody who looked at it.
async fn write_lock(
    path: &Path,
    published: impl Iterator<Item = (&Locked, &Reference)>,
    registries: &Registries,
    credentials: &Credentials,
) -> Result<(), Error> {
    let file = LockFile { path: path.to_owned() };
    let (old, mut lock) = (images::read_lock(&file)?.unwrap_or_default(), ImageLock::default());
    for (locked, name) in published {
        let pinned = registries.pin(name, credentials, &|_| {}).await?;
        if pinned.digest != locked.digest {
            let (image, wanted) = (name.to_string(), locked.digest.clone());
            return Err(
                RegistryError::DigestMismatch { what: "what is stored", image, wanted, got: pinned.digest }.into()
            );
        }
        lock.pin(name.clone(), pinned, old.get(name), Timestamp::now());
    }
    images::write_lock(path, &lock)?;
    output::say(&format!("{} written", path.display()));
    Ok(())
}
