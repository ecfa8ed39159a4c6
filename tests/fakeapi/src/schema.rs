//! What the API server knows of a kind's fields: which are named and which are keys, how lists merge, what is pruned.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::builtin_fields::{ATOMIC_MAPS, ATOMIC_TYPES, LIST_MAPS, LIST_SETS, ZERO_COUNTS};
use crate::quantity;

/// One node of a kind's schema.
#[derive(Debug)]
pub(crate) enum Schema {
    /// A leaf of one of these types.
    Scalar(Scalar),
    /// An object with named fields.
    Struct(Struct),
    /// An object whose keys the user chooses.
    Keyed {
        values: Arc<Schema>,
        atomic: bool,
    },
    List {
        items: Arc<Schema>,
        merge: ListMerge,
    },
    /// Nothing is known: objects merge by key, lists are replaced.
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    Text,
    Whole,
    Number,
    Truth,
    IntOrText,
    /// Rewritten into its canonical form.
    Quantity,
}

#[derive(Debug, Default)]
pub(crate) struct Struct {
    pub(crate) fields: BTreeMap<String, Field>,
    /// Owned and replaced as a whole.
    pub(crate) atomic: bool,
    /// Unknown fields are kept.
    pub(crate) open: bool,
    /// Fields that must be there (custom resources only).
    required: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) schema: Arc<Schema>,
    /// Filled in by the API server where it is missing (custom resources only).
    pub(crate) default: Option<Value>,
    /// A zero value is the same as none, and is left out of what is stored.
    pub(crate) zero_is_none: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ListMerge {
    Atomic,
    Set,
    /// By these keys, some of which have a default.
    Map(Vec<(String, Option<Value>)>),
}

/// A value that does not fit the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// Such as `.spec.replicas`.
    pub(crate) path: String,
    pub(crate) expected: &'static str,
}

/// What [`Schema::tidy`] came upon.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Fields that were dropped because the schema does not know them.
    pub(crate) unknown: Vec<String>,
    pub(crate) mismatches: Vec<Mismatch>,
    /// Nulls are to be left where they are.
    pub(crate) keep_nulls: bool,
}

static METADATA: LazyLock<Arc<Schema>> = LazyLock::new(builtin::<ObjectMeta>);

/// The schema of a type that the API server has built in.
pub(crate) fn builtin<T: JsonSchema>() -> Arc<Schema> {
    let root = schemars::SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    let definitions = root["$defs"].as_object().cloned().unwrap_or_default();
    let name = T::schema_name();
    Builtins { definitions: &definitions, done: BTreeMap::new() }.compile(&root, short(&name))
}

/// The schema of a custom resource, from its definition.
pub(crate) fn custom(definition: Option<&JSONSchemaProps>) -> Arc<Schema> {
    let root = serde_json::to_value(definition).unwrap_or_default();
    let mut top = match custom_node(&root) {
        Schema::Struct(top) => top,
        _ => Struct { open: true, ..Struct::default() },
    };
    let field = |schema| Field { schema, default: None, zero_is_none: false };
    top.fields.insert("metadata".to_owned(), field(METADATA.clone()));
    for name in ["apiVersion", "kind"] {
        top.fields.insert(name.to_owned(), field(Arc::new(Schema::Scalar(Scalar::Text))));
    }
    Arc::new(Schema::Struct(top))
}

fn short(name: &str) -> &str {
    name.rsplit(['.', '/']).next().unwrap_or(name)
}

struct Builtins<'a> {
    definitions: &'a Map<String, Value>,
    done: BTreeMap<String, Arc<Schema>>,
}

