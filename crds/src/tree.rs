//! YAML and JSON text as a tree in which every key and value knows its line and column. Depth, nodes (aliases expanded)
//! and documents are bounded.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::field_path::{FieldPath, Segment};

/// Deepest nesting that is read. A pod template in its resource nests about 20 deep; a level takes about 35 KiB of stack
/// in an unoptimised build, and threads have 2 MiB.
const MAX_DEPTH: usize = 32;
/// Nodes of one document, aliases expanded: what stops an alias bomb before it takes memory.
const MAX_NODES: usize = 100_000;
/// Documents of one file.
pub const MAX_DOCUMENTS: usize = 10_000;

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        let bounded = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
        Self { line: bounded(location.line()), column: bounded(location.column()) }
    }
}

/// The text is no YAML, or exceeds a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    pub message: String,
    pub at: Option<Position>,
}

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    pub at: Position,
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub enum Kind {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A member of a mapping.
#[derive(Debug)]
pub struct Entry {
    pub key: String,
    pub at: Position,
    pub value: Node,
}

/// A key that stands twice in one mapping.
#[derive(Debug, PartialEq, Eq)]
pub struct Duplicate {
    pub path: FieldPath,
    pub at: Position,
    pub first: Position,
}

/// All documents that are not empty, and the error that ended reading, if one did.
pub fn documents(text: &str) -> (Vec<Node>, Vec<SyntaxError>) {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH, max_nodes: MAX_NODES, max_documents: MAX_DOCUMENTS + 1 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        // Reported by us, all of them and with both places.
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        // `yes`, `0755` and `1_000` mean different things to different YAML readers: text here, so that a field of
        // another type refuses them.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let mut reader = text.as_bytes();
    let (mut nodes, mut errors) = (Vec::new(), Vec::new());
    for document in serde_saphyr::read_with_options::<_, Spanned<Kind>>(&mut reader, options) {
        match document {
            Ok(root) if nodes.len() < MAX_DOCUMENTS => nodes.push(Node::from(root)),
            Ok(root) => {
                let message = format!("more than {MAX_DOCUMENTS} documents in one file");
                errors.push(SyntaxError { message, at: Some(root.referenced.into()) });
                break;
            }
            Err(error) => {
                errors.push(SyntaxError {
                    message: message_of(&error),
                    at: error.location().filter(|location| location.line() > 0).map(Position::from),
                });
                // Each error costs at most a document; this bounds what is kept of a file full of them.
                if errors.len() >= 100 {
                    break;
                }
            }
        }
    }
    (nodes, errors)
}

/// The library's message without the place, which is told apart.
fn message_of(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let end = [" at line ", "\n"].iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
    text[..end].trim_end_matches(['.', ':', ',', ' ']).to_owned()
}

impl From<Spanned<Kind>> for Node {
    fn from(spanned: Spanned<Kind>) -> Self {
        Self { at: spanned.referenced.into(), kind: spanned.value }
    }
}

impl Node {
    /// The value as JSON. A member whose value is null counts as not given, as on an API server, which prunes it.
    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Kind::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_value()))
                    .filter(|(_, value)| !value.is_null())
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// The members of a mapping; of anything else none.
    pub fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Map(entries) => entries,
            Kind::Scalar(_) | Kind::List(_) => &[],
        }
    }

    /// The first member of this name.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// Where a field stands: its key in a mapping, the item in a list. For a field that is not there, where the nearest
    /// one around it stands.
    pub fn find(&self, path: &FieldPath) -> Position {
        let (mut node, mut at) = (self, self.at);
        for segment in path.segments() {
            match (segment, &node.kind) {
                (Segment::Field(name), Kind::Map(_)) => match node.get(name) {
                    Some(entry) => (node, at) = (&entry.value, entry.at),
                    None => break,
                },
                (Segment::Index(index), Kind::List(items)) => match items.get(*index) {
                    Some(item) => (node, at) = (item, item.at),
                    None => break,
                },
                _ => break,
            }
        }
        at
    }

    /// Keys that stand twice in one mapping, anywhere below.
    pub fn duplicates(&self) -> Vec<Duplicate> {
        let mut found = Vec::new();
        self.collect_duplicates(&FieldPath::default(), &mut found);
        found
    }

    fn collect_duplicates(&self, path: &FieldPath, found: &mut Vec<Duplicate>) {
        match &self.kind {
            Kind::Scalar(_) => {}
            Kind::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.collect_duplicates(&path.index(index), found);
                }
            }
            Kind::Map(entries) => {
                let mut seen = std::collections::HashMap::new();
                for entry in entries {
                    let path = path.field(&entry.key);
                    entry.value.collect_duplicates(&path, found);
                    if let Some(first) = seen.get(entry.key.as_str()) {
                        found.push(Duplicate { path, at: entry.at, first: *first });
                    } else {
                        seen.insert(entry.key.as_str(), entry.at);
                    }
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list or a scalar")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Kind, E> {
        match Number::from_f64(value) {
            Some(number) => Ok(Kind::Scalar(Value::Number(number))),
            None => Err(E::custom("a number must be finite")),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        Kind::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Kind>>()? {
            items.push(Node::from(item));
        }
        Ok(Kind::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<Kind>>()? {
            let name = match key.value {
                Kind::Scalar(Value::String(text)) => text,
                Kind::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
                Kind::Scalar(_) | Kind::List(_) | Kind::Map(_) => return Err(A::Error::custom("a key must be text")),
            };
            let value = Node::from(map.next_value::<Spanned<Kind>>()?);
            entries.push(Entry { key: name, at: key.referenced.into(), value });
        }
        Ok(Kind::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Node {
        let (mut nodes, errors) = documents(text);
        assert_eq!(errors, []);
        nodes.remove(0)
    }

    #[test]
    fn every_field_knows_its_place() {
        let node = read("a: 1\nb:\n  - x\n  - c: [1, 2]\n");
        let path = FieldPath::default().field("b").index(1).field("c").index(1);
        assert_eq!(node.find(&path), Position { line: 4, column: 12 });
        assert_eq!(node.find(&FieldPath::default().field("b").field("none")), Position { line: 2, column: 1 });
        assert_eq!(node.to_value(), json!({"a": 1, "b": ["x", {"c": [1, 2]}]}));
    }

    #[test]
    fn a_member_without_a_value_is_not_given() {
        assert_eq!(read("a:\nb: ~\nc: 1").to_value(), json!({"c": 1}));
    }

    #[test]
    fn ambiguous_scalars_are_text() {
        assert_eq!(read("[yes, 0755, 1_000, true, 7]").to_value(), json!(["yes", "0755", "1_000", true, 7]));
    }

    #[test]
    fn every_duplicate_key_is_found_with_both_places() {
        let places: Vec<_> = read("a: 1\nb: {c: 1, c: 2}\na: 2\n")
            .duplicates()
            .iter()
            .map(|d| format!("{} {}:{} {}:{}", d.path, d.first.line, d.first.column, d.at.line, d.at.column))
            .collect();
        assert_eq!(places, ["b.c 2:5 2:11", "a 1:1 3:1"]);
    }

    #[test]
    fn an_alias_bomb_and_a_deep_document_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert_eq!(documents(&bomb).1.len(), 1);
        assert_eq!(documents(&"[".repeat(5_000)).1.len(), 1);
        for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "x")] {
            let nested =
                |depth: usize| format!("{}{}", open.repeat(depth), close.repeat(if open == "- " { 1 } else { depth }));
            assert_eq!(documents(&nested(MAX_DEPTH)).1, [], "{open}");
            assert_eq!(documents(&nested(MAX_DEPTH + 1)).1.len(), 1, "{open}");
            assert_eq!(documents(&nested(250)).1.len(), 1, "{open}");
        }
    }

    #[test]
    fn documents_after_ten_thousand_are_refused() {
        let (nodes, errors) = documents(&"--- {a: 1}\n".repeat(MAX_DOCUMENTS + 1));
        assert_eq!(nodes.len(), MAX_DOCUMENTS);
        assert_eq!(errors[0].message, "more than 10000 documents in one file");
    }
}
