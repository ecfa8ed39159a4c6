//! `mcp-runner`: the program of the runner image, in which a cluster runs packages.
//!
//! - `mcp-runner install FOLDER npm|pypi NAME VERSION [EXECUTABLE]`: installs the package, as a pod's init container.
//! - `mcp-runner start FOLDER [ARG]...`: becomes the package's program, with these arguments.
//!
//! Registries and proxies are told to npm and pip by variables of their own, and `MCP_RUNNER_CA` holds certificates of
//! authorities that they trust besides the public ones.
//!
//! Exit codes: 1 failure, 2 usage, 127 nothing to start.

mod pod;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mcp_hub_crds::source::{PackageRegistry, PackageSource};

#[derive(Debug, Parser)]
#[command(version, about = "Installs a package of npm or PyPI, and starts it")]
enum Verb {
    /// Install a package; the folder is the package's alone
    Install {
        folder: PathBuf,
        #[arg(value_parser = registry)]
        registry: PackageRegistry,
        name: String,
        version: String,
        executable: Option<String>,
    },
    /// Become the program of the package that was installed
    Start {
        folder: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn registry(word: &str) -> Result<PackageRegistry, String> {
    let known = [PackageRegistry::Npm, PackageRegistry::Pypi];
    known.into_iter().find(|registry| registry.as_str() == word).ok_or_else(|| "it is npm or pypi".to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Verb::parse() {
        Verb::Install { folder, registry, name, version, executable } => {
            let source = PackageSource { registry, name, version: Some(version), executable };
            match pod::install(&folder, &source).await {
                Ok(installed) => {
                    say(&format!("installed {} {}", source.name, installed.version));
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    pod::leave_word(&error);
                    say(&format!("error: {}", error.chain()));
                    ExitCode::FAILURE
                }
            }
        }
        // Returns only if nothing was started; the message becomes the server's last line of stderr.
        Verb::Start { folder, args } => {
            say(&format!("error: {}", pod::start(&folder, &args)));
            ExitCode::from(127)
        }
    }
}

/// One line to stderr.
fn say(text: &str) {
    // A closed stderr leaves nobody to tell.
    writeln!(std::io::stderr(), "{text}").unwrap_or_default();
}
