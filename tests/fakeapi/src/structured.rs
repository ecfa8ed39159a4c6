//! Merging, comparing and cutting objects by their schema, as server-side apply does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::fields::{FieldSet, field};
use crate::schema::{ListMerge, Schema};

/// What tells two objects apart. No path is in more than one set.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

/// How a node is walked once its value is known.
enum Shape<'a> {
    Leaf,
    Object,
    List(&'a Schema, &'a ListMerge),
}

fn shape<'a>(schema: &'a Schema, value: &Value) -> Shape<'a> {
    match (schema, value) {
        (Schema::Struct(fields), Value::Object(_)) if !fields.atomic => Shape::Object,
        (Schema::Keyed { atomic: false, .. } | Schema::Any, Value::Object(_)) => Shape::Object,
        (Schema::List { items, merge }, Value::Array(_)) if *merge != ListMerge::Atomic => Shape::List(items, merge),
        _ => Shape::Leaf,
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(members)) => members.is_empty(),
        Some(_) => false,
    }
}

/// The schema below a step of a path, and whether the step is a named field.
fn descend<'a>(schema: &'a Schema, step: &str) -> (&'a Schema, bool) {
    match (step.split_at(2), schema) {
        (("f:", name), schema) => schema.member(name),
        (("k:", _), Schema::List { items, .. }) => (items, false),
        _ => (&Schema::Any, false),
    }
}

/// A set with the named fields on the way to its paths.
pub(crate) fn with_named(set: &FieldSet, schema: &Schema) -> FieldSet {
    set.with_named(schema, &|schema, step| descend(schema, step))
}

/// The step to an item of a list that merges.
fn item_step(item: &Value, merge: &ListMerge) -> String {
    match merge {
        ListMerge::Map(keys) => {
            let keys: BTreeMap<&str, &Value> = keys
                .iter()
                .filter_map(|(key, default)| Some((key.as_str(), item.get(key).or(default.as_ref())?)))
                .collect();
            format!("k:{}", serde_json::to_string(&keys).unwrap_or_default())
        }
        ListMerge::Set | ListMerge::Atomic => format!("v:{item}"),
    }
}

