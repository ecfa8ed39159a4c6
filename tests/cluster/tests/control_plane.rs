//! A control plane without a node: the project's resources, two clusters side by side, the audit log, a server that dies.
#![cfg(target_os = "linux")]

mod support;

use std::path::Path;

use mcp_hub_test_cluster::{Cluster, Options, Part, Shape};
use serde_json::Value;
use support::{Traces, eventually};

const SERVER: &str = "
apiVersion: mcphub.io/v1alpha1
kind: MCPServer
metadata: {name: units}
spec:
  source: {image: {ref: example.org/units:1}}
";

#[test]
fn the_api_server_takes_a_server_and_refuses_one_that_breaks_a_rule() {
    let cluster = Cluster::up(Options::new(Shape::ControlPlane)).unwrap();
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/yaml");
    cluster.kubectl(["apply", "--server-side", "--filename", crds.to_str().unwrap()]).unwrap();
    cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).unwrap();

    cluster.apply(SERVER).unwrap();
    let list = cluster.kubectl(["get", "mcps", "--output=name"]).unwrap();
    assert_eq!(list, "mcpserver.mcphub.io/units");

    let root = SERVER.replace("units", "root") + "  runAs: {user: 0}\n";
    let said = cluster.apply(&root).unwrap_err().to_string();
    assert!(said.contains("spec.runAs: Invalid value: user 0 is root and needs allowRoot: true"), "{said}");

    let traces = Traces::of(&cluster);
    cluster.down().unwrap();
    traces.assert_gone();
}

#[test]
fn two_clusters_side_by_side_know_nothing_of_each_other() {
    let clusters = [(); 2].map(|()| Cluster::up(Options::new(Shape::ApiServer)).unwrap());
    clusters[0].kubectl(["create", "namespace", "mine"]).unwrap();
    let [first, second] =
        clusters.each_ref().map(|cluster| cluster.kubectl(["get", "namespaces", "--output=name"]).unwrap());
    assert!(first.contains("namespace/mine"), "{first}");
    assert!(second.contains("namespace/default") && !second.contains("namespace/mine"), "{second}");
}

#[test]
fn the_audit_log_tells_who_wrote_what_and_no_reads() {
    let audit = Some(Options::AUDIT_WRITES.to_owned());
    let cluster = Cluster::up(Options { audit, ..Options::new(Shape::ApiServer) }).unwrap();
    cluster.kubectl(["create", "configmap", "noted"]).unwrap();
    cluster.kubectl(["get", "configmap", "noted"]).unwrap();
    let log = std::fs::read_to_string(cluster.audit_log()).unwrap();
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_kubectl = |entry: &&Value| entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubectl/"));
    let verbs: Vec<(&str, &str)> = entries
        .iter()
        .filter(by_kubectl)
        .map(|entry| (entry["verb"].as_str().unwrap(), entry["objectRef"]["name"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(verbs, [("create", "noted")]);
}

#[test]
fn pods_of_a_fake_node_are_ready_though_nothing_runs() {
    let cluster = Cluster::up(Options::new(Shape::ControlPlane)).unwrap();
    cluster.add_fake_nodes(2).unwrap();
    cluster.kubectl(["create", "deployment", "crowd", "--image=example.org/crowd:1", "--replicas=200"]).unwrap();
    cluster.kubectl(["rollout", "status", "deployment/crowd", "--timeout=120s"]).unwrap();
    let states = cluster.kubectl(["get", "pods", "--output=jsonpath={.items[*].status.phase}"]).unwrap();
    assert_eq!(states.split(' ').filter(|phase| *phase == "Running").count(), 200, "{states}");
    cluster.kubectl(["delete", "deployment", "crowd", "--cascade=foreground", "--timeout=120s"]).unwrap();
    assert_eq!(cluster.kubectl(["get", "pods", "--output=name"]).unwrap(), "");
}

#[test]
fn an_api_server_that_was_killed_comes_back_at_its_address_with_what_it_knew() {
    let cluster = Cluster::up(Options::new(Shape::ApiServer)).unwrap();
    cluster.kubectl(["create", "configmap", "kept"]).unwrap();
    cluster.kill(Part::ApiServer).unwrap();
    assert!(!cluster.is_ready());
    cluster.start(Part::ApiServer).unwrap();
    eventually("the API server is ready again", || cluster.is_ready().then_some(()).ok_or_else(String::new));
    assert_eq!(cluster.kubectl(["get", "configmap", "kept", "--output=name"]).unwrap(), "configmap/kept");
}
