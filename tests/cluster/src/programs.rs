//! The cluster's programs, built from Go modules at the versions that `modules/` pins.
//!
//! They lie in the cache of the user, outside the checkout, in a folder named after a digest over all that decides what
//! is built: another checkout with the same pins finds them there, one with other pins builds its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::files;

/// Names another folder for the cache.
pub const CACHE_VARIABLE: &str = "MCP_HUB_CLUSTER_CACHE";

#[derive(Debug)]
struct Program {
    name: &'static str,
    /// Folder below `modules/`.
    module: &'static str,
    package: &'static str,
}

const PROGRAMS: [Program; 10] = [
    Program { name: "etcd", module: "etcd", package: "go.etcd.io/etcd/server/v3" },
    Program { name: "kube-apiserver", module: "kubernetes", package: "k8s.io/kubernetes/cmd/kube-apiserver" },
    Program {
        name: "kube-controller-manager",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    },
    Program { name: "kube-scheduler", module: "kubernetes", package: "k8s.io/kubernetes/cmd/kube-scheduler" },
    Program { name: "kubelet", module: "kubernetes", package: "k8s.io/kubernetes/cmd/kubelet" },
    Program { name: "kube-proxy", module: "kubernetes", package: "k8s.io/kubernetes/cmd/kube-proxy" },
    Program { name: "kubectl", module: "kubernetes", package: "k8s.io/kubernetes/cmd/kubectl" },
    Program { name: "coredns", module: "coredns", package: "github.com/coredns/coredns" },
    Program { name: "kwok", module: "kwok", package: "sigs.k8s.io/kwok/cmd/kwok" },
    Program { name: "helm", module: "helm", package: "helm.sh/helm/v3/cmd/helm" },
];

/// One of each module: the pins, and what they were when they were checked.
const PINS: [(&str, &str); 10] = [
    ("kubernetes/go.mod", KUBERNETES),
    ("kubernetes/go.sum", include_str!("../modules/kubernetes/go.sum")),
    ("etcd/go.mod", include_str!("../modules/etcd/go.mod")),
    ("etcd/go.sum", include_str!("../modules/etcd/go.sum")),
    ("coredns/go.mod", include_str!("../modules/coredns/go.mod")),
    ("coredns/go.sum", include_str!("../modules/coredns/go.sum")),
    ("kwok/go.mod", include_str!("../modules/kwok/go.mod")),
    ("kwok/go.sum", include_str!("../modules/kwok/go.sum")),
    ("helm/go.mod", include_str!("../modules/helm/go.mod")),
    ("helm/go.sum", include_str!("../modules/helm/go.sum")),
];
const KUBERNETES: &str = include_str!("../modules/kubernetes/go.mod");

/// A folder with every program of the cluster.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Those of the cache.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] if one is missing: building takes minutes, so it is never done on the way.
    pub fn find() -> Result<Self, Error> {
        let programs = Self { folder: folder()? };
        let there = PROGRAMS.iter().all(|program| programs.path(program.name).is_file());
        if there { Ok(programs) } else { Err(Error::NotBuilt) }
    }

    /// Builds what is missing, which takes about ten minutes on two cores, once for these pins. `say` gets a line for each
    /// program that is built.
    ///
    /// # Errors
    /// If Go is not installed, a module cannot be fetched, or a build fails.
    pub fn build(say: impl Fn(&str)) -> Result<Self, Error> {
        let programs = Self { folder: folder()? };
        files::make(&programs.folder)?;
        let lock = programs.folder.join("lock");
        let file = std::fs::File::create(&lock).map_err(Error::file("create", &lock))?;
        // Another process may be building the same; then nothing is left to do here.
        file.lock().map_err(Error::file("lock", &lock))?;
        // Five gigabytes that nothing else needs, so they do not stay in the user's own cache.
        let objects = programs.folder.join("objects");
        for program in &PROGRAMS {
            let path = programs.path(program.name);
            if !path.is_file() {
                say(&format!("building {} into {}", program.name, programs.folder.display()));
                program.build(&path, &objects)?;
            }
        }
        match std::fs::remove_dir_all(&objects) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", &objects)(error)),
            _ => Ok(programs),
        }
    }

    /// Where the program of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Program {
    fn build(&self, path: &Path, objects: &Path) -> Result<(), Error> {
        // A name of its own until it is whole, because a program that is there is taken for good.
        let draft = path.with_extension("partial");
        let mut go = Command::new("nice");
        go.args(["-n", "10", "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &flags()]);
        go.arg("-o").arg(&draft).arg(self.package).current_dir(modules().join(self.module));
        // The modules stand for themselves, whatever this machine says about workspaces and flags.
        go.env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOCACHE", objects).env_remove("GOFLAGS");
        go.stdin(Stdio::null());
        crate::process::run(&mut go)?;
        std::fs::rename(&draft, path).map_err(Error::file("write", path))
    }
}

/// `v1.36.3`, as Kubernetes names itself.
pub fn kubernetes_version() -> &'static str {
    let line = KUBERNETES.lines().find_map(|line| line.trim().strip_prefix("require k8s.io/kubernetes "));
    line.map_or("", str::trim)
}

/// Servers tell this version, and clients refuse one that is too far from their own.
fn flags() -> String {
    let version = kubernetes_version();
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let of = "-X k8s.io/component-base/version";
    format!("-s -w {of}.gitVersion={version} {of}.gitMajor={major} {of}.gitMinor={minor}")
}

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("modules")
}

fn folder() -> Result<PathBuf, Error> {
    let mut digest = Sha256::new();
    for (name, content) in PINS {
        digest.update(format!("{name} {}\n{content}", content.len()));
    }
    for Program { name, module, package } in &PROGRAMS {
        digest.update(format!("{name} {module} {package}\n"));
    }
    digest.update(flags());
    let digest = hex::encode(digest.finalize());
    let short = digest.get(..12).unwrap_or(&digest);
    Ok(cache()?.join(format!("{}-{short}", kubernetes_version())).join("bin"))
}

fn cache() -> Result<PathBuf, Error> {
    if let Some(folder) = std::env::var_os(CACHE_VARIABLE) {
        return Ok(folder.into());
    }
    let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "no home folder; set MCP_HUB_CLUSTER_CACHE");
    let folders = directories::BaseDirs::new().ok_or_else(none).map_err(Error::file("find", "the user's cache"))?;
    Ok(folders.cache_dir().join("mcp-hub-test-cluster"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_tell_the_version_that_is_pinned() {
        assert!(kubernetes_version().starts_with("v1."), "{}", kubernetes_version());
        assert!(flags().contains("gitMajor=1 "), "{}", flags());
    }

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        for program in &PROGRAMS {
            let name = format!("{}/go.mod", program.module);
            let pins = PINS.iter().find(|(pin, _)| *pin == name).map(|(_, content)| *content).unwrap();
            let is_tool = |line: &str| line.trim_start_matches("tool ").trim() == program.package;
            assert!(pins.lines().any(is_tool), "{name} has no `tool {}`", program.package);
        }
    }
}
