//! Every generated file under the published schema of the Compose specification.

use mcp_hub_compose::engine::Engine;
use serde_json::Value;

/// The schema, compiled.
pub(crate) fn compose() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(include_str!("../schema/compose-spec.json")).unwrap();
    jsonschema::draft7::new(&schema).unwrap()
}

/// All that is wrong with a file; empty if nothing is.
pub(crate) fn violations(schema: &jsonschema::Validator, yaml: &str) -> Vec<String> {
    let document: Value = serde_saphyr::from_str(yaml).unwrap();
    schema.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn generated_files_are_what_the_specification_says() {
    let schema = compose();
    let image = crate::server(
        "a",
        "{source: {image: {ref: 'mcp/files:1'}}, replicas: 1, env: [{name: A, secretRef: {name: b, key: c}}], resources: {limits: {cpu: 100m, memory: 100M}}, volumes: [{name: v, emptyDir: {}, mountPath: /v}], permissions: {network: {egress: []}}}",
    );
    let package =
        crate::server("b", "{source: {package: {registry: npm, name: '@a/b', version: 1.0.0, executable: c}}}");
    for (engine, name, text) in [
        (Engine::Compose, "compose.yaml", image.clone() + &package),
        (Engine::Compose, "compose.yaml", crate::example("compose/servers.yaml")),
        (Engine::Swarm, "stack.yaml", image),
    ] {
        let generated = crate::generate(engine, &text).unwrap();
        let yaml = &crate::file(&generated, name).content;
        assert_eq!(violations(&schema, yaml), Vec::<String>::new(), "{yaml}");
    }
    assert!(!violations(&schema, "services: {a: {imagee: x}}").is_empty(), "the schema refuses nothing");
}

/// `docker compose`, or the program of before; `None` where neither is installed.
pub(crate) fn program() -> Option<Vec<&'static str>> {
    let works = |words: &[&str]| {
        let version = std::process::Command::new(words[0]).args(&words[1..]).arg("version").output();
        version.is_ok_and(|output| output.status.success())
    };
    [vec!["docker", "compose"], vec!["docker-compose"]].into_iter().find(|words| works(words))
}

#[test]
fn compose_itself_reads_a_project_and_misses_the_secrets() {
    let Some(words) = program() else { return eprintln!("skipped: Compose is not installed") };
    let text = crate::example("compose/servers.yaml")
        + &crate::server(
            "files",
            "{source: {image: {ref: 'mcp/files:1'}}, args: ['$HOME'], env: [{name: PRICE, value: '5$ ${HOME}'}, {name: 'NO', value: 'on'}], volumes: [{name: a, emptyDir: {}, mountPath: /a}], resources: {limits: {cpu: 100m, memory: 100M}}, runAs: {user: 1000, group: 50}}",
        );
    let folder = tempfile::tempdir().unwrap();
    for file in crate::generate(Engine::Compose, &text).unwrap().files {
        std::fs::write(folder.path().join(file.name), file.content).unwrap();
    }
    let config = |key: Option<&str>| {
        let mut config = std::process::Command::new(words[0]);
        config.args(&words[1..]).arg("config").current_dir(folder.path()).env_remove("MCP_ELSEWHERE_KEY");
        config.envs(key.map(|key| ("MCP_ELSEWHERE_KEY", key))).output().unwrap()
    };
    let output = config(Some("s3cret"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).unwrap();
    let service = |name: &str| &read["services"][name];
    assert_eq!(service("mcp-hub")["environment"]["MCP_ELSEWHERE_KEY"], "s3cret");
    // What it shows is written as it would be read again.
    assert_eq!(service("files")["environment"]["PRICE"], "5$$ $${HOME}");
    assert_eq!(service("files")["environment"]["NO"], "on");
    assert_eq!(service("files")["user"], "1000:50");
    assert_eq!(service("files")["depends_on"]["mcp-hub-bridge"]["condition"], "service_completed_successfully");
    let without = config(None);
    assert!(!without.status.success());
    assert!(String::from_utf8_lossy(&without.stderr).contains("set MCP_ELSEWHERE_KEY"));
}
