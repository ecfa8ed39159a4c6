//! What manifests become.

use mcp_hub_compose::engine::{self, Engine, Images, Key};
use mcp_hub_compose::project::{NoProject, Project};
use mcp_hub_compose::{Access, kubernetes};
use serde_json::{Value, json};

use crate::{example, facts, file, generate, resources, server};

/// Every way that a server comes, and what may be said of one.
const EVERYTHING: &str = r#"
---
apiVersion: mcphub.io/v1alpha1
kind: MCPHub
metadata: {name: tools}
spec: {gateway: {port: 9000, allowedHosts: [hub.example.com]}, naming: {separator: "."}}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: files, labels: {team: dev}}
spec:
  source: {image: {ref: "mcp/files:1", pullSecretRef: {name: registry}}}
  args: [--root, "$HOME/data"]
  workingDir: /data
  env: [{name: PRICE, value: "5$ or ${HOME}: yes"}, {name: ANSWER, value: "yes"}, {name: "NO", value: "1000:50"}, {name: LINES, value: "a\nb: c\n# d"}]
  volumes:
    - {name: src, hostPath: ./src, mountPath: /data, readOnly: true}
    - {name: home, hostPath: ~/notes, mountPath: /notes}
    - {name: cache, emptyDir: {}, mountPath: /cache}
  resources: {limits: {cpu: "1.5", memory: 1Gi}, requests: {memory: 64Mi}}
  tools: {allow: ["read_*"]}
  lifecycle: {mode: onDemand, idleTimeout: 5m}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: github}
spec:
  source: {image: {ref: "ghcr.io/github/github-mcp-server:v0.20.1"}}
  env: [{name: GITHUB_PERSONAL_ACCESS_TOKEN, secretRef: {name: github, key: token}}]
  transport: {type: stdio, era: legacy}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: named}
spec:
  source: {image: {ref: "mcp/named:1", pinDigest: false}}
  transport: {type: streamable-http, port: 7337}
  runAs: {user: 1234, group: 99}
  permissions: {filesystem: unrestricted}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: resting}
spec: {source: {image: {ref: "mcp/named:1"}}, paused: true}
---
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: elsewhere}
spec:
  source:
    remote:
      url: https://mcp.example.com/mcp
      headers: [{name: x-api-key, secretRef: {name: elsewhere, key: value}}, {name: x-price, value: "5$ ${HOME}"}]
"#;

#[test]
fn the_example_is_a_compose_project() {
    let generated = generate(Engine::Compose, &example("compose/servers.yaml")).unwrap();
    insta::assert_snapshot!("example_compose", file(&generated, "compose.yaml").content);
    insta::assert_snapshot!("example_gateway", file(&generated, "gateway.json").content);
    insta::assert_snapshot!("example_notices", generated.notices.join("\n"));
}

#[test]
fn everything_that_may_be_said_has_its_place_in_compose() {
    let generated = generate(Engine::Compose, EVERYTHING).unwrap();
    insta::assert_snapshot!("everything_compose", file(&generated, "compose.yaml").content);
    insta::assert_snapshot!("everything_gateway", file(&generated, "gateway.json").content);
    insta::assert_snapshot!("everything_notices", generated.notices.join("\n"));
}

#[test]
fn a_stack_takes_secrets_of_the_swarm() {
    let text = EVERYTHING.replace("    - {name: src, hostPath: ./src, mountPath: /data, readOnly: true}\n", "");
    let text = text.replace("    - {name: home, hostPath: ~/notes, mountPath: /notes}\n", "");
    let text = text.replace("pinDigest: false}}", "pinDigest: false}}\n  replicas: 3");
    let generated = generate(Engine::Swarm, &text).unwrap();
    insta::assert_snapshot!("everything_swarm", file(&generated, "stack.yaml").content);
    insta::assert_snapshot!("swarm_notices", generated.notices.join("\n"));
}

