//! Values of secrets for the process runtime, from the machine's backends.

use std::sync::Arc;

use async_trait::async_trait;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_secrets::{SecretBackend, SecretKey};

use crate::process::SecretSource;

/// One user's secrets: namespaces do not divide them.
#[derive(Debug)]
pub struct Backends(pub Arc<dyn SecretBackend>);

#[async_trait]
impl SecretSource for Backends {
    async fn value(&self, _: &str, key: &SecretKeyRef) -> Result<Option<SecretString>, String> {
        let wanted = SecretKey { name: key.name.clone(), key: key.key.clone() };
        let value = self.0.get(&wanted).await.map_err(|error| error.to_string())?;
        Ok(value.map(|value| SecretString::new(value.expose_secret())))
    }
}
