//! The reconcile logic, once, for a cluster and for one machine.
//!
//! `observe → lower → plan → execute → observe → status`. The pure part ([`workload`], [`lower`], [`plan`], [`status`],
//! [`gateway`]) knows no clock, no I/O and no runtime; [`pass`] runs it over the three ports of [`ports`], and
//! [`controller`] feeds passes from a queue. An operator and a local daemon differ in the three values behind
//! [`Ports`](ports::Ports) and in nothing else.

pub mod accept;
pub mod controller;
pub mod egress;
pub mod error;
pub mod exposure;
pub mod gateway;
pub mod image;
pub mod installation;
pub mod lower;
pub mod observed;
pub mod owner;
pub mod pass;
pub mod passes;
pub mod plan;
pub mod ports;
pub mod rest;
pub mod status;
pub mod workload;

#[cfg(feature = "testing")]
pub mod contract;
#[cfg(feature = "testing")]
pub mod fake;

/// Hash of a document: lower-case hex SHA-256 of its compact JSON, whose keys are sorted.
pub fn digest(document: &serde_json::Value) -> String {
    use sha2::{Digest, Sha256};
    // `serde_json::Value` keeps its keys in insertion order if another crate switches that on; sorting makes the digest
    // independent of it.
    fn sorted(value: &serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                entries.into_iter().collect()
            }
            serde_json::Value::Array(items) => items.iter().map(sorted).collect(),
            scalar => scalar.clone(),
        }
    }
    hex::encode(Sha256::digest(sorted(document).to_string()))
}
