//! A cluster: its objects through its API server, with the rights of whoever asks. There is no daemon in between.

mod connect;
mod door;
mod events;
mod failure;
mod plan;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt::{self, Debug};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, ValidationDirective};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, ResourceExt};
use mcp_hub_crds::manifest::Document;
use mcp_hub_crds::{MCPHub, MCPServer, Resource, ResourceKey, ResourceKind};
use mcp_hub_local_runtime::store::RecordedEvent;
use mcp_hub_operator::{Pod, PodConsole, labels, planner::RunningOperator};
use mcp_hub_reconcile::error::RuntimeError;
use mcp_hub_reconcile::ports::LogQuery;
use mcp_hub_reconcile::workload::{RESTARTED_AT_ANNOTATION, STOPPED_ANNOTATION};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Door, Scope, Target, Version};
use crate::admin::{Action, HubEndpoint, Name, OriginState, Planned};
use crate::args::Start;
use crate::error::{Error, absent};
use crate::output;
pub(crate) use failure::ClusterError;
use failure::Request;

/// Field manager of what people apply by this program.
const FIELD_MANAGER: &str = "mcpctl";
/// An API server answers within seconds, also when it is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the operator runs by default.
const OPERATOR_NAMESPACE: &str = "mcp-hub-system";
/// Objects in one answer.
const PAGE: u32 = 500;

#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    /// Its context.
    name: String,
    /// Of the context.
    namespace: String,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What lies in namespaces and has a type.
trait Object: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug {}

impl<K> Object for K where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug
{
}

impl Cluster {
    /// The cluster of a kubeconfig's context; of the current one, or of the pod that this runs in, if none is named.
    pub(crate) async fn connect(context: Option<&str>) -> Result<Self, ClusterError> {
        connect::connect(context).await
    }

    fn new(client: Client, name: String, namespace: String) -> Self {
        Self { client, name, namespace }
    }

    /// The namespaces of a scope; `None` stands for all of them.
    fn namespaces(&self, scope: &Scope) -> Vec<Option<String>> {
        match scope {
            Scope::Usual => vec![Some(self.namespace.clone())],
            Scope::All => vec![None],
            Scope::In(namespaces) => namespaces.iter().cloned().map(Some).collect(),
        }
    }

