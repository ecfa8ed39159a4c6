//! Reading manifests: text or files to checked resources, or to all that is wrong with them, each with its place.
//!
//! Besides the two kinds, the configuration files of MCP clients are read (see [`client_config`](crate::client_config)).
//! What a server writes into an object (`status`, and `uid`, `resourceVersion`, `generation`, `creationTimestamp` and
//! `managedFields` of its metadata) is accepted and left out, so that the output of `mcpctl get -o yaml` can be applied.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::client_config::{self, ClientConfigError};
use crate::field_path::FieldPath;
use crate::resource::{DEFAULT_NAMESPACE, Resource, ResourceKey, ResourceKind};
use crate::tree::{self, Node};
pub use crate::tree::{MAX_DOCUMENTS, Position};
use crate::validate::{self, Rules, Violation};
use crate::{GROUP, VERSION};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Most files of one directory.
pub const MAX_FILES: usize = 10_000;
/// What a server sets in metadata and a manifest may repeat.
const SERVER_SET: [&str; 5] = ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"];

/// A resource and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub resource: Resource,
    pub file: PathBuf,
    /// Line of its first key, from 1.
    pub line: usize,
    /// What was accepted and should be known: a converted name, a secret in clear.
    pub warnings: Vec<String>,
}

/// All that is wrong with some manifests; never empty. Displayed as one paragraph per error.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ManifestErrors(pub Vec<ManifestError>);

/// One thing that is wrong. Displayed as `FILE:LINE:COLUMN: PATH: PROBLEM`, with the hint on a line of its own.
#[derive(Debug)]
pub struct ManifestError {
    pub file: PathBuf,
    pub at: Option<Position>,
    /// The field; the root where no field is to blame.
    pub path: FieldPath,
    pub problem: Problem,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("is no text (UTF-8)")]
    NotText,
    #[error("is larger than {} MiB", MAX_FILE_BYTES >> 20)]
    TooLarge,
    #[error("holds more than {MAX_FILES} manifests")]
    TooManyFiles,
    #[error("not valid YAML: {0}")]
    Syntax(String),
    #[error("expected a resource (a mapping with apiVersion, kind, metadata and spec)")]
    NotAResource,
    #[error("`{0}` must be set")]
    Missing(&'static str),
    #[error("unknown apiVersion `{0}`")]
    UnknownApiVersion(String),
    #[error("unknown kind `{0}`")]
    UnknownKind(String),
    #[error("duplicate key (first at line {}, column {})", .first.line, .first.column)]
    DuplicateKey { first: Position },
    #[error("{key} is already defined in {}:{line}", .file.display())]
    DuplicateResource { key: ResourceKey, file: PathBuf, line: usize },
    #[error("{}", .0.message)]
    Violation(Violation),
    #[error("{0}")]
    Unreadable(#[source] serde_json::Error),
    #[error(transparent)]
    Client(#[from] ClientConfigError),
}

impl Problem {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing("apiVersion") | Self::UnknownApiVersion(_) => Some(format!("write `{}`", api_version())),
            Self::Missing("kind") => Some("write MCPServer or MCPHub".to_owned()),
            Self::UnknownKind(kind) => {
                let known = ResourceKind::ALL.map(ResourceKind::as_str);
                Some(match validate::did_you_mean(kind, known) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => "MCPServer and MCPHub are the two kinds".to_owned(),
                })
            }
            Self::DuplicateKey { .. } => Some("remove one of the two".to_owned()),
            Self::DuplicateResource { .. } => Some("rename or remove one of the two".to_owned()),
            Self::TooManyFiles | Self::TooLarge => Some("split it".to_owned()),
            Self::Violation(violation) => violation.hint.clone(),
            Self::Client(error) => error.hint(),
            Self::Read(_)
            | Self::NotText
            | Self::Syntax(_)
            | Self::NotAResource
            | Self::Missing(_)
            | Self::Unreadable(_) => None,
        }
    }
}

impl ManifestError {
    pub fn hint(&self) -> Option<String> {
        self.problem.hint()
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.path.is_root() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.problem)?;
        match self.hint() {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Reads a file, or the manifests of a directory: `*.yaml`, `*.yml`, `*.json` and `.mcp.json`, by name. Other hidden
/// files and subfolders are not looked at, so that data which a server works on may lie beside its manifest.
pub fn load(path: &Path) -> Result<Vec<Document>, ManifestErrors> {
    load_into(DEFAULT_NAMESPACE, path)
}

/// As [`load`], with the namespace of resources that name none.
pub fn load_into(namespace: &str, path: &Path) -> Result<Vec<Document>, ManifestErrors> {
    let files = files(path).map_err(|problem| ManifestErrors(vec![about_file(path, problem)]))?;
    let rules = Rules::compiled();
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for file in files {
        match read(&file) {
            Ok(text) => read_text(&text, (&file, namespace, &rules), &mut documents, &mut errors),
            Err(problem) => errors.push(about_file(&file, problem)),
        }
    }
    conclude(documents, errors)
}

/// Reads the documents of a text. `file` names it in errors and decides by its extension whether comments of JSON are
/// allowed; nothing is opened.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Document>, ManifestErrors> {
    parse_into(DEFAULT_NAMESPACE, text, file)
}

/// As [`parse`], with the namespace of resources that name none.
pub fn parse_into(namespace: &str, text: &str, file: &Path) -> Result<Vec<Document>, ManifestErrors> {
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(ManifestErrors(vec![about_file(file, Problem::TooLarge)]));
    }
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    read_text(text, (file, namespace, &Rules::compiled()), &mut documents, &mut errors);
    conclude(documents, errors)
}

