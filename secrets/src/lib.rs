//! Where the values behind `secretRef {name, key}` live on one machine.

mod chain;
mod encrypted_file;
mod environment;
mod unlock;

use std::fmt;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
pub use chain::Chain;
pub use encrypted_file::EncryptedFile;
pub use environment::Environment;
pub use unlock::FileKey;

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

/// Why a place of secrets could not be asked or changed. No variant shows a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secrets from {place} cannot be changed here")]
    ReadOnly { place: &'static str },
    #[error("the passphrase does not open {}", .path.display())]
    WrongPassphrase { path: PathBuf },
    #[error("no keyring of the operating system answers: {message}")]
    NoKeyring { message: String },
    #[error("the keyring holds no key for {}", .path.display())]
    KeyLost { path: PathBuf },
    #[error("{} is no file of secrets, or damaged", .path.display())]
    Damaged { path: PathBuf },
    #[error("could not {action} {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl SecretError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::ReadOnly { .. } => "keep secrets in the encrypted file instead".to_owned(),
            Self::WrongPassphrase { .. } => {
                "set MCPHUB_SECRETS_PASSPHRASE to the one it was made with, or unset it if the keyring has the key"
                    .to_owned()
            }
            Self::NoKeyring { .. } => "set MCPHUB_SECRETS_PASSPHRASE to a passphrase of your own".to_owned(),
            Self::KeyLost { .. } => {
                "set MCPHUB_SECRETS_PASSPHRASE if it was made with one; else remove it and set the secrets again"
                    .to_owned()
            }
            Self::Damaged { path } => {
                format!("restore {} from a copy, or remove it and set the secrets again", path.display())
            }
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space on that disk".to_owned(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    "make it readable and its folder writable for you".to_owned()
                }
                _ => return None,
            },
        })
    }
}
