//! A release's life: installed, upgraded, rolled back, uninstalled, installed again, while servers run on.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use mcp_hub_chart_tests::{
    NAMESPACE, OPERATOR, Place, RELEASE, chart, eventually, hub, output, prefix, root, server, tag,
};
use serde_json::Value;

/// A copy of the chart as it was once: its CRD of hubs does not show the endpoint yet.
fn older_chart(folder: &Path) -> std::path::PathBuf {
    let older = folder.join("mcp-hub");
    output(std::process::Command::new("cp").arg("--recursive").arg(chart()).arg(&older));
    let file = older.join("files/crds/mcphubs.mcphub.io.yaml");
    let crd = std::fs::read_to_string(&file).unwrap();
    let column = "    - jsonPath: .status.endpoint\n      name: Endpoint\n      type: string\n";
    assert!(crd.contains(column));
    std::fs::write(file, crd.replace(column, "")).unwrap();
    older
}

fn columns(place: &Place) -> Vec<String> {
    let crd = place.get(&["crd", "mcphubs.mcphub.io"]);
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap().iter();
    columns.map(|column| column["name"].as_str().unwrap().to_owned()).collect()
}

/// Names of the operator's pods that are not ending.
fn operators(place: &Place) -> Vec<String> {
    let pods = place.get(&["pods", "--namespace", NAMESPACE, "--selector=app.kubernetes.io/component=operator"]);
    let pods = pods["items"].as_array().unwrap().iter();
    let alive = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    alive.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until one of the operator's present pods leads.
fn until_led(place: &Place) {
    eventually("one of the operator's pods leads", || {
        let lease = place.get(&["lease", OPERATOR, "--namespace", NAMESPACE]);
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        let pods = operators(place);
        if pods.contains(&holder) { Ok(()) } else { Err(format!("`{holder}` of {pods:?}")) }
    });
}

/// A change that an operator must have carried out: it is alive, and knows what it knew.
fn until_it_follows(place: &Place, note: &str) {
    place.apply(&server("team", "probe", &format!("  env: [{{name: NOTE, value: {note}}}]\n")));
    eventually("the operator carries out a change", || {
        let pod = place.get(&["deployment", "mcp-probe", "--namespace=team", "--ignore-not-found"]);
        if pod.to_string().contains(note) { Ok(()) } else { Err(format!("{pod}")) }
    });
    place.wait(&["--namespace=team", "--for=condition=Ready", "mcpserver/probe"]);
    place.kubectl(["delete", "mcpserver", "probe", "--namespace=team"]);
    place.wait(&["--namespace=team", "--for=delete", "pod", "--selector=mcphub.io/owner-name=probe"]);
}

#[test]
fn servers_and_gateways_run_on_through_the_whole_life_of_a_release() {
    let place = Place::new(None);
    let folder = tempfile::tempdir().unwrap();
    let older = older_chart(folder.path());

    place.install(&older, &[]);
    assert_eq!(columns(&place), ["Ready", "Servers", "Age"]);
    place.helm(["test", RELEASE]);
    place.namespace("team");
    place.apply(&(server("team", "everything", "") + &hub("team", "main", 2)));
    place.wait(&["--namespace=team", "--for=condition=Ready", "mcpserver/everything", "mcphub/main"]);
    let pods = place.pods("team");
    assert_eq!(pods.len(), 3, "{pods:?}");
    let token = place.get(&["secret", "mcp-hub-main-token", "--namespace=team"]);
    let before = operators(&place);

    // Another version of the CRDs, of the operator's settings, and of the bridge that new servers get.
    let bridge = format!("images.bridge={}/bridge:{}-next", prefix(), tag());
    place.install(&chart(), &["logLevel=debug", &bridge]);
    assert_eq!(columns(&place), ["Ready", "Servers", "Endpoint", "Age"]);
    until_led(&place);
    assert!(operators(&place).iter().all(|pod| !before.contains(pod)), "{before:?}");
    until_it_follows_the_new_bridge(&place);
    assert_eq!(place.pods("team"), pods, "an upgrade rolled a pod");

    place.helm(["rollback", RELEASE, "1", "--wait", "--timeout=180s"]);
    assert_eq!(columns(&place), ["Ready", "Servers", "Age"]);
    until_led(&place);
    until_it_follows(&place, "rolled-back");
    assert_eq!(place.pods("team"), pods, "a rollback rolled a pod");

    // What is uninstalled is the operator; the resources, and what runs, stay.
    place.helm(["uninstall", RELEASE, "--wait"]);
    eventually("its pods have ended", || {
        let left = place.get(&["all,networkpolicy,pdb,serviceaccount,role,rolebinding", "--namespace", NAMESPACE]);
        let left: Vec<&Value> =
            left["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
        if format!("{left:?}").contains("mcp-hub") { Err(format!("{left:?}")) } else { Ok(()) }
    });
    let cluster_wide = place.kubectl([
        "get",
        "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding",
        "--selector=app.kubernetes.io/name=mcp-hub",
        "--output=name",
    ]);
    assert_eq!(cluster_wide, "");
    assert_eq!(columns(&place), ["Ready", "Servers", "Age"]);
    assert_eq!(place.pods("team"), pods);

    // And the next one takes them over, with the same key and so the same tokens.
    place.install(&chart(), &["replicas=1"]);
    until_led(&place);
    until_it_follows(&place, "installed-again");
    assert_eq!(place.pods("team"), pods, "a new installation rolled a pod");
    assert_eq!(place.get(&["secret", "mcp-hub-main-token", "--namespace=team"])["data"], token["data"]);

    place.kubectl(["delete", "mcpserver,mcphub", "--all", "--namespace=team"]);
    eventually("nothing of them is left", || {
        let kinds = "deployment,service,networkpolicy,pdb,secret,pod";
        let left = place.kubectl(["get", kinds, "--namespace=team", "--output=name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// The image of the new version is not on the node, which is how it can be told whom it would be given to.
fn until_it_follows_the_new_bridge(place: &Place) {
    place.apply(&server("team", "newcomer", ""));
    eventually("a new server gets the new bridge", || {
        let deployment = place.get(&["deployment", "mcp-newcomer", "--namespace=team", "--ignore-not-found"]);
        let image = &deployment["spec"]["template"]["spec"]["initContainers"][0]["image"];
        if image.as_str().is_some_and(|image| image.ends_with("-next")) { Ok(()) } else { Err(image.to_string()) }
    });
    place.kubectl(["delete", "mcpserver", "newcomer", "--namespace=team"]);
    place.wait(&["--namespace=team", "--for=delete", "pod", "--selector=mcphub.io/owner-name=newcomer"]);
}

#[test]
fn without_helm_the_kustomization_installs_the_same() {
    let place = Place::new(None);
    let folder = root().join("deploy/kustomize");
    let manifests = place.kubectl(["kustomize".as_ref(), folder.as_os_str()]);
    // Its images are the released ones.
    let released = format!("localhost/mcp-hub/operator:{}", env!("CARGO_PKG_VERSION"));
    assert!(manifests.contains(&released), "{manifests}");
    let under_test = ["operator", "bridge", "gateway", "relay"].iter().fold(manifests, |text, name| {
        let released = format!("localhost/mcp-hub/{name}:{}", env!("CARGO_PKG_VERSION"));
        text.replace(&released, &format!("{}/{name}:{}", prefix(), tag()))
    });
    place.apply(&under_test);
    place.kubectl(["rollout", "status", "--timeout=180s", "--namespace", NAMESPACE, &format!("deployment/{OPERATOR}")]);
    place.namespace("team");
    place.apply(&server("team", "everything", ""));
    place.wait(&["--namespace=team", "--for=condition=Ready", "mcpserver/everything"]);
}
