//! Where this machine's secrets live: environment variables of the daemon first, then the encrypted file.

use std::sync::Arc;

use mcp_hub_secrets::{Chain, EncryptedFile, Environment, FileKey, SecretBackend, SecretValue};

use crate::places::Places;

/// Unlocks the encrypted file; without it the key is in the operating system's keyring.
const PASSPHRASE: &str = "MCPHUB_SECRETS_PASSPHRASE";

pub(crate) fn open(places: &Places) -> Arc<dyn SecretBackend> {
    Arc::new(Chain::new(vec![Arc::new(Environment::new(variables())), Arc::new(file(places))]))
}

/// The encrypted file alone, for `mcpctl secret`.
pub(crate) fn file(places: &Places) -> EncryptedFile {
    let key = match std::env::var(PASSPHRASE) {
        Ok(passphrase) => FileKey::Passphrase(SecretValue::new(passphrase)),
        Err(_) => FileKey::Keyring,
    };
    EncryptedFile::new(places.secrets_file(), key)
}

/// Variables that are text: others cannot be a secret's value.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
