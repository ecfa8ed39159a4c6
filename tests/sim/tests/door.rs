//! How clients come to a hub from outside: Ingress, HTTPRoute and certificates, on clusters that know these kinds or do not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use mcp_hub_fakeapi::{Cut, Fault, When};
use mcp_hub_sim::World;
use mcp_hub_sim::canonical::{assert_same, end_state};
use mcp_hub_sim::oracle::{THREE_PASSES, calm};
use mcp_hub_sim::specs::{NAMESPACE, hub};
use mcp_hub_sim::world::{OPERATOR, QUIET};
use serde_json::{Value, json};

const NAME: &str = "mcp-hub-default";
const PLAIN: &str = "http://mcp-hub-default.team.svc:8080/mcp";

fn gateway(spec: Value) -> Value {
    hub("default", &json!({"gateway": spec}))
}

fn ingress() -> Value {
    json!({"ingress": {"host": "hub.example.com", "className": "web", "annotations": {"team": "dev"}}})
}

fn route() -> Value {
    json!({"httpRoute": {"host": "hub.example.com", "gateway": "public", "annotations": {"team": "dev"}}})
}

fn status(world: &World) -> Value {
    world.api.get("MCPHub", NAMESPACE, "default").unwrap()["status"].clone()
}

/// `STATUS REASON: MESSAGE` of a condition; empty if there is none.
fn condition(world: &World, type_: &str) -> String {
    let status = status(world);
    let found = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == type_);
    let text = |c: &Value, field: &str| c[field].as_str().unwrap().to_owned();
    found.map_or_else(String::new, |c| format!("{} {}: {}", text(c, "status"), text(c, "reason"), text(c, "message")))
}

fn assert_condition(world: &World, type_: &str, beginning: &str, holds: &str) {
    let found = condition(world, type_);
    assert!(found.starts_with(beginning) && found.contains(holds), "{type_} is `{found}`, not `{beginning} … {holds}`");
}

fn child(world: &World, kind: &str) -> Option<Value> {
    world.api.get(kind, NAMESPACE, NAME)
}

/// A definition as small as it may be.
fn define_certificates(world: &World) {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "certificates.cert-manager.io"},
        "spec": {
            "group": "cert-manager.io", "scope": "Namespaced",
            "names": {"plural": "certificates", "singular": "certificate", "kind": "Certificate", "listKind": "CertificateList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}}}],
        },
    });
    world.api.define(&serde_json::from_value(definition).unwrap());
}

/// A Secret of type `kubernetes.io/tls` with a chain and the key of it, or of another one.
fn certificate(name: &str, fits: bool) -> Value {
    let made = || rcgen::generate_simple_self_signed(["hub.example.com".to_owned()]).unwrap();
    let (one, two) = (made(), made());
    let key = if fits { &one } else { &two };
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "stringData": {"tls.crt": one.cert.pem(), "tls.key": key.signing_key.serialize_pem()},
    })
}

