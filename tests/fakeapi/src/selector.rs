//! Label and field selectors of lists and watches.

use serde_json::Value;

use crate::kind::Kind;

/// Which objects a list or watch is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

#[derive(Debug, Clone, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Debug, Clone, PartialEq)]
struct FieldTerm {
    /// Such as `["metadata", "name"]`.
    path: Vec<String>,
    value: String,
    equal: bool,
}

impl Selector {
    /// From the texts of a query.
    ///
    /// # Errors
    /// A sentence about what cannot be read, or about a field that the kind cannot be selected by.
    pub(crate) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, String> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(kind, fields)? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|value| values.iter().all(|one| one != value)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        }) && self.fields.iter().all(|term| {
            let value = term.path.iter().fold(object, |value, step| &value[step.as_str()]);
            let text = value
                .as_str()
                .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned);
            (text == term.value) == term.equal
        })
    }
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    terms(text)
        .into_iter()
        .map(|term| label_term(term).ok_or_else(|| format!("unable to parse requirement: {term:?}")))
        .collect()
}

fn label_term(term: &str) -> Option<Requirement> {
    let key = |text: &str| {
        let key = text.trim();
        (!key.is_empty() && !key.contains(char::is_whitespace)).then(|| key.to_owned())
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((rest, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (name, operator) = rest.trim().rsplit_once(char::is_whitespace)?;
        return match operator {
            "in" => Some(Requirement::In(key(name)?, values)),
            "notin" => Some(Requirement::NotIn(key(name)?, values)),
            _ => None,
        };
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Some(Requirement::NotIn(key(name)?, one(value)));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Some(Requirement::In(key(name)?, one(value)));
    }
    match term.strip_prefix('!') {
        Some(name) => Some(Requirement::Absent(key(name)?)),
        None => Some(Requirement::Exists(key(term)?)),
    }
}

/// Splits at the commas outside of parentheses.
fn terms(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found.into_iter().map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn parse_fields(kind: &Kind, text: &str) -> Result<Vec<FieldTerm>, String> {
    let of_kind: &[&str] = match kind.name.as_str() {
        "Pod" => &["spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"],
        "Secret" => &["type"],
        "Namespace" => &["status.phase"],
        "Event" => &["regarding.kind", "regarding.name", "regarding.namespace", "regarding.uid", "reason", "type"],
        "ReplicaSet" => &["status.replicas"],
        _ => &[],
    };
    terms(text)
        .into_iter()
        .map(|term| {
            let (name, value, equal) = if let Some((name, value)) = term.split_once("!=") {
                (name, value, false)
            } else if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (name, value, true)
            } else {
                return Err(format!("invalid selector: '{term}'; can't understand '{term}'"));
            };
            let known = ["metadata.name", "metadata.namespace"].contains(&name) || of_kind.contains(&name);
            if !known {
                return Err(format!("field label not supported: {name}"));
            }
            Ok(FieldTerm { path: name.split('.').map(str::to_owned).collect(), value: value.to_owned(), equal })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::Registry;

    #[test]
    fn each_operator_selects_as_documented() {
        let object = json!({"metadata": {"name": "x", "labels": {"app": "web", "tier": "front"}}});
        let kind = Registry::default().by_name("Pod").unwrap();
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app == web,tier!=back", "", true),
            ("app=api", "", false),
            ("app in (web, api),tier", "", true),
            ("app notin (web,api)", "", false),
            ("!gone", "", true),
            ("!app", "", false),
            ("gone!=x", "", true),
            ("", "metadata.name=x", true),
            ("", "metadata.name!=x", false),
            ("", "spec.nodeName=", true),
        ] {
            let selector = Selector::parse(&kind, labels, fields).unwrap();
            assert_eq!(selector.matches(&object), expected, "{labels} {fields}");
        }
        assert!(Selector::parse(&kind, "app in web", "").is_err());
        assert!(Selector::parse(&kind, "", "spec.color=red").unwrap_err().contains("spec.color"));
    }
}