#[test]
fn secrets_are_in_one_file_only_and_the_same_manifests_give_the_same_files() {
    for engine in [Engine::Compose, Engine::Swarm] {
        let text = match engine {
            Engine::Compose => EVERYTHING.to_owned(),
            Engine::Swarm => server(
                "github",
                "{source: {image: {ref: 'mcp/files:1'}}, env: [{name: A, secretRef: {name: b, key: c}}]}",
            ),
        };
        let generated = generate(engine, &text).unwrap();
        assert_eq!(generated, generate(engine, &text).unwrap());
        let names: Vec<&str> = generated.files.iter().map(|file| file.name).collect();
        let project = if engine == Engine::Compose { "compose.yaml" } else { "stack.yaml" };
        assert_eq!(names, ["gateway.env", "gateway.json", project], "a project's tokens are there before it is");
        let tokens = file(&generated, "gateway.env");
        assert_eq!(tokens.access, Access::Owner);
        let values: Vec<&str> =
            tokens.content.lines().filter_map(|line| line.split_once('=')).map(|(_, value)| value).collect();
        assert!(values.len() >= 4 && values.iter().all(|value| value.len() >= 64), "{values:?}");
        for other in generated.files.iter().filter(|file| file.name != tokens.name) {
            assert_eq!(other.access, Access::Everybody);
            for value in &values {
                assert!(!other.content.contains(value), "{} holds a token", other.name);
            }
        }
    }
}

#[test]
fn what_an_engine_cannot_honour_is_refused_by_name_all_at_once() {
    let text = [
        server("a", "{source: {command: {path: ./a}}}"),
        server("b", "{source: {image: {ref: 'mcp/files:1'}}, permissions: {network: {egress: ['example.com:443']}}, replicas: 2, runtime: swarm}"),
        server("c", "{source: {image: {ref: 'mcp/unknown:1'}}}"),
        server("d", "{source: {package: {registry: npm, name: d, version: latest}}}"),
        server("e", "{source: {image: {ref: 'mcp/files:1', pinDigest: true}}, volumes: [{name: v, pvc: x, mountPath: /v}, {name: w, configMap: x, mountPath: /w}, {name: x, emptyDir: {sizeLimit: 1Gi}, mountPath: /mcp-hub/x}, {name: y, emptyDir: {}, mountPath: y}]}"),
        server("f", "{source: {image: {ref: 'mcp/files:1', verify: {identity: a, issuer: b}}}}"),
        server("g", "{source: {image: {ref: 'mcp/files:1'}}, kubernetes: {podTemplate: {spec: {}}}, env: [{name: MCP_BRIDGE_LAUNCH, value: x}]}"),
        server("h", "{source: {image: {ref: 'mcp/files:1'}}, env: [{name: A, secretRef: {name: x-y, key: value}}, {name: B, secretRef: {name: x.y, key: value}}]}"),
        server("i", "{source: {image: {ref: 'mcp/${HOME}:1', command: [/i]}}}"),
        server("j", "{source: {image: {ref: 'mcp/files:1'}}, env: [{name: A, secretRef: {name: hub, key: token}}]}"),
        server("k", "{source: {remote: {url: 'https://x.example.com', headers: [{name: a, secretRef: {name: hub-sealing-key, key: value}}]}}}"),
        server("l", "{source: {image: {ref: 'mcp/files:1'}}, volumes: [{name: a, emptyDir: {}, mountPath: //mcp-hub}, {name: b, emptyDir: {}, mountPath: /x/../mcp-hub}, {name: c, emptyDir: {}, mountPath: /tmp/}, {name: d, emptyDir: {}, mountPath: /}]}"),
        server("mcp-hub", "{source: {image: {ref: 'mcp/files:1'}}}"),
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {name: default}\nspec: {auth: {mode: none}, gateway: {tls: {secretRef: {name: x}}}, openapi: {enabled: true}}\n".to_owned(),
    ]
    .concat();
    insta::assert_snapshot!("refused_compose", generate(Engine::Compose, &text).unwrap_err());
    let text = [
        server("a", "{source: {package: {registry: pypi, name: a, version: '1.0'}}}"),
        server("c", "{source: {image: {ref: 'mcp/files:1'}}, env: [{name: A, value: '{{.Node.Hostname}}'}], volumes: [{name: v, emptyDir: {}, mountPath: '/{{.Task.ID}}'}]}"),
        server("b", "{source: {image: {ref: 'mcp/files:1'}}, runtime: docker, volumes: [{name: v, hostPath: /v, mountPath: /v}]}"),
    ]
    .concat();
    insta::assert_snapshot!("refused_swarm", generate(Engine::Swarm, &text).unwrap_err());
}

