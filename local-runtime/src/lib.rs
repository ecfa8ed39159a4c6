//! One machine as a place to run MCP servers: processes behind bridges, packages in a cache, objects in SQLite, gateways
//! in this process.

pub mod host;
pub mod packages;
pub mod process;
pub mod runtime_set;
