//! How clients come to a hub from outside: TLS end to end, an Ingress, and kinds that a cluster may not know.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use mcp_hub_crds::MCPHub;
use mcp_hub_kubernetes_tests::{Place, Trust, administrator, eventually, fixture, hub, hub_condition};
use serde_json::{Value, json};

const CHILD: &str = "mcp-hub-default";

impl Certificate {
    fn new(place: &Place) -> Self {
        let name = format!("{CHILD}.{}.svc", place.name);
        let made = rcgen::generate_simple_self_signed([name.clone()]).unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "cert"},
            "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()},
        });
        Self { secret: secret.to_string(), trust: Trust::new(made.cert.der().clone(), &name) }
    }
}

/// A certificate of a hub's Service, as the Secret for the gateways and for who trusts it.
struct Certificate {
    secret: String,
    trust: Trust,
}

async fn until_condition(place: &Place, type_: &str, beginning: &str) -> MCPHub {
    let wanted = |hub: &MCPHub| match beginning {
        "" => hub_condition(hub, type_).is_empty(),
        beginning => hub_condition(hub, type_).starts_with(beginning),
    };
    place.until("default", &format!("{type_} to be `{beginning}`"), wanted).await
}

#[tokio::test]
async fn a_client_is_served_by_tls_and_another_certificate_needs_no_restart() {
    let (place, _lease) = Place::new("tls").await;
    place.apply(&fixture("a", &["stdio"], "")).await;
    place.apply(&hub("default", "{gateway: {replicas: 1, tls: {secretRef: {name: cert}}}}")).await;
    until_condition(&place, "Resolved", "False SecretMissing").await;

    let first = Certificate::new(&place);
    place.apply(&first.secret).await;
    let served = place.until_served("default", 1).await;
    assert_eq!(served.status.unwrap().endpoint.unwrap(), format!("https://{CHILD}.{}.svc:8080/mcp", place.name));
    let session = place.connect_by_tls("default", &first.trust).await;
    session.until_listed(&["a_echo"]).await;
    assert_eq!(session.call("a_echo", json!({"text": "sealed"})).await.unwrap(), "sealed");
    // By the API server's forwarded port there is a way without.
    place.connect("default", None).await.until_listed(&["a_echo"]).await;
    // Over the network there is none: by TLS the gateway answers the API server's proxy, and nothing without.
    let proxied = async |scheme: &str| {
        let path = format!("/api/v1/namespaces/{}/services/{scheme}:{CHILD}:8080/proxy/healthz", place.name);
        place.client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await
    };
    assert_eq!(proxied("https").await.unwrap(), "ok");
    proxied("http").await.unwrap_err();

    let pods = async || place.pods_of("default").await.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    let before = pods().await;
    let second = Certificate::new(&place);
    place.apply(&second.secret).await;
    place.until_shown("default", &second.trust).await;
    assert_eq!(pods().await, before);
    let session = place.connect_by_tls("default", &second.trust).await;
    session.until_listed(&["a_echo"]).await;
}