    fn api<K: Object>(&self, namespace: Option<&str>) -> Api<K> {
        match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn request(&self, verb: &'static str, resource: &str, namespace: Option<&str>) -> Request<'_> {
        let place = namespace.map_or_else(|| " in all namespaces".to_owned(), |name| format!(" in namespace {name}"));
        Request { cluster: &self.name, verb, resource: format!("{resource}{place}"), object: None }
    }

    /// Waits for an answer, but not for ever.
    async fn ask<T>(
        &self,
        request: Request<'_>,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(request.failed(error)),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> ClusterError {
        let problem = format!("no answer within {} s", PATIENCE.as_secs());
        ClusterError::Unreachable { cluster: self.name.clone(), problem }
    }

    /// Objects of a scope, ordered by namespace and name, without who set which field.
    async fn list<K: Object>(&self, scope: &Scope, params: &ListParams) -> Result<Vec<K>, ClusterError> {
        let mut all = Vec::new();
        for namespace in self.namespaces(scope) {
            let api: Api<K> = self.api(namespace.as_deref());
            let mut params = params.clone().limit(PAGE);
            loop {
                let request = self.request("list", &resource_of::<K>(), namespace.as_deref());
                let page = self.ask(request, api.list(&params)).await?;
                all.extend(page.items);
                params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
                if params.continue_token.is_none() {
                    break;
                }
            }
        }
        all.iter_mut().for_each(|object: &mut K| object.meta_mut().managed_fields = None);
        all.sort_by_key(|object| (object.namespace(), object.name_any()));
        Ok(all)
    }

    /// The object, or an error that names what there is instead.
    async fn find<K: Object>(&self, what: &'static str, name: &Name) -> Result<K, Error> {
        let mut all: Vec<K> = self.list(&Scope::of(&name.namespace), &ListParams::default()).await?;
        let Some(at) = all.iter().position(|object| name.is_of(object.meta())) else {
            return Err(absent(what, &name.name, &all, self.beginning()));
        };
        Ok(all.swap_remove(at))
    }

    /// Pods that belong to an object of ours.
    async fn pods_of(&self, namespace: &str, owner_uid: &str) -> Result<Vec<Pod>, ClusterError> {
        let params = ListParams::default().labels(&format!("{}={owner_uid}", labels::OWNER_UID));
        let mut pods: Vec<Pod> = self.list(&Scope::of(namespace), &params).await?;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    /// Applies a resource with the API server's own checks; what it is then.
    async fn put(&self, resource: &Resource, params: &PatchParams) -> Result<Resource, Error> {
        match resource {
            Resource::Server(server) => self.put_one(server, resource.key(), params).await.map(Resource::Server),
            Resource::Hub(hub) => self.put_one(hub, resource.key(), params).await.map(Resource::Hub),
        }
    }

    async fn put_one<K>(&self, object: &K, key: ResourceKey, params: &PatchParams) -> Result<K, Error>
    where
        K: Object + serde::Serialize,
    {
        let api: Api<K> = self.api(Some(&key.namespace));
        let mut request = self.request("patch", &resource_of::<K>(), Some(&key.namespace));
        request.object = Some(key.to_string());
        let params = PatchParams { field_validation: Some(ValidationDirective::Strict), ..params.clone() };
        match self.ask(request, api.patch(&key.name, &params, &Patch::Apply(object))).await {
            Err(ClusterError::Absent { kind, .. }) if kind == "namespaces" => Err(Error::NotFound {
                what: "namespace",
                name: key.namespace.clone(),
                hint: Some(format!("`kubectl create namespace {}` makes it", key.namespace)),
            }),
            answer => Ok(answer?),
        }
    }

    async fn remove<K: Object>(&self, what: &'static str, key: &ResourceKey) -> Result<(), Error> {
        let api: Api<K> = self.api(Some(&key.namespace));
        let request = self.request("delete", &resource_of::<K>(), Some(&key.namespace));
        match self.ask(request, api.delete(&key.name, &DeleteParams::background())).await {
            Err(ClusterError::Absent { .. }) => {
                // The error says what there is.
                let name = Name { namespace: key.namespace.clone(), name: key.name.clone() };
                self.find::<K>(what, &name).await.map(drop)
            }
            answer => Ok(answer.map(drop)?),
        }
    }

    /// The operator's pods, wherever they run.
    async fn operator(&self) -> Result<RunningOperator, ClusterError> {
        let params = ListParams::default().labels(&RunningOperator::selector());
        let pods: Vec<Pod> = match self.list(&Scope::All, &params).await {
            // Who may not look everywhere may still look where it runs, unless somebody put it elsewhere.
            Err(forbidden @ ClusterError::Forbidden { .. }) => {
                self.list(&Scope::of(OPERATOR_NAMESPACE), &params).await.map_err(|_| forbidden)?
            }
            pods => pods?,
        };
        RunningOperator::among(&pods).map_err(ClusterError::NoPlan)
    }

    fn console_failed(&self, server: &Name, error: RuntimeError) -> Error {
        let request = self.request("get", "pods/log", Some(&server.namespace));
        let message = error.message;
        match error.source.map(|source| source.downcast::<kube::Error>()) {
            Some(Ok(source)) => request.failed(*source).into(),
            Some(Err(_)) | None => Error::Refused { exit: crate::error::Exit::Failed, message, hint: error.hint },
        }
    }
}

/// A resource as roles name it.
fn resource_of<K: kube::Resource<DynamicType = ()>>() -> String {
    match &*K::group(&()) {
        "" => K::plural(&()).into_owned(),
        group => format!("{}.{group}", K::plural(&())),
    }
}

#[async_trait]
impl Target for Cluster {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn beginning(&self) -> &'static str {
        "`mcpctl apply -f FILE` brings some; -A looks into all namespaces"
    }

    async fn servers(&self, scope: &Scope) -> Result<Vec<MCPServer>, Error> {
        Ok(self.list(scope, &ListParams::default()).await?)
    }

    async fn hubs(&self, scope: &Scope) -> Result<Vec<MCPHub>, Error> {
        Ok(self.list(scope, &ListParams::default()).await?)
    }

    async fn watch(&self, scope: &Scope) -> Result<BoxStream<'static, Result<Vec<MCPServer>, Error>>, Error> {
        Ok(watch::servers(self, scope))
    }

    async fn events(&self, scope: &Scope) -> Result<Vec<RecordedEvent>, Error> {
        Ok(events::list(self, scope).await?)
    }

    async fn origins(&self) -> Result<Vec<OriginState>, Error> {
        Err(Error::Elsewhere {
            what: "a cluster follows no files, so that it has no origins".to_owned(),
            hint: Some("`mcpctl apply -f PATH` brings a file's objects to it as they are now".to_owned()),
        })
    }

    async fn problems(&self) -> Result<Vec<String>, Error> {
        // What is wrong with the operator shows at its own objects.
        Ok(Vec::new())
    }

    async fn apply(&self, documents: Vec<Document>, force_conflicts: bool) -> Result<(), Error> {
        let params = PatchParams { force: force_conflicts, ..PatchParams::apply(FIELD_MANAGER) };
        for document in documents {
            self.put(&document.resource, &params).await?;
            output::say(&format!("{} applied", document.resource.key()));
        }
        Ok(())
    }

    async fn delete(&self, key: &ResourceKey) -> Result<(), Error> {
        match key.kind {
            ResourceKind::MCPServer => self.remove::<MCPServer>("server", key).await?,
            ResourceKind::MCPHub => self.remove::<MCPHub>("hub", key).await?,
        }
        output::say(&format!("{} removed", key.name));
        Ok(())
    }

    async fn act(&self, action: Action, servers: &[Name]) -> Result<(), Error> {
        let namespaces = Scope::In(servers.iter().map(|server| server.namespace.clone()).collect());
        let all = self.servers(&namespaces).await?;
        if let Some(wanted) = servers.iter().find(|wanted| !all.iter().any(|server| wanted.is_of(&server.metadata))) {
            return Err(absent("server", &wanted.name, &all, self.beginning()));
        }
        let (annotation, value) = match action {
            Action::Start => (STOPPED_ANNOTATION, Value::Null),
            Action::Stop => (STOPPED_ANNOTATION, json!("true")),
            Action::Restart => (RESTARTED_AT_ANNOTATION, json!(Timestamp::now().to_string())),
        };
        let patch = json!({"metadata": {"annotations": {annotation: value}}});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        for server in servers {
            let api: Api<MCPServer> = self.api(Some(&server.namespace));
            let request = self.request("patch", &resource_of::<MCPServer>(), Some(&server.namespace));
            self.ask(request, api.patch(&server.name, &params, &Patch::Merge(&patch))).await?;
        }
        Ok(())
    }

    async fn plan(&self, file: Option<&Path>, scope: &Scope) -> Result<Vec<Planned>, Error> {
        plan::plan(self, file, scope).await
    }

    async fn logs(&self, server: &Name, query: LogQuery) -> Result<BoxStream<'static, Result<String, Error>>, Error> {
        let found: MCPServer = self.find("server", server).await?;
        let uid = found.uid().unwrap_or_default();
        if self.pods_of(&server.namespace, &uid).await?.is_empty() {
            return Err(Error::NotFound {
                what: "pod of server",
                name: server.name.clone(),
                hint: Some(
                    "a cluster keeps no log of pods that are gone; `mcpctl status` says why there is none".to_owned(),
                ),
            });
        }
        let console = PodConsole::new(self.client.clone());
        let begun = tokio::time::timeout(PATIENCE, console.follow(&server.namespace, &uid, query)).await;
        let lines = begun.map_err(|_| self.silent())?.map_err(|error| self.console_failed(server, error))?;
        Ok(lines.map(Ok).boxed())
    }

