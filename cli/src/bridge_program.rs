//! The bridge that this release starts in front of servers.
//!
//! It is kept in the cache under its own digest: an upgrade puts a new one beside the old one, which running servers go on
//! with.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::places::Places;

const NAME: &str = "mcp-bridge";

/// Path of the bridge in the cache, copied there unless it is there already.
pub(crate) fn place(places: &Places) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::file("find", "mcpctl itself"))?;
    let program = own.with_file_name(NAME);
    let image = std::fs::read(&program).map_err(|error| Error::Invalid {
        message: format!("the bridge {} cannot be read: {error}", program.display()),
        hint: Some("it belongs beside mcpctl; `cargo build` makes it with `--package mcp-hub-bridge`".to_owned()),
    })?;
    let digest = hex::encode(Sha256::digest(&image));
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