impl Builtins<'_> {
    fn reference(&mut self, pointer: &str) -> Arc<Schema> {
        let name = pointer.rsplit('/').next().unwrap_or(pointer);
        if let Some(done) = self.done.get(name) {
            return done.clone();
        }
        let schema = match self.definitions.get(name) {
            Some(_) if name.ends_with(".Quantity") => Arc::new(Schema::Scalar(Scalar::Quantity)),
            Some(definition) => self.compile(definition, short(name)),
            None => Arc::new(Schema::Any),
        };
        self.done.insert(name.to_owned(), schema.clone());
        schema
    }

    /// `place` is the name of the type, or `Type.field`.
    fn compile(&mut self, node: &Value, place: &str) -> Arc<Schema> {
        if let Some(pointer) = node["$ref"].as_str() {
            return self.reference(pointer);
        }
        Arc::new(match node["type"].as_str() {
            Some("object") => {
                if let Some(properties) = node["properties"].as_object() {
                    let required: Vec<&str> =
                        node["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                    let fields = properties
                        .iter()
                        .map(|(name, property)| {
                            let place = format!("{place}.{name}");
                            let zero_is_none =
                                !required.contains(&name.as_str()) && !ZERO_COUNTS.contains(&place.as_str());
                            let schema = self.compile(property, &place);
                            (name.clone(), Field { schema, default: None, zero_is_none })
                        })
                        .collect();
                    Schema::Struct(Struct { fields, atomic: ATOMIC_TYPES.contains(&place), ..Struct::default() })
                } else if let Some(values) = node.get("additionalProperties") {
                    let values = self.compile(values, "");
                    Schema::Keyed { values, atomic: ATOMIC_MAPS.contains(&place) }
                } else if place.contains('.') || place == "FieldsV1" {
                    Schema::Any
                } else {
                    // A type without fields, such as that of a volume that is empty.
                    Schema::Struct(Struct { atomic: ATOMIC_TYPES.contains(&place), ..Struct::default() })
                }
            }
            Some("array") => {
                let merge = match LIST_MAPS.iter().find(|(name, _)| *name == place) {
                    // The one key with a default, in every list that has it.
                    Some((_, keys)) => ListMerge::Map(
                        keys.iter()
                            .map(|key| (String::from(*key), (*key == "protocol").then(|| Value::from("TCP"))))
                            .collect(),
                    ),
                    None if LIST_SETS.contains(&place) => ListMerge::Set,
                    None => ListMerge::Atomic,
                };
                Schema::List { items: self.compile(&node["items"], ""), merge }
            }
            _ => leaf(node),
        })
    }
}

fn leaf(node: &Value) -> Schema {
    if node["x-kubernetes-int-or-string"] == true || node["format"] == "int-or-string" || node.get("anyOf").is_some() {
        return Schema::Scalar(Scalar::IntOrText);
    }
    match node["type"].as_str() {
        Some("string") => Schema::Scalar(Scalar::Text),
        Some("integer") => Schema::Scalar(Scalar::Whole),
        Some("number") => Schema::Scalar(Scalar::Number),
        Some("boolean") => Schema::Scalar(Scalar::Truth),
        _ => Schema::Any,
    }
}

