//! Secrets that a configuration names and does not hold: `${NAME}` in an upstream's headers, for whoever cannot write a
//! file that holds them (Compose, Swarm).

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
                let written = self.written_out(value.expose_secret(), |problem| match problem {
                    Some(name) => NotGiven::Missing {
                        server: upstream.name.clone(),
                        name: name.to_owned(),
                        folder: self.folder.clone(),
                    },
                    None => NotGiven::Syntax { server: upstream.name.clone(), header: header.clone() },
                })?;
                *value = SecretString::new(written);
            }
        }
        Ok(())
    }

    /// `problem` is told the name that is missing, or nothing of text that cannot be read.
    fn written_out(&self, text: &str, problem: impl Fn(Option<&str>) -> NotGiven) -> Result<String, NotGiven> {
        let mut written = String::new();
        let mut rest = text;
        while let Some((plain, tail)) = rest.split_once('$') {
            written.push_str(plain);
            rest = if let Some(tail) = tail.strip_prefix('$') {
                written.push('$');
                tail
            } else {
                let (name, tail) =
                    tail.strip_prefix('{').and_then(|tail| tail.split_once('}')).ok_or_else(|| problem(None))?;
                if !is_name(name) {
                    return Err(problem(None));
                }
                written.push_str(&self.value(name).ok_or_else(|| problem(Some(name)))?);
                tail
            };
        }
        written.push_str(rest);
        Ok(written)
    }

    fn value(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join(name)).ok();
        let value = text.or_else(|| std::env::var(name).ok())?;
        // What editors and `echo` put behind a value is none of it.
        Some(value.trim_end_matches(['\r', '\n']).to_owned())
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
        let problem = |name: Option<&str>| match name {
            Some(name) => {
                NotGiven::Missing { server: "a".to_owned(), name: name.to_owned(), folder: "/run/secrets".into() }
            }
            None => NotGiven::Syntax { server: "a".to_owned(), header: "h".to_owned() },
        };
        let written = |text: &str| given.written_out(text, problem).map_err(|error| error.to_string());
        assert_eq!(written("Bearer ${TOKEN}").as_deref(), Ok("Bearer s3cr$t"));
        assert_eq!(written("$$5 ${TOKEN}${TOKEN} $${TOKEN}").as_deref(), Ok("$5 s3cr$ts3cr$t ${TOKEN}"));
        assert_eq!(written("plain").as_deref(), Ok("plain"));
        // Cargo sets it for every test.
        assert_eq!(written("${CARGO_PKG_NAME}").as_deref(), Ok("mcp-hub-gateway"));
        let missing = "server a needs NO_SUCH, which is neither a file in /run/secrets nor an environment variable";
        assert_eq!(written("${NO_SUCH}"), Err(missing.to_owned()));
        for wrong in ["$TOKEN", "${TOKEN", "${../TOKEN}", "${}", "end $"] {
            let syntax = "header h of server a has a `$` that begins neither `${NAME}` nor `$$`";
            assert_eq!(written(wrong), Err(syntax.to_owned()), "{wrong}");
        }
    }
}
