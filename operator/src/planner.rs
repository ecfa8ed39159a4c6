//! What the operator would do, found out with the rights of whoever asks: `mcpctl plan` on a cluster.
//!
//! Plans are exact or there are none. They need what the operator itself was started with, which its pod tells, and the
//! installation's key, from which tokens in pods are derived.

use std::collections::HashMap;
use std::fmt;

use kube::api::ListParams;
use kube::{Client, ResourceExt};
use mcp_hub_crds::MCPServer;
use mcp_hub_reconcile::error::Error;
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::observed::{Observed, ObservedObject};
use mcp_hub_reconcile::pass::{self, Secrets};
use mcp_hub_reconcile::ports::Step;

use crate::children::{Child, ChildKind};
use crate::identity::{self, IdentityError};
use crate::labels;
use crate::lower::{ClusterSettings, PackageSettings};
use crate::pods::{Container, Pod};
use crate::relay::{self, RelayError};
use crate::scope::Scope;
use crate::store::read_secret;

/// Why the operator's steps cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    #[error("no operator runs on this cluster")]
    NoOperator,
    #[error("pod {pod} of the operator does not say its {setting}")]
    Unsaid { pod: String, setting: &'static str },
    #[error("the operator has not made its Secret {} in namespace {namespace} yet", identity::SECRET)]
    NoInstallation { namespace: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// A running operator as far as its plans depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningOperator {
    /// `NAMESPACE/NAME` of the pod that told it.
    pub pod: String,
    pub image: String,
    /// Of the release, where its label says so.
    pub version: Option<String>,
    /// Without its relay, which is known by its Service only.
    settings: ClusterSettings,
    relay_service: Option<String>,
    /// Namespaces that it looks after; none means all.
    watches: Vec<String>,
}

/// Flags of the operator and the environment variables that stand for them.
const NAMESPACE: [&str; 2] = ["namespace", "POD_NAMESPACE"];
const BRIDGE_IMAGE: [&str; 2] = ["bridge-image", "BRIDGE_IMAGE"];
const RUNNER_IMAGE: [&str; 2] = ["runner-image", "RUNNER_IMAGE"];
const NPM_REGISTRY: [&str; 2] = ["npm-registry", "NPM_REGISTRY"];
const PYPI_INDEX: [&str; 2] = ["pypi-index", "PYPI_INDEX"];
const PACKAGE_PROXY: [&str; 2] = ["package-proxy", "PACKAGE_PROXY"];
const PACKAGE_NO_PROXY: [&str; 2] = ["package-no-proxy", "PACKAGE_NO_PROXY"];
const PACKAGE_CA: [&str; 2] = ["package-ca", "PACKAGE_CA"];
const GATEWAY_IMAGE: [&str; 2] = ["gateway-image", "GATEWAY_IMAGE"];
const WATCH_NAMESPACES: [&str; 2] = ["watch-namespaces", "WATCH_NAMESPACES"];
const RELAY_SERVICE: [&str; 2] = ["relay-service", "RELAY_SERVICE"];
const POLICIES_ENFORCED: [&str; 2] = ["network-policies-enforced", "NETWORK_POLICIES_ENFORCED"];

impl RunningOperator {
    /// Labels of an operator's pods.
    pub fn selector() -> String {
        format!("{}={}", labels::ROLE, labels::OPERATOR_ROLE)
    }

    /// The newest of the operator's pods that is not about to end.
    pub fn among(pods: &[Pod]) -> Result<Self, PlannerError> {
        let living = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let newest = living.max_by_key(|pod| pod.creation_timestamp()).ok_or(PlannerError::NoOperator)?;
        Self::of(newest)
    }

    fn of(pod: &Pod) -> Result<Self, PlannerError> {
        let own_namespace = pod.namespace().unwrap_or_default();
        let name = format!("{own_namespace}/{}", pod.name_any());
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let unsaid = |setting| PlannerError::Unsaid { pod: name.clone(), setting };
        // Others may have been put beside it.
        let container = containers
            .into_iter()
            .find(|container| setting(container, BRIDGE_IMAGE).is_some())
            .ok_or_else(|| unsaid("bridge image"))?;
        let enforced = setting(container, POLICIES_ENFORCED).is_some_and(|value| value != "false");
        Ok(Self {
            image: container.image.clone().unwrap_or_default(),
            version: pod.labels().get(labels::VERSION).cloned(),
            settings: ClusterSettings {
                // By a fieldRef, as a rule, which is the pod's own.
                namespace: setting(container, NAMESPACE).unwrap_or(own_namespace),
                bridge_image: setting(container, BRIDGE_IMAGE).unwrap_or_default(),
                runner_image: setting(container, RUNNER_IMAGE).ok_or_else(|| unsaid("runner image"))?,
                packages: PackageSettings {
                    npm_registry: setting(container, NPM_REGISTRY),
                    pypi_index: setting(container, PYPI_INDEX),
                    proxy: setting(container, PACKAGE_PROXY),
                    no_proxy: setting(container, PACKAGE_NO_PROXY),
                    authorities: setting(container, PACKAGE_CA),
                },
                gateway_image: setting(container, GATEWAY_IMAGE).ok_or_else(|| unsaid("gateway image"))?,
                network_policies_enforced: enforced,
                relay: None,
            },
            relay_service: setting(container, RELAY_SERVICE).filter(|service| !service.is_empty()),
            watches: setting(container, WATCH_NAMESPACES)
                .map(|list| list.split(',').map(str::to_owned).filter(|namespace| !namespace.is_empty()).collect())
                .unwrap_or_default(),
            pod: name,
        })
    }

    /// Whether it does anything in this namespace.
    pub fn watches(&self, namespace: &str) -> bool {
        self.watches.is_empty() || self.watches.iter().any(|watched| watched == namespace)
    }

    /// Namespace of the operator itself.
    pub fn namespace(&self) -> &str {
        &self.settings.namespace
    }
}

/// The value of a flag, or of the variable that stands for it; a flag alone is `true`.
fn setting(container: &Container, [flag, variable]: [&str; 2]) -> Option<String> {
    let flag = format!("--{flag}");
    let args: Vec<&String> = container.command.iter().chain(&container.args).flatten().collect();
    let given = args.iter().enumerate().find_map(|(at, arg)| {
        let rest = arg.strip_prefix(&flag)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value.to_owned()),
            None if rest.is_empty() => {
                let next = args.get(at + 1).filter(|next| !next.starts_with('-'));
                Some(next.map_or_else(|| "true".to_owned(), ToString::to_string))
            }
            None => None,
        }
    });
    let variables = || container.env.iter().flatten().find(|found| found.name == variable)?.value.clone();
    given.or_else(variables)
}

