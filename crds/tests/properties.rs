//! What holds for every input: nothing panics, and a resource survives being written and read.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use mcp_hub_crds::field_path::Segment;
use mcp_hub_crds::manifest::parse;
use mcp_hub_crds::schema::definitions;
use mcp_hub_crds::validate::{Rule, Rules, Violation};
use mcp_hub_crds::{MCPHub, MCPServer, Resource, ResourceKind};
use proptest::prelude::*;
use proptest::strategy::Union;
use serde_json::{Map, Value, json};

/// Kept, so that not every case compiles them.
static RULES: LazyLock<Arc<Rules>> = LazyLock::new(Rules::compiled);

fn violations(kind: ResourceKind, object: &Value) -> Vec<Violation> {
    RULES.violations(kind, object)
}

fn schema(kind: ResourceKind) -> Value {
    let definition = definitions().into_iter().zip(ResourceKind::ALL).find(|(_, found)| *found == kind).unwrap().0;
    serde_json::to_value(&definition.spec.versions[0].schema).unwrap()["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// The generator writes whole texts and knows no anchors.
fn matching(pattern: &str) -> impl Strategy<Value = String> + use<> {
    proptest::string::string_regex(pattern.trim_start_matches('^').trim_end_matches('$')).unwrap()
}

/// Values that the JSON schema accepts. CEL rules are not looked at.
fn value_of(schema: &Value) -> BoxedStrategy<Value> {
    if let Some(options) = schema["enum"].as_array() {
        return proptest::sample::select(options.clone()).boxed();
    }
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some() {
        return free_value(2).prop_map(|value| json!({"spec": value})).boxed();
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        let text = matching(schema["pattern"].as_str().unwrap());
        return prop_oneof![(0..10_000_i64).prop_map(Value::from), text.prop_map(Value::from)].boxed();
    }
    let number = |key: &str| schema[key].as_f64().map(|number| number as i64);
    let length = |key: &str, default: usize| schema[key].as_u64().map_or(default, |n| usize::try_from(n).unwrap());
    match schema["type"].as_str().unwrap() {
        "object" if schema.get("properties").is_some() => object_of(schema),
        "object" => match schema.get("additionalProperties") {
            Some(values) => proptest::collection::btree_map("[a-z./-]{1,8}", value_of(values), 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
                .boxed(),
            None => Just(json!({})).boxed(),
        },
        "array" => {
            let keyed = schema.get("x-kubernetes-list-map-keys").is_some();
            let least = length("minItems", 0);
            proptest::collection::vec(value_of(&schema["items"]), least..least + 3)
                .prop_map(move |items| {
                    if keyed {
                        let by_name: BTreeMap<String, Value> =
                            items.into_iter().map(|item| (item["name"].to_string(), item)).collect();
                        Value::Array(by_name.into_values().collect())
                    } else {
                        Value::Array(items)
                    }
                })
                .boxed()
        }
        "integer" => (number("minimum").unwrap_or(-5)..=number("maximum").unwrap_or(5)).prop_map(Value::from).boxed(),
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "string" => {
            let (least, most) = (length("minLength", 0), length("maxLength", 1_000));
            let text = match schema["pattern"].as_str() {
                Some(pattern) => matching(pattern).boxed(),
                // Texts that a YAML writer must quote, among others.
                None => prop_oneof![
                    "\\PC{0,12}",
                    "[ -~\n\t\"'#:]{0,20}",
                    proptest::sample::select(vec![
                        "yes",
                        "no",
                        "on",
                        "~",
                        "null",
                        "true",
                        "0755",
                        "1_000",
                        "1.10",
                        "1e3",
                        "0x1f",
                        ".inf",
                        ".nan",
                        "<<",
                        "- a",
                        "a: b",
                        "# c",
                        "---",
                        "...",
                        "*a",
                        "&a",
                        "!t",
                        "|",
                        ">",
                        "%",
                        "@",
                        "`",
                        "{",
                        "[",
                        "",
                        " ",
                        "\n",
                        "12:30:00",
                        "2026-01-01",
                        "=",
                        "a\n\nb\n",
                        " a",
                        "a ",
                        "\u{85}",
                        "\u{feff}",
                        "\u{2028}",
                    ])
                    .prop_map(str::to_owned)
                ]
                .boxed(),
            };
            text.prop_filter("length", move |text| (least..=most).contains(&text.chars().count()))
                .prop_map(Value::from)
                .boxed()
        }
        other => panic!("no strategy for {other}"),
    }
}

fn object_of(schema: &Value) -> BoxedStrategy<Value> {
    let properties = schema["properties"].as_object().unwrap();
    let choices: Vec<&str> =
        schema["oneOf"].as_array().into_iter().flatten().filter_map(|branch| branch["required"][0].as_str()).collect();
    if !choices.is_empty() {
        return Union::new(choices.into_iter().map(|name| {
            let name = name.to_owned();
            value_of(&properties[&name]).prop_map(move |value| json!({ name.as_str(): value }))
        }))
        .boxed();
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut object = Just(Map::new()).boxed();
    for (name, property) in properties {
        let member = if required.contains(&name.as_str()) {
            value_of(property).prop_map(Some).boxed()
        } else {
            proptest::option::weighted(0.3, value_of(property)).boxed()
        };
        let name = name.clone();
        object = (object, member)
            .prop_map(move |(mut object, value)| {
                if let Some(value) = value {
                    object.insert(name.clone(), value);
                }
                object
            })
            .boxed();
    }
    object.prop_map(Value::Object).boxed()
}

/// Any JSON, a few levels deep.
fn free_value(depth: u32) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from)
    ];
    leaf.prop_recursive(depth, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("\\PC{0,6}", inner, 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .boxed()
}

fn resource(kind: ResourceKind) -> BoxedStrategy<Value> {
    let labels = proptest::collection::btree_map("[a-z]{1,5}", "[a-z0-9]{0,5}", 0..3);
    (value_of(&schema(kind)), "[a-z][a-z0-9-]{0,8}[a-z0-9]", labels)
        .prop_map(move |(spec, name, labels)| {
            let metadata = json!({"name": name, "namespace": "default", "labels": labels});
            let object =
                json!({"apiVersion": "mcphub.io/v1alpha1", "kind": kind.as_str(), "metadata": metadata, "spec": spec});
            without_violations(kind, object)
        })
        .boxed()
}

/// The schema says which values are drawn; what CEL then refuses is taken out, so that the rest is a good manifest.
fn without_violations(kind: ResourceKind, mut object: Value) -> Value {
    while let Some(violation) = violations(kind, &object).first() {
        let fields: Vec<String> = violation
            .path
            .segments()
            .iter()
            .map(|segment| match segment {
                Segment::Field(name) => name.clone(),
                Segment::Index(index) => index.to_string(),
            })
            .collect();
        assert!(matches!(violation.rule, Rule::Cel(_)), "the schema refuses what was drawn from it: {violation}");
        let spec = object["spec"].as_object_mut().unwrap();
        match fields.get(1) {
            Some(field) if field != "source" => drop(spec.remove(field)),
            // A rule over several fields, or over the source: only the source stays.
            Some(_) | None if spec.len() > 1 => spec.retain(|field, _| field == "source"),
            Some(_) | None => object["spec"] = json!({"source": {"command": {"path": "x"}}}),
        }
    }
    object
}

fn typed(kind: ResourceKind, value: Value) -> Resource {
    match kind {
        ResourceKind::MCPServer => Resource::Server(serde_json::from_value::<MCPServer>(value).unwrap()),
        ResourceKind::MCPHub => Resource::Hub(serde_json::from_value::<MCPHub>(value).unwrap()),
    }
}

fn any_resource() -> impl Strategy<Value = (ResourceKind, Value)> {
    prop_oneof![
        resource(ResourceKind::MCPServer).prop_map(|value| (ResourceKind::MCPServer, value)),
        resource(ResourceKind::MCPHub).prop_map(|value| (ResourceKind::MCPHub, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_resource_that_is_written_is_read_back_equal((kind, value) in any_resource()) {
        let resource = typed(kind, value);
        let yaml = resource.to_yaml();
        let read = parse(&yaml, Path::new("x.yaml")).map_err(|errors| TestCaseError::fail(format!("{errors}\n{yaml}")))?;
        prop_assert_eq!(read.len(), 1);
        prop_assert_eq!(&read[0].resource, &resource, "{}", yaml);
    }

    #[test]
    fn validation_never_panics_and_what_it_accepts_has_a_typed_form(value in free_value(4), (kind, good) in any_resource()) {
        violations(kind, &value);
        let mut mixed = good;
        mixed["spec"]["source"] = value;
        if violations(kind, &mixed).is_empty() {
            typed(kind, mixed);
        }
    }

    #[test]
    fn reading_never_panics(text in prop_oneof!["\\PC{0,80}", "[ -~\n\t]{0,120}", "[\\[\\]{}:,\\-&*!|> \n\"'a#/]{0,80}"]) {
        for file in ["x.yaml", "x.json"] {
            // Either outcome is right; an error can be shown.
            if let Err(errors) = parse(&text, Path::new(file)) {
                prop_assert!(!errors.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_damaged_manifest_never_panics((kind, value) in any_resource(), cut in any::<prop::sample::Index>(), junk in "\\PC{0,3}") {
        let yaml = typed(kind, value).to_yaml();
        let at = cut.index(yaml.len() + 1);
        let at = (0..=at).rev().find(|at| yaml.is_char_boundary(*at)).unwrap();
        for damaged in [yaml[..at].to_owned(), format!("{}{junk}{}", &yaml[..at], &yaml[at..])] {
            if let Err(errors) = parse(&damaged, Path::new("x.yaml")) {
                prop_assert!(!errors.to_string().is_empty());
            }
        }
    }
}
