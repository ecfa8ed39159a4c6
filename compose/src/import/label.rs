//! The label in which `mcpctl generate` keeps what a file has no word for. Anybody can write one: it is read by the rules of
//! manifests, holds nothing that a generated one does not, and what it permits is said.

use std::collections::BTreeMap;

use mcp_hub_crds::server::FilesystemPermission;
use mcp_hub_crds::source::Source;
use mcp_hub_crds::{FieldPath, MCPServer};
use serde_json::{Map, Value, json};

use super::checked;
use super::compose::Reading;

/// What the label says of a server.
pub(super) struct Label {
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// As a manifest has it, so that everything in it is of its type.
    pub(super) spec: Map<String, Value>,
}

/// `None` if it is none of ours; that is said.
pub(super) fn read(reading: &mut Reading<'_>, path: &FieldPath, text: &str) -> Option<Label> {
    let server = match parsed(text) {
        Ok(server) => server,
        Err(problem) => {
            reading.miss(path, problem, Some("generate the file anew"));
            return None;
        }
    };
    let permissions = server.spec.permissions.as_ref();
    if permissions.and_then(|permissions| permissions.filesystem) == Some(FilesystemPermission::Unrestricted) {
        reading.tell(path, "it lets the server write to its root (spec.permissions.filesystem: unrestricted)");
    }
    if server.spec.run_as.as_ref().and_then(|run_as| run_as.allow_root) == Some(true) {
        reading.tell(path, "it lets the server run as root (spec.runAs.allowRoot)");
    }
    let Ok(Value::Object(spec)) = serde_json::to_value(&server.spec) else { return None };
    Some(Label { labels: server.metadata.labels, spec })
}

fn parsed(text: &str) -> Result<MCPServer, String> {
    let label: Value = serde_json::from_str(text).map_err(|_| "it cannot be read".to_owned())?;
    let manifest = json!({
        "apiVersion": "mcphub.io/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": "label", "labels": label.get("labels")},
        "spec": label.get("spec"),
    });
    let server = checked(&manifest).map_err(|errors| match errors.0.first() {
        Some(error) => format!("it cannot be read: {}: {}", error.path, error.problem),
        None => "it cannot be read".to_owned(),
    })?;
    let spec = &server.spec;
    let foreign = match &spec.source {
        // It would run on whoever's machine the manifest is applied, outside of every container.
        Source::Command(_) => Some("spec.source.command"),
        Source::Remote(_) => Some("spec.source.remote"),
        Source::Image(_) | Source::Package(_) if spec.kubernetes.is_some() => Some("spec.kubernetes"),
        // They stand in the service's environment.
        Source::Image(_) | Source::Package(_) if spec.env.iter().flatten().any(|one| one.value.is_some()) => {
            Some("spec.env with values")
        }
        Source::Image(_) | Source::Package(_) => None,
    };
    match foreign {
        Some(field) => Err(format!("no generated file has {field} there")),
        None => Ok(server),
    }
}
