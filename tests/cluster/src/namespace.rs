//! A network namespace of a cluster's own: every cluster has the same addresses, and none sees another's.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;

use crate::error::Error;
use crate::process::{self, Record};

/// The node's address in the namespace. kubelet refuses a loopback address.
pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 250, 0, 1));

#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    /// Makes it, with a node that can be reached at [`NODE`] and forwards between its pods.
    pub(crate) fn create(&self) -> Result<(), Error> {
        let ip = |args: &[&str]| process::run(Command::new("ip").args(args));
        let name = self.name.as_str();
        ip(&["netns", "add", name])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        // A bridge without ports serves as the device of the node's address; a kernel may have no `dummy` device.
        ip(&["-n", name, "link", "add", "node0", "type", "bridge"])?;
        ip(&["-n", name, "address", "add", &format!("{NODE}/24"), "dev", "node0"])?;
        ip(&["-n", name, "link", "set", "node0", "up"])?;
        // Nobody is there; but kubelet and kube-proxy ask which address leads out.
        ip(&["-n", name, "route", "add", "default", "via", "10.250.0.254", "dev", "node0"])?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        self.inside(move || std::fs::write(forward, "1"))?.map_err(Error::file("write", forward))
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }

    /// A command that runs in the namespace. Not `ip netns exec`: that mounts another `/sys`, which hides the control
    /// groups from kubelet.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `work` on a thread in the namespace; sockets made there belong to it wherever they are used.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let enter = || self.enter().map(|()| work());
        let ended = || Error::Enter { path: self.path(), source: std::io::Error::other("the thread panicked") };
        std::thread::scope(|scope| scope.spawn(enter).join()).map_err(|_| ended())?
    }

    /// Moves the calling thread into the namespace for good.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        let failed = |source| Error::Enter { path: self.path(), source };
        let file = File::open(self.path()).map_err(failed)?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| failed(error.into()))
    }

    /// Whether something in the namespace accepts a connection at this address.
    pub(crate) fn answers(&self, address: SocketAddr) -> bool {
        let connect = move || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        self.inside(connect).unwrap_or(false)
    }

    /// The processes in it.
    pub(crate) fn processes(&self) -> Vec<Record> {
        let inode = |path: PathBuf| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let Some(ours) = inode(self.path()) else { return Vec::new() };
        process::all().filter(|record| inode(format!("/proc/{}/ns/net", record.pid).into()) == Some(ours)).collect()
    }

    /// Removes it; fine if it is gone already.
    pub(crate) fn delete(&self) -> Result<(), Error> {
        if !self.exists() {
            return Ok(());
        }
        process::run(Command::new("ip").args(["netns", "delete", &self.name]))
    }
}
