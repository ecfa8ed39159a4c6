//! Sets of fields, as `managedFields` holds them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Steps down an object, each in the notation of `FieldsV1`: `f:NAME`, `k:{KEYS}`, `v:VALUE`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    /// The path that ends here is in the set.
    member: bool,
    below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// The set that holds just these paths of named fields, such as `["metadata", "name"]`.
    pub(crate) fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| field(name)).collect::<Vec<_>>());
        }
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds a path. The empty path is no field and is left out.
    pub(crate) fn insert(&mut self, path: &[String]) {
        if let [first, rest @ ..] = path {
            let node = self.nodes.entry(first.clone()).or_default();
            if rest.is_empty() {
                node.member = true;
            } else {
                node.below.insert(rest);
            }
        }
    }

    /// Whether the path of this one step is in the set.
    pub(crate) fn has(&self, step: &str) -> bool {
        self.nodes.get(step).is_some_and(|node| node.member)
    }

    /// What lies below a step, if anything does.
    pub(crate) fn below(&self, step: &str) -> Option<&Self> {
        self.nodes.get(step).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut nodes = self.nodes.clone();
        for (step, theirs) in &other.nodes {
            let node = nodes.entry(step.clone()).or_default();
            node.member |= theirs.member;
            node.below = node.below.union(&theirs.below);
        }
        Self { nodes }
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        self.pairwise(|step, node| {
            other.nodes.get(step).map_or_else(Node::default, |theirs| Node {
                member: node.member && theirs.member,
                below: node.below.intersection(&theirs.below),
            })
        })
    }

    /// Without the paths of the other set, but with what lies below them.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        self.pairwise(|step, node| {
            other.nodes.get(step).map_or_else(
                || node.clone(),
                |theirs| Node { member: node.member && !theirs.member, below: node.below.difference(&theirs.below) },
            )
        })
    }

    /// Without the paths of the other set and all that lies below them.
    pub(crate) fn without(&self, other: &Self) -> Self {
        self.pairwise(|step, node| match other.nodes.get(step) {
            Some(theirs) if theirs.member => Node::default(),
            Some(theirs) => Node { member: node.member, below: node.below.without(&theirs.below) },
            None => node.clone(),
        })
    }

    fn pairwise(&self, combine: impl Fn(&str, &Node) -> Node) -> Self {
        let nodes = self
            .nodes
            .iter()
            .map(|(step, node)| (step.clone(), combine(step, node)))
            .filter(|(_, node)| !node.is_empty())
            .collect();
        Self { nodes }
    }

    /// With each named field that something lies below of. `named` tells the schema below a step, and whether the step
    /// is a named field.
    pub(crate) fn with_named<S: Copy>(&self, schema: S, named: &impl Fn(S, &str) -> (S, bool)) -> Self {
        let nodes = self
            .nodes
            .iter()
            .map(|(step, node)| {
                let (below, is_named) = named(schema, step);
                let member = node.member || (is_named && !node.below.is_empty());
                (step.clone(), Node { member, below: node.below.with_named(below, named) })
            })
            .collect();
        Self { nodes }
    }

    /// All paths, each as text such as `.spec.containers[name="a"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect_paths("", &mut found);
        found
    }

    fn collect_paths(&self, path: &str, found: &mut Vec<String>) {
        for (step, node) in &self.nodes {
            let at = match step.split_at(2) {
                ("f:", name) => format!("{path}.{name}"),
                ("k:", keys) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    format!("{path}[{}]", keys.join(","))
                }
                (_, value) => format!("{path}[={value}]"),
            };
            if node.member {
                found.push(at.clone());
            }
            node.below.collect_paths(&at, found);
        }
    }

    /// As `fieldsV1` shows it.
    pub(crate) fn to_json(&self) -> Value {
        let nodes = self.nodes.iter().map(|(step, node)| {
            let mut below = match node.below.to_json() {
                Value::Object(below) => below,
                _ => Map::new(),
            };
            if node.member && !below.is_empty() {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            (step.clone(), Value::Object(below))
        });
        Value::Object(nodes.collect())
    }

    pub(crate) fn from_json(json: &Value) -> Self {
        let nodes = json
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(step, _)| *step != ".")
            .map(|(step, below)| {
                let set = Self::from_json(below);
                let member = set.is_empty() || below.get(".").is_some();
                (step.clone(), Node { member, below: set })
            })
            .collect();
        Self { nodes }
    }
}

/// The step to a member of an object.
pub(crate) fn field(name: &str) -> String {
    format!("f:{name}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(json: Value) -> FieldSet {
        FieldSet::from_json(&json)
    }

    #[test]
    fn the_notation_is_read_and_written_alike() {
        let json = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {
            "k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}});
        assert_eq!(set(json.clone()).to_json(), json);
        assert_eq!(
            set(json).paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image"
            ]
        );
    }

    #[test]
    fn sets_combine_path_by_path() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}));
        let b = set(json!({"f:a": {".": {}, "f:b": {}}, "f:d": {}}));
        assert_eq!(a.union(&b), set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}})));
        assert_eq!(a.intersection(&b), set(json!({"f:a": {".": {}, "f:b": {}}})));
        assert_eq!(a.difference(&b), set(json!({"f:a": {"f:c": {}}})));
        assert_eq!(a.without(&FieldSet::of(&[&["a"]])), FieldSet::default());
    }
}
