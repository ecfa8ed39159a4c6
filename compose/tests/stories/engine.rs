//! A generated project on a real engine, which the test starts in a network namespace of its own.
//!
//! Level `images` of `cargo xtask test` runs it. By hand, as root, it needs `cargo xtask images bridge gateway units fixture`
//! and then `cargo test -p mcp-hub-compose --test stories engine -- --ignored`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mcp_hub_compose::engine::{self, Engine, Images, Key};
use mcp_hub_compose::project::Project;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far longer than the slowest seen.
const PATIENCE: Duration = Duration::from_secs(120);
/// On every address of the machine.
const LISTENER: u16 = 8097;

/// An engine and what listens on its machine. Dropped, nothing of it is left.
struct Machine {
    folder: TempDir,
    namespace: String,
    processes: Vec<Child>,
}

impl Machine {
    fn start() -> Self {
        // Short, because the engine's sockets lie below it.
        let folder = tempfile::Builder::new().prefix("mcpc").tempdir_in("/tmp").unwrap();
        let namespace = format!("mcpc{}", std::process::id());
        ok(Command::new("ip").args(["netns", "add", &namespace]));
        let mut machine = Self { folder, namespace, processes: Vec::new() };
        ok(machine.inside("ip").args(["link", "set", "lo", "up"]));
        let at = |name: &str| machine.folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("daemon.json"), "{}").unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let mut engine = machine.inside("dockerd");
        engine.arg(format!("--host=unix://{}", at("socket"))).arg(format!("--config-file={}", at("daemon.json")));
        engine.arg(format!("--data-root={}", at("data"))).arg(format!("--exec-root={}", at("exec")));
        engine.arg(format!("--pidfile={}", at("pid"))).stdout(log.try_clone().unwrap()).stderr(log);
        machine.processes.push(engine.spawn().unwrap());
        let mut listener = machine.inside("python3");
        listener.args(["-m", "http.server", &LISTENER.to_string()]).current_dir(machine.folder.path());
        machine.processes.push(listener.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually("the engine answers", || machine.docker().arg("version").output().unwrap().status.success());
        machine
    }

    /// A command in the namespace.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.namespace)).arg(program);
        command.env("DOCKER_HOST", format!("unix://{}/socket", self.folder.path().display()));
        command
    }

    fn docker(&self) -> Command {
        self.inside("docker")
    }

    /// The reference under which an archive's image is there.
    fn load(&self, name: &str) -> String {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/images/{name}.tar"));
        let said = ok(self.docker().args(["load", "-i"]).arg(archive));
        said.lines().find_map(|line| line.strip_prefix("Loaded image: ")).unwrap().to_owned()
    }

    /// Compose on the project's folder.
    fn compose(&self, arguments: &[&str], secret: Option<&str>) -> Output {
        let words = crate::schema::program().expect("Compose is not installed");
        let mut compose = self.inside(words[0]);
        compose.args(&words[1..]).args(arguments).current_dir(self.folder.path().join("hub"));
        compose.env_remove("MCP_FIX_TOKEN").envs(secret.map(|secret| ("MCP_FIX_TOKEN", secret))).output().unwrap()
    }

    /// Process of a service's container.
    fn process_of(&self, service: &str) -> String {
        let filter = format!("label=com.docker.compose.service={service}");
        let id = ok(self.docker().args(["ps", "-q", "-f", &filter]));
        ok(self.docker().args(["inspect", "--format", "{{.State.Pid}}", id.trim()])).trim().to_owned()
    }

    /// Whether a container reaches a port of this machine, by any of its addresses.
    fn reaches_machine(&self, service: &str) -> bool {
        let process = self.process_of(service);
        let addresses = ok(self.inside("ip").args(["-4", "-o", "addr"]));
        let addresses = addresses.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
        addresses.filter(|address| *address != "127.0.0.1").any(|address| {
            let url = format!("http://{address}:{LISTENER}/");
            let mut curl = Command::new("nsenter");
            curl.args(["-t", &process, "-n", "curl", "-s", "-m", "2", "-o", "/dev/null", &url]);
            curl.status().unwrap().success()
        })
    }

    /// The result of a tool's call, or what the hub answered instead.
    fn call(&self, port: u16, token: &str, tool: &str, arguments: &Value) -> Value {
        let version = "2026-07-28";
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": version, "io.modelcontextprotocol/clientCapabilities": {},
        });
        let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let mut curl = self.inside("curl");
        curl.args(["-s", "-m", "30", &format!("http://127.0.0.1:{port}/mcp"), "-d", &body.to_string()]);
        for header in [
            format!("Authorization: Bearer {token}"),
            "Content-Type: application/json".to_owned(),
            "Accept: application/json, text/event-stream".to_owned(),
            format!("MCP-Protocol-Version: {version}"),
            "Mcp-Method: tools/call".to_owned(),
            format!("Mcp-Name: {tool}"),
        ] {
            curl.args(["-H", &header]);
        }
        let output = curl.output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.folder.path().join("hub").is_dir() {
            self.compose(&["down", "-v", "-t", "2"], Some("x"));
        }
        for process in &mut self.processes {
            // SIGTERM, which ends an engine with all that it runs.
            Command::new("kill").arg(process.id().to_string()).status().ok();
            process.wait().ok();
        }
        Command::new("ip").args(["netns", "del", &self.namespace]).status().ok();
    }
}

