//! `mcpctl pull-images`: locked images in a container engine of this machine.

use futures::StreamExt;
use mcp_hub_supply::progress::Event;

use crate::args::PullImages;
use crate::error::Error;
use crate::images::{self, Progress};
use crate::output;
use crate::target::local::Local;

/// Engines fetch several layers of each at once.
const AT_ONCE: usize = 3;

pub(crate) async fn run(local: &Local, args: &PullImages) -> Result<(), Error> {
    let lock = images::locked(&args.lock)?;
    let locked = images::chosen(&lock, &args.lock, local, args.file.as_deref())?;
    let engine = images::engine(args.engine.runtime).await?;
    let credentials = images::logins(locked.iter().map(|one| &one.image)).await?;

    let progress = Progress::new();
    let tell = |event: Event<'_>| progress.tell(&event);
    let bring = async |locked| (locked, engine.bring(locked, &credentials, &tell).await);
    let brought = futures::stream::iter(locked.iter().copied()).map(bring).buffer_unordered(AT_ONCE);
    let (mut brought, mut failed) = (std::pin::pin!(brought), 0);
    while let Some((locked, outcome)) = brought.next().await {
        match outcome {
            Ok(brought) => progress.say(|| {
                let how = if brought.was_there { "is there already" } else { "pulled" };
                output::say(&format!("{} {how}: {}", locked.image, locked.digest));
                images::brought(&local.places, &engine, &locked.image, &brought);
            }),
            Err(error) => {
                failed += 1;
                progress.say(|| images::failed(&locked.image, &error.into()));
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Images { failed, of: locked.len(), done: "pulled", so: None }),
    }
}
