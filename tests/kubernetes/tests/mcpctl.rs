//! `mcpctl --target kubernetes`: the program as people run it, on a real cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::PostParams;
use mcp_hub_crds::MCPServer;
use mcp_hub_kubernetes_tests::{Place, eventually, fixture, hub, kubeconfig};
use serde_json::{Value, json};

/// `mcpctl` with a kubeconfig, in a namespace.
struct Mcpctl {
    kubeconfig: PathBuf,
    namespace: String,
    folder: tempfile::TempDir,
}

impl Mcpctl {
    fn of(place: &Place) -> Self {
        Self { kubeconfig: kubeconfig(), namespace: place.name.clone(), folder: tempfile::tempdir().unwrap() }
    }

    /// A command in this namespace, whose words are separated by spaces.
    fn command(&self, line: &str) -> Command {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().unwrap().parent().unwrap().join("mcpctl");
        assert!(program.exists(), "{} is missing; run `cargo build --package mcpctl` first", program.display());
        let mut command = Command::new(program);
        command.args(line.split(' ')).args(["-n", &self.namespace]);
        command.env("MCP_HUB_TARGET", "kubernetes").env("KUBECONFIG", &self.kubeconfig).env("NO_COLOR", "1");
        // What it would do on this machine happens here.
        command.env("MCPHUB_HOME", self.folder.path().join("home"));
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Stdout of a command that must succeed.
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "mcpctl {line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Stderr of a command that must fail with this exit code.
    fn fails(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "mcpctl {line}: {}{said}", text(&output.stdout));
        said
    }