#[tokio::test]
async fn an_ingress_comes_comes_back_and_goes_with_its_field() {
    let (place, _lease) = Place::new("ingress").await;
    let host = format!("{}.example.com", place.name);
    let spec = format!("{{gateway: {{replicas: 1, ingress: {{host: {host}, className: of-nobody}}}}}}");
    place.apply(&hub("default", &spec)).await;
    let told = until_condition(&place, "Exposed", "False Pending").await;
    assert_eq!(told.status.unwrap().endpoint.unwrap(), format!("http://{host}/mcp"));
    let ingresses = place.api::<Ingress>();
    // As a controller would.
    let says = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    ingresses.patch_status(CHILD, &PatchParams::default(), &Patch::Merge(&says)).await.unwrap();
    until_condition(&place, "Exposed", "True Exposed").await;

    let old = ingresses.get(CHILD).await.unwrap().uid();
    ingresses.delete(CHILD, &DeleteParams::default()).await.unwrap();
    let back = async || match ingresses.get_opt(CHILD).await.unwrap() {
        Some(found) if found.uid() != old => Ok(found),
        other => Err(format!("{other:?}")),
    };
    eventually("the Ingress to come back", back).await;
    let edit = json!({"spec": {"rules": [{"host": "evil.example.com"}]}});
    ingresses.patch(CHILD, &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    eventually("the host to be put right", async || {
        let found = ingresses.get(CHILD).await.unwrap();
        let rule = found.spec.unwrap().rules.unwrap().remove(0);
        if rule.host.as_ref() == Some(&host) && rule.http.is_some() { Ok(()) } else { Err(format!("{rule:?}")) }
    })
    .await;
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    until_condition(&place, "Exposed", "").await;
    assert!(ingresses.get_opt(CHILD).await.unwrap().is_none());
}

/// Definitions that a story installed; they go with it, also after a panic.
struct Definitions(Vec<String>);

impl Drop for Definitions {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.0);
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let api: Api<CustomResourceDefinition> = Api::all(administrator().await);
                for name in names {
                    api.delete(&name, &DeleteParams::default()).await.ok();
                }
            });
        });
        removal.join().ok();
    }
}

/// As small as it may be.
fn definition(group: &str, kind: &str, plural: &str) -> CustomResourceDefinition {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"), "annotations": {
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/3328"}},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}}}],
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn a_kind_that_is_not_known_is_told_and_made_when_its_definition_comes() {
    let (place, _lease) = Place::new("kinds").await;
    let definitions: Api<CustomResourceDefinition> = Api::all(place.client.clone());
    let kinds =
        [("gateway.networking.k8s.io", "HTTPRoute", "httproutes"), ("cert-manager.io", "Certificate", "certificates")];
    let known =
        async |plural: &str, group: &str| definitions.get_opt(&format!("{plural}.{group}")).await.unwrap().is_some();
    for (group, _, plural) in kinds {
        // A cluster that has them is somebody's, and knows nothing to heal.
        if known(plural, group).await {
            println!("skipped: the cluster has {plural}.{group}");
            return;
        }
    }
    let route = "httpRoute: {host: hub.example.com, gateway: public}";
    place
        .apply(&hub("default", &format!("{{gateway: {{replicas: 1, {route}, tls: {{certManagerIssuer: ca}}}}}}")))
        .await;
    until_condition(&place, "Resolved", "False KindUnknown").await;
    until_condition(&place, "Exposed", "False KindUnknown").await;

    let mut installed = Definitions(Vec::new());
    for (group, kind, plural) in kinds {
        let made = definitions.create(&PostParams::default(), &definition(group, kind, plural)).await.unwrap();
        installed.0.push(made.name_any());
    }
    until_condition(&place, "Resolved", "False CertificatePending").await;
    until_condition(&place, "Exposed", "False Pending").await;
    let says = async |(group, kind, plural): (&str, &str, &str), status: Value| {
        let api: Api<DynamicObject> = place.objects(group, "v1", kind, plural);
        api.patch_status(CHILD, &PatchParams::default(), &Patch::Merge(&json!({"status": status}))).await.unwrap();
    };
    let accepted = json!([{"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "True"}]);
    says(kinds[0], json!({"parents": [{"conditions": accepted}]})).await;
    until_condition(&place, "Exposed", "True Exposed").await;
    says(kinds[1], json!({"conditions": [{"type": "Ready", "status": "False", "message": "no issuer ca"}]})).await;
    place.until("default", "the issuer's word", |hub| hub_condition(hub, "Resolved").contains("no issuer ca")).await;
    for (group, kind, plural) in kinds {
        let api: Api<DynamicObject> = place.objects(group, "v1", kind, plural);
        let old = api.get(CHILD).await.unwrap().uid();
        api.delete(CHILD, &DeleteParams::default()).await.unwrap();
        eventually(&format!("{kind} to come back"), async || match api.get_opt(CHILD).await.unwrap() {
            Some(found) if found.uid() != old => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    place.apply(&hub("default", "{gateway: {replicas: 1}}")).await;
    until_condition(&place, "Exposed", "").await;
    until_condition(&place, "Resolved", "").await;
}
