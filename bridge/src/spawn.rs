//! Starting the server's program.

use std::collections::BTreeMap;
use std::process::Stdio;

use mcp_hub_dataplane_api::launch::{LAUNCH_ENV, LaunchSpec, OWNER_ENV, SECRETS_ENV};
use tokio::process::{Child, Command};

use crate::cgroup;
use crate::shim::{INSTRUCTIONS, Instructions, MODE};

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("could not start {program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("working directory {path} is not there")]
    WorkingDir { path: String },
    #[error("could not make the control group {path}: {source}")]
    Cgroup { path: String, source: std::io::Error },
    #[error("{program} has no pipes")]
    Pipes { program: String },
}

/// Starts the program through the confining mode of this very binary, in a process group of its own, without a shell.
/// Its environment is what the specification says or inherits, the secrets, and the owner mark; with several servers behind one bridge
/// also the mark by which each one's processes are told apart.
pub fn spawn(
    spec: &LaunchSpec,
    secrets: &BTreeMap<String, String>,
    mark: Option<(&str, &str)>,
) -> Result<Child, SpawnError> {
    let child = &spec.child;
    let failed = |source| SpawnError::Start { program: child.program.clone(), source };
    if !child.working_dir.is_empty() && !std::path::Path::new(&child.working_dir).is_dir() {
        return Err(SpawnError::WorkingDir { path: child.working_dir.clone() });
    }
    if let Some(group) = &child.limits.cgroup {
        cgroup::make(group).map_err(|source| SpawnError::Cgroup { path: group.path.clone(), source })?;
    }
    let instructions = Instructions {
        program: child.program.clone(),
        args: child.args.clone(),
        parent: std::process::id(),
        cgroup: child.limits.cgroup.as_ref().map(|group| group.path.clone()),
        memory_bytes: child.limits.memory_bytes,
        filesystem: child.filesystem.clone(),
    };
    let instructions = serde_json::to_string(&instructions).map_err(|error| failed(error.into()))?;
    // The file this process runs, even if its path has been replaced by an upgrade.
    let mut command = Command::new("/proc/self/exe");
    if !child.inherit_env {
        command.env_clear();
    }
    if !child.working_dir.is_empty() {
        command.current_dir(&child.working_dir);
    }
    command
        .arg(MODE)
        .env_remove(LAUNCH_ENV)
        .env_remove(SECRETS_ENV)
        .envs(&child.env)
        .envs(secrets)
        .env(OWNER_ENV, &spec.owner.id)
        .envs(mark)
        .env(INSTRUCTIONS, instructions)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().map_err(failed)
}
