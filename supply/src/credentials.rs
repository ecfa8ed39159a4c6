//! Registry credentials from Docker's `config.json`, which is also what a Secret of type `kubernetes.io/dockerconfigjson`
//! holds.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mcp_hub_dataplane_api::secret::SecretString;
use serde::Deserialize;

use crate::reference::Reference;

/// Which login is for which registry.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Vec<(Place, Login)>);

/// What a login is for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    host: String,
    /// Only repositories below it; empty is all.
    path: String,
}

/// How a registry is told who asks.
#[derive(Clone)]
pub enum Login {
    Password {
        user: String,
        password: SecretString,
    },
    /// Changed for an access token at the registry's authorization server (`identitytoken`).
    Refresh(SecretString),
    /// Sent as it is (`registrytoken`).
    Access(SecretString),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Where it is broken and not what stands there, which may be a password.
    #[error("the registry credentials are no Docker `config.json` (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("the registry credentials for `{host}` have no usable login: `auth` is to be base64 of USER:PASSWORD")]
    Login { host: String },
    #[error("the registry credentials in {path} could not be read", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What is wrong with a file's content.
    #[error("{path}: {error}", path = .path.display())]
    In { path: PathBuf, error: Box<CredentialsError> },
    #[error("docker-credential-{helper} did not give the login for {registry}: {problem}")]
    Helper { helper: String, registry: String, problem: String },
}

impl CredentialsError {
    /// What the user does next.
    pub fn hint(&self) -> String {
        match self {
            Self::Json { .. } => "mend it, or move it away and `docker login` again".to_owned(),
            Self::Login { host } => format!("`docker login {host}` writes it anew"),
            Self::Read { .. } => "see that it is a file which you may read".to_owned(),
            Self::In { error, .. } => error.hint(),
            Self::Helper { helper, .. } => format!(
                "see that docker-credential-{helper} is on the PATH and works, or take it out of `credsStore` and \
                 `credHelpers` in Docker's config.json"
            ),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Credentials {
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads the value of `.dockerconfigjson`.
    ///
    /// # Errors
    /// If it is no such document, or an entry has no login. Neither shows a value.
    pub fn from_docker_config(json: &[u8]) -> Result<Self, CredentialsError> {
        let document: Document = serde_json::from_slice(json)
            .map_err(|error| CredentialsError::Json { line: error.line(), column: error.column() })?;
        Self::of(document.auths)
    }

    /// Reads a user's own `config.json`, in which an entry without a login stands for one in a store.
    pub(crate) fn of_user(json: &[u8]) -> Result<Self, CredentialsError> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            auths: BTreeMap<String, Entry>,
        }
        let document: Document = serde_json::from_slice(json)
            .map_err(|error| CredentialsError::Json { line: error.line(), column: error.column() })?;
        Self::of(document.auths.into_iter().filter(|(_, entry)| *entry != Entry::default()))
    }

    fn of(entries: impl IntoIterator<Item = (String, Entry)>) -> Result<Self, CredentialsError> {
        let entries = entries.into_iter().map(|(key, entry)| {
            let login = login(entry).ok_or_else(|| CredentialsError::Login { host: key.clone() })?;
            Ok((Place::of(&key), login))
        });
        entries.collect::<Result<_, _>>().map(Self)
    }

    /// In place of one for the same.
    pub(crate) fn add(&mut self, key: &str, login: Login) {
        let place = Place::of(key);
        self.0.retain(|(known, _)| *known != place);
        self.0.push((place, login));
    }

    /// The login for an image: the registry's host is to be exactly the entry's, port included, as Docker compares them.
    /// Of several entries for a host the one with the longest path counts that the repository is below, as for a kubelet.
    /// Names with `*` match nothing.
    pub fn login(&self, image: &Reference) -> Option<&Login> {
        let fitting = self.0.iter().filter(|(place, _)| place.holds(image));
        fitting.max_by_key(|(place, _)| place.path.len()).map(|(_, login)| login)
    }
}

impl Place {
    /// Keys are written as `ghcr.io`, `https://ghcr.io`, `ghcr.io/owner`, and Docker Hub's as
    /// `https://index.docker.io/v1/`.
    fn of(key: &str) -> Self {
        let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        let path = path.trim_matches('/');
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            host => host,
        };
        // The version of the registry's API, and no repository.
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        Self { host: host.to_owned(), path: path.to_owned() }
    }