/// What is wrong with a configuration that is to be applied: two items of one key, or one without its key.
pub(crate) fn key_errors(schema: &Schema, value: &Value, path: &str, found: &mut Vec<String>) {
    match (schema, value) {
        (_, Value::Object(members)) => {
            for (name, member) in members {
                key_errors(schema.member(name).0, member, &format!("{path}.{name}"), found);
            }
        }
        (Schema::List { items, merge }, Value::Array(list)) => {
            let mut seen = BTreeSet::new();
            for (index, item) in list.iter().enumerate() {
                if let ListMerge::Map(keys) = merge {
                    let missing = keys.iter().find(|(key, default)| item.get(key).is_none() && default.is_none());
                    if let Some((key, _)) = missing {
                        let all: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
                        found.push(format!(
                            "{path}: element {index}: associative list with keys has an element that omits key field \
                             {key:?} (keys: {})",
                            all.join(", ")
                        ));
                        continue;
                    }
                }
                let step = item_step(item, merge);
                if *merge != ListMerge::Atomic && !seen.insert(step.clone()) {
                    found.push(format!("{path}: duplicate entries for key {}", &step[2..]));
                }
                key_errors(items, item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// All fields of a configuration.
pub(crate) fn field_set(schema: &Schema, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(schema, value, &mut Vec::new(), &mut set);
    set
}

fn collect(schema: &Schema, value: &Value, path: &mut Vec<String>, set: &mut FieldSet) {
    match (shape(schema, value), value) {
        (Shape::Object, Value::Object(members)) => {
            for (name, member) in members {
                let (below, named) = schema.member(name);
                path.push(field(name));
                collect(below, member, path, set);
                if !named || member.is_null() || member.as_object().is_some_and(Map::is_empty) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Shape::List(items, merge), Value::Array(list)) => {
            for item in list {
                path.push(item_step(item, merge));
                collect(items, item, path, set);
                set.insert(path);
                path.pop();
            }
        }
        // An object or list without a value is nobody's.
        (_, Value::Null) if !matches!(schema, Schema::Scalar(_) | Schema::Any) => {}
        _ => set.insert(path),
    }
}

/// `right` laid over `left`.
pub(crate) fn merge(schema: &Schema, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let (Some(l), Some(r)) = (left, right) else { return right.or(left).cloned() };
    // An empty or null value on one side takes the other's form.
    let form = if r.is_null() { l } else { r };
    if is_empty(left) && is_empty(right) {
        return right.cloned();
    }
    match (shape(schema, form), l, r) {
        (Shape::Object, Value::Object(_) | Value::Null, Value::Object(_) | Value::Null) => {
            let none = Map::new();
            let (l, r) = (l.as_object().unwrap_or(&none), r.as_object().unwrap_or(&none));
            let mut out = Map::new();
            for name in l.keys().chain(r.keys().filter(|name| !l.contains_key(*name))) {
                if let Some(member) = merge(schema.member(name).0, l.get(name), r.get(name)) {
                    out.insert(name.clone(), member);
                }
            }
            Some(Value::Object(out))
        }
        (Shape::List(items, merge), Value::Array(_) | Value::Null, Value::Array(_) | Value::Null) => {
            let none = Vec::new();
            let (l, r) = (l.as_array().unwrap_or(&none), r.as_array().unwrap_or(&none));
            Some(Value::Array(merge_lists(items, merge, l, r)))
        }
        _ => right.cloned(),
    }
}

/// Keeps the order of both sides as far as they agree, and the right one's where they do not.
fn merge_lists(items: &Schema, by: &ListMerge, left: &[Value], right: &[Value]) -> Vec<Value> {
    let left: Vec<(String, &Value)> = left.iter().map(|item| (item_step(item, by), item)).collect();
    let right: Vec<(String, &Value)> = right.iter().map(|item| (item_step(item, by), item)).collect();
    let in_left: BTreeMap<&str, &Value> = left.iter().rev().map(|(step, item)| (step.as_str(), *item)).collect();
    let in_right: BTreeMap<&str, &Value> = right.iter().map(|(step, item)| (step.as_str(), *item)).collect();
    let mut shared = right.iter().map(|(step, _)| step).filter(|step| in_left.contains_key(step.as_str()));
    let mut next_shared = shared.next();
    let mut merged = BTreeSet::new();
    let mut out = Vec::new();
    let both = |step: &str| merge(items, in_left.get(step).copied(), in_right.get(step).copied());
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some((step, _)), Some((other, _))) = (left.get(l), right.get(r)) {
            if step == other {
                merged.insert(step);
                out.extend(both(step));
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if in_right.contains_key(step.as_str()) && next_shared.is_some_and(|next| next != step) {
                l += 1;
                continue;
            }
        }
        if let Some((step, item)) = left.get(l) {
            if !in_right.contains_key(step.as_str()) {
                out.push((*item).clone());
                l += 1;
                continue;
            }
            if merged.contains(step) {
                l += 1;
            }
        }
        if let Some((step, _)) = right.get(r) {
            merged.insert(step);
            out.extend(both(step));
            r += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// What changed from `left` to `right`.
pub(crate) fn compare(schema: &Schema, left: &Value, right: &Value) -> Comparison {
    let mut found = Comparison::default();
    differ(schema, Some(left), Some(right), &mut Vec::new(), &mut found);
    found
}

fn differ(
    schema: &Schema,
    left: Option<&Value>,
    right: Option<&Value>,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    let form = right.filter(|right| !right.is_null()).or(left).unwrap_or(&Value::Null);
    let same_form = |value: Option<&Value>| {
        value.is_none_or(|value| value.is_null() || std::mem::discriminant(value) == std::mem::discriminant(form))
    };
    let mut leaf = true;
    if !(is_empty(left) && is_empty(right)) && same_form(left) {
        match shape(schema, form) {
            Shape::Object => {
                leaf = false;
                let none = Map::new();
                let l = left.and_then(Value::as_object).unwrap_or(&none);
                let r = right.and_then(Value::as_object).unwrap_or(&none);
                for name in l.keys().chain(r.keys().filter(|name| !l.contains_key(*name))) {
                    path.push(field(name));
                    differ(schema.member(name).0, l.get(name), r.get(name), path, found);
                    path.pop();
                }
            }
            Shape::List(items, by) => {
                leaf = false;
                let index = |value: Option<&'_ Value>| -> BTreeMap<String, Value> {
                    let items = value.and_then(Value::as_array).into_iter().flatten().rev();
                    items.map(|item| (item_step(item, by), item.clone())).collect()
                };
                let (l, r) = (index(left), index(right));
                for step in l.keys().chain(r.keys().filter(|step| !l.contains_key(*step))) {
                    path.push(step.clone());
                    differ(items, l.get(step), r.get(step), path, found);
                    path.pop();
                }
            }
            Shape::Leaf => {}
        }
    }
    match (left, right) {
        (None, _) => found.added.insert(path),
        (_, None) => found.removed.insert(path),
        (Some(left), Some(right)) if leaf && left != right => found.modified.insert(path),
        _ => {}
    }
}

/// The value without the paths of a set; `Null` if nothing is left of it.
pub(crate) fn remove(schema: &Schema, value: &Value, gone: &FieldSet) -> Value {
    match (shape(schema, value), value) {
        (Shape::Object, Value::Object(members)) => {
            let left: Map<String, Value> = members
                .iter()
                .filter(|(name, _)| !gone.has(&field(name)))
                .map(|(name, member)| {
                    let member = gone
                        .below(&field(name))
                        .map_or_else(|| member.clone(), |below| remove(schema.member(name).0, member, below));
                    (name.clone(), member)
                })
                .collect();
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        (Shape::List(items, by), Value::Array(list)) => {
            let left: Vec<Value> = list
                .iter()
                .map(|item| (item_step(item, by), item))
                .filter(|(step, _)| !gone.has(step))
                .map(|(step, item)| gone.below(&step).map_or_else(|| item.clone(), |below| remove(items, item, below)))
                .collect();
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        (Shape::Leaf, Value::Object(_) | Value::Array(_)) => Value::Null,
        _ => value.clone(),
    }
}
