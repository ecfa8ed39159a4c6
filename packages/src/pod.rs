//! The package of a pod: what the init container leaves in a folder, and the server's container starts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mcp_hub_crds::source::PackageSource;
use mcp_hub_dataplane_api::install::{InstallFailure, TERMINATION_LOG};
use mcp_hub_packages::{Installed, PackageError, Packages};

/// The words that start the package's program, as a list in JSON.
const COMMAND: &str = "command.json";
/// Where installers keep what nobody needs afterwards. The root of the file system is read-only.
const SCRATCH: &str = ".scratch";
/// Certificates of authorities, in PEM, that are trusted besides the public ones.
const CA_VARIABLE: &str = "MCP_RUNNER_CA";
/// The public ones, of the image.
const PUBLIC_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
/// By which node, Python's own TLS, and pip are told of a bundle.
const CA_FILE_VARIABLES: [&str; 3] = ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "PIP_CERT"];

/// Installs a package and leaves how to start it.
pub(crate) async fn install(folder: &Path, source: &PackageSource) -> Result<Installed, PackageError> {
    let scratch = Scratch::make(folder.join(SCRATCH))?;
    let mut env: BTreeMap<String, String> = std::env::vars().filter(|(name, _)| name != CA_VARIABLE).collect();
    for variable in ["HOME", "TMPDIR", "npm_config_cache", "PIP_CACHE_DIR"] {
        env.insert(variable.to_owned(), scratch.0.to_string_lossy().into_owned());
    }
    if let Ok(authorities) = std::env::var(CA_VARIABLE) {
        let path = scratch.0.join("ca.pem");
        let public = std::fs::read_to_string(PUBLIC_CA).map_err(file("read", Path::new(PUBLIC_CA)))?;
        std::fs::write(&path, format!("{public}\n{authorities}\n")).map_err(file("write", &path))?;
        let path = path.to_string_lossy().into_owned();
        env.extend(CA_FILE_VARIABLES.map(|variable| (variable.to_owned(), path.clone())));
    }
    let installed = Packages::new(folder, env).install(source).await?;
    let path = folder.join(COMMAND);
    let command = serde_json::to_vec(&installed.command).unwrap_or_default();
    std::fs::write(&path, command).map_err(file("write", &path))?;
    Ok(installed)
}

/// Tells the operator, by way of the kubelet. Outside of a pod nobody reads it.
pub(crate) fn leave_word(error: &PackageError) {
    let failure = InstallFailure { reason: error.reason(), message: error.chain(), hint: error.hint() };
    let word = serde_json::to_vec(&failure).unwrap_or_default();
    // Without the file the kubelet takes the last lines of the log, which say the same to people.
    std::fs::OpenOptions::new()
        .write(true)
        .open(TERMINATION_LOG)
        .and_then(|mut log| {
            use std::io::Write;
            log.write_all(&word)
        })
        .unwrap_or_default();
}

/// Replaces this program by the package's; gives the reason why not.
pub(crate) fn start(folder: &Path, args: &[OsString]) -> String {
    let path = folder.join(COMMAND);
    let read = std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Vec<String>>(&text)?));
    let command = match read {
        Ok(command) => command,
        Err(error) => return format!("could not read {}: {error}", path.display()),
    };
    let Some((program, first)) = command.split_first() else {
        return format!("{} names no program", path.display());
    };
    let error = Command::new(program).args(first).args(args).exec();
    format!("could not start {program}: {error}")
}

/// A folder that goes with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn make(path: PathBuf) -> Result<Self, PackageError> {
        std::fs::create_dir_all(&path).map_err(file("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays takes space, and goes with the pod.
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PackageError {
    let path = path.to_owned();
    move |source| PackageError::File { action, path, source }
}
