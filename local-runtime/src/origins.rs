//! Following origins: what a person saves is what runs, moments later.
//!
//! An editor replaces a file by renaming another over it, or empties it and writes it anew; a disk comes and goes. So
//! folders are watched rather than files, bursts of changes become one reading, a file that somebody still writes is
//! waited for, and what cannot be read keeps its last good version.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mcp_hub_crds::manifest::{self, Document, ManifestErrors, Problem};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::store::{LocalStore, OriginProblem, SyncError, Synced};

/// No change for this long means that a burst is over. Editors and `git checkout` leave a few milliseconds between files.
const QUIET: Duration = Duration::from_millis(100);
/// A file that was written and not closed is waited for this long: an interactive save takes far less, and a program that
/// keeps a manifest open for good must not hold back its neighbours for ever.
const STILL_WRITTEN: Duration = Duration::from_secs(2);
/// Changes that never pause are read at least this often.
const AT_LEAST: Duration = Duration::from_secs(5);

/// An origin that is followed. Dropping it stops that, and leaves the objects.
#[derive(Debug)]
pub struct Followed {
    origin: PathBuf,
    told: Sender<Told>,
    thread: Option<JoinHandle<()>>,
}

/// Why an origin was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Manifest(ManifestErrors),
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// It was read once, and later changes will not be seen.
    #[error("{} cannot be watched for changes", .path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LoadError {
    pub fn hint(&self) -> Option<String> {
        match self {
            // Each error of a manifest shows its own.
            Self::Manifest(_) => None,
            Self::Sync(error) => error.hint(),
            Self::Watch { .. } => {
                Some("is a limit reached, such as fs.inotify.max_user_watches or max_user_instances?".to_owned())
            }
        }
    }
}

#[derive(Debug)]
enum Told {
    /// Somebody writes the file and has not closed it.
    Writing(PathBuf),
    /// The file is whole, or gone.
    Changed(PathBuf),
    Stop,
}

/// Loads an origin now, and again whenever it changes.
pub fn follow(store: Arc<LocalStore>, origin: PathBuf) -> (Followed, Result<Synced, LoadError>) {
    // Fails for an empty path only, which then is a missing one.
    let origin = std::path::absolute(&origin).unwrap_or(origin);
    let (told, listening) = mpsc::channel();
    // Watching comes first, so that no change falls between.
    let watch = Watch::start(&origin, told.clone());
    let loaded = load(&store, &origin);
    let failed = |source| LoadError::Watch { path: origin.clone(), source };
    let (thread, result) = match watch {
        Ok(watch) => {
            let name = "origin".to_owned();
            let keep = { move || keep_loading(&store, watch, &listening) };
            match std::thread::Builder::new().name(name).spawn(keep) {
                Ok(thread) => (Some(thread), loaded),
                Err(error) => (None, loaded.and(Err(failed(error.into())))),
            }
        }
        Err(error) => (None, loaded.and(Err(failed(error.into())))),
    };
    (Followed { origin, told, thread }, result)
}

impl Followed {
    pub fn origin(&self) -> &Path {
        &self.origin
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        self.told.send(Told::Stop).ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(origin = %self.origin.display(), "following an origin ended by a panic");
        }
    }
}

/// Reads the origin and stores what it says, or that it cannot be read.
fn load(store: &LocalStore, origin: &Path) -> Result<Synced, LoadError> {
    match read(origin) {
        Ok(documents) => Ok(store.sync(origin, &documents)?),
        Err((problem, errors)) => {
            store.origin_failed(origin, &problem)?;
            Err(LoadError::Manifest(errors))
        }
    }
}

fn read(origin: &Path) -> Result<Vec<Document>, (OriginProblem, ManifestErrors)> {
    let documents = manifest::load(origin).map_err(|errors| {
        let missing = errors.0.iter().any(|error| {
            error.file == origin && matches!(&error.problem, Problem::Read(e) if e.kind() == io::ErrorKind::NotFound)
        });
        let problem = if missing { OriginProblem::Missing } else { OriginProblem::Invalid(errors.to_string()) };
        (problem, errors)
    })?;
    // A file of no bytes is one that an editor has emptied and not written yet, or a disk was too full to. It never means
    // that all servers are to go; a file with a comment does.
    match files(origin).into_iter().find(|file| file.metadata().is_ok_and(|found| found.len() == 0)) {
        Some(file) => {
            let nothing = io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty");
            let error = manifest::ManifestError {
                file,
                at: None,
                path: mcp_hub_crds::FieldPath::default(),
                problem: Problem::Read(nothing),
            };
            let errors = ManifestErrors(vec![error]);
            Err((OriginProblem::Invalid(errors.to_string()), errors))
        }
        None => Ok(documents),
    }
}