fn replace(world: &World, secret: &Value) {
    world.api.delete("Secret", NAMESPACE, secret["metadata"]["name"].as_str().unwrap());
    world.api.create(secret).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_the_cluster_does_not_know_is_told_and_made_as_soon_as_it_does() {
    let world = World::new();
    let group = "gateway.networking.k8s.io";
    let definition = mcp_hub_fakeapi::definitions().into_iter().find(|found| found.spec.group == group).unwrap();
    world.api.undefine(group, "httproutes");
    let _operator = world.operator("one");
    world.apply(&gateway(route()));
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "False KindUnknown", "install the Gateway API CRDs");
    assert_condition(&world, "Ready", "True Ready", "");
    assert_eq!(status(&world)["endpoint"], PLAIN);
    world.api.define(&definition);
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "False Pending", "no Gateway has taken up");
    assert_eq!(status(&world)["endpoint"], "https://hub.example.com/mcp");
    let says = |status: &'static str, reason: &'static str| {
        json!({"parents": [{
            "parentRef": {"name": "public"}, "controllerName": "example.com/gateway",
            "conditions": [{"type": "Accepted", "status": status, "reason": reason, "message": "said the controller",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }]})
    };
    for (said, beginning) in
        [(says("False", "NotAllowedByListeners"), "False RouteRefused"), (says("True", "Accepted"), "True Exposed")]
    {
        world.api.edit("HTTPRoute", NAMESPACE, NAME, |route| route["status"] = said).unwrap();
        world.settle(QUIET).await;
        assert_condition(&world, "Exposed", beginning, "");
    }
    calm(&world, THREE_PASSES, "a route").await;

    // The definition is taken away, and comes back.
    world.api.cut_watches("HTTPRoute", Cut::Closed);
    world.api.undefine(group, "httproutes");
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "False KindUnknown", "");
    assert_eq!(status(&world)["endpoint"], PLAIN);
    world.api.define(&definition);
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "True Exposed", "");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn kinds_that_the_operator_may_not_list_are_told_and_keep_it_from_nothing_else() {
    let world = World::new();
    for kind in ["Ingress", "HTTPRoute", "Certificate"] {
        world.api.inject(When::any().user_agent(OPERATOR).kind(kind).always(), Fault::Answer(403));
    }
    let _operator = world.operator("one");
    world.apply(&gateway(ingress()));
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "False Forbidden", "may not list ingresses.networking.k8s.io");
    assert_condition(&world, "Ready", "True Ready", "");
    assert_eq!(status(&world)["endpoint"], PLAIN);
    calm(&world, THREE_PASSES, "no right").await;
    // The role is mended; the operator need not be started anew.
    world.api.clear_faults();
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "False Pending", "");
    assert!(child(&world, "Ingress").is_some());
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn what_leads_to_a_hub_is_mended_and_goes_with_its_field() {
    let world = World::new();
    let operator = world.operator("one");
    world.apply(&gateway(json!({})));
    world.settle(QUIET).await;
    let bare = end_state(&world);
    for (kind, spec, host) in
        [("Ingress", ingress(), "/spec/rules/0/host"), ("HTTPRoute", route(), "/spec/hostnames/0")]
    {
        world.apply(&gateway(spec));
        world.settle(QUIET).await;
        let object = child(&world, kind).unwrap();
        assert_eq!(object["metadata"]["annotations"]["team"], "dev");
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "MCPHub");
        let want = end_state(&world);
        let edits: [fn(&mut Value); 3] = [
            |object| object["metadata"]["annotations"]["team"] = json!("other"),
            |object| object["metadata"]["labels"] = json!({}),
            |object| object["metadata"]["ownerReferences"] = json!([]),
        ];
        for edit in edits {
            world.api.edit(kind, NAMESPACE, NAME, edit).unwrap();
            world.settle(QUIET).await;
            assert_same(&end_state(&world), &want, kind);
        }
        world.api.edit(kind, NAMESPACE, NAME, |object| *object.pointer_mut(host).unwrap() = json!("evil.com")).unwrap();
        world.settle(QUIET).await;
        assert_same(&end_state(&world), &want, "another host");
        world.api.delete(kind, NAMESPACE, NAME);
        world.settle(QUIET).await;
        assert_same(&end_state(&world), &want, "deleted");
    }
    assert!(child(&world, "Ingress").is_none(), "one takes the other's place");

    // Also if the field goes while no operator is there.
    operator.kill().await;
    world.apply(&gateway(json!({})));
    let _operator = world.operator("two");
    world.settle(QUIET).await;
    assert!(child(&world, "HTTPRoute").is_none());
    assert_eq!(condition(&world, "Exposed"), "");
    let (mut now, mut before) = (end_state(&world), bare);
    // But for the generation in its status, the hub is as it was.
    for state in [&mut now, &mut before] {
        state.retain(|key, _| !key.starts_with("MCPHub/"));
    }
    assert_same(&now, &before, "without the field");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_ingress_of_someone_else_is_left_alone_and_stands_in_no_ones_way() {
    let world = World::new();
    let _operator = world.operator("one");
    let theirs = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"defaultBackend": {"service": {"name": "theirs", "port": {"number": 80}}}},
    });
    let theirs = world.api.create(&theirs).unwrap();
    world.apply(&gateway(ingress()));
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "False NameTaken", "");
    assert_condition(&world, "Ready", "True Ready", "");
    assert_eq!(status(&world)["endpoint"], PLAIN);
    assert_eq!(child(&world, "Ingress"), Some(theirs));
    // Its end tells nobody, and is noticed all the same.
    world.api.delete("Ingress", NAMESPACE, NAME);
    world.settle(QUIET * 10).await;
    assert_condition(&world, "Exposed", "False Pending", "");
    assert_eq!(status(&world)["endpoint"], "http://hub.example.com/mcp");
    let at = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    world.api.edit("Ingress", NAMESPACE, NAME, |ingress| ingress["status"] = at).unwrap();
    world.settle(QUIET).await;
    assert_condition(&world, "Exposed", "True Exposed", "");
    // Annotations of ours are not the user's to give.
    let own = json!({"ingress": {"host": "hub.example.com", "annotations": {"mcphub.io/digest": "x"}}});
    world.apply(&gateway(own));
    world.settle(QUIET).await;
    assert_condition(&world, "Accepted", "False Unsupported", "spec.gateway.ingress.annotations");
}

