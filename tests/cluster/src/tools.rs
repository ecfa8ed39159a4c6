//! What the machine must have besides the programs that are built.

use std::path::{Path, PathBuf};

use crate::cluster::Shape;
use crate::engine::EngineKind;

/// Something of the machine's, and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    pub name: &'static str,
    pub package: &'static str,
}

/// For the network namespace of any cluster.
const NETWORK: [Tool; 2] = [Tool { name: "ip", package: "iproute2" }, Tool { name: "nsenter", package: "util-linux" }];

/// For a node.
const NODE: [Tool; 6] = [
    Tool { name: "containerd", package: "containerd" },
    Tool { name: "ctr", package: "containerd" },
    Tool { name: "runc", package: "runc" },
    Tool { name: "nft", package: "nftables" },
    Tool { name: BUSYBOX, package: "busybox-static" },
    Tool { name: PLUGINS, package: "containernetworking-plugins" },
];
const BUSYBOX: &str = "busybox (static)";
const PLUGINS: &str = "CNI plugins bridge, host-local and portmap";

/// What is not installed for a cluster of this shape.
pub fn missing(shape: Shape) -> Vec<Tool> {
    let node: &[Tool] = if shape == Shape::Node { &NODE } else { &[] };
    NETWORK.iter().chain(node).copied().filter(|tool| !tool.is_there()).collect()
}

/// For container engines.
const DOCKER: [Tool; 3] = [
    Tool { name: "dockerd", package: "docker.io" },
    Tool { name: "containerd", package: "containerd" },
    Tool { name: "iptables", package: "iptables" },
];
const PODMAN: [Tool; 5] = [
    Tool { name: "podman", package: "podman" },
    Tool { name: "runc", package: "runc" },
    Tool { name: "iptables", package: "iptables" },
    Tool { name: NETAVARK, package: "netavark" },
    Tool { name: NAMES, package: "aardvark-dns" },
];
const NETAVARK: &str = "netavark";
const NAMES: &str = "aardvark-dns";

/// What is not installed for an engine.
pub(crate) fn missing_for_engine(kind: EngineKind) -> Vec<Tool> {
    let own: &[Tool] = match kind {
        EngineKind::Docker => &DOCKER,
        EngineKind::Podman => &PODMAN,
    };
    NETWORK.iter().chain(own).copied().filter(|tool| !tool.is_there()).collect()
}

impl Tool {
    fn is_there(self) -> bool {
        match self.name {
            BUSYBOX => busybox().is_some(),
            PLUGINS => network_plugins().is_some(),
            NETAVARK | NAMES => {
                ["/usr/lib/podman", "/usr/libexec/podman"].iter().any(|at| Path::new(at).join(self.name).is_file())
            }
            program => which::which(program).is_ok(),
        }
    }
}

/// The folder of the network plugins: where Debian has them, or where everyone else does.
pub(crate) fn network_plugins() -> Option<PathBuf> {
    let plugins = ["bridge", "host-local", "portmap", "loopback"];
    let folders = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
    folders.into_iter().find(|folder| plugins.iter().all(|plugin| folder.join(plugin).is_file())).map(Path::to_owned)
}

/// A busybox that runs in an image with nothing else in it.
pub(crate) fn busybox() -> Option<PathBuf> {
    let path = which::which("busybox").ok()?;
    let program = std::fs::read(&path).ok()?;
    (!names_a_loader(&program)?).then_some(path)
}

/// Whether a 64-bit ELF program asks for a loader and so for libraries (System V ABI, program header `PT_INTERP`); `None`
/// if it is no such program.
fn names_a_loader(program: &[u8]) -> Option<bool> {
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?)));
    let headers = usize::try_from(u64::from_le_bytes(program.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (short(54)?, short(56)?);
    let is_loader = |number| program.get(headers + number * size..)?.get(..4).map(|kind| kind == [3, 0, 0, 0]);
    program.starts_with(b"\x7fELF\x02").then_some(())?;
    (0..count).try_fold(false, |found, number| Some(found || is_loader(number)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_libraries_names_its_loader() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(names_a_loader(&own), Some(true));
        assert_eq!(names_a_loader(b"#!/bin/sh"), None);
    }
}
