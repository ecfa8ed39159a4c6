//! Clusters whose owner ended badly.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use mcp_hub_test_cluster::{Cluster, Error, Options, Part, Record, Shape};
use support::{Traces, eventually};

/// Tells a process of this file which cluster it is for.
const NAME_VARIABLE: &str = "MCP_HUB_TEST_OWNER";

#[test]
fn a_panic_takes_the_cluster_down() {
    let panicked = std::thread::spawn(|| {
        let cluster = Cluster::up(Options::new(Shape::ApiServer)).unwrap();
        std::panic::panic_any(Traces::of(&cluster));
    });
    let traces = panicked.join().unwrap_err().downcast::<Traces>().unwrap();
    assert_eq!(traces.processes.len(), 2);
    traces.assert_gone();
}

#[test]
fn a_cluster_whose_owner_was_killed_is_taken_down_by_the_next_and_one_with_an_owner_is_not() {
    let living = Owner::start("living");
    let killed = Owner::start("killed");
    let abandoned = killed.kill();
    assert!(abandoned.processes.iter().all(Record::lives), "a killed owner takes nothing with it: {abandoned:?}");

    let next = Cluster::up(Options::new(Shape::ApiServer)).unwrap();
    abandoned.assert_gone();
    assert!(living.traces.processes.iter().all(Record::lives), "{:?}", living.traces);
    drop(next);

    let name = living.name.clone();
    let taken = Cluster::up(Options { name: Some(name.clone()), ..Options::new(Shape::ApiServer) });
    assert!(matches!(taken, Err(Error::AlreadyUp(_))), "{taken:?}");
    let abandoned = living.kill();
    Cluster::down_named(&name).unwrap();
    abandoned.assert_gone();
}

#[test]
fn a_detached_cluster_stays_until_it_is_taken_down() {
    let name = format!("detached-{}", std::process::id());
    let options = Options { name: Some(name.clone()), ..Options::new(Shape::ApiServer) };
    let _end = Detached(&name);
    let mut door = own_test("door_until_killed", &name);
    door.stdin(Stdio::null());
    drop(Cluster::up(options).unwrap().detach(door).unwrap());

    // Another cluster takes down what nobody owns, and this one is meant to be left.
    drop(Cluster::up(Options::new(Shape::ApiServer)).unwrap());
    let cluster = Cluster::attach(&name).unwrap();
    assert!(cluster.is_ready());
    let traces = Traces::of(&cluster);
    assert_eq!(traces.processes.len(), 3, "with its door: {traces:?}");
    cluster.kill(Part::ApiServer).unwrap();
    cluster.start(Part::ApiServer).unwrap();
    eventually("the API server is ready again", || cluster.is_ready().then_some(()).ok_or_else(String::new));
    drop(cluster);

    Cluster::down_named(&name).unwrap();
    traces.assert_gone();
    assert!(matches!(Cluster::attach(&name), Err(Error::NotUp(_))));
}

#[test]
#[ignore = "the process of a test above, which starts it and kills it"]
fn door_until_killed() {
    Cluster::hold_door(&std::env::var(NAME_VARIABLE).unwrap()).unwrap();
}

#[test]
#[ignore = "the process of a test above, which starts it and kills it"]
fn owner_until_killed() {
    let name = std::env::var(NAME_VARIABLE).unwrap();
    let _cluster = Cluster::up(Options { name: Some(name), ..Options::new(Shape::ApiServer) }).unwrap();
    // Past the test runner, which captures what tests print.
    std::io::stderr().write_all(b"owned\n").unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// A test of this file as a process, for the cluster of this name.
fn own_test(test: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", test, "--nocapture"]).env(NAME_VARIABLE, name);
    command
}

/// Taken down also when the test fails, since nobody owns it.
struct Detached<'a>(&'a str);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        Cluster::down_named(self.0).unwrap();
    }
}

/// Another process with a cluster of its own.
struct Owner {
    process: Child,
    traces: Traces,
    name: String,
}

impl Owner {
    fn start(kind: &str) -> Self {
        let name = format!("{kind}-{}", std::process::id());
        let mut command = own_test("owner_until_killed", &name);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        let said: Vec<String> = lines.take_while(|line| line != "owned").collect();
        let cluster = Cluster::attach(&name);
        let traces = Traces::of(&cluster.unwrap_or_else(|error| panic!("{error}: {said:#?}")));
        Self { process, traces, name }
    }

    fn kill(mut self) -> Traces {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.traces
    }
}
