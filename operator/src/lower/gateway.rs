//! A hub's gateway: a Deployment, a Service, a NetworkPolicy, a PodDisruptionBudget; its configuration lies in a Secret.
//! What lets clients in from outside is in `door`.

use mcp_hub_reconcile::lower::{Lowered, Unsupported};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::GatewayWorkload;
use serde_json::json;

use super::{ClusterSettings, child, door, network, pod};
use crate::children::ChildKind;
use crate::labels;

/// Where operator and replicas reach a gateway; not part of its Service.
pub(crate) const CONTROL_PORT: u16 = 7339;
/// Keys of the Secret.
pub(crate) const CONFIG_KEY: &str = "config.json.gz";
pub(crate) const SEALING_KEY: &str = "sealing-key";
const CONFIG_DIR: &str = "/etc/mcp-hub";
const TLS_DIR: &str = "/etc/mcp-hub-tls";
/// Endpoints are told of a pod's end within a few seconds; what is under way has half a minute.
const DRAIN_DELAY: u32 = 5;
const DRAIN_LIMIT: u32 = 30;
const GRACE_SECONDS: u32 = 45;

/// Name of a gateway's objects.
pub(crate) fn gateway_name(hub: &OwnerKey) -> String {
    format!("mcp-hub-{}", hub.name)
}

/// Name of the Secret with the token and the address of a hub, for people and their clients.
pub fn token_secret(hub: &str) -> String {
    format!("mcp-hub-{hub}-token")
}

/// Keys of that Secret.
pub const TOKEN_KEY: &str = "token";
pub const URL_KEY: &str = "url";
/// Name of a gateway's main container, and of the port in it at which clients are served.
pub const GATEWAY: &str = "gateway";
pub const CLIENTS_PORT: &str = "mcp";

/// Name of the Secret that its pods mount.
pub(crate) fn config_secret(hub: &OwnerKey) -> String {
    format!("mcp-hub-{}-config", hub.name)
}

/// Name of the headless Service of the replicas' control listeners.
fn peers_name(hub: &OwnerKey) -> String {
    format!("{}-peers", gateway_name(hub))
}

pub(super) fn lower(gateway: &GatewayWorkload, settings: &ClusterSettings) -> Result<Lowered, Unsupported> {
    let GatewayWorkload { owner, replicas, port, tls, exposure } = gateway;
    let (pods, name) = (labels::pods_of(owner), gateway_name(owner));
    let mut pod_labels = labels::of(owner);
    pod_labels.insert(labels::ROLE.to_owned(), labels::GATEWAY_ROLE.to_owned());
    let user = mcp_hub_reconcile::image::NOBODY;
    let mut container = json!({
        "name": GATEWAY,
        "image": settings.gateway_image,
        "args": [
            format!("--config={CONFIG_DIR}/{CONFIG_KEY}"),
            format!("--sealing-key={CONFIG_DIR}/{SEALING_KEY}"),
            format!("--listen=0.0.0.0:{port}"),
            format!("--control=0.0.0.0:{CONTROL_PORT}"),
            "--advertise=$(POD_IP)".to_owned(),
            format!("--peers={}.{}.svc:{CONTROL_PORT}", peers_name(owner), owner.namespace),
            format!("--drain-delay={DRAIN_DELAY}"),
            format!("--drain-limit={DRAIN_LIMIT}"),
        ],
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}],
        "ports": [
            {"name": CLIENTS_PORT, "containerPort": port, "protocol": "TCP"},
            {"name": "control", "containerPort": CONTROL_PORT, "protocol": "TCP"},
        ],
        "securityContext": pod::confined(true),
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_DIR, "readOnly": true}],
        "readinessProbe": pod::probe("/readyz", CONTROL_PORT, 2, 2),
        "livenessProbe": pod::probe("/healthz", CONTROL_PORT, 10, 6),
    });
    let mut volumes = vec![json!({"name": "config", "secret": {"secretName": config_secret(owner)}})];
    if let Some(tls) = tls {
        let secret = door::certificate_secret(owner, tls);
        volumes.push(json!({"name": "tls", "secret": {"secretName": secret}}));
        let mount = json!({"name": "tls", "mountPath": TLS_DIR, "readOnly": true});
        let more = [("volumeMounts", vec![mount]), ("args", vec![json!(format!("--tls={TLS_DIR}"))])];
        for (list, items) in more {
            container[list].as_array_mut().into_iter().for_each(|list| list.extend(items.clone()));
        }
    }
    let deployment = json!({
        "replicas": replicas,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": pods},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": pod_labels},
            "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": pod::identity(user, user),
                "terminationGracePeriodSeconds": GRACE_SECONDS,
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": pods},
                }],
                "containers": [container],
                "volumes": volumes,
            },
        },
    });
    let mut service = json!({
        "selector": pods,
        "ports": [{"name": "mcp", "port": port, "targetPort": port, "protocol": "TCP"}],
    });
    if tls.is_some() {
        // By which an Ingress or Gateway may know how to speak to it.
        service["ports"][0]["appProtocol"] = json!("https");
    }
    // Where replicas find each other. One that is about to end is found no more.
    let peers = json!({
        "clusterIP": "None",
        "selector": pods,
        "ports": [{"name": "control", "port": CONTROL_PORT, "targetPort": CONTROL_PORT, "protocol": "TCP"}],
    });
    let policy = network::of_gateway(&pods, *port, CONTROL_PORT, settings);
    let mut objects = vec![
        child(ChildKind::NetworkPolicy, owner, name.clone(), &policy),
        child(ChildKind::Deployment, owner, name.clone(), &deployment),
        child(ChildKind::Service, owner, name.clone(), &service),
        child(ChildKind::Service, owner, peers_name(owner), &peers),
    ];
    // With one replica a budget would only stop nodes from being drained.
    if *replicas > 1 {
        let budget = json!({"maxUnavailable": 1, "selector": {"matchLabels": pods}});
        objects.push(child(ChildKind::PodDisruptionBudget, owner, name, &budget));
    }
    objects.extend(door::lower(owner, *port, tls.as_ref(), exposure.as_ref())?);
    Ok(Lowered { objects, degraded: Vec::new() })
}
