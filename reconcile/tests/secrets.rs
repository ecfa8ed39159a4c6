//! Passes over servers that need secrets, as stories.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use scenario::{Scenario, command, server};
use serde_json::json;

#[tokio::test]
async fn a_missing_secret_holds_back_a_new_server() {
    let s = Scenario::new();
    let spec = json!({
        "source": {"command": {"path": "./run"}},
        "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
    });
    s.store.apply_server(server("github", spec));
    assert_eq!(s.settle().await, ["prepare source github", "status of github"]);
    insta::assert_snapshot!(s.status("github"), @r"
    Pending (generation 1)
    + Accepted Accepted: every field is honoured
    - Resolved SecretMissing: no value for secret github/token
    - Available Pending: nothing of the server runs
    - Ready SecretMissing: no value for secret github/token
    + RuntimeSupported Supported: the runtime honours the spec in full
    version: 1.0.0
    ");

    s.store.set_secret("github", "token", Some("hunter2"));
    assert_eq!(s.settle().await, ["make bridge github", "status of github"]);
    assert_eq!(s.ready("github"), "True Ready");
    assert!(!s.end_state().contains("hunter2"), "a secret's value is in no object and no status");
}

#[tokio::test]
async fn a_missing_secret_leaves_a_running_server_alone() {
    let s = Scenario::new();
    let env = |args: &[&str]| {
        json!({
            "source": {"command": {"path": "./run"}}, "args": args,
            "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
        })
    };
    s.store.set_secret("github", "token", Some("1"));
    s.store.apply_server(server("github", env(&[])));
    s.settle().await;
    let running = s.runtime.inventory();

    s.store.set_secret("github", "token", None);
    s.store.apply_server(server("github", env(&["changed"])));
    s.settle().await;
    assert_eq!(s.runtime.inventory(), running);
    insta::assert_snapshot!(s.status("github"), @r"
    Ready (generation 2)
    + Accepted Accepted: every field is honoured
    - Resolved SecretMissing: no value for secret github/token
    + Available Running: the server's bridge answers
    + Ready Ready: the MCP handshake succeeded
    + RuntimeSupported Supported: the runtime honours the spec in full
    endpoint: http://127.0.0.1/github
    version: 1.0.0
    server: fake-server 1.2.3
    tools: 3
    ");
}

#[tokio::test]
async fn a_changed_secret_restarts_its_users_and_nobody_else() {
    let s = Scenario::new();
    s.store.set_secret("github", "token", Some("1"));
    let spec = json!({
        "source": {"command": {"path": "./run"}},
        "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
    });
    s.store.apply_server(server("github", spec));
    s.store.apply_server(command("other", &[]));
    s.settle().await;
    s.store.set_secret("github", "token", Some("2"));
    assert_eq!(s.settle().await, ["remove bridge github", "make bridge github"]);
}

#[tokio::test]
async fn a_secret_backend_that_fails_is_named_and_stops_nothing() {
    let s = Scenario::new();
    s.store.set_secret("github", "token", Some("1"));
    let spec = json!({
        "source": {"command": {"path": "./run"}},
        "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
    });
    s.store.apply_server(server("github", spec.clone()));
    s.settle().await;
    s.store.break_secrets(Some("the file is locked"));
    s.store.apply_server(server("late", spec));
    s.settle().await;
    assert_eq!(s.ready("github"), "True Ready");
    insta::assert_snapshot!(s.status("late"), @r"
    Failed (generation 1)
    + Accepted Accepted: every field is honoured
    - Resolved Pending: the source was not looked at yet
    - Available SecretBackendFailed: secret backend could not give `github` key `token`: the file is locked
    - Ready SecretBackendFailed: secret backend could not give `github` key `token`: the file is locked
    + RuntimeSupported Supported: the runtime honours the spec in full
    last error: secret backend could not give `github` key `token`: the file is locked
    ");
}
