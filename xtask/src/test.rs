//! `cargo xtask test`: every level of tests, each with what it needs.
//!
//! `tests/levels.txt` lists the levels that CI must have run. A level that is missing there, or one that did not run in
//! CI, is a failure, so that a level cannot be lost without a visible change.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

#[cfg(target_os = "linux")]
use mcp_hub_test_cluster::{Cluster, Options, Shape};

use crate::mcpctl::Mcpctl;
use crate::needs::Need;
use crate::shell::{self, Error};
use crate::{bench, clients, dist, fuzz, generate, images, quickstart};
#[cfg(target_os = "linux")]
use crate::{cluster, engines, kubernetes};

struct Level {
    name: &'static str,
    needs: &'static [Need],
    run: fn() -> Result<(), Error>,
}

const LEVELS: &[Level] = &[
    Level { name: "generated", needs: &[], run: || generate::run(true) },
    Level { name: "rust", needs: &[Need::Python], run: rust },
    Level { name: "fuzz", needs: &[Need::Cxx], run: fuzz::run },
    Level { name: "static-bridge", needs: &[Need::MuslTargets], run: static_bridge },
    Level { name: "images", needs: &IMAGE_NEEDS, run: images },
    Level { name: "soak", needs: &[], run: bench::soak::short },
    Level { name: "quickstart", needs: &[Need::Node, Need::Python], run: || quickstart::run(true) },
    Level { name: "e2e", needs: &[Need::Node, Need::Python, Need::Keyring], run: e2e },
    #[cfg(target_os = "linux")]
    Level { name: "engines", needs: &engines::NEEDS, run: engines::run },
    #[cfg(target_os = "linux")]
    Level { name: "cluster", needs: &cluster::NEEDS, run: cluster_tests },
    #[cfg(target_os = "linux")]
    Level { name: "kubernetes", needs: &kubernetes::NEEDS, run: kubernetes::run },
    #[cfg(target_os = "linux")]
    Level { name: "operator-writes", needs: &cluster::NEEDS, run: bench::operator::check },
];

pub(crate) fn run(setup: bool, only: &[String]) -> Result<(), Error> {
    let levels: Vec<&str> = LEVELS.iter().map(|level| level.name).collect();
    if let Some(name) = only.iter().find(|name| !levels.contains(&name.as_str())) {
        return Err(Error::NoLevel { name: name.clone(), levels: levels.join(", ") });
    }
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut ran = BTreeSet::new();
    let mut failures = Vec::new();
    let mut report = Vec::new();
    for level in LEVELS.iter().filter(|level| only.is_empty() || only.iter().any(|name| name == level.name)) {
        if let Some(need) = missing(level, setup) {
            report.push(format!("skipped  {} (needs {need})", level.name));
            if in_ci {
                failures.push(format!("level {} was skipped in CI: it needs {need}", level.name));
            }
            continue;
        }
        shell::say(&format!("--- level {}", level.name));
        let started = Instant::now();
        let outcome = (level.run)();
        let seconds = started.elapsed().as_secs();
        ran.insert(level.name);
        match outcome {
            Ok(()) => report.push(format!("passed   {} ({seconds} s)", level.name)),
            Err(error) => {
                report.push(format!("FAILED   {} ({seconds} s)", level.name));
                failures.push(format!("level {}: {error}", level.name));
            }
        }
    }
    report.iter().for_each(|line| shell::say(line));
    if only.is_empty() && in_ci {
        compare_with_list(&ran, &mut failures)?;
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::Several(failures)) }
}

/// The first need that is not there, after an attempt to bring it if `setup`: one that cannot be had here keeps no other
/// level from running.
fn missing(level: &Level, setup: bool) -> Option<String> {
    for need in level.needs.iter().filter(|need| !need.is_there()) {
        if !setup {
            return Some(need.hint().to_owned());
        }
        shell::say(&format!("level {} needs {}; installing it", level.name, need.hint()));
        if let Err(error) = need.install() {
            return Some(format!("{}; {error}", need.hint()));
        }
    }
    None
}

fn compare_with_list(ran: &BTreeSet<&str>, failures: &mut Vec<String>) -> Result<(), Error> {
    let path = shell::root().join("tests/levels.txt");
    let list = std::fs::read_to_string(&path).map_err(|source| Error::File { action: "read", path, source })?;
    let listed: BTreeSet<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    failures.extend(listed.difference(ran).map(|name| format!("level {name} of tests/levels.txt did not run")));
    failures.extend(ran.difference(&listed).map(|name| format!("level {name} ran but is not in tests/levels.txt")));
    Ok(())
}

