//! What a runtime found.

use mcp_hub_crds::source::Resolved;
use mcp_hub_dataplane_api::status::BridgeStatus;
use serde_json::Value;

use crate::error::Retry;
use crate::lower::{ObjectId, Stage};

/// Everything a runtime has of one owner.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Objects that exist, whoever made them under the owner's mark.
    pub objects: Vec<ObservedObject>,
    /// The background task that resolves the source, if one was started.
    pub prepare: Option<Prepare>,
    /// What the bridge says; `None` if none answers.
    pub bridge: Option<BridgeStatus>,
    /// Whether all that runs of it sleeps, and nothing is about to come or go; only where what sleeps can be put to rest.
    pub sleeps: bool,
    /// A failure of the runtime that the bridge cannot know: image pull, scheduling, its own death. One that may pass by
    /// itself says by [`Failure::retry`] for how long calls wait for that.
    pub failure: Option<Failure>,
    /// Names of secret environment variables that the runtime could not get.
    pub missing_secrets: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ObservedObject {
    pub id: ObjectId,
    pub stage: Stage,
    /// The digest that the object carries; `None` if the mark was lost.
    pub digest: Option<String>,
    /// Compact projection: at least the values that lowering sets, in the same canonical form.
    pub body: Value,
}

/// State of the `Prepare` object with this digest.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepare {
    pub digest: String,
    pub state: PrepareState,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PrepareState {
    /// What it does at the moment, for people.
    Running {
        progress: String,
    },
    Done(Resolved),
    /// Shown until the runtime wants the preparation to be tried again (see [`Failure::retry`]), of which an event tells;
    /// from then on there is no `Prepare` of this digest.
    Failed(Failure),
}

/// A failure with what status needs to show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase, constant.
    pub reason: &'static str,
    pub message: String,
    pub hint: Option<String>,
    pub retry: Retry,
}
