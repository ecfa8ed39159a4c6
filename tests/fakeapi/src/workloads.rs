//! The controllers and the node: Deployments become ReplicaSets become Pods, which do what the test says.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::FakeApi;
use crate::fake::key;
use crate::request::Verb;
use crate::state::State;
use crate::write::{is_deleting, is_deleting_gracefully};

/// How the pods of a Deployment fare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// All containers run and are ready.
    Ready,
    /// All containers run, and are not ready.
    Running,
    /// No node was looked for yet.
    Pending,
    /// No node fits.
    Unschedulable {
        /// Of the scheduler.
        message: String,
    },
    /// A container cannot start.
    Waiting {
        /// Such as `ImagePullBackOff`.
        reason: String,
        message: String,
    },
    /// Containers end and are started again.
    CrashLoop {
        restarts: i32,
        exit_code: i32,
        /// Of the last end, such as `OOMKilled` or `Error`.
        reason: String,
    },
}

/// Rounds of all controllers after which everything must have settled.
const MAX_ROUNDS: usize = 200;

impl FakeApi {
    /// Lets the controllers and the node get on until nothing changes any more. Pods of the Deployments in `states`, by
    /// `NAMESPACE/NAME`, fare as it says there; all others become ready. Returns how many writes were made.
    pub fn run_workloads(&self, states: &BTreeMap<String, PodState>) -> u64 {
        self.run_workloads_for(states, |_| true)
    }

    /// As [`FakeApi::run_workloads`], with `states` for those pods only that are `meant`: the old and the new ones of one
    /// Deployment fare differently.
    pub fn run_workloads_for(&self, states: &BTreeMap<String, PodState>, meant: impl Fn(&Value) -> bool) -> u64 {
        let start = self.revision();
        for _ in 0..MAX_ROUNDS {
            if self.step(states, &meant) == 0 {
                break;
            }
        }
        self.revision() - start
    }

    /// One round: each controller and the node act once on what they see. Returns how many writes were made.
    pub fn step_workloads(&self, states: &BTreeMap<String, PodState>) -> u64 {
        self.step(states, &|_| true)
    }

    fn step(&self, states: &BTreeMap<String, PodState>, meant: &impl Fn(&Value) -> bool) -> u64 {
        let none = BTreeMap::new();
        self.change(|state| {
            let start = state.store.revision();
            for deployment in state.of_kind("Deployment") {
                state.deployment(&deployment);
            }
            for set in state.of_kind("ReplicaSet") {
                state.replica_set(&set);
            }
            for pod in state.of_kind("Pod") {
                state.node(&pod, if meant(&pod) { states } else { &none });
            }
            state.store.revision() - start
        })
    }
}

const CONTROLLERS: &str = "kube-controller-manager";
const NODE: &str = "kubelet";
/// Label that tells the pods of one ReplicaSet from those of another.
const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

impl State {
    fn of_kind(&self, kind: &str) -> Vec<Value> {
        let Some(kind) = self.registry.by_name(kind) else { return Vec::new() };
        self.store.list(&kind.resource(), None).map(|(_, object)| (**object).clone()).collect()
    }

    /// The objects of a kind that this one controls, by name.
    fn owned(&self, kind: &str, owner: &Value) -> Vec<Value> {
        let Some(kind) = self.registry.by_name(kind) else { return Vec::new() };
        let metadata = &owner["metadata"];
        self.store
            .list(&kind.resource(), metadata["namespace"].as_str())
            .filter(|(_, object)| {
                let owners = object["metadata"]["ownerReferences"].as_array();
                owners.into_iter().flatten().any(|one| one["uid"] == metadata["uid"] && one["controller"] == true)
            })
            .map(|(_, object)| (**object).clone())
            .collect()
    }

    /// Writes of controllers are refused only when the object went away meanwhile; the next round sees that.
    fn write(&mut self, client: &str, verb: Verb, object: &Value, subresource: &str) {
        let _ = self.as_client(client, verb, object, subresource);
    }

