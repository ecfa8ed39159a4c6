//! Configurations of MCP clients, each brought into the form of `.mcp.json` and read as that.

use std::path::Path;

use mcp_hub_crds::command_line::secret_named;
use mcp_hub_crds::manifest::{self, ManifestErrors};
use mcp_hub_crds::source::Source;
use mcp_hub_crds::{FieldPath, MCPServer, Resource};
use serde_json::{Map, Value, json};

use super::environment::{from_secret, secret_for};
use super::secrets::{self, is_secret};
use super::{Imported, Remark, Weight};

/// Where clients keep their servers, and whose the section is.
pub(super) const SECTIONS: [(&str, &str); 5] = [
    ("mcpServers", "Claude, Cursor, Windsurf, Gemini CLI, Copilot CLI, LM Studio, Cline, Continue"),
    ("servers", "VS Code"),
    ("context_servers", "Zed"),
    ("mcp_servers", "Codex"),
    ("extensions", "Goose"),
];

/// `None` if no section of a client is in it.
pub(super) fn read(file: &Path, config: &Value) -> Option<Imported> {
    let (section, servers) = SECTIONS.into_iter().find_map(|(section, _)| {
        let servers = config.get(section)?;
        (servers.is_object() || servers.is_array()).then_some((section, servers))
    })?;
    let mut reading = Reading { file, imported: Imported::default() };
    let path = FieldPath::default().field(section);
    match servers {
        Value::Object(servers) => {
            for (name, entry) in servers {
                reading.server(&path.field(name), section, name, entry);
            }
        }
        // Continue has a list.
        _ => {
            for (index, entry) in servers.as_array().into_iter().flatten().enumerate() {
                let name = entry["name"].as_str().unwrap_or_default().to_owned();
                reading.server(&path.index(index), section, &name, entry);
            }
        }
    }
    Some(reading.imported)
}

struct Reading<'a> {
    file: &'a Path,
    imported: Imported,
}

