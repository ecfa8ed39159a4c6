//! `mcpctl lock-images`: which images the names in manifests stand for.

use futures::StreamExt;
use jiff::Timestamp;
use mcp_hub_supply::lock::Locked;
use mcp_hub_supply::{ImageLock, Platform};

use crate::args::LockImages;
use crate::error::Error;
use crate::images::{self, Progress};
use crate::output;
use crate::target::local::Local;

/// Registries limit how many requests they take.
const AT_ONCE: usize = 8;

pub(crate) async fn run(local: &Local, args: &LockImages) -> Result<(), Error> {
    let images = images::of_manifests(&local.places, args.file.as_deref())?;
    let old = images::read_lock(&args.lock)?.unwrap_or_default();
    let registries = images::registries(&args.transport)?;
    let credentials = images::logins(&images).await?;
    let progress = Progress::new();
    let tell = |event: mcp_hub_supply::progress::Event<'_>| progress.tell(&event);

    let pin = async |image| (image, registries.pin(image, &credentials, &tell).await);
    let pins = futures::stream::iter(&images).map(pin).buffered(AT_ONCE);
    let (mut pins, mut lock, mut failed) = (std::pin::pin!(pins), ImageLock::default(), 0);
    while let Some((image, pinned)) = pins.next().await {
        match pinned {
            Ok(pinned) => lock.pin(image.clone(), pinned, old.get(image), Timestamp::now()),
            Err(error) => {
                failed += 1;
                images::failed(image, &error.into());
            }
        }
    }
    let path = args.lock.path.display();
    if failed > 0 {
        let so = Some("the lock file stays as it was");
        return Err(Error::Images { failed, of: images.len(), done: "locked", so });
    }
    lock.images().for_each(|locked| describe(locked, old.get(&locked.image)));
    old.images().filter(|old| lock.get(&old.image).is_none()).for_each(|old| {
        output::say(&format!("{} left out: no manifest names it", old.image));
    });
    if old.is_old() {
        output::say(&format!("{path} is of version 1.0: written as 2.0, with a digest for each platform"));
    }
    match images::write_lock(&args.lock.path, &lock)? {
        true => output::say(&format!("{path} written")),
        false => output::say(&format!("{path} is up to date")),
    }
    Ok(())
}

fn describe(locked: &Locked, old: Option<&Locked>) {
    let Locked { image, digest, platforms, last_updated } = locked;
    let change = match old {
        Some(old) if old.last_updated == *last_updated => "is still",
        Some(_) => "is now",
        None => "is",
    };
    let names: Vec<&str> = platforms.keys().map(String::as_str).collect();
    output::say(&format!("{image} {change} {digest} ({})", names.join(", ")));
    let own = Platform::own().to_string();
    if !names.iter().any(|name| *name == own || name.starts_with(&format!("{own}/"))) {
        output::say(&format!("warning: {image} is not made for this machine ({own})"));
    }
}
