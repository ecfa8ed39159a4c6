//! What people write, and what they get wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod images;

use mcp_hub_e2e::{Hub, condition, eventually, fixture};

const INVALID: i32 = 6;

#[test]
fn a_mistake_in_a_manifest_is_named_with_its_place_and_starts_nothing() {
    let hub = Hub::new();
    hub.write("servers.yaml", &fixture("a", &[]).replace("args:", "argz:"));
    let manifests = hub.manifests();
    let error = hub.fails(INVALID, &["up", "-d", "-f", manifests.to_str().unwrap()]);
    assert!(error.contains("servers.yaml:7:3: spec.argz"), "{error}");
    assert!(error.contains("did you mean `args`?"), "{error}");
    assert_eq!(hub.processes(), Vec::<u32>::new());
}

#[test]
fn a_half_saved_manifest_keeps_the_last_good_version_and_says_so() {
    let hub = Hub::with(&fixture("a", &[]));
    let before = hub.wait_reason("a", "Ready");
    hub.write("servers.yaml", "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: a\n");
    let broken = hub.wait_server("a", "the manifest's problem shows", |server| {
        condition(server, "ManifestSynced").is_some_and(|c| c["status"] == "False")
    });
    assert_eq!(condition(&broken, "Ready").unwrap()["status"], "True");
    assert_eq!(broken["metadata"]["uid"], before["metadata"]["uid"]);
    hub.write("servers.yaml", &fixture("a", &[]));
    hub.wait_server("a", "the problem is over", |server| condition(server, "ManifestSynced").is_none());
}

#[test]
fn a_deleted_manifest_removes_its_servers_whole_process_tree() {
    let hub = Hub::with(&fixture("a", &[]));
    hub.write("other.yaml", &fixture("b", &[]));
    hub.wait_reason("a", "Ready");
    hub.wait_reason("b", "Ready");
    let grandchild = hub.ok(&["call", "a/spawn_grandchild"]);
    let grandchild: u32 = grandchild.trim().parse().unwrap();
    assert!(mcp_hub_e2e::lives(grandchild));
    std::fs::remove_file(hub.manifests().join("servers.yaml")).unwrap();
    hub.wait_gone("a");
    eventually("the grandchild is gone", || (!mcp_hub_e2e::lives(grandchild)).then_some(()));
    hub.ok(&["call", "b/echo", "--arg", "text=still here"]);
}

#[test]
fn one_server_from_two_origins_is_refused_and_the_first_runs_on() {
    let hub = Hub::with(&fixture("a", &[]));
    hub.wait_reason("a", "Ready");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.yaml"), fixture("a", &["--slow-start", "1"])).unwrap();
    let error = hub.fails(8, &["up", "-d", "-f", folder.path().to_str().unwrap()]);
    assert!(error.contains("default/a") && error.contains(hub.manifests().to_str().unwrap()), "{error}");
    hub.ok(&["call", "a/echo", "--arg", "text=x"]);
}

#[test]
fn servers_added_by_command_are_kept_until_they_are_removed() {
    let mut hub = Hub::with(&fixture("a", &[]));
    let program = mcp_hub_e2e::binary("fixture-server");
    hub.ok(&["add", "mine", "--wait", "--", program.to_str().unwrap(), "stdio"]);
    assert_eq!(hub.ok(&["call", "mine/echo", "--arg", "text=hello"]).trim(), "hello");
    let error = hub.fails(INVALID, &["add", "mine", "--", "true"]);
    assert!(error.contains("--force"), "{error}");
    let error = hub.fails(INVALID, &["delete", "server", "a"]);
    assert!(error.contains(hub.manifests().to_str().unwrap()), "{error}");

    hub.kill_daemon();
    hub.start();
    hub.wait_reason("mine", "Ready");
    hub.ok(&["remove", "mine"]);
    hub.wait_gone("mine");
    assert!(hub.fails(3, &["remove", "mine"]).contains("there is no server `mine`"));
}

#[test]
fn a_client_configuration_is_a_manifest_too() {
    let hub = Hub::new();
    let program = mcp_hub_e2e::binary("fixture-server");
    let config = serde_json::json!({"mcpServers": {"from-client": {"command": program, "args": ["stdio"]}}});
    let mut hub = hub;
    hub.write(".mcp.json", &config.to_string());
    hub.start();
    hub.wait_reason("from-client", "Ready");
    assert_eq!(hub.ok(&["call", "from-client/echo", "--arg", "text=hi"]).trim(), "hi");
}

#[test]
fn stop_outlives_the_daemon_and_start_ends_it() {
    let mut hub = Hub::with(&fixture("a", &[]));
    hub.wait_reason("a", "Ready");
    hub.ok(&["stop", "a"]);
    hub.wait_reason("a", "Paused");
    hub.kill_daemon();
    hub.start();
    hub.wait_reason("a", "Paused");
    hub.ok(&["start", "a", "--wait"]);
    hub.ok(&["call", "a/echo", "--arg", "text=x"]);
    let first = hub.ok(&["call", "a/pid"]);
    hub.ok(&["restart", "a", "--wait"]);
    let second = eventually("the restarted server answers", || {
        let output = hub.mcpctl(&["call", "a/pid"]);
        output.status.success().then(|| mcp_hub_e2e::text(&output.stdout)).filter(|pid| *pid != first)
    });
    assert_ne!(first, second);
}

