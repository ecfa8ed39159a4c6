//! Garbage in each field of both resources, as their schemas list them, is refused by a message that names the field: by
//! the API server, or by a condition of the operator's. Where neither does, any text is right.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, ValidationDirective};
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_reconcile::contract::effect::fields_of_schema;
use mcp_hub_reconcile::contract::fields::{Field, of_hub};
use serde_json::{Value, json};

use crate::mutations::{ingredients, servers};
use crate::place::{NAMESPACE, Place, eventually};

const AT_ONCE: usize = 8;

/// Text that hardly any field is meant for.
const NOISE: &str = "\u{7} Garbage, \n$(x)/../ {{";

/// Fields that are for any text: what it means, only the server knows, or the controller that annotations are for.
const ANY_TEXT: &[&str] = &[
    "spec.args",
    "spec.env[].value",
    "spec.gateway.httpRoute.annotations",
    "spec.gateway.ingress.annotations",
    "spec.source.image.command",
    "spec.source.remote.headers[].value",
    "spec.tools.allow",
    "spec.tools.deny",
    "spec.tools.rename",
    "spec.workingDir",
];

/// Garbage, and what it is.
fn garbage(schema: &Value) -> Vec<(&'static str, Value)> {
    let long = || "x".repeat(70_000);
    // Quantities, which are numbers or text.
    if schema["x-kubernetes-int-or-string"] == true {
        return vec![
            ("noise", json!(NOISE)),
            ("length", json!(long())),
            ("less than nothing", json!(-17)),
            ("boolean", json!(true)),
            ("array", json!([17])),
            ("object", json!({"garbage": true})),
        ];
    }
    let kind = schema["type"].as_str().unwrap();
    let mut found: Vec<(&str, Value)> = Vec::new();
    for (other, value) in [
        ("string", json!("17")),
        ("integer", json!(17)),
        ("boolean", json!(true)),
        ("array", json!(["garbage"])),
        ("object", json!({"garbage": true})),
    ] {
        if other != kind {
            found.push((other, value));
        }
    }
    match kind {
        "string" => found.extend([("nothing", json!("")), ("noise", json!(NOISE)), ("length", json!(long()))]),
        "integer" => found.extend([
            ("less than nothing", json!(-17)),
            ("more than 32 bits", json!(1_i64 << 40)),
            ("a fraction", json!(1.5)),
        ]),
        "array" => found.extend([
            ("noise in it", json!([NOISE])),
            ("length in it", json!([long()])),
            ("many", json!((0..20_000).map(|number| format!("x{number}")).collect::<Vec<_>>())),
        ]),
        "object" => {
            found.extend([("noise in it", json!({NOISE: NOISE})), ("a number in it", json!({"spec": 17}))]);
        }
        // Of two values none is garbage.
        "boolean" => {}
        other => panic!("what is garbage for {other}?"),
    }
    found
}

/// The part of a resource's schema that describes a field.
fn described<'a>(schema: &'a Value, field: &str) -> &'a Value {
    field.split('.').fold(schema, |at, name| match name.strip_suffix("[]") {
        Some(name) => &at["properties"][name]["items"],
        None => &at["properties"][name],
    })
}

/// `spec` with this value of a field; what is around the field is made if need be.
fn put(spec: &mut Value, field: &str, value: Value) {
    let mut at = spec;
    for name in field.split('.').skip(1) {
        at = match name.strip_suffix("[]") {
            Some(name) => {
                let list = &mut at[name];
                if list.get(0).is_none() {
                    *list = json!([{}]);
                }
                &mut list[0]
            }
            None => &mut at[name],
        };
    }
    *at = value;
}

/// A valid spec that has what is around a field: that of the table's field which is nearest to it.
fn around(table: &[Field], field: &str) -> Value {
    let shared = |other: &str| field.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    table.iter().max_by_key(|(other, ..)| shared(other)).unwrap().2.clone()
}

