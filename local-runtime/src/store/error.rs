//! Failures of the store, and what the user does next.

use std::io;
use std::path::{Path, PathBuf};

use mcp_hub_crds::ResourceKey;
use mcp_hub_reconcile::error::StoreError;
use rusqlite::ErrorCode;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why the store of a state folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another daemon{} holds {}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), .path.display())]
    Held {
        /// `None` if it has not written it yet.
        pid: Option<u32>,
        path: PathBuf,
    },
    #[error("{} cannot be written", .path.display())]
    ReadOnly {
        path: PathBuf,
        #[source]
        source: Source,
    },
    #[error("no space left for {}", .path.display())]
    Full {
        path: PathBuf,
        #[source]
        source: Source,
    },
    #[error("could not {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Source,
    },
    #[error("{} is no database of this program, or damaged", .path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: Source,
    },
    #[error("{} was written by a newer release (format {found})", .path.display())]
    Newer { path: PathBuf, found: i64 },
    #[error("{} does not hold a key of 32 bytes", .path.display())]
    NoKey { path: PathBuf },
}

impl OpenError {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Held { .. } => "use the daemon that runs, end it, or choose another state folder".to_owned(),
            Self::ReadOnly { .. } => "make the state folder writable for you, or choose another one".to_owned(),
            Self::Full { .. } => "free some space on that disk, or choose another state folder".to_owned(),
            Self::Io { .. } => "check the path, or choose another state folder".to_owned(),
            Self::Damaged { path, .. } => {
                format!("move {} away: servers come back from their manifests, under new identities", path.display())
            }
            Self::Newer { .. } => "use the newer release, or choose another state folder".to_owned(),
            Self::NoKey { path } => {
                format!("remove {}: a new key is made, and clients need the new token", path.display())
            }
        })
    }

    pub(super) fn of_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let (path, kind) = (path.to_owned(), source.kind());
        let source = source.into();
        match kind {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly { path, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    pub(super) fn of_sqlite(action: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let (path, code) = (path.to_owned(), source.sqlite_error_code());
        let unreadable = matches!(source, rusqlite::Error::FromSqlConversionFailure(..));
        let source = source.into();
        match code {
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly { path, source },
            Some(ErrorCode::DiskFull) => Self::Full { path, source },
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Damaged { path, source },
            _ if unreadable => Self::Damaged { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Why the store could not take a change. The stored state is the one before it, except for `Claimed`.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Everything else of the origin was applied; this object follows when the other origin lets it go.
    #[error("{key} is already defined by {}", .origin.display())]
    Claimed {
        key: ResourceKey,
        /// Who has it.
        origin: PathBuf,
    },
    #[error("could not {action} in {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
}

impl SyncError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Claimed { .. } => Some("rename one of the two, or take it out of one of the files".to_owned()),
            Self::Io { source, .. } => match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Some("free some space on that disk; nothing stored was lost".to_owned()),
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                    Some("make the state folder writable; nothing stored was lost".to_owned())
                }
                _ => None,
            },
        }
    }
}

impl From<SyncError> for StoreError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Claimed { key, .. } => Self::Conflict { object: key.to_string() },
            SyncError::Io { action, path, source } => {
                Self::Io { action, object: format!("in {}", path.display()), source: source.into() }
            }
        }
    }
}