#[test]
fn a_plan_says_what_would_be_done_and_does_nothing() {
    let hub = Hub::with(&fixture("a", &[]));
    hub.wait_reason("a", "Ready");
    assert_eq!(hub.ok(&["plan"]), "");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.yaml");
    std::fs::write(&file, fixture("a", &["--slow-start", "1"]) + &fixture("new", &[])).unwrap();
    let plan = hub.ok(&["plan", "-f", file.to_str().unwrap()]);
    assert_eq!(plan, "~ replace bridge a\n. prepare source new\n");
    assert_eq!(hub.ok(&["plan"]), "");
}

#[test]
fn manifests_become_a_compose_project_and_come_back() {
    use std::os::unix::fs::PermissionsExt;
    let hub = Hub::new();
    let image = "source: {image: {ref: \"mcp/a:1\", command: [/a], pinDigest: false}}";
    let manifest = |name: &str, spec: &str| {
        format!("apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n  {spec}\n")
    };
    hub.write("a.yaml", &(manifest("a", image) + "  env: [{name: T, secretRef: {name: s, key: k}}]\n"));
    let (manifests, project) = (hub.manifests(), hub.home().join("project"));
    let (manifests, out) = (manifests.to_str().unwrap(), project.to_str().unwrap());
    let generate = ["generate", "--format", "compose", "-f", manifests, "--output", out];
    hub.ok(&generate);
    let read = |name: &str| std::fs::read_to_string(project.join(name)).unwrap();
    let (compose, tokens) = (read("compose.yaml"), read("gateway.env"));
    assert!(compose.contains("${MCP_S_K:?set MCP_S_K}"), "{compose}");
    let mode = |name: &str| std::fs::metadata(project.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("compose.yaml"), mode("gateway.json"), mode("gateway.env")], [0o644, 0o644, 0o600]);

    // Once more, the same: the key is kept.
    hub.ok(&generate);
    assert_eq!((read("compose.yaml"), read("gateway.env")), (compose, tokens));

    let back = hub.home().join("back");
    let import = ["import", "--output", back.to_str().unwrap(), project.join("compose.yaml").to_str().unwrap()]
        .map(str::to_owned);
    let import: Vec<&str> = import.iter().map(String::as_str).collect();
    hub.ok(&import);
    let imported = std::fs::read_to_string(back.join("a.yaml")).unwrap();
    assert!(imported.contains("mcp/a:1") && imported.contains("secretRef"), "{imported}");
    let error = hub.fails(INVALID, &import);
    assert!(error.contains("a.yaml is there already") && error.contains("--force"), "{error}");
    hub.ok(&[&import[..], &["--force"]].concat());

    // What cannot be taken is named, and the rest is written.
    let foreign = hub.home().join("foreign.yaml");
    std::fs::write(&foreign, "services: {b: {image: x, devices: [/dev/x], environment: {API_KEY: hunter2-is-here}}}")
        .unwrap();
    let out = hub.home().join("foreign");
    let error = hub.fails(INVALID, &["import", "--output", out.to_str().unwrap(), foreign.to_str().unwrap()]);
    assert!(error.contains("services.b.devices: not taken") && error.contains("mcpctl secret set api-key"), "{error}");
    let imported = std::fs::read_to_string(out.join("b.yaml")).unwrap();
    assert!(!error.contains("hunter2") && !imported.contains("hunter2"), "{error}{imported}");

    // What somebody else wrote is not written over, and what an engine cannot do is refused by name.
    std::fs::write(project.join("compose.yaml"), "services: {}").unwrap();
    let error = hub.fails(INVALID, &generate);
    assert!(error.contains("compose.yaml is there already, and is not of `mcpctl generate`"), "{error}");
    hub.write("b.yaml", &manifest("b", "source: {command: {path: ./b}}"));
    let error = hub.fails(INVALID, &generate);
    assert!(error.contains("MCPServer default/b: compose cannot honour spec.source.command"), "{error}");
    // Why a registry did not answer, and what to do about it.
    hub.write("c.yaml", &manifest("c", "source: {image: {ref: 'localhost:1/c:1'}}"));
    let error = hub.fails(INVALID, &generate);
    assert!(error.contains("warning: ") && error.contains("Connection refused"), "{error}");
    assert!(error.contains("hint: run it again"), "{error}");
    let kubernetes = hub.fails(INVALID, &["generate", "--format", "kubernetes", "-f", manifests]);
    assert!(kubernetes.contains("kubernetes cannot honour spec.source.command"), "{kubernetes}");
}
