//! A cluster as a place to run: Deployments, Services and NetworkPolicies by server-side apply.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_dataplane_api::status::{BridgeStatus, Phase};
use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::installation::Installation;
use mcp_hub_reconcile::lower::{Lowered, Object, ObjectId, Stage, Unsupported};
use mcp_hub_reconcile::observed::Observed;
use mcp_hub_reconcile::owner::{OwnerKey, OwnerKind};
use mcp_hub_reconcile::ports::{Console, Enforces, Progress, Runtime, RuntimeEvent, RuntimeInfo, Step, hints};
use mcp_hub_reconcile::workload::Workload;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::bridges::{AskBridge, Bridges};
use crate::cache::{Cache, Closed};
use crate::children::{Child, ChildKind, FIELD_MANAGER, MENDING_MANAGER};
use crate::console::PodConsole;
use crate::fields::expulsion;
use crate::images::{Images, ResolveImage};
use crate::labels;
use crate::lower::{self, ClusterSettings};
use crate::pods::{Pod, PodFacts};
use crate::scope::{PAGE, Scope};
use crate::secrets;
use crate::unscheduled::Unscheduled;

/// Events that a slow listener may lag behind before it is told to look at everything.
const EVENTS: usize = 4096;

/// The runtime of a cluster. Its watches end with the last value.
pub struct KubeRuntime {
    client: Client,
    info: RuntimeInfo,
    settings: ClusterSettings,
    children: BTreeMap<ChildKind, Cache<Child>>,
    pods: Cache<PodFacts>,
    bridges: Arc<Bridges>,
    unscheduled: Arc<Unscheduled>,
    images: Images,
    console: PodConsole,
    events: broadcast::Sender<RuntimeEvent>,
    _watches: JoinSet<()>,
}

impl fmt::Debug for KubeRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeRuntime").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a cluster is asked through besides its API server.
#[derive(Debug, Clone)]
pub struct Askers {
    pub bridges: Arc<dyn AskBridge>,
    pub images: Arc<dyn ResolveImage>,
}

impl KubeRuntime {
    /// Starts the watches.
    pub fn start(
        client: &Client,
        scope: &Scope,
        settings: ClusterSettings,
        installation: &Installation,
        askers: Askers,
    ) -> Arc<Self> {
        let events = broadcast::Sender::new(EVENTS);
        let bridges = Arc::new(Bridges::new(askers.bridges, installation.clone(), events.clone()));
        let unscheduled: Arc<Unscheduled> = Arc::default();
        let selector = labels::selector(installation.id());
        let config = watcher::Config::default().labels(&selector).page_size(PAGE);
        let mut watches = JoinSet::new();
        let mut children = BTreeMap::new();
        let lists = scope.namespaces().len();
        for kind in ChildKind::ALL {
            // Secrets are not ours to list.
            let watched = if kind == ChildKind::Secret { Vec::new() } else { scope.namespaces() };
            let cache = Cache::new(watched.len());
            for namespace in watched {
                let api = Scope::objects(client, namespace.as_deref(), &kind.resource());
                let events = events.clone();
                let tell = move |owner| {
                    events.send(RuntimeEvent::Changed(owner)).ok();
                };
                let show = move |object: &DynamicObject| Child::of(kind, object);
                let place = (namespace, kind.is_of_door());
                watches.spawn(cache.clone().follow(api, config.clone(), place, show, tell));
            }
            if kind == ChildKind::Secret {
                watches.spawn(secrets::follow(client.clone(), cache.clone(), events.clone()));
            }
            children.insert(kind, cache);
        }
        for kind in ChildKind::ALL.into_iter().filter(|kind| kind.is_of_door()) {
            watches.spawn(tell_hubs(kind, children.clone(), events.clone()));
        }
        let pods: Cache<PodFacts> = Cache::new(lists);
        for namespace in scope.namespaces() {
            let api: Api<Pod> = Scope::api(client, namespace.as_deref());
            let (cache, events) = (pods.clone(), events.clone());
            let (bridges, unscheduled) = (bridges.clone(), unscheduled.clone());
            let tell = move |owner: OwnerKey| {
                if owner.kind == OwnerKind::MCPServer {
                    let pods = cache.of(&owner.uid);
                    bridges.attend(&owner, &pods);
                    unscheduled.attend(&owner, &pods);
                }
                events.send(RuntimeEvent::Changed(owner)).ok();
            };
            watches.spawn(pods.clone().follow(api, config.clone(), (namespace, false), PodFacts::of, tell));
        }
        let info = RuntimeInfo {
            name: lower::NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            enforces: Enforces {
                memory_limit: true,
                cpu_limit: true,
                filesystem: true,
                egress: settings.network_policies_enforced,
                user: true,
            },
            collects_garbage: true,
            bridge: Some(settings.bridge_image.clone()),
        };
        Arc::new(Self {
            client: client.clone(),
            info,
            settings,
            children,
            pods,
            bridges,
            unscheduled,
            images: Images::new(askers.images, events.clone()),
            console: PodConsole::new(client.clone()),
            events,
            _watches: watches,
        })
    }

