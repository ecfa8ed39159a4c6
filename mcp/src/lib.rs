//! MCP on the wire: what gateway and bridge both need of JSON-RPC, Server-Sent Events and MCP's headers and names.
//!
//! Everything works on raw JSON: a message is looked at only as deep as routing it needs, and what is passed on is passed
//! on byte by byte. No runtime, no I/O.

pub mod envelope;
pub mod error;
pub mod framing;
pub mod headers;
pub mod http_sse;
pub mod methods;
pub mod numbering;
pub mod object;
pub mod sse;
