//! What the API server answers when it refuses: a `Status` with code, reason and details.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// One reason of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Such as `FieldValueInvalid`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Such as `spec.replicas`; may be empty.
    pub field: String,
}

impl Cause {
    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueInvalid".to_owned(), message: message.into(), field: field.to_owned() }
    }

    pub(crate) fn required(field: &str, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueRequired".to_owned(), message: message.into(), field: field.to_owned() }
    }

    pub(crate) fn forbidden(field: &str, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueForbidden".to_owned(), message: message.into(), field: field.to_owned() }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    details: Box<Map<String, Value>>,
    /// Seconds, for the header of that name.
    pub(crate) retry_after: Option<u32>,
}

impl Failure {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Box::default(), retry_after: None }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details.insert("name".to_owned(), Value::from(name));
        if !kind.group.is_empty() {
            self.details.insert("group".to_owned(), Value::from(kind.group.clone()));
        }
        self.details.insert("kind".to_owned(), Value::from(kind.plural.clone()));
        self
    }

    fn because(mut self, causes: &[Cause]) -> Self {
        let causes: Vec<Value> = causes
            .iter()
            .map(|cause| {
                let mut entry = json!({"reason": cause.reason, "message": cause.message});
                if !cause.field.is_empty() {
                    entry["field"] = Value::from(cause.field.clone());
                }
                entry
            })
            .collect();
        self.details.insert("causes".to_owned(), Value::Array(causes));
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.details.insert("retryAfterSeconds".to_owned(), Value::from(seconds));
        self.retry_after = Some(seconds);
        self
    }

    pub(crate) fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", kind.resource())).about(kind, name)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", kind.resource())).about(kind, name)
    }

    pub(crate) fn conflict(kind: &Kind, name: &str, message: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {message}", kind.resource());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// The version that a write is based on is not the newest.
    pub(crate) fn stale(kind: &Kind, name: &str) -> Self {
        let message = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, message)
    }

    pub(crate) fn field_conflicts(conflicts: &[crate::managers::FieldConflict]) -> Self {
        let causes: Vec<Cause> = conflicts
            .iter()
            .map(|conflict| Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {}", conflict.manager),
                field: conflict.field.clone(),
            })
            .collect();
        let named: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.message, cause.field)).collect();
        let plural = if named.len() == 1 { "conflict" } else { "conflicts" };
        let message = format!("Apply failed with {} {plural}: {}", named.len(), named.join("\n"));
        Self::new(409, "Conflict", message).because(&causes)
    }

    pub(crate) fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        let named: Vec<String> = causes
            .iter()
            .map(|cause| {
                if cause.field.is_empty() {
                    cause.message.clone()
                } else {
                    format!("{}: {}", cause.field, cause.message)
                }
            })
            .collect();
        let text = match &named[..] {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        let of = if kind.group.is_empty() { kind.name.clone() } else { format!("{}.{}", kind.name, kind.group) };
        let mut failure = Self::new(422, "Invalid", format!("{of} {name:?} is invalid: {text}")).about(kind, name);
        failure.details.insert("kind".to_owned(), Value::from(kind.name.clone()));
        failure.because(causes)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn forbidden(kind: &Kind, name: &str, message: &str, causes: &[Cause]) -> Self {
        let message = format!("{} {name:?} is forbidden: {message}", kind.resource());
        let failure = Self::new(403, "Forbidden", message).about(kind, name);
        if causes.is_empty() { failure } else { failure.because(causes) }
    }

    /// The version asked for is no longer, or not any more.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn too_large_version(wanted: u64, current: u64) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        Self::new(504, "Timeout", format!("Too large resource version: {wanted}, current: {current}"))
            .because(&[cause])
            .retry_after(1)
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object((*self.details).clone());
        }
        status
    }
}
