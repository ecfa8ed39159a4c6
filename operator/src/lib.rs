//! MCP Hub on Kubernetes: the three ports of `mcp_hub_reconcile` over the API server.
//!
//! [`store::KubeStore`] keeps specs and statuses, [`runtime::KubeRuntime`] runs servers as Deployments.

mod bridges;
mod cache;
mod certificates;
mod children;
pub mod client;
mod console;
mod definitions;
pub mod election;
mod fields;
mod gateways;
pub mod health;
mod http;
pub mod identity;
mod images;
pub mod labels;
mod lower;
pub mod planner;
mod pods;
pub mod probe;
pub mod registry;
pub mod relay;
pub mod runtime;
mod scope;
mod secrets;
pub mod sink;
pub mod store;
mod unscheduled;
pub mod wake;

pub use bridges::AskBridge;
pub use console::PodConsole;
pub use gateways::AskGateway;
pub use http::PodHttp;
pub use images::{ResolveError, ResolveImage};
pub use lower::{CLIENTS_PORT, ClusterSettings, GATEWAY, PackageSettings, TOKEN_KEY, URL_KEY, token_secret};
pub use pods::Pod;
pub use scope::Scope;
