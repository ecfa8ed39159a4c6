//! Faults that an operator has to stand, on a real control plane whose pods are KWOK's and whose bridges are one stand-in.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a run that fails tells its seed")]

mod audit;
mod bridges;
mod children;
mod garbage;
mod kills;
mod mending;
mod mutations;
mod outages;
mod place;
mod registry;
mod stand_in;
mod unrest;
