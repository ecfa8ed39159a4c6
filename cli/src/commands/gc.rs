//! `mcpctl gc`: images that MCP Hub brought into an engine, and that nothing needs any more.

use jiff::Timestamp;
use mcp_hub_crds::source::Source;
use mcp_hub_local_runtime::docker::{Ledger, Needed, Stays, Tidied};
use mcp_hub_supply::Reference;

use crate::args::Gc;
use crate::error::Error;
use crate::images::{self, Bytes};
use crate::output;
use crate::target::local::Local;
use crate::target::{Scope, Target};

pub(crate) async fn run(local: &Local, args: &Gc) -> Result<(), Error> {
    let needed = needed(local, args).await?;
    let engine = images::engine(args.engine.runtime).await?;
    let ledger = Ledger::new(local.places.images());
    let (mut goes, mut bytes, mut failed) = (0, 0, 0);
    for image in engine.brought(&ledger, &needed).await? {
        let Tidied { id, names, stays, .. } = &image;
        let name = names.first().unwrap_or(id);
        if let Some(why) = stays {
            output::say(&format!("{name} stays: {why}"));
            continue;
        }
        if args.yes {
            match engine.tidy(&ledger, &image).await {
                Ok(true) => {}
                // Since it was looked at.
                Ok(false) => {
                    output::say(&format!("{name} stays: {}", Stays::Named));
                    continue;
                }
                Err(error) => {
                    (goes, failed) = (goes + 1, failed + 1);
                    output::say(&format!("{} {name}: {error}", output::painted(anstyle::AnsiColor::Red, "error:")));
                    continue;
                }
            }
        }
        goes += 1;
        bytes += image.bytes;
        output::say(&format!("{name} {} ({})", if args.yes { "removed" } else { "would go" }, Bytes(image.bytes)));
    }
    if failed > 0 {
        return Err(Error::Images { failed, of: goes, done: "removed", so: None });
    }
    match (goes, args.yes) {
        (0, _) => output::say("nothing to remove"),
        (_, true) => output::say(&format!("{goes} removed: up to {} freed", Bytes(bytes))),
        (_, false) => {
            output::say(&format!("{goes} would go: up to {} freed", Bytes(bytes)));
            output::hint("--yes removes them");
        }
    }
    Ok(())
}

/// What lock file, manifests and the daemon's servers name.
async fn needed(local: &Local, args: &Gc) -> Result<Needed, Error> {
    let age = std::time::Duration::from_millis(args.older_than.as_millis());
    let mut needed = Needed::older_than(Timestamp::now(), age);
    match images::read_lock(&args.lock)? {
        Some(lock) => {
            for locked in lock.images() {
                needed.names.insert(locked.image.to_string());
                needed.digests.insert(locked.digest.clone());
                needed.digests.extend(locked.platforms.values().cloned());
            }
        }
        None => output::say(&format!("there is no {}: nothing counts as locked", args.lock.path.display())),
    }
    let mut manifests = images::named(&local.places, None)?;
    if let Some(file) = &args.file {
        manifests.extend(images::named(&local.places, Some(file))?);
    }
    let mut named = |image: &Reference| {
        needed.names.insert(image.to_string());
        // An engine knows `NAME:TAG@DIGEST` by other names.
        needed.digests.extend(image.digest().map(str::to_owned));
    };
    manifests.iter().for_each(&mut named);
    match local.servers(&Scope::All).await {
        Ok(servers) => {
            for server in servers {
                if let Source::Image(image) = &server.spec.source {
                    image.r#ref.parse().iter().for_each(&mut named);
                }
                let resolved = server.status.and_then(|status| status.resolved).and_then(|resolved| resolved.image);
                let id = resolved.and_then(|image| image.id);
                needed.ids.extend(id.and_then(|id| Some(id.split_once(':')?.1.to_owned())));
            }
        }
        Err(Error::NoDaemon) => output::say("no daemon is running: of its servers only the containers are seen"),
        Err(error) => return Err(error),
    }
    Ok(needed)
}
