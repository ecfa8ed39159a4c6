//! PyPI: a virtual environment for each server, then its python with the package's script.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mcp_hub_crds::source::PackageSource;
use serde_json::Value;

use super::{Installed, PackageError, Packages, choose, last_lines, line_with};

/// Prints the version and the console scripts of an installed distribution as JSON.
const INSPECT: &str = "import importlib.metadata as m, json, sys
d = m.distribution(sys.argv[1])
print(json.dumps({'version': d.version, 'scripts': [e.name for e in d.entry_points if e.group == 'console_scripts']}))";

/// What [`INSPECT`] printed, kept with the installation: asking again would cost every start the start of an interpreter.
const INSPECTED: &str = "mcp-hub.json";

/// Folder of an installation whose version was not given; it is kept under the name until the source changes.
const NEWEST: &str = "newest";

pub(super) async fn install(packages: &Packages, source: &PackageSource) -> Result<Installed, PackageError> {
    let python = packages.program("python3", &source.name)?;
    let spec = match &source.version {
        Some(version) => format!("{}=={version}", source.name),
        None => source.name.clone(),
    };
    let folder = packages.folder(source, source.version.as_deref().unwrap_or(NEWEST));
    packages
        .install_into(&folder, async |draft| {
            let venv = draft.to_string_lossy();
            packages.run(&python, &["-m", "venv", &venv], draft, |said| no_venv(said, &source.name)).await?;
            let args = ["-m", "pip", "install", "--quiet", "--no-compile", "--", &spec];
            packages.run(&interpreter(draft), &args, draft, |said| explain(said, &spec)).await?;
            // Isolated: neither the working directory nor the user's own packages may stand in for the environment's.
            let printed =
                packages.run(&interpreter(draft), &["-I", "-c", INSPECT, &source.name], draft, |_| None).await?;
            let path = draft.join(INSPECTED);
            std::fs::write(&path, printed).map_err(|source| PackageError::File { action: "write", path, source })
        })
        .await?;
    let python = interpreter(&folder);
    let path = folder.join(INSPECTED);
    let printed =
        std::fs::read(&path).map_err(|source| PackageError::File { action: "read", path: path.clone(), source })?;
    let found: Value = serde_json::from_slice(&printed).map_err(|error| PackageError::File {
        action: "parse",
        path,
        source: error.into(),
    })?;
    let scripts = found["scripts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let scripts: BTreeMap<String, String> = scripts.map(|name| (name.to_owned(), name.to_owned())).collect();
    let script = folder.join("bin").join(choose(source, scripts)?);
    Ok(Installed {
        version: found["version"].as_str().unwrap_or_default().to_owned(),
        command: vec![python.to_string_lossy().into_owned(), script.to_string_lossy().into_owned()],
        reads: reads(&folder, &python),
    })
}

fn interpreter(folder: &Path) -> PathBuf {
    folder.join("bin/python")
}

/// The environment, and the installation of Python that its interpreter links to.
fn reads(folder: &Path, python: &Path) -> Vec<String> {
    let base = std::fs::canonicalize(python).ok().and_then(|real| real.parent()?.parent().map(Path::to_owned));
    [Some(folder.to_owned()), base].into_iter().flatten().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn no_venv(said: &str, package: &str) -> Option<PackageError> {
    line_with(said, &["ensurepip"])?;
    Some(PackageError::InterpreterMissing { interpreter: "python3-venv", package: package.to_owned() })
}

/// pip says "no matching distribution" also when nobody answered; what it tried before tells the two apart.
fn explain(said: &str, package: &str) -> Option<PackageError> {
    if let Some(line) = line_with(said, &["connection broken by", "Could not fetch URL"]) {
        return Some(PackageError::Unreachable { registry: "PyPI", output: last_lines(line) });
    }
    line_with(said, &["No matching distribution"])?;
    Some(PackageError::NotFound { package: package.to_owned(), registry: "PyPI" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_does_not_answer_is_not_a_package_that_does_not_exist() {
        let reason = |said: &str| explain(said, "a==9").map(|error| error.reason().as_str());
        let none = "ERROR: No matching distribution found for a==9";
        assert_eq!(reason(none), Some("PackageNotFound"));
        let broken = "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'";
        assert_eq!(reason(&format!("{broken}\n{none}")), Some("RegistryUnreachable"));
        assert_eq!(reason("error: subprocess-exited-with-error"), None);
    }
}
