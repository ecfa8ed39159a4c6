//! Secrets for the process runtime, out of the daemon's backends.

use std::sync::Arc;

use async_trait::async_trait;
use mcp_hub_crds::source::SecretKeyRef;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_secrets::{SecretBackend, SecretKey};

use crate::process::SecretSource;

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