#[tokio::test(start_paused = true)]
async fn gateways_wait_for_their_certificate_and_outlive_its_loss() {
    let world = World::new();
    let _operator = world.operator("one");
    world.apply(&gateway(json!({"tls": {"secretRef": {"name": "cert"}}})));
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False SecretMissing", "Secret cert");
    assert_condition(&world, "Ready", "False SecretMissing", "kubernetes.io/tls");
    assert!(child(&world, "Deployment").is_none());
    world.api.create(&certificate("cert", false)).unwrap();
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False CertificateInvalid", "tls.key is not of tls.crt");
    assert!(child(&world, "Deployment").is_none());
    replace(&world, &certificate("cert", true));
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "True Resolved", "Secret cert");
    assert_condition(&world, "Ready", "True Ready", "");
    assert_eq!(status(&world)["endpoint"], "https://mcp-hub-default.team.svc:8080/mcp");
    let deployment = child(&world, "Deployment").unwrap()["metadata"]["generation"].clone();
    let secret = world.api.get("Secret", NAMESPACE, "cert").unwrap();
    assert!(secret["metadata"]["labels"].is_null(), "it is the user's and stays so");

    // Another one is the gateways' own to read; one that is gone is told, and what runs runs on.
    replace(&world, &certificate("cert", true));
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "True Resolved", "");
    world.api.delete("Secret", NAMESPACE, "cert");
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False SecretMissing", "");
    assert_condition(&world, "Ready", "True Ready", "");
    assert_eq!(child(&world, "Deployment").unwrap()["metadata"]["generation"], deployment);

    world.apply(&gateway(json!({})));
    world.settle(QUIET).await;
    assert_eq!(condition(&world, "Resolved"), "");
    assert_eq!(status(&world)["endpoint"], PLAIN);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_cert_manager_is_asked_for_and_waited_for() {
    let world = World::new();
    let _operator = world.operator("one");
    world.apply(&gateway(json!({"tls": {"certManagerIssuer": "ca"}})));
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False KindUnknown", "install cert-manager");
    assert_condition(&world, "Ready", "False KindUnknown", "");

    define_certificates(&world);
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False CertificatePending", "not said anything");
    let asked = child(&world, "Certificate").unwrap();
    assert_eq!(asked["spec"]["issuerRef"]["name"], "ca");
    let says = |status: &str| json!({"conditions": [{"type": "Ready", "status": status, "message": "no such issuer"}]});
    world.api.edit("Certificate", NAMESPACE, NAME, |found| found["status"] = says("False")).unwrap();
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False CertificatePending", "no such issuer");
    assert!(child(&world, "Deployment").is_none());

    world.api.create(&certificate(asked["spec"]["secretName"].as_str().unwrap(), true)).unwrap();
    world.api.edit("Certificate", NAMESPACE, NAME, |found| found["status"] = says("True")).unwrap();
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "True Resolved", "");
    assert_condition(&world, "Ready", "True Ready", "");
    calm(&world, THREE_PASSES, "a certificate").await;

    // One that cannot be renewed is told of before it expires, and keeps gateways from nothing.
    world.api.edit("Certificate", NAMESPACE, NAME, |found| found["status"] = says("False")).unwrap();
    world.apply(&gateway(json!({"tls": {"certManagerIssuer": "ca"}, "replicas": 3})));
    world.settle(QUIET).await;
    assert_condition(&world, "Resolved", "False CertificatePending", "no such issuer");
    assert_condition(&world, "Ready", "True Ready", "");
    assert_eq!(child(&world, "Deployment").unwrap()["spec"]["replicas"], 3);

    world.apply(&gateway(json!({})));
    world.settle(QUIET).await;
    assert!(child(&world, "Certificate").is_none());
    world.assert_clean();
}
