//! Servers made and removed, many at once.

use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use mcp_hub_crds::MCPServer;
use serde_json::{Value, json};

use super::{AT_ONCE, follow};

/// A server that needs no registry: which command it runs is given, and its tag is meant to stay.
pub(super) fn server(name: &str) -> serde_json::Result<MCPServer> {
    serde_json::from_value(json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
        "metadata": {"name": name, "labels": {"bench": "yes"}},
        "spec": {
            "source": {"image": {"ref": "registry.example/tools/server:1.4.2", "command": ["/usr/bin/server"], "pinDigest": false}},
            "args": ["--stdio"],
            "env": [{"name": "LOG_LEVEL", "value": "info"}],
            "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}},
        },
    }))
}

/// Creates the server; its uid.
pub(super) async fn make(api: &Api<MCPServer>, name: &str) -> io::Result<String> {
    let made = api.create(&PostParams::default(), &server(name)?).await.map_err(io::Error::other)?;
    Ok(made.uid().unwrap_or_default())
}

pub(super) async fn create(client: &Client, namespace: &str, first: usize, count: usize) -> io::Result<Value> {
    let api: Api<MCPServer> = Api::namespaced(client.clone(), namespace);
    let names: Vec<String> = match namespace {
        "default" => (first..first + count).map(|number| format!("s{number}")).collect(),
        _ => vec!["model".to_owned()],
    };
    let begun = Instant::now();
    let mut awaited: BTreeSet<String> = names.iter().cloned().collect();
    let ready = async {
        let mut seen = std::pin::pin!(follow(api.clone(), "bench=yes"));
        while !awaited.is_empty() {
            if let Some(server) = seen.next().await
                && is_ready(&server)
            {
                awaited.remove(&server.name_any());
            }
        }
        begun.elapsed().as_secs_f64()
    };
    let created = async {
        let made = stream::iter(&names).map(|name| make(&api, name)).buffer_unordered(AT_ONCE);
        made.try_for_each(|_| async { Ok(()) }).await.map(|()| begun.elapsed().as_secs_f64())
    };
    let (ready, created) = tokio::join!(ready, created);
    Ok(json!({"created_seconds": created?, "ready_seconds": ready}))
}

fn is_ready(server: &MCPServer) -> bool {
    let conditions = server.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(super) async fn clear(client: &Client) -> io::Result<Value> {
    let begun = Instant::now();
    let servers: Api<MCPServer> = Api::default_namespaced(client.clone());
    servers.delete_collection(&DeleteParams::default(), &ListParams::default()).await.map_err(io::Error::other)?;
    gone::<MCPServer>(client, None).await?;
    // The garbage collector takes the rest, from the top.
    let ours = Some("app.kubernetes.io/managed-by=mcp-hub");
    gone::<Deployment>(client, ours).await?;
    gone::<ReplicaSet>(client, ours).await?;
    gone::<Pod>(client, ours).await?;
    Ok(json!({"seconds": begun.elapsed().as_secs_f64()}))
}

/// Waits until there is none of a kind.
async fn gone<K>(client: &Client, selector: Option<&str>) -> io::Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::default_namespaced(client.clone());
    let one = ListParams { label_selector: selector.map(str::to_owned), limit: Some(1), ..ListParams::default() };
    loop {
        let left: kube::core::ObjectList<PartialObjectMeta<K>> =
            api.list_metadata(&one).await.map_err(io::Error::other)?;
        if left.items.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}