/// What a command says that succeeds.
fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs root, a Docker engine's programs, and images"]
fn a_project_serves_what_its_manifests_say_and_no_more() {
    let machine = Machine::start();
    let images = Images { bridge: machine.load("bridge"), gateway: machine.load("gateway"), runner: "none".to_owned() };
    let (units, fixture) = (machine.load("units"), machine.load("fixture"));
    let image = |image: &str, program: &str| {
        format!("source: {{image: {{ref: '{image}', command: [{program}], pinDigest: false}}}}")
    };
    let text = [
        crate::server(
            "units",
            &format!("{{{}, permissions: {{network: {{egress: []}}}}}}", image(&units, "/units-server")),
        ),
        crate::server(
            "fixture",
            &format!(
                "{{{}, args: [stdio, --era, legacy], env: [{{name: TOKEN, secretRef: {{name: fix, key: token}}}}], \
                 volumes: [{{name: data, emptyDir: {{}}, mountPath: /data}}]}}",
                image(&fixture, "/fixture-server")
            ),
        ),
    ]
    .concat();
    let project = Project::of(crate::resources(&text), None).unwrap();
    let generated = engine::write(Engine::Compose, &project, &Default::default(), &images, &Key::new([3; 32])).unwrap();
    let folder = machine.folder.path().join("hub");
    std::fs::create_dir(&folder).unwrap();
    for file in &generated.files {
        std::fs::write(folder.join(file.name), &file.content).unwrap();
    }

    let without = machine.compose(&["up", "-d"], None);
    assert!(!without.status.success());
    assert!(String::from_utf8_lossy(&without.stderr).contains("set MCP_FIX_TOKEN"));
    let up = machine.compose(&["up", "-d"], Some("s3$cret"));
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));

    let tokens = &crate::file(&generated, "gateway.env").content;
    let token = tokens.lines().find_map(|line| line.strip_prefix("MCP_HUB_TOKEN=")).unwrap();
    let text_of = |answer: Value| answer["result"]["content"][0]["text"].as_str().map(str::to_owned);
    let call = |tool: &str, arguments: Value| text_of(machine.call(7337, token, tool, &arguments));
    eventually("both servers are there", || {
        let marathon = call("units_convert", json!({"value": 26.2, "from": "mi", "to": "km"}));
        marathon.is_some_and(|text| text.contains("42.16")) && call("fixture_pid", json!({})).is_some()
    });
    assert_eq!(call("fixture_env", json!({"name": "TOKEN"})).as_deref(), Some("s3$cret"));
    assert_eq!(text_of(machine.call(7337, "another", "fixture_pid", &json!({}))), None);
    // The bridge has it back inside the live session.
    call("fixture_crash", json!({}));
    eventually("it is back", || call("fixture_pid", json!({})).is_some());

    assert!(machine.reaches_machine("fixture"), "nothing is asked of it, or the test asks for nothing");
    assert!(!machine.reaches_machine("units"), "a server that may reach nothing reaches its machine");
}
