//! `mcpctl apply` and `delete`: manifests in the user's own configuration, or objects of a cluster.

use std::io::Read;
use std::path::Path;

use mcp_hub_crds::manifest::{self, MAX_FILE_BYTES};
use mcp_hub_crds::{Resource, ResourceKey, ResourceKind};

use crate::admin::Name;
use crate::args::{Apply, Delete, Kind};
use crate::commands::wait::{self, Of};
use crate::daemon;
use crate::error::Error;
use crate::output;
use crate::target::Target;

pub(crate) async fn apply(target: &dyn Target, args: &Apply) -> Result<(), Error> {
    let namespace = args.namespace.namespace.as_deref().unwrap_or_else(|| target.namespace());
    let documents = if args.file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(Error::file("read", "stdin"))?;
        manifest::parse_into(namespace, &text, Path::new("stdin"))
    } else {
        manifest::load_into(namespace, &args.file)
    };
    let documents = documents.map_err(|errors| daemon::invalid(&errors))?;
    for warning in documents.iter().flat_map(|document| &document.warnings) {
        output::say(&format!("warning: {warning}"));
    }
    if let Some(asked) = &args.namespace.namespace
        && let Some(other) = documents.iter().find(|document| document.resource.key().namespace != *asked)
    {
        return Err(Error::Invalid {
            message: format!(
                "{}:{}: {} is not in namespace {asked}",
                other.file.display(),
                other.line,
                other.resource.key()
            ),
            hint: Some("leave --namespace out, or take the namespace out of the manifest".to_owned()),
        });
    }
    let servers = documents.iter().filter_map(|document| match &document.resource {
        Resource::Server(_) => Some(Name::of(&document.resource.key())),
        Resource::Hub(_) => None,
    });
    let servers = Of::Named(servers.collect());
    target.apply(documents, args.force_conflicts).await?;
    wait::settle(target, args.wait, &servers).await
}

pub(crate) async fn delete(target: &dyn Target, args: &Delete) -> Result<(), Error> {
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
    let Name { namespace, name } = target.named(&args.namespace, &args.name);
    target.delete(&ResourceKey { kind, namespace, name }).await
}
