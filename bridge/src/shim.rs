//! Second mode of the same program: confines itself, then becomes the server.
//!
//! Limits and confinement must be in force before the server's first instruction. Doing that between fork and exec needs
//! unsafe code; a program that confines itself and then calls exec does not.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use mcp_hub_dataplane_api::launch::FilesystemAccess;
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use crate::cgroup;

/// First argument that selects this mode.
pub const MODE: &str = "exec";
/// In a container, where server and bridge have one limit of memory: the first to go is the server, of whose end the bridge
/// can tell.
const FIRST_TO_GO: (&str, &str) = ("/proc/self/oom_score_adj", "1000");
/// Environment variable with the [`Instructions`]; taken out before the server starts.
pub const INSTRUCTIONS: &str = "MCP_BRIDGE_EXEC";

#[derive(Debug, Serialize, Deserialize)]
pub struct Instructions {
    pub program: String,
    pub args: Vec<String>,
    /// The bridge; if it is gone already, so is the reason to start.
    pub parent: u32,
    /// Path of the control group to join.
    pub cgroup: Option<String>,
    pub memory_bytes: Option<u64>,
    pub filesystem: Option<FilesystemAccess>,
}

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("no instructions in the environment; this mode is for the bridge itself")]
    NoInstructions,
    #[error("the bridge ended before its server started")]
    ParentGone,
    #[error("could not set {what}: {source}")]
    Limit { what: &'static str, source: std::io::Error },
    #[error("could not confine the file system: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("this kernel cannot confine the file system (Landlock), so the server was not started")]
    NoLandlock,
    #[error("could not start {program}: {source}")]
    Exec { program: String, source: std::io::Error },
    #[error("could not start {program}: no program of that name in PATH ({path})")]
    NotInPath { program: String, path: String },
    #[error("could not start {program}: it is there, but not the loader or interpreter that it needs")]
    NoInterpreter { program: String },
}

/// Becomes the server. Returns only on failure.
pub fn exec() -> ShimError {
    let instructions =
        std::env::var(INSTRUCTIONS).ok().and_then(|text| serde_json::from_str::<Instructions>(&text).ok());
    let Some(instructions) = instructions else { return ShimError::NoInstructions };
    if let Err(error) = confine(&instructions) {
        return error;
    }
    let source = Command::new(&instructions.program).args(&instructions.args).env_remove(INSTRUCTIONS).exec();
    let program = instructions.program;
    match source.kind() {
        ErrorKind::NotFound if !program.contains('/') => {
            ShimError::NotInPath { program, path: std::env::var("PATH").unwrap_or_default() }
        }
        ErrorKind::NotFound if Path::new(&program).exists() => ShimError::NoInterpreter { program },
        _ => ShimError::Exec { program, source },
    }
}

fn confine(instructions: &Instructions) -> Result<(), ShimError> {
    // The server dies with its bridge, also when that is killed: its pipes would be nobody's.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| ShimError::Limit { what: "the death signal", source: error.into() })?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(instructions.parent) {
        return Err(ShimError::ParentGone);
    }
    if let Some(path) = &instructions.cgroup {
        cgroup::join(path).map_err(|source| ShimError::Limit { what: "the control group", source })?;
    }
    if let Some(bytes) = instructions.memory_bytes {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::setrlimit(Resource::Data, limit)
            .map_err(|error| ShimError::Limit { what: "the memory limit", source: error.into() })?;
    }
    if instructions.parent == 1 {
        // Where it cannot be said, the kernel takes the largest, which is no reason not to start.
        std::fs::write(FIRST_TO_GO.0, FIRST_TO_GO.1).ok();
    }
    match &instructions.filesystem {
        Some(access) => landlock(access),
        None => Ok(()),
    }
}

/// Everything not named is denied. Fails closed: a kernel without Landlock starts no server.
fn landlock(access: &FilesystemAccess) -> Result<(), ShimError> {
    // The oldest ABI whose rights cover what we deny; newer rights are handled where the kernel knows them.
    let abi = ABI::V1;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    for (paths, rights) in [(&access.read, AccessFs::from_read(abi)), (&access.write, AccessFs::from_all(abi))] {
        for path in paths {
            // A path that is not there grants nothing, and the server may do without it.
            let Ok(fd) = PathFd::new(path) else { continue };
            let rights = if Path::new(path).is_dir() { rights } else { rights & AccessFs::from_file(abi) };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, rights))?;
        }
    }
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(ShimError::NoLandlock),
    }
}
