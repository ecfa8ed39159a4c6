//! Error codes. JSON-RPC reserves −32768…−32000 and MCP uses part of it; our own codes lie outside.

/// The message is no JSON.
pub const PARSE_ERROR: i64 = -32700;
/// The message is no request that is allowed here.
pub const INVALID_REQUEST: i64 = -32600;
pub const METHOD_NOT_FOUND: i64 = -32601;
/// Also "resource not found" since 2026-07-28, and "unknown tool".
pub const INVALID_PARAMS: i64 = -32602;
pub const INTERNAL_ERROR: i64 = -32603;
/// Resource not found in the legacy era (2025-11-25, "Resources: Error handling").
pub const RESOURCE_NOT_FOUND_LEGACY: i64 = -32002;
/// A header contradicts the body (2026-07-28, "Streamable HTTP").
pub const HEADER_MISMATCH: i64 = -32020;
/// The request needs a client capability that was not declared (2026-07-28).
pub const MISSING_CLIENT_CAPABILITY: i64 = -32021;
/// The protocol version is not spoken here (2026-07-28).
pub const UNSUPPORTED_VERSION: i64 = -32022;

/// The server died, restarted or was stopped while it worked on the request. It may have acted on it.
pub const SERVER_GONE: i64 = 1001;
/// The server is not running and cannot be started now.
pub const SERVER_UNAVAILABLE: i64 = 1002;
/// The server did not answer within its call timeout.
pub const CALL_TIMEOUT: i64 = 1003;
/// The server's answer was larger than the limit, or could not be read.
pub const ANSWER_UNREADABLE: i64 = 1004;
/// Too many requests at a time; none of it was processed.
pub const OVERLOADED: i64 = 1005;
/// The feature cannot be translated between the protocol eras of client and server.
pub const NOT_TRANSLATABLE: i64 = 1006;
/// The request was larger than the limit; none of it was processed.
pub const MESSAGE_TOO_LARGE: i64 = 1007;
/// The call that a `requestState` goes on with does not wait any more: it ended, its time was up, or the gateway that
/// held it is gone.
pub const CALL_NOT_WAITING: i64 = 1008;

/// Our own codes with their meaning, for the reference documentation.
pub const OWN_CODES: &[(i64, &str)] = &[
    (SERVER_GONE, "the server ended while it worked on the request; it may have acted on it"),
    (SERVER_UNAVAILABLE, "the server is not running and cannot be started now"),
    (CALL_TIMEOUT, "the server did not answer within its call timeout"),
    (ANSWER_UNREADABLE, "the server's answer was too large or could not be read"),
    (OVERLOADED, "too many requests at a time; the request was not processed"),
    (NOT_TRANSLATABLE, "the feature cannot be translated between the eras of client and server"),
    (MESSAGE_TOO_LARGE, "the request was larger than the limit; it was not processed"),
    (CALL_NOT_WAITING, "the call that the request goes on with ended, or its time was up; make it anew"),
];
