//! What a test holds in its hands.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use serde_json::Value;

use crate::failure::Failure;
use crate::fault::{Fault, When};
use crate::kind::Kind;
use crate::log::Entry;
use crate::request::{Representation, Request, Verb};
use crate::server::{FakeService, Shared};
use crate::state::{Cut, State};
use crate::store::Key;

/// The server. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct FakeApi {
    pub(crate) shared: Shared,
}

/// Why the server refused what a test itself wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal(Value);

impl Refusal {
    /// The `Status` object.
    pub fn status(&self) -> &Value {
        &self.0
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0["message"].as_str().unwrap_or_default())
    }
}

impl std::error::Error for Refusal {}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure.status())
    }
}

impl Default for FakeApi {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeApi {
    /// A server as just installed: the four namespaces of every cluster, all kinds of this crate, nothing else.
    pub fn new() -> Self {
        Self { shared: Shared::new() }
    }

    /// A client that names itself so. It is made within a tokio runtime, as every kube client.
    pub fn client(&self, user_agent: &str) -> Client {
        Client::new(self.service(user_agent), "default")
    }

    /// What a client is made of, for tests that put layers of their own around it.
    pub fn service(&self, user_agent: &str) -> FakeService {
        FakeService::new(self.shared.clone(), user_agent)
    }

    /// Installs a definition.
    pub fn define(&self, definition: &CustomResourceDefinition) {
        self.shared.lock().registry.add(definition);
    }

    /// Takes a kind away, as on a cluster where its definition is not installed.
    pub fn undefine(&self, group: &str, plural: &str) {
        self.shared.lock().registry.remove(group, plural);
    }

    /// Makes a namespace, if it is not there.
    pub fn namespace(&self, name: &str) {
        self.change(|state| state.seed_namespace(name));
    }

    // --- The objects, past the log and the faults ---

    /// An object as it is stored. The namespace is empty for kinds without.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.shared.lock();
        let kind = state.registry.by_name(kind)?;
        state.store.get(&key(&kind, namespace, name)).map(|object| (**object).clone())
    }

