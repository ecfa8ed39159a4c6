//! Clients made with the official SDKs use real servers through every door of the hub.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mcp_hub_e2e::{Endpoint, Hub, binary, eventually, installed, text};
use serde_json::{Value, json};

/// A server that listens by itself; ended when dropped.
struct Listening(Child);

impl Listening {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let listening = Self(child);
        eventually("the server listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        listening
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The servers of examples/quickstart, with a call each and a word of its answer.
struct Expectation {
    server: &'static str,
    tool: &'static str,
    arguments: Value,
    answer: &'static str,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn expectations() -> Vec<Expectation> {
    let demo = root().join("examples/quickstart/demo");
    vec![
        Expectation {
            server: "everything",
            tool: "echo",
            arguments: json!({"message": "hello through the hub"}),
            answer: "hello through the hub",
        },
        Expectation {
            server: "files",
            tool: "list_directory",
            arguments: json!({"path": demo.to_str().unwrap()}),
            answer: "hello.txt",
        },
        Expectation { server: "time", tool: "get_current_time", arguments: json!({"timezone": "UTC"}), answer: "UTC" },
        Expectation {
            server: "git",
            tool: "git_status",
            arguments: json!({"repo_path": root().to_str().unwrap()}),
            answer: "Repository status",
        },
        Expectation {
            server: "units",
            tool: "convert",
            arguments: json!({"value": 1, "from": "km", "to": "m"}),
            answer: "1000",
        },
    ]
}

/// Runs a client program to its end and returns what it printed.
fn run(hub: &Hub, client: &[&str], door: &[String], plan: &Value) -> Value {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut command = match client[0] {
        "python-1x" => {
            let mut command = Command::new(installed().join("python-1x/bin/python"));
            command.arg(scripts.join("client_1x.py"));
            command
        }
        "python" => {
            let mut command = Command::new(installed().join("python/bin/python"));
            command.arg(scripts.join("client.py"));
            command
        }
        _ => {
            let mut command = Command::new("node");
            command.arg(scripts.join("client.mjs"));
            command
        }
    };
    command.args(&client[1..]).args(door).env("MCP_HUB_CLIENTS", installed()).env("MCPHUB_HOME", hub.home());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client starts");
    child.stdin.take().unwrap().write_all(plan.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{client:?} {door:?}: {}\n{}", text(&output.stderr), hub.log());
    serde_json::from_slice(&output.stdout).expect("the client prints JSON")
}

/// An old and the newest release of each SDK, the newest in every mode it has.
const CLIENTS: [&[&str]; 6] = [
    &["python-1x"],
    &["python", "auto"],
    &["python", "legacy"],
    &["node", "sdk-old"],
    &["node", "sdk"],
    &["node", "client"],
];

fn check(report: &Value, expectations: &[&Expectation], named: impl Fn(&Expectation) -> String, what: &str) {
    let tools: Vec<&str> = report["tools"].as_array().unwrap().iter().map(|tool| tool.as_str().unwrap()).collect();
    for (expectation, answer) in expectations.iter().zip(report["answers"].as_array().unwrap()) {
        let name = named(expectation);
        assert!(tools.contains(&name.as_str()), "{what}: {name} is not listed among {tools:?}");
        assert_eq!(answer["isError"], false, "{what}: {answer}");
        assert!(answer["text"].as_str().unwrap().contains(expectation.answer), "{what}: {answer}");
    }
}

#[test]
fn the_official_sdks_list_and_call_every_quickstart_server_through_every_door() {
    let manifest = std::fs::read_to_string(root().join("examples/quickstart/servers.yaml")).unwrap();
    // The same servers with absolute paths, because the manifest is copied.
    let demo = root().join("examples/quickstart/demo");
    let manifest = manifest
        .replace("../../target/debug/units-server", binary("units-server").to_str().unwrap())
        .replace(r#"["demo"]"#, &format!("[{:?}]", demo.to_str().unwrap()));
    let hub = Hub::with(&manifest);
    let expectations = expectations();
    for expectation in &expectations {
        hub.wait_reason(expectation.server, "Ready");
    }
    let Endpoint { url, token } = hub.endpoint();
    let program = binary("mcpctl").to_str().unwrap().to_owned();
    for client in CLIENTS {
        let all: Vec<&Expectation> = expectations.iter().collect();
        let prefixed = |expectation: &Expectation| format!("{}_{}", expectation.server, expectation.tool);
        let plan: Vec<Value> = all.iter().map(|e| json!({"tool": prefixed(e), "arguments": e.arguments})).collect();
        let doors = [
            ("the aggregate", vec!["http".to_owned(), url.clone(), token.clone()]),
            ("stdio", vec!["stdio".to_owned(), program.clone(), "stdio".to_owned()]),
        ];
        for (name, door) in doors {
            let report = run(&hub, client, &door, &json!(plan));
            check(&report, &all, prefixed, &format!("{client:?} through {name}"));
        }
        for expectation in &expectations {
            let own = hub.endpoint().server(expectation.server);
            let plan = json!([{"tool": expectation.tool, "arguments": expectation.arguments}]);
            let report = run(&hub, client, &["http".to_owned(), own, token.clone()], &plan);
            check(&report, &[expectation], |e| e.tool.to_owned(), &format!("{client:?} at {}", expectation.server));
        }
    }
}

#[test]
fn remote_servers_of_http_and_sse_made_with_every_sdk_serve_the_official_clients() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/sse_server.py");
    let everything = installed().join("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let programs = [
        ("new", installed().join("python/bin/python"), script.clone()),
        ("old", installed().join("python-1x/bin/python"), script),
        ("npm", PathBuf::from("node"), everything),
    ];
    let (mut manifest, mut running) = (Vec::new(), Vec::new());
    for (name, program, script) in &programs {
        let port = mcp_hub_test_port::free_port().unwrap();
        let mut command = Command::new(program);
        command.arg(script).arg(if *name == "npm" { "sse".to_owned() } else { port.to_string() });
        running.push(Listening::start(command.env("PORT", port.to_string()), port));
        let remote = format!("{{remote: {{url: \"http://127.0.0.1:{port}/sse\"}}}}");
        // The first is found out, the others are said to speak it.
        let transport = if *name == "new" { "" } else { "\n  transport: {type: sse}" };
        manifest.push(format!(
            "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n  source: {remote}{transport}\n"
        ));
    }
    let hub = Hub::with(&manifest.join("---\n"));
    for (name, _, _) in &programs {
        hub.wait_reason(name, "Ready");
    }
    let Endpoint { url, token } = hub.endpoint();
    let say = |server, tool, answer| Expectation { server, tool, arguments: json!({"text": "x"}), answer };
    let count = |server| Expectation { server, tool: "count", arguments: json!({"to": 3}), answer: "counted to 3" };
    let echo = Expectation {
        server: "npm",
        tool: "echo",
        arguments: json!({"message": "through npm"}),
        answer: "through npm",
    };
    let expectations = [say("new", "say", "said: x"), count("new"), say("old", "say", "said: x"), count("old"), echo];
    for client in CLIENTS {
        let all: Vec<&Expectation> = expectations.iter().collect();
        let prefixed = |expectation: &Expectation| format!("{}_{}", expectation.server, expectation.tool);
        let plan: Vec<Value> = all.iter().map(|e| json!({"tool": prefixed(e), "arguments": e.arguments})).collect();
        let report = run(&hub, client, &["http".to_owned(), url.clone(), token.clone()], &json!(plan));
        check(&report, &all, prefixed, &format!("{client:?} before servers of HTTP+SSE"));
    }
}