/// A path, or a message with paths in it, without the items of lists: `[]`, `[0]`, `[name="x"]` after a name.
fn plain(text: &str) -> String {
    let (mut out, mut depth) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '[' if depth > 0 || out.ends_with(char::is_alphanumeric) => depth += 1,
            ']' if depth > 0 => depth -= 1,
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// Whether a refusal names the field, what it is in, or a part of it.
pub(crate) fn names(refusal: &str, field: &str) -> bool {
    let words = refusal.split(|c: char| c.is_whitespace() || ",:;`()".contains(c));
    words.filter(|word| word.starts_with("spec.")).any(|word| {
        let (word, field) = (plain(word), plain(field));
        field.starts_with(&word) || word.starts_with(&field)
    })
}

#[derive(Debug)]
struct Case {
    kind: &'static str,
    field: String,
    what: &'static str,
    spec: Value,
}

impl Case {
    /// As [`Place::verdicts`] has it.
    fn key(&self, name: &str) -> String {
        format!("{} {name}", self.kind.trim_start_matches("MCP").to_lowercase())
    }

    async fn apply(&self, place: &Place, name: &str, dry_run: bool) -> Result<DynamicObject, kube::Error> {
        let resource = match self.kind {
            "MCPServer" => ApiResource::erase::<MCPServer>(&()),
            _ => ApiResource::erase::<MCPHub>(&()),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(place.client.0.clone(), NAMESPACE, &resource);
        let params = PatchParams {
            field_validation: Some(ValidationDirective::Strict),
            dry_run,
            ..PatchParams::apply("test").force()
        };
        let object = json!({
            "apiVersion": "mcphub.io/v1alpha1", "kind": self.kind, "metadata": {"name": name}, "spec": self.spec,
        });
        api.patch(name, &params, &Patch::Apply(&object)).await
    }
}

fn cases() -> Vec<Case> {
    let tables = [("MCPServer", servers()), ("MCPHub", of_hub())];
    let mut cases = Vec::new();
    for (definition, (kind, table)) in mcp_hub_crds::schema::definitions().into_iter().zip(tables) {
        assert_eq!(definition.spec.names.kind, kind);
        let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        for field in fields_of_schema(&schema) {
            for (what, value) in garbage(described(&schema, &field)) {
                let mut spec = around(&table, &field);
                put(&mut spec, &field, value);
                cases.push(Case { kind, field: field.clone(), what, spec });
            }
        }
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_by_the_name_of_its_field() {
    let place = Place::new().await;
    let cases = cases();
    let asked = stream::iter(&cases).map(async |case| (case, case.apply(&place, "garbage", true).await));
    let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
    let mut unnamed = Vec::new();
    let mut taken = Vec::new();
    for (case, answer) in answers {
        match answer {
            Ok(_) => taken.push(case),
            Err(error) if plain(&error.to_string()).contains(&plain(&case.field)) => {}
            Err(error) => unnamed.push(format!("{} of {}: {error}", case.what, case.field)),
        }
    }
    println!("{} pieces of garbage, {} of them taken by the API server", cases.len(), taken.len());
    assert!(unnamed.is_empty(), "{unnamed:#?}");

    ingredients(&place).await;
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    let named: Vec<(String, &Case)> =
        taken.into_iter().enumerate().map(|(number, case)| (format!("g{number:02}"), case)).collect();
    stream::iter(&named)
        .for_each_concurrent(AT_ONCE, async |(name, case)| drop(case.apply(&place, name, false).await.unwrap()))
        .await;
    let silent = async || {
        let verdicts = place.verdicts().await;
        let silent = named.iter().filter_map(|(name, case)| {
            let lines = &verdicts[&case.key(name)];
            let told = lines.iter().any(|line| line.contains("=False ") && names(line, &case.field));
            (!told).then(|| (case.field.clone(), format!("{} of {}: {lines:#?}", case.what, case.field)))
        });
        silent.collect::<BTreeMap<_, _>>()
    };
    eventually("the operator to name all that it was not meant to take", async || {
        let mut wrong = silent().await;
        wrong.retain(|field, _| !ANY_TEXT.contains(&&**field));
        if wrong.is_empty() { Ok(()) } else { Err(format!("{:#?}", wrong.values())) }
    })
    .await;
    let silent = silent().await;
    for field in ANY_TEXT {
        assert!(silent.contains_key(*field), "{field} does not take any text");
    }
}
