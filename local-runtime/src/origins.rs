//! Following files and folders of manifests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mcp_hub_crds::manifest::{self, ManifestErrors};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::store::{LocalStore, OriginProblem, SyncError, Synced};

/// An editor's save is several events; what is saved half is read once more when the rest comes.
const QUIET: Duration = Duration::from_millis(60);

/// An origin that is being followed. Dropping this ends that; its objects stay.
#[derive(Debug)]
pub struct Followed {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why an origin could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Manifest(ManifestErrors),
    #[error(transparent)]
    Sync(SyncError),
    #[error("could not watch {}", .path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: notify::Error,
    },
}

impl LoadError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            // Each error carries its own.
            Self::Manifest(_) => None,
            Self::Sync(error) => error.hint(),
            Self::Watch { .. } => Some("is the limit of watches used up? (fs.inotify.max_user_watches)".to_owned()),
        }
    }
}

/// Takes the origin over now, and again whenever it changes. What cannot be read keeps its last good version.
/// Needs a tokio runtime.
pub fn follow(store: Arc<LocalStore>, origin: PathBuf) -> (Followed, Result<Synced, LoadError>) {
    let (changed, mut changes) = mpsc::channel(1);
    let watched = watcher(&origin, changed);
    let result = load(&store, &origin);
    let (mut watcher, result) = match watched {
        Ok(watcher) => (Some(watcher), result),
        Err(source) => (None, result.and(Err(LoadError::Watch { path: origin.clone(), source }))),
    };
    let task = tokio::spawn(async move {
        while changes.recv().await.is_some() {
            tokio::time::sleep(QUIET).await;
            // What came while it was quiet is part of what is read now.
            while changes.try_recv().is_ok() {}
            // A folder that was replaced is another one to the kernel.
            if let Some(watcher) = &mut watcher
                && let Err(error) = watch(watcher, &origin)
            {
                tracing::warn!(origin = %origin.display(), %error, "not followed any more");
            }
            match load(&store, &origin) {
                Ok(synced) if synced == Synced::default() => {}
                Ok(synced) => tracing::info!(origin = %origin.display(), ?synced, "origin changed"),
                Err(error) => {
                    tracing::warn!(origin = %origin.display(), %error, "origin not read; its last good version stays");
                }
            }
        }
    });
    (Followed { task }, result)
}

fn watcher(origin: &Path, changed: mpsc::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let own = origin.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = match &event {
            Ok(event) if event.kind.is_access() => false,
            Ok(event) => event.paths.iter().any(|path| concerns(&own, path)),
            // Events were lost: looking is the safe side.
            Err(_) => true,
        };
        if concerns {
            // One waiting sign says all that many would.
            changed.try_send(()).ok();
        }
    })?;
    watch(&mut watcher, origin)?;
    Ok(watcher)
}

/// Watches the folder, and the folder around it or around a file: an editor replaces a file, and what is missing may come.
fn watch(watcher: &mut notify::RecommendedWatcher, origin: &Path) -> notify::Result<()> {
    if let Some(parent) = origin.parent().filter(|parent| parent.is_dir()) {
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
    }
    if origin.is_dir() {
        watcher.watch(origin, RecursiveMode::NonRecursive)?;
    }
    Ok(())
}

fn concerns(origin: &Path, path: &Path) -> bool {
    path == origin || (path.parent() == Some(origin) && manifest::is_manifest(path))
}

fn load(store: &LocalStore, origin: &Path) -> Result<Synced, LoadError> {
    if !origin.exists() {
        store.origin_failed(origin, &OriginProblem::Missing).map_err(LoadError::Sync)?;
    }
    match manifest::load(origin) {
        Ok(documents) => store.sync(origin, &documents).map_err(LoadError::Sync),
        Err(errors) => {
            if origin.exists() {
                let problem = OriginProblem::Invalid(errors.to_string());
                store.origin_failed(origin, &problem).map_err(LoadError::Sync)?;
            }
            Err(LoadError::Manifest(errors))
        }
    }
}
