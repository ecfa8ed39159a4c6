//! All that the server holds, and the way of one request through it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fault::Faults;
use crate::kind::{Kind, Registry};
use crate::log::Log;
use crate::request::{Representation, Request, Verb};
use crate::store::{Key, Store};

/// How a watch ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The answer ends, as when its time is up.
    Closed,
    /// The connection breaks.
    Broken,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) log: Log,
    /// Resources whose cache stands still, and where.
    pub(crate) held: BTreeMap<String, u64>,
    /// How many times the watches of a resource were cut, and how they were the last time.
    pub(crate) cuts: BTreeMap<String, (u64, Cut)>,
    /// Nobody reaches the server.
    pub(crate) down: bool,
    /// For names, identities and addresses that the server makes.
    counter: u64,
    /// The server's clock.
    pub(crate) now: Timestamp,
}

/// The answer to a write.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) code: u16,
    pub(crate) object: Value,
}

impl State {
    pub(crate) fn new(now: Timestamp) -> Self {
        let mut state = Self {
            registry: Registry::default(),
            store: Store::default(),
            faults: Faults::default(),
            log: Log::default(),
            held: BTreeMap::new(),
            cuts: BTreeMap::new(),
            down: false,
            counter: 0,
            now,
        };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            state.seed_namespace(name);
        }
        state
    }

    /// A namespace that is just there.
    pub(crate) fn seed_namespace(&mut self, name: &str) {
        let key = Key { resource: "namespaces".to_owned(), namespace: String::new(), name: name.to_owned() };
        if self.store.get(&key).is_none() {
            let mut namespace = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "uid": self.next_uid(), "creationTimestamp": self.time()},
            });
            if let Some(kind) = self.registry.find("", "v1", "namespaces") {
                crate::defaults::apply(&kind, &mut namespace);
            }
            self.store.put(key, namespace);
        }
    }

    /// The time as objects carry it, in whole seconds.
    pub(crate) fn time(&self) -> String {
        self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(crate) fn next_uid(&mut self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.next())
    }

    /// Five characters that no other name of this server ends in.
    pub(crate) fn next_suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut number = self.next();
        let mut suffix = String::new();
        for _ in 0..5 {
            let index = usize::try_from(number % LETTERS.len() as u64).unwrap_or_default();
            suffix.push(char::from(LETTERS[index]));
            number /= LETTERS.len() as u64;
        }
        suffix
    }

    /// An address out of the range of services.
    pub(crate) fn next_address(&mut self) -> String {
        let number = self.next();
        format!("10.96.{}.{}", number / 250 % 250, number % 250 + 1)
    }

    /// Until where the cache of a resource has come.
    pub(crate) fn visible(&self, resource: &str) -> u64 {
        self.held.get(resource).copied().unwrap_or_else(|| self.store.revision())
    }

    /// Answers everything but a watch: the HTTP status and the body.
    pub(crate) fn answer(&mut self, request: &Request) -> Result<(u16, Value), Failure> {
        let shown = |written: Written| (written.code, represented(written.object, request.representation));
        match request.verb {
            Verb::Get => self.get(request).map(|object| (200, object)),
            Verb::List | Verb::Watch => self.list(request).map(|list| (200, list)),
            Verb::Delete => self.delete(request).map(|answer| (200, answer)),
            Verb::DeleteCollection => self.delete_collection(request).map(|answer| (200, answer)),
            Verb::Create => self.create(request).map(shown),
            Verb::Update => self.update(request).map(shown),
            Verb::Patch => self.patch(request).map(shown),
            Verb::Apply => self.apply(request).map(shown),
        }
    }

    /// The object of a key, if it is there.
    pub(crate) fn object(&self, kind: &Kind, key: &Key) -> Result<Arc<Value>, Failure> {
        self.store.get(key).cloned().ok_or_else(|| Failure::not_found(kind, &key.name))
    }
}

/// An object as the client asked for it.
pub(crate) fn represented(object: Value, representation: Representation) -> Value {
    match representation {
        Representation::Full => object,
        Representation::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
    }
}
