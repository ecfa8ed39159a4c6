//! The bridge that this release starts in front of servers, and the relay that containers with an egress list reach others by.
//!
//! A release carries both for several targets inside itself; a development build takes the bridge beside it. Either is kept
//! in the cache under its own digest: an upgrade puts a new one beside the old one, which running servers go on with.

use std::borrow::Cow;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use mcp_hub_local_runtime::docker::{Bridges, DIGITS, Program, ProgramImage};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::places::Places;

const NAME: &str = "mcp-bridge";

/// A program inside this one.
struct Carried {
    /// Target triple it was built for.
    target: &'static str,
    /// SHA-256 of the image, lower-case hex: reading the image for it would put it into every daemon's memory.
    digest: &'static str,
    image: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/carried.rs"));

/// Targets of the bridges that this program carries.
pub(crate) fn carried() -> Vec<&'static str> {
    BRIDGES.iter().map(|bridge| bridge.target).collect()
}

/// The target whose bridge runs on this machine. On Linux that is the static one, which needs no library.
fn own_target() -> String {
    let system = if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-musl" };
    format!("{}-{system}", std::env::consts::ARCH)
}

/// The bridge for this machine, with its digest.
fn image() -> Result<(Cow<'static, [u8]>, String), Error> {
    let target = own_target();
    if let Some(bridge) = BRIDGES.iter().find(|bridge| bridge.target == target) {
        return Ok((Cow::Borrowed(bridge.image), bridge.digest.to_owned()));
    }
    let own = std::env::current_exe().map_err(Error::file("find", "mcpctl itself"))?;
    let program = own.with_file_name(NAME);
    let image = std::fs::read(&program).map_err(|error| Error::Invalid {
        message: format!("mcpctl carries no bridge for {target}, and {} cannot be read: {error}", program.display()),
        hint: Some(
            "`cargo xtask dist` makes an mcpctl that carries it; `cargo build --package mcp-hub-bridge` one beside"
                .to_owned(),
        ),
    })?;
    let digest = hex::encode(Sha256::digest(&image));
    Ok((Cow::Owned(image), digest))
}

/// Path of the bridge in the cache, copied there unless it is there already.
pub(crate) fn place(places: &Places) -> Result<PathBuf, Error> {
    let (image, digest) = image()?;
    let folder = places.cache().join("bridges").join(&digest[..16]);
    let path = folder.join(NAME);
    if path.exists() {
        return Ok(path);
    }
    let write = || {
        std::fs::create_dir_all(&folder)?;
        let mut draft = tempfile::Builder::new().prefix(".draft").tempfile_in(&folder)?;
        draft.write_all(&image)?;
        draft.as_file().set_permissions(std::fs::Permissions::from_mode(0o755))?;
        // Closed before it is renamed: a program that is open for writing cannot be started.
        draft.into_temp_path().persist(&path)?;
        Ok(())
    };
    write().map_err(Error::file("write", &path))?;
    Ok(path)
}

/// Bridges for containers, which have no library of their own: static ones, of each architecture that this program carries,
/// and those that earlier releases brought into containers.
pub(crate) fn for_containers(places: &Places) -> Bridges {
    Bridges::new(of_architectures(BRIDGES), places.cache().join("bridges/containers"))
}

/// Relays for containers, of each architecture that this program carries.
pub(crate) fn relays() -> Vec<Program> {
    of_architectures(RELAYS)
}

fn of_architectures(carried: &[Carried]) -> Vec<Program> {
    let architectures = [("x86_64-unknown-linux-musl", "amd64"), ("aarch64-unknown-linux-musl", "arm64")];
    let programs = architectures.into_iter().filter_map(|(target, architecture)| {
        let program = carried.iter().find(|program| program.target == target)?;
        Some(Program {
            architecture: architecture.to_owned(),
            digest: program.digest[..DIGITS].to_owned(),
            image: ProgramImage::Carried(program.image),
        })
    });
    programs.collect()
}
