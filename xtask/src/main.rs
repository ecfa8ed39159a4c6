//! Commands of this repository, run as `cargo xtask COMMAND`.

mod bench;
mod certificates;
mod chart;
mod clients;
#[cfg(target_os = "linux")]
mod cluster;
mod dist;
#[cfg(target_os = "linux")]
mod engines;
mod errors_page;
mod fuzz;
mod generate;
mod images;
#[cfg(target_os = "linux")]
mod kubernetes;
mod mcpctl;
mod needs;
mod quickstart;
mod runner;
mod shell;
mod test;

use std::io::Write;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Commands of this repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build, start the servers of examples/quickstart, show what came up and a real answer of each
    Quickstart {
        /// End after that; exit code 0 only if every server that could run answered
        #[arg(long)]
        once: bool,
    },
    /// Run every test there is, level by level
    Test {
        /// Install or build what the tests need
        #[arg(long)]
        setup: bool,
        /// Run these levels only (all if none is given)
        #[arg(long, value_name = "NAME")]
        level: Vec<String>,
        /// Run the stories of level `kubernetes`, and nothing else, on this cluster, whose nodes have the images already
        #[cfg(target_os = "linux")]
        #[arg(long, value_name = "PATH", conflicts_with_all = ["setup", "level"])]
        kubeconfig: Option<PathBuf>,
    },
    /// Measure what the documentation promises, in a release build
    Bench {
        #[command(subcommand)]
        name: Bench,
    },
    /// A real Kubernetes cluster of one node on this machine, as the tests use it
    #[cfg(target_os = "linux")]
    Cluster {
        #[command(subcommand)]
        verb: cluster::Verb,
    },
    /// Build one mcpctl that carries the bridges of every target, in target/dist/release
    Dist,
    /// Build the product's images as OCI archives, from scratch
    Images(images::Plan),
    /// Write generated files: CRD YAML, the CLI reference, the support matrix, the table of error codes, objects of the chart for kustomize
    Generate {
        /// Write nothing; fail if a file is stale
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Start of five servers, idle costs, recovery of a killed server
    Local,
    /// Gateway and bridge beside a server asked directly, a bare pass-through, and another gateway
    Gateway(bench::gateway::Plan),
    /// What the operator writes, how soon it acts and how large it is, on a real control plane
    #[cfg(target_os = "linux")]
    Operator(bench::operator::Plan),
    /// Start of twenty servers in containers beside the bare containers, how soon an end is seen, and calls at rest
    #[cfg(target_os = "linux")]
    Docker(bench::docker::Plan),
    /// Whether gateway and bridge keep their size under a load that goes on
    Soak {
        /// How long
        #[arg(default_value_t = 30.0)]
        minutes: f64,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Quickstart { once } => quickstart::run(once),
        #[cfg(target_os = "linux")]
        Command::Test { kubeconfig: Some(kubeconfig), .. } => kubernetes::run_on(&kubeconfig),
        Command::Test { setup, level, .. } => test::run(setup, &level),
        Command::Bench { name: Bench::Local } => bench::local::run(),
        Command::Bench { name: Bench::Gateway(plan) } => bench::gateway::run(&plan),
        #[cfg(target_os = "linux")]
        Command::Bench { name: Bench::Operator(plan) } => bench::operator::run(&plan),
        #[cfg(target_os = "linux")]
        Command::Bench { name: Bench::Docker(plan) } => bench::docker::run(&plan),
        Command::Bench { name: Bench::Soak { minutes } } => bench::soak::run(minutes),
        #[cfg(target_os = "linux")]
        Command::Cluster { verb } => cluster::run(verb),
        Command::Dist => dist::run(),
        Command::Images(plan) => images::run(&plan),
        Command::Generate { check } => generate::run(check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            writeln!(std::io::stderr(), "error: {error}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}
