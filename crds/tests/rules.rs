//! The rules of the definitions, applied without an API server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use mcp_hub_crds::ResourceKind;
use mcp_hub_crds::schema::definitions;
use mcp_hub_crds::validate::{Rule, Rules, Violation};
use serde_json::{Value, json};

fn violations(kind: ResourceKind, object: &Value) -> Vec<Violation> {
    static RULES: LazyLock<Arc<Rules>> = LazyLock::new(Rules::compiled);
    RULES.violations(kind, object)
}

fn server(name: &str, spec: Value) -> (ResourceKind, Value) {
    let mut merged = json!({"source": {"command": {"path": "x"}}});
    for (field, value) in spec.as_object().unwrap() {
        merged[field] = value.clone();
    }
    let object =
        json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": name}, "spec": merged});
    (ResourceKind::MCPServer, object)
}

fn hub(name: &str, spec: Value) -> (ResourceKind, Value) {
    let object =
        json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub", "metadata": {"name": name}, "spec": spec});
    (ResourceKind::MCPHub, object)
}

struct Case {
    refused: (ResourceKind, Value),
    accepted: (ResourceKind, Value),
}

fn case(refused: Value, accepted: Value) -> Case {
    Case { refused: server("a", refused), accepted: server("a", accepted) }
}

fn cases() -> Vec<Case> {
    let remote = json!({"remote": {"url": "https://x"}});
    let header = |header: Value| json!({"source": {"remote": {"url": "https://x", "headers": [header]}}});
    let secret = json!({"name": "a", "key": "b"});
    vec![
        Case { refused: server(&"x".repeat(41), json!({})), accepted: server(&"x".repeat(40), json!({})) },
        Case { refused: hub("a.b", json!({})), accepted: hub("a-b", json!({})) },
        case(json!({"source": remote, "args": ["x"]}), json!({"source": remote, "timeouts": {"call": "1m"}})),
        case(json!({"roots": "Forward"}), json!({"roots": "Forward", "sessions": {"mode": "perClient"}})),
        case(
            json!({"runtime": "process", "source": {"image": {"ref": "x"}}}),
            json!({"runtime": "docker", "source": {"image": {"ref": "x"}}}),
        ),
        case(json!({"transport": {"port": 80}}), json!({"transport": {"type": "sse", "port": 80, "path": "/sse"}})),
        case(json!({"transport": {"type": "sse"}}), json!({"transport": {"type": "stdio"}})),
        case(
            json!({"transport": {"type": "sse", "port": 80, "era": "modern"}}),
            json!({"transport": {"type": "sse", "port": 80, "era": "legacy"}}),
        ),
        case(
            json!({"source": remote, "transport": {"type": "sse", "port": 80}}),
            json!({"source": remote, "transport": {"type": "sse"}}),
        ),
        case(
            json!({"source": remote, "transport": {"type": "stdio"}}),
            json!({"source": remote, "transport": {"era": "legacy"}}),
        ),
        case(
            json!({"env": [{"name": "A", "value": "x", "secretRef": secret}]}),
            json!({"env": [{"name": "A", "value": "x"}, {"name": "B", "secretRef": secret}, {"name": "C"}]}),
        ),
        case(
            json!({"volumes": [{"name": "a", "mountPath": "/a", "pvc": "x", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "a", "mountPath": "/a", "emptyDir": {}}]}),
        ),
        case(json!({"runAs": {"user": 0}}), json!({"runAs": {"user": 0, "allowRoot": true}})),
        case(
            json!({"lifecycle": {"idleTimeout": "1m"}}),
            json!({"lifecycle": {"mode": "onDemand", "idleTimeout": "1m"}}),
        ),
        case(json!({"health": {"http": "/x", "exec": ["x"]}}), json!({"health": {"http": "/x"}})),
        case(header(json!({"name": "A"})), header(json!({"name": "A", "value": "x"}))),
        Case {
            refused: hub(
                "a",
                json!({"gateway": {"ingress": {"host": "x"}, "httpRoute": {"host": "x", "gateway": "y"}}}),
            ),
            accepted: hub("a", json!({"gateway": {"ingress": {"host": "x"}}})),
        },
        Case {
            refused: hub("a", json!({"gateway": {"tls": {}}})),
            accepted: hub("a", json!({"gateway": {"tls": {"certManagerIssuer": "x"}}})),
        },
        Case {
            refused: hub("a", json!({"auth": {"mode": "oidc"}})),
            accepted: hub("a", json!({"auth": {"mode": "oidc", "oidc": {"issuer": "https://x", "audiences": ["a"]}}})),
        },
    ]
}

