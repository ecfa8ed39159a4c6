//! A hub of its own for each test: its own folders, its own port, its own processes, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for any state. Far longer than the slowest seen, because timing decides no test.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A daemon with its own folders and port. Dropped, it ends its servers and itself.
#[derive(Debug)]
pub struct Hub {
    home: TempDir,
    daemon: Option<Child>,
    /// Of the daemon and of every command.
    env: Vec<(String, String)>,
}

/// Where `cargo xtask test` installs the SDKs, and the servers made with them.
pub fn installed() -> PathBuf {
    let path = std::env::var_os("MCP_HUB_CLIENTS").expect("run this through `cargo xtask test --level e2e`");
    PathBuf::from(path)
}

/// Where clients reach a hub.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub url: String,
    /// Empty where the hub asks for none.
    pub token: String,
}

impl Endpoint {
    /// The endpoint of a single server.
    pub fn server(&self, name: &str) -> String {
        self.url.replace("/mcp", &format!("/servers/{name}/mcp"))
    }
}

impl Hub {
    /// Folders and a hub manifest with a free port, no daemon yet.
    pub fn new() -> Self {
        // Short, because the control sockets' paths lie below it.
        let home = tempfile::Builder::new().prefix("mcph").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(home.path().join("manifests")).unwrap();
        std::fs::create_dir(home.path().join("tmp")).unwrap();
        let hub = Self { home, daemon: None, env: Vec::new() };
        let port = mcp_hub_test_port::free_port().unwrap();
        hub.write(
            "hub.yaml",
            &format!(
                "apiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: default}}\nspec: {{gateway: {{port: {port}}}}}\n"
            ),
        );
        hub
    }

    /// A started daemon that follows `servers.yaml` with this content.
    pub fn with(servers: &str) -> Self {
        let mut hub = Self::new();
        hub.write("servers.yaml", servers);
        hub.start();
        hub
    }

    pub fn manifests(&self) -> PathBuf {
        self.home.path().join("manifests")
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a manifest as editors do: a new file renamed over the old one.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.manifests().join(name);
        let draft = self.home.path().join("draft");
        std::fs::write(&draft, content).unwrap();
        std::fs::rename(draft, path).unwrap();
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        let log = std::fs::File::create(self.home.path().join("daemon.log")).unwrap();
        let manifests = self.manifests();
        let mut command = self.command(&["up", "-f", manifests.to_str().unwrap()]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        eventually("the daemon answers", || self.mcpctl(&["status"]).status.success().then_some(()));
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Kills the daemon as a crash would and waits until it is gone.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Sets an environment variable of what is started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(mcpctl());
        command.args(args).env("MCPHUB_HOME", self.home.path()).env("NO_COLOR", "1");
        // Handed on to servers, so that each process of this hub names its folder.
        command.env("TMPDIR", self.home.path().join("tmp"));
        command.envs(self.env.iter().cloned());
        command
    }

    /// As [`ok`](Self::ok), with something on stdin.
    pub fn ok_with_input(&self, args: &[&str], input: &str) -> String {
        use std::io::Write;
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "mcpctl {args:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }

    pub fn mcpctl(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Stdout of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.mcpctl(args);
        assert!(output.status.success(), "mcpctl {args:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }

    /// Stderr of a command that must fail with this exit code.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.mcpctl(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "mcpctl {args:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    /// The server's object, if there is one.
    pub fn server(&self, name: &str) -> Option<Value> {
        let output = self.mcpctl(&["get", "servers", "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).ok()?;
        list["items"].as_array()?.iter().find(|item| item["metadata"]["name"] == name).cloned()
    }

    /// Waits until condition `Ready` of the server has this reason, and returns the object.
    pub fn wait_reason(&self, name: &str, reason: &str) -> Value {
        self.wait_server(name, &format!("Ready has reason {reason}"), |server| {
            condition(server, "Ready").is_some_and(|c| c["reason"] == reason)
        })
    }

    pub fn wait_server(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let found = poll(|| {
            last = self.server(name);
            last.clone().filter(|server| wanted(server))
        });
        found.unwrap_or_else(|| panic!("{name}: {what} was not reached; last seen {last:#?}\n{}", self.log()))
    }

    pub fn wait_gone(&self, name: &str) {
        eventually("the server is gone", || self.server(name).is_none().then_some(()));
    }

    pub fn endpoint(&self) -> Endpoint {
        let json = eventually("the hub has an endpoint", || {
            let output = self.mcpctl(&["endpoint", "-o", "json"]);
            output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
        });
        Endpoint {
            url: json["url"].as_str().unwrap().to_owned(),
            token: json["token"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// Process ids of everything that runs for this hub: servers name its folder in their environment, bridges
    /// in their arguments.
    pub fn processes(&self) -> Vec<u32> {
        let home = self.home.path().as_os_str().as_encoded_bytes().to_vec();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            let names_home = |bytes: Vec<u8>| bytes.windows(home.len()).any(|window| window == home);
            if pid != std::process::id() && (names_home(read("cmdline")) || names_home(read("environ"))) {
                found.push(pid);
            }
        }
        found
    }

    /// What the daemon wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("daemon.log")).unwrap_or_default()
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Servers outlive a dead daemon by design, so one is started to end them.
        if self.daemon.is_none() && !self.processes().is_empty() {
            self.start();
        }
        self.mcpctl(&["down", "--all"]);
        if let Some(mut daemon) = self.daemon.take() {
            let ended = poll(|| daemon.try_wait().unwrap());
            if ended.is_none() {
                daemon.kill().ok();
                daemon.wait().ok();
            }
        }
    }
}

/// The condition of this type.
pub fn condition(object: &Value, kind: &str) -> Option<Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
}

/// The command under test: one that carries its bridges where containers need them, else the one that was just built.
fn mcpctl() -> PathBuf {
    std::env::var_os("MCP_HUB_TEST_MCPCTL").map_or_else(|| binary("mcpctl"), PathBuf::from)
}

/// A program built by `cargo build --workspace --bins`, next to the test's own.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(path.exists(), "{} is missing; run `cargo build --workspace --bins` first", path.display());
    path
}

/// A manifest of a server that runs the fixture with these arguments.
pub fn fixture(name: &str, args: &[&str]) -> String {
    let program = binary("fixture-server");
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n  source: {{command: {{path: {}}}}}\n  args: [stdio, {}]\n",
        program.display(),
        args.join(", ")
    )
}

/// Waits until `check` gives something; panics with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    poll(check).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

fn poll<T>(mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if start.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a process with this id lives (a zombie does not).
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Kills by recorded id, as a crash would.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // Already dead is what was wanted.
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
