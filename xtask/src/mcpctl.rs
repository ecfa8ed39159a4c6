//! The freshly built `mcpctl`, with folders of its own below the target folder so that nothing else on the machine is
//! touched.

use std::path::PathBuf;
use std::process::Command;

use crate::needs::{MUSL, Need};
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
                let built = shipped_bridge()?;
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

/// The target that a bridge is shipped for, if it is installed: static, so that it runs in any image, which halves its
/// memory, too.
pub(crate) fn bridge_target() -> Option<&'static str> {
    Need::MuslTarget.is_there().then_some(MUSL)
}

/// Builds the bridge as it is shipped, or else with its profile for this machine, and says so.
pub(crate) fn shipped_bridge() -> Result<PathBuf, Error> {
    let target = bridge_target();
    if target.is_none() {
        shell::say("the bridge is built for this machine's C library, unlike the one that is shipped");
    }
    let mut build = shell::cargo(&["build", "--locked", "--profile", "bridge", "--package", "mcp-hub-bridge"]);
    shell::run(build.args(target.map(|target| ["--target", target]).into_iter().flatten()))?;
    Ok(shell::target().join(target.unwrap_or_default()).join("bridge/mcp-bridge"))
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
