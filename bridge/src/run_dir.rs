//! The run folder: its lock, the launch specification, the record of who holds it.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mcp_hub_dataplane_api::launch::{BridgeRecord, LaunchSpec};
use rustix::fs::FlockOperation;

/// Longest path of a Unix socket that every platform takes (`sun_path` is 104 bytes on macOS, 108 on Linux).
const SOCKET_PATH_MAX: usize = 100;

/// The folder, locked as long as this lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("{path} is held by another bridge", path = .path.display())]
    Held { path: PathBuf },
    #[error("could not {action} {path}", path = .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is no launch specification", path = .path.display())]
    Spec {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the control socket's path {path} is longer than {SOCKET_PATH_MAX} bytes; use a shorter run folder", path = .path.display())]
    SocketPath { path: PathBuf },
}

impl RunDir {
    /// Opens the folder, which is made if only itself is missing.
    pub fn make(path: PathBuf) -> Result<Self, RunDirError> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                Err(RunDirError::File { action: "make", path, source })
            }
            Ok(()) | Err(_) => Self::open(path),
        }
    }

    pub fn open(path: PathBuf) -> Result<Self, RunDirError> {
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| RunDirError::File { action: "open", path: lock_path.clone(), source })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RunDirError::Held { path }),
            Err(error) => Err(RunDirError::File { action: "lock", path: lock_path, source: error.into() }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn launch_spec(&self) -> Result<LaunchSpec, RunDirError> {
        let path = self.path.join("launch.json");
        let bytes =
            std::fs::read(&path).map_err(|source| RunDirError::File { action: "read", path: path.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| RunDirError::Spec { path, source })
    }

    /// Tells who holds the folder; written before anything is spawned, so that nothing is ever nobody's.
    pub fn write_record(&self, spec: &LaunchSpec) -> Result<(), RunDirError> {
        let pid = std::process::id();
        let record = BridgeRecord {
            pid,
            start_ticks: crate::tree::start_ticks(pid).unwrap_or_default(),
            bridge_version: crate::VERSION.to_owned(),
            digest: spec.digest.clone(),
        };
        let path = self.path.join("bridge.json");
        let failed = |action| {
            let path = path.clone();
            move |source| RunDirError::File { action, path, source }
        };
        let json = serde_json::to_vec(&record).map_err(|source| RunDirError::Spec { path: path.clone(), source })?;
        let draft = self.path.join("bridge.json.new");
        let mut file = File::create(&draft).map_err(failed("create"))?;
        file.write_all(&json).map_err(failed("write"))?;
        std::fs::rename(&draft, &path).map_err(failed("write"))
    }

    /// Path of the control socket, free to be bound.
    pub fn control_socket(&self) -> Result<PathBuf, RunDirError> {
        let path = self.path.join("control.sock");
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(RunDirError::SocketPath { path });
        }
        self.remove_socket();
        Ok(path)
    }

    /// The socket's mode is its authentication.
    pub fn protect_control_socket(&self) -> Result<(), RunDirError> {
        let path = self.path.join("control.sock");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(|source| RunDirError::File {
            action: "protect",
            path,
            source,
        })
    }

    /// A socket left by a killed bridge is in the way of the next one; we hold the lock, so nobody listens on it.
    pub fn remove_socket(&self) {
        std::fs::remove_file(self.path.join("control.sock")).ok();
    }
}
