//! `cargo xtask quickstart`: five real servers behind one endpoint.

use std::path::Path;

use serde_json::Value;

use crate::mcpctl::{Mcpctl, Profile};
use crate::needs::Need;
use crate::shell::{self, Error};

/// A call that shows that a server works: its name, its tool, the arguments.
const CALLS: [(&str, &str, &[&str]); 5] = [
    ("units", "convert", &["value=26.2", "from=mi", "to=km"]),
    ("everything", "echo", &["message=hello from the quickstart"]),
    ("files", "list_directory", &["path=."]),
    ("time", "get_current_time", &["timezone=UTC"]),
    ("git", "git_log", &["repo_path=.", "max_count=1"]),
];

/// Starts `examples/quickstart` and shows one answer of each server. With `once` it ends then, else it stays until Ctrl-C.
pub(crate) fn run(once: bool) -> Result<(), Error> {
    let mcpctl = Mcpctl::build(shell::target().join("quickstart"), Profile::Debug)?;
    let manifests = shell::root().join("examples/quickstart");
    for need in [Need::Node, Need::Python].into_iter().filter(|need| !need.is_there()) {
        shell::say(&format!("not here, so some servers will wait for it: {}", need.hint()));
    }
    shell::say("starting five servers; the first time this installs them from npm and PyPI");
    let manifests = manifests.to_string_lossy().into_owned();
    // Exit code 1 says that a server is not ready; which and why is what the status shows.
    let up = shell::run(&mut mcpctl.command(&["up", "--detach", "-f", &manifests, "--wait", "--timeout", "8m"]));
    shell::run(&mut mcpctl.command(&["status"]))?;
    let servers = shell::output(&mut mcpctl.command(&["get", "servers", "-o", "json"]))?;
    let outcome = calls(&mcpctl, &servers);
    if once {
        // A server that waits for an interpreter is no failure of the quickstart; one that could run and did not is.
        return outcome.and_then(|waiting| if waiting { Ok(()) } else { up });
    }
    if let Err(error) = outcome {
        shell::say(&format!("error: {error}"));
    }
    shell::run(&mut mcpctl.command(&["up", "-f", &manifests]))
}

/// Calls one tool of each server that runs; `true` if some server waits for an interpreter.
fn calls(mcpctl: &Mcpctl, servers: &str) -> Result<bool, Error> {
    let unexpected = |message: String| Error::Output { command: "mcpctl get servers -o json".to_owned(), message };
    let list: Value = serde_json::from_str(servers).map_err(|error| unexpected(error.to_string()))?;
    let items = list.get("items").and_then(Value::as_array).ok_or_else(|| unexpected("no items".to_owned()))?;
    let mut failures = Vec::new();
    let mut waiting = false;
    for (server, tool, arguments) in CALLS {
        let object = items.iter().find(|item| item.pointer("/metadata/name") == Some(&Value::from(server)));
        let Some(object) = object else {
            failures.push(format!("{server} is not there"));
            continue;
        };
        if reason(object) == Some("InterpreterMissing") {
            shell::say(&format!("{server}: waits ({})", message(object).unwrap_or_default()));
            waiting = true;
            continue;
        }
        let mut call = vec!["call".to_owned(), format!("{server}/{tool}")];
        for argument in arguments {
            call.extend(["--arg".to_owned(), absolute(server, argument)]);
        }
        let call: Vec<&str> = call.iter().map(String::as_str).collect();
        if let Err(error) = shell::run(&mut mcpctl.command(&call)) {
            failures.push(format!("{server}: {error}"));
        }
    }
    if failures.is_empty() { Ok(waiting) } else { Err(Error::Several(failures)) }
}

/// Paths in arguments are the checkout's.
fn absolute(server: &str, argument: &str) -> String {
    let folder = |path: &Path| path.to_string_lossy().into_owned();
    match (server, argument) {
        ("files", "path=.") => format!("path={}", folder(&shell::root().join("examples/quickstart/demo"))),
        ("git", "repo_path=.") => format!("repo_path={}", folder(&shell::root())),
        _ => argument.to_owned(),
    }
}

/// Condition `Ready` of a server.
fn ready(object: &Value) -> Option<&Value> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|c| c.get("type").and_then(Value::as_str) == Some("Ready"))
}

fn reason(object: &Value) -> Option<&str> {
    ready(object)?.get("reason")?.as_str()
}

fn message(object: &Value) -> Option<&str> {
    ready(object)?.get("message")?.as_str()
}
