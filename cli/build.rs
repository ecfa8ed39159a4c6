//! Takes bridges into the program: every file of the folder `MCP_HUB_BRIDGES`, named by its target (`cargo xtask dist`).
//! Without the variable it carries none and looks for one beside itself.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

const FOLDER: &str = "MCP_HUB_BRIDGES";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={FOLDER}");
    let mut bridges = Vec::new();
    if let Some(folder) = std::env::var_os(FOLDER) {
        println!("cargo::rerun-if-changed={}", folder.display());
        for entry in std::fs::read_dir(&folder)? {
            let path = std::path::absolute(entry?.path())?;
            println!("cargo::rerun-if-changed={}", path.display());
            bridges.push(path);
        }
    }
    bridges.sort();
    let mut source = String::from("const CARRIED: &[Carried] = &[\n");
    for path in bridges {
        let target = path.file_name().and_then(|name| name.to_str()).ok_or("a bridge whose name is no text")?;
        let digest = hex::encode(Sha256::digest(std::fs::read(&path)?));
        writeln!(source, "    Carried {{ target: {target:?}, digest: {digest:?}, image: include_bytes!({path:?}) }},")?;
    }
    source.push_str("];\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo gives OUT_DIR")?);
    std::fs::write(out.join("carried.rs"), source)?;
    Ok(())
}
