//! The two resources of MCP Hub, group `mcphub.io`, version `v1alpha1`: [`MCPServer`] (where one MCP server comes from,
//! how it runs, what it may do) and [`MCPHub`] (one endpoint over a selection of servers).
//!
//! Types only say what can be written down. Defaults are applied by the planner, so that a later release may change one
//! without touching stored objects; every optional field therefore is an `Option`.

pub mod client_config;
pub mod command_line;
pub mod duration;
pub mod field_path;
pub mod hub;
pub mod manifest;
pub mod names;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod server;
pub mod source;
pub mod status;
pub mod tree;
pub mod validate;

pub use duration::Duration;
pub use field_path::FieldPath;
pub use hub::{MCPHub, MCPHubSpec, MCPHubStatus};
pub use names::ServerName;
pub use quantity::Quantity;
pub use resource::{Resource, ResourceKey, ResourceKind};
pub use server::{MCPServer, MCPServerSpec};
pub use status::MCPServerStatus;

/// API group of both resources.
pub const GROUP: &str = "mcphub.io";
/// API version of both resources.
pub const VERSION: &str = "v1alpha1";