    async fn endpoint(&self, hub: &Name) -> Result<HubEndpoint, Error> {
        door::endpoint(self, hub).await
    }

    async fn door(&self, hub: &Name) -> Result<Arc<dyn Door>, Error> {
        let found: MCPHub = self.find("hub", hub).await?;
        Ok(Arc::new(door::GatewayDoor::new(self.clone(), hub.clone(), found.uid().unwrap_or_default())))
    }

    async fn wake(&self, _: &Start) -> Result<(), Error> {
        // Whether anything serves there is the operator's business.
        Ok(())
    }

    async fn versions(&self) -> Result<Vec<Version>, Error> {
        let request = Request { cluster: &self.name, verb: "get", resource: "/version".to_owned(), object: None };
        let server = self.ask(request, self.client.apiserver_version()).await?.git_version;
        let (text, value) = match self.operator().await {
            Ok(operator) => {
                let value = json!({"image": operator.image, "pod": operator.pod});
                (format!("{} (pod {})", operator.image, operator.pod), value)
            }
            Err(ClusterError::NoPlan(_)) => ("not running".to_owned(), Value::Null),
            Err(error @ ClusterError::Forbidden { .. }) => (format!("not known: {error}"), Value::Null),
            Err(error) => return Err(error.into()),
        };
        Ok(vec![
            Version {
                of: "cluster",
                text: format!("{server} (context {})", self.name),
                value: json!({"context": self.name, "version": server}),
            },
            Version { of: "operator", text, value },
        ])
    }
}
