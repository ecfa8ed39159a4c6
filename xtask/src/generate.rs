//! `cargo xtask generate`: files that are derived from code.

use std::path::PathBuf;

use crate::shell::{self, Error};
use crate::{chart, errors_page};

/// Writes each generated file, or with `check` fails on the first stale one.
pub(crate) fn run(check: bool) -> Result<(), Error> {
    for (path, content) in files()? {
        let current = std::fs::read_to_string(&path).unwrap_or_default();
        if current == content {
            continue;
        }
        if check {
            return Err(Error::Stale(path.display().to_string()));
        }
        let failed = |action| {
            let path = path.clone();
            move |source| Error::File { action, path, source }
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
        }
        std::fs::write(&path, content).map_err(failed("write"))?;
    }
    Ok(())
}

fn files() -> Result<Vec<(PathBuf, String)>, Error> {
    let root = shell::root();
    let mut files = Vec::new();
    for (name, content) in mcp_hub_crds::schema::generated() {
        // A chart holds all that it installs.
        files.push((root.join("charts/mcp-hub/files/crds").join(&name), content.clone()));
        files.push((root.join("crds/yaml").join(name), content));
    }
    let printed = |package: &str, more: &[&str]| {
        let run = ["run", "--quiet", "--locked", "--package", package, "--"];
        shell::output(shell::cargo(&run).args(more))
    };
    files.push((root.join("docs/src/reference/cli.md"), printed("mcpctl", &["generate-reference"])?));
    files.push((root.join("docs/src/reference/runtimes.md"), printed("mcp-hub-support-matrix", &[])?));
    files.push((root.join("docs/src/errors.md"), errors_page::page()));
    files.extend(chart::plain()?);
    Ok(files)
}
