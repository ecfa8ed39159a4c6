//! The objects that an operator made, without what depends on when it made them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use mcp_hub_crds::{MCPHub, MCPServer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::place::{Place, eventually, living};

/// Objects of operators.
const OURS: &str = "app.kubernetes.io/managed-by=mcp-hub";

/// Everything that an operator made in the namespace, by kind and name, and the number of pods.
pub(crate) type Children = BTreeMap<String, Value>;

impl Place {
    pub(crate) async fn children(&self) -> Children {
        let mut found = Children::new();
        self.add::<Deployment>(&mut found).await;
        self.add::<Service>(&mut found).await;
        self.add::<NetworkPolicy>(&mut found).await;
        self.add::<PodDisruptionBudget>(&mut found).await;
        self.add::<Secret>(&mut found).await;
        for (owner, count) in living(&self.list::<Pod>().await) {
            found.insert(format!("Pods of {owner}"), json!(count));
        }
        found
    }

    async fn add<K>(&self, found: &mut Children)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        for object in self.api::<K>().list(&ListParams::default().labels(OURS)).await.unwrap().items {
            let key = format!("{} {}", K::kind(&()), object.name_any());
            found.insert(key, canonical(serde_json::to_value(&object).unwrap()));
        }
    }

    /// The conditions of all servers and hubs, without times.
    pub(crate) async fn verdicts(&self) -> BTreeMap<String, Vec<String>> {
        let lines = |conditions: Option<&Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>>| {
            let line = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
                format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)
            };
            conditions.into_iter().flatten().map(line).collect()
        };
        let mut found = BTreeMap::new();
        for server in self.list::<MCPServer>().await {
            let conditions = server.status.as_ref().and_then(|status| status.conditions.as_ref());
            found.insert(format!("server {}", server.name_any()), lines(conditions));
        }
        for hub in self.list::<MCPHub>().await {
            let conditions = hub.status.as_ref().and_then(|status| status.conditions.as_ref());
            found.insert(format!("hub {}", hub.name_any()), lines(conditions));
        }
        found
    }

    /// Takes away all that operators made and wrote, so that the next one installs every server and hub afresh. None may
    /// run.
    pub(crate) async fn wipe(&self) {
        self.remove::<Deployment>().await;
        self.remove::<ReplicaSet>().await;
        self.remove::<Service>().await;
        self.remove::<NetworkPolicy>().await;
        self.remove::<PodDisruptionBudget>().await;
        self.remove::<Secret>().await;
        self.remove::<Pod>().await;
        self.forget_status::<MCPServer>().await;
        self.forget_status::<MCPHub>().await;
    }

    async fn forget_status<K>(&self)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        for object in self.list::<K>().await {
            let none = Patch::Merge(json!({"status": null}));
            self.api::<K>().patch_status(&object.name_any(), &PatchParams::default(), &none).await.unwrap();
        }
    }

    async fn remove<K>(&self)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let ours = ListParams::default().labels(OURS);
        self.delete_all::<K>(&ours).await;
        eventually(&format!("no {} to be left", K::kind(&())), async || {
            let left = self.api::<K>().list(&ours).await.unwrap().items;
            let names: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
            // A controller that had not heard of its owner's end may have made another one.
            self.delete_all::<K>(&ours).await;
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .await;
    }

    async fn delete_all<K>(&self, ours: &ListParams)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        for object in self.api::<K>().list(ours).await.unwrap().items {
            match self.api::<K>().delete(&object.name_any(), &DeleteParams::background()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other.unwrap()),
            }
        }
    }
}

/// Without uid, versions, times and who set what; without addresses that a Service was given; without the bytes and the
/// order of a hub's configuration, which the annotation with its version tells apart.
fn canonical(mut object: Value) -> Value {
    for gone in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "namespace"] {
        object["metadata"].as_object_mut().unwrap().remove(gone);
    }
    object.as_object_mut().unwrap().remove("status");
    // Whoever was robbed of all its annotations differs, and is no reason to stop.
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.remove("deployment.kubernetes.io/revision");
        if annotations.remove("mcphub.io/sequence").is_some() {
            annotations.remove("mcphub.io/digest");
            if let Some(data) = object["data"].as_object_mut() {
                data.remove("config.json.gz");
            }
        }
    }
    if object["spec"]["clusterIP"] != "None"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    object
}

/// What differs, one place a line.
pub(crate) fn difference(left: &Children, right: &Children) -> Vec<String> {
    let mut differences = Vec::new();
    let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    for key in keys {
        match (left.get(key), right.get(key)) {
            (Some(left), Some(right)) => differ(key, left, right, &mut differences),
            (left, _) => differences.push(format!("{key} is {}", if left.is_some() { "surplus" } else { "missing" })),
        }
    }
    differences
}

/// Fails with what differs.
pub(crate) fn assert_same(what: &str, left: &Children, right: &Children) {
    let differences = difference(left, right);
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

fn differ(path: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                differ(&format!("{path}.{key}"), &left[key], &right[key], found);
            }
        }
        (left, right) if left == right => {}
        (left, right) => found.push(format!("{path}: {left} and not {right}")),
    }
}
