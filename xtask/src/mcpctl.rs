//! The freshly built `mcpctl`, with folders of its own below the target folder so that nothing else on the machine is
//! touched.

use std::path::PathBuf;
use std::process::Command;

use crate::shell::{self, Error};

#[derive(Debug)]
pub(crate) struct Mcpctl {
    home: PathBuf,
}

impl Mcpctl {
    /// Builds the command-line tool, the bridge and the example server.
    pub(crate) fn build(home: PathBuf) -> Result<Self, Error> {
        let packages = ["--package", "mcpctl", "--package", "mcp-hub-bridge", "--package", "units-server"];
        shell::run(shell::cargo(&["build", "--locked"]).args(packages))?;
        Ok(Self { home })
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(shell::binaries().join("mcpctl"));
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
