//! One measurement: the load against one endpoint, and what it cost whoever stands in the middle.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use mcp_hub_dataplane_api::Era;
use serde_json::Value;

use super::process;
use super::stage::TOKEN;
use crate::shell::{self, Error};

/// What is asked, and by how many at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) era: Era,
    pub(super) connections: usize,
    /// Bytes wanted of a tool; `None` lists the tools.
    pub(super) bytes: Option<usize>,
}

/// Who is asked.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) path: String,
    /// What the tool is called there.
    pub(super) tool: String,
    /// The process in the middle, whose processor time is measured.
    pub(super) pid: Option<u32>,
}

/// What one measurement gave.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Processor time of the process in the middle for each answer.
    pub(super) cpu_us: Option<f64>,
}

impl Ask {
    fn args(&self, tool: &str, seconds: f64) -> Vec<String> {
        let era = if self.era == Era::Legacy { "legacy" } else { "modern" };
        let mut args: Vec<String> = ["--era", era, "--tool", tool, "--seconds"].map(str::to_owned).into();
        args.push(seconds.to_string());
        if let Some(bytes) = self.bytes {
            args.extend(["--call".to_owned(), bytes.to_string()]);
        }
        args
    }
}

impl Endpoint {
    fn args(&self) -> [String; 6] {
        ["--address", &self.address.to_string(), "--path", &self.path, "--token", TOKEN].map(str::to_owned)
    }

    /// Asks for so many seconds.
    pub(super) fn measure(&self, peers: &Path, ask: &Ask, seconds: f64) -> Result<Figures, Error> {
        let mut command = Command::new(peers);
        command.arg("load").args(self.args()).args(["--connections", &ask.connections.to_string()]);
        let before = self.pid.map(process::cpu_seconds);
        let report = report(command.args(ask.args(&self.tool, seconds)))?;
        let after = self.pid.map(process::cpu_seconds);
        let total = report["total"].as_f64().unwrap_or_default();
        let cpu_us = before.zip(after).map(|(before, after)| (after - before) * 1e6 / total);
        Ok(Figures { cpu_us, ..figures(&report) })
    }

    /// Opens sessions and leaves them open.
    pub(super) fn open_sessions(&self, peers: &Path, count: usize) -> Result<(), Error> {
        report(Command::new(peers).arg("sessions").args(self.args()).args(["--count", &count.to_string()])).map(drop)
    }
}

/// The echo server on stdio, asked over its own pipes.
pub(super) fn measure_pipe(peers: &Path, ask: &Ask, seconds: f64) -> Result<Figures, Error> {
    let mut command = Command::new(peers);
    command.args(["pipe", "--depth", &ask.connections.to_string()]).args(ask.args("echo", seconds));
    Ok(figures(&report(&mut command)?))
}

fn figures(report: &Value) -> Figures {
    let number = |name: &str| report[name].as_f64().unwrap_or_default();
    Figures { per_second: number("per_second"), p50_us: number("p50_us"), p99_us: number("p99_us"), cpu_us: None }
}

fn report(command: &mut Command) -> Result<Value, Error> {
    let text = shell::output(command)?;
    serde_json::from_str(&text).map_err(|error| Error::Output {
        command: command.get_program().to_string_lossy().into_owned(),
        message: error.to_string(),
    })
}
