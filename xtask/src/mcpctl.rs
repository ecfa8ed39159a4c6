//! The freshly built `mcpctl`, with folders of its own below the target folder so that nothing else on the machine is
//! touched.

use std::path::PathBuf;
use std::process::Command;

use crate::dist;
use crate::shell::{self, Error};

#[derive(Debug)]
pub(crate) struct Mcpctl {
    home: PathBuf,
    program: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Mcpctl {
    /// Builds the command-line tool, the bridge and the example server.
    pub(crate) fn build(home: PathBuf, profile: Profile) -> Result<Self, Error> {
        let programs = ["--package", "mcpctl", "--package", "units-server"];
        let bridge = ["--package", "mcp-hub-bridge"];
        // The quickstart's manifest names the example server of the debug build.
        shell::run(shell::cargo(&["build", "--locked"]).args(programs).args(bridge))?;
        let program = match profile {
            Profile::Debug => shell::target().join("debug/mcpctl"),
            // As it is shipped: with static bridges inside.
            Profile::Release => dist::carrying(&dist::programs()?, "release")?,
        };
        Ok(Self::at(program, home))
    }

    /// An `mcpctl` that is built already.
    pub(crate) fn at(program: PathBuf, home: PathBuf) -> Self {
        Self { home, program }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("MCPHUB_HOME", &self.home).current_dir(shell::root());
        command
    }
}

/// Ends the daemon and its servers, also when the work before failed.
impl Drop for Mcpctl {
    fn drop(&mut self) {
        // Nothing runs if the start itself failed, and then there is nothing to end.
        if let Err(error) = shell::output(&mut self.command(&["down", "--all"])) {
            shell::say(&format!("could not stop the servers: {error}"));
        }
    }
}
