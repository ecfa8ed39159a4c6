//! One stored object, and what it looks like as a resource.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use mcp_hub_crds::{Resource, ResourceKey, ResourceKind};
use mcp_hub_reconcile::status::MANIFEST_PROBLEM_ANNOTATION;
use mcp_hub_reconcile::workload::{BASE_DIR_ANNOTATION, RESTARTED_AT_ANNOTATION, STOPPED_ANNOTATION};
use serde_json::{Value, json};
use uuid::Uuid;

/// A row of table `objects`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) key: ResourceKey,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) resource_version: i64,
    /// `None` for the implicit hub.
    pub(super) origin: Option<PathBuf>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) spec: Value,
    pub(super) status: Option<Value>,
    pub(super) stopped: bool,
    pub(super) restarted_at: Option<String>,
    pub(super) created_at: String,
    pub(super) deleted_at: Option<String>,
    /// Of its origin; not part of the row itself.
    pub(super) problem: Option<String>,
}

/// Now, as RFC 3339.
pub(super) fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

impl Row {
    /// A new object of a file. Its relative paths start from the file's folder unless it says otherwise.
    pub(super) fn new(resource: &Resource, origin: &Path, file: &Path) -> Self {
        let mut row = Self::implicit(resource);
        row.origin = Some(origin.to_owned());
        let folder = std::path::absolute(file).ok().and_then(|file| Some(file.parent()?.to_owned()));
        if let (Some(folder), ResourceKind::MCPServer) = (folder, row.key.kind) {
            row.annotations
                .entry(BASE_DIR_ANNOTATION.to_owned())
                .or_insert_with(|| folder.to_string_lossy().into_owned());
        }
        row
    }

    /// A new object of no file.
    pub(super) fn implicit(resource: &Resource) -> Self {
        let metadata = match resource {
            Resource::Server(server) => &server.metadata,
            Resource::Hub(hub) => &hub.metadata,
        };
        // Both types hold maps with text keys and finite numbers only: there is nothing JSON cannot say.
        let document = serde_json::to_value(resource).unwrap_or_default();
        Self {
            key: resource.key(),
            uid: Uuid::now_v7().to_string(),
            generation: 1,
            resource_version: 1,
            origin: None,
            labels: metadata.labels.clone().unwrap_or_default(),
            annotations: metadata.annotations.clone().unwrap_or_default(),
            spec: document["spec"].clone(),
            status: None,
            stopped: false,
            restarted_at: None,
            created_at: now(),
            deleted_at: None,
            problem: None,
        }
    }

    /// This object with what a manifest says of it now; `None` if it says nothing new. A hub that was implicit becomes the
    /// manifest's and keeps its uid.
    pub(super) fn changed_to(&self, wanted: &Self) -> Option<Self> {
        let mut row = self.clone();
        row.origin.clone_from(&wanted.origin);
        row.labels.clone_from(&wanted.labels);
        row.annotations.clone_from(&wanted.annotations);
        if row.spec != wanted.spec {
            row.spec.clone_from(&wanted.spec);
            row.generation += 1;
        }
        (row != *self).then_some(row)
    }

    /// The object as the queue and `get` see it; `None` if an older or newer release wrote what this one cannot read.
    pub(super) fn resource(&self) -> Option<Resource> {
        let mut annotations = self.annotations.clone();
        if self.stopped {
            annotations.insert(STOPPED_ANNOTATION.to_owned(), "true".to_owned());
        }
        if let Some(at) = &self.restarted_at {
            annotations.insert(RESTARTED_AT_ANNOTATION.to_owned(), at.clone());
        }
        if let Some(problem) = &self.problem {
            annotations.insert(MANIFEST_PROBLEM_ANNOTATION.to_owned(), problem.clone());
        }
        let mut document = json!({
            "apiVersion": format!("{}/{}", mcp_hub_crds::GROUP, mcp_hub_crds::VERSION),
            "kind": self.key.kind.as_str(),
            "metadata": {
                "namespace": self.key.namespace,
                "name": self.key.name,
                "uid": self.uid,
                "generation": self.generation,
                "resourceVersion": self.resource_version.to_string(),
                "creationTimestamp": self.created_at,
            },
            "spec": self.spec,
        });
        if !self.labels.is_empty() {
            document["metadata"]["labels"] = json!(self.labels);
        }
        if !annotations.is_empty() {
            document["metadata"]["annotations"] = json!(annotations);
        }
        if let Some(at) = &self.deleted_at {
            document["metadata"]["deletionTimestamp"] = json!(at);
        }
        if let Some(status) = &self.status {
            document["status"] = status.clone();
        }
        match self.key.kind {
            ResourceKind::MCPServer => serde_json::from_value(document).ok().map(Resource::Server),
            ResourceKind::MCPHub => serde_json::from_value(document).ok().map(Resource::Hub),
        }
    }
}
