//! The objects, their revisions, and what happened to them: what etcd is to the real server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `PLURAL.GROUP`
    pub(crate) resource: String,
    /// Empty for what has no namespace.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One write.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    /// None for a create.
    pub(crate) before: Option<Arc<Value>>,
    /// None for a delete.
    pub(crate) after: Option<Arc<Value>>,
}

/// Older changes are forgotten, as the real server does after five minutes.
const MAX_HISTORY: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    /// Without gaps: the last one is that of `revision`.
    history: VecDeque<Change>,
    revision: u64,
}

impl Store {
    /// The revision of the last write.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that a watch may start from and a list may show.
    pub(crate) fn oldest(&self) -> u64 {
        self.history.front().map_or(self.revision, |change| change.revision - 1)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Stores an object under its new revision, which is written into it.
    pub(crate) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        set_revision(&mut object, self.revision);
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), object.clone());
        self.record(Change { revision: self.revision, key, before, after: Some(object.clone()) });
        object
    }

    /// Takes an object away; what is returned carries the revision of its end.
    pub(crate) fn delete(&mut self, key: &Key) -> Option<Value> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut last = (*before).clone();
        set_revision(&mut last, self.revision);
        self.record(Change { revision: self.revision, key: key.clone(), before: Some(before), after: None });
        Some(last)
    }

    fn record(&mut self, change: Change) {
        self.history.push_back(change);
        if self.history.len() > MAX_HISTORY {
            self.history.pop_front();
        }
    }

    /// Forgets all that led to the present state.
    pub(crate) fn compact(&mut self) {
        self.history.clear();
    }

    /// The objects of a resource, of all namespaces or one, in the order of their keys.
    pub(crate) fn list<'a>(
        &'a self,
        resource: &'a str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let first = Key {
            resource: resource.to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        self.objects.range(first..).take_while(move |(key, _)| {
            key.resource == resource && namespace.is_none_or(|namespace| key.namespace == namespace)
        })
    }

    /// The objects of a resource as they were at a revision; None if it is forgotten.
    pub(crate) fn list_at(
        &self,
        resource: &str,
        namespace: Option<&str>,
        revision: u64,
    ) -> Option<BTreeMap<Key, Arc<Value>>> {
        if revision < self.oldest() {
            return None;
        }
        let mut objects: BTreeMap<Key, Arc<Value>> =
            self.list(resource, namespace).map(|(key, object)| (key.clone(), object.clone())).collect();
        for change in self.history.iter().rev().take_while(|change| change.revision > revision) {
            let key = &change.key;
            if key.resource != resource || namespace.is_some_and(|namespace| key.namespace != namespace) {
                continue;
            }
            match &change.before {
                Some(before) => objects.insert(key.clone(), before.clone()),
                None => objects.remove(key),
            };
        }
        Some(objects)
    }

    /// The changes after a revision, oldest first; None if some of them are forgotten.
    pub(crate) fn after(&self, revision: u64) -> Option<impl Iterator<Item = &Change>> {
        let oldest = self.oldest();
        let skip = usize::try_from(revision.checked_sub(oldest)?).ok()?;
        Some(self.history.iter().skip(skip))
    }

    /// All objects, for those who walk them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }
}

fn set_revision(object: &mut Value, revision: u64) {
    object["metadata"]["resourceVersion"] = Value::from(revision.to_string());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key { resource: "things".to_owned(), namespace: "a".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn every_past_state_can_be_seen_until_it_is_forgotten() {
        let mut store = Store::default();
        store.put(key("x"), json!({"metadata": {}, "n": 1}));
        store.put(key("y"), json!({"metadata": {}, "n": 1}));
        store.put(key("x"), json!({"metadata": {}, "n": 2}));
        store.delete(&key("x"));
        let at = |store: &Store, revision| {
            let objects = store.list_at("things", Some("a"), revision)?;
            Some(objects.iter().map(|(key, object)| format!("{}{}", key.name, object["n"])).collect::<Vec<_>>())
        };
        assert_eq!(at(&store, 0).unwrap(), Vec::<String>::new());
        assert_eq!(at(&store, 2).unwrap(), ["x1", "y1"]);
        assert_eq!(at(&store, 3).unwrap(), ["x2", "y1"]);
        assert_eq!(at(&store, 4).unwrap(), ["y1"]);
        assert_eq!(store.after(2).unwrap().map(|change| change.revision).collect::<Vec<_>>(), [3, 4]);

        store.compact();
        assert_eq!(at(&store, 3), None);
        assert_eq!(at(&store, 4).unwrap(), ["y1"]);
        assert!(store.after(3).is_none());
        assert_eq!(store.after(4).unwrap().count(), 0);
    }
}