    fn deployment(&mut self, deployment: &Value) {
        if is_deleting(deployment) {
            return;
        }
        let spec = &deployment["spec"];
        let sets = self.owned("ReplicaSet", deployment);
        let hash = hash_of(&spec["template"]);
        let current = sets.iter().find(|set| set["metadata"]["labels"][HASH] == hash.as_str()).cloned();
        let old: Vec<Value> =
            sets.iter().filter(|set| set["metadata"]["labels"][HASH] != hash.as_str()).cloned().collect();
        let wanted = spec["replicas"].as_i64().unwrap_or(1);
        let count = |set: &Value, field: &str| set["status"][field].as_i64().unwrap_or(0);
        let old_pods: i64 = old.iter().map(|set| count(set, "replicas")).sum();
        let recreate = spec["strategy"]["type"] == "Recreate";
        let surge = share(&spec["strategy"]["rollingUpdate"]["maxSurge"], wanted, true);
        let mut unavailable = share(&spec["strategy"]["rollingUpdate"]["maxUnavailable"], wanted, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }

        let revision = sets
            .iter()
            .filter_map(|set| set["metadata"]["annotations"][REVISION].as_str()?.parse::<i64>().ok())
            .max()
            .unwrap_or(0);
        let specified = |set: &Value| set["spec"]["replicas"].as_i64().unwrap_or(0);
        let old_specified: i64 = old.iter().map(specified).sum();
        let target = if recreate {
            if old_pods > 0 || old_specified > 0 { 0 } else { wanted }
        } else {
            let mine = current.as_ref().map_or(0, specified);
            let total = mine + old_specified;
            if mine >= wanted { wanted } else { (mine + (wanted + surge - total).max(0)).min(wanted) }
        };
        match &current {
            None if !recreate || old_pods == 0 => {
                let revision = revision + 1;
                let set = new_replica_set(deployment, &hash, target, revision);
                self.write(CONTROLLERS, Verb::Create, &set, "");
                let mut deployment = deployment.clone();
                deployment["metadata"]["annotations"][REVISION] = Value::from(revision.to_string());
                self.write(CONTROLLERS, Verb::Update, &deployment, "");
                return;
            }
            Some(set) if specified(set) != target => self.scale(set, target),
            _ => {}
        }
        // As many old pods go as may be missed, those first that are no use.
        let ready_now: i64 = sets.iter().map(|set| count(set, "availableReplicas")).sum();
        let mut spare = if recreate { i64::MAX } else { ready_now - (wanted - unavailable) };
        for set in &old {
            let specified = specified(set);
            let useless = specified - count(set, "availableReplicas").min(specified);
            let go = specified.min(useless + (specified - useless).min(spare.max(0)));
            if go > 0 {
                spare = spare.saturating_sub((go - useless).max(0));
                self.scale(set, specified - go);
            }
        }
        self.deployment_status(deployment, current.as_ref(), &sets, wanted, unavailable);
    }

    fn scale(&mut self, set: &Value, replicas: i64) {
        let mut set = set.clone();
        set["spec"]["replicas"] = Value::from(replicas);
        self.write(CONTROLLERS, Verb::Update, &set, "");
    }

