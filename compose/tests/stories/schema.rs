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
