//! Who this installation is, and that one daemon at a time has its state.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mcp_hub_reconcile::installation::Installation;
use rusqlite::ErrorCode;
use rustix::fs::FlockOperation;

use super::database::Database;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by {}", .path.display(), .pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Held { pid: Option<u32>, path: PathBuf },
    #[error("could not {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not use the database {}", .path.display())]
    Database {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{} holds no key of 64 hexadecimal digits", .path.display())]
    Key { path: PathBuf },
    #[error("there are no random numbers for a key: {0}")]
    Random(getrandom::Error),
}

impl OpenError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Held { .. } => {
                Some("it is the running daemon; stop it, or give this one a MCPHUB_HOME of its own".to_owned())
            }
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only".to_owned()),
                std::io::ErrorKind::StorageFull => Some("the disk is full".to_owned()),
                _ => None,
            },
            Self::Database { source, .. } => database_hint(source),
            Self::Key { .. } => Some("restore it from a backup; without it every token changes".to_owned()),
            Self::Random(_) => None,
        }
    }
}

pub(super) fn database_hint(error: &rusqlite::Error) -> Option<String> {
    match error.sqlite_error_code()? {
        ErrorCode::DiskFull => Some("the disk is full".to_owned()),
        ErrorCode::ReadOnly | ErrorCode::CannotOpen => Some("is the file system read-only?".to_owned()),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            Some("move the file away to begin anew; manifests are not lost".to_owned())
        }
        _ => None,
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

/// Takes the lock of the state folder and leaves this process's id in it. It is held until the file is closed, also by a
/// crash.
pub(super) fn lock(state_dir: &Path) -> Result<File, OpenError> {
    std::fs::create_dir_all(state_dir).map_err(io("create", state_dir))?;
    let path = state_dir.join("daemon.lock");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The holder may be about to write its id; the lock alone says enough.
            file.read_to_string(&mut holder).ok();
            return Err(OpenError::Held { pid: holder.trim().parse().ok(), path });
        }
        Err(error) => return Err(io("lock", &path)(error.into())),
    }
    let mut write = || {
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())
    };
    write().map_err(io("write", &path))?;
    Ok(file)
}

/// The id lies in the database, the key in a file of its own that only this user can read. Both are made once.
pub(super) fn installation(state_dir: &Path, database: &Database) -> Result<Installation, OpenError> {
    let failed = |source| OpenError::Database { path: state_dir.join("hub.db"), source };
    let fresh = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
    let id = database.meta_or("installation", || fresh).map_err(failed)?;
    Ok(Installation::new(id, key(&state_dir.join("installation.key"))?))
}

fn key(path: &Path) -> Result<[u8; 32], OpenError> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let bytes = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
            bytes.ok_or_else(|| OpenError::Key { path: path.to_owned() })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(OpenError::Random)?;
            let write = || {
                let mut draft = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
                draft.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
                draft.write_all(hex::encode(key).as_bytes())?;
                draft.as_file().sync_all()?;
                draft.persist(path)?;
                Ok(())
            };
            write().map_err(io("write", path))?;
            Ok(key)
        }
        Err(error) => Err(io("read", path)(error)),
    }
}
