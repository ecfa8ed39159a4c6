//! What the reconcile side and the data plane say to each other.
//!
//! Four documents, plain data without behaviour that needs a runtime:
//! - [`launch::LaunchSpec`]: how a bridge is to run its MCP server (written by a runtime, read by the bridge);
//! - [`status::BridgeStatus`]: what the bridge knows of that server (read by runtimes, at `/status`);
//! - [`install::InstallFailure`]: why a pod's installer ended (written by it, read by the operator through the kubelet);
//! - [`gateway::GatewayConfig`] and [`gateway::GatewayStatus`]: what a gateway serves, and what it found upstream.
//!
//! With the feature `control`: [`control`], how an operator drives a gateway, [`document`], its configuration as a file,
//! [`egress`], where a server may connect to, and [`permit`], how it shows that to a relay.
//!
//! All are versioned documents between programs of possibly different releases: unknown fields are ignored when
//! read, and a field is never given another meaning.

#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "control")]
pub mod document;
#[cfg(feature = "control")]
pub mod egress;
pub mod gateway;
pub mod install;
pub mod launch;
#[cfg(feature = "control")]
pub mod permit;
pub mod secret;
pub mod status;

use serde::{Deserialize, Serialize};

/// Which family of protocol versions a party speaks.
///
/// `Modern` is the stateless protocol of 2026-07-28 and later; `Legacy` is everything up to 2025-11-25, with
/// `initialize` and sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Era {
    Legacy,
    Modern,
}

/// Protocol versions of the modern era that this release speaks, newest first.
pub const MODERN_VERSIONS: &[&str] = &["2026-07-28"];

/// Protocol versions of the legacy era that this release speaks, newest first.
pub const LEGACY_VERSIONS: &[&str] = &["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

impl Era {
    /// The era of a protocol version; `None` for one that this release does not know.
    pub fn of_version(version: &str) -> Option<Self> {
        if MODERN_VERSIONS.contains(&version) {
            Some(Self::Modern)
        } else if LEGACY_VERSIONS.contains(&version) {
            Some(Self::Legacy)
        } else {
            None
        }
    }
}

/// How the clients of one server share its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionMode {
    /// One child for everybody. A legacy child is initialised without client capabilities, so that none of its
    /// requests has to be attributed to a client.
    Shared,
    /// One child a legacy session.
    PerClient,
}
