//! Every request, for tests that count them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::request::Verb;

/// One request and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Time since the server was made.
    pub at: Duration,
    pub verb: Verb,
    /// Such as `Deployment`.
    pub kind: String,
    /// Empty for all namespaces and for kinds without.
    pub namespace: String,
    /// Empty for lists, watches, and names that the server makes.
    pub name: String,
    /// Empty, or `status`.
    pub subresource: String,
    /// With its query.
    pub path: String,
    pub user_agent: String,
    /// Owner of the written fields.
    pub manager: String,
    /// HTTP status of the answer, also of one that was lost on its way; None if the request was lost or is never answered.
    pub status: Option<u16>,
    /// The revision that the write made; None if it changed nothing.
    pub revision: Option<u64>,
}

impl Entry {
    /// The request asked for a change, whether it made one or not.
    pub fn is_write(&self) -> bool {
        self.verb.is_write()
    }
}

/// Older entries are forgotten; the counters are not.
const MAX_ENTRIES: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: VecDeque<Entry>,
    writes: u64,
}

impl Log {
    pub(crate) fn add(&mut self, entry: Entry) {
        self.writes += u64::from(entry.is_write());
        self.entries.push_back(entry);
        if self.entries.len() > MAX_ENTRIES {
            self.entries.pop_front();
        }
    }

    /// Writes since the server was made, failed ones too.
    pub(crate) fn writes(&self) -> u64 {
        self.writes
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }
}
