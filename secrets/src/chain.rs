//! Several places as one: the first that has a value gives it.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{SecretBackend, SecretError, SecretKey, SecretValue};

/// Backends in the order in which they are asked.
#[derive(Debug)]
pub struct Chain(Vec<Arc<dyn SecretBackend>>);

impl Chain {
    pub fn new(backends: Vec<Arc<dyn SecretBackend>>) -> Self {
        Self(backends)
    }
}

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

    /// Into the first place that can be written to.
    async fn set(&self, key: &SecretKey, value: SecretValue) -> Result<(), SecretError> {
        let mut refused = SecretError::ReadOnly { place: "nowhere" };
        for backend in &self.0 {
            match backend.set(key, value.clone()).await {
                Err(error @ SecretError::ReadOnly { .. }) => refused = error,
                result => return result,
            }
        }
        Err(refused)
    }

    async fn list(&self) -> Result<Vec<SecretKey>, SecretError> {
        let mut keys = BTreeSet::new();
        for backend in &self.0 {
            keys.extend(backend.list().await?);
        }
        Ok(keys.into_iter().collect())
    }

    /// From every place that can be written to.
    async fn delete(&self, key: &SecretKey) -> Result<bool, SecretError> {
        let mut deleted = false;
        for backend in &self.0 {
            match backend.delete(key).await {
                Ok(found) => deleted |= found,
                Err(SecretError::ReadOnly { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}
