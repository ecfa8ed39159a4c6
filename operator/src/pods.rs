//! Pods as the kubelet reports them: which bridges can be asked, and what keeps a pod from running.

use k8s_openapi::api::core::v1::{ContainerPort, ContainerStateTerminated, ContainerStatus, EnvVar, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use mcp_hub_dataplane_api::install::{InstallFailure, InstallReason};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::owner::OwnerKey;
use serde::Deserialize;

use crate::cache::Shown;
use crate::labels;
use crate::lower::GATEWAY;

/// Name of the container that a server runs in, behind its bridge.
pub(crate) const SERVER: &str = "server";
/// Name of the init container that brings the bridge.
pub(crate) const BRIDGE: &str = "bridge";
/// Reason of a failure: no node takes the pod.
pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
/// Name of the init container that installs a server's package.
pub(crate) const PACKAGE: &str = "package";

/// A pod as far as anybody here looks at it. To read all that a spec may hold, its volumes above all, takes as much code as
/// the rest of the client.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PodSpec {
    pub containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Container {
    pub name: String,
    pub image: Option<String>,
    pub command: Option<Vec<String>>,
    pub args: Option<Vec<String>>,
    pub env: Option<Vec<EnvVar>>,
    pub ports: Option<Vec<ContainerPort>>,
}

/// What passes look at of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodFacts {
    pub(crate) owner: OwnerKey,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) ip: Option<String>,
    /// First port of the main container: a bridge's or a gateway's.
    pub(crate) port: Option<u16>,
    /// Condition `Ready`.
    pub(crate) ready: bool,
    pub(crate) ending: bool,
    /// Starts of the main container; a bridge of another start has another status.
    pub(crate) starts: i32,
    pub(crate) running: bool,
    pub(crate) failure: Option<Failure>,
}

impl Shown for PodFacts {
    fn owner(&self) -> &OwnerKey {
        &self.owner
    }
}

impl PodFacts {
    /// `None` for a pod that is not ours.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        let condition = |name: &str| {
            let conditions = status.and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().find(|condition| condition.type_ == name)
        };
        // Others may stand before it, such as those of an injector.
        let is_main = |name: &str| name == SERVER || name == GATEWAY;
        let statuses = status.and_then(|status| status.container_statuses.as_ref());
        let main = statuses.into_iter().flatten().find(|container| is_main(&container.name));
        let ending = pod.metadata.deletion_timestamp.is_some();
        let containers = pod.spec.as_ref().map(|spec| &spec.containers);
        let port = containers.into_iter().flatten().find(|container| is_main(&container.name)).and_then(|container| {
            let port = container.ports.as_ref()?.first()?.container_port;
            u16::try_from(port).ok()
        });
        Some(Self {
            port,
            owner: labels::owner(&pod.metadata)?,
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            ip: status.and_then(|status| status.pod_ip.clone()).filter(|ip| !ip.is_empty()),
            ready: condition("Ready").is_some_and(|ready| ready.status == "True"),
            ending,
            starts: main.map_or(0, |main| main.restart_count),
            running: main.and_then(|main| main.state.as_ref()).is_some_and(|state| state.running.is_some()),
            failure: failure(pod).filter(|_| !ending),
        })
    }
}

/// What keeps the pod from running, with what a person can do about it.
fn failure(pod: &Pod) -> Option<Failure> {
    let status = pod.status.as_ref()?;
    let unscheduled = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some(UNSCHEDULABLE)
    });
    if let Some(condition) = unscheduled {
        let message = condition.message.clone().unwrap_or_default();
        return Some(failed(
            UNSCHEDULABLE,
            format!("no node takes the pod: {message}"),
            Some("add nodes, or lower spec.resources.requests or the constraints of spec.kubernetes.podTemplate"),
        ));
    }
    if status.phase.as_deref() == Some("Failed") {
        let (reason, message) =
            (status.reason.as_deref().unwrap_or("Failed"), status.message.as_deref().unwrap_or_default());
        return Some(failed("PodFailed", format!("the pod failed ({reason}): {message}"), None));
    }
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(container_failure)
}

/// What a container of a pod is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Bridge,
    Package,
    Server,
}

impl Part {
    fn of(container: &str) -> Self {
        match container {
            BRIDGE => Self::Bridge,
            PACKAGE => Self::Package,
            // Also what was put beside it, which keeps it from running just as well.
            _ => Self::Server,
        }
    }

    fn shown(self) -> &'static str {
        match self {
            Self::Bridge => "the init container that installs the bridge",
            Self::Package => "the init container that installs the package",
            Self::Server => "the server's container",
        }
    }
}

