//! The logins that `docker login` keeps: in Docker's `config.json`, or in the stores that its credential helpers reach.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use mcp_hub_dataplane_api::secret::SecretString;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::credentials::{Credentials, CredentialsError, Login};
use crate::reference::{DOCKER_HUB, Reference};

/// What Docker's stores have Docker Hub's login under.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user under whose name stores have a refresh token.
const TOKEN_USER: &str = "<token>";
/// A store that wants to be unlocked may wait for its owner.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer of a helper, and largest configuration.
const MAX_BYTES: u64 = 1 << 20;

/// What a user has logged in to.
#[derive(Debug, Default)]
pub struct DockerConfig {
    credentials: Credentials,
    stores: Stores,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stores {
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

impl DockerConfig {
    /// Reads a `config.json`; one that is not there is nobody's login.
    ///
    /// # Errors
    /// If it cannot be read or is no such document. Each names the file, and none shows a value.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let failed = |source| CredentialsError::Read { path: path.to_owned(), source };
        let odd = |error| CredentialsError::In { path: path.to_owned(), error: Box::new(error) };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut text).map_err(failed)?;
        let stores = serde_json::from_slice(&text)
            .map_err(|error| odd(CredentialsError::Json { line: error.line(), column: error.column() }))?;
        Ok(Self { credentials: Credentials::of_user(&text).map_err(odd)?, stores })
    }

    /// The logins for these images. A store's login counts before the file's.
    ///
    /// # Errors
    /// If a helper is missing, fails or is silent. What it says is not shown: it may be a secret.
    ///
    /// # Cancel safety
    /// May be dropped at any time; helpers are ended.
    pub async fn logins(self, images: impl IntoIterator<Item = &Reference>) -> Result<Credentials, CredentialsError> {
        let mut credentials = self.credentials;
        let registries: BTreeSet<&str> = images.into_iter().map(Reference::registry).collect();
        for registry in registries {
            let key = if registry == DOCKER_HUB { HUB_KEY } else { registry };
            if let Some(helper) = self.stores.helper(registry, key)
                && let Some(login) = ask(helper, key).await?
            {
                credentials.add(key, login);
            }
        }
        Ok(credentials)
    }
}

impl Stores {
    /// Who has a registry's login. An empty name stands for the file, as for Docker.
    fn helper(&self, registry: &str, key: &str) -> Option<&str> {
        let own = self.cred_helpers.get(registry).or(self.cred_helpers.get(key));
        own.or(self.creds_store.as_ref()).map(String::as_str).filter(|helper| !helper.is_empty())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: SecretString,
}

/// Asks `docker-credential-HELPER`; `None` if it has no login.
async fn ask(helper: &str, registry: &str) -> Result<Option<Login>, CredentialsError> {
    let failed = |problem: String| CredentialsError::Helper {
        helper: helper.to_owned(),
        registry: registry.to_owned(),
        problem,
    };
    // It is found on the PATH and nowhere else.
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Err(failed("that is no helper's name".to_owned()));
    }
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not listen says so by its answer.
            stdin.write_all(registry.as_bytes()).await.ok();
        }
        let mut said = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_BYTES).read_to_end(&mut said).await?;
        }
        Ok::<_, io::Error>((child.wait().await?, said))
    };
    let (status, said) = match tokio::time::timeout(PATIENCE, talk).await {
        Ok(answered) => answered.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("no answer within {PATIENCE:?}"))),
    };
    if !status.success() {
        // What all helpers say, word for word (docker-credential-helpers, `credentials/error.go`).
        let is_none = String::from_utf8_lossy(&said).contains("credentials not found in native keychain");
        return if is_none { Ok(None) } else { Err(failed(status.to_string())) };
    }
    let answer: Answer = serde_json::from_slice(&said).map_err(|_| failed("its answer is no login".to_owned()))?;
    Ok(Some(match &*answer.username {
        TOKEN_USER => Login::Refresh(answer.secret),
        _ => Login::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    async fn login(config: &Value) -> Result<Option<Login>, CredentialsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let image: Reference = "ghcr.io/a/b:1".parse().unwrap();
        Ok(DockerConfig::read(&path)?.logins([&image]).await?.login(&image).cloned())
    }

    #[tokio::test]
    async fn a_store_without_a_name_is_the_file() {
        let auths = json!({"ghcr.io": {"username": "u", "password": "hunter2"}});
        for stores in [
            json!({"credsStore": ""}),
            json!({"credHelpers": {"ghcr.io": ""}}),
            json!({"credsStore": "no-such", "credHelpers": {"ghcr.io": ""}}),
            json!({"credHelpers": {"a.io": "no-such"}}),
        ] {
            let mut config = stores;
            config["auths"] = auths.clone();
            let login = login(&config).await;
            assert!(matches!(login, Ok(Some(Login::Password { .. }))), "{config}: {login:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_with_what_to_do() {
        for (config, wanted, hint) in [
            (json!({"credsStore": "no-such"}), "docker-credential-no-such did not give the login for ghcr.io", "PATH"),
            (json!({"credsStore": "../evil"}), "docker-credential-../evil did not give", "`credsStore`"),
            (json!({"credsStore": ["hunter2"]}), "/config.json: the registry credentials are no Docker", "mend"),
            (json!({"auths": {"ghcr.io": {"auth": "hunter2"}}}), "/config.json: the registry credentials for", "login"),
        ] {
            let error = login(&config).await.unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
            assert!(error.hint().contains(hint), "{}", error.hint());
            assert!(!format!("{error:?}{error}{}", error.hint()).contains("hunter2"), "{error:?}");
        }
    }
}
