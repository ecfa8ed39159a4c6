//! Packages of npm and PyPI: installed once into a versioned cache, then run by their interpreter.
//!
//! `CACHE/packages/REGISTRY/NAME/VERSION` is complete or absent: an installation is made beside it and renamed. Programs
//! are started as `node BIN.js` or the virtual environment's python, never through npx or uvx, which leave orphans and
//! depend on PATH at run time.

mod npm;
mod pypi;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mcp_hub_crds::source::{PackageRegistry, PackageSource, Resolved};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::observed::Failure;
use tokio::process::Command;

use crate::host::Host;

/// Longest installation; a cold one of the largest published server took 20 s.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// Start of the names of installations under way.
const DRAFT: &str = ".installing-";

/// A place for installed packages.
#[derive(Debug, Clone)]
pub struct Packages {
    cache: PathBuf,
    host: Host,
}

/// What went wrong with a package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("{interpreter} is not installed, and package `{package}` needs it")]
    InterpreterMissing { interpreter: &'static str, package: String },
    #[error("there is no package `{package}` in {registry}")]
    NotFound { package: String, registry: &'static str },
    #[error("`{command}` failed: {output}")]
    Tool { command: String, output: String },
    #[error("package `{package}` brings no program")]
    NoProgram { package: String },
    #[error("package `{package}` brings no program `{wanted}`, but {}", .there.join(", "))]
    WrongProgram { package: String, wanted: String, there: Vec<String> },
    #[error("package `{package}` brings several programs: {}", .there.join(", "))]
    SeveralPrograms { package: String, there: Vec<String> },
    #[error("could not {action} {path}", path = .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl PackageError {
    fn reason(&self) -> &'static str {
        match self {
            Self::InterpreterMissing { .. } => "InterpreterMissing",
            Self::NotFound { .. } => "PackageNotFound",
            Self::Tool { .. } => "InstallFailed",
            Self::NoProgram { .. } | Self::WrongProgram { .. } | Self::SeveralPrograms { .. } => "ProgramNotFound",
            Self::File { .. } => "CacheFailed",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::InterpreterMissing { interpreter: "node", .. } => {
                Some("install Node.js with npm: `apt-get install nodejs npm`, `brew install node`, or nodejs.org".to_owned())
            }
            Self::InterpreterMissing { .. } => Some(
                "install Python 3 with venv: `apt-get install python3 python3-venv`, `brew install python`, or python.org"
                    .to_owned(),
            ),
            Self::NotFound { .. } => Some("check spec.source.package.name and version".to_owned()),
            Self::WrongProgram { .. } | Self::SeveralPrograms { .. } => {
                Some("name one of them in spec.source.package.executable".to_owned())
            }
            Self::Tool { .. } | Self::NoProgram { .. } | Self::File { .. } => None,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Tool { .. } | Self::File { .. } => Retry::Backoff,
            // An interpreter may be installed while the daemon runs, which nothing tells of.
            Self::InterpreterMissing { .. } => Retry::After(Duration::from_secs(60)),
            Self::NotFound { .. }
            | Self::NoProgram { .. }
            | Self::WrongProgram { .. }
            | Self::SeveralPrograms { .. } => Retry::OnChange,
        }
    }
}

impl From<PackageError> for Failure {
    fn from(error: PackageError) -> Self {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self { reason: error.reason(), message: format!("{error}{source}"), hint: error.hint(), retry: error.retry() }
    }
}

/// An installed package: its exact version and the words that start its program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Installed {
    version: String,
    command: Vec<String>,
    /// Folders that the program reads.
    reads: Vec<String>,
}

impl Packages {
    pub fn new(cache: &Path, host: Host) -> Self {
        Self { cache: cache.join("packages"), host }
    }

    /// Installs the package unless it is there, and tells how to run it. Two callers with the same package share the work
    /// of the one that finishes first.
    pub async fn resolve(&self, source: &PackageSource, source_digest: &str) -> Result<Resolved, PackageError> {
        let installed = match source.registry {
            PackageRegistry::Npm => npm::install(self, source).await?,
            PackageRegistry::Pypi => pypi::install(self, source).await?,
        };
        Ok(Resolved {
            source_digest: source_digest.to_owned(),
            version: Some(installed.version),
            command: Some(installed.command),
            env: None::<BTreeMap<String, String>>,
            reads: Some(installed.reads),
            image: None,
        })
    }

    /// Folder of a version. Scoped npm names hold a slash, which makes a folder of the scope.
    fn folder(&self, source: &PackageSource, version: &str) -> PathBuf {
        self.cache.join(source.registry.as_str()).join(&source.name).join(version)
    }

    /// A program of the search path, absolute.
    fn program(&self, name: &'static str, package: &str) -> Result<PathBuf, PackageError> {
        which::which_in(name, Some(self.host.path()), "/")
            .map_err(|_| PackageError::InterpreterMissing { interpreter: name, package: package.to_owned() })
    }

