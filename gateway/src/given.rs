//! Secrets that a configuration names and does not hold: `${NAME}` in an upstream's headers, for whoever cannot write a
//! file that holds them (Compose, Swarm).

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use mcp_hub_dataplane_api::gateway::{GatewayConfig, Target};
use mcp_hub_dataplane_api::secret::SecretString;

/// Where named secrets are.
#[derive(Debug)]
pub(crate) struct Given {
    /// A file for each; what is not there is looked for in the environment.
    folder: PathBuf,
}

/// A header that cannot be written out. The header's own text is not shown: it may hold secrets in clear.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotGiven {
    #[error("server {server} needs {name}, which is neither a file in {folder} nor an environment variable", folder = .folder.display())]
    Missing { server: String, name: String, folder: PathBuf },
    #[error("server {server} needs {path}, which cannot be read: {source}", path = .path.display())]
    Unreadable { server: String, path: PathBuf, source: io::Error },
    #[error("header {header} of server {server} has a `$` that begins neither `${{NAME}}` nor `$$`")]
    Syntax { server: String, header: String },
}

impl Given {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Writes out all headers: `${NAME}` is the secret of that name, `$$` a dollar sign.
    pub(crate) fn write_out(&self, config: &mut GatewayConfig) -> Result<(), NotGiven> {
        for upstream in &mut config.upstreams {
            let Target::Available { headers, .. } = &mut upstream.target else { continue };
            for (header, value) in headers {
                let written = self.written_out(&upstream.name, header, value.expose_secret())?;
                *value = SecretString::new(written);
            }
        }
        Ok(())
    }

    fn written_out(&self, server: &str, header: &str, text: &str) -> Result<String, NotGiven> {
        let syntax = || NotGiven::Syntax { server: server.to_owned(), header: header.to_owned() };
        let mut written = String::new();
        let mut rest = text;
        while let Some((plain, tail)) = rest.split_once('$') {
            written.push_str(plain);
            rest = if let Some(tail) = tail.strip_prefix('$') {
                written.push('$');
                tail
            } else {
                let (name, tail) = tail.strip_prefix('{').and_then(|tail| tail.split_once('}')).ok_or_else(syntax)?;
                if !is_name(name) {
                    return Err(syntax());
                }
                written.push_str(&self.value(server, name)?);
                tail
            };
        }
        written.push_str(rest);
        Ok(written)
    }

    fn value(&self, server: &str, name: &str) -> Result<String, NotGiven> {
        let path = self.folder.join(name);
        let value = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => std::env::var(name).map_err(|_| {
                let (server, name) = (server.to_owned(), name.to_owned());
                NotGiven::Missing { server, name, folder: self.folder.clone() }
            })?,
            // Whatever else is in the environment is not what somebody put there.
            Err(source) => return Err(NotGiven::Unreadable { server: server.to_owned(), path, source }),
        };
        // What editors and `echo` put behind a value is none of it.
        Ok(value.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// As variables are named; nothing that leads out of the folder.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_secrets_and_nothing_else_of_it_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("TOKEN"), "s3cr$t\n").unwrap();
        let given = Given::new(folder.path().to_owned());
        let written = |text: &str| given.written_out("a", "h", text).map_err(|error| error.to_string());
        assert_eq!(written("Bearer ${TOKEN}").as_deref(), Ok("Bearer s3cr$t"));
        assert_eq!(written("$$5 ${TOKEN}${TOKEN} $${TOKEN}").as_deref(), Ok("$5 s3cr$ts3cr$t ${TOKEN}"));
        assert_eq!(written("plain").as_deref(), Ok("plain"));
        // Cargo sets it for every test.
        assert_eq!(written("${CARGO_PKG_NAME}").as_deref(), Ok("mcp-hub-gateway"));
        let folder = folder.path();
        let missing = format!(
            "server a needs NO_SUCH, which is neither a file in {} nor an environment variable",
            folder.display()
        );
        assert_eq!(written("${NO_SUCH}"), Err(missing));
        // A file that is there counts, also if it cannot be read.
        std::fs::create_dir(folder.join("CARGO_PKG_VERSION")).unwrap();
        let unreadable = written("${CARGO_PKG_VERSION}").unwrap_err();
        assert!(unreadable.contains("CARGO_PKG_VERSION, which cannot be read: "), "{unreadable}");
        for wrong in ["$TOKEN", "${TOKEN", "${../TOKEN}", "${}", "end $"] {
            let syntax = "header h of server a has a `$` that begins neither `${NAME}` nor `$$`";
            assert_eq!(written(wrong), Err(syntax.to_owned()), "{wrong}");
        }
    }
}
