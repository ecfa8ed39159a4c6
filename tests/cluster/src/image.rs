//! The node's images, made from scratch of the machine's own busybox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use mcp_hub_supply::Platform;
use mcp_hub_supply::layout::{self, Image, Layer, Start};

use crate::cluster::Shape;
use crate::error::Error;
use crate::{process, tools};

/// The node's images: what holds a pod's namespaces, and a shell with tools for tests. A tag other than `latest` is taken
/// from the node without asking a registry.
pub(crate) const PAUSE: &str = "localhost/pause:1";
pub const BUSYBOX: &str = "localhost/busybox:1";

/// Writes the archive of an image of this name: busybox with all its applets, which only waits unless it is told otherwise.
///
/// # Errors
/// If there is no busybox, or the file cannot be written.
pub(crate) fn write(name: &str, path: &Path) -> Result<(), Error> {
    let busybox = tools::busybox().ok_or_else(|| Error::NotInstalled(tools::missing(Shape::Node)))?;
    let program = std::fs::read(&busybox).map_err(Error::file("read", &busybox))?;
    let applets = process::output(Command::new(&busybox).arg("--list"))?;
    let mut layer = Layer::default().folder("tmp", 0o1777).folder("bin", 0o755).file("bin/busybox", 0o755, program);
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer = layer.link(&format!("bin/{applet}"), "busybox");
    }
    let start = Start {
        cmd: ["/bin/sleep", "2147483647"].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
        ..Start::default()
    };
    let image = Image { platform: Platform::own(), layers: vec![layer], start };
    let file = File::create(path).map_err(Error::file("create", path))?;
    layout::write(name, &[image], BufWriter::new(file)).map_err(Error::file("write", path))
}
