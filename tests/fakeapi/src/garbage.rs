//! The garbage collector and the end of namespaces.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::delete::{FOREGROUND, ORPHAN};
use crate::kind::Kind;
use crate::state::State;
use crate::store::Key;
use crate::write::{finalizers, is_deleting, is_deleting_gracefully};

/// A chain of owners is never this long; a finalizer that nobody takes away must not keep the loop going.
const MAX_ROUNDS: usize = 100;

/// How an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    There,
    /// Waits for its dependents to go.
    Waiting,
    Gone,
}

impl State {
    pub(crate) fn collect_garbage(&mut self) -> usize {
        let start = self.store.revision();
        for _ in 0..MAX_ROUNDS {
            let before = self.store.revision();
            self.empty_namespaces();
            self.delete_ownerless();
            self.finish_owners();
            if self.store.revision() == before {
                break;
            }
        }
        usize::try_from(self.store.revision() - start).unwrap_or(usize::MAX)
    }

    fn objects(&self) -> Vec<(Key, Arc<Value>)> {
        self.store.all().map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    fn kind_of(&self, object: &Value) -> Option<Arc<Kind>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.registry.named(&text(&object["apiVersion"]), &text(&object["kind"]))
    }

    /// How the owner that a reference names stands; None if the server does not know its kind.
    fn owner(&self, reference: &Value, namespace: &str) -> Option<Owner> {
        let kind = self.kind_of(reference)?;
        let key = crate::fake::key(&kind, namespace, reference["name"].as_str().unwrap_or_default());
        Some(match self.store.get(&key) {
            Some(owner) if owner["metadata"]["uid"] != reference["uid"] => Owner::Gone,
            Some(owner) if is_deleting(owner) && finalizers(owner).iter().any(|one| one == FOREGROUND) => {
                Owner::Waiting
            }
            Some(_) => Owner::There,
            None => Owner::Gone,
        })
    }

    fn delete_ownerless(&mut self) {
        for (key, object) in self.objects() {
            let references = owner_references(&object);
            if references.is_empty() || is_deleting(&object) {
                continue;
            }
            let Some(owners) = references
                .iter()
                .map(|reference| self.owner(reference, &key.namespace))
                .collect::<Option<Vec<Owner>>>()
            else {
                continue;
            };
            let Some(kind) = self.kind_of(&object) else { continue };
            if !owners.contains(&Owner::There) {
                self.delete_in_background(&kind, &key, None);
            } else if owners.iter().any(|owner| *owner != Owner::There) {
                let kept: Vec<&Value> = references
                    .iter()
                    .zip(&owners)
                    .filter(|(_, owner)| **owner == Owner::There)
                    .map(|(reference, _)| reference)
                    .collect();
                let mut object = (*object).clone();
                object["metadata"]["ownerReferences"] = json!(kept);
                self.store.put(key, object);
            }
        }
    }

    /// Takes away the finalizers that wait for the collector.
    fn finish_owners(&mut self) {
        for (key, object) in self.objects() {
            let list = finalizers(&object);
            if !is_deleting(&object) {
                continue;
            }
            let uid = &object["metadata"]["uid"];
            let dependents: Vec<(Key, Arc<Value>)> = self
                .objects()
                .into_iter()
                .filter(|(_, other)| owner_references(other).iter().any(|reference| reference["uid"] == *uid))
                .collect();
            if list.iter().any(|one| one == ORPHAN) {
                for (key, dependent) in dependents {
                    let mut dependent = (*dependent).clone();
                    let kept: Vec<Value> =
                        owner_references(&dependent).into_iter().filter(|reference| reference["uid"] != *uid).collect();
                    set_list(&mut dependent, "ownerReferences", &kept);
                    self.store.put(key, dependent);
                }
                self.take_finalizer(&key, ORPHAN);
            } else if list.iter().any(|one| one == FOREGROUND) {
                let blocked = dependents.iter().any(|(_, dependent)| {
                    owner_references(dependent)
                        .iter()
                        .any(|reference| reference["uid"] == *uid && reference["blockOwnerDeletion"] == true)
                });
                if !blocked {
                    self.take_finalizer(&key, FOREGROUND);
                }
            }
        }
    }

    fn take_finalizer(&mut self, key: &Key, finalizer: &str) {
        let Some(object) = self.store.get(key) else { return };
        let mut object = (**object).clone();
        let kept: Vec<Value> =
            finalizers(&object).into_iter().filter(|one| one != finalizer).map(Value::from).collect();
        if kept.is_empty() && !is_deleting_gracefully(&object) {
            self.store.delete(key);
        } else {
            set_list(&mut object, "finalizers", &kept);
            self.store.put(key.clone(), object);
        }
    }

    /// Deletes what is in namespaces that end, and those that are empty.
    fn empty_namespaces(&mut self) {
        let ending: BTreeSet<String> = self
            .store
            .list("namespaces", None)
            .filter(|(_, namespace)| is_deleting(namespace))
            .map(|(key, _)| key.name.clone())
            .collect();
        for name in ending {
            let content: Vec<(Key, Arc<Value>)> =
                self.objects().into_iter().filter(|(key, _)| key.namespace == name).collect();
            for (key, object) in &content {
                if let (Some(kind), false) = (self.kind_of(object), is_deleting(object)) {
                    self.delete_in_background(&kind, key, None);
                }
            }
            let place = Key { resource: "namespaces".to_owned(), namespace: String::new(), name };
            let user_finalizers = self.store.get(&place).is_some_and(|namespace| !finalizers(namespace).is_empty());
            if content.is_empty() && !user_finalizers {
                self.store.delete(&place);
            }
        }
    }
}

fn owner_references(object: &Value) -> Vec<Value> {
    object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default()
}

fn set_list(object: &mut Value, field: &str, items: &[Value]) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        if items.is_empty() {
            metadata.remove(field);
        } else {
            metadata.insert(field.to_owned(), Value::from(items.to_vec()));
        }
    }
}
