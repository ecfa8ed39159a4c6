//! `cargo xtask cluster`: the tests' cluster for people, up until it is taken down.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, Subcommand, ValueEnum};
use mcp_hub_test_cluster::{Cluster, Options, Programs, Shape, kubernetes_version, missing_tools};

use crate::needs::{self, apt};
use crate::shell::{self, Error};

/// What a cluster needs, in the order in which it is brought.
pub(crate) const NEEDS: [needs::Need; 4] = [
    needs::Need::Cluster(Need::Root),
    needs::Need::Cluster(Need::Go),
    needs::Need::Cluster(Need::Tools),
    needs::Need::Cluster(Need::Programs),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// For network namespaces, mounts and control groups.
    Root,
    /// Builds the programs.
    Go,
    /// containerd, network tools and a static busybox.
    Tools,
    /// Kubernetes and its companions, built from source.
    Programs,
}

impl Need {
    pub(crate) fn is_there(self) -> bool {
        match self {
            Self::Root => shell::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0"),
            Self::Go => which::which("go").is_ok(),
            Self::Tools => missing_tools(Shape::Node).is_empty(),
            Self::Programs => Programs::find().is_ok(),
        }
    }

    pub(crate) fn install(self) -> Result<(), Error> {
        match self {
            // Debian's Go is years behind what Kubernetes asks for.
            Self::Root | Self::Go => Err(Error::ByHand(self.hint())),
            Self::Tools => {
                // Only what is missing: a machine may have containerd from elsewhere, which Debian's would replace.
                let packages: BTreeSet<&str> = missing_tools(Shape::Node).iter().map(|tool| tool.package).collect();
                apt(&packages.into_iter().collect::<Vec<_>>())
            }
            Self::Programs => build(),
        }
    }

    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Root => "root, for network namespaces and mounts",
            Self::Go => "Go 1.26 or newer, from go.dev",
            Self::Tools => {
                "a node's tools: `apt-get install containerd runc containernetworking-plugins nftables iproute2 \
                 busybox-static`"
            }
            Self::Programs => "the test cluster's programs: `cargo xtask cluster build`",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Build Kubernetes, etcd, CoreDNS, KWOK and Helm into the cache (minutes the first time)
    Build,
    /// Start the cluster, building what is missing
    Up {
        #[command(flatten)]
        name: Name,
        /// What is to run
        #[arg(long, value_enum, default_value_t = Parts::Node)]
        parts: Parts,
        /// Write an audit log of all writes
        #[arg(long)]
        audit: bool,
    },
    /// Stop the cluster and remove all that it left, also what killed tests left
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Put images of an OCI archive on the node
    Load {
        #[command(flatten)]
        name: Name,
        #[arg(required = true, value_name = "ARCHIVE")]
        archives: Vec<PathBuf>,
    },
    /// Print the path of the administrator's kubeconfig
    Kubeconfig {
        #[command(flatten)]
        name: Name,
    },
    /// Run kubectl as the administrator
    Kubectl {
        #[command(flatten)]
        name: Name,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a program in the cluster's network, as the administrator; `helm` and `kwok` are those that were built
    Run {
        #[command(flatten)]
        name: Name,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Keep the API server's port of a cluster that is up
    #[command(hide = true)]
    Door { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    /// Name of the cluster, as several can be up
    #[arg(long = "name", default_value = "dev")]
    cluster: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Parts {
    /// etcd and the API server
    ApiServer,
    /// With controller manager and scheduler
    ControlPlane,
    /// With a node that runs pods
    Node,
}

impl From<Parts> for Shape {
    fn from(parts: Parts) -> Self {
        match parts {
            Parts::ApiServer => Self::ApiServer,
            Parts::ControlPlane => Self::ControlPlane,
            Parts::Node => Self::Node,
        }
    }
}

pub(crate) fn run(verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Build => build(),
        Verb::Up { name, parts, audit } => up(name.cluster, parts.into(), audit),
        Verb::Down { name } => Ok(Cluster::down_named(&name.cluster)?),
        Verb::Load { name, archives } => {
            let cluster = Cluster::attach(&name.cluster)?;
            Ok(archives.iter().try_for_each(|archive| cluster.load(archive))?)
        }
        Verb::Kubeconfig { name } => print(&Cluster::attach(&name.cluster)?.kubeconfig()),
        Verb::Kubectl { name, arguments } => {
            shell::run(Cluster::attach(&name.cluster)?.kubectl_command().args(arguments))
        }
        Verb::Run { name, command } => inside(&Cluster::attach(&name.cluster)?, &command),
        Verb::Door { name } => Ok(Cluster::hold_door(&name)?),
    }
}

/// Builds the programs that are not in the cache.
pub(crate) fn build() -> Result<(), Error> {
    Programs::build(shell::say)?;
    Ok(())
}

fn up(name: String, shape: Shape, audit: bool) -> Result<(), Error> {
    build()?;
    let audit = audit.then(|| Options::AUDIT_WRITES.to_owned());
    let cluster = Cluster::up(Options { name: Some(name), audit, ..Options::new(shape) })?;
    let own = std::env::current_exe();
    let mut door = Command::new(own.map_err(|source| Error::Start { program: "xtask".to_owned(), source })?);
    door.args(["cluster", "door", cluster.name()]);
    let cluster = cluster.detach(door)?;
    shell::say(&format!("Kubernetes {} is up; logs in {}", kubernetes_version(), cluster.logs().display()));
    shell::say(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()));
    Ok(())
}

fn inside(cluster: &Cluster, command: &[OsString]) -> Result<(), Error> {
    let (program, arguments) = command.split_first().unwrap_or((const { &OsString::new() }, &[]));
    let built = ["helm", "kwok", "kubectl"].iter().find(|name| program == *name);
    let program = built.map_or_else(|| program.clone(), |name| cluster.program(name).get_program().to_owned());
    shell::run(cluster.command(program).args(arguments))
}

fn print(path: &std::path::Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "print", path: path.to_owned(), source };
    writeln!(std::io::stdout(), "{}", path.display()).map_err(failed)
}
