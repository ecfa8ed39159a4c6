//! The command line. A doc comment here is help, completion and `docs/src/reference/cli.md` at once.

mod images;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mcp_hub_crds::Duration;
use mcp_hub_local_runtime::docker::EngineKind;

pub(crate) use images::{
    Bundle, BundleLoad, BundleSave, Gc, LockFile, LockImages, PublishImages, PullImages, Transport,
};

use crate::target::Scope;

#[derive(Debug, Parser)]
#[command(
    name = "mcpctl",
    version,
    about = "MCP servers behind one endpoint, on this machine or a cluster",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 no daemon runs, or no cluster with MCP Hub \
                  or no container engine answers, 5 timed out, 6 invalid input, 7 the tool answered with an error, 8 held \
                  by another program or field manager, 9 forbidden by the cluster.",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Where the command acts: `local`, the daemon of this machine, or `kubernetes[/CONTEXT]`, the cluster of a kubeconfig's context
    #[arg(long, global = true, env = "MCP_HUB_TARGET", value_name = "TARGET", default_value = "local")]
    pub(crate) target: Place,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where a command acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Local,
    /// The cluster of a context, of the current one if none is named.
    Kubernetes {
        context: Option<String>,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names of contexts hold slashes, too.
        match text.split_once('/') {
            None if text == "local" => Ok(Self::Local),
            None if text == "kubernetes" => Ok(Self::Kubernetes { context: None }),
            Some(("kubernetes", context)) if !context.is_empty() => {
                Ok(Self::Kubernetes { context: Some(context.to_owned()) })
            }
            _ => Err("a target is `local` or `kubernetes[/CONTEXT]`".to_owned()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run servers and their hub, and follow their manifests
    Up(Up),
    /// End servers and the daemon
    Down(Down),
    /// Start stopped servers (all if none is named)
    Start(Lifecycle),
    /// Keep servers stopped until `start`; no file is changed
    Stop(Lifecycle),
    /// Restart servers
    Restart(Lifecycle),
    /// Add a server: `add NAME URL`, or `add NAME -- COMMAND ARGS…`
    Add(Add),
    /// Undo `add`
    Remove(Remove),
    /// Take manifests over: into your own configuration, or into a cluster
    Apply(Apply),
    /// Write manifests down for Compose, Swarm or kubectl
    Generate(Generate),
    /// Read Compose files and configurations of MCP clients as manifests
    Import(Import),
    /// Show objects
    Get(Get),
    /// Delete an object: here, one that `add` or `apply` made
    Delete(Delete),
    /// Show what runs, and what to do where something does not
    Status(Status),
    /// Show what would be done to bring servers to their specs
    Plan(Plan),
    /// Show a server's log
    Logs(Logs),
    /// List the tools that a hub offers
    Tools(Tools),
    /// Call a tool: `call SERVER/TOOL --arg key=value`
    Call(Call),
    /// Show where clients reach a hub
    Endpoint(Endpoint),
    /// Speak MCP on stdin and stdout for a client that knows nothing else
    Stdio(Stdio),
    /// Keep secrets in the encrypted file
    #[command(subcommand)]
    Secret(Secret),
    /// Write down which images the names in manifests stand for, for every platform
    LockImages(LockImages),
    /// Copy locked images, for every platform, to a registry of your own
    PublishImages(PublishImages),
    /// Fetch locked images into a container engine
    PullImages(PullImages),
    /// Carry locked images to where no network is
    #[command(subcommand)]
    Bundle(Bundle),
    /// Remove images from a container engine that MCP Hub brought there and nothing needs any more
    Gc(Gc),
    /// Show versions of this program and of what it acts on
    Version(OutputOnly),
    /// Print a completion script
    Completions {
        /// Shell to complete in
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the reference of all commands as Markdown
    #[command(hide = true)]
    GenerateReference,
    /// Run the daemon in the foreground without showing anything
    #[command(hide = true)]
    Daemon(Start),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// File or folder of manifests to follow, besides your own configuration
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Return once the daemon runs, and leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
    #[command(flatten)]
    pub(crate) start: Start,
    /// How changes are shown: as text, drawn again in its place on a terminal, or as one JSON object a line
    #[arg(short, long, value_enum, default_value_t = Changes::Text)]
    pub(crate) output: Changes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Changes {
    Text,
    Json,
}

/// Port of hubs that name none, unless `--port` says otherwise.
pub(crate) const DEFAULT_PORT: u16 = 7337;

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Port {
    /// Port of hubs that name none
    #[arg(long, env = "MCPHUB_PORT", default_value_t = DEFAULT_PORT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

/// Where images run whose spec names no runtime.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Runtime {
    /// Container engine for images whose spec names no runtime; `auto` takes the first of docker, podman and vessel that answers. Counts when the daemon is started
    #[arg(long, env = "MCPHUB_RUNTIME", value_enum, default_value_t = RuntimeChoice::Auto)]
    pub(crate) runtime: RuntimeChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeChoice {
    Auto,
    Docker,
    Podman,
    Vessel,
}

impl Start {
    /// For one who needs a daemon and nothing that runs on it.
    pub(crate) const ANY: Self =
        Self { port: Port { port: DEFAULT_PORT }, runtime: Runtime { runtime: RuntimeChoice::Auto } };
}

impl RuntimeChoice {
    pub(crate) fn engine(self) -> Option<EngineKind> {
        match self {
            Self::Auto => None,
            Self::Docker => Some(EngineKind::Docker),
            Self::Podman => Some(EngineKind::Podman),
            Self::Vessel => Some(EngineKind::Vessel),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        self.engine().map_or("auto", EngineKind::as_str)
    }
}

/// How a daemon is started, if none runs.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) port: Port,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Stop following this file or folder, and end its servers only
    #[arg(short, long = "file", value_name = "PATH", conflicts_with = "all")]
    pub(crate) file: Option<PathBuf>,
    /// Also end servers that a daemon left behind which was killed
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Lifecycle {
    /// Names of servers
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Wait {
    /// Wait until the servers have settled; exit code 1 if one of them is not ready
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest wait
    #[arg(long, value_name = "DURATION", default_value = "5m", requires = "wait", value_parser = timeout)]
    pub(crate) timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match text.parse::<Duration>() {
        Ok(duration) if duration.as_millis() == 0 => Err("must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Namespace {
    /// Namespace of the objects (default: here `default`, on a cluster the context's)
    #[arg(short, long, value_name = "NAMESPACE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Namespaces {
    /// Only objects of this namespace (default: here all, on a cluster the context's)
    #[arg(short, long, value_name = "NAMESPACE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    namespace: Option<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

impl Namespaces {
    pub(crate) fn scope(&self) -> Scope {
        match &self.namespace {
            _ if self.all_namespaces => Scope::All,
            Some(namespace) => Scope::of(namespace),
            None => Scope::Usual,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Name of the server
    pub(crate) name: String,
    /// Streamable HTTP endpoint of a server that runs elsewhere
    #[arg(value_name = "URL", conflicts_with = "command", required_unless_present = "command")]
    pub(crate) url: Option<String>,
    /// Environment variable in clear, or from a secret as NAME=secret:SECRET/KEY
    #[arg(short, long, value_name = "NAME=VALUE", conflicts_with = "url")]
    pub(crate) env: Vec<String>,
    /// Header in clear, or from a secret as NAME=secret:SECRET/KEY
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "command")]
    pub(crate) header: Vec<String>,
    /// Start it with the first call and stop it when idle
    #[arg(long, conflicts_with = "url")]
    pub(crate) on_demand: bool,
    /// Replace a server of this name
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// Command that starts the server; npx and uvx lines become packages
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Name of the server
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// File or folder of manifests; `-` is stdin
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
    /// Take over fields that others set (clusters)
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// For whom
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Form,
    /// File or folder of manifests (default: your own configuration)
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Folder that the files are written into (default: this one; of kubernetes, stdout)
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// The hub, if there are several; a project of Compose or Swarm has one
    #[arg(long, value_name = "NAME")]
    pub(crate) hub: Option<String>,
    /// Registry and path of MCP Hub's own images, which a project of Compose or Swarm runs
    #[arg(long, value_name = "PREFIX", default_value = "localhost/mcp-hub")]
    pub(crate) images: String,
    /// Write over files that are not of this command
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Compose,
    Kubernetes,
    Swarm,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Compose files, or configurations of MCP clients
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Folder that a manifest for each server is written into (default: this one)
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Write over manifests that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    #[value(alias = "server", alias = "mcps", alias = "mcpserver", alias = "mcpservers")]
    Servers,
    #[value(alias = "hub", alias = "mcph", alias = "mcphub", alias = "mcphubs")]
    Hubs,
    #[value(alias = "event")]
    Events,
    #[value(alias = "origin")]
    Origins,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// What to show
    #[arg(value_enum, value_name = "KIND")]
    pub(crate) kind: Kind,
    /// Only the object of this name
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) namespaces: Namespaces,
    #[command(flatten)]
    pub(crate) output: OutputOnly,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputOnly {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Kind of the object
    #[arg(value_enum, value_name = "KIND")]
    pub(crate) kind: Kind,
    /// Name of the object
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Names of servers (all if none is named)
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) namespaces: Namespaces,
    #[command(flatten)]
    pub(crate) output: OutputOnly,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Plan for these manifests instead of what is there
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) namespaces: Namespaces,
    #[command(flatten)]
    pub(crate) output: OutputOnly,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name of the server
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Past lines to begin with
    #[arg(long, value_name = "LINES", default_value_t = 1000)]
    pub(crate) tail: usize,
    /// Only lines that match this regular expression
    #[arg(long, value_name = "PATTERN")]
    pub(crate) grep: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct HubChoice {
    /// Name of the hub
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) hub: String,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
}

#[derive(Debug, Args)]
pub(crate) struct Tools {
    /// Only tools of this server, under its own names
    pub(crate) server: Option<String>,
    #[command(flatten)]
    pub(crate) hub: HubChoice,
    #[command(flatten)]
    pub(crate) output: OutputOnly,
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Server and tool, as SERVER/TOOL
    #[arg(value_name = "SERVER/TOOL")]
    pub(crate) tool: String,
    /// Argument: `key=text` (read as the tool's schema says), or `key:=JSON`
    #[arg(short, long = "arg", value_name = "KEY=VALUE")]
    pub(crate) args: Vec<String>,
    /// All arguments as one JSON object; `-` reads it from stdin
    #[arg(long, value_name = "OBJECT", conflicts_with = "args")]
    pub(crate) json: Option<String>,
    /// Longest wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = timeout)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) hub: HubChoice,
    #[command(flatten)]
    pub(crate) output: OutputOnly,
}

#[derive(Debug, Args)]
pub(crate) struct Endpoint {
    #[command(flatten)]
    pub(crate) hub: HubChoice,
    /// What to print: the URL, the token, or both as JSON
    #[arg(short, long, value_enum, default_value_t = EndpointPart::Url)]
    pub(crate) output: EndpointPart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointPart {
    Url,
    Token,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Stdio {
    #[command(flatten)]
    pub(crate) hub: HubChoice,
    /// Only this server, under its own names
    #[arg(long, value_name = "NAME")]
    pub(crate) server: Option<String>,
    #[command(flatten)]
    pub(crate) start: Start,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Store a value, read from stdin
    Set(SecretName),
    /// List names and keys, never values
    List(OutputOnly),
    /// Delete a value
    Delete(SecretName),
}

#[derive(Debug, Args)]
pub(crate) struct SecretName {
    /// Name of the secret, as in secretRef.name
    pub(crate) name: String,
    /// Key in the secret, as in secretRef.key
    #[arg(default_value = "value")]
    pub(crate) key: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    #[test]
    fn every_flag_is_documented_lower_case_and_known_once() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {} has no help", argument.get_id(), command.get_name());
                if let Some(long) = argument.get_long() {
                    assert_eq!(long, long.to_lowercase());
                }
            }
            command.get_subcommands().for_each(walk);
        }
        Cli::command().debug_assert();
        walk(&Cli::command());
    }

    #[test]
    fn add_takes_a_url_or_a_command() {
        assert!(parse("mcpctl add a https://example.com/mcp").is_ok());
        let Ok(Command::Add(add)) = parse("mcpctl add a -e A=b -- npx -y tool --flag") else { panic!("not parsed") };
        assert_eq!(add.command, ["npx", "-y", "tool", "--flag"]);
        for wrong in ["mcpctl add a", "mcpctl add", "mcpctl add a https://x -- y", "mcpctl add a -e A=b https://x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_this_machine_or_a_cluster_and_may_stand_anywhere() {
        let target = |line: &str| Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.target);
        let cluster = |context: Option<&str>| Place::Kubernetes { context: context.map(str::to_owned) };
        assert_eq!(target("mcpctl --target local status").unwrap(), Place::Local);
        assert_eq!(target("mcpctl status --target kubernetes").unwrap(), cluster(None));
        let arn = "arn:aws:eks:eu:1:cluster/a";
        assert_eq!(target(&format!("mcpctl --target kubernetes/{arn} get servers")).unwrap(), cluster(Some(arn)));
        for wrong in ["docker", "kubernetes/", "local/x", ""] {
            assert!("x".parse::<Place>().is_err() && wrong.parse::<Place>().is_err(), "{wrong}");
        }
        assert!(target("mcpctl get servers -A -n x").is_err());
    }

    #[test]
    fn images_go_to_one_place() {
        assert!(parse("mcpctl publish-images --registry localhost:5000/team").is_ok());
        assert!(parse("mcpctl bundle load images.tar --registry ghcr.io/me").is_ok());
        assert!(parse("mcpctl bundle load images.tar --runtime podman").is_ok());
        for wrong in ["--runtime docker --registry ghcr.io/me", "--runtime docker --plain-http a.io"] {
            assert!(parse(&format!("mcpctl bundle load images.tar {wrong}")).is_err(), "{wrong}");
        }
        for wrong in ["publish-images", "publish-images --registry team", "bundle load images.tar", "bundle save"] {
            assert!(parse(&format!("mcpctl {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_timeout_needs_something_to_wait_for_and_some_time() {
        assert!(parse("mcpctl up --wait --timeout 30s").is_ok());
        for wrong in ["mcpctl up --timeout 30s", "mcpctl up --wait --timeout 0s", "mcpctl up --wait --timeout soon"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