/// The rules of a definition, each with its kind and the place it stands at.
fn rules() -> BTreeSet<(ResourceKind, String)> {
    fn walk(schema: &Value, kind: ResourceKind, found: &mut BTreeSet<(ResourceKind, String)>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            found.insert((kind, rule["rule"].as_str().unwrap().to_owned()));
        }
        let children = schema["properties"].as_object().into_iter().flatten().map(|(_, child)| child);
        for child in children.chain(schema.get("items")).chain(schema.get("additionalProperties")) {
            walk(child, kind, found);
        }
    }
    let mut found = BTreeSet::new();
    for (definition, kind) in definitions().iter().zip(ResourceKind::ALL) {
        walk(&serde_json::to_value(&definition.spec.versions[0].schema).unwrap()["openAPIV3Schema"], kind, &mut found);
    }
    found
}

#[test]
fn each_cel_rule_refuses_one_input_and_accepts_another() {
    let mut proven = BTreeSet::new();
    for Case { refused, accepted } in cases() {
        let found = violations(refused.0, &refused.1);
        assert_eq!(found.len(), 1, "{:?} {found:?}", refused.1);
        let Rule::Cel(rule) = &found[0].rule else { panic!("{found:?}") };
        assert_eq!(violations(accepted.0, &accepted.1), [], "{:?}", accepted.1);
        proven.insert((refused.0, rule.clone()));
    }
    let unproven: Vec<_> = rules().difference(&proven).cloned().collect();
    assert_eq!(unproven, [], "rules without a case here");
}

#[test]
fn all_violations_are_found_at_once() {
    let (kind, object) = server(
        "a",
        json!({"runtime": "dockr", "replicas": 1000, "workingDir": "", "args": "x", "env": [{"name": "1"}], "roots": "Forward",
               "timeouts": {"cal": "1s", "call": "soon"}, "health": {"exec": []}, "expose": [],
               "resources": {"limits": {"cpu": -1, "memory": true}}, "permissions": {"network": "none"},
               "kubernetes": {"podTemplate": {"anything": [1, {"goes": null}]}}}),
    );
    let text: Vec<String> = violations(kind, &object)
        .iter()
        .map(|violation| match &violation.hint {
            Some(hint) => format!("{violation} ({hint})"),
            None => violation.to_string(),
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
    spec.timeouts.cal: unknown field (did you mean `call`?)
    spec.expose: unknown field (did you mean `exposeTo`?)
    spec.runtime: `dockr` is not one of process, docker, podman, vessel, swarm (did you mean `docker`?)
    spec.replicas: 1000 is greater than 100
    spec.workingDir: must not be empty
    spec.args: expected a list, found text
    spec.env[0].name: `1` does not match `^[A-Za-z_][A-Za-z0-9_.-]*$`
    spec.timeouts.call: `soon` is no duration (expected for example `30s`, `10m` or `1h30m`)
    spec.health.exec: must not be empty
    spec.resources.limits.cpu: -1 is less than 0
    spec.resources.limits.memory: expected a whole number or text, found `true`
    spec.permissions.network: expected a mapping, found text
    spec: roots: Forward needs sessions.mode: perClient
    "#);
}

#[test]
fn two_variables_of_one_name_are_refused_as_an_api_server_does() {
    let (kind, object) = server("a", json!({"env": [{"name": "A"}, {"name": "B"}, {"name": "A"}]}));
    let found = violations(kind, &object);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].to_string(), "spec.env[2]: the same name as item 0");
}

#[test]
fn a_secret_put_where_a_section_belongs_is_not_repeated() {
    let (kind, object) = server("a", json!({"env": [{"name": "A", "secretRef": "ghp_confidential"}]}));
    let text = format!("{:?}", violations(kind, &object));
    assert!(text.contains("expected a mapping, found text") && !text.contains("confidential"), "{text}");
}
