//! Secrets from environment variables: `MCP_<NAME>_<KEY>`, and `MCP_<NAME>` for the key `value`.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::{SecretBackend, SecretError, SecretKey, SecretValue};

const PREFIX: &str = "MCP_";

/// The variables as they were when the daemon started; read-only.
#[derive(Clone)]
pub struct Environment(BTreeMap<String, SecretValue>);

impl Environment {
    /// Takes the variables that can hold secrets.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX));
        Self(ours.map(|(name, value)| (name, SecretValue::new(value))).collect())
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

/// The variables that may hold a value, the more exact one first.
fn variables(key: &SecretKey) -> Vec<String> {
    let upper = |text: &str| text.to_ascii_uppercase().replace(['-', '.'], "_");
    let mut names = vec![format!("{PREFIX}{}_{}", upper(&key.name), upper(&key.key))];
    if key.key == "value" {
        names.push(format!("{PREFIX}{}", upper(&key.name)));
    }
    names
}

#[async_trait]
impl SecretBackend for Environment {
    async fn get(&self, key: &SecretKey) -> Result<Option<SecretValue>, SecretError> {
        Ok(variables(key).iter().find_map(|name| self.0.get(name)).cloned())
    }

    async fn set(&self, _: &SecretKey, _: SecretValue) -> Result<(), SecretError> {
        Err(SecretError::ReadOnly { place: "environment variables" })
    }

    /// A variable's name does not say where the secret's name ends and the key begins, so none is listed.
    async fn list(&self) -> Result<Vec<SecretKey>, SecretError> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &SecretKey) -> Result<bool, SecretError> {
        Err(SecretError::ReadOnly { place: "environment variables" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, key: &str) -> SecretKey {
        SecretKey { name: name.to_owned(), key: key.to_owned() }
    }

    #[tokio::test]
    async fn names_and_keys_become_variables() {
        let pairs = [("MCP_GIT_HUB_API_TOKEN", "a"), ("MCP_PLAIN", "b"), ("HOME", "c")];
        let backend = Environment::new(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let get = async |name: &str, of: &str| backend.get(&key(name, of)).await.unwrap().map(|v| v.0);
        assert_eq!(get("git-hub", "api.token").await.as_deref(), Some("a"));
        assert_eq!(get("plain", "value").await.as_deref(), Some("b"));
        assert_eq!(get("plain", "other").await, None);
        assert_eq!(format!("{backend:?}"), r#"["MCP_GIT_HUB_API_TOKEN", "MCP_PLAIN"]"#);
    }
}
