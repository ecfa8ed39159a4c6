//! npm: `npm install` into a folder of its own, then `node BIN.js`.

use std::collections::BTreeMap;
use std::path::Path;

use mcp_hub_crds::source::PackageSource;
use serde_json::Value;

use super::{Installed, PackageError, Packages, choose};

pub(super) async fn install(packages: &Packages, source: &PackageSource) -> Result<Installed, PackageError> {
    let node = packages.program("node", &source.name)?;
    let npm = packages.program("npm", &source.name)?;
    let version = match &source.version {
        Some(version) => version.clone(),
        None => newest(packages, &npm, source).await?,
    };
    let folder = packages.folder(source, &version);
    packages
        .install_into(&folder, async |draft| {
            let prefix = draft.to_string_lossy();
            let spec = format!("{}@{version}", source.name);
            // Install scripts are code of every dependency, run before anything confines it; published servers need none.
            let args =
                ["install", "--prefix", &prefix, "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", &spec];
            packages.run(&npm, &args, draft).await.map(drop).map_err(|error| not_found(error, &spec))
        })
        .await?;
    let root = folder.join("node_modules").join(&source.name);
    let script = choose(source, programs(&root)?)?;
    Ok(Installed {
        version,
        command: vec![node.to_string_lossy().into_owned(), root.join(script).to_string_lossy().into_owned()],
        reads: vec![folder.to_string_lossy().into_owned(), node.to_string_lossy().into_owned()],
    })
}

async fn newest(packages: &Packages, npm: &Path, source: &PackageSource) -> Result<String, PackageError> {
    let args = ["view", &source.name, "version", "--json"];
    let printed = packages.run(npm, &args, Path::new("/")).await.map_err(|error| not_found(error, &source.name))?;
    match serde_json::from_str(&printed) {
        Ok(Value::String(version)) => Ok(version),
        _ => Err(PackageError::Tool { command: "npm view".to_owned(), output: "no version in its answer".to_owned() }),
    }
}

/// npm's two codes for "no such package" and "no such version", and the words before each of their lines: only the last
/// lines of its output are kept.
fn not_found(error: PackageError, package: &str) -> PackageError {
    match error {
        PackageError::Tool { output, .. }
            if ["E404", "error 404", "ETARGET", "notarget", "No matching version"]
                .iter()
                .any(|sign| output.contains(sign)) =>
        {
            PackageError::NotFound { package: package.to_owned(), registry: "npm" }
        }
        error => error,
    }
}

/// `bin` of a package.json: one path, named like the package, or a map.
fn programs(root: &Path) -> Result<BTreeMap<String, String>, PackageError> {
    let path = root.join("package.json");
    let text =
        std::fs::read(&path).map_err(|source| PackageError::File { action: "read", path: path.clone(), source })?;
    let manifest: Value = serde_json::from_slice(&text).map_err(|error| PackageError::File {
        action: "parse",
        path,
        source: error.into(),
    })?;
    let name = manifest["name"].as_str().unwrap_or_default();
    Ok(match &manifest["bin"] {
        Value::String(script) => BTreeMap::from([(name.rsplit('/').next().unwrap_or(name).to_owned(), script.clone())]),
        Value::Object(bin) => {
            bin.iter().filter_map(|(name, script)| Some((name.clone(), script.as_str()?.to_owned()))).collect()
        }
        _ => BTreeMap::new(),
    })
}
