//! The bridge: one small program in front of each MCP server.
//!
//! It is the server's only supervisor ([`supervise`]), shakes hands with it ([`handshake`]), and offers it as MCP
//! Streamable HTTP in the server's own era ([`serve`]). Control ([`control`]) lies on a Unix socket of its run folder; in a pod ([`pod`]) there is
//! none.
//! It translates transport, never era.

pub mod alarm;
pub mod body;
pub mod budget;
pub mod calls;
pub mod cgroup;
pub mod clients;
pub mod control;
pub mod drain;
pub mod follow;
pub mod handshake;
pub mod http_child;
pub mod link;
pub mod logs;
pub mod mailbox;
pub mod pass;
pub mod pipes;
pub mod pod;
pub mod process;
pub mod run_dir;
pub mod serve;
pub mod server;
pub mod sessions;
pub mod shim;
pub mod spawn;
pub mod sse_child;
pub mod status;
pub mod streams;
pub mod supervise;
pub mod tree;
pub mod upstream;

/// Version that the bridge reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
