//! One machine as a place to run MCP servers: processes behind bridges, packages in a cache, objects in SQLite, gateways
//! in this process.

pub mod cgroup;
mod cluster_only;
mod control;
pub mod docker;
mod follow;
pub mod host;
pub mod origins;
mod port_holder;
mod prepare;
pub mod process;
pub mod runtime_set;
pub mod secret_source;
pub mod sink;
pub mod store;
mod wire;