    fn holds(&self, image: &Reference) -> bool {
        let below = image.repository().strip_prefix(&*self.path);
        self.host == image.registry()
            && below.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

fn login(entry: Entry) -> Option<Login> {
    if !entry.registrytoken.is_empty() {
        return Some(Login::Access(SecretString::new(entry.registrytoken)));
    }
    if !entry.identitytoken.is_empty() {
        return Some(Login::Refresh(SecretString::new(entry.identitytoken)));
    }
    let (user, password) = if entry.auth.is_empty() {
        (entry.username, entry.password)
    } else {
        let pair = String::from_utf8(BASE64_STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        // Docker pads with zero bytes in old files.
        (user.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    (!user.is_empty()).then(|| Login::Password { user, password: SecretString::new(password) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(credentials: &Credentials, image: &str) -> Option<String> {
        match credentials.login(&image.parse().unwrap())? {
            Login::Password { user, .. } => Some(user.clone()),
            Login::Refresh(_) => Some("refresh".to_owned()),
            Login::Access(_) => Some("access".to_owned()),
        }
    }

    #[test]
    fn a_login_is_for_exactly_its_host_and_below_its_path() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "ghcr.io": {"username": "gh", "password": "p:w"},
            "ghcr.io/owner": {"username": "owner", "password": "pw"},
            "https://registry.example.com:5000": {"username": "port", "password": "pw"},
            "*.wild.example.com": {"username": "wild", "password": "pw"},
            "azure.example.com": {"auth": "MDAwMDo=", "identitytoken": "x"},
            "direct.example.com": {"registrytoken": "x"}
        }, "credHelpers": {"gcr.io": "gcloud"}}"#;
        let credentials = Credentials::from_docker_config(json.as_bytes()).unwrap();
        for (image, wanted) in [
            ("busybox", Some("hub")),
            ("index.docker.io/mcp/git", Some("hub")),
            ("ghcr.io/other/image", Some("gh")),
            ("ghcr.io/owner/image:1", Some("owner")),
            ("ghcr.io/owner", Some("owner")),
            ("ghcr.io/owners/image", Some("gh")),
            ("registry.example.com:5000/a", Some("port")),
            ("registry.example.com/a", None),
            ("registry.example.com:5001/a", None),
            ("my.ghcr.io/a", None),
            ("ghcr.io.evil.com/a", None),
            ("a.wild.example.com/a", None),
            ("azure.example.com/a", Some("refresh")),
            ("direct.example.com/a", Some("access")),
        ] {
            assert_eq!(user(&credentials, image).as_deref(), wanted, "{image}");
        }
        assert!(user(&Credentials::none(), "busybox").is_none());
    }

    #[test]
    fn a_broken_document_is_told_without_its_secrets() {
        for json in [
            "",
            "[]",
            r#"{"auths": "hunter2"}"#,
            r#"{"auths": {"a.io": {"auth": ["hunter2"]}}}"#,
            r#"{"auths": {"a.io": {"auth": "hunter2"}}}"#,
            r#"{"auths": {"a.io": {"auth": "aHVudGVyMg=="}}}"#,
            r#"{"auths": {"a.io": {}}}"#,
        ] {
            let error = Credentials::from_docker_config(json.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let kept = Credentials::from_docker_config(br#"{"auths": {"a.io": {"username": "u", "password": "hunter2"}}}"#);
        assert!(!format!("{kept:?}").contains("hunter2"));
    }
}
