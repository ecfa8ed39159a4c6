//! Takes programs into this one: every file of the folders `MCP_HUB_BRIDGES` and `MCP_HUB_RELAYS`, named by its target
//! (`cargo xtask dist`). Without the variables it carries none, and looks for a bridge beside itself.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

const FOLDERS: [(&str, &str); 2] = [("BRIDGES", "MCP_HUB_BRIDGES"), ("RELAYS", "MCP_HUB_RELAYS")];

fn main() -> Result<(), Box<dyn Error>> {
    let mut source = String::new();
    for (name, variable) in FOLDERS {
        println!("cargo::rerun-if-env-changed={variable}");
        writeln!(source, "const {name}: &[Carried] = &[")?;
        for path in programs(std::env::var_os(variable))? {
            println!("cargo::rerun-if-changed={}", path.display());
            let target = path.file_name().and_then(|name| name.to_str()).ok_or("a program whose name is no text")?;
            let digest = hex::encode(Sha256::digest(std::fs::read(&path)?));
            writeln!(
                source,
                "    Carried {{ target: {target:?}, digest: {digest:?}, image: include_bytes!({path:?}) }},"
            )?;
        }
        writeln!(source, "];")?;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo gives OUT_DIR")?);
    std::fs::write(out.join("carried.rs"), source)?;
    Ok(())
}

fn programs(folder: Option<OsString>) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let Some(folder) = folder.map(PathBuf::from) else { return Ok(Vec::new()) };
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        programs.push(std::path::absolute(entry?.path())?);
    }
    programs.sort();
    Ok(programs)
}
