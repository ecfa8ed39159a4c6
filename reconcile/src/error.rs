//! Errors of a pass, and whether time mends them.

use std::time::Duration;

use crate::lower::Unsupported;
use crate::observed::Failure;
use crate::owner::Unstored;

/// Whether time mends a failure, or only a change of the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// With exponential backoff.
    Backoff,
    /// Not before this time has passed.
    After(Duration),
    /// When the spec, a secret or the machine changes; an event will tell.
    OnChange,
}

/// A failure of a runtime. Each runtime has an enum of its own and turns it into this at the port.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// Condition reason and metric label: CamelCase, constant, without names.
    pub reason: &'static str,
    /// What was attempted, on what.
    pub message: String,
    /// What the user does next.
    pub hint: Option<String>,
    pub retry: Retry,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A failure of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("could not {action} {object}")]
    Io {
        action: &'static str,
        object: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Someone else wrote the object first; the next pass sees it.
    #[error("{object} changed in the meantime")]
    Conflict { object: String },
    #[error("secret backend could not give `{name}` key `{key}`: {message}")]
    Secret { name: String, key: String, message: String, hint: Option<String> },
}

/// A failure of a gateway sink.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// Condition reason: CamelCase, constant.
    pub reason: &'static str,
    pub message: String,
    pub hint: Option<String>,
    pub retry: Retry,
}

impl From<Failure> for SinkError {
    fn from(Failure { reason, message, hint, retry }: Failure) -> Self {
        Self { reason, message, hint, retry }
    }
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Unstored(#[from] Unstored),
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("pass over {object} took longer than {limit:?}")]
    Timeout { object: String, limit: Duration },
}

impl Error {
    /// Condition reason and metric label: stable, without names.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unstored(_) => "Unstored",
            Self::Unsupported(_) => "Unsupported",
            Self::Runtime(error) => error.reason,
            Self::Store(StoreError::Io { .. }) => "StoreFailed",
            Self::Store(StoreError::Conflict { .. }) => "Conflict",
            Self::Store(StoreError::Secret { .. }) => "SecretBackendFailed",
            Self::Sink(error) => error.reason,
            Self::Timeout { .. } => "Timeout",
        }
    }

    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported(error) => error.hint.clone(),
            Self::Runtime(error) => error.hint.clone(),
            Self::Store(StoreError::Secret { hint, .. }) => hint.clone(),
            Self::Sink(error) => error.hint.clone(),
            Self::Unstored(_) | Self::Store(_) | Self::Timeout { .. } => None,
        }
    }

    pub fn retry(&self) -> Retry {
        match self {
            Self::Unstored(_) | Self::Unsupported(_) => Retry::OnChange,
            Self::Runtime(error) => error.retry,
            Self::Sink(error) => error.retry,
            Self::Store(_) | Self::Timeout { .. } => Retry::Backoff,
        }
    }

    /// The error and its sources, joined by colons.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let next = error.to_string();
            // Transparent variants repeat the text of what they wrap.
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            source = error.source();
        }
        text
    }
}
