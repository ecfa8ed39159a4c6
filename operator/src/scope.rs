//! The namespaces that an operator looks after.

use kube::core::{ApiResource, DynamicObject, NamespaceResourceScope};
use kube::{Api, Client, Resource};

/// Objects in one answer to a list. A page is in memory as a whole, several times as large as its text, and every kind is
/// listed at the start: with the usual 500 that alone took more than all that is kept.
pub(crate) const PAGE: u32 = 50;

/// All namespaces, or these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope(Vec<String>);

impl Scope {
    /// An empty list means all.
    pub fn new(namespaces: Vec<String>) -> Self {
        Self(namespaces)
    }

    /// One entry for each watch: a namespace, or `None` for all of them.
    pub(crate) fn namespaces(&self) -> Vec<Option<String>> {
        if self.0.is_empty() { vec![None] } else { self.0.iter().cloned().map(Some).collect() }
    }

    pub(crate) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }

    pub(crate) fn objects(client: &Client, namespace: Option<&str>, kind: &ApiResource) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, kind),
            None => Api::all_with(client.clone(), kind),
        }
    }
}
