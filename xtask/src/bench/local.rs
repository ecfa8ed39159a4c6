//! `cargo xtask bench local`: what one machine pays for the hub. Writes `docs/src/benchmarks/local.json` with the raw
//! numbers and prints the ratios.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::mcp::{Session, bare};
use super::{median, process};
use crate::mcpctl::{Mcpctl, Profile};
use crate::shell::{self, Error};

const RUNS: usize = 9;
/// The idle daemon is watched this long.
const IDLE: Duration = Duration::from_secs(20);

/// A server's command as the hub starts it.
struct Server {
    argv: Vec<String>,
    folder: PathBuf,
}

pub(crate) fn run() -> Result<(), Error> {
    let home = shell::target().join("bench-local");
    let manifests = shell::root().join("examples/quickstart");
    let manifest = manifests.to_string_lossy().into_owned();
    let mcpctl = Mcpctl::build(home.clone(), Profile::Release)?;
    let up = ["up", "--detach", "--file", &manifest, "--wait", "--timeout", "8m"];
    // Installs what is not installed yet, and tells what is run.
    shell::run(&mut mcpctl.command(&up))?;
    let servers = resolved(&mcpctl, &manifests)?;
    shell::run(&mut mcpctl.command(&["down"]))?;

    let (mut bare_seconds, mut hub_seconds) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bare_seconds.push(all_bare(&servers)?);
        let start = Instant::now();
        shell::output(&mut mcpctl.command(&up))?;
        hub_seconds.push(start.elapsed().as_secs_f64());
        shell::output(&mut mcpctl.command(&["down"]))?;
    }

    shell::output(&mut mcpctl.command(&up))?;
    let version: Value = parsed(&mcpctl, &["version", "-o", "json"])?;
    let daemon = u32::try_from(version["daemon"]["pid"].as_u64().unwrap_or_default()).unwrap_or_default();
    let endpoint: Value = parsed(&mcpctl, &["endpoint", "-o", "json"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (url, token) = (text(&endpoint["url"]), text(&endpoint["token"]));

    let before = process::cpu_seconds(daemon);
    thread::sleep(IDLE);
    let idle_cpu = (process::cpu_seconds(daemon) - before) / IDLE.as_secs_f64();
    let bridges: Vec<f64> = process::with(&format!("{}/cache/bridges", home.display()), "cmdline")
        .into_iter()
        .map(process::rss_mb)
        .collect();
    let status: Vec<f64> = (0..30)
        .map(|_| {
            let start = Instant::now();
            shell::output(&mut mcpctl.command(&["status"]))?;
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        })
        .collect::<Result<_, Error>>()?;

    let session = Session::open(&url.replace("/mcp", "/servers/units/mcp"), &token)?;
    let arguments = json!({"value": 1, "from": "km", "to": "m"});
    let own_start = start_millis(&mcpctl, "units")?;
    let mut back = Vec::new();
    for _ in 0..RUNS {
        session.until_answered("convert", &arguments)?;
        kill_server(&mcpctl, "units")?;
        back.push(session.until_answered("convert", &arguments)?.as_secs_f64() * 1000.0);
        // A run shorter than a minute counts towards a crash loop; this is what leaves it.
        shell::output(&mut mcpctl.command(&["restart", "units", "--wait"]))?;
    }

    let report = json!({
        "five_servers_seconds": {"bare": bare_seconds, "hub": hub_seconds},
        "daemon": {"rss_mb": process::rss_mb(daemon), "idle_cores": idle_cpu},
        "bridge_rss_mb": bridges,
        "status_ms": status,
        "killed_server_back_ms": {"own_start": own_start, "back": back},
    });
    print(&report);
    let path = shell::root().join("docs/src/benchmarks/local.json");
    let failed = |source| Error::File { action: "write", path: path.clone(), source };
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    std::fs::write(&path, format!("{report:#}\n")).map_err(failed)
}

fn parsed(mcpctl: &Mcpctl, args: &[&str]) -> Result<Value, Error> {
    let text = shell::output(&mut mcpctl.command(args))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Output { command: format!("mcpctl {}", args.join(" ")), message: error.to_string() })
}

fn resolved(mcpctl: &Mcpctl, base: &Path) -> Result<Vec<Server>, Error> {
    let list = parsed(mcpctl, &["get", "servers", "-o", "json"])?;
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let servers = list["items"].as_array().into_iter().flatten().map(|server| {
        let mut argv = words(&server["status"]["resolved"]["command"]);
        argv.extend(words(&server["spec"]["args"]));
        Server { argv, folder: base.to_owned() }
    });
    Ok(servers.collect())
}

/// Seconds until every server, spawned at once, has answered `tools/list`.
fn all_bare(servers: &[Server]) -> Result<f64, Error> {
    let start = Instant::now();
    let running = thread::scope(|scope| {
        let threads: Vec<_> = servers.iter().map(|server| scope.spawn(|| bare(&server.argv, &server.folder))).collect();
        let gone = || Error::Output { command: "a bare server".to_owned(), message: "its thread panicked".to_owned() };
        threads.into_iter().map(|thread| thread.join().map_err(|_| gone())?).collect::<Result<Vec<_>, Error>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    drop(running);
    Ok(seconds)
}

fn start_millis(mcpctl: &Mcpctl, name: &str) -> Result<Value, Error> {
    Ok(parsed(mcpctl, &["get", "servers", name, "-o", "json"])?["status"]["server"]["startMillis"].clone())
}

/// Kills the server's own process by its id, found by the owner mark that only it and its children carry.
fn kill_server(mcpctl: &Mcpctl, name: &str) -> Result<(), Error> {
    let server = parsed(mcpctl, &["get", "servers", name, "-o", "json"])?;
    let uid = server["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    for pid in process::with(&format!("/{uid}"), "environ") {
        shell::output(std::process::Command::new("kill").args(["-9", &pid.to_string()]))?;
    }
    Ok(())
}

fn print(report: &Value) {
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
    let (bare, hub) = (
        median(&numbers(&report["five_servers_seconds"]["bare"])),
        median(&numbers(&report["five_servers_seconds"]["hub"])),
    );
    let killed = &report["killed_server_back_ms"];
    let lines = [
        format!("five servers ready: bare {bare:.2} s, hub {hub:.2} s, goal {:.2} s", bare * 1.15 + 0.1),
        format!(
            "daemon: {:.1} MB, {:.4} cores idle",
            report["daemon"]["rss_mb"].as_f64().unwrap_or_default(),
            report["daemon"]["idle_cores"].as_f64().unwrap_or_default()
        ),
        format!("bridge: {:.1} MB", median(&numbers(&report["bridge_rss_mb"]))),
        format!("mcpctl status: {:.1} ms", median(&numbers(&report["status_ms"]))),
        format!(
            "killed server: back in its session after {:.0} ms, its own start {} ms",
            median(&numbers(&killed["back"])),
            killed["own_start"]
        ),
    ];
    lines.iter().for_each(|line| shell::say(line));
}
