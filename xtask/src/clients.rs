//! The official SDKs, installed for the whole-product tests at the versions that `tests/e2e/clients` pins.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Error};

/// Installs what is not there yet and returns the folder.
pub(crate) fn install() -> Result<PathBuf, Error> {
    let folder = shell::target().join("clients");
    let pins = shell::root().join("tests/e2e/clients");
    python(&folder.join("python"), &pins.join("requirements.txt"))?;
    python(&folder.join("python-1x"), &pins.join("requirements-1x.txt"))?;
    node(&folder.join("node"), &pins.join("package.json"))?;
    Ok(folder)
}

fn python(folder: &Path, pins: &Path) -> Result<(), Error> {
    fresh(folder, pins, || {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        shell::run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "--requirement"]).arg(pins))
    })
}

fn node(folder: &Path, pins: &Path) -> Result<(), Error> {
    fresh(folder, pins, || {
        let failed = |source| Error::File { action: "copy to", path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        std::fs::copy(pins, folder.join("package.json")).map_err(failed)?;
        let args = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"];
        shell::run(Command::new("npm").args(args).current_dir(folder))
    })
}

/// Runs `install` unless it was finished with these very pins before.
fn fresh(folder: &Path, pins: &Path, install: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let (wanted, mark) = (read(pins), folder.join("installed"));
    if read(&mark) == wanted && !wanted.is_empty() {
        return Ok(());
    }
    install()?;
    std::fs::write(&mark, wanted).map_err(|source| Error::File { action: "write", path: mark, source })
}
