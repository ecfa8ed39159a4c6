//! The other ends of the benchmarks: an echo MCP server on HTTP and on stdio, a bare HTTP pass-through, and the load;
//! and what people and pods do to an operator.
//!
//! Whatever is measured stands between `load` and `backend` (or `stdio`), all on the same cores. The load and the servers
//! do as little as they can, so that most of a ratio is what stands between them.

mod backend;
mod client;
mod cluster;
mod echo;
mod load;
mod message;
mod pipe;
mod samples;
mod stdio;
mod through;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Echo server on HTTP: `/N/mcp` offers N tools
    Backend {
        /// Port on 127.0.0.1
        #[arg(long)]
        port: u16,
    },
    /// Pass every request on with nothing but hyper
    Through {
        /// Port on 127.0.0.1
        #[arg(long)]
        port: u16,
        /// Where to
        #[arg(long)]
        to: SocketAddr,
    },
    /// Echo server on stdin and stdout
    Stdio {
        /// Tools to offer
        #[arg(long, default_value_t = 10)]
        tools: usize,
    },
    /// Ask an endpoint again and again; prints one line of JSON
    Load(load::Plan),
    /// Open legacy sessions at an endpoint and leave them open; prints one line of JSON
    Sessions(load::Sessions),
    /// Ask `stdio` again and again over its own pipes; prints one line of JSON
    Pipe(pipe::Plan),
    /// Answer as the bridges of all pods that have this address
    Bridges {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Use the cluster that KUBECONFIG names as people do; prints one line of JSON
    Cluster {
        #[command(subcommand)]
        verb: cluster::Verb,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().role {
        Role::Backend { port } => everywhere().and_then(|runtime| runtime.block_on(backend::serve(port))),
        Role::Through { port, to } => everywhere().and_then(|runtime| runtime.block_on(through::serve(port, to))),
        Role::Stdio { tools } => stdio::serve(tools),
        Role::Load(plan) => alone().and_then(|runtime| print(&runtime.block_on(load::run(plan))?)),
        Role::Sessions(plan) => alone().and_then(|runtime| print(&runtime.block_on(load::open_sessions(plan))?)),
        Role::Bridges { listen } => alone().and_then(|runtime| runtime.block_on(cluster::bridges::serve(listen))),
        Role::Cluster { verb } => alone().and_then(|runtime| print(&runtime.block_on(cluster::run(verb))?)),
        Role::Pipe(plan) => pipe::run(&plan).and_then(|report| print(&report)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            writeln!(io::stderr(), "error: {error}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

/// As a server runs: a thread for each core.
fn everywhere() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// One thread, so that the load is the same whatever the machine.
fn alone() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn print(report: &serde_json::Value) -> io::Result<()> {
    writeln!(io::stdout(), "{report}")
}
