//! How soon a change of one server shows, and how soon a deleted child is back.

use std::io;
use std::time::Instant;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use mcp_hub_crds::MCPServer;
use serde_json::{Value, json};

use super::{follow, millis};

pub(super) async fn touch(client: &Client, server: &str, rounds: usize) -> io::Result<Value> {
    let mut changed = Vec::new();
    for round in 0..rounds {
        changed.push(change(client, server, &format!("round-{round}")).await?);
    }
    let (mut deployments, mut services, mut policies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        deployments.push(mend::<Deployment>(client, server).await?);
        services.push(mend::<Service>(client, server).await?);
        policies.push(mend::<NetworkPolicy>(client, server).await?);
    }
    Ok(json!({
        "changed_ms": changed,
        "mended_ms": {"Deployment": deployments, "Service": services, "NetworkPolicy": policies},
    }))
}

/// From the change of a server's variable until its Deployment has it.
async fn change(client: &Client, server: &str, value: &str) -> io::Result<f64> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let mut seen = std::pin::pin!(follow(deployments, &format!("mcphub.io/owner-name={server}")));
    // The watch is there before the change is made.
    seen.next().await;
    let patch = json!({"spec": {"env": [{"name": "LOG_LEVEL", "value": value}]}});
    let servers: Api<MCPServer> = Api::default_namespaced(client.clone());
    let begun = Instant::now();
    servers.patch(server, &PatchParams::default(), &Patch::Merge(patch)).await.map_err(io::Error::other)?;
    while let Some(deployment) = seen.next().await {
        let pod = deployment.spec.map(|spec| spec.template).and_then(|template| template.spec);
        let mut variables =
            pod.into_iter().flat_map(|pod| pod.containers).filter_map(|container| container.env).flatten();
        if variables.any(|variable| variable.value.as_deref() == Some(value)) {
            return Ok(millis(begun));
        }
    }
    Err(io::Error::other("the watch of Deployments ended"))
}

/// From the deletion of a child until it is there again.
async fn mend<K>(client: &Client, server: &str) -> io::Result<f64>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::default_namespaced(client.clone());
    let mut seen = std::pin::pin!(follow(api.clone(), &format!("mcphub.io/owner-name={server}")));
    let old = seen.next().await.and_then(|object| object.uid());
    let begun = Instant::now();
    api.delete(&format!("mcp-{server}"), &DeleteParams::background()).await.map_err(io::Error::other)?;
    while let Some(object) = seen.next().await {
        if object.uid() != old {
            return Ok(millis(begun));
        }
    }
    Err(io::Error::other("the watch ended"))
}
