//! What others wrote, read as manifests: Compose files, and configurations of MCP clients.
//!
//! What has no counterpart is named, field by field. A value that looks like a secret is not copied: the manifest names a
//! secret, and a remark says which is to be set.

mod clients;
mod compose;
mod environment;
mod label;
mod mounts;
mod secrets;
mod service;

use std::fmt;
use std::path::{Path, PathBuf};

use mcp_hub_crds::client_config::without_comments;
use mcp_hub_crds::manifest::{self, ManifestErrors};
use mcp_hub_crds::tree::{self, Node, Position};
use mcp_hub_crds::validate::Rules;
use mcp_hub_crds::{FieldPath, MCPServer, Resource};
use serde_json::Value;

/// What a file gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    pub servers: Vec<MCPServer>,
    pub remarks: Vec<Remark>,
}

/// Something to be known of a field. Displayed as `FILE:LINE:COLUMN: PATH: TEXT`, with the hint on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub file: PathBuf,
    pub at: Option<Position>,
    pub path: FieldPath,
    pub text: String,
    pub hint: Option<String>,
    pub weight: Weight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Taken, or done by MCP Hub in its own way.
    Told,
    /// Asked for and not taken.
    NotTaken,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.path.is_root() {
            write!(f, " {}:", self.path)?;
        }
        if self.weight == Weight::NotTaken {
            write!(f, " not taken:")?;
        }
        write!(f, " {}", self.text)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// A file of which nothing can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotImported {
    #[error("{file}{place}: {message}", file = .file.display())]
    Syntax { file: PathBuf, place: String, message: String },
    #[error("{} holds {count} documents, and neither Compose nor a client writes more than one", .file.display())]
    Several { file: PathBuf, count: usize },
    #[error("{} is a manifest already", .file.display())]
    Manifest { file: PathBuf },
    #[error("{} is neither a Compose file nor the configuration of a known MCP client", .file.display())]
    Unknown { file: PathBuf },
}

impl NotImported {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax { .. } => None,
            Self::Several { .. } => Some("import them one by one".to_owned()),
            Self::Manifest { .. } => Some("`mcpctl apply -f FILE` takes it over".to_owned()),
            Self::Unknown { .. } => Some(format!(
                "known are: a mapping `services` (Compose); {}",
                clients::SECTIONS.map(|(section, whose)| format!("`{section}` ({whose})")).join(", ")
            )),
        }
    }
}

/// Where relative paths of a file start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relative<'a> {
    /// The manifests will lie beside the file.
    Kept,
    /// The file's folder, absolute.
    To(&'a Path),
}

/// Reads a file's text. `file` names it in remarks, and its extension tells TOML and JSON with comments.
///
/// # Errors
/// [`NotImported`] if nothing at all can be taken.
pub fn read(file: &Path, text: &str, relative: Relative<'_>) -> Result<Imported, NotImported> {
    // Each server is checked by them; compiled once.
    let _rules = Rules::compiled();
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "toml" {
        let value: Value = toml::from_str(text).map_err(|error| NotImported::Syntax {
            file: file.to_owned(),
            place: String::new(),
            message: format!("not valid TOML: {}", error.message()),
        })?;
        return clients::read(file, &value).ok_or_else(|| NotImported::Unknown { file: file.to_owned() });
    }
    let blanked = matches!(extension, "json" | "jsonc").then(|| without_comments(text));
    let root = document(file, blanked.as_deref().unwrap_or(text))?;
    if root.get("services").is_some_and(|services| !services.value.entries().is_empty()) {
        return Ok(compose::read(file, &root, relative));
    }
    let value = root.to_value();
    if value.get("apiVersion").is_some() || value.get("kind").is_some() {
        return Err(NotImported::Manifest { file: file.to_owned() });
    }
    clients::read(file, &value).ok_or_else(|| NotImported::Unknown { file: file.to_owned() })
}

/// The one document of a file, without keys that stand twice.
fn document(file: &Path, text: &str) -> Result<Node, NotImported> {
    let place = |at: Option<Position>| at.map_or_else(String::new, |at| format!(":{}:{}", at.line, at.column));
    let (mut documents, errors) = tree::documents(text);
    if let Some(error) = errors.into_iter().next() {
        return Err(NotImported::Syntax {
            file: file.to_owned(),
            place: place(error.at),
            message: format!("not valid YAML: {}", error.message),
        });
    }
    let count = documents.len();
    let root = documents.pop().ok_or_else(|| NotImported::Unknown { file: file.to_owned() })?;
    if count > 1 {
        return Err(NotImported::Several { file: file.to_owned(), count });
    }
    match root.duplicates().into_iter().next() {
        None => Ok(root),
        Some(duplicate) => Err(NotImported::Syntax {
            file: file.to_owned(),
            place: place(Some(duplicate.at)),
            message: format!(
                "{}: duplicate key (first at line {}, column {})",
                duplicate.path, duplicate.first.line, duplicate.first.column
            ),
        }),
    }
}

/// A manifest as it would be read from a file, by the same rules.
fn checked(manifest: &Value) -> Result<MCPServer, ManifestErrors> {
    let documents = manifest::parse(&manifest.to_string(), Path::new("import.json"))?;
    let server = documents.into_iter().find_map(|document| match document.resource {
        Resource::Server(server) => Some(server),
        Resource::Hub(_) => None,
    });
    server.ok_or_else(|| ManifestErrors(Vec::new()))
}
