//! The operator's rights are those that it uses: its requests, as the API server's audit log has them, against its roles.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mcp_hub_chart_tests::{NAMESPACE, OPERATOR, Place, chart, eventually, hub, server};
use serde_json::Value;

const USER: &str = "system:serviceaccount:mcp-hub-system:mcp-hub-operator";

/// Everything that the operator asks for, without bodies.
fn audit_policy() -> String {
    format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
         - {{level: Metadata, users: [\"{USER}\"]}}\n- {{level: None}}\n"
    )
}

/// A right: to be had by a rule, or to be needed by a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    /// `group/resource[/subresource]`
    resource: String,
    /// Empty for a rule of the whole cluster.
    namespace: String,
    /// Empty for a rule of all names.
    name: String,
}

impl Right {
    fn grants(&self, needed: &Self) -> bool {
        let of = |granted: &str, needed: &str| granted.is_empty() || granted == needed;
        self.verb == needed.verb
            && self.resource == needed.resource
            && of(&self.namespace, &needed.namespace)
            && of(&self.name, &needed.name)
    }
}

/// Requests of the operator, and those that were refused.
fn requests(place: &Place) -> (BTreeSet<Right>, Vec<Value>) {
    let log = std::fs::read_to_string(place.cluster.audit_log()).unwrap();
    let (mut used, mut refused) = (BTreeSet::new(), Vec::new());
    // The last line may be half written.
    for entry in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        assert_eq!(entry["user"]["username"], USER);
        let (object, code) = (&entry["objectRef"], &entry["responseStatus"]["code"]);
        if *code == 403 || *code == 401 {
            refused.push(entry.clone());
            continue;
        }
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        let right = Right {
            verb: text(&entry["verb"]),
            resource: format!("{}/{}{subresource}", text(&object["apiGroup"]), text(&object["resource"])),
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
        };
        if right.verb == "patch" && *code == 201 {
            // A server-side apply of what is not there yet needs both.
            used.insert(Right { verb: "create".to_owned(), ..right.clone() });
        }
        used.insert(right);
    }
    (used, refused)
}

/// The rights of the roles that are bound to the operator.
fn granted(place: &Place) -> Vec<Right> {
    let mut rights = Vec::new();
    for kind in ["rolebindings", "clusterrolebindings"] {
        let bindings = place.get(&[kind, "--all-namespaces", "--selector=app.kubernetes.io/name=mcp-hub"]);
        for binding in bindings["items"].as_array().unwrap() {
            assert_eq!(binding["subjects"][0]["name"], OPERATOR);
            let namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
            let role = &binding["roleRef"];
            let (kind, name) = (role["kind"].as_str().unwrap(), role["name"].as_str().unwrap());
            let role = match kind {
                "Role" => place.get(&["role", name, "--namespace", namespace]),
                _ => place.get(&["clusterrole", name]),
            };
            role["rules"].as_array().unwrap().iter().for_each(|rule| rights.extend(spread(rule, namespace)));
        }
    }
    rights
}

/// A rule as single rights.
fn spread(rule: &Value, namespace: &str) -> Vec<Right> {
    let list = |name: &str| -> Vec<String> {
        let words = rule[name].as_array().map(Vec::as_slice).unwrap_or_default();
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut names = list("resourceNames");
    if names.is_empty() {
        names.push(String::new());
    }
    let mut rights = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for verb in list("verbs") {
                assert!(![&group, &resource, &verb].iter().any(|word| *word == "*"), "{rule}");
                rights.extend(names.iter().map(|name| Right {
                    verb: verb.clone(),
                    resource: format!("{group}/{resource}"),
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                }));
            }
        }
    }
    rights
}

/// Every right is used, and no request needed another one.
fn compare(place: &Place) {
    let (granted, (used, _)) = (granted(place), requests(place));
    // The rights of the whole cluster are for where servers are, which is elsewhere than the operator.
    let counts = |right: &Right, request: &Right| {
        right.grants(request) && (!right.namespace.is_empty() || request.namespace != NAMESPACE)
    };
    let unused: Vec<_> = granted.iter().filter(|right| !used.iter().any(|request| counts(right, request))).collect();
    assert!(unused.is_empty(), "granted and not used: {unused:#?}");
    let unnamed: Vec<_> = used.iter().filter(|request| !granted.iter().any(|right| right.grants(request))).collect();
    assert!(unnamed.is_empty(), "used, by a right that is in no role of the chart: {unnamed:#?}");
}

/// A story whose end is a refused request says so first.
fn lead(place: &Place, namespace: &str) {
    let story = catch_unwind(AssertUnwindSafe(|| exercise(place, namespace)));
    let (_, refused) = requests(place);
    assert!(refused.is_empty(), "refused: {refused:#?}");
    story.unwrap_or_else(|panic| resume_unwind(panic));
}

