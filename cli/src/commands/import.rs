//! `mcpctl import`: what others wrote, as manifests.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use kube::ResourceExt;
use mcp_hub_compose::import::{self, Relative, Remark, Weight};
use mcp_hub_crds::manifest::{self, Problem};
use mcp_hub_crds::{MCPServer, Resource};

use crate::args::Import;
use crate::error::Error;
use crate::output;

pub(crate) fn run(args: &Import) -> Result<(), Error> {
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let mut servers: Vec<(MCPServer, &Path)> = Vec::new();
    let mut not_taken = 0;
    for file in &args.files {
        let imported = read(file, &folder)?;
        not_taken += imported.remarks.iter().filter(|remark| remark.weight == Weight::NotTaken).count();
        imported.remarks.iter().for_each(say);
        for server in imported.servers {
            let name = server.name_any();
            if let Some((_, other)) = servers.iter().find(|(other, _)| other.name_any() == name) {
                return Err(Error::Invalid {
                    message: format!("`{name}` stands in {} and in {}", other.display(), file.display()),
                    hint: Some("rename one of the two, or import them into two folders".to_owned()),
                });
            }
            servers.push((server, file));
        }
    }
    if servers.is_empty() && not_taken == 0 {
        return Err(Error::Invalid { message: "there is no MCP server in it".to_owned(), hint: None });
    }
    // Nothing is written if something is in the way.
    let targets: Vec<PathBuf> =
        servers.iter().map(|(server, _)| folder.join(format!("{}.yaml", server.name_any()))).collect();
    if let Some(taken) = targets.iter().find(|target| !args.force && target.symlink_metadata().is_ok()) {
        return Err(Error::Invalid {
            message: format!("{} is there already", taken.display()),
            hint: Some("choose another folder with --output, or write over it with --force".to_owned()),
        });
    }
    for ((server, _), target) in servers.into_iter().zip(&targets) {
        store(&folder, target, &Resource::Server(server)).map_err(Error::file("write", target))?;
        output::say(&format!("wrote {}", target.display()));
    }
    match not_taken {
        0 => Ok(()),
        count => Err(Error::Invalid {
            message: format!("{count} field{} could not be taken, see above", if count == 1 { "" } else { "s" }),
            hint: Some("what was written leaves them out; complete it by hand".to_owned()),
        }),
    }
}

fn read(file: &Path, folder: &Path) -> Result<import::Imported, Error> {
    let text = manifest::read(file).map_err(|problem| match problem {
        Problem::Read(source) if source.kind() == ErrorKind::NotFound => Error::file("read", file)(source),
        problem => Error::Invalid { message: format!("{}: {problem}", file.display()), hint: problem.hint() },
    })?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize().map_err(Error::file("find", parent))?;
    let relative = match folder.canonicalize() {
        Ok(folder) if folder == parent => Relative::Kept,
        Ok(_) | Err(_) => Relative::To(&parent),
    };
    import::read(file, &text, relative)
        .map_err(|problem| Error::Invalid { message: problem.to_string(), hint: problem.hint() })
}

fn say(remark: &Remark) {
    let kind = match remark.weight {
        Weight::Told => "note",
        Weight::NotTaken => "error",
    };
    output::say(&format!("{kind}: {remark}"));
}

fn store(folder: &Path, target: &Path, resource: &Resource) -> std::io::Result<()> {
    let mut draft = tempfile::Builder::new().prefix(".draft").tempfile_in(folder)?;
    draft.write_all(resource.to_yaml().as_bytes())?;
    draft.as_file().sync_all()?;
    draft.persist(target)?;
    Ok(())
}
