//! What the machine must have besides the programs that are built.

use std::path::{Path, PathBuf};

use crate::cluster::Shape;

/// Names of what is not installed for a cluster of this shape.
pub fn missing(shape: Shape) -> Vec<&'static str> {
    let (network, node): (&[_], &[_]) = (&["ip", "nsenter"], &["containerd", "ctr", "runc", "nft", "busybox"]);
    let wanted = network.iter().chain(if shape == Shape::Node { node } else { &[] });
    let mut missing: Vec<_> = wanted.copied().filter(|tool| which::which(tool).is_err()).collect();
    if shape == Shape::Node && network_plugins().is_none() {
        missing.push("containernetworking-plugins");
    }
    missing
}

/// The folder of the network plugins: where Debian has them, or where everyone else does.
pub(crate) fn network_plugins() -> Option<PathBuf> {
    let plugins = ["bridge", "host-local", "portmap"];
    let folders = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
    folders.into_iter().find(|folder| plugins.iter().all(|plugin| folder.join(plugin).is_file())).map(Path::to_owned)
}
