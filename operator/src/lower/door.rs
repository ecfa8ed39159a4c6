//! How clients come to a hub's gateway from outside: a Certificate, and an Ingress or an HTTPRoute.

use std::collections::BTreeMap;

use mcp_hub_crds::hub::{HttpRoute, Ingress, Tls};
use mcp_hub_reconcile::exposure::Exposure;
use mcp_hub_reconcile::lower::{Object, Unsupported};
use mcp_hub_reconcile::owner::OwnerKey;
use serde_json::{Value, json};

use super::gateway::gateway_name;
use super::{child, no};
use crate::children::ChildKind;

/// What of a gateway is for clients; its probes and metrics are not.
const PATHS: [&str; 2] = ["/mcp", "/servers"];
/// Annotations below it are our own.
const OWN: &str = "mcphub.io/";

/// Names under which a gateway is reached within the cluster.
pub(crate) fn service_names(hub: &OwnerKey) -> Vec<String> {
    let (name, namespace) = (gateway_name(hub), &hub.namespace);
    let tails = [
        String::new(),
        format!(".{namespace}"),
        format!(".{namespace}.svc"),
        format!(".{namespace}.svc.cluster.local"),
    ];
    tails.into_iter().map(|tail| format!("{name}{tail}")).collect()
}

/// Name of the Secret with a gateway's certificate: the user's, or that which cert-manager writes.
pub(crate) fn certificate_secret(hub: &OwnerKey, tls: &Tls) -> String {
    match &tls.secret_ref {
        Some(secret) => secret.name.clone(),
        None => format!("{}-tls", gateway_name(hub)),
    }
}

pub(super) fn lower(
    hub: &OwnerKey,
    port: u16,
    tls: Option<&Tls>,
    exposure: Option<&Exposure>,
) -> Result<Vec<Object>, Unsupported> {
    let mut objects = Vec::new();
    if let Some((tls, issuer)) = tls.and_then(|tls| Some((tls, tls.cert_manager_issuer.as_ref()?))) {
        // Authorities of the world vouch for no name that is known in the cluster only, and refuse the others with it.
        let names = exposure.map_or_else(|| service_names(hub), |exposure| vec![exposure.host().to_owned()]);
        let certificate = json!({
            "secretName": certificate_secret(hub, tls),
            "dnsNames": names,
            "issuerRef": {"group": "cert-manager.io", "kind": "Issuer", "name": issuer},
        });
        objects.push(child(ChildKind::Certificate, hub, gateway_name(hub), &certificate));
    }
    let (kind, spec, annotations) = match exposure {
        None => return Ok(objects),
        Some(Exposure::Ingress(wanted)) => (ChildKind::Ingress, ingress(hub, port, tls, wanted), &wanted.annotations),
        Some(Exposure::HttpRoute(wanted)) => (ChildKind::HttpRoute, http_route(hub, port, wanted), &wanted.annotations),
    };
    let field = exposure.map_or("", Exposure::field);
    let mut object = child(kind, hub, gateway_name(hub), &spec);
    if let Some(annotations) = annotations {
        object = annotated(object, annotations, field)?;
    }
    objects.push(object);
    Ok(objects)
}

fn annotated(object: Object, annotations: &BTreeMap<String, String>, field: &str) -> Result<Object, Unsupported> {
    if let Some(own) = annotations.keys().find(|key| key.starts_with(OWN)) {
        return Err(no(format!("{field}.annotations"), format!("`{own}` is MCP Hub's own"), None));
    }
    let Object { id, stage, change, mut body, digest: _ } = object;
    body["metadata"]["annotations"] = json!(annotations);
    Ok(Object::new(id, stage, change, body))
}

/// Lists of both kinds are compared whole, so that what the API server fills in is spelled out here.
fn ingress(hub: &OwnerKey, port: u16, tls: Option<&Tls>, wanted: &Ingress) -> Value {
    let Ingress { host, class_name, tls_secret_ref, annotations: _ } = wanted;
    let backend = json!({"service": {"name": gateway_name(hub), "port": {"number": port}}});
    let paths: Vec<Value> =
        PATHS.iter().map(|path| json!({"path": path, "pathType": "Prefix", "backend": backend})).collect();
    let mut spec = json!({"rules": [{"host": host, "http": {"paths": paths}}]});
    if let Some(class) = class_name {
        spec["ingressClassName"] = json!(class);
    }
    let secret = tls_secret_ref.as_ref().map(|secret| secret.name.clone());
    if let Some(secret) = secret.or_else(|| tls.map(|tls| certificate_secret(hub, tls))) {
        spec["tls"] = json!([{"hosts": [host], "secretName": secret}]);
    }
    spec
}

fn http_route(hub: &OwnerKey, port: u16, wanted: &HttpRoute) -> Value {
    let HttpRoute { host, gateway, gateway_namespace, annotations: _ } = wanted;
    let mut parent = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway});
    if let Some(namespace) = gateway_namespace {
        parent["namespace"] = json!(namespace);
    }
    let matches: Vec<Value> = PATHS.iter().map(|path| json!({"path": {"type": "PathPrefix", "value": path}})).collect();
    json!({
        "parentRefs": [parent],
        "hostnames": [host],
        "rules": [{
            "matches": matches,
            "backendRefs": [{"group": "", "kind": "Service", "name": gateway_name(hub), "port": port, "weight": 1}],
            // A call or a stream of events may last as long as it needs; the gateway bounds calls itself.
            "timeouts": {"request": "0s"},
        }],
    })
}