/// Kinds that not every cluster knows, as small as their definitions may be.
fn definitions() -> String {
    let kinds =
        [("gateway.networking.k8s.io", "HTTPRoute", "httproutes"), ("cert-manager.io", "Certificate", "certificates")];
    let open = "{type: object, x-kubernetes-preserve-unknown-fields: true}";
    let schema = format!("{{openAPIV3Schema: {{type: object, properties: {{spec: {open}, status: {open}}}}}}}");
    // A group of the project's own needs a word of approval; any will do.
    let approval = "{api-approved.kubernetes.io: \"https://github.com/kubernetes-sigs/gateway-api/pull/3328\"}";
    let definition = |(group, kind, plural): (&str, &str, &str)| {
        format!(
            "---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
             metadata: {{name: {plural}.{group}, annotations: {approval}}}\n\
             spec:\n  group: {group}\n  scope: Namespaced\n  names: {{plural: {plural}, kind: {kind}}}\n  \
             versions: [{{name: v1, served: true, storage: true, subresources: {{status: {{}}}}, schema: {schema}}}]\n"
        )
    };
    kinds.map(definition).concat()
}

/// A hub whose certificate cert-manager is to write.
fn certified(namespace: &str, name: &str, gateway: &str) -> String {
    let gateway = format!("{{replicas: 1, tls: {{certManagerIssuer: ca}}{gateway}}}");
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{gateway: {gateway}}}\n"
    )
}

/// What leads to a hub from outside comes, comes back, and goes with its field.
fn exercise_doors(place: &Place, namespace: &str) {
    let of = format!("--namespace={namespace}");
    let name = "mcp-hub-door";
    let uid =
        |kind: &str| place.kubectl(["get", kind, name, &of, "--ignore-not-found", "--output=jsonpath={.metadata.uid}"]);
    let comes = |kind: &str, after: &str| {
        eventually(&format!("{kind} comes"), || match uid(kind) {
            new if new.is_empty() || new == after => Err(format!("`{new}`, and it was `{after}`")),
            new => Ok(new),
        })
    };
    for (kind, gateway) in [
        ("ingresses", ", ingress: {host: door.example.com}"),
        ("httproutes", ", httpRoute: {host: door.example.com, gateway: public}"),
    ] {
        place.apply(&certified(namespace, "door", gateway));
        for kind in [kind, "certificates"] {
            let old = comes(kind, "");
            place.kubectl(["delete", kind, name, &of, "--wait=false"]);
            comes(kind, &old);
        }
    }
    let gone = |kind: &str| {
        eventually(&format!("{kind} goes"), || if uid(kind).is_empty() { Ok(()) } else { Err(uid(kind)) });
    };
    gone("ingresses");
    place.apply(&hub(namespace, "door", 1));
    gone("httproutes");
    gone("certificates");
    place.kubectl(["delete", "mcphub", "door", &of]);
}

