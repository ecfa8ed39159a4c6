//! The freshly built `mcpctl`, with folders of its own below the target folder so that nothing else on the machine is
//! touched.

use std::path::PathBuf;
use std::process::Command;

use crate::needs::MUSL;
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
        let folder = match profile {
            Profile::Debug => shell::target().join("debug"),
            Profile::Release => {
                shell::run(shell::cargo(&["build", "--locked", "--release"]).args(["--package", "mcpctl"]))?;
                // As it is shipped: static, so that it runs in any image, which halves its memory, too.
                let build = ["build", "--locked", "--profile", "bridge", "--target", MUSL];
                shell::run(shell::cargo(&build).args(bridge))?;
                let built = shell::target().join(MUSL).join("bridge/mcp-bridge");
                let wanted = shell::target().join("release/mcp-bridge");
                std::fs::copy(&built, &wanted).map_err(|source| Error::File {
                    action: "copy the bridge to",
                    path: wanted.clone(),
                    source,
                })?;
                shell::target().join("release")
            }
        };
        Ok(Self { home, program: folder.join("mcpctl") })
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
