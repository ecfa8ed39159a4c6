//! `cargo xtask bench operator`: what an operator costs a cluster, and how soon it acts.
//!
//! A real control plane; KWOK plays nodes and pods, one stand-in answers as the bridge of all of them, so that servers
//! become Ready. Writes are counted in the API server's audit log, by user agent, without leases. Writes
//! `docs/src/benchmarks/operator.json`, each part its own section, and prints the goals.

mod audit;
mod scene;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::audit::Counts;
use self::scene::{Build, Scene};
use super::median;
use crate::shell::{self, Error};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Little of everything, to see that it works; writes no file
    #[arg(long)]
    quick: bool,
    /// This part only; the others' sections of the file stay
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Rounds of settling, each with the operator and with the bare loop
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Steps of growing: so many servers in all
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [300, 500, 1000, 2000, 5000])]
    steps: Vec<usize>,
    /// Folder with `mcp-hub-operator` and `bench-peers` of an earlier build, measured instead; writes no file
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Writes for new servers, at rest, after a restart, and for a hub
    Writes,
    /// Time beside a bare loop that makes the same writes
    Settle,
    /// Time and memory up to thousands of servers, and how soon a change of one shows there
    Grow,
}

impl Part {
    const ALL: [Self; 3] = [Self::Writes, Self::Settle, Self::Grow];

    fn name(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Settle => "settle",
            Self::Grow => "grow",
        }
    }
}

/// Goals for a new server.
const WRITES: f64 = 5.0;
const EVENTS: f64 = 2.0;

pub(crate) fn run(plan: &Plan) -> Result<(), Error> {
    let build = plan.programs.as_deref().map_or_else(Build::release, |folder| Ok(Build::kept(folder)))?;
    for part in Part::ALL.into_iter().filter(|part| plan.part.is_none_or(|only| only == *part)) {
        let section = match part {
            Part::Writes => writes(&build, plan.quick),
            Part::Settle => settle(&build, plan),
            Part::Grow => grow(&build, plan),
        }?;
        shell::say(&format!("{}: {section:#}", part.name()));
        if !plan.quick && plan.programs.is_none() {
            keep(part, section)?;
        }
    }
    Ok(())
}

/// Puts a part's section into the file.
fn keep(part: Part, section: Value) -> Result<(), Error> {
    let path = shell::root().join("docs/src/benchmarks/operator.json");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    // A file that cannot be read is written anew.
    let mut sections: BTreeMap<String, Value> = serde_json::from_str(&old).unwrap_or_default();
    sections.insert(part.name().to_owned(), section);
    std::fs::write(&path, format!("{:#}\n", json!(sections))).map_err(|source| Error::File {
        action: "write",
        path,
        source,
    })
}

/// Nothing was written for so long.
const QUIET: Duration = Duration::from_secs(5);

fn writes(build: &Build, quick: bool) -> Result<Value, Error> {
    let mut scene = Scene::set(build, 2)?;
    scene.start_operator()?;
    let mut servers = 0;
    let mut added = Vec::new();
    for count in if quick { [1, 5, 20] } else { [1, 50, 300] } {
        added.push(add(&mut scene, &mut servers, count)?);
        let last = &added[added.len() - 1];
        say_goal(&format!("writes for each of {count} new servers"), &last["writes_each"], WRITES);
        say_goal(&format!("Events for each of {count} new servers"), &last["events_each"], EVENTS);
    }
    scene.make_hub()?;
    scene.quiet(QUIET)?;
    let with_hub = add(&mut scene, &mut servers, if quick { 20 } else { 300 })?;
    scene.remove_hub()?;
    scene.quiet(QUIET)?;
    let (all, idle) = if quick { (60, Duration::from_secs(15)) } else { (1000, Duration::from_secs(180)) };
    let rest = all - servers;
    add(&mut scene, &mut servers, rest)?;
    let at_rest = scene.writes_within(idle)?;
    say_goal(&format!("writes in {} s at rest with {all} servers", idle.as_secs()), &json!(at_rest.total()), 0.0);
    let restart = restart(&mut scene, servers)?;
    say_goal(&format!("writes after a restart with {all} servers"), &restart["writes"], 0.0);
    Ok(json!({
        "new_servers": added,
        "new_servers_with_a_hub": with_hub,
        "at_rest": {"servers": servers, "seconds": idle.as_secs(), "writes": at_rest.total(), "kinds": at_rest.0},
        "restart": restart,
    }))
}

/// Adds servers and counts what was written until nothing is any more.
fn add(scene: &mut Scene, servers: &mut usize, count: usize) -> Result<Value, Error> {
    let before = scene.audit.position();
    let took = scene.create(*servers, count)?;
    *servers += count;
    scene.quiet(QUIET)?;
    let counts = scene.audit.since(before)?;
    let each = |number: usize| (number * 1000 / count) as f64 / 1000.0;
    Ok(json!({
        "servers": count,
        "writes_each": each(counts.of_servers()),
        "events_each": each(counts.events()),
        "hub_writes": counts.of_hubs(),
        "ready_seconds": took["ready_seconds"],
        "kinds": counts.0,
    }))
}

