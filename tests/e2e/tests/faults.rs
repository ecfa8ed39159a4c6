//! What goes wrong while servers run: each fault shows as what it is, and harms nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use mcp_hub_e2e::{Hub, condition, eventually, fixture, text};

fn manifest(name: &str, spec: &str) -> String {
    format!("---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n{spec}")
}

fn message(server: &serde_json::Value) -> String {
    condition(server, "Ready").unwrap()["message"].as_str().unwrap().to_owned()
}

#[test]
fn every_broken_server_says_why_and_the_sound_one_answers() {
    let servers = fixture("sound", &[])
        + &fixture("garbage", &["--garbage"])
        + &fixture("dies", &["--exit-code", "3"])
        + &manifest("absent", "  source: {command: {path: ./no-such-program}}\n")
        + &manifest(
            "unpublished",
            "  source: {package: {registry: npm, name: mcp-hub-no-such-package-4711, version: 1.0.0}}\n",
        )
        + &manifest(
            "secretive",
            "  source: {command: {path: sh}}\n  env: [{name: TOKEN, secretRef: {name: nowhere, key: token}}]\n",
        )
        + &(fixture("mute", &["--silent"]) + "  timeouts: {start: 2s}\n");
    let hub = Hub::with(&servers);
    hub.wait_reason("sound", "Ready");
    hub.wait_reason("garbage", "Ready");
    let dies = hub.wait_reason("dies", "CrashLoop");
    assert!(message(&dies).contains("code 3"), "{}", message(&dies));
    assert!(message(&dies).contains("stderr"), "{}", message(&dies));
    let absent = hub.wait_reason("absent", "CommandNotFound");
    assert!(message(&absent).contains("no-such-program") && message(&absent).contains("hint"), "{}", message(&absent));
    let unpublished = hub.wait_reason("unpublished", "PackageNotFound");
    assert!(message(&unpublished).contains("mcp-hub-no-such-package-4711"), "{}", message(&unpublished));
    let secretive = hub.wait_reason("secretive", "SecretMissing");
    assert!(message(&secretive).contains("nowhere/token"), "{}", message(&secretive));
    assert_eq!(condition(&secretive, "Resolved").unwrap()["reason"], "SecretMissing");
    let mute = hub.wait_server("mute", "its silence shows", |server| {
        condition(server, "Ready")
            .is_some_and(|c| c["status"] == "False" && c["message"].as_str().unwrap().contains("did not answer"))
    });
    assert!(message(&mute).contains("initialize"), "{}", message(&mute));

    assert_eq!(hub.ok(&["call", "sound/echo", "--arg", "text=unharmed"]).trim(), "unharmed");
    assert_eq!(hub.ok(&["call", "garbage/echo", "--arg", "text=still"]).trim(), "still");
    let error = hub.fails(7, &["call", "dies/echo", "--json", "{}"]);
    assert!(error.contains("CrashLoop"), "{error}");
    let log = hub.ok(&["logs", "garbage", "--grep", "stdout:"]);
    assert!(!log.is_empty());
}

#[test]
fn a_server_that_crashes_in_a_call_fails_that_call_and_comes_back() {
    let hub = Hub::with(&fixture("a", &[]));
    hub.wait_reason("a", "Ready");
    let before = hub.ok(&["call", "a/pid"]);
    let crash = hub.mcpctl(&["call", "a/crash"]);
    assert!(!crash.status.success(), "{}", text(&crash.stdout));
    let after = eventually("the server answers again", || {
        let output = hub.mcpctl(&["call", "a/pid"]);
        output.status.success().then(|| text(&output.stdout))
    });
    assert_ne!(before, after);
    hub.wait_server("a", "the restart is counted", |server| server["status"]["restarts"].as_i64() == Some(1));
}

