//! Commands on images: locked, copied, fetched, carried, tidied away.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mcp_hub_crds::Duration;
use mcp_hub_supply::reference::Mirror;

use super::RuntimeChoice;

#[derive(Debug, Args)]
pub(crate) struct LockImages {
    /// File or folder of manifests (default: your own configuration)
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lock: LockFile,
    #[command(flatten)]
    pub(crate) transport: Transport,
}

#[derive(Debug, Args)]
pub(crate) struct PublishImages {
    /// Registry, or a path in it, that the images go to
    #[arg(long, value_name = "HOST[:PORT][/PATH]")]
    pub(crate) registry: Mirror,
    /// Only the images of this file or folder of manifests
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Also write a lock file with the images' names in that registry
    #[arg(long, value_name = "FILE")]
    pub(crate) write_lock: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lock: LockFile,
    #[command(flatten)]
    pub(crate) transport: Transport,
}

#[derive(Debug, Args)]
pub(crate) struct PullImages {
    /// Only the images of this file or folder of manifests
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lock: LockFile,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Remove them; without, only say what would go
    #[arg(long)]
    pub(crate) yes: bool,
    /// How long an image must not have been asked for
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub(crate) older_than: Duration,
    /// Manifests whose images stay as well, besides your own configuration and what a daemon follows
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lock: LockFile,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
}

/// An engine that a command acts on.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct EngineChoice {
    /// Container engine; `auto` takes the first of docker, podman and vessel that answers
    #[arg(long, env = "MCPHUB_RUNTIME", value_enum, default_value_t = RuntimeChoice::Auto)]
    pub(crate) runtime: RuntimeChoice,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Write locked images, for every platform, into one file
    Save(BundleSave),
    /// Send the images of such a file to a registry, or into a container engine
    Load(BundleLoad),
}

#[derive(Debug, Args)]
pub(crate) struct BundleSave {
    /// File to write, an OCI archive
    #[arg(value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) lock: LockFile,
    #[command(flatten)]
    pub(crate) transport: Transport,
}

#[derive(Debug, Args)]
pub(crate) struct BundleLoad {
    /// File to read, an OCI archive
    #[arg(value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    /// Registry, or a path in it, that the images go to
    #[arg(long, value_name = "HOST[:PORT][/PATH]", required_unless_present = "runtime", conflicts_with = "runtime")]
    pub(crate) registry: Option<Mirror>,
    /// Container engine that the images go into, under their own names, for its platform only
    #[arg(long, value_enum, conflicts_with = "plain_http")]
    pub(crate) runtime: Option<RuntimeChoice>,
    #[command(flatten)]
    pub(crate) transport: Transport,
}

#[derive(Debug, Args)]
pub(crate) struct LockFile {
    /// Lock file
    #[arg(long = "lock-file", value_name = "FILE", default_value = mcp_hub_supply::lock::FILE)]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Transport {
    /// Registry that is spoken to over plain HTTP, as those of this machine always are
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) plain_http: Vec<String>,
}