/// Kills the operator and starts it again; counts what it writes until it has looked at every server.
fn restart(scene: &mut Scene, servers: usize) -> Result<Value, Error> {
    let before = scene.audit.position();
    scene.kill_operator();
    let begun = Instant::now();
    scene.start_operator()?;
    scene.passes_over(servers)?;
    let looked = begun.elapsed().as_secs_f64();
    scene.quiet(QUIET)?;
    let counts = scene.audit.since(before)?;
    Ok(
        json!({"servers": servers, "seconds": looked, "writes": counts.total(), "kinds": counts.0, "mb": scene.rss_mb()}),
    )
}

fn settle(build: &Build, plan: &Plan) -> Result<Value, Error> {
    let mut scene = Scene::set(build, 2)?;
    let count = if plan.quick { 20 } else { 300 };
    scene.start_operator()?;
    let model = scene.model()?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..if plan.quick { 1 } else { plan.rounds } {
        // A fresh operator each time, as the loop is.
        scene.kill_operator();
        scene.start_operator()?;
        ours.push(scene.create(0, count)?["ready_seconds"].clone());
        scene.quiet(QUIET)?;
        scene.clear()?;
        scene.kill_operator();
        bare.push(scene.replay(&model, count)?["ready_seconds"].clone());
        scene.clear()?;
    }
    let middle = |values: &[Value]| median(&values.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
    let ratio = middle(&ours) / middle(&bare);
    say_goal(&format!("time until {count} servers are Ready, of the bare loop's"), &json!(ratio), 1.2);
    Ok(json!({"servers": count, "operator_seconds": ours, "bare_seconds": bare, "ratio": ratio}))
}

fn grow(build: &Build, plan: &Plan) -> Result<Value, Error> {
    let mut scene = Scene::set(build, 6)?;
    scene.start_operator()?;
    std::thread::sleep(Duration::from_secs(5));
    let idle = scene.rss_mb();
    say_goal("MB idle", &json!(idle), 20.0);
    let mut steps = Vec::new();
    let mut servers = 0;
    let quick = [10, 20, 40];
    for all in if plan.quick { &quick[..] } else { &plan.steps }.iter().copied() {
        let cpu = scene.cpu_seconds();
        let took = scene.create(servers, all - servers)?;
        let added = all - servers;
        servers = all;
        scene.quiet(QUIET)?;
        let cpu = scene.cpu_seconds() - cpu;
        steps.push(json!({
            "servers": all, "added": added, "ready_seconds": took["ready_seconds"],
            "ready_ms_each": took["ready_seconds"].as_f64().unwrap_or_default() * 1000.0 / added as f64,
            "cpu_ms_each": cpu * 1000.0 / added as f64, "mb": scene.rss_mb(), "peak_mb": scene.peak_mb(),
        }));
        shell::say(&format!("{}", steps[steps.len() - 1]));
    }
    let touched = scene.touch("s7")?;
    let middle = |value: &Value| {
        let values: Vec<f64> = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        json!(median(&values))
    };
    say_goal("ms until a change shows in the Deployment", &middle(&touched["changed_ms"]), 1000.0);
    for kind in ["Deployment", "Service", "NetworkPolicy"] {
        say_goal(&format!("ms until a deleted {kind} is back"), &middle(&touched["mended_ms"][kind]), 200.0);
    }
    let restart = restart(&mut scene, servers)?;
    say_goal(&format!("writes after a restart with {servers} servers"), &restart["writes"], 0.0);
    say_goal(&format!("MB after a restart with {servers} servers"), &restart["mb"], 100.0);
    Ok(json!({"idle_mb": idle, "steps": steps, "touched": touched, "restart": restart}))
}

fn say_goal(what: &str, measured: &Value, goal: f64) {
    let measured = measured.as_f64().unwrap_or(f64::INFINITY);
    let verdict = if measured <= goal { "" } else { ", MISSED" };
    shell::say(&format!("{what}: {measured:.2} (goal: at most {goal}{verdict})"));
}

/// A few servers with debug builds: the counts, which no busy machine changes, and no times.
pub(crate) fn check() -> Result<(), Error> {
    let mut scene = Scene::set(&Build::debug()?, 1)?;
    scene.start_operator()?;
    let mut failures = Vec::new();
    let mut expect = |what: &str, counts: &Counts, measured: usize, most: usize| {
        shell::say(&format!("{what}: {measured}, at most {most}"));
        if measured > most {
            failures.push(format!("{what}: {measured} writes, at most {most} are right: {counts:?}"));
        }
    };
    let servers = 20;
    let before = scene.audit.position();
    scene.create(0, servers)?;
    scene.quiet(QUIET)?;
    let counts = scene.audit.since(before)?;
    expect("20 new servers", &counts, counts.of_servers(), 5 * servers);
    expect("Events of 20 new servers", &counts, counts.events(), 2 * servers);

    let counts = scene.writes_within(Duration::from_secs(15))?;
    expect("at rest", &counts, counts.total(), 0);

    let before = scene.audit.position();
    scene.kill_operator();
    scene.start_operator()?;
    scene.passes_over(servers)?;
    scene.quiet(QUIET)?;
    let counts = scene.audit.since(before)?;
    expect("after a restart", &counts, counts.total(), 0);

    let before = scene.audit.position();
    scene.cluster.kubectl(["delete", "service", "mcp-s3"])?;
    scene.cluster.kubectl(["wait", "--for=create", "service/mcp-s3", "--timeout=60s"])?;
    scene.quiet(QUIET)?;
    let counts = scene.audit.since(before)?;
    expect("a deleted Service", &counts, counts.total(), 1);
    if failures.is_empty() { Ok(()) } else { Err(Error::Several(failures)) }
}
