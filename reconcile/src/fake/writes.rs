//! Counts the writes of all three fakes, and cuts one of them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Retry, RuntimeError, SinkError, StoreError};

/// The log of writes that fakes share. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Writes(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    done: Vec<String>,
    /// Writes tried since [`Writes::cut`].
    tried: usize,
    cut: Option<Cut>,
    dead: bool,
}

/// Which write fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of the write, from 0.
    pub at: usize,
    pub lost: Lost,
    /// Whether the writer dies with it: then every later write fails too, until [`Writes::heal`].
    pub fatal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The write does not happen.
    Request,
    /// The write happens, and its writer does not learn of it.
    Response,
}

/// A write that failed because it was to be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{what}` was cut off")]
pub struct Interrupted {
    pub what: String,
}

impl Writes {
    /// What was written, in order.
    pub fn all(&self) -> Vec<String> {
        self.log().done.clone()
    }

    pub fn count(&self) -> usize {
        self.log().done.len()
    }

    /// What was written since the log had `count` entries.
    pub fn since(&self, count: usize) -> Vec<String> {
        self.log().done.get(count..).unwrap_or_default().to_vec()
    }

    /// Cuts a write, counted from now.
    pub fn cut(&self, cut: Cut) {
        let mut log = self.log();
        log.tried = 0;
        log.cut = Some(cut);
    }

    /// Whether the cut has come.
    pub fn was_cut(&self) -> bool {
        let log = self.log();
        log.cut.is_some_and(|cut| log.tried > cut.at)
    }

    /// From now on writes succeed.
    pub fn heal(&self) {
        let mut log = self.log();
        log.cut = None;
        log.dead = false;
    }

    /// Does `act` as a write of this name, unless it is cut off.
    pub fn write<T>(&self, what: impl Into<String>, act: impl FnOnce() -> T) -> Result<T, Interrupted> {
        let what = what.into();
        let cut = {
            let mut log = self.log();
            let cut = log.cut.filter(|cut| cut.at == log.tried);
            log.tried += 1;
            if log.dead {
                return Err(Interrupted { what });
            }
            log.dead = cut.is_some_and(|cut| cut.fatal);
            if cut.is_none_or(|cut| cut.lost == Lost::Response) {
                log.done.push(what.clone());
            }
            cut
        };
        match cut.map(|cut| cut.lost) {
            None => Ok(act()),
            Some(Lost::Request) => Err(Interrupted { what }),
            Some(Lost::Response) => {
                act();
                Err(Interrupted { what })
            }
        }
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Interrupted> for RuntimeError {
    fn from(cut: Interrupted) -> Self {
        Self { reason: "Interrupted", message: cut.to_string(), hint: None, retry: Retry::Backoff, source: None }
    }
}

impl From<Interrupted> for StoreError {
    fn from(cut: Interrupted) -> Self {
        Self::Io { action: "write", object: cut.what.clone(), source: Box::new(cut) }
    }
}

impl From<Interrupted> for SinkError {
    fn from(cut: Interrupted) -> Self {
        Self { reason: "Interrupted", message: cut.to_string(), hint: None, retry: Retry::Backoff }
    }
}
