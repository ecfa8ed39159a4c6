//! Files that nobody should have to fear.

use std::path::Path;

use mcp_hub_compose::import::{self, NotImported, Relative};
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(name: &str, text: &str) -> Result<import::Imported, NotImported> {
    import::read(Path::new(name), text, Relative::Kept)
}

#[test]
fn what_is_no_such_file_says_so() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", ")));
    }
    bomb.push_str("services: {x: {image: y}}\n");
    for (name, text, wanted) in [
        ("compose.yaml", "", "compose.yaml is neither a Compose file"),
        ("compose.yaml", "services: {}", "is neither a Compose file"),
        ("compose.yaml", "services: [a]", "is neither a Compose file"),
        ("compose.yaml", "just text", "is neither a Compose file"),
        ("compose.yaml", "services: {a: {image: x}, a: {image: y}}", "compose.yaml:1:27: services.a: duplicate key"),
        ("compose.yaml", "services: {a: {image: x}}\n---\nservices: {}", "holds 2 documents"),
        ("compose.yaml", "services: {a: &a {image: x, x-self: *a}}", "not valid YAML"),
        ("compose.yaml", "services: {a: {image: *none}}", "not valid YAML"),
        ("compose.yaml", "services: {a: [", "not valid YAML"),
        ("compose.yaml", &"[".repeat(10_000), "not valid YAML"),
        ("compose.yaml", &bomb, "not valid YAML"),
        ("a.yaml", "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer", "is a manifest already"),
        ("config.toml", "a = [", "not valid TOML"),
        ("config.toml", &format!("a = {}", "[".repeat(10_000)), "not valid TOML"),
        ("config.toml", "[other]\na = 1", "is neither a Compose file"),
        ("x.json", "{", "not valid YAML"),
    ] {
        let problem = read(name, text).unwrap_err().to_string();
        assert!(problem.contains(wanted), "{text:.60}: {problem}");
    }
}

#[test]
fn a_service_that_is_nothing_is_named_and_the_others_are_taken() {
    let imported = read(
        "c.yaml",
        "services: {a: {image: x}, b: null, c: {image: [x]}, d: {image: x, environment: 7, volumes: {}, ports: 80}, '---': {image: x}}",
    )
    .unwrap();
    let names: Vec<_> = imported.servers.iter().filter_map(|server| server.metadata.name.clone()).collect();
    assert_eq!(names, ["a", "d"]);
    let said: Vec<String> = imported.remarks.iter().map(|remark| remark.path.to_string()).collect();
    assert_eq!(
        said,
        [
            "services.b",
            "services.c.image",
            "services.d.environment",
            "services.d.volumes",
            "services.d.ports",
            "services.---"
        ]
    );
}