    /// Runs a tool to its end and returns its stdout. Never through a shell.
    async fn run(&self, program: &Path, args: &[&str], folder: &Path) -> Result<String, PackageError> {
        let shown = || format!("{} {}", program.file_name().unwrap_or_default().to_string_lossy(), args.join(" "));
        let failed = |output: String| PackageError::Tool { command: shown(), output };
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(&self.host.env).envs(quiet()).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = tokio::time::timeout(INSTALL_LIMIT, command.output())
            .await
            .map_err(|_| failed(format!("no end after {} s", INSTALL_LIMIT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failed(last_lines(&output.stderr, &output.stdout)))
        }
    }

    /// Makes `folder` by filling a sibling and renaming it, so that it is never there half made.
    async fn install_into<F>(&self, folder: &Path, fill: F) -> Result<(), PackageError>
    where
        F: AsyncFnOnce(&Path) -> Result<(), PackageError>,
    {
        if folder.is_dir() {
            return Ok(());
        }
        let file = |action| {
            let path = folder.to_owned();
            move |source| PackageError::File { action, path, source }
        };
        let parent = folder.parent().unwrap_or(&self.cache);
        std::fs::create_dir_all(parent).map_err(file("create the parent of"))?;
        sweep_drafts(parent);
        // Dropped on failure or when the daemon ends; what a killed daemon leaves is swept by a later installation.
        let draft = tempfile::Builder::new().prefix(DRAFT).tempdir_in(parent).map_err(file("create"))?;
        fill(draft.path()).await?;
        match std::fs::rename(draft.path(), folder) {
            Ok(()) => Ok(()),
            // Another installation of the same version was faster, and is as good.
            Err(_) if folder.is_dir() => Ok(()),
            Err(source) => Err(file("rename to")(source)),
        }
    }
}

/// Removes drafts that are too old to be anybody's. Best effort: they only take space.
fn sweep_drafts(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with(DRAFT) && age.is_some_and(|age| age > 2 * INSTALL_LIMIT) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Keeps installers from asking, from showing bars, and from looking for their own updates.
fn quiet() -> [(&'static str, &'static str); 6] {
    [
        ("CI", "true"),
        ("NO_COLOR", "1"),
        ("NO_UPDATE_NOTIFIER", "1"),
        ("npm_config_update_notifier", "false"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_NO_INPUT", "1"),
    ]
}

/// What a person needs of a failed tool's output: its last lines that say something.
fn last_lines(stderr: &[u8], stdout: &[u8]) -> String {
    let text = if stderr.trim_ascii().is_empty() { stdout } else { stderr };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut short = lines[lines.len().saturating_sub(4)..].join("; ");
    short.truncate(short.floor_char_boundary(1000));
    short
}

/// Picks the program: the one named, the only one, or the one named like the package.
fn choose(source: &PackageSource, mut there: BTreeMap<String, String>) -> Result<String, PackageError> {
    let package = source.name.clone();
    if let Some(wanted) = &source.executable {
        return there.remove(wanted).ok_or_else(|| PackageError::WrongProgram {
            package,
            wanted: wanted.clone(),
            there: there.into_keys().collect(),
        });
    }
    let short = source.name.rsplit('/').next().unwrap_or(&source.name);
    match (there.len(), there.remove(short)) {
        (0, _) => Err(PackageError::NoProgram { package }),
        (_, Some(program)) => Ok(program),
        (1, None) => there.pop_first().map(|(_, program)| program).ok_or(PackageError::NoProgram { package }),
        (_, None) => Err(PackageError::SeveralPrograms { package, there: there.into_keys().collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(executable: Option<&str>) -> PackageSource {
        PackageSource {
            registry: PackageRegistry::Npm,
            name: "@scope/tool".to_owned(),
            version: None,
            executable: executable.map(str::to_owned),
        }
    }

    fn programs(names: &[&str]) -> BTreeMap<String, String> {
        names.iter().map(|name| ((*name).to_owned(), format!("{name}.js"))).collect()
    }

    #[test]
    fn the_program_is_the_one_named_the_only_one_or_the_packages_namesake() {
        assert_eq!(choose(&source(Some("b")), programs(&["a", "b"])).unwrap(), "b.js");
        assert_eq!(choose(&source(None), programs(&["other"])).unwrap(), "other.js");
        assert_eq!(choose(&source(None), programs(&["a", "tool"])).unwrap(), "tool.js");
    }

    #[test]
    fn a_choice_that_is_not_clear_is_refused_with_the_names() {
        let error = choose(&source(None), programs(&["a", "b"])).unwrap_err();
        assert_eq!(error.to_string(), "package `@scope/tool` brings several programs: a, b");
        let error = choose(&source(Some("c")), programs(&["a", "b"])).unwrap_err();
        assert_eq!(error.to_string(), "package `@scope/tool` brings no program `c`, but a, b");
        assert!(choose(&source(None), programs(&[])).is_err());
    }
}
