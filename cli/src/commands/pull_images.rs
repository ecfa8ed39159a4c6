//! `mcpctl pull-images`: locked images in a container engine of this machine.

use futures::StreamExt;
use mcp_hub_local_runtime::docker::{Brought, Engine, EngineKind, Surroundings, find};
use mcp_hub_supply::progress::Event;

use crate::args::{EngineChoice, PullImages};
use crate::error::Error;
use crate::images::{self, Progress};
use crate::output;
use crate::target::local::Local;

/// Engines fetch several layers of each at once.
const AT_ONCE: usize = 3;

pub(crate) async fn run(local: &Local, args: &PullImages) -> Result<(), Error> {
    let lock = images::locked(&args.lock)?;
    let locked = images::chosen(&lock, &args.lock, local, args.file.as_deref())?;
    let engine = engine(args.engine).await?;
    let credentials = images::logins(locked.iter().map(|one| &one.image)).await?;

    let progress = Progress::new();
    let tell = |event: Event<'_>| progress.tell(&event);
    let bring = async |locked| (locked, engine.bring(locked, &credentials, &tell).await);
    let brought = futures::stream::iter(locked.iter().copied()).map(bring).buffer_unordered(AT_ONCE);
    let (mut brought, mut failed) = (std::pin::pin!(brought), 0);
    while let Some((locked, outcome)) = brought.next().await {
        match outcome {
            Ok(Brought { was_there, displaced, .. }) => progress.say(|| {
                let how = if was_there { "is there already" } else { "pulled" };
                output::say(&format!("{} {how}: {}", locked.image, locked.digest));
                if let Some(other) = displaced {
                    output::say(&format!("warning: until now its name stood for {other} on this engine"));
                }
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

/// The engine that was chosen, or the first that answers.
pub(crate) async fn engine(EngineChoice { runtime }: EngineChoice) -> Result<Engine, Error> {
    let (around, chosen) = (Surroundings::of_this_process(), runtime.engine());
    let mut missing = Vec::new();
    for kind in EngineKind::ALL.into_iter().filter(|kind| chosen.is_none_or(|chosen| chosen == *kind)) {
        match find(kind, &around).await {
            Ok(engine) => return Ok(engine),
            Err(none) => missing.push(none),
        }
    }
    Err(Error::NoEngine(missing))
}
