//! `mcpctl apply` and `delete`: manifests in the user's own configuration.

use std::io::Read;
use std::path::Path;

use mcp_hub_crds::manifest::{self, MAX_FILE_BYTES};
use mcp_hub_crds::{Resource, ResourceKind};
use mcp_hub_reconcile::workload::BASE_DIR_ANNOTATION;

use crate::admin::client::Admin;
use crate::args::{Apply, Delete, Kind};
use crate::commands::add::{discard, file_of, reload, server_names, store};
use crate::daemon;
use crate::error::Error;
use crate::output;
use crate::places::Places;

pub(crate) async fn apply(places: &Places, admin: &Admin, args: &Apply) -> Result<(), Error> {
    let (documents, folder) = if args.file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(Error::file("read", "stdin"))?;
        let here = std::env::current_dir().map_err(Error::file("find", "the current folder"))?;
        (manifest::parse(&text, Path::new("stdin")), Some(here))
    } else {
        (manifest::load(&args.file), None)
    };
    let documents = documents.map_err(|errors| daemon::invalid(&errors))?;
    let mut resources = Vec::new();
    for document in documents {
        document.warnings.iter().for_each(|warning| output::say(&format!("warning: {warning}")));
        let mut resource = document.resource;
        // Relative paths go on meaning what they meant where the manifest was written.
        let base = match &folder {
            Some(folder) => folder.clone(),
            None => {
                let file = std::path::absolute(&document.file).map_err(Error::file("find", &document.file))?;
                file.parent().unwrap_or(Path::new("/")).to_owned()
            }
        };
        if let Resource::Server(server) = &mut resource {
            let annotations = server.metadata.annotations.get_or_insert_default();
            annotations.entry(BASE_DIR_ANNOTATION.to_owned()).or_insert_with(|| base.to_string_lossy().into_owned());
        }
        resources.push(resource);
    }
    for resource in &resources {
        let key = resource.key();
        store(places, resource, &file_of(places, key.kind, &key.name))?;
        output::say(&format!("{key} applied"));
    }
    reload(places, admin, args.wait, server_names(resources.iter())).await
}

pub(crate) async fn delete(places: &Places, admin: &Admin, args: &Delete) -> Result<(), Error> {
    let kind = match args.kind {
        Kind::Servers => ResourceKind::MCPServer,
        Kind::Hubs => ResourceKind::MCPHub,
        Kind::Events | Kind::Origins => {
            return Err(Error::Invalid {
                message: "only servers and hubs can be deleted".to_owned(),
                hint: Some("`mcpctl down -f PATH` ends an origin".to_owned()),
            });
        }
    };
    discard(places, admin, kind, &args.namespace.namespace, &args.name).await
}
