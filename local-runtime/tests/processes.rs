//! What the process runtime promises about processes: adoption, whole trees, limits, confinement, logs.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod place;

use std::time::Duration;

use futures::StreamExt;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_local_runtime::cgroup::Delegation;
use mcp_hub_reconcile::observed::{Observed, PrepareState};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{LogQuery, Runtime, RuntimeEvent};
use mcp_hub_reconcile::workload::Workload;
use place::{BRIDGE, PATIENCE, Place, bridges_on, is_ready, kill, marked, suspend, until, until_prepared, until_ready};
use serde_json::json;

/// All past lines of a server's log that the server itself wrote, without the time before each.
async fn log(runtime: &dyn Runtime, owner: &OwnerKey) -> Vec<String> {
    let query = LogQuery { tail: 100_000, follow: false };
    let lines: Vec<String> = runtime.console().logs(owner, query).await.expect("a log").collect().await;
    lines.into_iter().map(|line| line.split_once(' ').map_or(line.clone(), |(_, text)| text.to_owned())).collect()
}

/// Waits until the log has a line that begins like this; gives the line.
async fn logged(runtime: &dyn Runtime, owner: &OwnerKey, beginning: &str) -> String {
    let found = async {
        loop {
            if let Some(line) = log(runtime, owner).await.into_iter().find(|line| line.starts_with(beginning)) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("never logged: {beginning}"))
}

#[tokio::test]
async fn a_new_daemon_adopts_what_runs_and_hears_of_it() {
    let place = Place::new();
    let workload = place.resolved(&place.server("adopted", &[]));
    let first = place.runtime();
    place.apply(&*first, &workload).await;
    let before = until_ready(&*first, &workload.owner).await;
    drop(first);

    let second = place.runtime();
    let events = second.events();
    assert_eq!(second.owners().await.unwrap().as_slice(), std::slice::from_ref(&workload.owner));
    let after = until_ready(&*second, &workload.owner).await;
    assert_eq!((before.endpoint, before.activity.child_pid), (after.endpoint, after.activity.child_pid));

    kill(after.activity.child_pid.expect("a child"));
    let heard = events.any(|event| std::future::ready(event == RuntimeEvent::Changed(workload.owner.clone())));
    assert!(tokio::time::timeout(PATIENCE, heard).await.expect("an event"), "the adopted bridge's events are followed");
    let restarted = |observed: &_| is_ready(observed) && observed_restarts(observed) == 1;
    until(&*second, &workload.owner, "restarted by its bridge", restarted).await;
    place.remove(&*second, &workload.owner).await;
    assert_eq!(place.everything(), Vec::<String>::new());
}

fn observed_restarts(observed: &Observed) -> u64 {
    observed.bridge.as_ref().map_or(0, |bridge| bridge.restarts)
}

#[tokio::test]
async fn the_whole_tree_goes_even_what_left_its_session() {
    let place = Place::new();
    let runtime = place.runtime();
    let workload = place.resolved(&place.server("stray", &["stray"]));
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, &workload.owner).await;
    assert_eq!(place.remains(&workload.owner), ["bridge", "folder", "process", "process"]);
    place.remove(&*runtime, &workload.owner).await;
    assert_eq!(place.everything(), Vec::<String>::new());
}

#[tokio::test]
async fn strays_of_a_killed_bridge_go_before_its_successor_comes() {
    let place = Place::new();
    let runtime = place.runtime();
    let workload = place.resolved(&place.server("killed", &["stray"]));
    let owner = &workload.owner;
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, owner).await;
    let before = marked(&owner.id());
    let mut events = runtime.events();
    let bridges = bridges_on(&place.folder_of(owner).unwrap());
    bridges.into_iter().for_each(kill);
    // As the controller does: a pass after each event, and none without.
    while marked(&owner.id()).iter().any(|pid| before.contains(pid)) {
        assert!(tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").is_some());
        place.apply(&*runtime, &workload).await;
    }
    until_ready(&*runtime, owner).await;
    let after = marked(&owner.id());
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    assert_eq!(place.remains(owner), ["bridge", "folder", "process", "process"]);
}

#[tokio::test]
async fn a_server_dies_with_its_bridge() {
    let place = Place::new();
    let runtime = place.runtime();
    let workload = place.resolved(&place.server("orphan", &[]));
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, &workload.owner).await;
    bridges_on(&place.folder_of(&workload.owner).unwrap()).into_iter().for_each(kill);
    let gone = async {
        while !marked(&workload.owner.id()).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the server is gone");
}