fn about_file(file: &Path, problem: Problem) -> ManifestError {
    ManifestError { file: file.to_owned(), at: None, path: FieldPath::default(), problem }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    if !path.metadata().map_err(Problem::Read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(Problem::Read)? {
        let file = entry.map_err(Problem::Read)?.path();
        if is_manifest(&file) && !file.is_dir() {
            files.push(file);
        }
        if files.len() > MAX_FILES {
            return Err(Problem::TooManyFiles);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether [`load`] reads this file of a directory. A watcher asks the same question.
pub fn is_manifest(file: &Path) -> bool {
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else { return false };
    let extension = file.extension().and_then(|extension| extension.to_str());
    name == ".mcp.json" || (!name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json")))
}

/// The text of a file that is not too large.
///
/// # Errors
/// [`Problem::Read`], [`Problem::TooLarge`] or [`Problem::NotText`].
pub fn read(file: &Path) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, also one that grows or has no length.
    File::open(file).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(Problem::Read)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(Problem::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_| Problem::NotText)
}

fn conclude(documents: Vec<Document>, mut errors: Vec<ManifestError>) -> Result<Vec<Document>, ManifestErrors> {
    let mut seen: BTreeMap<ResourceKey, &Document> = BTreeMap::new();
    for document in &documents {
        let key = document.resource.key();
        match seen.get(&key) {
            Some(first) => errors.push(ManifestError {
                file: document.file.clone(),
                at: Some(Position { line: document.line, column: 1 }),
                path: FieldPath::default(),
                problem: Problem::DuplicateResource { key, file: first.file.clone(), line: first.line },
            }),
            None => {
                seen.insert(key, document);
            }
        }
    }
    if errors.is_empty() { Ok(documents) } else { Err(ManifestErrors(errors)) }
}

fn read_text(
    text: &str,
    (file, namespace, rules): (&Path, &str, &Rules),
    documents: &mut Vec<Document>,
    errors: &mut Vec<ManifestError>,
) {
    let json = file.extension().is_some_and(|extension| extension == "json");
    let blanked = if json { Some(client_config::without_comments(text)) } else { None };
    let (nodes, syntax) = tree::documents(blanked.as_deref().unwrap_or(text));
    let before = errors.len();
    errors.extend(syntax.into_iter().map(|error| ManifestError {
        file: file.to_owned(),
        at: error.at,
        path: FieldPath::default(),
        problem: Problem::Syntax(error.message),
    }));
    for node in nodes {
        let mut reading = Reading { file, namespace, rules, node: &node, errors: Vec::new() };
        documents.extend(reading.documents());
        errors.append(&mut reading.errors);
    }
    // A person mends a file from top to bottom.
    errors[before..].sort_by_key(|error| error.at);
}

/// One document being read.
struct Reading<'a> {
    file: &'a Path,
    /// Of a resource that names none.
    namespace: &'a str,
    rules: &'a Rules,
    node: &'a Node,
    errors: Vec<ManifestError>,
}

impl Reading<'_> {
    fn documents(&mut self) -> Vec<Document> {
        for duplicate in self.node.duplicates() {
            self.errors.push(ManifestError {
                file: self.file.to_owned(),
                at: Some(duplicate.at),
                path: duplicate.path,
                problem: Problem::DuplicateKey { first: duplicate.first },
            });
        }
        let value = self.node.to_value();
        if client_config::is_client_config(&value) {
            return self.client_config(&value);
        }
        self.resource(value).into_iter().collect()
    }

    fn refuse(&mut self, path: FieldPath, problem: Problem) {
        let at = Some(self.node.find(&path));
        self.errors.push(ManifestError { file: self.file.to_owned(), at, path, problem });
    }

    fn resource(&mut self, mut value: Value) -> Option<Document> {
        let root = FieldPath::default();
        if !value.is_object() {
            self.refuse(root, Problem::NotAResource);
            return None;
        }
        match value.get("apiVersion") {
            Some(found) if *found == api_version() => {}
            Some(found) => {
                self.refuse(root.field("apiVersion"), Problem::UnknownApiVersion(plain(found)));
            }
            None => self.refuse(root.clone(), Problem::Missing("apiVersion")),
        }
        let Some(kind) = value.get("kind") else {
            self.refuse(root, Problem::Missing("kind"));
            return None;
        };
        let Some(kind) = ResourceKind::ALL.into_iter().find(|known| *kind == known.as_str()) else {
            let problem = Problem::UnknownKind(plain(kind));
            self.refuse(root.field("kind"), problem);
            return None;
        };
        without_server_set(&mut value);
        if let (ResourceKind::MCPHub, Some(hub)) = (kind, value.as_object_mut()) {
            // The schema's only default.
            hub.entry("spec").or_insert_with(|| json!({}));
        }
        for violation in self.rules.violations(kind, &value) {
            // The place of an unknown field is its key, of a missing one the mapping around it: both are what `find` says.
            self.refuse(violation.path.clone(), Problem::Violation(violation));
        }
        if !self.errors.is_empty() {
            return None;
        }
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.entry("namespace").or_insert_with(|| self.namespace.into());
        }
        let resource = match kind {
            ResourceKind::MCPServer => typed(value).map(Resource::Server),
            ResourceKind::MCPHub => typed(value).map(Resource::Hub),
        };
        match resource {
            Ok(resource) => {
                let warnings = clear_secrets(&resource);
                Some(Document { resource, file: self.file.to_owned(), line: self.node.at.line, warnings })
            }
            Err(error) => {
                self.refuse(root, Problem::Unreadable(error));
                None
            }
        }
    }

    fn client_config(&mut self, value: &Value) -> Vec<Document> {
        let mut documents = Vec::new();
        for (path, result) in client_config::servers(value) {
            let line = self.node.find(&path).line;
            match result {
                Ok(converted) => {
                    let mut warnings = converted.warnings;
                    let mut server = converted.server;
                    server.metadata.namespace = Some(self.namespace.to_owned());
                    let resource = Resource::Server(server);
                    let value = serde_json::to_value(&resource).unwrap_or_default();
                    for violation in self.rules.violations(ResourceKind::MCPServer, &value) {
                        // Its fields are not the file's: the server's entry is the place, the field part of the message.
                        let message = violation.to_string();
                        self.refuse(path.clone(), Problem::Violation(Violation { message, ..violation }));
                    }
                    warnings.extend(clear_secrets(&resource));
                    documents.push(Document { resource, file: self.file.to_owned(), line, warnings });
                }
                Err(errors) => {
                    for (path, error) in errors {
                        self.refuse(path, Problem::Client(error));
                    }
                }
            }
        }
        documents
    }
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn without_server_set(value: &mut Value) {
    if let Some(resource) = value.as_object_mut() {
        resource.remove("status");
        if let Some(metadata) = resource.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|name, _| !SERVER_SET.contains(&name.as_str()));
        }
    }
}