    /// Waits until every kind was listed once.
    pub(crate) async fn ready(&self) {
        for cache in self.children.values() {
            cache.ready().await;
        }
        self.pods.ready().await;
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the owner with this uid has any object.
    pub(crate) fn has_any_of(&self, owner_uid: &str) -> bool {
        self.children.values().any(|cache| !cache.of(owner_uid).is_empty())
    }

    /// The objects of an owner that are compared: its Secrets are the sink's.
    fn children_of(&self, owner: &OwnerKey) -> Vec<Child> {
        let kinds = self.children.iter().filter(|(kind, _)| **kind != ChildKind::Secret);
        kinds.flat_map(|(_, cache)| cache.of(&owner.uid)).collect()
    }

    /// The pods of an owner.
    pub(crate) fn pods_of(&self, owner: &OwnerKey) -> Vec<PodFacts> {
        self.pods.of(&owner.uid)
    }

    /// An object as it was last seen.
    pub(crate) fn child(&self, kind: ChildKind, namespace: &str, name: &str) -> Option<Child> {
        self.children.get(&kind)?.get(namespace, name)
    }

    /// A Secret of an owner as it was last seen, or as it is if it was not seen yet.
    pub(crate) async fn secret(&self, owner: &OwnerKey, name: &str) -> Result<Option<Child>, RuntimeError> {
        let known = || self.child(ChildKind::Secret, &owner.namespace, name);
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        let found = self.api(ChildKind::Secret, &owner.namespace).get_opt(name).await;
        let found = found.map_err(|source| api_error("read", owner, &ObjectId::new("Secret", name), source))?;
        let Some(found) = found else { return Ok(None) };
        if labels::owner(&found.metadata).is_some_and(|other| other.installation == owner.installation) {
            self.see(ChildKind::Secret, &found);
        }
        Ok(known())
    }

    /// A value of a Secret of an owner, as it is at this moment.
    pub(crate) async fn secret_value(
        &self,
        owner: &OwnerKey,
        name: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, RuntimeError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &owner.namespace);
        let found = api.get_opt(name).await;
        let found = found.map_err(|source| api_error("read", owner, &ObjectId::new("Secret", name), source))?;
        Ok(found.and_then(|secret| secret.data?.remove(key)).map(|value| value.0))
    }