#[tokio::test]
async fn a_bridge_that_hangs_is_ended_with_its_server_and_another_one_starts() {
    let place = Place::new();
    let workload = place.resolved(&place.server("hung", &[]));
    let runtime = place.runtime();
    place.apply(&*runtime, &workload).await;
    let before = until_ready(&*runtime, &workload.owner).await;
    let folder = place.folder_of(&workload.owner).expect("a folder");
    bridges_on(&folder).into_iter().for_each(suspend);

    let mute = |observed: &Observed| observed.failure.as_ref().is_some_and(|failure| failure.reason == "BridgeMute");
    until(&*runtime, &workload.owner, "mute", mute).await;
    until(&*runtime, &workload.owner, "ended", |observed| !mute(observed) && observed.bridge.is_none()).await;
    assert_eq!(marked(&workload.owner.id()), Vec::<u32>::new(), "the server ended with its bridge");
    place.apply(&*runtime, &workload).await;
    let after = until_ready(&*runtime, &workload.owner).await;
    assert_ne!(before.activity.child_pid, after.activity.child_pid);
    place.remove(&*runtime, &workload.owner).await;
    assert_eq!(place.everything(), Vec::<String>::new());
}

#[tokio::test]
async fn a_bridge_left_without_its_secrets_is_given_them_by_the_next_daemon() {
    let place = Place::new();
    place.secrets.set("login", "token", "hunter2");
    let runtime = place.runtime();
    let env = json!({"env": [{"name": "TOKEN", "secretRef": {"name": "login", "key": "token"}}]});
    let workload = place.resolved(&place.server_with("secret", &["environment", "TOKEN"], env));
    let owner = &workload.owner;
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, owner).await;
    assert_eq!(logged(&*runtime, owner, "TOKEN=").await, "TOKEN=hunter2");
    let folder = place.folder_of(owner).unwrap();
    for entry in std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "json"))
    {
        assert!(!std::fs::read_to_string(entry.path()).unwrap().contains("hunter2"), "{:?}", entry.path());
    }

    // A daemon that died between the spawn and the push leaves just this: a bridge that nobody gave anything.
    bridges_on(&folder).into_iter().for_each(kill);
    until(&*runtime, owner, "without a bridge", |observed| observed.bridge.is_none() && observed.failure.is_none())
        .await;
    let mut bridge = tokio::process::Command::new(&*BRIDGE).arg(&folder).env_clear().spawn().unwrap();
    let waits = |observed: &Observed| {
        observed.bridge.as_ref().is_some_and(|bridge| matches!(bridge.phase, Phase::WaitingForSecrets { .. }))
    };
    until(&*runtime, owner, "waiting for secrets", waits).await;
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, owner).await;
    bridge.wait().await.unwrap();
}

#[tokio::test]
async fn a_missing_secret_leaves_the_running_server_alone() {
    let place = Place::new();
    let runtime = place.runtime();
    let plain = place.resolved(&place.server("kept", &[]));
    place.apply(&*runtime, &plain).await;
    let before = until_ready(&*runtime, &plain.owner).await;
    let env = json!({"env": [{"name": "TOKEN", "secretRef": {"name": "login", "key": "token"}}]});
    let workload = place.resolved(&place.server_with("kept", &[], env));
    let lowered = runtime.lower(&Workload::Server(Box::new(workload.clone()))).unwrap();
    let step = mcp_hub_reconcile::ports::Step::Replace(lowered.objects[0].clone());
    let error = runtime.execute(&workload.owner, &step).await.unwrap_err();
    assert_eq!((error.reason, error.to_string().as_str()), ("SecretMissing", "secret `login` has no key `token`"));
    let after = until_ready(&*runtime, &plain.owner).await;
    assert_eq!(before.activity.child_pid, after.activity.child_pid);
}

