//! Where clusters keep their state, and how one is known to be somebody's.
//!
//! Each cluster has a folder, and its owner holds a lock in it as long as it lives. A folder whose lock is free belonged
//! to a process that was killed, unless the cluster was left up on purpose, which a mark in the folder tells.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::files;
use crate::namespace::Namespace;
use crate::parts::Part;
use crate::process::Record;

/// Names another folder for the state of clusters. Short, because socket paths lie below it.
pub const STATE_VARIABLE: &str = "MCP_HUB_CLUSTER_STATE";

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) name: String,
    path: PathBuf,
}

impl Folder {
    pub(crate) fn of(name: &str) -> Result<Self, Error> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 20 || !name.chars().all(fits) {
            return Err(Error::BadName(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), path: root().join(name) })
    }

    /// Every cluster that has a folder.
    pub(crate) fn all() -> Vec<Self> {
        let names = files::list(&root()).into_iter().filter(|path| path.is_dir());
        names.filter_map(|path| Self::of(path.file_name()?.to_str()?).ok()).collect()
    }

    /// Makes the folder and gives the owner's lock.
    pub(crate) fn create(&self) -> Result<File, Error> {
        let created = DirBuilder::new().mode(0o700).create(&self.path);
        created.map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::AlreadyUp(self.name.clone()),
            _ => Error::file("create", &self.path)(source),
        })?;
        for folder in ["arguments", "pids", "log", "pki", "cni"] {
            files::make(&self.path.join(folder))?;
        }
        let path = self.path.join("lock");
        let lock = File::create(&path).map_err(Error::file("create", &path))?;
        lock.lock().map_err(Error::file("lock", &path))?;
        Ok(lock)
    }

    /// Whether its owner is gone and did not mean to leave it up.
    pub(crate) fn is_abandoned(&self) -> bool {
        if self.is_detached() {
            return false;
        }
        match File::open(self.path.join("lock")).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => false,
            // Without a lock its owner ended before it had one: `registry` is locked while a folder is made.
            Ok(_) | Err(_) => true,
        }
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.path.join("detached").exists()
    }

    pub(crate) fn detach(&self) -> Result<(), Error> {
        files::write(&self.path.join("detached"), "")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the folder, as text for arguments and configurations.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn log(&self, part: Part) -> PathBuf {
        self.logs().join(format!("{}.log", part.name()))
    }

    pub(crate) fn record(&self, part: Part, record: Record) -> Result<(), Error> {
        files::write(&self.path.join("pids").join(part.name()), record.to_string())
    }

    pub(crate) fn recorded(&self, part: Part) -> Option<Record> {
        read_record(&self.path.join("pids").join(part.name()))
    }

    /// What a part was started with, which is what it is started with again, whoever does it.
    pub(crate) fn arguments(&self, part: Part, first: impl FnOnce() -> Vec<String>) -> Result<Vec<String>, Error> {
        let path = self.path.join("arguments").join(part.name());
        if let Ok(text) = std::fs::read_to_string(&path) {
            return Ok(text.lines().map(str::to_owned).collect());
        }
        let arguments = first();
        files::write(&path, arguments.join("\n"))?;
        Ok(arguments)
    }

    /// All processes that were written down.
    pub(crate) fn records(&self) -> Vec<Record> {
        files::list(&self.path.join("pids")).iter().filter_map(|path| read_record(path)).collect()
    }

    /// Name of what a cluster has outside its folder: namespace, control group, network.
    pub(crate) fn mark(&self) -> String {
        format!("mcphub-{}", self.name)
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::named(self.mark())
    }
}

/// Nobody makes or removes another's folder while this is held.
pub(crate) fn registry() -> Result<File, Error> {
    let root = root();
    let created = DirBuilder::new().mode(0o700).recursive(true).create(&root);
    created.map_err(Error::file("create", &root))?;
    let path = root.join("lock");
    let lock = File::create(&path).map_err(Error::file("create", &path))?;
    lock.lock().map_err(Error::file("lock", &path))?;
    Ok(lock)
}

fn root() -> PathBuf {
    let chosen = std::env::var_os(STATE_VARIABLE).map(PathBuf::from);
    chosen.unwrap_or_else(|| std::env::temp_dir().join("mcp-hub-cluster"))
}

fn read_record(path: &Path) -> Option<Record> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}