    /// All objects of a kind, of all namespaces, by namespace and name.
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let state = self.shared.lock();
        let Some(kind) = state.registry.by_name(kind) else { return Vec::new() };
        state.store.list(&kind.resource(), None).map(|(_, object)| (**object).clone()).collect()
    }

    /// Every object of the server, by `KIND/NAMESPACE/NAME`.
    pub fn snapshot(&self) -> BTreeMap<String, Value> {
        let state = self.shared.lock();
        state
            .store
            .all()
            .map(|(key, object)| {
                let kind = object["kind"].as_str().unwrap_or_default();
                (format!("{kind}/{}/{}", key.namespace, key.name), (**object).clone())
            })
            .collect()
    }

    /// Creates an object, as a person would.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn create(&self, object: &Value) -> Result<Value, Refusal> {
        self.change(|state| state.as_person(Verb::Create, object, "").map_err(Refusal::from))
    }

    /// Changes an object, as a person with an editor would, status included: a change of the status goes through its
    /// subresource.
    ///
    /// # Errors
    /// The server's refusal; that the object is not there, too.
    pub fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value, Refusal> {
        self.change(|state| {
            let kind = state.registry.by_name(kind).ok_or_else(Failure::no_such_path)?;
            let mut object = (*state.object(&kind, &key(&kind, namespace, name))?).clone();
            change(&mut object);
            let stored = state.as_person(Verb::Update, &object, "")?;
            if !kind.status || stored["status"] == object["status"] {
                return Ok(stored);
            }
            object["metadata"]["resourceVersion"] = Value::Null;
            if kind.custom {
                object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            }
            Ok(state.as_person(Verb::Update, &object, "status")?)
        })
    }

    /// Deletes an object in the background, as `kubectl delete` does; dependents go with the next
    /// [`FakeApi::collect_garbage`]. Returns whether it was there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.change(|state| {
            let Some(kind) = state.registry.by_name(kind) else { return false };
            let key = key(&kind, namespace, name);
            let there = state.store.get(&key).is_some();
            state.delete_in_background(&kind, &key, None);
            there
        })
    }

    // --- What the rest of a cluster does, when the test says so ---

    /// Lets the garbage collector and the namespace controller finish what there is to do. Returns how many objects they
    /// changed or deleted.
    pub fn collect_garbage(&self) -> usize {
        self.change(State::collect_garbage)
    }

    // --- Time and connections ---

    /// Forgets all history: watches and lists of older versions get 410.
    pub fn compact(&self) {
        self.change(|state| state.store.compact());
    }

    /// Ends all open watches of a kind.
    pub fn cut_watches(&self, kind: &str, cut: Cut) {
        self.change(|state| {
            if let Some(kind) = state.registry.by_name(kind) {
                state.cuts.entry(kind.resource()).or_insert((0, cut)).0 += 1;
                state.cuts.entry(kind.resource()).and_modify(|(_, how)| *how = cut);
            }
        });
    }

    /// The server goes away, its watches with it, or comes back with all that it holds. Requests to a server that is away
    /// are not logged.
    pub fn set_down(&self, down: bool) {
        self.change(|state| state.down = down);
    }

    /// The server's cache of a kind stands still: its watches see nothing new, lists and gets at version 0 show the past.
    pub fn hold(&self, kind: &str) {
        self.change(|state| {
            if let Some(kind) = state.registry.by_name(kind) {
                let revision = state.store.revision();
                state.held.entry(kind.resource()).or_insert(revision);
            }
        });
    }

    /// The cache catches up.
    pub fn release(&self, kind: &str) {
        self.change(|state| {
            if let Some(kind) = state.registry.by_name(kind) {
                state.held.remove(&kind.resource());
            }
        });
    }

    /// From now on the requests that `when` covers fail so.
    pub fn inject(&self, when: When, fault: Fault) {
        self.shared.lock().faults.add(when, fault);
    }

    /// No more faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// How many scripted faults have not come to pass. A test that expects its fault asserts that there is none.
    pub fn pending_faults(&self) -> usize {
        self.shared.lock().faults.pending()
    }

    // --- What was asked ---

    /// All requests since the start or the last [`FakeApi::clear_log`], oldest first.
    pub fn log(&self) -> Vec<Entry> {
        self.shared.lock().log.entries()
    }

    /// Forgets the log; [`FakeApi::writes`] goes on counting.
    pub fn clear_log(&self) {
        self.shared.lock().log.clear();
    }

    /// Requests for a change since the server was made, refused and lost ones too. Changes that a test makes itself do
    /// not count.
    pub fn writes(&self) -> u64 {
        self.shared.lock().log.writes()
    }

    /// The newest resource version.
    pub fn revision(&self) -> u64 {
        self.shared.lock().store.revision()
    }

    /// Returns once a check of the server holds; looks again at every change.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn wait_until(&self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut changes = self.shared.changes();
        let check = async {
            loop {
                changes.borrow_and_update();
                if holds(self) {
                    return;
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, check).await.map_err(|_| format!("the state was not reached within {limit:?}"))
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.shared.lock();
        let result = change(&mut state);
        drop(state);
        self.shared.notify();
        result
    }
}

pub(crate) fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    let namespace = if kind.namespaced { namespace } else { "" };
    Key { resource: kind.resource(), namespace: namespace.to_owned(), name: name.to_owned() }
}

impl State {
    fn as_person(&mut self, verb: Verb, object: &Value, subresource: &str) -> Result<Value, Failure> {
        self.as_client("test", verb, object, subresource)
    }

    /// A request of somebody inside: not logged, and no fault hits it.
    pub(crate) fn as_client(
        &mut self,
        client: &str,
        verb: Verb,
        object: &Value,
        subresource: &str,
    ) -> Result<Value, Failure> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = self
            .registry
            .named(&text(&object["apiVersion"]), &text(&object["kind"]))
            .ok_or_else(Failure::no_such_path)?;
        let request = inside(&kind, client, verb, object, subresource);
        self.answer(&request).map(|(_, object)| object)
    }
}

fn inside(kind: &Arc<Kind>, client: &str, verb: Verb, object: &Value, subresource: &str) -> Request {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("default").to_owned();
    Request {
        verb,
        kind: kind.clone(),
        namespace: kind.namespaced.then_some(namespace),
        name: (verb != Verb::Create).then(|| metadata["name"].as_str().unwrap_or_default().to_owned()),
        subresource: subresource.to_owned(),
        query: BTreeMap::new(),
        content_type: "application/json".to_owned(),
        representation: Representation::Full,
        user_agent: client.to_owned(),
        body: Bytes::from(object.to_string()),
    }
}
