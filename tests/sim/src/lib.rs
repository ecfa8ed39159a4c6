//! The whole operator (store, runtime, gateway sink and loop) over an API server in memory, under a paused clock.
//!
//! [`World`] is a cluster in which everything but the operator is played: deployments, nodes, bridges, gateways, remote
//! servers and a registry. [`wire::Line`] is an operator's connection, which can be cut at any write. Oracles say what must
//! hold: [`canonical`] compares end states, [`oracle`] looks for writes that nobody needs, statuses that lie, and secrets
//! outside Secrets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod bridges;
pub mod canonical;
pub mod gateways;
pub mod oracle;
pub mod registry;
pub mod specs;
pub mod wire;
pub mod world;

pub use wire::{Cut, Line, Lost};
pub use world::{Operator, World};
