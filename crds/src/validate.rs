//! The rules of the generated definitions, applied here: JSON schema, CEL and unknown fields. What is accepted locally is
//! accepted by a cluster, and the other way round.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use jsonschema::error::{TypeKind, ValidationErrorKind};
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde_json::{Value, json};

use crate::field_path::FieldPath;
use crate::resource::ResourceKind;
use crate::schema::schemas;

/// A rule that a value breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field; for one that is missing, the field it is missing from.
    pub path: FieldPath,
    /// What is wrong, as a sentence without the path.
    pub message: String,
    /// Which kind of rule says so.
    pub rule: Rule,
    /// What the user does next.
    pub hint: Option<String>,
}

/// What a [`Violation`] breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The keyword of the schema, such as `maximum`.
    Schema(String),
    /// The CEL expression.
    Cel(String),
    /// The field is not in the schema. On a cluster it would be pruned in silence.
    UnknownField,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_root() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// The compiled rules of both kinds.
#[derive(Debug)]
pub struct Rules {
    server: Compiled,
    hub: Compiled,
}

static SHARED: Mutex<Weak<Rules>> = Mutex::new(Weak::new());

impl Rules {
    /// Those that somebody holds, else compiled anew, in some milliseconds: they take more than a megabyte, which a daemon
    /// that seldom reads resources does not keep.
    pub fn compiled() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let [server, hub] = schemas();
            let rules = Arc::new(Self { server: Compiled::of(server), hub: Compiled::of(hub) });
            *shared = Arc::downgrade(&rules);
            rules
        })
    }

    /// All rules that a resource as JSON breaks, in the order of its fields.
    pub fn violations(&self, kind: ResourceKind, resource: &Value) -> Vec<Violation> {
        let rules = match kind {
            ResourceKind::MCPServer => &self.server,
            ResourceKind::MCPHub => &self.hub,
        };
        let mut found = Vec::new();
        unknown_fields(&rules.schema, resource, &FieldPath::default(), &mut found);
        repeated_items(&rules.schema, resource, &FieldPath::default(), &mut found);
        for error in rules.json.iter_errors(resource) {
            found.push(schema_violation(&error, resource, &rules.schema));
        }
        // Like an API server, do not report that a rule cannot be evaluated on a value of the wrong type.
        let well_typed = found.is_empty();
        if let Err(errors) = Validator::new().validate_compiled(&rules.cel, resource, None) {
            for error in errors.into_vec() {
                if well_typed || error.kind == ErrorKind::ValidationFailure {
                    found.push(Violation {
                        path: cel_path(&error.field_path, &error.rule),
                        message: error.message,
                        rule: Rule::Cel(error.rule),
                        hint: None,
                    });
                }
            }
        }
        found
    }
}

/// A rule at the root can see nothing of metadata but the name: that is the field it speaks of.
fn cel_path(path: &str, rule: &str) -> FieldPath {
    if path.is_empty() && rule.contains("self.metadata.name") {
        FieldPath::default().field("metadata").field("name")
    } else {
        FieldPath::from_dotted(path)
    }
}

struct Compiled {
    schema: Value,
    json: jsonschema::Validator,
    cel: CompiledSchema,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

impl Compiled {
    fn of(mut schema: Value) -> Self {
        let cel = compile_schema(&schema);
        // An API server adds these three to every definition.
        schema["properties"]["apiVersion"] = json!({"type": "string"});
        schema["properties"]["kind"] = json!({"type": "string"});
        schema["properties"]["metadata"] = metadata();
        schema["required"] = json!(["metadata", "spec"]);
        let mut plain = schema.clone();
        json_schema(&mut plain);
        // A schema that does not compile refuses everything; the tests hold that ours compile.
        let json = jsonschema::draft7::new(&plain)
            .or_else(|_| jsonschema::draft7::new(&json!(false)))
            .unwrap_or_else(|_| unreachable!("`false` is a JSON schema"));
        Self { schema, json, cel }
    }
}

/// What an API server checks of metadata, which a definition cannot state.
fn metadata() -> Value {
    let name = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$";
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "namespace": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
            "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63, "pattern": name}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 262_144}},
        },
    })
}

