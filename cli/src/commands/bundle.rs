//! `mcpctl bundle save` and `load`: locked images in one file.

use mcp_hub_local_runtime::docker::LoadError;
use mcp_hub_supply::bundle::{self, Bundle as Loaded, BundleError};
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::reference::Mirror;
use tokio::io::BufWriter;

use crate::args::{Bundle, BundleLoad, BundleSave, RuntimeChoice};
use crate::error::Error;
use crate::images::{self, Bytes, Progress};
use crate::output;
use crate::places::Places;

/// What is collected before it is written.
const BUFFER: usize = 256 << 10;

pub(crate) async fn run(places: &Places, args: &Bundle) -> Result<(), Error> {
    match args {
        Bundle::Save(args) => save(args).await,
        Bundle::Load(args) => load(places, args).await,
    }
}

async fn save(args: &BundleSave) -> Result<(), Error> {
    let path = &args.bundle;
    let lock = images::locked(&args.lock)?;
    let locked: Vec<_> = lock.images().map(|one| (one.image.clone(), one.digest.clone())).collect();
    let registries = images::registries(&args.transport)?;
    let credentials = images::logins(locked.iter().map(|(image, _)| image)).await?;

    let progress = Progress::new();
    let tell = |event: Event<'_>| progress.tell(&event);
    // Under another name until it is whole.
    let draft = images::draft(path).map_err(Error::file("write", path))?;
    let file = draft.as_file().try_clone().map_err(Error::file("write", path))?;
    let out = BufWriter::with_capacity(BUFFER, tokio::fs::File::from_std(file));
    let saved = tokio::select! {
        saved = bundle::save(&locked, &registries, &credentials, &tell, out) => saved,
        // So that a large draft does not stay behind.
        _ = tokio::signal::ctrl_c() => Err(BundleError::Write(std::io::ErrorKind::Interrupted.into())),
    };
    let bytes = saved.map_err(|source| Error::Bundle { path: path.clone(), source: source.into() })?;
    draft.as_file().sync_all().map_err(Error::file("write", path))?;
    draft.persist(path).map_err(|error| Error::file("write", path)(error.error))?;
    drop(progress);
    output::say(&format!("{} written: {} images, {}", path.display(), locked.len(), Bytes(bytes)));
    Ok(())
}

async fn load(places: &Places, args: &BundleLoad) -> Result<(), Error> {
    let of_bundle = |source: BundleError| Error::Bundle { path: args.bundle.clone(), source: source.into() };
    let bundle = Loaded::open(&args.bundle).await.map_err(of_bundle)?;
    match (&args.registry, args.runtime) {
        (Some(registry), _) => to_registry(&bundle, registry, args).await,
        (None, runtime) => to_engine(places, &bundle, runtime.unwrap_or(RuntimeChoice::Auto), args).await,
    }
}

async fn to_registry(bundle: &Loaded, registry: &Mirror, args: &BundleLoad) -> Result<(), Error> {
    let names = images::names(registry, bundle.images().iter().map(|image| (&image.name, image.digest())))?;
    let registries = images::registries(&args.transport)?;
    let credentials = images::logins(&names).await?;

    let progress = Progress::new();
    let tell = |event: Event<'_>| progress.tell(&event);
    let mut failed = 0;
    for (image, name) in bundle.images().iter().zip(&names) {
        match bundle.publish(image, name, &registries, &credentials, &tell).await {
            Ok(published) => progress.say(|| images::published(name, published)),
            Err(BundleError::Registry(error)) => {
                failed += 1;
                progress.say(|| images::failed(name, &error.into()));
            }
            Err(source) => return Err(Error::Bundle { path: args.bundle.clone(), source: source.into() }),
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Images { failed, of: names.len(), done: "published", so: None }),
    }
}

/// One after the other: the engine's disk is what takes time.
async fn to_engine(places: &Places, bundle: &Loaded, runtime: RuntimeChoice, args: &BundleLoad) -> Result<(), Error> {
    let engine = images::engine(runtime).await?;
    let progress = Progress::new();
    let tell = |event: Event<'_>| progress.tell(&event);
    let mut failed = 0;
    for image in bundle.images() {
        let error = match engine.load(bundle, image, &tell).await {
            Ok(brought) => {
                progress.say(|| {
                    let how = if brought.was_there { "is there already" } else { "loaded" };
                    output::say(&format!("{} {how}: {}", image.name, brought.id));
                    images::brought(places, &engine, &image.name, &brought);
                });
                continue;
            }
            Err(LoadError::Engine(error)) => error.into(),
            Err(LoadError::Bundle(BundleError::Registry(error))) => error.into(),
            Err(LoadError::Bundle(source)) => {
                return Err(Error::Bundle { path: args.bundle.clone(), source: source.into() });
            }
        };
        failed += 1;
        progress.say(|| images::failed(&image.name, &error));
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Images { failed, of: bundle.images().len(), done: "loaded", so: None }),
    }
}
