//! Who set which field of an object, as server-side apply keeps it in `metadata.managedFields` (`FieldsV1`).

use kube::core::DynamicObject;
use serde_json::{Map, Value};

/// What `manager` applied, cut out of the object: the fields it owns with the values they have now. Lists whose items are
/// told apart by keys hold its own items only, so that neither the server's defaults nor other people's additions show.
pub(crate) fn applied(object: &DynamicObject, whole: &Value, manager: &str) -> Value {
    let sets = object.metadata.managed_fields.iter().flatten();
    let mine = sets.filter(|set| {
        set.manager.as_deref() == Some(manager)
            && set.operation.as_deref() == Some("Apply")
            && set.subresource.as_deref().unwrap_or_default().is_empty()
    });
    let mut cut = Value::Null;
    for set in mine {
        if let Some(fields) = &set.fields_v1 {
            merge(&mut cut, owned(whole, &fields.0));
        }
    }
    cut
}

/// The part of `value` that the field set names.
fn owned(value: &Value, fields: &Value) -> Value {
    let Some(fields) = fields.as_object().filter(|fields| fields.keys().any(|key| key != ".")) else {
        return value.clone();
    };
    match value {
        Value::Object(map) => {
            let mut cut = Map::new();
            for (key, below) in fields {
                if let Some((name, value)) = key.strip_prefix("f:").and_then(|name| Some((name, map.get(name)?))) {
                    cut.insert(name.to_owned(), owned(value, below));
                }
            }
            Value::Object(cut)
        }
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter_map(|item| {
                    let (_, below) = fields.iter().find(|(key, _)| names(key, item))?;
                    Some(owned(item, below))
                })
                .collect(),
        ),
        other => other.clone(),
    }
}

/// Whether a key of a field set (`k:{"name":"x"}`, `v:"x"`) names this item of a list.
fn names(key: &str, item: &Value) -> bool {
    if let Some(keys) = key.strip_prefix("k:").and_then(|keys| serde_json::from_str::<Map<String, Value>>(keys).ok()) {
        return keys.iter().all(|(name, value)| item.get(name) == Some(value));
    }
    key.strip_prefix("v:").is_some_and(|value| serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item))
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into @ Value::Null, more) => *into = more,
        // Two sets of one manager over the same list or value show the same thing.
        (_, _) => {}
    }
}

/// A value that someone else set where only we may.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Intruder(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    /// Place in the list as it is, and the key of the field set that names the item.
    Item(usize, String),
}

impl Intruder {
    /// RFC 6901 pointer into the object as it was seen.
    pub(crate) fn pointer(&self) -> String {
        let step = |step: &Step| match step {
            Step::Field(name) => format!("/{}", name.replace('~', "~0").replace('/', "~1")),
            Step::Item(index, _) => format!("/{index}"),
        };
        self.0.iter().map(step).collect()
    }

    /// Whether `body` sets this place: then it is to be taken back, not out.
    pub(crate) fn is_in(&self, body: &Value) -> bool {
        let mut at = Some(body);
        for step in &self.0 {
            at = match step {
                Step::Field(name) => at.and_then(|at| at.get(name)),
                Step::Item(_, key) => {
                    at.and_then(Value::as_array).and_then(|items| items.iter().find(|item| names(key, item)))
                }
            };
        }
        at.is_some()
    }
}

/// What others put where only `manager` may: anything below `spec` but the pod template's metadata, which
/// `kubectl rollout restart` writes, and the data of a Secret. Last places first, so that taking one out moves no other.
pub(crate) fn intruders(object: &DynamicObject, whole: &Value, manager: &str) -> Vec<Intruder> {
    let mine = applied(object, whole, manager);
    let mut found = Vec::new();
    for set in object.metadata.managed_fields.iter().flatten() {
        let other = set.manager.as_deref() != Some(manager);
        // A status is the controllers' own.
        let main = set.subresource.as_deref().unwrap_or_default().is_empty();
        if let (true, true, Some(fields)) = (other, main, &set.fields_v1) {
            for guarded in ["spec", "data"] {
                if let Some(below) = fields.0.get(format!("f:{guarded}")) {
                    let place = vec![Step::Field(guarded.to_owned())];
                    search(whole.get(guarded), mine.get(guarded), below, place, &mut found);
                }
            }
        }
    }
    found.sort();
    found.dedup();
    found.reverse();
    found
}