    fn deployment_status(
        &mut self,
        deployment: &Value,
        current: Option<&Value>,
        sets: &[Value],
        wanted: i64,
        may_miss: i64,
    ) {
        let sum = |field: &str| sets.iter().map(|set| set["status"][field].as_i64().unwrap_or(0)).sum::<i64>();
        let updated = current.map_or(0, |set| set["status"]["replicas"].as_i64().unwrap_or(0));
        let updated_ready = current.map_or(0, |set| set["status"]["availableReplicas"].as_i64().unwrap_or(0));
        let (all, ready, available) = (sum("replicas"), sum("readyReplicas"), sum("availableReplicas"));
        let complete = updated == wanted && all == wanted && updated_ready == wanted;
        let name = current.map_or("", |set| set["metadata"]["name"].as_str().unwrap_or_default());

        let old = &deployment["status"];
        let mut status = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": all, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": available,
            "unavailableReplicas": (wanted.max(all) - available).max(0),
        });
        let enough = available >= wanted - may_miss;
        let available_condition = self.condition(
            old,
            "Available",
            enough,
            if enough {
                ("MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
            } else {
                ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.".to_owned())
            },
        );
        let moved = ["updatedReplicas", "readyReplicas", "availableReplicas", "replicas", "observedGeneration"]
            .iter()
            .any(|field| old[*field].as_i64().unwrap_or(0) != status[*field].as_i64().unwrap_or(0));
        let before = old["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == "Progressing");
        let since = before.and_then(|before| before["lastUpdateTime"].as_str()?.parse::<jiff::Timestamp>().ok());
        let limit = deployment["spec"]["progressDeadlineSeconds"].as_i64().unwrap_or(600);
        let late = since.is_some_and(|since| self.now.as_second() - since.as_second() > limit);
        let given_up = before.is_some_and(|before| before["reason"] == "ProgressDeadlineExceeded");
        let stuck = !moved && (late || given_up);
        let progressing = if complete {
            (true, "NewReplicaSetAvailable", format!("ReplicaSet {name:?} has successfully progressed."))
        } else if stuck {
            (false, "ProgressDeadlineExceeded", format!("ReplicaSet {name:?} has timed out progressing."))
        } else {
            (true, "ReplicaSetUpdated", format!("ReplicaSet {name:?} is progressing."))
        };
        let mut progressing = self.condition(old, "Progressing", progressing.0, (progressing.1, progressing.2));
        if moved && !complete {
            progressing["lastUpdateTime"] = Value::from(self.time());
        }
        status["conditions"] = json!([available_condition, progressing]);
        let mut deployment = deployment.clone();
        deployment["metadata"]["resourceVersion"] = Value::Null;
        deployment["status"] = status;
        self.write(CONTROLLERS, Verb::Update, &deployment, "status");
    }

    /// A condition that keeps its times as long as it says the same.
    fn condition(&self, status: &Value, name: &str, holds: bool, (reason, message): (&str, String)) -> Value {
        let truth = if holds { "True" } else { "False" };
        let old = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == name);
        let now = Value::from(self.time());
        let kept = |field: &str, same: bool| old.filter(|_| same).map_or_else(|| now.clone(), |old| old[field].clone());
        let same_status = old.is_some_and(|old| old["status"] == truth);
        let same = same_status && old.is_some_and(|old| old["reason"] == reason && old["message"] == message.as_str());
        json!({
            "type": name, "status": truth, "reason": reason, "message": message,
            "lastUpdateTime": kept("lastUpdateTime", same),
            "lastTransitionTime": kept("lastTransitionTime", same_status),
        })
    }

    fn replica_set(&mut self, set: &Value) {
        if is_deleting(set) {
            return;
        }
        let wanted = usize::try_from(set["spec"]["replicas"].as_i64().unwrap_or(1)).unwrap_or(0);
        let mut pods: Vec<Value> = self.owned("Pod", set).into_iter().filter(|pod| !is_deleting(pod)).collect();
        // The ones that are no use go first.
        pods.sort_by_key(|pod| !is_ready(pod));
        for pod in pods.drain(wanted.min(pods.len())..) {
            self.delete_pod(&pod, None);
        }
        for _ in pods.len()..wanted {
            let pod = new_pod(set);
            self.write(CONTROLLERS, Verb::Create, &pod, "");
        }
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        // The pods as they are after this round, their readiness as it was before.
        let count = self.owned("Pod", set).iter().filter(|pod| !is_deleting(pod)).count();
        let status = json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": count, "fullyLabeledReplicas": count,
            "readyReplicas": ready, "availableReplicas": ready,
        });
        let mut set = set.clone();
        set["metadata"]["resourceVersion"] = Value::Null;
        set["status"] = status;
        self.write(CONTROLLERS, Verb::Update, &set, "status");
    }

    fn delete_pod(&mut self, pod: &Value, grace: Option<i64>) {
        if let Some(kind) = self.registry.by_name("Pod") {
            let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
            self.delete_in_background(&kind, &key(&kind, &text("namespace"), &text("name")), grace);
        }
    }

    fn node(&mut self, pod: &Value, states: &BTreeMap<String, PodState>) {
        if is_deleting(pod) {
            if is_deleting_gracefully(pod) {
                self.delete_pod(pod, Some(0));
            }
            return;
        }
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let state = self
            .deployment_of(pod)
            .and_then(|name| states.get(&format!("{namespace}/{name}")))
            .cloned()
            .unwrap_or(PodState::Ready);
        let placed = !matches!(state, PodState::Pending | PodState::Unschedulable { .. });
        let mut pod = pod.clone();
        pod["metadata"]["resourceVersion"] = Value::Null;
        if placed && pod["spec"]["nodeName"].is_null() {
            pod["spec"]["nodeName"] = Value::from("node-1");
            self.write("kube-scheduler", Verb::Update, &pod, "");
        }
        let address = match pod["status"]["podIP"].as_str() {
            Some(address) => address.to_owned(),
            None if placed => self.next_address().replacen("10.96.", "10.244.", 1),
            None => String::new(),
        };
        pod["status"] = self.pod_status(&pod, &state, &address);
        self.write(NODE, Verb::Update, &pod, "status");
    }

    fn deployment_of(&self, pod: &Value) -> Option<String> {
        let controller = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().find(|owner| owner["controller"] == true)?["name"].as_str().map(str::to_owned)
        };
        let kind = self.registry.by_name("ReplicaSet")?;
        let namespace = pod["metadata"]["namespace"].as_str()?;
        controller(self.store.get(&key(&kind, namespace, &controller(pod)?))?)
    }

    fn pod_status(&self, pod: &Value, state: &PodState, address: &str) -> Value {
        let old = &pod["status"];
        let condition = |name: &str, holds: bool, reason: &str, message: &str| {
            let mut condition = self.condition(old, name, holds, (reason, message.to_owned()));
            if let Some(members) = condition.as_object_mut() {
                members.remove("lastUpdateTime");
                members.retain(|_, value| value != "");
            }
            condition
        };
        let qos = old["qosClass"].as_str().unwrap_or("Burstable");
        match state {
            PodState::Pending => return json!({"phase": "Pending", "qosClass": qos}),
            PodState::Unschedulable { message } => {
                let scheduled = condition("PodScheduled", false, "Unschedulable", message);
                return json!({"phase": "Pending", "qosClass": qos, "conditions": [scheduled]});
            }
            _ => {}
        }
        let ready = *state == PodState::Ready;
        let started = old["startTime"].as_str().map_or_else(|| self.time(), str::to_owned);
        let running = json!({"running": {"startedAt": started}});
        let (current, last, restarts) = match state {
            PodState::Waiting { reason, message } => {
                (json!({"waiting": {"reason": reason, "message": message}}), json!({}), 0)
            }
            PodState::CrashLoop { restarts, exit_code, reason } => (
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}),
                json!({"terminated": {"exitCode": exit_code, "reason": reason, "startedAt": started, "finishedAt": started}}),
                *restarts,
            ),
            _ => (running, json!({}), 0),
        };
        let waiting = current.get("waiting").is_some();
        let containers: Vec<Value> = pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| {
                json!({
                    "name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                    "restartCount": restarts, "started": !waiting, "state": current, "lastState": last,
                })
            })
            .collect();
        let not_ready = if ready { "" } else { "ContainersNotReady" };
        json!({
            "phase": if waiting && restarts == 0 { "Pending" } else { "Running" },
            "qosClass": qos,
            "hostIP": "10.250.0.1",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": started,
            "conditions": [
                condition("Initialized", true, "", ""),
                condition("Ready", ready, not_ready, ""),
                condition("ContainersReady", ready, not_ready, ""),
                condition("PodScheduled", true, "", ""),
            ],
            "containerStatuses": containers,
        })
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A count, or a share in percent of another.
fn share(value: &Value, of: i64, round_up: bool) -> i64 {
    match value.as_str().and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok()) {
        Some(percent) if round_up => (of * percent + 99) / 100,
        Some(percent) => of * percent / 100,
        None => value.as_i64().unwrap_or(0),
    }
}

/// Eight letters for a pod template.
fn hash_of(template: &Value) -> String {
    // FNV-1a over the sorted text, so that it is the same in every run.
    let hash = sorted(template)
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{:08x}", hash >> 32)
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<&String, Value> =
                members.iter().map(|(name, member)| (name, sorted(member))).collect();
            json!(members)
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn controller_reference(owner: &Value) -> Value {
    json!([{
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    }])
}

fn new_replica_set(deployment: &Value, hash: &str, replicas: i64, revision: i64) -> Value {
    let metadata = &deployment["metadata"];
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = Value::from(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = Value::from(hash);
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", metadata["name"].as_str().unwrap_or_default()),
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
            "annotations": {REVISION: revision.to_string()},
            "ownerReferences": controller_reference(deployment),
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    })
}

fn new_pod(set: &Value) -> Value {
    let mut metadata = set["spec"]["template"]["metadata"].clone();
    metadata["generateName"] = Value::from(format!("{}-", set["metadata"]["name"].as_str().unwrap_or_default()));
    metadata["namespace"] = set["metadata"]["namespace"].clone();
    metadata["ownerReferences"] = controller_reference(set);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": set["spec"]["template"]["spec"]})
}
