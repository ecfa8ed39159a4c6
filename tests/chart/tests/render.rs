//! What the chart renders, without a cluster: a reader sees here what each set of values installs.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use mcp_hub_chart_tests::{NAMESPACE, RELEASE, built, chart, outcome, output, root};
use serde_json::Value;

/// Helm takes the newest version of its own library if it sees no cluster, and this build of it knows none.
const KUBE_VERSION: &str = "--kube-version=1.36.0";

fn values(name: &str) -> PathBuf {
    root().join("tests/chart/values").join(name)
}

fn template(arguments: &[&str]) -> String {
    let words = ["template", RELEASE, "--namespace", NAMESPACE, KUBE_VERSION];
    output(built("helm").args(words).arg(chart()).args(arguments))
}

fn objects(yaml: &str) -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    let name = |object: &Value| format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"]);
    documents.into_iter().filter(|object| !object.is_null()).map(|object| (name(&object), plain(object))).collect()
}

/// `1.0` is `1`, whoever wrote it.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::from(number.as_f64()),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        other => other,
    }
}

#[test]
fn the_default_is_an_operator_for_the_whole_cluster() {
    insta::assert_snapshot!(template(&["--set", "crds.install=false"]));
}

#[test]
fn with_a_list_of_namespaces_there_is_no_right_beyond_them() {
    let rendered = template(&["--values", values("namespaced.yaml").to_str().unwrap()]);
    assert!(!rendered.contains("kind: Cluster"), "{rendered}");
    insta::assert_snapshot!(rendered);
}

#[test]
fn every_value_has_its_place() {
    let rendered = template(&["--values", values("full.yaml").to_str().unwrap()]);
    insta::assert_snapshot!(rendered);
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    for name in ["namespaced.yaml", "full.yaml"] {
        output(built("helm").args(["lint", "--strict", "--values"]).arg(values(name)).arg(chart()));
    }
    output(built("helm").args(["lint", "--strict"]).arg(chart()));
}

#[test]
fn a_wrong_value_is_refused_by_its_name() {
    for (value, named) in [
        ("replica=1", "replica"),
        ("replicas=many", "replicas"),
        ("images.pullPolicy=Sometimes", "pullPolicy"),
        ("packages.npmRegistry=https://me:secret@npm.example.com", "npmRegistry"),
        ("relay.replicas=many", "replicas"),
        ("relay.localNetworks={inside}", "localNetworks"),
        ("watchNamespaces={Not_A_Name}", "watchNamespaces"),
        ("serviceMonitor.interval=often", "interval"),
    ] {
        let (success, _, stderr) =
            outcome(built("helm").args(["template", RELEASE, KUBE_VERSION, "--set", value]).arg(chart()));
        assert!(!success && stderr.contains(named), "{value}: {stderr}");
    }
}

#[test]
fn the_crds_are_those_of_this_version_and_are_kept() {
    let rendered = objects(&template(&["--show-only", "templates/crds.yaml"]));
    assert_eq!(rendered.len(), 2);
    for file in std::fs::read_dir(root().join("crds/yaml")).unwrap() {
        let original = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let (name, original) = objects(&original).pop_first().unwrap();
        assert!(rendered[&name]["spec"] == original["spec"], "{name} is stale: renew it with `cargo xtask generate`");
        assert_eq!(rendered[&name]["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
}

/// `kubectl apply -k` makes the same objects. A difference means that `cargo xtask generate` was not run.
#[test]
fn the_kustomization_is_what_the_chart_renders() {
    let built_up = output(built("kubectl").arg("kustomize").arg(root().join("deploy/kustomize")));
    let mut kustomized = objects(&built_up);
    kustomized.remove(&format!("Namespace \"{NAMESPACE}\"")).expect("its namespace");
    let mut rendered = objects(&template(&["--skip-tests"]));
    for object in rendered.values_mut() {
        without_helm(object);
    }
    assert_eq!(kustomized.keys().collect::<Vec<_>>(), rendered.keys().collect::<Vec<_>>());
    for (name, object) in &kustomized {
        assert!(object == &rendered[name], "{name} is stale: renew it with `cargo xtask generate`\n{object}");
    }
}

/// Takes out what tells helm that an object is its own.
fn without_helm(object: &mut Value) {
    let is_crd = object["kind"] == "CustomResourceDefinition";
    for pointer in ["/metadata", "/spec/template/metadata"] {
        let Some(meta) = object.pointer_mut(pointer).and_then(Value::as_object_mut) else { continue };
        if is_crd {
            // Those of crds/yaml have neither.
            meta.remove("labels");
            meta.remove("annotations");
        }
        if let Some(labels) = meta.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove("helm.sh/chart");
            labels.remove("app.kubernetes.io/managed-by");
        }
    }
}
