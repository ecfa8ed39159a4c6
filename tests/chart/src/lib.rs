//! The chart on a cluster of the test's own, with helm and kubectl as people use them.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support fails by panicking")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mcp_hub_test_cluster::{Cluster, Options, Programs, Shape};
use serde_json::Value;

/// Where the chart is installed, and as what.
pub const NAMESPACE: &str = "mcp-hub-system";
pub const RELEASE: &str = "mcp-hub";
/// Name of the operator's objects in such a release.
pub const OPERATOR: &str = "mcp-hub-operator";

/// Longest wait for any state. Far longer than the slowest seen, because timing decides no test.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    root().join("charts/mcp-hub")
}

/// A program that was built with the test cluster, without any cluster.
pub fn built(program: &str) -> Command {
    Command::new(Programs::find().unwrap().path(program))
}

/// What a command printed; the test fails with what it said if it fails.
pub fn output(command: &mut Command) -> String {
    let (success, stdout, stderr) = outcome(command);
    assert!(success, "{command:?}\n{stdout}{stderr}");
    stdout
}

/// Whether a command succeeded, its stdout, and its stderr.
pub fn outcome(command: &mut Command) -> (bool, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Waits until `look` finds what it looks for; fails with what it saw last.
pub fn eventually<T>(what: &str, look: impl Fn() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) => assert!(Instant::now() < deadline, "{what}: {last}"),
        }
        std::thread::sleep(PAUSE);
    }
}

/// A cluster with the project's images on its node, and the operator's namespace under the restricted Pod Security level.
#[derive(Debug)]
pub struct Place {
    pub cluster: Cluster,
}

impl Place {
    /// `audit`: an audit policy.
    pub fn new(audit: Option<String>) -> Self {
        let cluster = Cluster::up(Options { audit, ..Options::new(Shape::Node) }).unwrap();
        let archives = std::env::var_os("MCP_HUB_TEST_ARCHIVES");
        let archives = archives.expect("run this through `cargo xtask test --level kubernetes`");
        for archive in std::env::split_paths(&archives) {
            cluster.load(&archive).unwrap();
        }
        let place = Self { cluster };
        place.namespace(NAMESPACE);
        place
    }

    /// Makes a namespace under the restricted Pod Security level.
    pub fn namespace(&self, name: &str) {
        let labels = "labels: {pod-security.kubernetes.io/enforce: restricted}";
        self.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, {labels}}}"));
    }

    pub fn apply(&self, manifest: &str) {
        self.cluster.apply(manifest).unwrap();
    }

    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        self.cluster.kubectl(arguments).unwrap()
    }

    /// An object, or a list, as JSON; null for what `--ignore-not-found` did not find.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(["get"].iter().chain(arguments).chain(&["--output=json"]));
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// `kubectl wait` with the patience of tests.
    pub fn wait(&self, arguments: &[&str]) {
        self.kubectl(["wait", "--timeout=180s"].iter().chain(arguments));
    }

    /// Runs helm for the release; `verb` is its subcommand with what belongs to it.
    pub fn helm<A: AsRef<OsStr>>(&self, verb: impl IntoIterator<Item = A>) -> String {
        output(self.cluster.program("helm").args(verb).args(["--namespace", NAMESPACE]))
    }

    /// Installs or upgrades a chart with these values and waits until it is up.
    pub fn install(&self, chart: &Path, values: &[&str]) {
        let images = [format!("images.prefix={}", prefix()), format!("images.tag={}", tag())];
        let mut words = vec!["upgrade".to_owned(), "--install".to_owned(), RELEASE.to_owned()];
        words.push(chart.display().to_string());
        for value in images.iter().map(String::as_str).chain(values.iter().copied()) {
            words.extend(["--set".to_owned(), value.to_owned()]);
        }
        words.extend(["--wait", "--timeout=180s"].map(str::to_owned));
        self.helm(words);
    }

    /// Uids of the pods of servers and gateways of a namespace, by name.
    pub fn pods(&self, namespace: &str) -> Vec<(String, String)> {
        let list = self.get(&["pods", "--namespace", namespace, "--selector=mcphub.io/owner-uid"]);
        let pods = list["items"].as_array().unwrap().iter();
        let mut pods: Vec<_> = pods
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| {
                let text = |name: &str| pod["metadata"][name].as_str().unwrap().to_owned();
                (text("name"), text("uid"))
            })
            .collect();
        pods.sort();
        pods
    }
}

/// Registry and path of the images under test.
pub fn prefix() -> String {
    std::env::var("MCP_HUB_TEST_IMAGES").unwrap_or_else(|_| "localhost/mcp-hub".to_owned())
}

pub fn tag() -> String {
    std::env::var("MCP_HUB_TEST_TAG").unwrap_or_else(|_| "test".to_owned())
}

/// The fixture server, speaking stdio, with these lines of its spec besides.
pub fn server(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         source: {{image: {{ref: \"{}/fixture:{}\", command: [/fixture-server]}}}}\n  args: [stdio]\n{spec}",
        prefix(),
        tag(),
    )
}

/// A hub over all servers of its namespace.
pub fn hub(namespace: &str, name: &str, replicas: u8) -> String {
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         gateway: {{replicas: {replicas}}}\n"
    )
}