#[tokio::test]
async fn a_server_that_exits_at_once_says_why() {
    let place = Place::new();
    let runtime = place.runtime();
    let workload = place.resolved(&place.server("exit", &["exit"]));
    place.apply(&*runtime, &workload).await;
    let crashed = |observed: &Observed| {
        observed.bridge.as_ref().is_some_and(|bridge| matches!(bridge.phase, Phase::CrashLoop { .. }))
    };
    let bridge = until(&*runtime, &workload.owner, "in a crash loop", crashed).await.bridge.unwrap();
    assert_eq!(bridge.stderr_tail.last().map(String::as_str), Some("fatal: no configuration"));
    assert!(bridge.last_error.as_deref().is_some_and(|error| error.contains("code 3")), "{bridge:?}");
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named_with_a_hint_and_looked_for_again_on_request() {
    let place = Place::new();
    let runtime = place.runtime();
    let mut server = place.server("nowhere", &[]);
    server.spec.source = serde_json::from_value(json!({"command": {"path": "./bin/no-such-program"}})).unwrap();
    server.metadata.annotations =
        Some([("mcphub.io/base-dir".to_owned(), place.path().to_string_lossy().into_owned())].into());
    let workload = place.workload(&server);
    place.apply(&*runtime, &workload).await;
    let PrepareState::Failed(failure) = until_prepared(&*runtime, &workload.owner).await else {
        panic!("it was found")
    };
    assert_eq!(failure.reason, "CommandNotFound");
    assert!(failure.message.ends_with("/bin/no-such-program"), "{}", failure.message);
    assert!(failure.hint.is_some());

    // The failure stands until its time comes: planning again does not start the next try.
    let again = mcp_hub_reconcile::plan::plan(
        &runtime.lower(&Workload::Server(Box::new(workload.clone()))).unwrap(),
        &runtime.observe(&workload.owner).await.unwrap(),
    );
    assert_eq!(again, []);

    std::fs::create_dir(place.path().join("bin")).unwrap();
    std::os::unix::fs::symlink(&*BRIDGE, place.path().join("bin/no-such-program")).unwrap();
    server.metadata.annotations.as_mut().unwrap().insert("mcphub.io/restarted-at".to_owned(), "now".to_owned());
    let workload = place.workload(&server);
    place.apply(&*runtime, &workload).await;
    let PrepareState::Done(resolved) = until_prepared(&*runtime, &workload.owner).await else { panic!("not found") };
    let program = place.path().join("bin/no-such-program").to_string_lossy().into_owned();
    assert_eq!(resolved.command, Some(vec![program]));
}

/// A place whose PATH holds only programs that do and say this.
fn place_with_tools(tools: &[(&str, &str)]) -> Place {
    use std::os::unix::fs::PermissionsExt;
    let mut place = Place::new();
    let bin = place.path().join("tools");
    std::fs::create_dir(&bin).unwrap();
    for (name, script) in tools {
        std::fs::write(bin.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    place.host.env.insert("PATH".to_owned(), bin.to_string_lossy().into_owned());
    place
}

async fn failed_package(place: &Place, package: serde_json::Value) -> mcp_hub_reconcile::observed::Failure {
    let runtime = place.runtime();
    let mut server = place.server("package", &[]);
    server.spec.source = serde_json::from_value(json!({"package": package})).unwrap();
    let workload = place.workload(&server);
    place.apply(&*runtime, &workload).await;
    match until_prepared(&*runtime, &workload.owner).await {
        PrepareState::Failed(failure) => failure,
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn a_package_that_does_not_exist_is_named_with_a_hint() {
    let place = place_with_tools(&[("node", ""), ("npm", "echo 'npm error code E404' >&2; exit 1")]);
    let failure = failed_package(&place, json!({"registry": "npm", "name": "no-such-server"})).await;
    assert_eq!(
        (failure.reason, failure.message.as_str()),
        ("PackageNotFound", "there is no package `no-such-server` in npm")
    );
    assert_eq!(failure.hint.as_deref(), Some("check spec.source.package.name and version"));
}

#[tokio::test]
async fn an_interpreter_that_is_not_installed_is_named_with_how_to_install_it() {
    let place = place_with_tools(&[]);
    for (registry, interpreter) in [("npm", "node"), ("pypi", "python3")] {
        let failure = failed_package(&place, json!({"registry": registry, "name": "server"})).await;
        assert_eq!(failure.reason, "InterpreterMissing");
        assert!(failure.message.starts_with(interpreter), "{}", failure.message);
        assert!(failure.hint.is_some_and(|hint| hint.contains("install")));
    }
}

#[tokio::test]
async fn an_installer_that_fails_is_quoted_and_leaves_nothing_half_installed() {
    let place = place_with_tools(&[("node", ""), ("npm", "/bin/mkdir half-done; echo 'disk on fire' >&2; exit 1")]);
    let failure = failed_package(&place, json!({"registry": "npm", "name": "server", "version": "1.0.0"})).await;
    assert_eq!(failure.reason, "InstallFailed");
    assert!(failure.message.contains("disk on fire"), "{}", failure.message);
    let left: Vec<_> = std::fs::read_dir(place.path().join("cache/packages/npm/server")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_memory_limit_is_in_force() {
    let place = Place::new();
    let runtime = place.runtime();
    let bytes = (256 << 20).to_string();
    for (limit, outcome) in [("1Gi", "allocating: done"), ("128Mi", "allocating: MemoryError")] {
        let limits = json!({"resources": {"limits": {"memory": limit}}});
        let workload = place.resolved(&place.server_with("limited", &["allocate", &bytes], limits));
        place.apply(&*runtime, &workload).await;
        until_ready(&*runtime, &workload.owner).await;
        assert_eq!(logged(&*runtime, &workload.owner, "allocating").await, outcome, "{limit}");
        place.remove(&*runtime, &workload.owner).await;
    }
}

/// The group is a folder here: what is written into it, and that the server joined it before it ran, is ours; what the
/// kernel makes of it is not.
#[tokio::test]
async fn with_a_delegated_control_group_limits_hold_for_all_processes_together() {
    let mut place = Place::new();
    let group = place.path().join("cgroup");
    std::fs::create_dir(&group).unwrap();
    place.host.cgroup = Some(Delegation { path: group.clone(), memory: true, cpu: true });
    let runtime = place.runtime();
    let limits = json!({"resources": {"limits": {"memory": "128Mi", "cpu": "1500m"}}});
    let workload = place.resolved(&place.server_with("limited", &[], limits));
    let lowered = runtime.lower(&Workload::Server(Box::new(workload.clone()))).unwrap();
    assert_eq!(lowered.degraded, []);
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, &workload.owner).await;
    let groups: Vec<_> = std::fs::read_dir(&group).unwrap().flatten().map(|entry| entry.path()).collect();
    let [own] = &groups[..] else { panic!("one group for one server: {groups:?}") };
    let read = |name: &str| std::fs::read_to_string(own.join(name)).unwrap();
    assert_eq!((read("memory.max"), read("cpu.max")), ("134217728".to_owned(), "150000 100000".to_owned()));
    assert_eq!(read("cgroup.procs"), "0", "the kernel takes 0 for the process that writes it");

    // Unlike the kernel's, these files have to be removed one by one.
    for file in std::fs::read_dir(own).unwrap().flatten() {
        std::fs::remove_file(file.path()).unwrap();
    }
    place.remove(&*runtime, &workload.owner).await;
    assert!(!own.exists(), "the group goes with its server");
}

#[tokio::test]
async fn the_file_system_is_confined_or_the_server_refused() {
    let place = Place::new();
    let runtime = place.runtime();
    let folder = |name: &str| {
        let path = place.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_string_lossy().into_owned()
    };
    let (open, readable, closed) = (folder("open"), folder("readable"), folder("closed"));
    let spec = |filesystem: &str| {
        json!({
            "permissions": {"filesystem": filesystem},
            "volumes": [
                {"name": "open", "hostPath": open, "mountPath": open},
                {"name": "readable", "hostPath": readable, "mountPath": readable, "readOnly": true},
            ],
        })
    };
    for (filesystem, reads_closed) in [("volumes", false), ("readOnly", true)] {
        let server = place.server_with("confined", &["files", &open, &readable, &closed], spec(filesystem));
        let workload = place.resolved(&server);
        if !place.host.landlock {
            // This kernel has no Landlock: a security field is refused, never left out.
            let refusal = runtime.lower(&Workload::Server(Box::new(workload))).unwrap_err();
            assert_eq!(refusal.field, "spec.permissions.filesystem");
            continue;
        }
        place.apply(&*runtime, &workload).await;
        until_ready(&*runtime, &workload.owner).await;
        let outcome = |allowed: bool| if allowed { "done" } else { "PermissionError" };
        let expected = [
            (format!("reading {open}"), true),
            (format!("writing {open}"), true),
            (format!("reading {readable}"), true),
            (format!("writing {readable}"), false),
            (format!("reading {closed}"), reads_closed),
            (format!("writing {closed}"), false),
        ];
        for (what, allowed) in expected {
            let line = logged(&*runtime, &workload.owner, &what).await;
            assert_eq!(line, format!("{what}: {}", outcome(allowed)), "{filesystem}");
        }
        place.remove(&*runtime, &workload.owner).await;
        std::fs::remove_file(place.path().join("open/written")).unwrap();
    }
}

#[tokio::test]
async fn without_landlock_a_confinement_is_refused() {
    let mut place = Place::new();
    place.host.landlock = false;
    let server = place.server_with("confined", &[], json!({"permissions": {"filesystem": "volumes"}}));
    let refusal = place.runtime().lower(&Workload::Server(Box::new(place.resolved(&server)))).unwrap_err();
    assert_eq!(refusal.field, "spec.permissions.filesystem");
    assert!(refusal.hint.is_some());
}

#[tokio::test]
async fn logs_are_tailed_and_followed_and_end_with_the_server() {
    let place = Place::new();
    let runtime = place.runtime();
    let workload = place.resolved(&place.server("logs", &["say", "100"]));
    place.apply(&*runtime, &workload).await;
    logged(&*runtime, &workload.owner, "line 99").await;
    assert_eq!(log(&*runtime, &workload.owner).await.len(), 100);

    let query = LogQuery { tail: 2, follow: true };
    let mut lines = runtime.console().logs(&workload.owner, query).await.unwrap();
    let next = async |lines: &mut futures::stream::BoxStream<'static, String>| {
        tokio::time::timeout(PATIENCE, lines.next()).await.expect("a line in time")
    };
    for wanted in ["line 98", "line 99"] {
        assert!(next(&mut lines).await.is_some_and(|line| line.ends_with(wanted)), "{wanted}");
    }
    kill(until_ready(&*runtime, &workload.owner).await.activity.child_pid.expect("a child"));
    assert!(next(&mut lines).await.is_some_and(|line| line.ends_with("line 0")), "the restarted server is followed");
    place.remove(&*runtime, &workload.owner).await;
    while next(&mut lines).await.is_some() {}
}

#[tokio::test]
async fn a_rotated_log_is_read_over_all_its_files() {
    let place = Place::new();
    let runtime = place.runtime();
    // Two files of 10 MiB: lines of 60 bytes or so.
    let count = 300_000;
    let workload = place.resolved(&place.server("rotated", &["say", &count.to_string()]));
    place.apply(&*runtime, &workload).await;
    until_ready(&*runtime, &workload.owner).await;
    logged(&*runtime, &workload.owner, &format!("line {}", count - 1)).await;
    let folder = place.folder_of(&workload.owner).unwrap();
    assert!(folder.join("server.log.1").is_file(), "it was rotated");
    let query = LogQuery { tail: 100_000, follow: false };
    let lines: Vec<String> = runtime.console().logs(&workload.owner, query).await.unwrap().collect().await;
    assert_eq!(lines.len(), 100_000);
    assert!(lines[0].ends_with(&format!("line {}", count - 100_000)), "{}", lines[0]);
}

#[tokio::test]
async fn a_log_is_followed_over_its_rotation_without_a_gap() {
    let place = Place::new();
    let runtime = place.runtime();
    let count = 400_000;
    let workload = place.resolved(&place.server("followed", &["say", &count.to_string()]));
    place.apply(&*runtime, &workload).await;
    let query = LogQuery { tail: 100_000, follow: true };
    let mut lines = runtime.console().logs(&workload.owner, query).await.unwrap();
    let mut expected = None;
    while expected != Some(count) {
        let line = tokio::time::timeout(PATIENCE, lines.next()).await.expect("a line in time").expect("a line");
        let number: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(number, expected.unwrap_or(number), "{line}");
        expected = Some(number + 1);
    }
    assert!(place.folder_of(&workload.owner).unwrap().join("server.log.1").is_file(), "it was rotated");
}

#[tokio::test]
async fn an_unknown_server_has_no_logs_and_no_commands_run_in_it() {
    let place = Place::new();
    let runtime = place.runtime();
    let owner = place.workload(&place.server("unknown", &[])).owner;
    let query = LogQuery { tail: 1, follow: false };
    let Err(error) = runtime.console().logs(&owner, query).await else { panic!("it has a log") };
    assert_eq!(error.reason, "NotRunning");
    let error = runtime.console().exec(&owner, &["ls".to_owned()]).await.unwrap_err();
    assert_eq!(error.reason, "Unsupported");
}
