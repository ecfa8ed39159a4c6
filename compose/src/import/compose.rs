//! A Compose file, or a stack of a Swarm: which of its services are MCP servers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mcp_hub_crds::client_config::server_name;
use mcp_hub_crds::tree::{Kind, Node, Position};
use mcp_hub_crds::{FieldPath, MCPServer};
use serde_json::{Map, Value, json};

use super::{Imported, Relative, Remark, Weight, checked, label, service};
use crate::engine::{NAME_LABEL, PART_LABEL, SERVER_LABEL};
use crate::variables::{self, Written};

/// What somebody says of a server for people.
const DESCRIPTION_LABEL: &str = "mcp-hub.description";
const DESCRIPTION: &str = "mcphub.io/description";

/// A file being read.
pub(super) struct Reading<'a> {
    pub(super) file: &'a Path,
    pub(super) root: &'a Node,
    pub(super) relative: Relative<'a>,
    /// Services that become servers.
    pub(super) servers: BTreeSet<String>,
    pub(super) remarks: Vec<Remark>,
}

impl Reading<'_> {
    fn remark(&mut self, path: &FieldPath, weight: Weight, text: String, hint: Option<&str>) {
        self.remarks.push(Remark {
            file: self.file.to_owned(),
            at: Some(self.root.find(path)),
            path: path.clone(),
            text,
            hint: hint.map(str::to_owned),
            weight,
        });
    }

    pub(super) fn tell(&mut self, path: &FieldPath, text: impl Into<String>) {
        self.remark(path, Weight::Told, text.into(), None);
    }

    pub(super) fn miss(&mut self, path: &FieldPath, text: impl Into<String>, hint: Option<&str>) {
        self.remark(path, Weight::NotTaken, text.into(), hint);
    }

    /// Text without placeholders, as Compose would read it.
    pub(super) fn literal(&mut self, path: &FieldPath, node: &Node) -> Option<String> {
        let Some(text) = scalar(node) else {
            self.miss(path, "expected text", None);
            return None;
        };
        match variables::read(&text) {
            Written::Literal(text) => Some(text),
            Written::Variable { default: Some(default), name } => {
                // Which may be a secret.
                self.tell(path, format!("its default is taken, which holds where {name} is not set"));
                Some(default)
            }
            Written::Variable { .. } | Written::Secret(_) | Written::Mixed(_) => {
                self.miss(path, "placeholders are not expanded here", Some("write it out"));
                None
            }
        }
    }
}

/// A scalar as text.
pub(super) fn scalar(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Scalar(Value::String(text)) => Some(text.clone()),
        Kind::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => Some(value.to_string()),
        Kind::Scalar(_) | Kind::List(_) | Kind::Map(_) => None,
    }
}

pub(super) fn read(file: &Path, root: &Node, relative: Relative<'_>) -> Imported {
    let mut reading = Reading { file, root, relative, servers: BTreeSet::new(), remarks: Vec::new() };
    let top = FieldPath::default();
    for entry in root.entries() {
        match entry.key.as_str() {
            // Definitions; what counts is who uses them.
            "services" | "version" | "name" | "networks" | "volumes" | "secrets" | "configs" => {}
            key if key.starts_with("x-") => {}
            key => reading.miss(&top.field(key), "it has no counterpart", None),
        }
    }
    let section = top.field("services");
    let services = root.get("services").map(|services| services.value.entries()).unwrap_or_default();
    let labels: Vec<BTreeMap<String, String>> = services.iter().map(|entry| labels_of(&entry.value)).collect();
    let is_marked = |labels: &BTreeMap<String, String>| {
        labels.contains_key(NAME_LABEL) || labels.contains_key(SERVER_LABEL) || labels.contains_key("mcp-hub.type")
    };
    // Whoever marks servers means that the others are none.
    let any_marked = labels.iter().any(is_marked);
    let chosen: Vec<bool> =
        labels.iter().map(|labels| !labels.contains_key(PART_LABEL) && (is_marked(labels) || !any_marked)).collect();
    reading.servers =
        services.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(entry, _)| entry.key.clone()).collect();
    let mut found: Vec<MCPServer> = Vec::new();
    for ((entry, labels), chosen) in services.iter().zip(&labels).zip(chosen) {
        let path = section.field(&entry.key);
        if !chosen {
            if !labels.contains_key(PART_LABEL) {
                reading.tell(&path, format!("no MCP server: it has no label {NAME_LABEL}, which others have"));
            }
            continue;
        }
        let Some(server) = server(&mut reading, &path, &entry.key, &entry.value, labels, entry.at) else { continue };
        match found.iter().find(|other| other.metadata.name == server.metadata.name) {
            Some(_) => reading.miss(&path, "another service has this name", Some("rename one of the two")),
            None => found.push(server),
        }
    }
    Imported { servers: found, remarks: reading.remarks }
}

fn labels_of(service: &Node) -> BTreeMap<String, String> {
    let Some(labels) = service.get("labels") else { return BTreeMap::new() };
    match &labels.value.kind {
        Kind::Map(entries) => {
            entries.iter().filter_map(|entry| Some((entry.key.clone(), scalar(&entry.value)?))).collect()
        }
        Kind::List(items) => items
            .iter()
            .filter_map(|item| {
                let text = scalar(item)?;
                let (name, value) = text.split_once('=').unwrap_or((&text, ""));
                Some((name.to_owned(), value.to_owned()))
            })
            .collect(),
        Kind::Scalar(_) => BTreeMap::new(),
    }
}

fn server(
    reading: &mut Reading<'_>,
    path: &FieldPath,
    key: &str,
    node: &Node,
    labels: &BTreeMap<String, String>,
    at: Position,
) -> Option<MCPServer> {
    if node.entries().is_empty() {
        reading.miss(path, "expected a mapping", None);
        return None;
    }
    let text = labels.get(NAME_LABEL).filter(|name| !name.is_empty()).map_or(key, String::as_str);
    let name = match server_name(text) {
        Ok(name) => name,
        Err(error) => {
            reading.miss(path, error.to_string(), error.hint().as_deref());
            return None;
        }
    };
    if name.as_str() != key {
        reading.tell(path, format!("it is named `{name}` here"));
    }
    let ours =
        labels.get(SERVER_LABEL).and_then(|text| label::read(reading, &path.field("labels").field(SERVER_LABEL), text));
    let spec = service::read(reading, path, node, labels, ours.as_ref())?;
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), name.as_str().into());
    if let Some(labels) = ours.and_then(|ours| ours.labels) {
        metadata.insert("labels".to_owned(), json!(labels));
    }
    if let Some(description) = labels.get(DESCRIPTION_LABEL) {
        metadata.insert("annotations".to_owned(), json!({DESCRIPTION: description}));
    }
    let manifest = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": metadata, "spec": spec});
    match checked(&manifest) {
        Ok(server) => Some(server),
        Err(errors) => {
            for error in errors.0 {
                reading.remarks.push(Remark {
                    file: reading.file.to_owned(),
                    at: Some(at),
                    path: path.clone(),
                    text: format!("no manifest can be made of it: {}: {}", error.path, error.problem),
                    hint: error.hint(),
                    weight: Weight::NotTaken,
                });
            }
            None
        }
    }
}
