//! What was generated and is imported again is what it was.

use std::collections::BTreeMap;

use mcp_hub_compose::engine::Engine;
use mcp_hub_crds::server::{EnvVar, Resources};
use mcp_hub_crds::{MCPServer, Resource};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A server of which an engine can honour everything.
fn spec(engine: Engine) -> impl Strategy<Value = Value> {
    let text = r#"[ -~äß]{0,20}|\$\{[A-Z]{1,4}\}|\$[A-Z]|a\nb: c"#;
    let source = prop_oneof![
        (Just("mcp/files:1"), proptest::option::of(prop::collection::vec("[a-z/$-]{1,8}", 1..3)))
            .prop_map(|(image, command)| json!({"image": {"ref": image, "command": command}})),
        Just(json!({"image": {"ref": format!("mcp/x@sha256:{}", "0b".repeat(32)), "command": ["/x"]}})),
    ];
    let source = match engine {
        Engine::Compose => prop_oneof![
            2 => source,
            1 => Just(json!({"package": {"registry": "npm", "name": "@a/b", "version": "1.2.3"}})),
        ]
        .boxed(),
        Engine::Swarm => source.boxed(),
    };
    let env = prop::collection::btree_map(
        "[A-J]{3,6}",
        prop_oneof![
            3 => text.prop_map(|value| json!({"value": value})),
            1 => "[a-z]{1,5}".prop_map(|name| json!({"secretRef": {"name": name, "key": "token"}})),
        ],
        0..4,
    );
    let volumes = prop::collection::btree_map("[a-z]{1,5}", (any::<bool>(), any::<bool>()), 0..3);
    let amounts = (proptest::option::of(1_u32..4000), proptest::option::of(1_u32..4_000_000));
    let args = prop::collection::vec(text, 0..4);
    (source, args, env, volumes, amounts, any::<bool>()).prop_map(
        move |(source, args, env, volumes, (cpu, memory), idle)| {
            let env: Vec<Value> = env
                .into_iter()
                .map(|(name, mut value)| {
                    // Which a Swarm would expand.
                    if engine == Engine::Swarm
                        && let Some(text) = value["value"].as_str()
                    {
                        value["value"] = text.replace("{{", "{ {").into();
                    }
                    value["name"] = name.into();
                    value
                })
                .collect();
            let volumes: Vec<Value> = volumes
                .into_iter()
                .map(|(name, (read_only, of_host))| {
                    let of_host = of_host && engine == Engine::Compose;
                    let mut volume = json!({"name": name, "mountPath": format!("/v/{name}")});
                    if of_host {
                        volume["hostPath"] = format!("/srv/$x/{name}").into();
                    } else {
                        volume["emptyDir"] = json!({});
                    }
                    if read_only {
                        volume["readOnly"] = true.into();
                    }
                    volume
                })
                .collect();
            let mut spec = json!({"source": source, "args": args, "env": env, "volumes": volumes});
            if cpu.is_some() || memory.is_some() {
                let cpu = cpu.map(|millis| format!("{millis}m"));
                let memory = memory.map(|bytes| (u64::from(bytes) * 997).to_string());
                spec["resources"] = json!({"limits": {"cpu": cpu, "memory": memory}});
            }
            if idle {
                spec["lifecycle"] = json!({"mode": "onDemand", "idleTimeout": "5m"});
                spec["tools"] = json!({"deny": ["rm_*"]});
            }
            spec
        },
    )
}

fn limits(resources: Option<&Resources>) -> (Option<u64>, Option<u64>) {
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let cpu = limits.and_then(|limits| limits.cpu.as_ref()).map(|cpu| cpu.millis());
    (cpu, limits.and_then(|limits| limits.memory.as_ref()).map(|memory| memory.units()))
}

fn by_name(env: Option<&Vec<EnvVar>>) -> BTreeMap<String, EnvVar> {
    env.into_iter().flatten().map(|variable| (variable.name.clone(), variable.clone())).collect()
}

fn again(engine: Engine, spec: &Value) -> (MCPServer, MCPServer) {
    let manifest = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": "a", "labels": {"b": "c"}}, "spec": spec});
    let Some(Resource::Server(before)) = crate::resources(&manifest.to_string()).pop() else { panic!("no server") };
    let generated = crate::generate(engine, &manifest.to_string()).unwrap_or_else(|refused| panic!("{refused}"));
    let project = generated.files.last().unwrap();
    let yaml = &project.content;
    let imported = crate::import::read(project.name, yaml);
    assert_eq!(imported.remarks, [], "{yaml}");
    let [after] = &imported.servers[..] else { panic!("{:?}", imported.servers) };
    (before, after.clone())
}

fn same(engine: Engine, spec: &Value) {
    crate::keep_rules();
    let (before, after) = again(engine, spec);
    assert_eq!(after.metadata.labels, before.metadata.labels);
    assert_eq!(limits(after.spec.resources.as_ref()), limits(before.spec.resources.as_ref()));
    assert_eq!(by_name(after.spec.env.as_ref()), by_name(before.spec.env.as_ref()));
    let rest = |server: MCPServer| {
        let empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        let mut spec = server.spec;
        (spec.env, spec.resources) = (None, None);
        spec.args = spec.args.take().filter(|args| !empty(&Some(args.clone())));
        spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
        spec
    };
    assert_eq!(rest(after), rest(before));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_project_is_imported_as_it_was_generated(spec in spec(Engine::Compose)) {
        same(Engine::Compose, &spec);
    }

    #[test]
    fn a_stack_is_imported_as_it_was_generated(spec in spec(Engine::Swarm)) {
        same(Engine::Swarm, &spec);
    }
}

#[test]
fn an_edit_in_the_file_counts() {
    let spec = json!({"source": {"image": {"ref": "mcp/files:1"}}, "env": [{"name": "LEVEL", "value": "info"}]});
    let manifest =
        json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": "a"}, "spec": spec});
    let generated = crate::generate(Engine::Compose, &manifest.to_string()).unwrap();
    let file = &crate::file(&generated, "compose.yaml").content;
    let digest = format!("mcp/files:1@sha256:{}", "5a".repeat(32));
    let edited = file.replace(&digest, "mcp/files:2").replace("'info'", "'debug'");
    assert_ne!(&edited, file);
    let imported = crate::import::read("compose.yaml", &edited);
    let spec = serde_json::to_value(&imported.servers[0].spec).unwrap();
    assert_eq!(spec["source"]["image"]["ref"], "mcp/files:2");
    assert_eq!(spec["env"], json!([{"name": "LEVEL", "value": "debug"}]));
}