/// Makes plans as the operator does, and changes nothing.
#[derive(Clone)]
pub struct Planner {
    client: Client,
    operator: RunningOperator,
    installation: Installation,
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner").field("operator", &self.operator).finish_non_exhaustive()
    }
}

impl Planner {
    pub async fn new(client: &Client, mut operator: RunningOperator) -> Result<Self, PlannerError> {
        let namespace = operator.namespace();
        let installation = identity::existing(client, namespace)
            .await?
            .ok_or_else(|| PlannerError::NoInstallation { namespace: namespace.to_owned() })?;
        if let Some(service) = &operator.relay_service {
            operator.settings.relay = Some(relay::find(client, namespace, service, &installation).await?);
        }
        Ok(Self { client: client.clone(), operator, installation })
    }

    /// The objects of a namespace that belong to servers, by their owners' uids.
    ///
    /// # Errors
    /// With the kind that could not be listed.
    pub async fn children(&self, namespace: &str) -> Result<Children, (&'static str, kube::Error)> {
        let selector = labels::selector(self.installation.id());
        let mut found: HashMap<String, Vec<ObservedObject>> = HashMap::new();
        // A server has no Secrets of ours, and no door.
        for kind in ChildKind::ALL.into_iter().filter(|kind| *kind != ChildKind::Secret && !kind.is_of_door()) {
            let api = Scope::objects(&self.client, Some(namespace), &kind.resource());
            let objects = api.list(&ListParams::default().labels(&selector)).await;
            let objects = objects.map_err(|error| (kind.plural(), error))?;
            for child in objects.items.iter().filter_map(|object| Child::of(kind, object)) {
                let observed = child.observed();
                found.entry(child.owner.uid).or_default().push(observed);
            }
        }
        Ok(Children(found))
    }