const LEFT_TO_OTHERS: &str = "/spec/template/metadata";

fn search(value: Option<&Value>, mine: Option<&Value>, fields: &Value, place: Vec<Step>, found: &mut Vec<Intruder>) {
    let Some(value) = value else { return };
    let intruder = Intruder(place);
    if intruder.pointer() == LEFT_TO_OTHERS {
        return;
    }
    let Some(mine) = mine else {
        found.push(intruder);
        return;
    };
    for (key, below) in fields.as_object().into_iter().flatten() {
        let step = |step| intruder.0.iter().cloned().chain([step]).collect();
        if let Some(name) = key.strip_prefix("f:") {
            search(value.get(name), mine.get(name), below, step(Step::Field(name.to_owned())), found);
        } else if let Some(items) = value.as_array()
            && let Some(index) = items.iter().position(|item| names(key, item))
        {
            let own = mine.as_array().and_then(|mine| mine.iter().find(|item| names(key, item)));
            search(items.get(index), own, below, step(Step::Item(index, key.clone())), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A Deployment that we applied; the server added defaults, a person an image, a container and a variable.
    fn deployment() -> (DynamicObject, Value) {
        let whole = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "mcp-a", "labels": {"ours": "1", "theirs": "2"},
                "managedFields": [
                    {"manager": "mcp-hub", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": {
                        "f:metadata": {"f:labels": {"f:ours": {}}},
                        "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                            "k:{\"name\":\"server\"}": {".": {}, "f:name": {}, "f:args": {}, "f:env": {
                                "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}},
                            }},
                        }}}},
                    }},
                    {"manager": "kubectl-edit", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": {
                        "f:metadata": {"f:labels": {"f:theirs": {}}},
                        "f:spec": {"f:template": {
                            "f:metadata": {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}},
                            "f:spec": {"f:hostNetwork": {}, "f:containers": {
                                "k:{\"name\":\"server\"}": {"f:image": {}, "f:env": {
                                    "k:{\"name\":\"B\"}": {".": {}, "f:name": {}, "f:value": {}},
                                }},
                                "k:{\"name\":\"extra\"}": {".": {}, "f:name": {}, "f:image": {}},
                            }},
                        }},
                    }},
                    {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "apiVersion": "apps/v1",
                     "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:replicas": {}}}},
                ],
            },
            "spec": {"replicas": 1, "template": {
                "metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}},
                "spec": {"hostNetwork": true, "dnsPolicy": "ClusterFirst", "containers": [
                    {"name": "extra", "image": "evil"},
                    {"name": "server", "image": "other", "args": ["a", "b"], "imagePullPolicy": "Always",
                     "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                ]},
            }},
            "status": {"replicas": 1},
        });
        (serde_json::from_value(whole.clone()).unwrap(), whole)
    }

    #[test]
    fn what_we_applied_shows_without_defaults_and_without_others() {
        let (object, whole) = deployment();
        assert_eq!(
            applied(&object, &whole, "mcp-hub"),
            json!({"metadata": {"labels": {"ours": "1"}}, "spec": {"replicas": 1, "template": {"spec": {"containers": [
                {"name": "server", "args": ["a", "b"], "env": [{"name": "A", "value": "1"}]},
            ]}}}})
        );
        assert_eq!(applied(&object, &whole, "nobody"), Value::Null);
    }

    #[test]
    fn what_others_put_into_a_spec_is_found_last_place_first() {
        let (object, whole) = deployment();
        let found = intruders(&object, &whole, "mcp-hub");
        let pointers: Vec<String> = found.iter().map(Intruder::pointer).collect();
        let spec = "/spec/template/spec";
        assert_eq!(
            pointers,
            [
                format!("{spec}/hostNetwork"),
                format!("{spec}/containers/1/image"),
                format!("{spec}/containers/1/env/1"),
                format!("{spec}/containers/0"),
            ]
        );
        // What we want there ourselves is taken back by applying it; taking it out would leave no image at all.
        let wanted = json!({"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "ours"}]}}}});
        let kept: Vec<bool> = found.iter().map(|intruder| intruder.is_in(&wanted)).collect();
        assert_eq!(kept, [false, true, false, false]);
    }
}
