//! What levels need of the machine, how to see whether it is there, and how `--setup` brings it.

#[cfg(target_os = "linux")]
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

#[cfg(target_os = "linux")]
use mcp_hub_test_cluster::{Programs, Shape, missing_tools};

use crate::shell::{self, Error};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Node,
    Python,
    MuslTargets,
    /// A Secret Service, on Linux; other systems have their keyring built in.
    Keyring,
    /// Builds libFuzzer, which comes as source.
    Cxx,
    /// Builds the programs of the test cluster.
    #[cfg(target_os = "linux")]
    Go,
    /// containerd, network tools and a static busybox, for the test cluster.
    #[cfg(target_os = "linux")]
    ClusterTools,
    /// Kubernetes and its companions, built from source.
    #[cfg(target_os = "linux")]
    ClusterPrograms,
    /// For network namespaces, mounts and control groups.
    #[cfg(target_os = "linux")]
    Root,
}

impl Need {
    pub(crate) fn is_there(self) -> bool {
        match self {
            Self::Node => which::which("node").is_ok() && which::which("npm").is_ok(),
            // `venv` is a package of its own on Debian.
            Self::Python => answers(Command::new("python3").args(["-c", "import venv, ensurepip"])),
            Self::MuslTargets => MUSL_TARGETS.iter().all(|target| {
                let mut rustc = Command::new("rustc");
                rustc.args(["--print", "target-libdir", "--target", target]).current_dir(shell::root());
                shell::output(&mut rustc).is_ok_and(|folder| std::path::Path::new(folder.trim()).is_dir())
            }),
            Self::Cxx => which::which("c++").is_ok(),
            #[cfg(target_os = "linux")]
            Self::Go => which::which("go").is_ok(),
            #[cfg(target_os = "linux")]
            Self::ClusterTools => missing_tools(Shape::Node).is_empty(),
            #[cfg(target_os = "linux")]
            Self::ClusterPrograms => Programs::find().is_ok(),
            #[cfg(target_os = "linux")]
            Self::Root => shell::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0"),
            Self::Keyring => {
                !cfg!(target_os = "linux")
                    || ["dbus-daemon", "gnome-keyring-daemon"].iter().all(|p| which::which(p).is_ok())
            }
        }
    }

    /// Brings it, saying what is run. Where no way is known the hint says what to do by hand.
    pub(crate) fn install(self) -> Result<(), Error> {
        match self {
            Self::Node => apt(&["nodejs", "npm"]),
            Self::Python => apt(&["python3", "python3-venv"]),
            Self::Keyring => apt(&["dbus", "gnome-keyring"]),
            Self::Cxx => apt(&["g++"]),
            #[cfg(target_os = "linux")]
            Self::ClusterTools => {
                // Only what is missing: a machine may have containerd from elsewhere, which Debian's would replace.
                let packages: BTreeSet<&str> = missing_tools(Shape::Node).iter().map(|tool| tool.package).collect();
                apt(&packages.into_iter().collect::<Vec<_>>())
            }
            #[cfg(target_os = "linux")]
            Self::ClusterPrograms => crate::cluster::build(),
            // Debian's Go is years behind what Kubernetes asks for.
            #[cfg(target_os = "linux")]
            Self::Go | Self::Root => Err(Error::ByHand(self.hint())),
            Self::MuslTargets => {
                let mut rustup = Command::new("rustup");
                shell::run(rustup.args(["target", "add"]).args(MUSL_TARGETS).current_dir(shell::root()))
            }
        }
    }

    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Node => "Node.js with npm: `apt-get install nodejs npm`, `brew install node`, or nodejs.org",
            Self::Python => {
                "Python 3 with venv: `apt-get install python3 python3-venv`, `brew install python`, or python.org"
            }
            #[cfg(target_os = "linux")]
            Self::Go => "Go 1.26 or newer: go.dev",
            #[cfg(target_os = "linux")]
            Self::ClusterTools => {
                "a node's tools: `apt-get install containerd runc containernetworking-plugins nftables busybox-static`"
            }
            #[cfg(target_os = "linux")]
            Self::ClusterPrograms => "the test cluster's programs: `cargo xtask cluster build`",
            #[cfg(target_os = "linux")]
            Self::Root => "root: run it as `root`",
            Self::Keyring => "a keyring: `apt-get install dbus gnome-keyring`",
            Self::Cxx => "a C++ compiler: `apt-get install g++`, or `xcode-select --install`",
            Self::MuslTargets => {
                "the musl targets: `rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl`"
            }
        }
    }
}

/// Targets of the static bridge.
pub(crate) const MUSL_TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

fn answers(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn apt(packages: &[&str]) -> Result<(), Error> {
    shell::run(Command::new("apt-get").arg("update").arg("-q"))?;
    shell::run(Command::new("apt-get").args(["install", "-q", "-y", "--no-install-recommends"]).args(packages))
}