    fn api(&self, kind: ChildKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    /// Refuses an object of a kind that cannot be seen: nobody would notice what becomes of it.
    fn refuse_unseen(&self, kind: ChildKind, owner: &OwnerKey, id: &ObjectId) -> Result<(), RuntimeError> {
        let closed = self.children.get(&kind).and_then(|cache| cache.closed(&owner.namespace));
        match closed {
            None => Ok(()),
            Some(Closed::Unknown) => Err(unknown_kind(kind, owner, id)),
            Some(Closed::Forbidden) => Err(forbidden_kind(kind, owner, id)),
        }
    }

    /// Applies an object. `data` are the values of a Secret, which its lowered body does not hold.
    pub(crate) async fn apply(
        &self,
        owner: &OwnerKey,
        object: &Object,
        data: Option<&Value>,
    ) -> Result<(), RuntimeError> {
        let kind = kind_of(&object.id)?;
        self.refuse_unseen(kind, owner, &object.id)?;
        let api = self.api(kind, &owner.namespace);
        let failed = |source| api_error("apply", owner, &object.id, source);
        let predecessor =
            match self.child(kind, &owner.namespace, &object.id.name).filter(|known| known.owner == *owner) {
                Some(known) => {
                    let operations = expulsion(&known.intruders, &object.body);
                    if !operations.is_empty() {
                        self.take_out(&api, &object.id, operations).await.map_err(failed)?;
                    }
                    None
                }
                // Not among the owner's: it may be someone else's, or a namesake's that was deleted and is not collected yet.
                None => match api.get_metadata_opt(&object.id.name).await.map_err(failed)? {
                    None => None,
                    Some(found) => {
                        let references = found.metadata.owner_references.iter().flatten();
                        let ours = references.into_iter().any(|reference| reference.uid == owner.uid);
                        match labels::owner(&found.metadata) {
                            _ if ours => None,
                            Some(other) if other == *owner => None,
                            Some(other) => Some(other),
                            None => return Err(taken(owner, &object.id)),
                        }
                    }
                },
            };
        if let Some(predecessor) = predecessor {
            if !predecessor.is_namesake_of(owner) {
                return Err(taken(owner, &object.id));
            }
            if !self.is_there(owner).await.map_err(failed)? {
                return Err(outdated(owner));
            }
            // About to be collected; a Deployment's selector could not be made ours.
            self.remove(&predecessor, &object.id).await?;
        }
        let mut body = object.body.clone();
        body["apiVersion"] = Value::from(kind.resource().api_version);
        body["kind"] = Value::from(kind.name());
        body["metadata"]["name"] = Value::from(object.id.name.clone());
        body["metadata"]["namespace"] = Value::from(owner.namespace.clone());
        body["metadata"]["annotations"][labels::DIGEST] = Value::from(object.digest.clone());
        if let Some(data) = data {
            body["data"] = data.clone();
        }
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply(FIELD_MANAGER)
        };
        let applied = api.patch(&object.id.name, &params.force(), &Patch::Apply(&body)).await.map_err(failed)?;
        self.see(kind, &applied);
        Ok(())
    }

    /// Whether an owner exists at this moment, and not only in a cache that is behind.
    async fn is_there(&self, owner: &OwnerKey) -> Result<bool, kube::Error> {
        let kind = match owner.kind {
            OwnerKind::MCPServer => ApiResource::erase::<MCPServer>(&()),
            OwnerKind::MCPHub => ApiResource::erase::<MCPHub>(&()),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &owner.namespace, &kind);
        // By a list, because roles allow that for the watch already.
        let named = ListParams::default().fields(&format!("metadata.name={}", owner.name));
        let found = api.list_metadata(&named).await?.items;
        Ok(found.iter().any(|object| object.metadata.uid.as_ref() == Some(&owner.uid)))
    }

