//! What is different in a pod: an init container brings the program into a volume, from where it is the first process of
//! the wrapped image's container; the launch specification comes from the environment.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mcp_hub_dataplane_api::launch::{LAUNCH_ENV, LaunchSpec};

/// Name of the program in the volume.
const PROGRAM: &str = "mcp-bridge";

#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("{LAUNCH_ENV} is not set; it holds the launch specification")]
    NoLaunch,
    #[error("{LAUNCH_ENV} is no launch specification")]
    Launch(#[source] serde_json::Error),
    #[error("{folder} is no folder; mount the volume there that both containers share", folder = .folder.display())]
    NoFolder { folder: PathBuf },
    #[error("could not {action} {path}", path = .path.display())]
    Install {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The launch specification of this container.
pub fn launch_spec() -> Result<LaunchSpec, PodError> {
    let json = std::env::var(LAUNCH_ENV).map_err(|_| PodError::NoLaunch)?;
    serde_json::from_str(&json).map_err(PodError::Launch)
}

/// Copies this program into a folder, where it appears whole, executable for everybody, or not at all.
pub fn install(folder: &Path) -> Result<(), PodError> {
    if !folder.is_dir() {
        return Err(PodError::NoFolder { folder: folder.to_owned() });
    }
    let draft = folder.join(".mcp-bridge.new");
    let installed = copy(&draft, &folder.join(PROGRAM));
    if installed.is_err() {
        // Not there if it could not even be made.
        std::fs::remove_file(&draft).ok();
    }
    installed
}

fn copy(draft: &Path, program: &Path) -> Result<(), PodError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| PodError::Install { action, path, source }
    };
    std::fs::copy("/proc/self/exe", draft).map_err(failed("write", draft))?;
    // Not what the mask of the init container's user leaves of it.
    std::fs::set_permissions(draft, Permissions::from_mode(0o755)).map_err(failed("make executable", draft))?;
    File::open(draft).and_then(|file| file.sync_all()).map_err(failed("write", draft))?;
    std::fs::rename(draft, program).map_err(failed("write", program))
}
