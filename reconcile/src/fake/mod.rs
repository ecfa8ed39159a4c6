//! Stateful stand-ins for the three ports: what they were told is there afterwards, so that passes can be tested by what
//! they bring about and not by what they call.
//!
//! Each write counts and can be cut, see [`Writes`]. [`FakeRuntime`] passes the [contract suite](crate::contract).

mod lower;
mod runtime;
mod sink;
mod store;
mod writes;

pub use runtime::{Bridges, FakeRuntime, Fault, Preparing, ready};
pub use sink::FakeSink;
pub use store::FakeStore;
pub use writes::{Cut, Interrupted, Lost, Writes};
