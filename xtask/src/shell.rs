//! Running programs, and saying so.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not start `{program}`: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("`{command}` failed ({status})")]
    Failed { command: String, status: std::process::ExitStatus },
    #[error("could not {action} {path}: {source}", path = .path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{command}` printed something unexpected: {message}")]
    Output { command: String, message: String },
    #[error("{0} is stale; renew it with `cargo xtask generate`")]
    Stale(String),
    #[error("no test level `{name}` (there are: {levels})")]
    NoLevel { name: String, levels: String },
    #[cfg(target_os = "linux")]
    #[error("this cannot be installed from here: {0}")]
    ByHand(&'static str),
    #[cfg(target_os = "linux")]
    #[error("{}", chain(.0))]
    Cluster(#[from] mcp_hub_test_cluster::Error),
    #[error("no image `{name}` (there are: {images})")]
    NoImage { name: String, images: String },
    #[error("{}", .0.join("\nerror: "))]
    Several(Vec<String>),
}

/// An error with its causes, in one line.
#[cfg(target_os = "linux")]
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Root of the checkout.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo, started in the root of the checkout.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Builds every program of the workspace, as tests use them. All at once: a package alone gives what it depends on other
/// features than the whole has, and a hundred crates are compiled again.
pub(crate) fn programs() -> Result<(), Error> {
    run(&mut cargo(&["build", "--locked", "--workspace", "--bins"]))
}

/// Runs to the end with inherited streams.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    say(&format!("$ {}", line(command)));
    let status = command.status().map_err(|source| Error::Start { program: program(command), source })?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: line(command), status }) }
}

/// Runs to the end and returns stdout.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start { program: program(command), source })?;
    if !output.status.success() {
        return Err(Error::Failed { command: line(command), status: output.status });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One line to stderr, which is where everything but data goes.
pub(crate) fn say(text: &str) {
    // A closed stderr leaves nobody to tell.
    writeln!(std::io::stderr(), "{text}").unwrap_or_default();
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The command as a reader would type it: programs without their folders.
fn line(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
