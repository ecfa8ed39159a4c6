//! The kinds that the server knows.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mcp_hub_crds::ResourceKind;
use schemars::JsonSchema;

use crate::schema::{Schema, builtin, custom};

/// What raises `metadata.generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Nothing: the kind has none.
    Never,
    /// A change of `spec`.
    Spec,
    /// A change of `spec` or of the annotations.
    SpecAndAnnotations,
    /// A change of anything but metadata and status.
    Content,
}

/// One kind in one version.
#[derive(Debug)]
pub(crate) struct Kind {
    /// Empty for the core group.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) name: String,
    pub(crate) namespaced: bool,
    /// It has the subresource `status`.
    pub(crate) status: bool,
    pub(crate) generation: Generation,
    /// From a definition, not built in.
    pub(crate) custom: bool,
    /// Our own, with rules of their own.
    pub(crate) ours: Option<ResourceKind>,
    pub(crate) schema: Arc<Schema>,
}

impl Kind {
    fn builtin<T>(plural: &str, generation: Generation, status: bool) -> Self
    where
        T: JsonSchema + k8s_openapi::Resource,
        T::Scope: ScopeName,
    {
        Self {
            group: T::GROUP.to_owned(),
            version: T::VERSION.to_owned(),
            plural: plural.to_owned(),
            name: T::KIND.to_owned(),
            namespaced: T::Scope::NAMESPACED,
            status,
            generation,
            custom: false,
            ours: None,
            schema: builtin::<T>(),
        }
    }

    /// The kinds of a definition, one for each version that is served.
    pub(crate) fn of_definition(definition: &CustomResourceDefinition) -> Vec<Self> {
        let spec = &definition.spec;
        let ours = ResourceKind::ALL
            .into_iter()
            .find(|ours| spec.group == mcp_hub_crds::GROUP && spec.names.kind == ours.as_str());
        spec.versions
            .iter()
            .filter(|version| version.served)
            .map(|version| {
                let status = version.subresources.as_ref().is_some_and(|sub| sub.status.is_some());
                Self {
                    group: spec.group.clone(),
                    version: version.name.clone(),
                    plural: spec.names.plural.clone(),
                    name: spec.names.kind.clone(),
                    namespaced: spec.scope == "Namespaced",
                    status,
                    generation: Generation::Content,
                    custom: true,
                    ours,
                    schema: custom(version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref())),
                }
            })
            .collect()
    }

    /// `GROUP/VERSION`, or the version alone.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `PLURAL.GROUP`, or the plural alone.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether a full update may leave out the version it is based on.
    pub(crate) fn unconditional_update(&self) -> bool {
        !self.custom && !matches!(self.name.as_str(), "Lease" | "PodDisruptionBudget")
    }

    /// Whether a full update of what does not exist makes it.
    pub(crate) fn create_on_update(&self) -> bool {
        !self.custom && matches!(self.name.as_str(), "Lease" | "Event" | "Service")
    }

    /// Whether a delete answers with the object even when it is gone at once.
    pub(crate) fn returns_deleted(&self) -> bool {
        matches!(self.name.as_str(), "Pod" | "Service" | "ServiceAccount")
    }
}

pub(crate) trait ScopeName {
    const NAMESPACED: bool;
}

impl ScopeName for k8s_openapi::NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl ScopeName for k8s_openapi::ClusterResourceScope {
    const NAMESPACED: bool = false;
}

/// Compiled once: the schemas of all kinds that every server knows.
static KNOWN: LazyLock<Vec<Arc<Kind>>> = LazyLock::new(|| {
    let builtin = [
        Kind::builtin::<ConfigMap>("configmaps", Generation::Never, false),
        Kind::builtin::<Deployment>("deployments", Generation::SpecAndAnnotations, true),
        Kind::builtin::<Event>("events", Generation::Never, false),
        Kind::builtin::<Ingress>("ingresses", Generation::Spec, true),
        Kind::builtin::<Lease>("leases", Generation::Never, false),
        Kind::builtin::<Namespace>("namespaces", Generation::Never, true),
        Kind::builtin::<NetworkPolicy>("networkpolicies", Generation::Spec, false),
        Kind::builtin::<Pod>("pods", Generation::Spec, true),
        Kind::builtin::<PodDisruptionBudget>("poddisruptionbudgets", Generation::Spec, true),
        Kind::builtin::<ReplicaSet>("replicasets", Generation::Spec, true),
        Kind::builtin::<Secret>("secrets", Generation::Never, false),
        Kind::builtin::<Service>("services", Generation::Never, true),
        Kind::builtin::<ServiceAccount>("serviceaccounts", Generation::Never, false),
    ];
    builtin.into_iter().chain(crate::definitions().iter().flat_map(Kind::of_definition)).map(Arc::new).collect()
});

/// The kinds of one server.
#[derive(Debug, Clone)]
pub(crate) struct Registry(Vec<Arc<Kind>>);

impl Default for Registry {
    fn default() -> Self {
        Self(KNOWN.clone())
    }
}

impl Registry {
    pub(crate) fn add(&mut self, definition: &CustomResourceDefinition) {
        for kind in Kind::of_definition(definition) {
            self.0.retain(|known| {
                (&known.group, &known.version, &known.plural) != (&kind.group, &kind.version, &kind.plural)
            });
            self.0.push(Arc::new(kind));
        }
    }

    /// The server no longer knows these kinds, as before the definition was installed.
    pub(crate) fn remove(&mut self, group: &str, plural: &str) {
        self.0.retain(|kind| (kind.group.as_str(), kind.plural.as_str()) != (group, plural));
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.0
            .iter()
            .find(|kind| (kind.group.as_str(), kind.version.as_str(), kind.plural.as_str()) == (group, version, plural))
            .cloned()
    }

    /// By what an owner reference or a manifest says.
    pub(crate) fn named(&self, api_version: &str, name: &str) -> Option<Arc<Kind>> {
        self.0.iter().find(|kind| kind.name == name && kind.api_version() == api_version).cloned()
    }

    /// The kind of this name in whatever group; the core groups first.
    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Kind>> {
        self.0.iter().find(|kind| kind.name == name).cloned()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.0.iter()
    }
}
