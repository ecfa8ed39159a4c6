//! Why a server gave no answer.

use std::time::Duration;

/// Why a server gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// The configuration says so.
    #[error("{message}")]
    Unavailable { reason: String, message: String, hint: Option<String> },
    /// The configuration says so, and that a call would wake it.
    #[error("the server is asleep")]
    Asleep,
    /// The server has not seen the request.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// The server has refused the request for want of authorization.
    #[error("{0}")]
    AuthRequired(String),
    /// The request was sent; whether it was acted on is not known.
    #[error("the connection to the server ended while it worked on the request; it may have acted on it ({0})")]
    Gone(String),
    #[error("the server's answer could not be read: {0}")]
    Unreadable(String),
    /// A JSON-RPC error.
    #[error("the server answered: {message}")]
    Refused { code: i64, message: String },
    #[error("the server did not answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("the client cancelled the request")]
    Cancelled,
}
