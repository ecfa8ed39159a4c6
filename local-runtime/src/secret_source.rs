//! Secrets of servers: named by a lowered body, read from the daemon's backends when they are pushed.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::workload::EnvValue;
use mcp_hub_secrets::{SecretBackend, SecretKey};
use serde_json::{Value, json};

/// Gives values of secrets.
#[async_trait]
pub trait SecretSource: std::fmt::Debug + Send + Sync {
    /// `None` if there is no such secret or key.
    async fn value(&self, namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, String>;
}

/// The backends of one machine, which know no namespaces.
#[derive(Debug, Clone)]
pub struct Backends(pub Arc<dyn SecretBackend>);

#[async_trait]
impl SecretSource for Backends {
    async fn value(&self, _namespace: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, String> {
        let wanted = SecretKey { name: key.name.clone(), key: key.key.clone() };
        match self.0.get(&wanted).await {
            Ok(value) => Ok(value.map(|value| SecretString::new(value.expose_secret()))),
            Err(error) => Err(match error.hint() {
                Some(hint) => format!("{error} (hint: {hint})"),
                None => error.to_string(),
            }),
        }
    }
}

/// Secrets that a test sets.
#[cfg(feature = "testing")]
#[derive(Debug, Default)]
pub struct Given(std::sync::Mutex<BTreeMap<SecretKeyRef, String>>);

#[cfg(feature = "testing")]
impl Given {
    pub fn set(&self, name: &str, key: &str, value: &str) {
        let key = SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(key, value.to_owned());
    }
}

#[cfg(feature = "testing")]
#[async_trait]
impl SecretSource for Given {
    async fn value(&self, _: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, String> {
        Ok(self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(key).map(SecretString::new))
    }
}

/// Values of secret environment variables, by variable.
pub(crate) type Secrets = BTreeMap<String, SecretString>;

/// A value that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret `{name}` could not be read: {message}")]
    Unreadable { name: String, message: String },
    #[error("secret `{name}` has no key `{key}`")]
    Missing { name: String, key: String },
}

impl SecretError {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "SecretBackendFailed",
            Self::Missing { .. } => "SecretMissing",
        }
    }
}

/// Variables in clear, and the secret ones as a lowered body names them: without their values, with a fingerprint by which
/// a change of one is noticed.
pub(crate) fn split(env: &[EnvValue]) -> (BTreeMap<String, String>, BTreeMap<String, Value>) {
    let mut plain = BTreeMap::new();
    let mut secrets = BTreeMap::new();
    for variable in env {
        match variable {
            EnvValue::Plain { name, value } => {
                plain.insert(name.clone(), value.clone());
            }
            EnvValue::Secret { name, key, fingerprint } => {
                secrets.insert(name.clone(), json!({"name": key.name, "key": key.key, "fingerprint": fingerprint}));
            }
        }
    }
    (plain, secrets)
}

/// The values of all secrets that a lowered body names in `secrets`. Read before anything is done: a server that would only
/// wait for a value is not worth ending its predecessor for.
pub(crate) async fn values(source: &dyn SecretSource, owner: &OwnerKey, body: &Value) -> Result<Secrets, SecretError> {
    let mut values = Secrets::new();
    for (variable, from) in body["secrets"].as_object().into_iter().flatten() {
        let text = |field: &str| from[field].as_str().unwrap_or_default().to_owned();
        let key = SecretKeyRef { name: text("name"), key: text("key") };
        let value = source.value(&owner.namespace, &key).await;
        let value = value.map_err(|message| SecretError::Unreadable { name: key.name.clone(), message })?;
        let value = value.ok_or(SecretError::Missing { name: key.name, key: key.key })?;
        values.insert(variable.clone(), value);
    }
    Ok(values)
}
