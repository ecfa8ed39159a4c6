//! The allow-list proxy of a cluster.
//!
//! A server with host names in its egress list has this as its only way out. It connects with `CONNECT`, or asks for an
//! `http` URL, and shows its [permit](mcp_hub_dataplane_api::permit): the list, signed by the operator. So the relay knows
//! no server beforehand, keeps no state, and any replica serves any server.
//!
//! The relay looks names up itself, connects to the addresses that it judged, and to no others: a name that leads into the
//! cluster or to a cloud's metadata leads nowhere. What it cannot see is what goes on inside of a tunnel.

pub mod dial;
mod idle;
mod judge;
mod reach;
mod refusal;
mod serve;
mod slots;
mod told;
mod wish;

use std::time::Duration;

pub use reach::Reach;
pub use refusal::Refusal;
pub use serve::{Drain, Relay};

/// How much there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections in all. Each takes two descriptors; a client that does not read holds some 200 KB.
    pub connections: usize,
    /// Connections of one server, so that none takes the place of others.
    pub of_a_server: usize,
    /// Connections from one address that have shown no permit yet.
    pub unproven: usize,
    /// Names of one server that are looked up at a time.
    pub lookups: usize,
    /// For a request's head to arrive, and between two requests.
    pub head: Duration,
    pub lookup: Duration,
    /// For all addresses of a name together.
    pub connect: Duration,
    /// A connection on which nothing moves is cut after so long, or up to twice of it.
    pub idle: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 2048,
            of_a_server: 128,
            // Of a node's address there may be many servers, where a network plugin hides their own.
            unproven: 128,
            lookups: 16,
            head: Duration::from_secs(10),
            lookup: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            // Event streams and long calls are silent for minutes.
            idle: Duration::from_secs(600),
        }
    }
}