    fn file(&self, content: &str) -> String {
        let path = self.folder.path().join("manifests.yaml");
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Lets blocking programs run beside the test's client.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_manifest_to_a_tools_answer_and_back() {
    let (place, _lease) = Place::new("mcpctl").await;
    let mcpctl = Mcpctl::of(&place);
    beside(move || {
        let (server, changed) =
            (fixture("a", &["stdio"], ""), fixture("a", &["stdio"], "  env: [{name: A, value: b}]\n"));
        let file = mcpctl.file(&format!("{server}---\n{}", hub("default", "{gateway: {replicas: 1}}")));
        assert_eq!(mcpctl.ok(&format!("plan -f {file}")), ". prepare image a\n");
        let applied = mcpctl.run(&format!("apply -f {file} --wait --timeout 3m"));
        let said = text(&applied.stderr);
        assert!(applied.status.success(), "{said}");
        assert!(said.contains(&format!("MCPServer {}/a applied", mcpctl.namespace)), "{said}");

        let table = mcpctl.ok("get servers");
        assert!(
            table.contains("NAME") && table.lines().any(|line| line.starts_with("a ") && line.contains("Ready")),
            "{table}"
        );
        let object: Value = serde_json::from_str(&mcpctl.ok("get servers a -o json")).unwrap();
        assert_eq!(object["status"]["phase"], "Ready");
        assert!(object["metadata"]["managedFields"].is_null());
        assert!(mcpctl.ok("get events").contains("Ready"));
        assert_eq!(mcpctl.ok("plan"), "");

        assert_eq!(mcpctl.ok("endpoint"), format!("http://mcp-hub-default.{}.svc:8080/mcp\n", mcpctl.namespace));
        assert!(mcpctl.ok("endpoint -o token").starts_with("mcphub_"));
        wait("the hub serves the server", || mcpctl.run("tools a").status.success());
        assert!(mcpctl.ok("tools a").lines().any(|line| line.starts_with("echo ")));
        assert!(mcpctl.ok("tools").lines().any(|line| line.starts_with("a_echo ")));
        assert_eq!(mcpctl.ok("call a/echo --arg text=hello"), "hello\n");
        assert!(mcpctl.fails(3, "call a/nothing --arg x=y").contains("a offers: "));
        assert!(mcpctl.ok("status").contains("hub default  http://"));

        let file = mcpctl.file(&changed);
        assert_eq!(mcpctl.ok(&format!("plan -f {file}")), "+ apply Deployment mcp-a\n");
        assert_eq!(mcpctl.ok("plan"), "", "a plan changes nothing");

        mcpctl.ok("stop a");
        wait("the server is stopped", || mcpctl.ok("get servers a").contains("Paused"));
        assert!(mcpctl.fails(3, "logs a").contains("there is no pod of server `a`"));
        mcpctl.ok("start a --wait --timeout 3m");
        mcpctl.ok("restart a --wait --timeout 3m");
        wait("the hub serves the server again", || mcpctl.run("call a/echo --arg text=again").status.success());
        mcpctl.ok("logs a --tail 100");

        mcpctl.ok("delete servers a");
        assert!(mcpctl.fails(3, "get servers a").contains("there is no server `a`"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_stdio_only_reaches_a_hub_of_the_cluster() {
    let (place, _lease) = Place::new("stdio").await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    place.until_served("default", 1).await;
    let mcpctl = Mcpctl::of(&place);
    let answers = beside(move || {
        let mut child = mcpctl.command("stdio --server a").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        let mut say = |message: Value| writeln!(input, "{message}").unwrap();
        let mut hear = || serde_json::from_str::<Value>(&output.next().unwrap().unwrap()).unwrap();
        say(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}));
        let first = hear();
        say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        say(json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "hi"}}}));
        let second = hear();
        drop(input);
        assert!(child.wait().unwrap().success());
        (first, second)
    })
    .await;
    assert_eq!(answers.0["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(answers.1["result"]["content"][0]["text"], "hi", "{}", answers.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_another_manager_is_named_and_taken_over_by_force_only() {
    let (place, _lease) = Place::new("conflict").await;
    place.apply(&fixture("a", &["stdio"], "  paused: true\n")).await;
    let mcpctl = Mcpctl::of(&place);
    let file = mcpctl
        .file(&fixture("a", &["stdio"], "  paused: true\n  replicas: 2\n").replace("paused: true", "paused: false"));
    beside(move || {
        let said = mcpctl.fails(8, &format!("apply -f {file}"));
        assert!(said.contains("spec.paused: conflict with \"test\"") && said.contains("--force-conflicts"), "{said}");
        mcpctl.ok(&format!("apply -f {file} --force-conflicts"));
    })
    .await;
    place.until("a", "the field to be taken over", |server: &MCPServer| server.spec.paused == Some(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_does_not_grant_is_said_with_verb_and_resource() {
    let (place, _lease) = Place::new("rights").await;
    place.apply(&fixture("a", &["stdio"], "  paused: true\n")).await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    let mut mcpctl = Mcpctl::of(&place);
    mcpctl.kubeconfig = reader(&place, &mcpctl).await;
    beside(move || {
        assert!(mcpctl.ok("get servers").contains("a "));
        let file = mcpctl.file(&fixture("a", &["stdio"], ""));
        for (line, verb_and_resource) in [
            (format!("apply -f {file}"), "patch mcpservers.mcphub.io"),
            ("stop a".to_owned(), "patch mcpservers.mcphub.io"),
            ("delete servers a".to_owned(), "delete mcpservers.mcphub.io"),
            ("logs a".to_owned(), "list pods"),
            ("endpoint".to_owned(), "get secrets/mcp-hub-default-token"),
            ("plan".to_owned(), "list pods in all namespaces"),
        ] {
            let said = mcpctl.fails(9, &line);
            assert!(said.contains(&format!("does not let you {verb_and_resource}")), "{line}: {said}");
            assert!(said.contains("hint: ask for a role"), "{line}: {said}");
        }
    })
    .await;
}

/// A kubeconfig of one who may list servers and hubs, and nothing else.
async fn reader(place: &Place, mcpctl: &Mcpctl) -> PathBuf {
    let name = "reader";
    let make = |value: Value| value;
    let account: ServiceAccount = serde_json::from_value(make(json!({"metadata": {"name": name}}))).unwrap();
    place.api::<ServiceAccount>().create(&PostParams::default(), &account).await.unwrap();
    let role: Role = serde_json::from_value(json!({"metadata": {"name": name},
        "rules": [{"apiGroups": ["mcphub.io"], "resources": ["mcpservers", "mcphubs"], "verbs": ["list"]}]}))
    .unwrap();
    place.api::<Role>().create(&PostParams::default(), &role).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": place.name}]}))
    .unwrap();
    place.api::<RoleBinding>().create(&PostParams::default(), &binding).await.unwrap();
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    let accounts = place.api::<ServiceAccount>();
    let made = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();

    let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(kubeconfig()).unwrap()).unwrap();
    let token = made.status.unwrap().token;
    for user in config["users"].as_array_mut().unwrap() {
        user["user"] = json!({"token": token});
    }
    let path = mcpctl.folder.path().join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_machine_has_is_refused_and_a_cluster_that_is_not_there_is_named() {
    let (place, _lease) = Place::new("refused").await;
    let mcpctl = Mcpctl::of(&place);
    beside(move || {
        let output = |args: &[&str], config: &str| {
            let mut command = mcpctl.command("version");
            let mut bare = Command::new(command.get_program());
            bare.args(args).env("NO_COLOR", "1").env("MCPHUB_HOME", mcpctl.folder.path().join("home"));
            command = bare;
            let output = command.env("KUBECONFIG", config).stdin(Stdio::null()).output().unwrap();
            (output.status.code().unwrap(), text(&output.stderr))
        };
        let good = mcpctl.kubeconfig.to_str().unwrap();
        for line in ["up -d", "down", "add x -- y", "remove x", "secret list", "get origins"] {
            let args: Vec<&str> = ["--target", "kubernetes"].into_iter().chain(line.split(' ')).collect();
            let (code, said) = output(&args, good);
            assert_eq!(code, 2, "{line}: {said}");
            assert!(said.contains("hint: "), "{line}: {said}");
        }
        assert!(!mcpctl.folder.path().join("home").exists(), "nothing happens on this machine");
        let (code, said) = output(&["--target", "kubernetes/typo", "status"], good);
        assert!(code == 3 && said.contains("no context `typo`") && said.contains("there are: "), "{code} {said}");
        let (code, said) = output(&["--target", "kubernetes/any", "status"], "/nowhere/config");
        assert!(code == 4 && said.contains("there is no kubeconfig"), "{code} {said}");

        let dead = std::fs::read_to_string(good).unwrap();
        let config: Value = serde_saphyr::from_str(&dead).unwrap();
        let mut config = config;
        for cluster in config["clusters"].as_array_mut().unwrap() {
            cluster["cluster"]["server"] = "https://127.0.0.1:1".into();
        }
        let path = mcpctl.folder.path().join("dead");
        std::fs::write(&path, config.to_string()).unwrap();
        let (code, said) = output(&["--target", "kubernetes", "status"], path.to_str().unwrap());
        assert!(
            code == 4 && said.contains("cannot be reached: ") && said.contains("Connection refused"),
            "{code} {said}"
        );
    })
    .await;
}

/// Waits for a state, looked at by a program.
fn wait(what: &str, reached: impl Fn() -> bool) {
    let handle = tokio::runtime::Handle::current();
    handle.block_on(eventually(what, async || if reached() { Ok(()) } else { Err(String::new()) }));
}
