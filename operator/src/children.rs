//! The kinds of objects that we make, and how each is seen.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::core::{ApiResource, DynamicObject};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::lower::{ObjectId, Stage};
use mcp_hub_reconcile::observed::{Failure, ObservedObject};
use mcp_hub_reconcile::owner::OwnerKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cache::Shown;
use crate::fields::{self, Intruder};
use crate::labels;

/// Field manager of everything that makes up a server or a gateway.
pub(crate) const FIELD_MANAGER: &str = "mcp-hub/objects";
/// Field manager of what puts an object right before it is applied.
pub(crate) const MENDING_MANAGER: &str = "mcp-hub/mending";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ChildKind {
    NetworkPolicy,
    Secret,
    Deployment,
    Service,
    PodDisruptionBudget,
}

impl ChildKind {
    pub(crate) const ALL: [Self; 5] =
        [Self::NetworkPolicy, Self::Secret, Self::Deployment, Self::Service, Self::PodDisruptionBudget];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Secret => "Secret",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
        }
    }

    /// The resource as roles name it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networkpolicies.networking.k8s.io",
            Self::Secret => "secrets",
            Self::Deployment => "deployments.apps",
            Self::Service => "services",
            Self::PodDisruptionBudget => "poddisruptionbudgets.policy",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn stage(self) -> Stage {
        match self {
            Self::NetworkPolicy => Stage::Network,
            Self::Secret => Stage::Config,
            Self::Deployment => Stage::Workload,
            Self::Service | Self::PodDisruptionBudget => Stage::Service,
        }
    }

    pub(crate) fn resource(self) -> ApiResource {
        match self {
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
        }
    }
}

/// What passes look at of an object. There are three for each of thousands of servers, so that it is kept as text: a tree of
/// JSON values takes about ten times as much.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    pub(crate) owner: OwnerKey,
    kind: ChildKind,
    name: Box<str>,
    digest: Option<Box<str>>,
    /// What we applied, with the values that it has now, as JSON.
    body: Box<str>,
    /// Values that others put where only we may.
    pub(crate) intruders: Vec<Intruder>,
    /// Why a Deployment cannot make its pods.
    pub(crate) failure: Option<Failure>,
    /// Whether a Deployment has just the pods that it asks for, and all are ready.
    pub(crate) settled: bool,
}

impl Shown for Child {
    fn owner(&self) -> &OwnerKey {
        &self.owner
    }
}

impl Child {
    /// `None` for an object that is not ours or on its way out.
    pub(crate) fn of(kind: ChildKind, object: &DynamicObject) -> Option<Self> {
        let owner = labels::owner(&object.metadata)?;
        if object.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let whole = whole(object);
        let mut body = fields::applied(object, &whole, FIELD_MANAGER);
        let digest = body["metadata"]["annotations"][labels::DIGEST].as_str().map(str::to_owned);
        let intruders = fields::intruders(object, &whole, FIELD_MANAGER);
        if kind == ChildKind::Secret {
            hide(&mut body);
        }
        Some(Self {
            owner,
            kind,
            name: object.name_any().into(),
            // An object that others reached into is not the one we made.
            digest: digest.filter(|_| intruders.is_empty()).map(Into::into),
            body: body.to_string().into(),
            intruders,
            failure: if kind == ChildKind::Deployment { refused_pods(&whole) } else { None },
            settled: kind == ChildKind::Deployment && is_settled(object.metadata.generation, &whole),
        })
    }

    /// The object as the planner compares it.
    pub(crate) fn observed(&self) -> ObservedObject {
        ObservedObject {
            id: ObjectId::new(self.kind.name(), &*self.name),
            stage: self.kind.stage(),
            digest: self.digest.as_deref().map(str::to_owned),
            // Written from a value above, so that it can be read.
            body: serde_json::from_str(&self.body).unwrap_or_default(),
        }
    }
}

/// The object as JSON, without who set what.
fn whole(object: &DynamicObject) -> Value {
    let mut whole = object.data.clone();
    let meta = json!({
        "labels": object.metadata.labels, "annotations": object.metadata.annotations,
        "ownerReferences": object.metadata.owner_references,
    });
    if let Some(fields) = whole.as_object_mut() {
        fields.insert("metadata".to_owned(), meta);
    }
    whole
}

/// Leaves hashes of a Secret's values; the values themselves are kept nowhere.
pub(crate) fn hide(secret: &mut Value) {
    for (_, value) in secret["data"].as_object_mut().into_iter().flatten() {
        *value = Value::from(hex::encode(Sha256::digest(value.as_str().unwrap_or_default())));
    }
}

/// A Deployment whose status speaks of an older spec may be about to replace its pods.
fn is_settled(generation: Option<i64>, whole: &Value) -> bool {
    let (wanted, status) = (whole["spec"]["replicas"].as_i64(), &whole["status"]);
    let counts = ["replicas", "updatedReplicas", "readyReplicas"];
    status["observedGeneration"].as_i64() == generation && counts.iter().all(|count| status[count].as_i64() == wanted)
}

/// A quota, a webhook or Pod Security that refuses pods is told of at the Deployment only.
fn refused_pods(whole: &Value) -> Option<Failure> {
    let conditions = whole["status"]["conditions"].as_array()?;
    let refused = conditions.iter().find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")?;
    Some(Failure {
        reason: "PodsRefused",
        message: refused["message"].as_str().unwrap_or("the cluster refuses the server's pods").to_owned(),
        hint: Some("a quota, an admission webhook or the namespace's Pod Security level refuses them".to_owned()),
        retry: Retry::OnChange,
    })
}