#[test]
fn a_busy_port_is_named_with_its_holder_and_taken_when_it_is_free() {
    let hub = Hub::new();
    let manifest = std::fs::read_to_string(hub.manifests().join("hub.yaml")).unwrap();
    let port = manifest.split("port: ").nth(1).unwrap().trim_end_matches(['}', '\n', ' ']);
    let holder = std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let mut hub = hub;
    hub.write("servers.yaml", &fixture("a", &[]));
    hub.start();
    let said = eventually("the hub says that its port is taken", || {
        let said = hub.ok(&["get", "hubs"]);
        said.contains(port).then_some(said)
    });
    assert!(
        said.contains(&format!("process {}", std::process::id())) || said.contains(&std::process::id().to_string()),
        "{said}"
    );
    drop(holder);
    hub.endpoint();
    hub.wait_reason("a", "Ready");
    hub.ok(&["call", "a/echo", "--arg", "text=x"]);
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_with_the_holder() {
    let hub = Hub::with(&fixture("a", &[]));
    hub.wait_reason("a", "Ready");
    // A daemon that cannot see the first one's socket, as after its run folder was wiped.
    let socket = hub.home().join("run/admin.sock");
    let hidden = hub.home().join("run/admin.hidden");
    std::fs::rename(&socket, &hidden).unwrap();
    let error = hub.fails(8, &["daemon"]);
    assert!(error.contains(&hub.daemon_pid().to_string()), "{error}");
    std::fs::rename(&hidden, &socket).unwrap();
    hub.ok(&["call", "a/echo", "--arg", "text=x"]);
}

#[test]
fn only_the_hubs_token_opens_the_endpoint_and_it_opens_nothing_else() {
    let hub = Hub::with(&fixture("a", &[]));
    hub.wait_reason("a", "Ready");
    let endpoint = hub.endpoint();
    let authority = endpoint.url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
    let ask = |path: &str, host: &str, more: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&authority).unwrap();
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\ncontent-length: {}\r\n{more}\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_whitespace().nth(1).unwrap().to_owned()
    };
    let token = format!("authorization: Bearer {}\r\n", endpoint.token);
    assert_eq!(ask("/mcp", &authority, &token), "200");
    assert_eq!(ask("/mcp", &authority, ""), "401");
    assert_eq!(ask("/mcp", &authority, "authorization: Bearer wrong\r\n"), "401");
    assert_eq!(ask("/mcp", "evil.example", &token), "403");
    assert_eq!(ask("/mcp", &authority, &format!("{token}origin: https://evil.example\r\n")), "403");
    for path in ["/objects", "/shutdown", "/actions", "/servers/a/restart"] {
        assert_eq!(ask(path, &authority, &token), "404", "{path}");
    }
    use std::os::unix::fs::PermissionsExt;
    let socket = std::fs::metadata(hub.home().join("run/admin.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
}

#[test]
fn secrets_reach_the_server_and_nothing_else() {
    let mut hub = Hub::new();
    let server = fixture("a", &[])
        + "  env: [{name: FROM_ENVIRONMENT, secretRef: {name: one, key: value}}, {name: FROM_FILE, secretRef: {name: two, key: token}}]\n";
    hub.write("servers.yaml", &server);
    hub.set_env("MCP_ONE", "hunter2-environment");
    hub.set_env("MCPHUB_SECRETS_PASSPHRASE", "correct horse battery staple");
    hub.start();
    hub.wait_reason("a", "SecretMissing");
    hub.ok_with_input(&["secret", "set", "two", "token"], "hunter2-file\n");
    hub.wait_reason("a", "Ready");
    assert_eq!(hub.ok(&["call", "a/env", "--arg", "name=FROM_ENVIRONMENT"]).trim(), "hunter2-environment");
    assert_eq!(hub.ok(&["call", "a/env", "--arg", "name=FROM_FILE"]).trim(), "hunter2-file");

    // A changed secret restarts its user.
    hub.ok_with_input(&["secret", "set", "two", "token"], "hunter2-changed\n");
    eventually("the server has the new value", || {
        let output = hub.mcpctl(&["call", "a/env", "--arg", "name=FROM_FILE"]);
        (text(&output.stdout).trim() == "hunter2-changed").then_some(())
    });

    let mut looked_at = 0;
    let mut folders = vec![hub.home().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                assert!(!bytes.windows(8).any(|window| window == b"hunter2-"), "{}", entry.path().display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 5);
    for pid in hub.processes() {
        let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!argv.windows(8).any(|window| window == b"hunter2-"));
    }
}
