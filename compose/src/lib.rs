//! Manifests written down for other tools, and what others wrote read as manifests.
//!
//! - [`engine`]: a hub and its servers as a Compose project or a Swarm stack, each server behind its bridge;
//! - [`kubernetes`]: the manifests themselves, for `kubectl apply`, with the Secrets that they need;
//! - [`import`](mod@import): Compose files and configurations of MCP clients as manifests.
//!
//! All is a pure function of text and values: who calls reads files, asks registries and writes.

pub mod engine;
pub mod import;
pub mod kubernetes;
pub mod project;
pub mod refusal;
pub mod variables;

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: &'static str,
    pub content: String,
    pub access: Access,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Everybody,
    /// It holds secrets.
    Owner,
}

/// What was made of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// In the order in which they are to be written: each after those that it needs, so that a project that is there is
    /// whole, and its hashes are of tokens that are kept.
    pub files: Vec<File>,
    /// What the user should know or do, one sentence each.
    pub notices: Vec<String>,
}

/// First line of every generated file, by which it may be written over.
pub const MARK: &str = "# Made by `mcpctl generate`";
