//! `mcpctl add` and `remove`: servers in the user's own configuration.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use mcp_hub_crds::command_line::source_of_command;
use mcp_hub_crds::manifest;
use mcp_hub_crds::{Resource, ResourceKey, ResourceKind, ServerName};
use serde_json::{Map, Value, json};

use crate::admin::{Name, OriginAnswer, OriginPath, Synced, path};
use crate::args::{Add, Remove};
use crate::commands::wait::{self, Of};
use crate::daemon;
use crate::error::{Error, Exit};
use crate::output;
use crate::places::Places;
use crate::target::local::Local;

pub(crate) async fn add(local: &Local, args: &Add) -> Result<(), Error> {
    let name: ServerName =
        args.name.parse().map_err(|error: mcp_hub_crds::names::InvalidServerName| invalid(&error, None))?;
    let key = server_key(name.as_str());
    let file = file_of(&local.places, &key);
    if file.exists() && !args.force {
        return Err(Error::Invalid {
            message: format!("server `{name}` is there already, in {}", file.display()),
            hint: Some("choose another name, or replace it with --force".to_owned()),
        });
    }
    let spec = match &args.url {
        Some(url) => {
            let mut remote = json!({"url": url});
            if !args.header.is_empty() {
                remote["headers"] = args.header.iter().map(|pair| assigned(pair)).collect::<Result<Value, Error>>()?;
            }
            json!({"source": {"remote": remote}})
        }
        None => command_spec(args)?,
    };
    let document = json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": name.as_str()}, "spec": spec,
    });
    // Read back as any manifest is, so that a wrong URL or variable is refused by the same rules.
    let documents =
        manifest::parse(&document.to_string(), Path::new("mcpctl add")).map_err(|errors| daemon::invalid(&errors))?;
    for document in &documents {
        document.warnings.iter().for_each(|warning| output::say(&format!("warning: {warning}")));
        store(&local.places, &document.resource, &file)?;
    }
    output::say(&format!("{name} added in {}", file.display()));
    reload(local).await?;
    wait::settle(local, args.wait, &Of::Named(vec![Name::of(&key)])).await
}

/// Servers that `add` makes are in the namespace of those that name none.
fn server_key(name: &str) -> ResourceKey {
    let namespace = mcp_hub_crds::resource::DEFAULT_NAMESPACE.to_owned();
    ResourceKey { kind: ResourceKind::MCPServer, namespace, name: name.to_owned() }
}

fn command_spec(args: &Add) -> Result<Value, Error> {
    let env: Vec<Value> = args.env.iter().map(|pair| assigned(pair)).collect::<Result<_, _>>()?;
    let literals: BTreeMap<String, String> = env
        .iter()
        .map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap_or_default().to_owned();
            (text("name"), text("value"))
        })
        .collect();
    let invocation = source_of_command(&args.command, &literals).map_err(|error| invalid(&error, error.hint()))?;
    invocation.warnings.iter().for_each(|warning| output::say(&format!("warning: {warning}")));
    let mut spec = Map::new();
    let mut set = |key: &str, value: Value| {
        if !matches!(&value, Value::Null) && value.as_array().is_none_or(|items| !items.is_empty()) {
            spec.insert(key.to_owned(), value);
        }
    };
    let encoded = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
    let mut source = encoded(serde_json::to_value(&invocation.source));
    // Manifests of this folder are not where the user stands now.
    if let Some(path) = source.pointer_mut("/command/path")
        && path.as_str().is_some_and(|path| path.contains('/'))
    {
        let given = path.as_str().unwrap_or_default().to_owned();
        *path = std::path::absolute(&given).map_err(Error::file("find", &given))?.to_string_lossy().into();
    }
    set("source", source);
    set("runtime", encoded(serde_json::to_value(invocation.runtime)));
    set("args", json!(invocation.args));
    // A reference to a secret wins over the empty literal that stood for it.
    let variables: Vec<Value> = invocation
        .env
        .iter()
        .map(|variable| {
            let secret =
                env.iter().find(|given| given["name"] == variable.name.as_str() && given.get("secretRef").is_some());
            secret.cloned().unwrap_or_else(|| encoded(serde_json::to_value(variable)))
        })
        .collect();
    set("env", json!(variables));
    set("volumes", encoded(serde_json::to_value(&invocation.volumes)));
    let here = std::env::current_dir().map_err(Error::file("find", "the current folder"))?;
    let folder = invocation.working_dir.map_or(here.clone(), |folder| here.join(folder));
    if !matches!(invocation.source, mcp_hub_crds::source::Source::Image(_)) {
        set("workingDir", folder.to_string_lossy().into());
    }
    if args.on_demand {
        set("lifecycle", json!({"mode": "onDemand"}));
    }
    Ok(Value::Object(spec))
}

