//! What a workload becomes on a runtime: `Lowered`, a list of objects with bodies that can be compared.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised whenever a release lowers an unchanged spec to other objects. Kept per owner until its spec changes, so that an
/// upgrade rolls nothing.
pub const LOWER_REVISION: i32 = 1;

/// All objects of one workload on one runtime.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lowered {
    pub objects: Vec<Object>,
    /// Fields honoured less than the spec asks; never a security field.
    pub degraded: Vec<Degraded>,
}

/// One thing that a runtime makes: a bridge process, a container, a Deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub id: ObjectId,
    pub stage: Stage,
    /// Hash of `body`; the made object carries it.
    pub digest: String,
    /// Everything we set, and nothing else: an observed object is in sync if it covers this. No secrets.
    pub body: Value,
    pub change: Change,
}

impl Object {
    pub fn new(id: ObjectId, stage: Stage, change: Change, body: Value) -> Self {
        Self { id, stage, digest: crate::digest(&body), body, change }
    }
}

/// Names an object within its owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// The runtime's word: `bridge`, `container`, `Deployment`.
    pub kind: String,
    pub name: String,
}

impl ObjectId {
    pub fn new(kind: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Order of work: what comes first is needed by what follows. Removals run in the opposite order, after all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    Prepare,
    Network,
    Config,
    Workload,
    Service,
}

/// How an object takes a new body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Change {
    InPlace,
    /// The old one goes before the new one comes.
    Recreate,
}

/// A field that the runtime honours only in part, shown as condition `RuntimeSupported=False`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Path in the spec.
    pub field: String,
    /// What happens instead.
    pub message: String,
}

/// A workload that a runtime cannot run as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{runtime} cannot honour {field}: {message}")]
pub struct Unsupported {
    pub runtime: String,
    /// Path in the spec.
    pub field: String,
    pub message: String,
    pub hint: Option<String>,
}