/// The files that make up an origin. One that vanishes meanwhile brings an event.
fn files(origin: &Path) -> Vec<PathBuf> {
    if !origin.is_dir() {
        return vec![origin.to_owned()];
    }
    let entries = origin.read_dir().into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    entries.filter(|path| manifest::is_manifest(path) && !path.is_dir()).collect()
}

fn keep_loading(store: &LocalStore, mut watch: Watch, told: &Receiver<Told>) {
    while let Ok(first) = told.recv() {
        if !wait_for_quiet(first, told) {
            return;
        }
        // Folders may have come or gone, and links may lead elsewhere.
        if let Err(error) = watch.renew() {
            tracing::warn!(origin = %watch.origin.display(), error = %error, "an origin is not watched any more");
        }
        match load(store, &watch.origin) {
            Ok(Synced { added, changed, removed }) => {
                let (added, changed, removed) = (added.len(), changed.len(), removed.len());
                tracing::info!(origin = %watch.origin.display(), added, changed, removed, "origin loaded");
            }
            Err(error) => tracing::warn!(origin = %watch.origin.display(), error = %error, "origin not loaded"),
        }
    }
}

/// Whether to go on, once a burst of changes is over.
fn wait_for_quiet(first: Told, told: &Receiver<Told>) -> bool {
    let began = Instant::now();
    let mut written = BTreeSet::new();
    let mut next = first;
    loop {
        match next {
            Told::Writing(file) => {
                written.insert(file);
            }
            Told::Changed(file) => {
                written.remove(&file);
            }
            Told::Stop => return false,
        }
        let quiet = if written.is_empty() { QUIET } else { STILL_WRITTEN };
        let left = AT_LEAST.saturating_sub(began.elapsed());
        next = match told.recv_timeout(quiet.min(left)) {
            Ok(next) => next,
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
    }
}

/// The folders that tell of an origin.
struct Watch {
    origin: PathBuf,
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    fn start(origin: &Path, told: Sender<Told>) -> Result<Self, notify::Error> {
        let about = origin.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let tell = |told_of| {
                // The thread that listened has ended, and the watcher ends with it.
                told.send(told_of).ok();
            };
            match event {
                Ok(event) if event.need_rescan() => tell(Told::Changed(about.clone())),
                Ok(event) => {
                    for path in event.paths {
                        if concerns(&path, &about) {
                            match event.kind {
                                EventKind::Access(AccessKind::Close(AccessMode::Write)) => tell(Told::Changed(path)),
                                EventKind::Access(_) => {}
                                EventKind::Modify(ModifyKind::Data(_)) => tell(Told::Writing(path)),
                                EventKind::Any
                                | EventKind::Create(_)
                                | EventKind::Modify(_)
                                | EventKind::Remove(_)
                                | EventKind::Other => tell(Told::Changed(path)),
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(origin = %about.display(), error = %error, "watching an origin");
                    tell(Told::Changed(about.clone()));
                }
            }
        })?;
        let mut watch = Self { origin: origin.to_owned(), watcher, watched: BTreeSet::new() };
        watch.renew()?;
        Ok(watch)
    }

    /// Watches the folders that matter now.
    fn renew(&mut self) -> Result<(), notify::Error> {
        let wanted = folders(&self.origin);
        for folder in self.watched.difference(&wanted) {
            // The folder may be gone, and its watch with it.
            self.watcher.unwatch(folder).ok();
        }
        for folder in &wanted {
            // Again also where it is watched: a folder that was replaced has the same name, and the old one's watch.
            self.watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        self.watched = wanted;
        Ok(())
    }
}

/// The origin, if it is a folder, and the nearest folder above it that exists: there it appears or is replaced. Where
/// links lead counts too.
fn folders(origin: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let real = origin.canonicalize().ok();
    for path in [Some(origin), real.as_deref()].into_iter().flatten() {
        if path.is_dir() {
            folders.insert(path.to_owned());
        }
        folders.extend(path.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned));
    }
    folders
}

/// Whether a change at `path` may change the origin: it is the origin or where that leads, a folder above it, or one of its
/// manifests. Everything else in a busy folder is let pass.
fn concerns(path: &Path, origin: &Path) -> bool {
    let is_origin =
        |origin: &Path| origin.starts_with(path) || (path.parent() == Some(origin) && manifest::is_manifest(path));
    is_origin(origin) || origin.canonicalize().is_ok_and(|real| is_origin(&real))
}
