//! Where in a document a value stands: `spec.env[2].name`.

use std::fmt;

/// Path from a document's root to one of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    Field(String),
    Index(usize),
}

impl FieldPath {
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        self.join(Segment::Field(name.to_owned()))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.join(Segment::Index(index))
    }

    fn join(&self, segment: Segment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }

    /// Reads the notation of CEL errors, `spec.env[2]`. Only paths of declared properties appear there, and no declared
    /// property has a dot in its name.
    pub(crate) fn from_dotted(text: &str) -> Self {
        let mut segments = Vec::new();
        for part in text.split(['.', '[']).filter(|part| !part.is_empty()) {
            segments.push(match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
                Some(index) => Segment::Index(index),
                None => Segment::Field(part.to_owned()),
            });
        }
        Self(segments)
    }

    /// Reads a JSON pointer, `/spec/env/2`. `value` tells whether a number is a list's index or a map's key.
    pub(crate) fn from_pointer(pointer: &str, value: &serde_json::Value) -> Self {
        let mut segments = Vec::new();
        let mut at = Some(value);
        for part in pointer.split('/').skip(1) {
            let name = part.replace("~1", "/").replace("~0", "~");
            match (at, name.parse::<usize>()) {
                (Some(serde_json::Value::Array(items)), Ok(index)) => {
                    at = items.get(index);
                    segments.push(Segment::Index(index));
                }
                _ => {
                    at = at.and_then(|value| value.get(&name));
                    segments.push(Segment::Field(name));
                }
            }
        }
        Self(segments)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Field(name) if name.contains(['.', '[', ']', ' ', '"']) || name.is_empty() => {
                    write!(f, "[{name:?}]")?;
                }
                Segment::Field(name) if position == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_reads_as_people_write_it() {
        let path = FieldPath::default().field("spec").field("env").index(2).field("name");
        assert_eq!(path.to_string(), "spec.env[2].name");
        assert_eq!(FieldPath::from_dotted("spec.env[2].name"), path);
        assert_eq!(FieldPath::from_pointer("/spec/env/2/name", &json!({"spec": {"env": [0, 1, {}]}})), path);
        assert_eq!(FieldPath::default().field("metadata").field("a.b/c").to_string(), r#"metadata["a.b/c"]"#);
    }

    #[test]
    fn a_number_is_an_index_only_in_a_list() {
        let path = FieldPath::from_pointer("/labels/2", &json!({"labels": {"2": "x"}}));
        assert_eq!(path, FieldPath::default().field("labels").field("2"));
    }
}