/// Leads the operator through all that it does for servers and hubs of a namespace.
fn exercise(place: &Place, namespace: &str) {
    let of = format!("--namespace={namespace}");
    let secret = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: theirs, namespace: {namespace}}}\n");
    place.apply(&(secret + "stringData: {key: value}\n"));
    let with_secret = server(namespace, "a", "  env: [{name: KEY, secretRef: {name: theirs, key: key}}]\n");
    place.apply(&(with_secret.clone() + &hub(namespace, "main", 2)));
    place.wait(&[&of, "--for=condition=Ready", "mcpserver/a", "mcphub/main"]);

    // Another spec; fewer replicas, which need no budget; and objects that vanish come back.
    place.apply(&(with_secret.clone() + "  timeouts: {call: 5m}\n" + &hub(namespace, "main", 1)));
    eventually("the budget goes", || {
        let left = place.kubectl(["get", "pdb", &of, "--output=name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    for (kind, name) in [
        ("deployment", "mcp-a"),
        ("service", "mcp-a"),
        ("networkpolicy", "mcp-a"),
        ("deployment", "mcp-hub-main"),
        // Not watched, and back all the same.
        ("secret", "mcp-hub-main-config"),
        ("secret", "mcp-hub-main-token"),
    ] {
        let uid = || place.kubectl(["get", kind, name, &of, "--ignore-not-found", "--output=jsonpath={.metadata.uid}"]);
        let old = uid();
        assert_ne!(old, "", "{kind} {name}");
        place.kubectl(["delete", kind, name, &of, "--wait=false"]);
        eventually(&format!("{kind} {name} is back"), || match uid() {
            new if new.is_empty() || new == old => Err(format!("`{new}`, and it was `{old}`")),
            _ => Ok(()),
        });
    }
    place.wait(&[&of, "--for=condition=Ready", "mcpserver/a", "mcphub/main"]);

    exercise_doors(place, namespace);

    // The same event again is a series of one.
    place.apply(&(with_secret.clone() + "  paused: true\n"));
    place.wait(&[&of, "--for=delete", "deployment/mcp-a", "service/mcp-a", "networkpolicy/mcp-a"]);
    place.apply(&with_secret);
    place.wait(&[&of, "--for=condition=Ready", "mcpserver/a"]);
    eventually("an event that came twice is one", || {
        let events = place.get(&["events.events.k8s.io", &of]);
        let twice = events["items"].as_array().unwrap().iter().any(|event| event["series"]["count"].as_u64() > Some(1));
        if twice { Ok(()) } else { Err(format!("{events:#}")) }
    });

    // While others hold on to a hub that is deleted, its objects go.
    let patch = |finalizers: &str| {
        let patch = format!("{{\"metadata\": {{\"finalizers\": {finalizers}}}}}");
        place.kubectl(["patch", "mcphub", "main", &of, "--type=merge", "--patch", &patch]);
    };
    patch("[\"example.com/held\"]");
    place.kubectl(["delete", "mcphub", "main", &of, "--wait=false"]);
    place.wait(&[&of, "--for=delete", "secret/mcp-hub-main-config", "secret/mcp-hub-main-token"]);
    place.wait(&[&of, "--for=delete", "deployment/mcp-hub-main", "service/mcp-hub-main"]);
    patch("[]");
    place.kubectl(["delete", "mcpserver", "a", &of]);
    place.wait(&[&of, "--for=delete", "deployment/mcp-a", "mcphub/main"]);
}

#[test]
fn the_operator_has_the_rights_that_it_uses_and_no_other() {
    let place = Place::new(Some(audit_policy()));
    place.apply(&definitions());
    place.install(&chart(), &[]);
    place.namespace("team");
    lead(&place, "team");
    compare(&place);
    theirs_stay_theirs(&place);
}

/// What roles cannot say: which Secrets are the operator's own.
fn theirs_stay_theirs(place: &Place) {
    let ours = "metadata: {name: mcp-hub-x, namespace: team, labels: {app.kubernetes.io/managed-by: mcp-hub}}";
    place.apply(&format!("apiVersion: v1\nkind: Secret\n{ours}\n"));
    place.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: mcp-hub-y, namespace: team}\n");
    let as_operator = |words: &[&str]| {
        let words = words.iter().chain(&["--namespace=team", "--as", USER]);
        place.cluster.kubectl(words).map_err(|error| error.to_string())
    };
    let label = |name, value| ["label", "secret", name, "--overwrite", value];
    as_operator(&["get", "secret", "theirs"]).unwrap();
    as_operator(&["annotate", "secret", "mcp-hub-x", "note=mine"]).unwrap();
    for (words, why) in [
        (&["get", "secrets"][..], "cannot list resource"),
        (&["annotate", "secret", "theirs", "note=mine"], "its own Secrets only"),
        (&["delete", "secret", "theirs"], "its own Secrets only"),
        (&["delete", "secret", "mcp-hub-y"], "its own Secrets only"),
        // Neither made its own nor given away.
        (&label("theirs", "app.kubernetes.io/managed-by=mcp-hub"), "its own Secrets only"),
        (&label("mcp-hub-x", "app.kubernetes.io/managed-by=me"), "its own Secrets only"),
        (&["create", "secret", "generic", "new"], "its own Secrets only"),
    ] {
        let refusal = as_operator(words).expect_err(&format!("{words:?}"));
        assert!(refusal.contains(why), "{words:?}: {refusal}");
    }
    as_operator(&["delete", "secret", "mcp-hub-x"]).unwrap();
}

#[test]
fn with_a_list_of_namespaces_it_has_rights_there_and_nowhere_else() {
    let place = Place::new(Some(audit_policy()));
    for name in ["team-a", "team-b", "outside"] {
        place.namespace(name);
    }
    place.apply(&definitions());
    place.install(&chart(), &["watchNamespaces={team-a,team-b}"]);
    place.apply(&server("outside", "alone", ""));
    lead(&place, "team-a");
    lead(&place, "team-b");
    compare(&place);
    let (used, _) = requests(&place);
    let elsewhere: Vec<_> =
        used.iter().filter(|right| ![NAMESPACE, "team-a", "team-b"].contains(&&*right.namespace)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    let alone = place.get(&["mcpserver", "alone", "--namespace=outside"]);
    assert!(alone["status"].is_null(), "{alone:#}");
}
