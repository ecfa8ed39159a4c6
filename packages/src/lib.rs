//! Packages of npm and PyPI: installed once into a versioned folder, then run by their interpreter.
//!
//! The local daemon keeps a cache of them; in a pod, `mcp-runner` of the runner image installs the only one.
//!
//! `FOLDER/REGISTRY/NAME/VERSION` is complete or absent: an installation is made beside it and renamed. Programs
//! are started as `node BIN.js` or the virtual environment's python, never through npx or uvx, which leave orphans and
//! depend on PATH at run time.

mod npm;
mod pypi;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mcp_hub_crds::source::{PackageRegistry, PackageSource};
use mcp_hub_dataplane_api::install::InstallReason;
use tokio::process::Command;

/// Longest installation; a cold one of the largest published server took 20 s.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// Start of the names of installations under way.
const DRAFT: &str = ".installing-";

/// A place for installed packages.
#[derive(Debug, Clone)]
pub struct Packages {
    folder: PathBuf,
    /// All that installers know of the machine: `PATH`, proxies, registries.
    env: BTreeMap<String, String>,
}

/// What went wrong with a package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("{interpreter} is not installed, and package `{package}` needs it")]
    InterpreterMissing { interpreter: &'static str, package: String },
    #[error("there is no package `{package}` in {registry}")]
    NotFound { package: String, registry: &'static str },
    #[error("no answer from {registry}: {output}")]
    Unreachable { registry: &'static str, output: String },
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
    /// Reason for conditions.
    pub fn reason(&self) -> InstallReason {
        match self {
            Self::InterpreterMissing { .. } => InstallReason::InterpreterMissing,
            Self::NotFound { .. } => InstallReason::PackageNotFound,
            Self::Unreachable { .. } => InstallReason::RegistryUnreachable,
            Self::Tool { .. } => InstallReason::InstallFailed,
            Self::NoProgram { .. } | Self::WrongProgram { .. } | Self::SeveralPrograms { .. } => {
                InstallReason::ProgramNotFound
            }
            Self::File { .. } => InstallReason::CacheFailed,
        }
    }

    /// What a person does next, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InterpreterMissing { interpreter: "node", .. } => {
                Some("install Node.js with npm: `apt-get install nodejs npm`, `brew install node`, or nodejs.org".to_owned())
            }
            Self::InterpreterMissing { .. } => Some(
                "install Python 3 with venv: `apt-get install python3 python3-venv`, `brew install python`, or python.org"
                    .to_owned(),
            ),
            Self::NotFound { .. } => Some("check spec.source.package.name and version".to_owned()),
            Self::Unreachable { .. } => Some("check the network, proxies and CA certificates".to_owned()),
            Self::WrongProgram { .. } | Self::SeveralPrograms { .. } => {
                Some("name one of them in spec.source.package.executable".to_owned())
            }
            Self::Tool { .. } | Self::NoProgram { .. } | Self::File { .. } => None,
        }
    }

    /// The error with its cause, in one line.
    pub fn chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    /// Whether the same installation may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::InterpreterMissing { .. } | Self::Unreachable { .. } | Self::Tool { .. } | Self::File { .. } => true,
            Self::NotFound { .. }
            | Self::NoProgram { .. }
            | Self::WrongProgram { .. }
            | Self::SeveralPrograms { .. } => false,
        }
    }
}

/// An installed package: its exact version and the words that start its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub version: String,
    pub command: Vec<String>,
    /// Folders that the program reads.
    pub reads: Vec<String>,
}

impl Packages {
    /// Installers see this environment and nothing else of the machine.
    pub fn new(folder: &Path, env: BTreeMap<String, String>) -> Self {
        Self { folder: folder.to_owned(), env }
    }

    /// Installs the package unless it is there, and tells how to run it. Two callers with the same package share the work
    /// of the one that finishes first.
    ///
    /// # Errors
    /// [`PackageError`] says what a user can do about it, and whether time may mend it.
    ///
    /// # Cancel safety
    /// Dropped, it ends its installer; what was installed in part is removed.
    pub async fn install(&self, source: &PackageSource) -> Result<Installed, PackageError> {
        match source.registry {
            PackageRegistry::Npm => npm::install(self, source).await,
            PackageRegistry::Pypi => pypi::install(self, source).await,
        }
    }

    /// Folder of a version. Scoped npm names hold a slash, which makes a folder of the scope.
    fn folder(&self, source: &PackageSource, version: &str) -> PathBuf {
        self.folder.join(source.registry.as_str()).join(&source.name).join(version)
    }

    /// A program of the search path, absolute.
    fn program(&self, name: &'static str, package: &str) -> Result<PathBuf, PackageError> {
        let path = self.env.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
        which::which_in(name, Some(path), "/")
            .map_err(|_| PackageError::InterpreterMissing { interpreter: name, package: package.to_owned() })
    }

    /// Runs a tool to its end and returns its stdout. Never through a shell. `explain` may know what its output means.
    async fn run(
        &self,
        program: &Path,
        args: &[&str],
        folder: &Path,
        explain: impl FnOnce(&str) -> Option<PackageError>,
    ) -> Result<String, PackageError> {
        let shown = || format!("{} {}", program.file_name().unwrap_or_default().to_string_lossy(), args.join(" "));
        let failed = |output: String| PackageError::Tool { command: shown(), output };
        let mut command = Command::new(program);
        // What was said of the installation counts more than what keeps it quiet.
        command.args(args).env_clear().envs(quiet()).envs(&self.env).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = tokio::time::timeout(INSTALL_LIMIT, command.output())
            .await
            .map_err(|_| failed(format!("no end after {} s", INSTALL_LIMIT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
        let said = String::from_utf8_lossy(said);
        Err(explain(&said).unwrap_or_else(|| failed(last_lines(&said))))
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
        let parent = folder.parent().unwrap_or(&self.folder);
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

/// Keeps installers from asking, from showing bars, from looking for their own updates, and from waiting a quarter of an
/// hour for a registry that does not answer: who installs tries again, and says meanwhile what is wrong.
fn quiet() -> [(&'static str, &'static str); 9] {
    [
        ("CI", "true"),
        ("NO_COLOR", "1"),
        ("NO_UPDATE_NOTIFIER", "1"),
        ("npm_config_update_notifier", "false"),
        ("npm_config_fetch_retries", "1"),
        ("npm_config_fetch_timeout", "120000"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_RETRIES", "2"),
    ]
}

/// What a person needs of a failed tool's output: its last lines that say something.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut short = lines[lines.len().saturating_sub(4)..].join("; ");
    short.truncate(short.floor_char_boundary(1000));
    short
}

/// The first line that holds one of these signs.
fn line_with<'a>(said: &'a str, signs: &[&str]) -> Option<&'a str> {
    said.lines().map(str::trim).find(|line| signs.iter().any(|sign| line.contains(sign)))
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

    #[test]
    fn a_reason_crosses_to_the_operator_as_conditions_have_it() {
        for reason in [InstallReason::PackageNotFound, InstallReason::RegistryUnreachable, InstallReason::CacheFailed] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
