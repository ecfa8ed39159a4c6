//! What a cluster refuses or fails to do, and what the user does next.

use kube::client::UpgradeConnectionError;
use kube::core::Status;
use mcp_hub_operator::planner::PlannerError;

use crate::error::Exit;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("there is no kubeconfig: {problem}")]
    NoKubeconfig { problem: String },
    #[error("the kubeconfig cannot be used: {problem}")]
    Kubeconfig { problem: String },
    #[error("the kubeconfig has no context `{context}`")]
    NoContext { context: String, known: Vec<String> },
    #[error("the kubeconfig names no current context")]
    NoCurrentContext { known: Vec<String> },
    #[error("cluster {cluster} cannot be reached: {problem}")]
    Unreachable { cluster: String, problem: String },
    #[error("cluster {cluster} does not accept your credentials: {message}")]
    Unauthorized { cluster: String, message: String },
    #[error("cluster {cluster} does not let you {verb} {resource}: {message}")]
    Forbidden { cluster: String, verb: &'static str, resource: String, message: String },
    #[error("cluster {cluster} knows no {resource}: MCP Hub is not installed there")]
    NotInstalled { cluster: String, resource: String },
    #[error("cluster {cluster} has no {kind} `{name}`")]
    Absent { cluster: String, kind: String, name: String },
    #[error("{object} is not applied: {}", fields(.conflicts))]
    Conflict { object: String, conflicts: Vec<FieldConflict> },
    #[error("cluster {cluster} refuses {object}: {message}")]
    Invalid { cluster: String, object: String, message: String },
    #[error("cluster {cluster} failed to {verb} {resource}: {message}")]
    Failed { cluster: String, verb: &'static str, resource: String, message: String },
    #[error("the operator's steps cannot be told: {0}")]
    NoPlan(PlannerError),
}

/// A field that another manager set to another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldConflict {
    field: String,
    /// What the API server says: with which manager.
    with: String,
}

fn fields(conflicts: &[FieldConflict]) -> String {
    let shown =
        conflicts.iter().map(|conflict| format!("{}: {}", conflict.field.trim_start_matches('.'), conflict.with));
    shown.collect::<Vec<_>>().join("; ")
}

impl ClusterError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoKubeconfig { .. } | Self::Unreachable { .. } | Self::NotInstalled { .. } => Exit::NoAnswer,
            Self::NoContext { .. } | Self::NoCurrentContext { .. } | Self::Absent { .. } => Exit::NotFound,
            Self::Kubeconfig { .. } | Self::Invalid { .. } => Exit::Invalid,
            Self::Unauthorized { .. } | Self::Forbidden { .. } => Exit::Forbidden,
            Self::Conflict { .. } => Exit::Held,
            Self::Failed { .. } => Exit::Failed,
            Self::NoPlan(PlannerError::NoOperator) => Exit::NoAnswer,
            Self::NoPlan(_) => Exit::Failed,
        }
    }

    /// What the user does next.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            // Of a section that is left empty server-side apply makes null, which no schema takes.
            Self::Invalid { message, .. } if message.contains(r#"Invalid value: "null""#) => {
                "leave the section out instead of leaving it empty, or `kubectl replace` the object once".to_owned()
            }
            Self::Invalid { .. } => return None,
            Self::NoKubeconfig { .. } => "set KUBECONFIG to the file that your cluster's provider gives".to_owned(),
            Self::Kubeconfig { .. } => "`kubectl config view` shows it".to_owned(),
            Self::NoContext { known, .. } => format!("there are: {}", known.join(", ")),
            Self::NoCurrentContext { known } => {
                format!("name one with --target kubernetes/CONTEXT; there are: {}", known.join(", "))
            }
            Self::Unreachable { .. } => "`kubectl cluster-info` asks the same server; is the cluster up, and your \
                                         network the right one?"
                .to_owned(),
            Self::Unauthorized { .. } => "log in to the cluster again, or name another context".to_owned(),
            Self::Forbidden { verb, resource, .. } => {
                format!("ask for a role that allows to {verb} {resource}, or name another context or namespace")
            }
            Self::NotInstalled { .. } => {
                "`helm install mcp-hub charts/mcp-hub --namespace mcp-hub-system --create-namespace` installs it"
                    .to_owned()
            }
            Self::Conflict { .. } => "--force-conflicts takes these fields over".to_owned(),
            Self::NoPlan(PlannerError::NoOperator) => {
                "install MCP Hub, or look after its operator: `kubectl get pods -A -l mcphub.io/role=operator`"
                    .to_owned()
            }
            Self::NoPlan(
                PlannerError::Unsaid { .. }
                | PlannerError::NoInstallation { .. }
                | PlannerError::Identity(_)
                | PlannerError::Relay(_),
            )
            | Self::Absent { .. }
            | Self::Failed { .. } => return None,
        })
    }
}

/// What was asked of a cluster, for its failure.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) cluster: &'a str,
    /// As roles name it.
    pub(super) verb: &'static str,
    /// As roles name it, such as `pods/log`; with the namespace that it lies in, if it lies in one.
    pub(super) resource: String,
    /// The object that is to become as given, where it is about one.
    pub(super) object: Option<String>,
}

impl Request<'_> {
    pub(super) fn failed(self, error: kube::Error) -> ClusterError {
        let cluster = self.cluster.to_owned();
        match error {
            kube::Error::Api(status) => self.refused(&status),
            kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => {
                self.refused(&Status { code: code.as_u16(), message: code.to_string(), ..Status::default() })
            }
            kube::Error::Auth(_) => ClusterError::Unauthorized { cluster, message: innermost(&error) },
            error => ClusterError::Unreachable { cluster, problem: innermost(&error) },
        }
    }

    pub(super) fn refused(self, status: &Status) -> ClusterError {
        let Self { cluster, verb, resource, object } = self;
        let (cluster, message) = (cluster.to_owned(), status.message.clone());
        match status.code {
            401 => ClusterError::Unauthorized { cluster, message },
            403 => ClusterError::Forbidden { cluster, verb, resource, message },
            // A 404 about an object names it; one about the whole resource does not.
            404 => match status.details.as_ref().filter(|details| !details.name.is_empty()) {
                Some(details) => {
                    ClusterError::Absent { cluster, kind: details.kind.clone(), name: details.name.clone() }
                }
                None => ClusterError::NotInstalled { cluster, resource },
            },
            _ => match object {
                Some(object) if matches!(status.code, 400 | 422) => ClusterError::Invalid { cluster, object, message },
                Some(object) if status.code == 409 && !conflicts(status).is_empty() => {
                    ClusterError::Conflict { object, conflicts: conflicts(status) }
                }
                Some(_) | None => ClusterError::Failed { cluster, verb, resource, message },
            },
        }
    }
}

fn conflicts(status: &Status) -> Vec<FieldConflict> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let of_managers = causes.filter(|cause| cause.reason == "FieldManagerConflict");
    of_managers.map(|cause| FieldConflict { field: cause.field.clone(), with: cause.message.clone() }).collect()
}

/// The first cause: what wraps it says only that something failed.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
