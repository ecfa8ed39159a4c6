//! Who set which field of an object, as server-side apply keeps it in `metadata.managedFields` (`FieldsV1`).

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

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
    fn pointer(&self) -> String {
        pointer(&self.0)
    }
}

fn pointer(place: &[Step]) -> String {
    let step = |step: &Step| match step {
        Step::Field(name) => format!("/{}", name.replace('~', "~0").replace('/', "~1")),
        Step::Item(index, _) => format!("/{index}"),
    };
    place.iter().map(step).collect()
}

/// What `body` has at this place.
fn at<'a>(body: &'a Value, place: &[Step]) -> Option<&'a Value> {
    place.iter().try_fold(body, |at, step| match step {
        Step::Field(name) => at.get(name),
        Step::Item(_, key) => at.as_array()?.iter().find(|item| names(key, item)),
    })
}

/// JSON-patch operations that take out what others put in. What `body` sets there itself is for the next apply to take
/// back. A list that `body` has is set as a whole, because what is left of one without its strangers may be refused: a
/// Service has a port at any time, and no two of one name.
pub(crate) fn expulsion(intruders: &[Intruder], body: &Value) -> Vec<Value> {
    let strangers = intruders.iter().filter(|intruder| at(body, &intruder.0).is_none());
    let mut operations: Vec<(String, Option<&Value>)> = Vec::new();
    for Intruder(place) in strangers {
        let list = place.split_last().filter(|(last, _)| matches!(last, Step::Item(..)));
        let operation = match list.and_then(|(_, list)| Some((pointer(list), at(body, list)?))) {
            Some((path, wanted)) => (path, Some(wanted)),
            None => (pointer(place), None),
        };
        if !operations.contains(&operation) {
            operations.push(operation);
        }
    }
    // What lies in another place that is dealt with goes with it.
    let places: Vec<String> = operations.iter().map(|(path, _)| format!("{path}/")).collect();
    operations.retain(|(path, _)| !places.iter().any(|place| path.starts_with(place)));
    let operation = |(path, value): (String, Option<&Value>)| match value {
        Some(value) => json!({"op": "replace", "path": path, "value": value}),
        None => json!({"op": "remove", "path": path}),
    };
    operations.into_iter().map(operation).collect()
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
    // Where nothing is ours, all that lies below is someone else's too: it counts if we want something in this place.
    let mine = mine.unwrap_or_else(|| {
        found.push(intruder.clone());
        &Value::Null
    });
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
    fn what_others_put_into_a_spec_is_taken_out_last_place_first() {
        let (object, whole) = deployment();
        let found = intruders(&object, &whole, "mcp-hub");
        let spec = "/spec/template/spec";
        // What we want there ourselves is taken back by applying it; taking it out would leave no image at all. A list of
        // ours is set whole, and what lies in it goes with that.
        let server = json!({"name": "server", "image": "ours", "env": [{"name": "A", "value": "1"}]});
        let wanted = json!({"spec": {"template": {"spec": {"containers": [server]}}}});
        assert_eq!(
            expulsion(&found, &wanted),
            [
                json!({"op": "remove", "path": format!("{spec}/hostNetwork")}),
                json!({"op": "replace", "path": format!("{spec}/containers"), "value": [server]}),
            ]
        );
        // Where we want nothing its strangers go one by one, the last first, each with all that is in it.
        let none = json!({"spec": {"template": {"spec": {}}}});
        let pointers: Vec<Value> =
            expulsion(&found, &none).into_iter().map(|operation| operation["path"].clone()).collect();
        assert_eq!(
            pointers,
            [
                format!("{spec}/hostNetwork"),
                format!("{spec}/containers/1/image"),
                format!("{spec}/containers/1/env/1"),
                format!("{spec}/containers/0"),
            ]
        );
    }

    #[test]
    fn an_item_that_was_made_another_is_a_stranger_and_the_list_is_set_whole() {
        let whole = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "mcp-a", "managedFields": [
                {"manager": "mcp-hub", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
                 "fieldsV1": {"f:spec": {"f:selector": {}}}},
                {"manager": "kubectl-edit", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                 "fieldsV1": {"f:spec": {"f:ports": {
                     "k:{\"port\":81,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}},
                 }}}},
            ]},
            "spec": {"selector": {"a": "b"}, "ports": [{"name": "mcp", "port": 81, "protocol": "TCP"}]},
        });
        let object: DynamicObject = serde_json::from_value(whole.clone()).unwrap();
        let ports = json!([{"name": "mcp", "port": 80, "protocol": "TCP"}]);
        let wanted = json!({"spec": {"selector": {"a": "b"}, "ports": ports}});
        let found = intruders(&object, &whole, "mcp-hub");
        assert_eq!(expulsion(&found, &wanted), [json!({"op": "replace", "path": "/spec/ports", "value": ports})]);
    }

    #[test]
    fn a_map_that_was_made_another_loses_what_it_got() {
        let whole = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "s", "managedFields": [
                {"manager": "kubectl-edit", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                 "fieldsV1": {"f:data": {".": {}, "f:token": {}}}},
            ]},
            "data": {"token": "ZXZpbA=="},
        });
        let object: DynamicObject = serde_json::from_value(whole.clone()).unwrap();
        let found = intruders(&object, &whole, "mcp-hub");
        let ours = json!({"data": {"key": "b3Vycw=="}});
        assert_eq!(expulsion(&found, &ours), [json!({"op": "remove", "path": "/data/token"})]);
        assert_eq!(expulsion(&found, &json!({})), [json!({"op": "remove", "path": "/data"})]);
    }
}