/// Says in JSON schema what OpenAPI says by extension.
fn json_schema(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.remove("x-kubernetes-int-or-string").is_some() {
                map.insert("type".to_owned(), json!(["integer", "string"]));
            }
            map.values_mut().for_each(json_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(json_schema),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn unknown_fields(schema: &Value, value: &Value, path: &FieldPath, found: &mut Vec<Violation>) {
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some() {
        return;
    }
    match value {
        Value::Object(members) if schema["type"] == "object" => {
            let properties = schema["properties"].as_object();
            for (name, member) in members {
                let path = path.field(name);
                if let Some(property) = properties.and_then(|properties| properties.get(name)) {
                    unknown_fields(property, member, &path, found);
                } else if let Some(values) = schema.get("additionalProperties") {
                    unknown_fields(values, member, &path, found);
                } else {
                    let known: Vec<&str> = properties.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                    found.push(Violation {
                        path,
                        message: "unknown field".to_owned(),
                        rule: Rule::UnknownField,
                        hint: Some(match did_you_mean(name, known.iter().copied()) {
                            Some(meant) => format!("did you mean `{meant}`?"),
                            None => format!("known here: {}", known.join(", ")),
                        }),
                    });
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                unknown_fields(&schema["items"], item, &path.index(index), found);
            }
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Items of a list map that have the same key, which an API server refuses.
fn repeated_items(schema: &Value, value: &Value, path: &FieldPath, found: &mut Vec<Violation>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                repeated_items(&schema["properties"][name], member, &path.field(name), found);
            }
        }
        Value::Array(items) => {
            let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let key_of = |item: &Value| keys.iter().map(|key| item[key].to_string()).collect::<Vec<_>>();
            let mut seen = BTreeMap::new();
            for (index, item) in items.iter().enumerate() {
                let path = path.index(index);
                repeated_items(&schema["items"], item, &path, found);
                if let (false, Some(first)) = (keys.is_empty(), seen.insert(key_of(item), index)) {
                    found.push(Violation {
                        path,
                        message: format!("the same {} as item {first}", list(&keys)),
                        rule: Rule::Schema("x-kubernetes-list-map-keys".to_owned()),
                        hint: None,
                    });
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The candidate that a typo is nearest to, if one is near enough to be meant.
pub(crate) fn did_you_mean<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn schema_violation(error: &jsonschema::ValidationError<'_>, resource: &Value, schema: &Value) -> Violation {
    let instance = error.instance();
    let path = FieldPath::from_pointer(error.instance_path().as_str(), resource);
    let mut hint = None;
    let message = match error.kind() {
        ValidationErrorKind::Required { property } => {
            format!("`{}` must be set", property.as_str().unwrap_or_default())
        }
        ValidationErrorKind::Type { .. } if duration_expected(error, schema) && instance.is_number() => {
            no_duration(instance)
        }
        ValidationErrorKind::Type { kind } => {
            let expected = match kind {
                TypeKind::Single(one) => type_name(&one.to_string()).to_owned(),
                TypeKind::Multiple(_) => "a whole number or text".to_owned(),
            };
            let text_meant = expected == "text" && (instance.is_number() || instance.is_boolean());
            if text_meant || (expected.ends_with("or text") && instance.is_number()) {
                hint = Some("put quotes around it".to_owned());
            }
            // Where a section is expected, a text may well be a secret put in the wrong place.
            let section = expected == "a mapping" || expected == "a list";
            let found = if section && instance.is_string() { "text".to_owned() } else { found(instance) };
            format!("expected {expected}, found {found}")
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<&str> = options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            hint = instance
                .as_str()
                .and_then(|text| did_you_mean(text, options.iter().copied()))
                .map(|meant| format!("did you mean `{meant}`?"));
            format!("{} is not one of {}", shown(instance), options.join(", "))
        }
        ValidationErrorKind::Pattern { pattern } => match pattern.as_str() {
            crate::duration::PATTERN => no_duration(instance),
            crate::quantity::PATTERN => {
                format!("{} is no quantity (expected for example `500m`, `2` or `256Mi`)", shown(instance))
            }
            pattern => format!("{} does not match `{pattern}`", shown(instance)),
        },
        ValidationErrorKind::Minimum { limit } => format!("{instance} is less than {}", bound(limit)),
        ValidationErrorKind::Maximum { limit } => format!("{instance} is greater than {}", bound(limit)),
        ValidationErrorKind::MinLength { limit: 1 } => "must not be empty".to_owned(),
        ValidationErrorKind::MinLength { limit } => format!("must have at least {limit} characters"),
        ValidationErrorKind::MaxLength { limit } => format!("must have at most {limit} characters"),
        ValidationErrorKind::MinItems { limit: 1 } => "must not be empty".to_owned(),
        ValidationErrorKind::MinItems { limit } => format!("must have at least {limit} items"),
        ValidationErrorKind::MaxItems { limit } => format!("must have at most {limit} items"),
        ValidationErrorKind::OneOfNotValid { .. } | ValidationErrorKind::OneOfMultipleValid { .. } => {
            let at = schema.pointer(error.schema_path().as_str()).unwrap_or(&Value::Null);
            let names: Vec<&str> =
                at.as_array().into_iter().flatten().filter_map(|branch| branch["required"][0].as_str()).collect();
            format!("exactly one of {} must be set", list(&names))
        }
        _ => error.to_string(),
    };
    Violation { path, message, rule: Rule::Schema(error.kind().keyword().to_owned()), hint }
}

fn duration_expected(error: &jsonschema::ValidationError<'_>, schema: &Value) -> bool {
    let keyword = error.schema_path().as_str();
    let field = keyword.rsplit_once('/').and_then(|(field, _)| schema.pointer(field));
    field.is_some_and(|field| field["pattern"] == crate::duration::PATTERN)
}

fn no_duration(value: &Value) -> String {
    format!("{} is no duration (expected for example `30s`, `10m` or `1h30m`)", shown(value))
}

/// Definitions state bounds as floating point numbers; ours are whole.
fn bound(limit: &Value) -> String {
    limit.as_f64().map_or_else(|| limit.to_string(), |limit| limit.to_string())
}

fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

fn type_name(name: &str) -> &str {
    match name {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        other => other,
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        // Not the number itself: `1.10` is no longer there.
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => format!("the text {}", shown(value)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

/// A value for a message, cut so that a pasted file does not fill the screen.
fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