    /// The steps that the operator would execute if the server was as given.
    pub async fn steps(&self, server: &MCPServer, children: &Children) -> Result<Vec<Step>, Error> {
        let namespace = server.namespace().unwrap_or_default();
        let mut secrets = Secrets::default();
        let read = pass::secrets_of(server).filter(|_| pass::is_workable(server));
        for key in read {
            let value = read_secret(&self.client, &namespace, key).await?;
            secrets.note(key, value.as_ref(), &self.installation);
        }
        let objects = server.uid().and_then(|uid| children.0.get(&uid)).cloned().unwrap_or_default();
        let observed = Observed { objects, ..Observed::default() };
        pass::steps(server, &self.installation, &observed, &secrets, |workload| {
            crate::lower::lower(workload, &self.operator.settings)
        })
    }
}

/// Objects of a namespace as they were at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Children(HashMap<String, Vec<ObservedObject>>);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, created: &str, container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "hubs", "creationTimestamp": created},
            "spec": {"containers": [{"name": "proxy", "image": "p"}, container]},
        }))
        .unwrap()
    }

    #[test]
    fn flags_and_variables_of_the_newest_pod_say_how_the_operator_was_started() {
        let old = pod(
            "old",
            "2026-01-01T00:00:00Z",
            json!({"name": "o", "args": ["--bridge-image=b:1", "--runner-image=r:1", "--gateway-image=g:1"]}),
        );
        let new = pod(
            "new",
            "2026-01-02T00:00:00Z",
            json!({"name": "o", "image": "o:2", "args": ["--bridge-image", "b:2", "--runner-image=r:2", "--npm-registry=http://npm", "--network-policies-enforced", "--watch-namespaces=a,b",
                "--relay-service=relay"],
                "env": [{"name": "GATEWAY_IMAGE", "value": "g:2"}, {"name": "PACKAGE_CA", "value": "pem"},
                        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]}),
        );
        let operator = RunningOperator::among(&[old, new]).unwrap();
        assert_eq!((operator.pod.as_str(), operator.image.as_str()), ("hubs/new", "o:2"));
        assert_eq!(
            operator.settings,
            ClusterSettings {
                namespace: "hubs".to_owned(),
                bridge_image: "b:2".to_owned(),
                runner_image: "r:2".to_owned(),
                packages: PackageSettings {
                    npm_registry: Some("http://npm".to_owned()),
                    authorities: Some("pem".to_owned()),
                    ..PackageSettings::default()
                },
                gateway_image: "g:2".to_owned(),
                network_policies_enforced: true,
                relay: None,
            }
        );
        assert_eq!(operator.relay_service.as_deref(), Some("relay"));
        assert!(operator.watches("a") && operator.watches("b") && !operator.watches("c"));
    }

    #[test]
    fn what_no_pod_says_is_not_guessed() {
        assert_eq!(RunningOperator::among(&[]).unwrap_err().to_string(), "no operator runs on this cluster");
        let silent = pod("o", "2026-01-01T00:00:00Z", json!({"name": "o", "args": ["--gateway-image=g:1"]}));
        assert_eq!(
            RunningOperator::among(&[silent]).unwrap_err().to_string(),
            "pod hubs/o of the operator does not say its bridge image"
        );
    }
}