#[test]
fn a_swarm_finds_no_templates_in_arguments() {
    let args = "['{{.Node.Hostname}}', '{{{', '\\{{']";
    let generated =
        generate(Engine::Swarm, &server("a", &format!("{{source: {{image: {{ref: 'mcp/files:1'}}}}, args: {args}}}")))
            .unwrap();
    let file: Value = serde_saphyr::from_str(&file(&generated, "stack.yaml").content).unwrap();
    let launch = file["services"]["a"]["environment"]["MCP_BRIDGE_LAUNCH"].as_str().unwrap();
    assert!(!launch.contains("{{"), "{launch}");
    let launch: Value = serde_json::from_str(launch).unwrap();
    assert_eq!(launch["child"]["args"], json!(["/app/index.js", "{{.Node.Hostname}}", "{{{", "\\{{"]));
}

#[test]
fn compose_finds_no_names_in_names_of_images() {
    let project = Project::of(resources(EVERYTHING), None).unwrap();
    let images = Images::of("registry/${HOME}", "0.1.0");
    let generated = engine::write(Engine::Compose, &project, &facts(), &images, &Key::new([7; 32])).unwrap();
    let file = &file(&generated, "compose.yaml").content;
    assert!(file.contains("image: 'registry/$${HOME}/gateway:0.1.0'"), "{file}");
    assert!(!file.contains("registry/${HOME}"), "{file}");
}

#[test]
fn a_project_is_one_hub_and_what_it_offers() {
    let hub = |name: &str, spec: &str| {
        format!("---\napiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: {name}}}\nspec: {spec}\n")
    };
    let image = "{source: {image: {ref: 'mcp/files:1'}}}";
    let text =
        [server("a", image), server("b", image), hub("one", "{servers: {include: [a]}}"), hub("two", "{}")].concat();
    let project = Project::of(resources(&text), Some("one")).unwrap();
    assert_eq!(project.servers.len(), 1);
    assert_eq!(project.left_out, ["default/b"]);
    assert_eq!(Project::of(resources(&text), Some("two")).unwrap().servers.len(), 2);
    let problem = |text: &str, hub: Option<&str>| Project::of(resources(text), hub).unwrap_err();
    assert_eq!(problem(&text, None), NoProject::SeveralHubs(vec!["one".to_owned(), "two".to_owned()]));
    assert!(matches!(problem(&text, Some("three")), NoProject::NoHub { .. }));
    let none = [server("a", image), hub("one", "{servers: {include: [x]}}")].concat();
    assert_eq!(problem(&none, None), NoProject::NoServers { hub: "one".to_owned() });
}

#[test]
fn for_kubectl_manifests_are_sorted_and_say_what_must_be_there() {
    let text = [
        example("kubernetes/hub.yaml"),
        example("kubernetes/servers.yaml"),
        example("kubernetes/more/github.yaml"),
        example("kubernetes/more/remote.yaml"),
        example("kubernetes/more/tls.yaml"),
    ]
    .join("\n---\n");
    let generated = kubernetes::write(&resources(&text)).unwrap();
    let content = &generated.files[0].content;
    insta::assert_snapshot!("kubernetes", content);
    // What is written is what was meant.
    let again = kubernetes::write(&resources(content)).unwrap();
    assert_eq!(again.files, generated.files);
    let local = server(
        "a",
        "{source: {command: {path: ./a}}, runtime: process, volumes: [{name: v, hostPath: /v, mountPath: /v}]}",
    );
    insta::assert_snapshot!("refused_kubernetes", kubernetes::write(&resources(&local)).unwrap_err());
}
