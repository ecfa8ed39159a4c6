//! Which images we brought, and to which engine: engines keep no word of ours on an image.
//!
//! A folder with a small file for each image, so that a daemon and commands may write at once without a lock.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::engine::Engine;

/// The folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    folder: PathBuf,
}

/// An image that we brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// [`Facts::identity`](super::Facts) of the engine.
    pub(super) engine: String,
    /// `sha256:…`.
    pub(super) id: String,
    /// Full names that we brought it under.
    pub(super) names: BTreeSet<String>,
    /// When it was asked for last.
    pub(super) at: Timestamp,
}

impl Ledger {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Notes that we brought an image under this name, now.
    ///
    /// # Errors
    /// If the folder cannot be written; the image will be taken for somebody else's.
    pub fn note(&self, engine: &Engine, id: &str, name: &str) -> io::Result<()> {
        let known = self.entry(engine, id);
        let mut names = known.map(|known| known.names).unwrap_or_default();
        names.insert(name.to_owned());
        let at = Timestamp::now();
        let entry = Entry { engine: engine.facts().identity.clone(), id: id.to_owned(), names, at };
        std::fs::create_dir_all(&self.folder)?;
        let mut draft = tempfile::NamedTempFile::new_in(&self.folder)?;
        serde_json::to_writer(&mut draft, &entry)?;
        draft.persist(self.path(engine, id))?;
        Ok(())
    }

    /// As [`Ledger::note`], if we brought it before.
    ///
    /// # Errors
    /// As there.
    pub fn note_again(&self, engine: &Engine, id: &str, name: &str) -> io::Result<()> {
        match self.entry(engine, id) {
            Some(_) => self.note(engine, id, name),
            None => Ok(()),
        }
    }

    pub(super) fn entry(&self, engine: &Engine, id: &str) -> Option<Entry> {
        serde_json::from_slice(&std::fs::read(self.path(engine, id)).ok()?).ok()
    }

    /// All that we brought to this engine. What cannot be read is nobody's.
    pub(super) fn entries(&self, engine: &Engine) -> io::Result<Vec<Entry>> {
        let folder = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folder => folder?,
        };
        let mut entries = Vec::new();
        for file in folder {
            let path = file?.path();
            let read = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
            // A draft that a crash left there reads as well.
            let is_own =
                |entry: &Entry| entry.engine == engine.facts().identity && self.path(engine, &entry.id) == path;
            entries.extend(read.filter(is_own));
        }
        entries.sort_by(|one, other| (&one.names, &one.id).cmp(&(&other.names, &other.id)));
        Ok(entries)
    }

    /// The image is gone: who brings it again may be somebody else.
    pub(super) fn forget(&self, engine: &Engine, id: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(engine, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, engine: &Engine, id: &str) -> PathBuf {
        let key = format!("{} {id}", engine.facts().identity);
        self.folder.join(format!("{}.json", hex::encode(Sha256::digest(key))))
    }
}
