//! Several places of secrets as one.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{SecretBackend, SecretError, SecretKey, SecretValue};

/// Asks its places in order; the first that has a value gives it, the first that can be changed is changed.
#[derive(Debug)]
pub struct Chain(Vec<Arc<dyn SecretBackend>>);

impl Chain {
    pub fn new(backends: Vec<Arc<dyn SecretBackend>>) -> Self {
        Self(backends)
    }
}

/// What a chain says if none of its places can be changed.
const NOT_HERE: SecretError = SecretError::ReadOnly { place: "this chain of backends" };

#[async_trait]
impl SecretBackend for Chain {
    async fn get(&self, key: &SecretKey) -> Result<Option<SecretValue>, SecretError> {
        for backend in &self.0 {
            if let Some(value) = backend.get(key).await? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    async fn set(&self, key: &SecretKey, value: SecretValue) -> Result<(), SecretError> {
        for backend in &self.0 {
            match backend.set(key, value.clone()).await {
                Err(SecretError::ReadOnly { .. }) => {}
                result => return result,
            }
        }
        Err(NOT_HERE)
    }

    async fn list(&self) -> Result<Vec<SecretKey>, SecretError> {
        let mut all = BTreeSet::new();
        for backend in &self.0 {
            all.extend(backend.list().await?);
        }
        Ok(all.into_iter().collect())
    }

    async fn delete(&self, key: &SecretKey) -> Result<bool, SecretError> {
        for backend in &self.0 {
            match backend.delete(key).await {
                Err(SecretError::ReadOnly { .. }) => {}
                result => return result,
            }
        }
        Err(NOT_HERE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EncryptedFile, Environment, FileKey};

    fn key(name: &str) -> SecretKey {
        SecretKey { name: name.to_owned(), key: "token".to_owned() }
    }

    #[tokio::test]
    async fn the_environment_comes_first_and_the_file_is_what_changes() {
        let home = tempfile::tempdir().unwrap();
        let environment = Environment::new([("MCP_A_TOKEN".to_owned(), "from the environment".to_owned())]);
        let file = EncryptedFile::new(home.path().join("s.age"), FileKey::Passphrase(SecretValue::new("p"))).cheap();
        let chain = Chain::new(vec![Arc::new(environment), Arc::new(file)]);
        for name in ["a", "b"] {
            chain.set(&key(name), SecretValue::new("from the file")).await.unwrap();
        }
        assert_eq!(chain.get(&key("a")).await.unwrap().unwrap().expose_secret(), "from the environment");
        assert_eq!(chain.get(&key("b")).await.unwrap().unwrap().expose_secret(), "from the file");
        assert_eq!(chain.list().await.unwrap(), [key("a"), key("b")]);
        assert!(chain.delete(&key("b")).await.unwrap());
        assert!(!chain.delete(&key("b")).await.unwrap());
        assert_eq!(chain.get(&key("b")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_chain_that_nothing_can_be_written_to_says_so() {
        let chain = Chain::new(vec![Arc::new(Environment::new([]))]);
        let refusal = chain.set(&key("a"), SecretValue::new("v")).await.unwrap_err();
        assert!(matches!(refusal, SecretError::ReadOnly { .. }), "{refusal}");
    }
}