fn custom_node(node: &Value) -> Schema {
    let open = node["x-kubernetes-preserve-unknown-fields"] == true;
    match node["type"].as_str() {
        Some("object") => {
            let atomic = node["x-kubernetes-map-type"] == "atomic";
            if let Some(properties) = node["properties"].as_object() {
                let fields = properties
                    .iter()
                    .map(|(name, property)| {
                        let field = Field {
                            schema: Arc::new(custom_node(property)),
                            default: property.get("default").cloned(),
                            zero_is_none: false,
                        };
                        (name.clone(), field)
                    })
                    .collect();
                let required = node["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let required = required.map(str::to_owned).collect();
                Schema::Struct(Struct { fields, atomic, open, required })
            } else if node["additionalProperties"].is_object() {
                Schema::Keyed { values: Arc::new(custom_node(&node["additionalProperties"])), atomic }
            } else if open {
                Schema::Any
            } else {
                Schema::Struct(Struct { atomic, ..Struct::default() })
            }
        }
        Some("array") => {
            let properties = &node["items"]["properties"];
            let merge = match node["x-kubernetes-list-type"].as_str() {
                Some("map") => ListMerge::Map(
                    node["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .map(|key| (key.to_owned(), properties[key].get("default").cloned()))
                        .collect(),
                ),
                Some("set") => ListMerge::Set,
                _ => ListMerge::Atomic,
            };
            Schema::List { items: Arc::new(custom_node(&node["items"])), merge }
        }
        _ => leaf(node),
    }
}

impl Schema {
    /// The schema of a member of an object, and whether it is a named field.
    pub(crate) fn member(&self, name: &str) -> (&Schema, bool) {
        match self {
            Self::Struct(fields) => fields.fields.get(name).map_or((&Self::Any, false), |field| (&*field.schema, true)),
            Self::Keyed { values, .. } => (values, false),
            Self::Scalar(_) | Self::List { .. } | Self::Any => (&Self::Any, false),
        }
    }

    /// Brings a value into the form in which it is stored: unknown fields, nulls and what means nothing are left out,
    /// quantities are canonical.
    pub(crate) fn tidy(&self, value: &mut Value, path: &str, findings: &mut Findings) {
        match (self, value) {
            (Self::Any, _) => {}
            (Self::Scalar(scalar), value) => match scalar.read(value) {
                Ok(Some(canonical)) => *value = canonical,
                Ok(None) => {}
                Err(expected) => findings.mismatches.push(Mismatch { path: path.to_owned(), expected }),
            },
            (Self::Struct(fields), Value::Object(members)) => {
                let names: Vec<String> = members.keys().cloned().collect();
                for name in names {
                    let at = format!("{path}.{name}");
                    let Some(field) = fields.fields.get(&name) else {
                        if !fields.open {
                            members.remove(&name);
                            findings.unknown.push(at);
                        }
                        continue;
                    };
                    let Some(member) = members.get_mut(&name) else { continue };
                    if !member.is_null() {
                        field.schema.tidy(member, &at, findings);
                    }
                    if (member.is_null() && !findings.keep_nulls)
                        || (field.zero_is_none && field.schema.is_zero(member))
                    {
                        members.remove(&name);
                    }
                }
                for (name, field) in &fields.fields {
                    if let (Some(default), false) = (&field.default, members.contains_key(name)) {
                        members.insert(name.clone(), default.clone());
                    }
                }
            }
            (Self::Keyed { values, .. }, Value::Object(members)) => {
                members.retain(|_, member| !member.is_null());
                for (name, member) in members.iter_mut() {
                    values.tidy(member, &format!("{path}.{name}"), findings);
                }
            }
            (Self::List { items, .. }, Value::Array(list)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    items.tidy(item, &format!("{path}[{index}]"), findings);
                }
            }
            (Self::Struct(_) | Self::Keyed { .. }, _) => {
                findings.mismatches.push(Mismatch { path: path.to_owned(), expected: "an object" });
            }
            (Self::List { .. }, _) => {
                findings.mismatches.push(Mismatch { path: path.to_owned(), expected: "a list" });
            }
        }
    }

    /// Whether there is a list or map without members anywhere in a value. It is stored as if it were not there.
    pub(crate) fn has_hollow(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::List { items, .. }, Value::Array(list)) => {
                list.is_empty() || list.iter().any(|item| items.has_hollow(item))
            }
            (Self::Keyed { .. }, Value::Object(members)) => members.is_empty(),
            (Self::Struct(_), Value::Object(members)) => {
                members.iter().any(|(name, member)| self.member(name).0.has_hollow(member))
            }
            _ => false,
        }
    }

    /// The paths of what is required and not there.
    pub(crate) fn missing(&self, value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.collect_missing(value, "", &mut found);
        found
    }

    fn collect_missing(&self, value: &Value, path: &str, found: &mut Vec<String>) {
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match (self, value) {
            (Self::Struct(fields), Value::Object(members)) => {
                found
                    .extend(fields.required.iter().filter(|name| !members.contains_key(*name)).map(|name| below(name)));
                for (name, member) in members {
                    self.member(name).0.collect_missing(member, &below(name), found);
                }
            }
            (Self::Keyed { values, .. }, Value::Object(members)) => {
                for (name, member) in members {
                    values.collect_missing(member, &below(name), found);
                }
            }
            (Self::List { items, .. }, Value::Array(list)) => {
                for (index, item) in list.iter().enumerate() {
                    items.collect_missing(item, &format!("{path}[{index}]"), found);
                }
            }
            _ => {}
        }
    }

    fn is_zero(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Struct(_) | Self::Any | Self::Scalar(Scalar::IntOrText | Scalar::Quantity), _) => false,
            (_, Value::Null | Value::Bool(false)) => true,
            (_, Value::Bool(true)) => false,
            (_, Value::Number(number)) => number.as_f64() == Some(0.0),
            (_, Value::String(text)) => text.is_empty(),
            (_, Value::Array(items)) => items.is_empty(),
            (_, Value::Object(members)) => members.is_empty(),
        }
    }
}