impl Reading<'_> {
    fn remark(&mut self, path: FieldPath, weight: Weight, text: String, hint: Option<String>) {
        self.imported.remarks.push(Remark { file: self.file.to_owned(), at: None, path, text, hint, weight });
    }

    fn miss(&mut self, path: FieldPath, text: &str) {
        self.remark(path, Weight::NotTaken, text.to_owned(), None);
    }

    fn server(&mut self, path: &FieldPath, section: &str, name: &str, entry: &Value) {
        let Some(entry) = entry.as_object() else {
            return self.miss(path.clone(), "expected a mapping");
        };
        if section == "extensions"
            && matches!(entry.get("type").and_then(Value::as_str), Some("builtin" | "platform" | "frontend"))
        {
            return self.remark(path.clone(), Weight::Told, "no MCP server: it is the client's own".to_owned(), None);
        }
        let Common { entry, later, .. } = self.common(path, entry.clone());
        let one = json!({"mcpServers": {name: entry}});
        let documents = match manifest::parse(&one.to_string(), Path::new("import.json")) {
            Ok(documents) => documents,
            Err(ManifestErrors(errors)) => {
                for error in errors {
                    // Its first two steps are those of the form that was made here.
                    let inner =
                        error.path.segments().iter().skip(2).fold(path.clone(), |path, segment| match segment {
                            mcp_hub_crds::field_path::Segment::Field(name) => path.field(name),
                            mcp_hub_crds::field_path::Segment::Index(index) => path.index(*index),
                        });
                    let hint = error.hint();
                    self.remark(inner, Weight::NotTaken, error.problem.to_string(), hint);
                }
                return;
            }
        };
        for document in documents {
            let Resource::Server(mut server) = document.resource else { continue };
            // Those of values in clear are said below, with what is done about them.
            for warning in document.warnings.into_iter().filter(|warning| !warning.contains("stands here in clear")) {
                self.remark(path.clone(), Weight::Told, warning, None);
            }
            self.hide(path, &mut server);
            let mut value = serde_json::to_value(&server).unwrap_or_default();
            for (key, more) in &later {
                value["spec"][key] = more.clone();
            }
            let is_taken = self.imported.servers.iter().any(|other| other.metadata.name == server.metadata.name);
            match super::checked(&value) {
                _ if is_taken => {
                    let hint = Some("rename one of the two".to_owned());
                    self.remark(path.clone(), Weight::NotTaken, "another server has this name".to_owned(), hint);
                }
                Ok(server) => self.imported.servers.push(server),
                Err(errors) => {
                    for error in errors.0 {
                        let text = format!("no manifest can be made of it: {}: {}", error.path, error.problem);
                        self.remark(path.clone(), Weight::NotTaken, text, error.hint());
                    }
                }
            }
        }
    }

    /// An entry with the words of `.mcp.json`, and fields of the spec that those have no word for.
    fn common(&mut self, path: &FieldPath, mut entry: Map<String, Value>) -> Common {
        let mut common = Common::default();
        // Zed once nested the command.
        if entry.get("command").is_some_and(Value::is_object)
            && let Some(Value::Object(nested)) = entry.remove("command")
        {
            let named = |key: String| if key == "path" { "command".to_owned() } else { key };
            entry.extend(nested.into_iter().map(|(key, value)| (named(key), value)));
        }
        for (key, value) in entry {
            match key.as_str() {
                // What clients write for nothing.
                _ if value.is_null() => {}
                // Goose.
                "cmd" => common.set("command", value),
                "env" | "envs" => common.env.extend(self.members(&path.field(&key), value)),
                "headers" | "http_headers" => common.headers.extend(self.members(&path.field(&key), value)),
                "uri" => common.set("url", value),
                "env_keys" => {
                    for name in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
                        common.env.insert(name.to_owned(), format!("${{{name}}}").into());
                    }
                }
                // Windsurf and Gemini CLI.
                "serverUrl" | "httpUrl" => common.set("url", value),
                // Codex.
                "bearer_token_env_var" => {
                    if let Some(name) = value.as_str() {
                        let text =
                            format!("the secret `{}` must hold `Bearer ` and the token", secret_named(name).name);
                        self.remark(path.field(&key), Weight::Told, text, None);
                        common.header("Authorization", format!("${{{name}}}"));
                    }
                }
                "env_http_headers" => {
                    for (name, variable) in self.members(&path.field(&key), value) {
                        match variable.as_str() {
                            Some(variable) => common.header(&name, format!("${{{variable}}}")),
                            None => self.miss(path.field(&key).field(&name), "expected the name of a variable"),
                        }
                    }
                }
                "requestOptions" => {
                    for (option, value) in self.members(&path.field(&key), value) {
                        let path = path.field(&key).field(&option);
                        match option.as_str() {
                            "headers" => common.headers.extend(self.members(&path, value)),
                            _ => self.miss(path, "it has no counterpart"),
                        }
                    }
                }
                "enabled" => common.set("disabled", (value == false).into()),
                "enabled_tools" | "includeTools" => common.tools("allow", value),
                "disabled_tools" | "excludeTools" => common.tools("deny", value),
                "startup_timeout_sec" => common.timeout("start", &value),
                "tool_timeout_sec" => common.timeout("call", &value),
                "type" if value == "streamable_http" => common.set("type", "http".into()),
                // What people read, and what a client asks its user.
                "name" | "display_name" | "bundled" | "source" | "trust" | "available_tools" | "settings"
                | "faviconUrl" => {
                    if key != "name" {
                        let text = "it is the client's own and has no effect here".to_owned();
                        self.remark(path.field(&key), Weight::Told, text, None);
                    }
                }
                _ => common.set(&key, value),
            }
        }
        for (key, section) in [("env", &mut common.env), ("headers", &mut common.headers)] {
            if !section.is_empty() {
                common.entry.insert(key.to_owned(), Value::Object(std::mem::take(section)));
            }
        }
        common
    }

    /// The members of a mapping; what is none is said.
    fn members(&mut self, path: &FieldPath, value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            _ => {
                self.miss(path.clone(), "expected a mapping");
                Map::new()
            }
        }
    }

    /// Takes values out that look like secrets, and says which secrets are to be set instead.
    fn hide(&mut self, path: &FieldPath, server: &mut MCPServer) {
        let why = "looks like a secret and stands in the file in clear; it is not copied";
        for variable in server.spec.env.iter_mut().flatten() {
            if variable.value.as_ref().is_some_and(|value| is_secret(&variable.name, value)) {
                let secret = secret_for(&variable.name);
                let text = from_secret(&variable.name, why, &secret);
                self.remark(path.field("env").field(&variable.name), Weight::Told, text, None);
                (variable.value, variable.secret_ref) = (None, Some(secret));
            }
        }
        let name = server.metadata.name.clone().unwrap_or_default();
        if let Source::Remote(remote) = &mut server.spec.source {
            if let Some(bare) = secrets::bare_url(&remote.url) {
                let text = "its login, or a parameter, looks like a secret and is left out".to_owned();
                let hint = Some("give it as a header with a secretRef, if the server takes one".to_owned());
                self.remark(path.field("url"), Weight::NotTaken, text, hint);
                remote.url = bare;
            }
            for header in remote.headers.iter_mut().flatten() {
                if header.value.as_ref().is_some_and(|value| is_secret(&header.name, value)) {
                    let secret = secret_named(&format!("{name}-{}", header.name));
                    let text = from_secret(&header.name, why, &secret);
                    self.remark(path.field("headers").field(&header.name), Weight::Told, text, None);
                    (header.value, header.secret_ref) = (None, Some(secret));
                }
            }
        }
        if let Some(args) = server.spec.args.take() {
            let (kept, places) = secrets::without(args);
            for place in places {
                let hint = Some(secrets::ARGUMENT_HINT.to_owned());
                self.remark(path.field("args").index(place), Weight::NotTaken, secrets::ARGUMENT.to_owned(), hint);
            }
            server.spec.args = Some(kept).filter(|args| !args.is_empty());
        }
    }
}

/// See [`Reading::common`].
#[derive(Default)]
struct Common {
    entry: Map<String, Value>,
    /// Until they are put into the entry.
    env: Map<String, Value>,
    headers: Map<String, Value>,
    later: Map<String, Value>,
}

impl Common {
    fn set(&mut self, key: &str, value: Value) {
        self.entry.insert(key.to_owned(), value);
    }

    fn header(&mut self, name: &str, value: String) {
        self.headers.insert(name.to_owned(), value.into());
    }

    fn tools(&mut self, list: &str, names: Value) {
        let tools = self.later.entry("tools").or_insert_with(|| json!({}));
        tools[list] = names;
    }

    fn timeout(&mut self, which: &str, seconds: &Value) {
        let Some(seconds) = seconds.as_f64().filter(|seconds| *seconds > 0.0) else { return };
        let timeouts = self.later.entry("timeouts").or_insert_with(|| json!({}));
        // A duration has six digits.
        timeouts[which] = match seconds.fract() == 0.0 {
            true => format!("{seconds}s"),
            false => format!("{}ms", (seconds * 1000.0).round()),
        }
        .into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sections_are_told_apart_from_other_files() {
        let file = Path::new("x.json");
        for (section, _) in SECTIONS {
            assert!(read(file, &json!({section: {}})).is_some(), "{section}");
        }
        assert!(read(file, &json!({"name": "x"})).is_none());
        assert!(read(file, &json!({"servers": "x"})).is_none());
    }
}
