//! What the operator wrote, as the API server tells.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde_json::Value;

use crate::shell::Error;

/// Begins the operator's user agent.
const OPERATOR: &str = "mcp-hub-operator/";

/// The audit log: one JSON document a line, which is there when the request is answered.
#[derive(Debug)]
pub(super) struct Audit(PathBuf);

/// Requests by what they wrote: `create events`, `patch mcpservers/status`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts(pub(super) BTreeMap<String, usize>);

impl Audit {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// A place in the log, for [`Audit::since`].
    pub(super) fn position(&self) -> u64 {
        std::fs::metadata(&self.0).map_or(0, |file| file.len())
    }

    /// What the operator has written since; leases apart.
    pub(super) fn since(&self, position: u64) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        for entry in self.entries(position)? {
            *counts.0.entry(what(&entry)).or_default() += 1;
        }
        Ok(counts)
    }

    /// The operator's writes since, in their order.
    pub(super) fn entries(&self, position: u64) -> Result<Vec<Value>, Error> {
        let failed = |source| Error::File { action: "read", path: self.0.clone(), source };
        let mut file = std::fs::File::open(&self.0).map_err(failed)?;
        file.seek(SeekFrom::Start(position)).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // The last line may be half written; it is somebody's whose request is not answered yet.
        let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(entries.filter(is_counted).collect())
    }
}

impl Counts {
    pub(super) fn total(&self) -> usize {
        self.0.values().sum()
    }

    pub(super) fn events(&self) -> usize {
        self.all(|what| what.ends_with(" events"))
    }

    pub(super) fn of_hubs(&self) -> usize {
        self.all(is_of_hubs)
    }

    /// All but Events and what is written for hubs.
    pub(super) fn of_servers(&self) -> usize {
        self.total() - self.events() - self.of_hubs()
    }

    fn all(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        self.0.iter().filter(|(what, _)| is_meant(what)).map(|(_, count)| count).sum()
    }
}

/// Servers have no Secret of the operator's making.
fn is_of_hubs(what: &str) -> bool {
    what.ends_with(" secrets") || what.ends_with(" mcphubs/status")
}

fn is_counted(entry: &Value) -> bool {
    let by_operator = entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with(OPERATOR));
    by_operator && entry["objectRef"]["resource"] != "leases"
}

fn what(entry: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &entry["objectRef"];
    match object["subresource"].as_str() {
        Some(subresource) => format!("{} {}/{subresource}", text(&entry["verb"]), text(&object["resource"])),
        None => format!("{} {}", text(&entry["verb"]), text(&object["resource"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_writes_are_counted_by_what_they_wrote() {
        let folder = shell_folder();
        let path = folder.join("audit.log");
        let entry = |agent: &str, verb: &str, object: &str| {
            format!(r#"{{"userAgent":"{agent}","verb":"{verb}","objectRef":{object}}}{}"#, '\n')
        };
        let before = entry("mcp-hub-operator/1", "patch", r#"{"resource":"deployments"}"#);
        let log = [
            before.clone(),
            entry("mcp-hub-operator/1", "patch", r#"{"resource":"mcpservers","subresource":"status"}"#),
            entry("mcp-hub-operator/1", "patch", r#"{"resource":"mcphubs","subresource":"status"}"#),
            entry("mcp-hub-operator/1", "patch", r#"{"resource":"secrets"}"#),
            entry("mcp-hub-operator/1", "create", r#"{"resource":"events"}"#),
            entry("mcp-hub-operator/1", "update", r#"{"resource":"leases"}"#),
            entry("kubectl/1", "patch", r#"{"resource":"deployments"}"#),
            "{\"userAgent\":".to_owned(),
        ];
        std::fs::write(&path, log.concat()).unwrap();
        let counts = Audit::at(path).since(before.len() as u64).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!((counts.total(), counts.of_servers(), counts.of_hubs(), counts.events()), (4, 1, 2, 1));
    }

    fn shell_folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-audit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}
