//! Where the values behind `secretRef {name, key}` live on one machine.

mod environment;

use std::fmt;

use async_trait::async_trait;
pub use environment::Environment;

/// A value; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(String);

impl SecretValue {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself. The name is long so that a reader stops at each use.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Names one value: a secret and a key in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretKey {
    pub name: String,
    pub key: String,
}

/// A place of secrets.
///
/// # Errors
/// `get` gives `None` for what is not there; an error means that the place itself could not be asked.
#[async_trait]
pub trait SecretBackend: fmt::Debug + Send + Sync {
    async fn get(&self, key: &SecretKey) -> Result<Option<SecretValue>, SecretError>;
    async fn set(&self, key: &SecretKey, value: SecretValue) -> Result<(), SecretError>;
    /// Names and keys, never values.
    async fn list(&self) -> Result<Vec<SecretKey>, SecretError>;
    /// Whether there was anything to delete.
    async fn delete(&self, key: &SecretKey) -> Result<bool, SecretError>;
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secrets from {place} cannot be changed here")]
    ReadOnly { place: &'static str },
}

impl SecretError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::ReadOnly { .. } => Some("keep secrets in the encrypted file instead".to_owned()),
        }
    }
}