#[test]
fn a_label_like_ours_is_read_as_a_manifest_is_and_asks_for_no_more_than_ours() {
    let imported = |label: &str, rest: &str| {
        let file = format!("services: {{a: {{image: x, labels: {{mcphub.io/server: '{label}'}}, {rest}}}}}");
        let imported = read("c.yaml", &file).unwrap();
        let said: Vec<String> = imported.remarks.iter().map(|remark| remark.text.clone()).collect();
        (serde_json::to_value(&imported.servers[0].spec).unwrap(), said.join("; "))
    };
    for (label, wanted) in [
        (r#"{"spec": {"source": {"image": "str"}}}"#, "it cannot be read: spec.source.image: "),
        (r#"{"spec": {"source": {"image": {"ref": "x"}}, "resources": "x"}}"#, "it cannot be read: spec.resources: "),
        (r#"{"spec": {"source": {"image": {"ref": "x"}}, "resources": {"limits": 7}}}"#, "it cannot be read: "),
        (r#"{"spec": "x"}"#, "it cannot be read: spec: "),
        ("[]", "it cannot be read: "),
        (
            r#"{"spec": {"source": {"command": {"path": "/bin/sh"}}}}"#,
            "no generated file has spec.source.command there",
        ),
        (
            r#"{"spec": {"source": {"remote": {"url": "https://x.example.com"}}}}"#,
            "no generated file has spec.source.remote",
        ),
        (
            r#"{"spec": {"source": {"image": {"ref": "x"}}, "env": [{"name": "A", "value": "b"}]}}"#,
            "no generated file has spec.env with values there",
        ),
        (
            r#"{"spec": {"source": {"image": {"ref": "x"}}, "kubernetes": {"podTemplate": {}}}}"#,
            "no generated file has spec.kubernetes there",
        ),
    ] {
        let (spec, said) = imported(label, "mem_limit: 1g");
        assert!(said.contains(wanted), "{label}: {said}");
        assert_eq!(spec, json!({"source": {"image": {"ref": "x"}}, "resources": {"limits": {"memory": "1024Mi"}}}));
    }
    let source = r#""source": {"image": {"ref": "x"}}"#;
    let wide = r#""permissions": {"filesystem": "unrestricted"}, "runAs": {"user": 0, "allowRoot": true}"#;
    let (spec, said) = imported(&format!(r#"{{"spec": {{{source}, {wide}}}}}"#), "scale: 1");
    assert_eq!(spec["permissions"]["filesystem"], "unrestricted");
    assert!(
        said.contains("lets the server write to its root") && said.contains("lets the server run as root"),
        "{said}"
    );
}

#[test]
fn an_entry_of_a_client_with_sections_of_the_wrong_type_says_so() {
    for (entry, wanted) in [
        (
            r#"{"command": "npx", "args": ["a"], "env": "x", "env_keys": ["A"]}"#,
            "mcpServers.a.env: not taken: expected a mapping",
        ),
        (
            r#"{"command": {"path": "npx", "args": ["a"], "env": 7}, "env_keys": ["A"]}"#,
            "mcpServers.a.env: not taken: expected a",
        ),
        (
            r#"{"url": "https://x.example.com", "headers": 1, "http_headers": {"A": "b"}}"#,
            "mcpServers.a.headers: not taken",
        ),
        (
            r#"{"url": "https://x.example.com", "bearer_token_env_var": "X", "headers": []}"#,
            "mcpServers.a.headers: not taken",
        ),
        (
            r#"{"url": "https://x.example.com", "env_http_headers": {"A": 1}}"#,
            "mcpServers.a.env_http_headers.A: not taken",
        ),
        (r#"{"url": "https://x.example.com", "requestOptions": "x"}"#, "mcpServers.a.requestOptions: not taken"),
    ] {
        let imported = read("x.json", &format!(r#"{{"mcpServers": {{"a": {entry}}}}}"#)).unwrap();
        let said: Vec<String> = imported.remarks.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|remark| remark.contains(wanted)), "{entry}: {said:?}");
        assert_eq!(imported.servers.len(), 1, "{entry}");
    }
}

/// Any JSON, of few and short values.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-zA-Z_${}:/-]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("image|ref|limits|headers|path|env|A", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn no_label_makes_it_panic(
        spec in prop::collection::btree_map("source|resources|env|volumes|permissions|runAs", json_value(), 0..4),
        source in any::<bool>(),
    ) {
        crate::keep_rules();
        let mut spec = json!(spec);
        if source {
            spec["source"] = json!({"image": {"ref": "x"}});
        }
        let label = json!({"spec": spec}).to_string();
        let service = json!({
            "image": "y", "labels": {"mcphub.io/server": label}, "mem_limit": "1g", "cpus": 1, "environment": {"A": "b"},
            "volumes": ["./a:/a"], "deploy": {"resources": {"limits": {"memory": "1g"}}},
        });
        read("a.yaml", &json!({"services": {"a": service}}).to_string()).ok();
    }

    #[test]
    fn no_entry_of_a_client_makes_it_panic(
        entry in prop::collection::btree_map(
            "command|cmd|args|env|envs|env_keys|url|uri|headers|http_headers|env_http_headers|requestOptions\
             |bearer_token_env_var|enabled|enabled_tools|disabled_tools|startup_timeout_sec|name|type",
            json_value(),
            0..6,
        ),
        section in prop::sample::select(&["mcpServers", "servers", "context_servers", "mcp_servers", "extensions"][..]),
        is_remote in any::<bool>(),
    ) {
        crate::keep_rules();
        let mut entry = json!(entry);
        if is_remote {
            entry["url"] = "https://x.example.com/mcp".into();
        } else {
            entry["command"] = "npx".into();
        }
        read("a.json", &json!({section: {"a": entry.clone()}}).to_string()).ok();
        read("a.json", &json!({section: [entry]}).to_string()).ok();
    }

    #[test]
    fn nothing_that_is_read_makes_it_panic(text in r"(?s).{0,300}", toml in any::<bool>()) {
        crate::keep_rules();
        read(if toml { "a.toml" } else { "a.yaml" }, &text).ok();
    }

    #[test]
    fn no_service_makes_it_panic(
        key in r"[a-z_]{1,12}|ports|volumes|environment|command|deploy|labels|user|image|tmpfs|depends_on",
        value in r#"[a-z0-9:/.$\{\}\[\], '"-]{0,40}"#,
    ) {
        crate::keep_rules();
        read("a.yaml", &format!("services: {{a: {{image: x, {key}: {value}}}}}")).ok();
        read("a.yaml", &format!("services: {{a: {{image: x, {key}: ['{}']}}}}", value.replace('\'', ""))).ok();
    }
}