/// Unit, property, snapshot, contract and integration tests of every crate but the whole-product ones.
fn rust() -> Result<(), Error> {
    // Tests start the binaries of other packages, which `cargo test` alone would not build.
    shell::programs()?;
    let mut test = shell::cargo(&["test", "--locked", "--workspace"]);
    // Those of the levels below.
    for package in [
        "mcp-hub-e2e",
        "mcp-hub-test-cluster",
        "mcp-hub-chart-tests",
        "mcp-hub-kubernetes-tests",
        "mcp-hub-engine-tests",
    ] {
        test.args(["--exclude", package]);
    }
    shell::run(&mut test)
}

/// The bridges of every target, and an `mcpctl` that works by itself because it carries them.
fn static_bridge() -> Result<(), Error> {
    let program = dist::carrying(&dist::programs()?, "dev")?;
    shell::programs()?;
    let units = shell::target().join("debug/units-server");
    let home = shell::target().join("carried");
    // What an interrupted run left would be followed, too.
    std::fs::remove_dir_all(&home).or_else(ignore_absent).map_err(|source| Error::File {
        action: "remove",
        path: home.clone(),
        source,
    })?;
    let mcpctl = Mcpctl::at(program, home);
    shell::run(&mut mcpctl.command(&["up", "--detach"]))?;
    shell::run(&mut mcpctl.command(&["add", "units", "--wait", "--", &units.to_string_lossy()]))?;
    let answer = shell::output(&mut mcpctl.command(&[
        "call",
        "units/convert",
        "--arg",
        "value=1",
        "--arg",
        "from=km",
        "--arg",
        "to=m",
    ]))?;
    match answer.contains("1000") {
        true => Ok(()),
        false => Err(Error::Output { command: "mcpctl call units/convert".to_owned(), message: answer }),
    }
}

/// Images of every program, read by the tool that everybody pushes with, what a real registry says of images, takes and
/// gives back, and a project of Compose that runs them.
const IMAGE_NEEDS: [Need; 6] = {
    let [targets, cc, node, debian] = images::NEEDS;
    [targets, cc, node, debian, Need::Registry, Need::Compose]
};

fn images() -> Result<(), Error> {
    for archive in images::for_tests()? {
        let archive = format!("oci-archive:{}", archive.display());
        let config = shell::output(Command::new("skopeo").args(["inspect", "--config", &archive]))?;
        // Numeric, as a pod that is not to run as root needs it.
        if !config.contains(r#""User": "65532:65532""#) {
            return Err(Error::Output { command: format!("skopeo inspect --config {archive}"), message: config });
        }
    }
    let test = ["test", "--locked", "--package", "mcp-hub-supply", "--test", "distribution", "--", "--ignored"];
    shell::run(&mut shell::cargo(&test))?;
    let test = ["test", "--locked", "--package", "mcp-hub-compose", "--test", "stories", "engine", "--", "--ignored"];
    shell::run(&mut shell::cargo(&test))
}

fn ignore_absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A real Kubernetes on this machine, and what only that can show.
#[cfg(target_os = "linux")]
fn cluster_tests() -> Result<(), Error> {
    // Tests of the operator find it beside themselves.
    shell::programs()?;
    shell::run(&mut shell::cargo(&["test", "--locked", "--package", "mcp-hub-test-cluster"]))?;
    // The fake API server is as good as its likeness to the real one.
    let real = Cluster::up(Options::new(Shape::ApiServer))?;
    let mut likeness = shell::cargo(&["test", "--locked", "--package", "mcp-hub-fakeapi", "--test", "same_as_real"]);
    let compared = shell::run(likeness.args(["--", "--ignored"]).env("MCP_HUB_TEST_KUBECONFIG", real.kubeconfig()));
    compared.and(real.down().map_err(Error::from))
}

/// Whole-product tests: mcpctl, real servers, real clients, faults.
fn e2e() -> Result<(), Error> {
    shell::programs()?;
    let clients = clients::install()?;
    shell::run(shell::cargo(&["test", "--locked", "--package", "mcp-hub-e2e"]).env("MCP_HUB_CLIENTS", clients))
}
