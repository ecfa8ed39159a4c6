//! What one daemon has to itself: the state folder, its lock, and the installation's key.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::error::OpenError;

/// A child that a dead daemon was just starting shares its files until it runs its own program, a few milliseconds later.
const FORKED: Duration = Duration::from_millis(300);

/// Makes the folder, for its user only.
pub(super) fn make_folder(state_dir: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.map_err(|error| OpenError::of_io("create", state_dir, error))
}

/// Takes `daemon.lock`, which holds the daemon's process id as text. The lock ends with the process, however it ends.
pub(super) fn take(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join("daemon.lock");
    let failed = |error: io::Error| OpenError::of_io("lock", &path, error);
    let mut file = private().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let began = Instant::now();
    let mut locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    while locked == Err(rustix::io::Errno::WOULDBLOCK) && began.elapsed() < FORKED {
        // The lock's end gives no event.
        std::thread::sleep(Duration::from_millis(10));
        locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::Held { pid, path });
        }
        Err(error) => return Err(failed(error.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(file)
}

/// The installation's key, made at the first call. A file of its own, so that a copied database gives no tokens away.
pub(super) fn key(state_dir: &Path) -> Result<[u8; 32], OpenError> {
    let path = state_dir.join("installation.key");
    let failed = |error| OpenError::of_io("read", &path, error);
    match std::fs::read(&path) {
        Ok(bytes) => {
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
            bytes.try_into().map_err(|_| OpenError::NoKey { path })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|error| failed(io::Error::other(error.to_string())))?;
            let write = || {
                // Whole or absent, whenever the machine stops.
                let mut draft = tempfile::Builder::new().prefix(".key").tempfile_in(state_dir)?;
                draft.write_all(&key)?;
                draft.as_file().sync_all()?;
                draft.persist(&path)?;
                Ok(())
            };
            write().map_err(|error| OpenError::of_io("write", &path, error))?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the file, if it is not there, before SQLite would with everybody's permissions; SQLite's other files take theirs
/// from it.
pub(super) fn make_private(path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::of_io("create", path, error);
    let file = private().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}
