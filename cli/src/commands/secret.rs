//! `mcpctl secret`: values in the encrypted file.

use std::io::{IsTerminal, Read};

use mcp_hub_crds::resource::DEFAULT_NAMESPACE;
use mcp_hub_secrets::{SecretBackend, SecretKey, SecretValue};
use serde_json::json;

use crate::admin::client::Admin;
use crate::admin::{Name, path};
use crate::args::{Format, Secret, SecretName};
use crate::error::Error;
use crate::output;
use crate::secret_backends;
use crate::target::local::Local;

pub(crate) async fn run(local: &Local, args: &Secret) -> Result<(), Error> {
    let Local { places, admin } = local;
    let file = secret_backends::file(places);
    match args {
        Secret::Set(name) => {
            places.create()?;
            file.set(&key(name), value()?).await?;
            output::say(&format!("{}/{} stored", name.name, name.key));
            tell(admin, &name.name).await
        }
        Secret::Delete(name) => {
            if !file.delete(&key(name)).await? {
                let name = format!("{}/{}", name.name, name.key);
                return Err(Error::NotFound { what: "secret", name, hint: None });
            }
            output::say(&format!("{}/{} deleted", name.name, name.key));
            tell(admin, &name.name).await
        }
        Secret::List(form) => {
            let keys = file.list().await?;
            match form.output {
                Format::Table => {
                    let rows = keys.into_iter().map(|key| vec![key.name, key.key]);
                    output::data(&output::table(&["NAME", "KEY"], rows.collect()))
                }
                format => {
                    let keys: Vec<_> = keys.iter().map(|key| json!({"name": key.name, "key": key.key})).collect();
                    output::document(format, &keys)
                }
            }
        }
    }
}

fn key(name: &SecretName) -> SecretKey {
    SecretKey { name: name.name.clone(), key: name.key.clone() }
}

/// From stdin, never from the command line, which other users of the machine can see.
fn value() -> Result<SecretValue, Error> {
    if std::io::stdin().is_terminal() {
        output::say("type the value, then Enter and Ctrl-D");
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).map_err(Error::file("read", "stdin"))?;
    // The line end that `echo` adds is not part of it.
    let text = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).unwrap_or(&text);
    if text.is_empty() {
        return Err(Error::Invalid {
            message: "an empty value is no secret".to_owned(),
            hint: Some("pipe it in: `mcpctl secret set NAME KEY < file`".to_owned()),
        });
    }
    Ok(SecretValue::new(text))
}

/// A running daemon restarts just the servers that use it.
async fn tell(admin: &Admin, name: &str) -> Result<(), Error> {
    let name = Name { namespace: DEFAULT_NAMESPACE.to_owned(), name: name.to_owned() };
    match admin.post::<()>(path::SECRETS, &name).await {
        Ok(()) | Err(Error::NoDaemon) => Ok(()),
        Err(error) => Err(error),
    }
}