fn container_failure(status: &ContainerStatus) -> Option<Failure> {
    let part = Part::of(&status.name);
    let now = status.state.as_ref();
    if let Some(end) = now.and_then(|state| state.terminated.as_ref()).filter(|end| end.exit_code != 0) {
        return Some(ended(part, end));
    }
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    // Tried again under the failure that was shown before, so that status does not go back and forth.
    if part == Part::Package && now.is_some_and(|state| state.running.is_some()) {
        return last.filter(|end| end.exit_code != 0).map(|end| ended(part, end));
    }
    let waiting = now?.waiting.as_ref()?;
    let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default());
    let image = &status.image;
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => Some(failed(
            "ImagePullFailed",
            format!("image {image} cannot be pulled: {message}"),
            Some(match part {
                Part::Bridge => "check the operator's --bridge-image and whether the nodes can pull it",
                Part::Package => "check the operator's --runner-image and whether the nodes can pull it",
                Part::Server => "check spec.source.image.ref; a private registry needs spec.source.image.pullSecretRef",
            }),
        )),
        "CreateContainerConfigError" => Some(failed(
            "ContainerConfigInvalid",
            message.to_owned(),
            Some(
                "a Secret or ConfigMap that the server refers to, or its key, is not there; or the image's user is a name: set spec.runAs.user",
            ),
        )),
        "CreateContainerError" | "RunContainerError" | "StartError" => Some(failed(
            "ContainerStartFailed",
            message.to_owned(),
            Some("check spec.source.image.command, spec.workingDir and spec.volumes"),
        )),
        "CrashLoopBackOff" => match last {
            Some(end) => Some(ended(part, end)),
            None => Some(failed("BridgeCrashLoop", message.to_owned(), None)),
        },
        // ContainerCreating, PodInitializing: on its way.
        _ => None,
    }
}

fn ended(part: Part, end: &ContainerStateTerminated) -> Failure {
    let what = part.shown();
    if end.reason.as_deref() == Some("OOMKilled") {
        return failed(
            "OutOfMemory",
            format!("{what} was killed for want of memory"),
            Some("raise spec.resources.limits.memory"),
        );
    }
    let message = end.message.as_deref().map(str::trim).unwrap_or_default();
    if let (Part::Package, Ok(InstallFailure { reason, message, hint })) = (part, serde_json::from_str(message)) {
        let hint = match reason {
            InstallReason::RegistryUnreachable => Some(
                "pods must reach the registry: spec.permissions.network.egress counts for the installation, too; \
                 registries, a proxy and CA certificates are settings of the operator"
                    .to_owned(),
            ),
            _ => hint,
        };
        return Failure { reason: reason.as_str(), message, hint, retry: Retry::OnChange };
    }
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    let (code, reason) = (end.exit_code, end.reason.as_deref().unwrap_or("Error"));
    failed("ContainerEnded", format!("{what} ended with exit code {code} ({reason}){message}"), None)
}

fn failed(reason: &'static str, message: String, hint: Option<&str>) -> Failure {
    Failure { reason, message, hint: hint.map(str::to_owned), retry: Retry::OnChange }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn installing(state: &Value, last: &Value) -> Option<Failure> {
        let status = json!({"name": PACKAGE, "image": "r:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last});
        container_failure(&serde_json::from_value(status).unwrap())
    }

    #[test]
    fn the_installers_last_words_are_the_reason_until_it_succeeds() {
        let words = r#"{"reason":"PackageNotFound","message":"there is no package `a@9` in npm","hint":"check it"}"#;
        let end = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": words}});
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
        let runs = json!({"running": {}});
        for (state, last) in [(&end, &json!({})), (&waits, &end), (&runs, &end)] {
            let failure = installing(state, last).unwrap();
            let shown = (failure.reason, failure.message.as_str(), failure.hint.as_deref());
            assert_eq!(shown, ("PackageNotFound", "there is no package `a@9` in npm", Some("check it")), "{state}");
        }
        assert_eq!(installing(&runs, &json!({})), None);
        assert_eq!(installing(&json!({"terminated": {"exitCode": 0}}), &end), None);
    }

    #[test]
    fn a_registry_that_no_pod_reaches_points_to_the_egress_list() {
        let words = r#"{"reason":"RegistryUnreachable","message":"no answer from npm: x","hint":"check the network"}"#;
        let failure = installing(&json!({"terminated": {"exitCode": 1, "message": words}}), &json!({})).unwrap();
        assert_eq!(failure.reason, "RegistryUnreachable");
        assert!(failure.hint.unwrap().contains("spec.permissions.network.egress"));
    }

    #[test]
    fn an_installer_that_says_nothing_is_told_by_its_exit_code() {
        let end = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        assert_eq!(installing(&end, &json!({})).unwrap().reason, "OutOfMemory");
        let end = json!({"terminated": {"exitCode": 2, "reason": "Error", "message": "usage"}});
        let failure = installing(&end, &json!({})).unwrap();
        assert_eq!(
            failure.message,
            "the init container that installs the package ended with exit code 2 (Error): usage"
        );
    }
}
