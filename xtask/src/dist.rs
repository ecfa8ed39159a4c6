//! `cargo xtask dist`: one `mcpctl` that carries bridges and relays, so that it can be copied anywhere by itself.

use std::path::{Path, PathBuf};

use crate::needs::{MUSL_TARGETS, Need};
use crate::shell::{self, Error};

/// ELF header, `e_machine` (System V ABI, figure 4-4): x86-64 and AArch64.
const MACHINES: [(&str, u16); 2] = [("x86_64", 62), ("aarch64", 183)];

pub(crate) fn run() -> Result<(), Error> {
    if !Need::MuslTargets.is_there() {
        shell::say(&format!("dist needs {}; installing it", Need::MuslTargets.hint()));
        Need::MuslTargets.install()?;
    }
    let program = carrying(&programs()?, "release")?;
    shell::say(&format!("made {}", program.display()));
    Ok(())
}

/// Static programs that `mcpctl` carries, in folders where each has its target's name.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) bridges: PathBuf,
    pub(crate) relays: PathBuf,
}

/// Builds all that `mcpctl` carries.
pub(crate) fn programs() -> Result<Programs, Error> {
    Ok(Programs { bridges: bridges()?, relays: gather("relays", relay)? })
}

fn bridges() -> Result<PathBuf, Error> {
    gather("bridges", bridge)
}

fn gather(name: &str, build: impl Fn(&str) -> Result<PathBuf, Error>) -> Result<PathBuf, Error> {
    let folder = shell::target().join(name);
    std::fs::create_dir_all(&folder).map_err(file("create", &folder))?;
    for target in MUSL_TARGETS {
        let kept = folder.join(target);
        std::fs::copy(build(target)?, &kept).map_err(file("write", &kept))?;
    }
    Ok(folder)
}

/// Builds one target's static bridge.
pub(crate) fn bridge(target: &str) -> Result<PathBuf, Error> {
    program("mcp-hub-bridge", "mcp-bridge", target)
}

/// Builds one target's static relay.
fn relay(target: &str) -> Result<PathBuf, Error> {
    program("mcp-hub-relay", "mcp-hub-relay", target)
}

fn program(package: &str, name: &str, target: &str) -> Result<PathBuf, Error> {
    let build = ["build", "--locked", "--package", package, "--bin", name, "--profile", "bridge", "--target", target];
    shell::run(&mut shell::cargo(&build))?;
    let built = shell::target().join(target).join("bridge").join(name);
    check(&built, target)?;
    Ok(built)
}

/// Builds the bridges and gives the one that runs on this machine.
pub(crate) fn own_bridge() -> Result<PathBuf, Error> {
    Ok(bridges()?.join(own_target()))
}

/// The static target of this machine.
pub(crate) fn own_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Builds `mcpctl` with these programs inside; gives its path in `target/dist`.
pub(crate) fn carrying(programs: &Programs, profile: &str) -> Result<PathBuf, Error> {
    let mut build = shell::cargo(&["build", "--locked", "--package", "mcpctl", "--profile", profile]);
    shell::run(build.env("MCP_HUB_BRIDGES", &programs.bridges).env("MCP_HUB_RELAYS", &programs.relays))?;
    let built = folder(profile);
    let folder = shell::target().join("dist").join(built.file_name().unwrap_or_default());
    std::fs::create_dir_all(&folder).map_err(file("create", &folder))?;
    let program = folder.join("mcpctl");
    std::fs::copy(built.join("mcpctl"), &program).map_err(file("write", &program))?;
    Ok(program)
}

/// Where cargo puts what it builds with a profile.
pub(crate) fn folder(profile: &str) -> PathBuf {
    shell::target().join(if profile == "dev" { "debug" } else { profile })
}

/// It must run in an image made from scratch, so it names no loader (program header `PT_INTERP`), and it is of its
/// target's machine.
pub(crate) fn check(path: &Path, target: &str) -> Result<(), Error> {
    let image = std::fs::read(path).map_err(file("read", path))?;
    let wrong = |message: String| Err(Error::Output { command: path.display().to_string(), message });
    if image.windows(LOADER.len()).any(|window| window == LOADER) {
        return wrong("it is linked dynamically".to_owned());
    }
    let machine = image.get(18..20).and_then(|bytes| Some(u16::from_le_bytes(bytes.try_into().ok()?)));
    let wanted = MACHINES.iter().find(|(name, _)| target.starts_with(name)).map(|(_, machine)| *machine);
    match machine == wanted {
        true => Ok(()),
        false => wrong(format!("it is for machine {machine:?}, not for {target}")),
    }
}

/// Every loader of a Linux program is a file of such a name.
const LOADER: &[u8] = b"/ld-linux";

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::File { action, path: path.to_owned(), source }
}
