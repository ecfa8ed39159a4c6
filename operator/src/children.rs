//! The kinds of objects that we make, and how each is seen.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
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
    Certificate,
    Deployment,
    Service,
    PodDisruptionBudget,
    Ingress,
    HttpRoute,
}

impl ChildKind {
    pub(crate) const ALL: [Self; 8] = [
        Self::NetworkPolicy,
        Self::Secret,
        Self::Certificate,
        Self::Deployment,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::Ingress,
        Self::HttpRoute,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Secret => "Secret",
            Self::Certificate => "Certificate",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::Ingress => "Ingress",
            Self::HttpRoute => "HTTPRoute",
        }
    }

    /// The resource as roles name it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networkpolicies.networking.k8s.io",
            Self::Secret => "secrets",
            Self::Certificate => "certificates.cert-manager.io",
            Self::Deployment => "deployments.apps",
            Self::Service => "services",
            Self::PodDisruptionBudget => "poddisruptionbudgets.policy",
            Self::Ingress => "ingresses.networking.k8s.io",
            Self::HttpRoute => "httproutes.gateway.networking.k8s.io",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn stage(self) -> Stage {
        match self {
            Self::NetworkPolicy => Stage::Network,
            Self::Secret | Self::Certificate => Stage::Config,
            Self::Deployment => Stage::Workload,
            Self::Service | Self::PodDisruptionBudget | Self::Ingress | Self::HttpRoute => Stage::Service,
        }
    }

    pub(crate) fn resource(self) -> ApiResource {
        match self {
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::Certificate => of_definition("cert-manager.io", "v1", "Certificate", "certificates"),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Ingress => ApiResource::erase::<Ingress>(&()),
            Self::HttpRoute => of_definition("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
        }
    }

    /// Of a kind that not every cluster knows: how it comes to know it.
    pub(crate) fn installed_by(self) -> Option<&'static str> {
        match self {
            Self::Certificate => Some("install cert-manager, or name a Secret in spec.gateway.tls.secretRef"),
            Self::HttpRoute => Some("install the Gateway API CRDs, or use spec.gateway.ingress"),
            Self::NetworkPolicy
            | Self::Secret
            | Self::Deployment
            | Self::Service
            | Self::PodDisruptionBudget
            | Self::Ingress => None,
        }
    }

    /// Whether it only lets clients in: a gateway runs without it.
    pub(crate) fn is_of_door(self) -> bool {
        match self {
            Self::Certificate | Self::Ingress | Self::HttpRoute => true,
            Self::NetworkPolicy | Self::Secret | Self::Deployment | Self::Service | Self::PodDisruptionBudget => false,
        }
    }
}

/// A kind that is known by its name only.
fn of_definition(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// What passes look at of an object. There are three for each of thousands of servers, so that it is kept as text: a tree of
/// JSON values takes about ten times as much.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    pub(crate) owner: OwnerKey,
    pub(crate) kind: ChildKind,
    name: Box<str>,
    digest: Option<Box<str>>,
    /// What we applied, with the values that it has now, as JSON.
    body: Box<str>,
    /// Values that others put where only we may.
    pub(crate) intruders: Vec<Intruder>,
    /// What its controller says is wrong with it.
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
            failure: failure(kind, &whole),
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

fn failure(kind: ChildKind, whole: &Value) -> Option<Failure> {
    match kind {
        ChildKind::Deployment => refused_pods(whole),
        ChildKind::Ingress => no_address(whole),
        ChildKind::HttpRoute => not_attached(whole),
        ChildKind::Certificate => not_issued(whole),
        ChildKind::NetworkPolicy | ChildKind::Secret | ChildKind::Service | ChildKind::PodDisruptionBudget => None,
    }
}

/// Only another spec, or the controller, makes it right; the watch tells of both.
fn said(reason: &'static str, message: String, hint: &str) -> Failure {
    Failure { reason, message, hint: Some(hint.to_owned()), retry: Retry::OnChange }
}

/// A quota, a webhook or Pod Security that refuses pods is told of at the Deployment only.
fn refused_pods(whole: &Value) -> Option<Failure> {
    let conditions = whole["status"]["conditions"].as_array()?;
    let refused = conditions.iter().find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")?;
    Some(said(
        "PodsRefused",
        refused["message"].as_str().unwrap_or("the cluster refuses the server's pods").to_owned(),
        "a quota, an admission webhook or the namespace's Pod Security level refuses them",
    ))
}

/// Controllers say where an Ingress is served; one that never does says nothing at all.
fn no_address(whole: &Value) -> Option<Failure> {
    let addresses = whole["status"]["loadBalancer"]["ingress"].as_array();
    addresses.is_none_or(Vec::is_empty).then(|| {
        said(
            "Pending",
            "no controller has said where it serves the Ingress".to_owned(),
            "look for one of its class; some never say it",
        )
    })
}

/// What the Gateway makes of a route.
fn not_attached(whole: &Value) -> Option<Failure> {
    let parents = whole["status"]["parents"].as_array();
    let Some(parents) = parents.filter(|parents| !parents.is_empty()) else {
        return Some(said(
            "Pending",
            "no Gateway has taken up the HTTPRoute".to_owned(),
            "spec.gateway.httpRoute is to name one that exists and that a controller looks after",
        ));
    };
    let conditions = parents.iter().flat_map(|parent| parent["conditions"].as_array().into_iter().flatten());
    let mut decisive = conditions.filter(|c| c["type"] == "Accepted" || c["type"] == "ResolvedRefs");
    let refused = decisive.find(|c| c["status"] != "True")?;
    let text = |name: &str| refused[name].as_str().unwrap_or_default().to_owned();
    Some(said(
        "RouteRefused",
        format!("the Gateway does not take the HTTPRoute: {}: {}", text("reason"), text("message")),
        "its listeners say which hosts and namespaces they allow",
    ))
}

/// What cert-manager says of a certificate.
fn not_issued(whole: &Value) -> Option<Failure> {
    let conditions = whole["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().find(|c| c["type"] == "Ready");
    if ready.is_some_and(|ready| ready["status"] == "True") {
        return None;
    }
    let why = ready.and_then(|ready| ready["message"].as_str()).unwrap_or("cert-manager has not said anything of it");
    Some(said(
        "CertificatePending",
        format!("the certificate is not issued: {why}"),
        "spec.gateway.tls.certManagerIssuer is to name an Issuer of the namespace that is ready",
    ))
}
