//! What the installer of a pod says when it cannot install its package: the termination message of its container.

use serde::{Deserialize, Serialize};

/// Where a container leaves its last words for the kubelet, unless its pod names another file.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Why a package is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstallFailure {
    pub reason: InstallReason,
    pub message: String,
    pub hint: Option<String>,
}

/// A reason of conditions: constant, so that programs may rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstallReason {
    InterpreterMissing,
    /// The registry has no such package, or not in this version.
    PackageNotFound,
    /// The package has no such program.
    ProgramNotFound,
    /// No registry answered.
    RegistryUnreachable,
    /// npm or pip ended with an error.
    InstallFailed,
    /// The place for the package cannot be read or written.
    CacheFailed,
}

impl InstallReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InterpreterMissing => "InterpreterMissing",
            Self::PackageNotFound => "PackageNotFound",
            Self::ProgramNotFound => "ProgramNotFound",
            Self::RegistryUnreachable => "RegistryUnreachable",
            Self::InstallFailed => "InstallFailed",
            Self::CacheFailed => "CacheFailed",
        }
    }
}
