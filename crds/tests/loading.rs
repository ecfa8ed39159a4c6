//! Manifests as people write them, and what they are told when something is wrong.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use mcp_hub_crds::Resource;
use mcp_hub_crds::manifest::{self, Document, load, parse};

fn read(text: &str) -> Vec<Document> {
    parse(text, Path::new("hub.yaml")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refusal(text: &str) -> String {
    parse(text, Path::new("hub.yaml"))
        .map(|documents| format!("accepted: {documents:?}"))
        .unwrap_or_else(|e| e.to_string())
}

fn server(name: &str) -> String {
    format!(
        "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec: {{source: {{command: {{path: x}}}}}}\n"
    )
}

#[test]
fn many_documents_stand_in_one_file_and_empty_ones_are_skipped() {
    let text = format!("---\n{}---\n# nothing\n---\n---\n{}", server("a"), server("b"));
    let found: Vec<_> = read(&text).iter().map(|d| (d.resource.key().to_string(), d.line)).collect();
    assert_eq!(found, [("MCPServer default/a".to_owned(), 2), ("MCPServer default/b".to_owned(), 10)]);
}

#[test]
fn the_examples_are_read() {
    for (folder, documents) in [("quickstart", 5), ("kubernetes", 3), ("kubernetes/more", 6)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(folder);
        let found = load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(found.len(), documents, "{folder}");
    }
}

#[test]
fn json_is_read_too_with_comments_and_tabs() {
    let text = "{\n\t// one\n\t\"apiVersion\": \"mcphub.io/v1alpha1\", \"kind\": \"MCPHub\", /* two\n*/ \"metadata\": {\"name\": \"h\"},\n\t\"spec\": {},\n}";
    let documents = parse(text, Path::new("hub.json")).unwrap();
    assert!(matches!(documents[0].resource, Resource::Hub(_)));
}

#[test]
fn a_hub_without_options_needs_no_spec() {
    let hub = "apiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {name: h}\n";
    for text in [hub.to_owned(), format!("{hub}spec:\n"), format!("{hub}spec: {{}}\n")] {
        let Resource::Hub(found) = &read(&text)[0].resource else { panic!("{text}") };
        assert_eq!(found.spec, mcp_hub_crds::MCPHubSpec::default());
    }
    assert!(refusal(&server("a").replace("spec: {source: {command: {path: x}}}", "")).contains("spec"));
}

#[test]
fn what_a_server_sets_is_left_out() {
    let text = "
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata:
  {name: a, namespace: n, uid: u, resourceVersion: '1', generation: 2, creationTimestamp: 2026-01-01T00:00:00Z, managedFields: []}
spec: {source: {command: {path: x}}}
status: {phase: Ready, anything: true}
";
    let Resource::Server(server) = &read(text)[0].resource else { panic!("no server") };
    assert_eq!(server.metadata.uid, None);
    assert_eq!(server.metadata.generation, None);
    assert_eq!(server.status, None);
    assert_eq!(server.metadata.namespace.as_deref(), Some("n"));
}

#[test]
fn every_fault_of_every_document_is_told_with_its_place() {
    let text = r#"apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: github, labels: {team: dev}}
spec:
  sorce: {}
  source:
    image: {ref: x}
    package: {registry: nmp, name: "@a/b", version: 1.10}
  replicas: 200
  env:
  - {name: A, value: x, secretRef: {name: b, key: c}}
  - {name: A}
  timeouts: {call: 10}
  health: {period: 5d}
  resources: {limits: {cpu: 0.5, memory: 1 GB}}
  replicas: 3
  paused: yes
---
apiVersion: mcphub.io/v1
kind: MCPSever
metadata: {}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {nam: x, namespace: Not_One, labels: {a: 1}}
spec: {source: {}}
---
- a
---
apiVersion: mcphub.io/v1alpha1
kind: MCPHub
metadata: {name: Bad_Name}
spec: {auth: {mode: oidc}, gateway: {replicas: 0, tls: {}}}
---
spec: [
"#;
    insta::assert_snapshot!(refusal(text), @r#"
    hub.yaml:5:3: spec.sorce: unknown field
      hint: did you mean `source`?
    hub.yaml:6:3: spec.source: exactly one of image, package, command and remote must be set
    hub.yaml:8:15: spec.source.package.registry: `nmp` is not one of npm, pypi
      hint: did you mean `npm`?
    hub.yaml:8:44: spec.source.package.version: expected text, found a number
      hint: put quotes around it
    hub.yaml:11:5: spec.env[0]: at most one of `value` and `secretRef` may be set
    hub.yaml:12:5: spec.env[1]: the same name as item 0
    hub.yaml:13:14: spec.timeouts.call: `10` is no duration (expected for example `30s`, `10m` or `1h30m`)
    hub.yaml:14:12: spec.health.period: `5d` is no duration (expected for example `30s`, `10m` or `1h30m`)
    hub.yaml:15:24: spec.resources.limits.cpu: expected a whole number or text, found a number
      hint: put quotes around it
    hub.yaml:15:34: spec.resources.limits.memory: `1 GB` is no quantity (expected for example `500m`, `2` or `256Mi`)
    hub.yaml:16:3: spec.replicas: duplicate key (first at line 9, column 3)
      hint: remove one of the two
    hub.yaml:17:3: spec.paused: expected true or false, found the text `yes`
    hub.yaml:19:1: apiVersion: unknown apiVersion `mcphub.io/v1`
      hint: write `mcphub.io/v1alpha1`
    hub.yaml:20:1: kind: unknown kind `MCPSever`
      hint: did you mean `MCPServer`?
    hub.yaml:25:1: metadata: `name` must be set
    hub.yaml:25:12: metadata.nam: unknown field
      hint: did you mean `name`?
    hub.yaml:25:20: metadata.namespace: `Not_One` does not match `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
    hub.yaml:25:49: metadata.labels.a: expected text, found a number
      hint: put quotes around it
    hub.yaml:26:8: spec.source: exactly one of image, package, command and remote must be set
    hub.yaml:28:1: expected a resource (a mapping with apiVersion, kind, metadata and spec)
    hub.yaml:32:12: metadata.name: a name has at most 40 lower-case letters, digits and inner hyphens
    hub.yaml:33:8: spec.auth: mode: oidc and the section `oidc` belong together
    hub.yaml:33:38: spec.gateway.replicas: 0 is less than 1
    hub.yaml:33:51: spec.gateway.tls: exactly one of `secretRef` and `certManagerIssuer` must be set
    hub.yaml:35:7: not valid YAML: unclosed bracket '['
    "#);
}

#[test]
fn one_key_twice_in_a_file_or_a_directory_is_refused() {
    insta::assert_snapshot!(refusal(&format!("{}---\n{}", server("a"), server("a"))), @r"
    hub.yaml:6:1: MCPServer default/a is already defined in hub.yaml:1
      hint: rename or remove one of the two
    ");

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), server("same")).unwrap();
    fs::write(folder.path().join("b.yml"), format!("\n{}", server("same"))).unwrap();
    let text = load(folder.path()).unwrap_err().to_string().replace(folder.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(text, @r"
    DIR/b.yml:2:1: MCPServer default/same is already defined in DIR/a.yaml:1
      hint: rename or remove one of the two
    ");
}

#[test]
fn a_directory_gives_its_manifests_by_name_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("b.yaml", &server("b"));
    write("a.yml", &server("a"));
    write("c.json", r#"{"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": "c"}, "spec": {}}"#);
    write(".mcp.json", r#"{"mcpServers": {"d": {"command": "x"}}}"#);
    write(".hidden.yaml", "no: [");
    write("README.md", "no: [");
    fs::create_dir(folder.path().join("data")).unwrap();
    write("data/package.json", "{}");
    let names: Vec<_> = load(folder.path()).unwrap().iter().map(|d| d.resource.key().name).collect();
    assert_eq!(names, ["d", "a", "b", "c"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_are_still_checked() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), [0xff, 0xfe, 0xfd]).unwrap();
    fs::write(folder.path().join("b.yaml"), "kind: MCPServer\n").unwrap();
    fs::write(folder.path().join("c.yaml"), " ".repeat((4 << 20) + 1)).unwrap();
    let text = load(folder.path()).unwrap_err().to_string().replace(folder.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(text, @r#"
    DIR/a.yaml: is no text (UTF-8)
    DIR/b.yaml:1:1: `apiVersion` must be set
      hint: write `mcphub.io/v1alpha1`
    DIR/b.yaml:1:1: `metadata` must be set
    DIR/b.yaml:1:1: `spec` must be set
    DIR/c.yaml: is larger than 4 MiB
      hint: split it
    "#);
    let missing = load(&folder.path().join("none.yaml")).unwrap_err().to_string();
    assert!(missing.ends_with("cannot be read: No such file or directory (os error 2)"), "{missing}");
}

#[test]
fn a_text_that_is_too_large_is_refused_before_it_is_parsed() {
    let text = "#".repeat(usize::try_from(manifest::MAX_FILE_BYTES).unwrap() + 1);
    assert_eq!(refusal(&text), "hub.yaml: is larger than 4 MiB\n  hint: split it");
}

#[test]
fn a_value_that_looks_like_a_secret_is_accepted_with_a_warning() {
    let text = "
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: a}
spec:
  source: {remote: {url: 'https://x', headers: [{name: Authorization, value: Bearer x}, {name: Accept, value: y}]}}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: b}
spec:
  source: {command: {path: x}}
  env: [{name: GITHUB_TOKEN, value: abc}, {name: LOG_LEVEL, value: info}, {name: API_KEY, secretRef: {name: a, key: b}}]
";
    let warnings: Vec<_> = read(text).into_iter().flat_map(|document| document.warnings).collect();
    insta::assert_snapshot!(warnings.join("\n"), @r"
    header Authorization looks like a secret and stands here in clear; use secretRef instead of value
    environment variable GITHUB_TOKEN looks like a secret and stands here in clear; use secretRef instead of value
    ");
}

#[test]
fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
    let text = "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: a}\nspec: {source: {command: {path: x}}, replicas: 2.0}\n";
    let Resource::Server(server) = &read(text)[0].resource else { panic!("no server") };
    assert_eq!(server.spec.replicas, Some(2));
}