    /// Takes out what others put into an object, if it is still the object that was seen.
    async fn take_out(
        &self,
        api: &Api<DynamicObject>,
        id: &ObjectId,
        operations: Vec<Value>,
    ) -> Result<(), kube::Error> {
        let patch = serde_json::from_value(Value::from(operations)).map_err(kube::Error::SerdeError)?;
        // Not the manager of applies: what this sets would stay ours when an apply no longer wants it.
        let params = PatchParams { field_manager: Some(MENDING_MANAGER.to_owned()), ..PatchParams::default() };
        match api.patch(&id.name, &params, &Patch::Json::<()>(patch)).await {
            Ok(_) => Ok(()),
            // Someone was here in between; the next look finds what is left.
            Err(kube::Error::Api(status)) if status.code == 422 || status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Shows what a write answered, before the watch does.
    fn see(&self, kind: ChildKind, object: &DynamicObject) {
        if let Some(cache) = self.children.get(&kind) {
            cache.see(object, Child::of(kind, object));
        }
    }

    pub(crate) async fn remove(&self, owner: &OwnerKey, id: &ObjectId) -> Result<(), RuntimeError> {
        let kind = kind_of(id)?;
        let api = self.api(kind, &owner.namespace);
        let failed = |source| api_error("delete", owner, id, source);
        let Some(found) = api.get_metadata_opt(&id.name).await.map_err(failed)? else { return Ok(()) };
        if labels::owner(&found.metadata).as_ref() != Some(owner) {
            return Ok(());
        }
        let uid = found.meta().uid.clone().unwrap_or_default();
        let exactly = Preconditions { uid: Some(uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::background() };
        match api.delete(&id.name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(failed(error)),
        }
        match self.children.get(&kind) {
            // No watch will tell of its end.
            Some(cache) if kind == ChildKind::Secret => drop(cache.lost(&owner.namespace, &id.name, &uid)),
            Some(cache) => cache.deleted(&owner.namespace, &id.name),
            None => {}
        }
        Ok(())
    }

    /// The best of what the bridges of a server say, with the address under which gateways reach them.
    fn bridge(&self, owner: &OwnerKey, pods: &[PodFacts]) -> Option<BridgeStatus> {
        let rank = |status: &BridgeStatus| match status.phase {
            Phase::Ready => 3,
            Phase::Asleep => 2,
            Phase::Starting | Phase::WaitingForSecrets { .. } => 1,
            Phase::Backoff { .. } | Phase::CrashLoop { .. } | Phase::Exited => 0,
        };
        let living = pods.iter().filter(|pod| !pod.ending);
        let answers = living.filter_map(|pod| Some((pod.ready, pod.port?, self.bridges.status(owner, &pod.uid)?)));
        // The Service names a pod when the kubelet says that it is ready, a moment after its bridge said so: until then
        // nobody can call it.
        let answers = answers.filter(|(ready, _, status)| *ready || rank(status) < 2);
        let (_, port, mut best) = answers.max_by_key(|(ready, _, status)| (*ready, rank(status)))?;
        let service = lower::server_name(owner);
        best.endpoint = format!("http://{service}.{}.svc:{port}/mcp", owner.namespace);
        Some(best)
    }

    /// Whether all pods of a server sleep by what their bridges said last, and none is about to come or go.
    fn sleep(&self, owner: &OwnerKey, children: &[Child], pods: &[PodFacts]) -> bool {
        let asleep = |pod: &PodFacts| {
            let said = self.bridges.status(owner, &pod.uid).filter(|_| !pod.ending);
            said.is_some_and(|said| said.phase == Phase::Asleep && said.activity.calls_in_flight == 0)
        };
        !pods.is_empty() && pods.iter().all(asleep) && children.iter().any(|child| child.settled)
    }
}

#[async_trait]
impl Runtime for KubeRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported> {
        lower::lower(workload, &self.settings)
    }

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError> {
        self.ready().await;
        let owners: BTreeSet<OwnerKey> = self.children.values().flat_map(Cache::owners).collect();
        Ok(owners.into_iter().collect())
    }

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError> {
        self.ready().await;
        self.bridges.asked(owner).await;
        let (children, pods) = (self.children_of(owner), self.pods_of(owner));
        let refused = || {
            let mut deployments = children.iter().filter(|child| child.kind == ChildKind::Deployment);
            deployments.find_map(|child| child.failure.clone())
        };
        let failure = pods.iter().find_map(|pod| pod.failure.clone());
        Ok(Observed {
            bridge: self.bridge(owner, &pods),
            sleeps: self.sleep(owner, &children, &pods),
            prepare: self.images.observe(owner),
            failure: failure.map(|failure| self.unscheduled.weigh(owner, failure)).or_else(refused),
            missing_secrets: Vec::new(),
            objects: children.iter().map(Child::observed).collect(),
        })
    }

    async fn sleeps_now(&self, owner: &OwnerKey) -> bool {
        self.ready().await;
        self.bridges.ask_anew(owner).await && self.sleep(owner, &self.children_of(owner), &self.pods_of(owner))
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError> {
        match step {
            Step::Prepare(object) => return Ok(self.images.prepare(owner, object).await),
            Step::Apply(object) | Step::Replace(object) => {
                self.apply(owner, object, None).await?;
                if object.stage == Stage::Workload {
                    self.images.forget(owner);
                }
            }
            Step::Remove(id) => {
                self.images.forget(owner);
                self.remove(owner, id).await?;
            }
        }
        Ok(Progress::Done)
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        hints(&self.events)
    }

    fn console(&self) -> &dyn Console {
        &self.console
    }
}

/// Tells of all hubs whenever a kind can be seen from now on, or no longer.
async fn tell_hubs(
    kind: ChildKind,
    children: BTreeMap<ChildKind, Cache<Child>>,
    events: broadcast::Sender<RuntimeEvent>,
) {
    let Some(mut openings) = children.get(&kind).map(Cache::openings) else { return };
    while openings.changed().await.is_ok() {
        let owners: BTreeSet<OwnerKey> = children.values().flat_map(Cache::owners).collect();
        for hub in owners.into_iter().filter(|owner| owner.kind == OwnerKind::MCPHub) {
            events.send(RuntimeEvent::Changed(hub)).ok();
        }
    }
}

fn kind_of(id: &ObjectId) -> Result<ChildKind, RuntimeError> {
    ChildKind::parse(&id.kind).ok_or_else(|| RuntimeError {
        reason: "UnknownKind",
        message: format!("{id} is of no kind that a cluster runtime makes"),
        hint: None,
        retry: Retry::OnChange,
        source: None,
    })
}

fn unknown_kind(kind: ChildKind, owner: &OwnerKey, id: &ObjectId) -> RuntimeError {
    RuntimeError {
        reason: "KindUnknown",
        message: format!("{} is not known to this cluster, so that {owner} has none", id.kind),
        hint: kind.installed_by().map(str::to_owned),
        // An event tells when it is.
        retry: Retry::OnChange,
        source: None,
    }
}

fn forbidden_kind(kind: ChildKind, owner: &OwnerKey, id: &ObjectId) -> RuntimeError {
    RuntimeError {
        reason: "Forbidden",
        message: format!("the operator may not list {}, so that {owner} gets no {}", kind.plural(), id.kind),
        hint: Some("its role is to allow to get, list, watch, create, patch and delete them".to_owned()),
        // An event tells when it may.
        retry: Retry::OnChange,
        source: None,
    }
}

fn taken(owner: &OwnerKey, id: &ObjectId) -> RuntimeError {
    RuntimeError {
        reason: "NameTaken",
        message: format!("{id} in namespace {} exists and is not {owner}'s", owner.namespace),
        hint: Some("remove or rename it, or give it another name".to_owned()),
        // Its end tells nobody here.
        retry: Retry::Backoff,
        source: None,
    }
}

fn outdated(owner: &OwnerKey) -> RuntimeError {
    RuntimeError {
        reason: "Outdated",
        message: format!("{owner} was deleted, and made anew, in the meantime"),
        hint: None,
        retry: Retry::Backoff,
        source: None,
    }
}

/// What the API server answered, as a failure of a pass.
pub(crate) fn api_error(action: &str, owner: &OwnerKey, id: &ObjectId, error: kube::Error) -> RuntimeError {
    let (reason, retry, hint) = match &error {
        kube::Error::Api(status) => match status.code {
            403 => (
                "Forbidden",
                Retry::Backoff,
                Some("the operator's role lacks this right, or a quota or policy refuses it".to_owned()),
            ),
            // Only another spec is another object.
            400 | 422 => ("Refused", Retry::OnChange, None),
            409 => ("Conflict", Retry::Backoff, None),
            429 => ("Throttled", Retry::Backoff, None),
            _ => ("ApiFailed", Retry::Backoff, None),
        },
        _ => ("ApiUnreachable", Retry::Backoff, None),
    };
    RuntimeError {
        reason,
        message: format!("could not {action} {id} of {owner}"),
        hint,
        retry,
        source: Some(Box::new(error)),
    }
}
