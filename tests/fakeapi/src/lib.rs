//! A fake of the Kubernetes API server: stateful, in memory, deterministic, and as exact as an operator can tell.
//!
//! Clients reach it as a tower service; it opens no socket and starts no thread, so it runs under a paused clock. Nothing
//! happens by itself: a test says when garbage is collected ([`FakeApi::collect_garbage`]) and when controllers and
//! nodes get on ([`FakeApi::run_workloads`]).
//!
//! ```
//! # use k8s_openapi::api::core::v1::ConfigMap;
//! # use kube::{Api, api::{Patch, PatchParams}};
//! # use serde_json::json;
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let fake = mcp_hub_fakeapi::FakeApi::new();
//! let maps: Api<ConfigMap> = Api::namespaced(fake.client("mcp-hub-operator"), "default");
//! let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "1"}});
//! maps.patch("x", &PatchParams::apply("mcp-hub"), &Patch::Apply(&map)).await?;
//! assert_eq!(fake.writes(), 1);
//! assert_eq!(fake.get("ConfigMap", "default", "x").ok_or("gone")?["data"]["a"], "1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builtin_fields;
mod defaults;
mod delete;
mod discovery;
mod failure;
mod fake;
mod fault;
mod fields;
mod garbage;
mod http_route;
mod kind;
mod log;
mod managers;
mod quantity;
mod read;
mod request;
mod schema;
mod selector;
mod server;
mod state;
mod store;
mod structured;
mod validate;
mod watch;
mod workloads;
mod write;

pub use failure::Cause;
pub use fake::{FakeApi, Refusal};
pub use fault::{Fault, When};
pub use log::Entry;
pub use request::Verb;
pub use server::FakeService;
pub use state::Cut;
pub use workloads::PodState;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The definitions of all kinds that are not built in, such as a real server would need to have the same kinds.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = mcp_hub_crds::schema::definitions();
    definitions.push(http_route::definition());
    definitions
}
