//! npm: `npm install` into a folder of its own, then `node BIN.js`.

use std::collections::BTreeMap;
use std::path::Path;

use mcp_hub_crds::source::PackageSource;
use serde_json::Value;

use super::{Installed, PackageError, Packages, choose, last_lines, line_with};

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
            let args = [
                "install",
                "--prefix",
                &prefix,
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "--no-save",
                "--",
                &spec,
            ];
            packages.run(&npm, &args, draft, |said| explain(said, &spec)).await.map(drop)
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
    let args = ["view", "--json", "--", &source.name, "version"];
    let printed = packages.run(npm, &args, Path::new("/"), |said| explain(said, &source.name)).await?;
    match serde_json::from_str(&printed) {
        Ok(Value::String(version)) => Ok(version),
        _ => Err(PackageError::Tool { command: "npm view".to_owned(), output: "no version in its answer".to_owned() }),
    }
}

/// npm's codes for "no such package" and "no such version", and those of a connection that was not made or broke; what a
/// proxy refuses it takes for the registry's own answer.
fn explain(said: &str, package: &str) -> Option<PackageError> {
    const UNKNOWN: &[&str] = &["code E404", "code ETARGET"];
    const UNREACHABLE: &[&str] = &[
        "code E407",
        "code E502",
        "code E503",
        "code E504",
        "code ECONNREFUSED",
        "code ECONNRESET",
        "code EHOSTUNREACH",
        "code ENETUNREACH",
        "code ENOTFOUND",
        "code EAI_AGAIN",
        "code ETIMEDOUT",
        "code ERR_SOCKET_TIMEOUT",
        "code FETCH_ERROR",
        "code SELF_SIGNED_CERT_IN_CHAIN",
        "code DEPTH_ZERO_SELF_SIGNED_CERT",
        "code UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
        "code UNABLE_TO_VERIFY_LEAF_SIGNATURE",
    ];
    if line_with(said, UNKNOWN).is_some() {
        return Some(PackageError::NotFound { package: package.to_owned(), registry: "npm" });
    }
    line_with(said, UNREACHABLE)?;
    Some(PackageError::Unreachable { registry: "npm", output: last_lines(said) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_does_not_answer_is_not_a_package_that_does_not_exist() {
        let reason = |said: &str| explain(said, "a@9").map(|error| error.reason().as_str());
        let long = "npm error notarget it was specified as a dependency\n".repeat(9);
        assert_eq!(reason("npm error code E404\nnpm error 404 Not Found"), Some("PackageNotFound"));
        assert_eq!(reason(&format!("npm ERR! code ETARGET\n{long}")), Some("PackageNotFound"));
        assert_eq!(reason(&format!("npm error code ENOTFOUND\n{long}")), Some("RegistryUnreachable"));
        assert_eq!(reason("npm error code EINTEGRITY"), None);
    }
}