fn typed<T: DeserializeOwned>(mut value: Value) -> Result<T, serde_json::Error> {
    whole(&mut value);
    serde_json::from_value(value)
}

/// `1.0` is a whole number to JSON schema and to an API server, but not to serde.
fn whole(value: &mut Value) {
    // 2^53: above it a float does not say which whole number is meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0)
                && float.abs() < EXACT
                && let Ok(exact) = format!("{float:.0}").parse::<i64>()
            {
                *value = exact.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Object(members) => members.values_mut().for_each(whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Parts of names of secrets.
const SECRETIVE_PARTS: [&str; 9] =
    ["TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "AUTHORIZATION", "COOKIE"];
/// Whole words, which are parts of harmless ones, such as `PATH` and `COMPASS`.
const SECRETIVE_WORDS: [&str; 3] = ["PASS", "PAT", "PWD"];

/// Whether what a variable or header of this name holds is most likely a secret.
pub fn secretive(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SECRETIVE_PARTS.iter().any(|part| name.contains(part))
        // The shell's own variable says where one is.
        || (name != "PWD" && name.split(['_', '-', '.']).any(|word| SECRETIVE_WORDS.contains(&word)))
}

/// Warnings for values that look like secrets and stand in the file in clear.
fn clear_secrets(resource: &Resource) -> Vec<String> {
    let Resource::Server(server) = resource else { return Vec::new() };
    let warning = |what: &str, name: &str| {
        format!("{what} {name} looks like a secret and stands here in clear; use secretRef instead of value")
    };
    let env =
        server.spec.env.iter().flatten().filter(|variable| variable.value.as_ref().is_some_and(|v| !v.is_empty()));
    let headers = match &server.spec.source {
        crate::source::Source::Remote(remote) => remote.headers.as_deref().unwrap_or_default(),
        crate::source::Source::Image(_) | crate::source::Source::Package(_) | crate::source::Source::Command(_) => &[],
    };
    env.filter(|variable| secretive(&variable.name))
        .map(|variable| warning("environment variable", &variable.name))
        .chain(
            headers
                .iter()
                .filter(|header| header.value.is_some() && secretive(&header.name))
                .map(|header| warning("header", &header.name)),
        )
        .collect()
}