/// `NAME=VALUE`, or `NAME=secret:SECRET/KEY`.
fn assigned(pair: &str) -> Result<Value, Error> {
    let Some((name, value)) = pair.split_once('=') else {
        // What was given is not shown: it may be the secret itself.
        return Err(Error::Invalid {
            message: "a variable or header is written NAME=VALUE".to_owned(),
            hint: Some("or NAME=secret:SECRET/KEY to take the value from a secret".to_owned()),
        });
    };
    Ok(match value.strip_prefix("secret:") {
        None => json!({"name": name, "value": value}),
        Some(secret) => {
            let (secret, key) = secret.split_once('/').unwrap_or((secret, "value"));
            json!({"name": name, "secretRef": {"name": secret, "key": key}})
        }
    })
}

fn invalid(error: &impl ToString, hint: Option<String>) -> Error {
    Error::Invalid { message: error.to_string(), hint }
}

/// The file of an object in the user's own configuration.
pub(crate) fn file_of(places: &Places, key: &ResourceKey) -> PathBuf {
    let ResourceKey { kind, namespace, name } = key;
    let name = match kind {
        ResourceKind::MCPServer => format!("{name}.yaml"),
        ResourceKind::MCPHub => format!("hub-{name}.yaml"),
    };
    // Namespaces hold no dots, and a namesake of another namespace is another object.
    places.servers().join(match namespace.as_str() {
        mcp_hub_crds::resource::DEFAULT_NAMESPACE => name,
        other => format!("{other}.{name}"),
    })
}

/// Writes a manifest whole or not at all.
pub(crate) fn store(places: &Places, resource: &Resource, file: &Path) -> Result<(), Error> {
    places.create()?;
    let write = || {
        let mut draft = tempfile::Builder::new().prefix(".draft").tempfile_in(places.servers())?;
        draft.write_all(resource.to_yaml().as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(file)?;
        Ok(())
    };
    write().map_err(Error::file("write", file))
}

/// Has a running daemon read the user's configuration now.
pub(crate) async fn reload(local: &Local) -> Result<(), Error> {
    match local.admin.post::<Synced>(path::ORIGINS, &OriginPath { path: local.places.servers() }).await {
        Ok(_) => Ok(()),
        Err(Error::NoDaemon) => {
            output::hint("`mcpctl up` starts it");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

pub(crate) async fn remove(local: &Local, args: &Remove) -> Result<(), Error> {
    discard(local, &server_key(&args.name)).await
}

/// Deletes the file of an object that `add` or `apply` made; what comes from another file is that file's business.
pub(crate) async fn discard(local: &Local, key: &ResourceKey) -> Result<(), Error> {
    let Local { places, admin } = local;
    let ResourceKey { kind, namespace, name } = key;
    let what = if *kind == ResourceKind::MCPServer { "server" } else { "hub" };
    let file = file_of(places, key);
    let query = format!("{}?kind={kind}&namespace={namespace}&name={name}", path::ORIGIN_OF);
    let origin = match admin.get::<OriginAnswer>(&query).await {
        Ok(answer) => Some(answer.path),
        Err(Error::NoDaemon) | Err(Error::Refused { exit: Exit::NotFound, .. }) => None,
        Err(error) => return Err(error),
    };
    match origin {
        Some(Some(path)) if path != places.servers() => {
            return Err(Error::Invalid {
                message: format!("{what} `{name}` comes from {}", path.display()),
                hint: Some(format!(
                    "take it out of that file, or end the whole with `mcpctl down -f {}`",
                    path.display()
                )),
            });
        }
        Some(None) => {
            return Err(Error::Invalid {
                message: format!("{what} `{name}` is there by itself while no manifest defines one"),
                hint: Some("apply a hub of your own to replace it".to_owned()),
            });
        }
        Some(Some(_)) | None => {}
    }
    match std::fs::remove_file(&file) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // It may stand in a file that the user wrote into the folder by hand.
            return Err(match origin {
                Some(_) => Error::Invalid {
                    message: format!("{what} `{name}` is in no file of its own in {}", places.servers().display()),
                    hint: Some("edit the file that names it".to_owned()),
                },
                None => Error::NotFound { what, name: name.clone(), hint: None },
            });
        }
        Err(error) => return Err(Error::file("delete", &file)(error)),
    }
    match admin.post::<Synced>(path::ORIGINS, &OriginPath { path: places.servers() }).await {
        Ok(_) | Err(Error::NoDaemon) => {}
        Err(error) => return Err(error),
    }
    output::say(&format!("{name} removed"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_clear_or_from_a_secret() {
        assert_eq!(assigned("A=b=c").unwrap(), json!({"name": "A", "value": "b=c"}));
        assert_eq!(
            assigned("A=secret:gh/token").unwrap(),
            json!({"name": "A", "secretRef": {"name": "gh", "key": "token"}})
        );
        assert_eq!(assigned("A=secret:gh").unwrap(), json!({"name": "A", "secretRef": {"name": "gh", "key": "value"}}));
        assert!(!assigned("hunter2").unwrap_err().to_string().contains("hunter2"));
    }
}