impl Scalar {
    /// The canonical form where it differs, or what is expected instead.
    fn read(self, value: &Value) -> Result<Option<Value>, &'static str> {
        let fits = match self {
            Self::Text => value.is_string(),
            Self::Whole => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Truth => value.is_boolean(),
            Self::IntOrText => value.is_string() || value.is_i64() || value.is_u64(),
            Self::Quantity => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let canonical = quantity::canonical(&text).ok_or("a quantity")?;
                return Ok((value.as_str() != Some(&canonical)).then(|| Value::from(canonical)));
            }
        };
        let expected = match self {
            Self::Text => "a string",
            Self::Whole => "an integer",
            Self::Number => "a number",
            Self::Truth => "a boolean",
            Self::IntOrText => "an integer or a string",
            Self::Quantity => "a quantity",
        };
        if fits { Ok(None) } else { Err(expected) }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use serde_json::json;

    use super::*;

    fn tidied(schema: &Schema, mut value: Value) -> (Value, Findings) {
        let mut findings = Findings::default();
        schema.tidy(&mut value, "", &mut findings);
        (value, findings)
    }

    #[test]
    fn what_means_nothing_is_not_stored_and_what_a_pointer_holds_is() {
        let (value, findings) = tidied(
            &builtin::<Deployment>(),
            json!({"metadata": {"labels": {}}, "spec": {"replicas": 0, "paused": false, "typo": 1, "template": {"spec": {
                "hostNetwork": false,
                "automountServiceAccountToken": false,
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "containers": [{"name": "a", "args": [], "env": [{"name": "EMPTY", "value": ""}], "resources": {
                    "limits": {"cpu": "1000m", "memory": "1024Mi"}}}],
            }}}}),
        );
        assert_eq!(
            value,
            json!({"metadata": {}, "spec": {"replicas": 0, "template": {"spec": {
                "automountServiceAccountToken": false,
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "containers": [{"name": "a", "env": [{"name": "EMPTY"}], "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"}}}],
            }}}})
        );
        assert_eq!(findings.unknown, [".spec.typo"]);
        assert_eq!(findings.mismatches, []);
    }

    #[test]
    fn an_empty_selector_selects_all_and_stays() {
        let (value, _) = tidied(&builtin::<NetworkPolicy>(), json!({"spec": {"podSelector": {}, "ingress": [{}]}}));
        assert_eq!(value, json!({"spec": {"podSelector": {}, "ingress": [{}]}}));
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        let (_, findings) =
            tidied(&builtin::<Deployment>(), json!({"spec": {"replicas": "two", "template": {"spec": []}}}));
        let found: Vec<_> = findings.mismatches.iter().map(|m| (m.path.as_str(), m.expected)).collect();
        assert_eq!(found, [(".spec.replicas", "an integer"), (".spec.template.spec", "an object")]);
    }

    #[test]
    fn custom_resources_keep_empty_values_and_lose_unknown_ones() {
        let definition: JSONSchemaProps = serde_json::from_value(json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "items": {"type": "array", "items": {"type": "string"}},
                "kind": {"type": "string", "default": "plain"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            }},
        }}))
        .unwrap();
        let (value, findings) =
            tidied(&custom(Some(&definition)), json!({"spec": {"items": [], "gone": 1, "free": {"kept": null}}}));
        assert_eq!(value, json!({"spec": {"items": [], "kind": "plain", "free": {"kept": null}}}));
        assert_eq!(findings.unknown, [".spec.gone"]);
    }
}
