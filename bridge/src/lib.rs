//! The bridge: one small program in front of each MCP server.
//!
//! It is the server's only supervisor ([`supervise`]), shakes hands with it ([`handshake`]), and offers it as MCP
//! Streamable HTTP in the server's own era ([`serve`]). Control ([`control`]) lies on a Unix socket of its run folder.
//! It translates transport, never era.

pub mod control;
pub mod handshake;
pub mod link;
pub mod logs;
pub mod run_dir;
pub mod serve;
pub mod sessions;
pub mod shim;
pub mod spawn;
pub mod status;
pub mod supervise;
pub mod tree;

/// Version that the bridge reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
