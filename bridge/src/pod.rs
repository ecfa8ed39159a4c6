//! What is different in a pod: an init container brings the program into a volume, from where it is the first process of
//! the wrapped image's container; the launch specification comes from the environment. Containers of Compose and Swarm are
//! pods of one container.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mcp_hub_dataplane_api::launch::{LAUNCH_ENV, LaunchSpec, SECRETS_ENV};

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
    #[error("the secret {name} is not in {folder}, which {SECRETS_ENV} names", folder = .folder.display())]
    Secret {
        name: String,
        folder: PathBuf,
        #[source]
        source: std::io::Error,
    },
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

/// The values of the specification's secret variables, where the container has them in files.
pub fn secrets(spec: &LaunchSpec) -> Result<Option<BTreeMap<String, String>>, PodError> {
    let Some(folder) = std::env::var_os(SECRETS_ENV).map(PathBuf::from) else { return Ok(None) };
    let read = |name: &String| {
        let text = std::fs::read_to_string(folder.join(name)).map_err(|source| PodError::Secret {
            name: name.clone(),
            folder: folder.clone(),
            source,
        })?;
        let value = text.strip_suffix('\n').unwrap_or(&text);
        Ok((name.clone(), value.strip_suffix('\r').unwrap_or(value).to_owned()))
    };
    spec.child.secret_env.iter().map(read).collect::<Result<_, _>>().map(Some)
}

/// Opens folders for whoever a server runs as. A pod's volumes are its group's; a container engine makes new ones root's
/// alone.
pub fn open_folders(folders: &[&Path]) -> Result<(), PodError> {
    for folder in folders {
        if !folder.is_dir() {
            return Err(PodError::NoFolder { folder: folder.to_path_buf() });
        }
        // As /tmp is: who makes a file there keeps it.
        std::fs::set_permissions(folder, Permissions::from_mode(0o1777)).map_err(|source| PodError::Install {
            action: "open",
            path: folder.to_path_buf(),
            source,
        })?;
    }
    Ok(())
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
