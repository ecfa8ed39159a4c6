//! What levels need of the machine, how to see whether it is there, and how `--setup` brings it.

use std::process::{Command, Stdio};

#[cfg(target_os = "linux")]
use crate::cluster;
use crate::shell::{self, Error};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Node,
    Python,
    MuslTargets,
    /// Compiles the C of a static program's cryptography.
    MuslCc,
    /// Unpacks Debian's packages for an image.
    Debian,
    /// A registry of one's own, and what pushes to it.
    Registry,
    /// A container engine and Compose.
    Compose,
    /// A Secret Service, on Linux; other systems have their keyring built in.
    Keyring,
    /// Builds libFuzzer, which comes as source.
    Cxx,
    #[cfg(target_os = "linux")]
    Cluster(cluster::Need),
    /// Docker and Podman, of which tests start their own.
    #[cfg(target_os = "linux")]
    Engines,
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
            Self::MuslCc => which::which(format!("{}-linux-musl-gcc", std::env::consts::ARCH)).is_ok(),
            Self::Debian => which::which("mmdebstrap").is_ok(),
            Self::Registry => ["docker-registry", "skopeo"].iter().all(|p| which::which(p).is_ok()),
            Self::Compose => {
                let mut plugin = Command::new("docker");
                ["dockerd", "docker", "iptables", "ip", "nsenter", "curl"].iter().all(|p| which::which(p).is_ok())
                    && (answers(plugin.args(["compose", "version"])) || which::which("docker-compose").is_ok())
            }
            Self::Cxx => which::which("c++").is_ok(),
            #[cfg(target_os = "linux")]
            Self::Cluster(need) => need.is_there(),
            #[cfg(target_os = "linux")]
            Self::Engines => missing_for_engines().is_empty(),
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
            Self::MuslCc => apt(&["musl-tools"]),
            Self::Debian => apt(&["mmdebstrap", "debian-archive-keyring"]),
            Self::Registry => apt(&["docker-registry", "skopeo"]),
            Self::Compose => apt(&["docker.io", "docker-compose", "iptables", "iproute2", "util-linux", "curl"]),
            Self::Cxx => apt(&["g++"]),
            #[cfg(target_os = "linux")]
            Self::Cluster(need) => need.install(),
            #[cfg(target_os = "linux")]
            Self::Engines => apt(&missing_for_engines()),
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
            Self::Cluster(need) => need.hint(),
            #[cfg(target_os = "linux")]
            Self::Engines => "container engines: `apt-get install docker.io podman`",
            Self::Keyring => "a keyring: `apt-get install dbus gnome-keyring`",
            Self::MuslCc => "a C compiler for musl: `apt-get install musl-tools`",
            Self::Debian => "what unpacks Debian's packages: `apt-get install mmdebstrap debian-archive-keyring`",
            Self::Registry => "a registry: `apt-get install docker-registry skopeo`",
            Self::Compose => {
                "a container engine with Compose: `apt-get install docker.io docker-compose iptables curl`"
            }
            Self::Cxx => "a C++ compiler: `apt-get install g++`, or `xcode-select --install`",
            Self::MuslTargets => {
                "the musl targets: `rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl`"
            }
        }
    }
}

/// Targets of the static bridge.
pub(crate) const MUSL_TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// Debian packages with what engines need and the machine has not.
#[cfg(target_os = "linux")]
fn missing_for_engines() -> Vec<&'static str> {
    use mcp_hub_test_cluster::EngineKind;
    let mut packages: Vec<&str> = [EngineKind::Docker, EngineKind::Podman]
        .iter()
        .flat_map(|kind| kind.missing())
        .map(|tool| tool.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn answers(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

pub(crate) fn apt(packages: &[&str]) -> Result<(), Error> {
    shell::run(Command::new("apt-get").arg("update").arg("-q"))?;
    shell::run(Command::new("apt-get").args(["install", "-q", "-y", "--no-install-recommends"]).args(packages))
}
