//! A real Kubernetes cluster of one node, for tests and for people.
//!
//! ```no_run
//! use mcp_hub_test_cluster::{Cluster, Options, Shape};
//!
//! # fn main() -> Result<(), mcp_hub_test_cluster::Error> {
//! let cluster = Cluster::up(Options::new(Shape::Node))?;
//! cluster.load("target/images/bridge.tar".as_ref())?;
//! cluster.kubectl(["apply", "--filename", "examples/kubernetes"])?;
//! let client_config = cluster.kubeconfig();
//! # Ok(())
//! # }
//! ```
//! Container engines for tests come up the same way, see [`Engine`].
//!
//! Nothing of it needs a registry or a virtual machine: `programs` builds Kubernetes, etcd and CoreDNS from Go modules,
//! and every cluster has a network namespace of its own, so that several run side by side. The API server is reached
//! through a [`Door`] on 127.0.0.1. A cluster that is dropped, also by a panic, is taken down and leaves nothing behind;
//! what a killed process leaves is found and taken down by the next [`Cluster::up`].
#![cfg(target_os = "linux")]

mod cluster;
mod door;
mod engine;
mod error;
mod files;
mod folder;
mod image;
mod namespace;
mod node;
mod parts;
mod pki;
mod process;
mod programs;
mod tap;
mod teardown;
mod tools;

pub use cluster::{Cluster, Options, Shape};
pub use door::Door;
pub use engine::{Engine, EngineKind, Paused, REGISTRIES};
pub use error::Error;
pub use folder::STATE_VARIABLE;
pub use image::BUSYBOX;
pub use namespace::NODE;
pub use parts::Part;
pub use process::Record;
pub use programs::{CACHE_VARIABLE, Programs, kubernetes_version};
pub use tap::{Tap, Verdict};
pub use tools::{Tool, missing as missing_tools};
