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

/// The server, or the replica of the gateway that spoke with it, died, restarted or was stopped while it worked on the
/// request. It may have acted on it.
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

/// An own code, for the reference documentation.
#[derive(Debug, Clone, Copy)]
pub struct OwnCode {
    pub code: i64,
    pub meaning: &'static str,
    /// What brings it about.
    pub when: &'static str,
    /// What a client does with it.
    pub advice: &'static str,
}

/// In order.
pub const OWN_CODES: &[OwnCode] = &[
    OwnCode {
        code: SERVER_GONE,
        meaning: "the server ended, or its connection broke, while it worked on the request",
        when: "it crashed, was killed, restarted or stopped, or its answer broke off; or the replica of the gateway that had \
               the client's session with it did",
        advice: "it may have acted on the request: look at the state before trying again; the session goes on",
    },
    OwnCode {
        code: SERVER_UNAVAILABLE,
        meaning: "the server is not running and cannot be started now; it has not seen the request",
        when: "a crash loop, a missing secret or program, a failed login, a pause, a sleeping server that did not wake \
               within the call's time; `data` holds reason and hint. \
               `tools/call` through a hub says the same as a result with `isError`, so that a model reads it",
        advice: "do what the hint says, then try again",
    },
    OwnCode {
        code: CALL_TIMEOUT,
        meaning: "the server did not answer within its call timeout",
        when: "`timeouts.call` of the server is over, also in the middle of an answer; the server was told to stop",
        advice: "as for 1001; for calls that take longer, raise `timeouts.call`",
    },
    OwnCode {
        code: ANSWER_UNREADABLE,
        meaning: "the server's answer was too large or could not be read",
        when: "a message over 32 MiB, invalid UTF-8 or JSON, an HTTP status without a message, a redirect",
        advice: "as for 1001; ask for less, or mend the server",
    },
    OwnCode {
        code: OVERLOADED,
        meaning: "too many requests at a time; none of it was processed",
        when: "`limits.concurrentCalls` of the hub for a call's whole time, every session of a `perClient` server busy, \
               a server that takes no requests, too many subscriptions",
        advice: "try again later",
    },
    OwnCode {
        code: NOT_TRANSLATABLE,
        meaning: "the feature cannot be translated between the protocol eras of client and server",
        when: "see the page on versions",
        advice: "trying again does not help; use a client of the server's era, or `sessions: perClient`",
    },
    OwnCode {
        code: MESSAGE_TOO_LARGE,
        meaning: "the request was larger than the limit; none of it was processed",
        when: "`limits.messageBytes` of the hub, or 32 MiB; HTTP status 413",
        advice: "send less, or raise the limit",
    },
    OwnCode {
        code: CALL_NOT_WAITING,
        meaning: "the call that the request goes on with does not wait any more",
        when: "a retry with a `requestState` whose call was continued, ended, ran out of its time, or was held \
               by a gateway or a replica of one that is gone",
        advice: "make the call anew, without `requestState`",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_codes_are_in_order_and_outside_of_what_json_rpc_reserves() {
        assert!(OWN_CODES.iter().map(|own| own.code).eq(1001..1009));
    }
}
