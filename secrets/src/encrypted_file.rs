//! Secrets in one encrypted file: the age format (age-encryption.org/v1) under a passphrase.
//!
//! The passphrase is the user's own, or a random one in the operating system's keyring. It never lies beside the file:
//! that would be no encryption.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use age::scrypt::{Identity, Recipient};
use age::secrecy::SecretString as Passphrase;
use async_trait::async_trait;
use rustix::fs::FlockOperation;

use crate::{SecretBackend, SecretError, SecretKey, SecretValue};

/// Base-two logarithm of scrypt's cost: 128 MiB and some tenths of a second for each guess (OWASP's recommendation).
const WORK_FACTOR: u8 = 17;
/// A file made elsewhere may have been made harder; this bounds the wait.
const WORK_FACTOR_MAX: u8 = 20;
/// Service and user of the entry in the keyring.
const KEYRING: (&str, &str) = ("mcphub", "secrets-file");

/// Where the passphrase comes from.
#[derive(Debug, Clone)]
pub enum FileKey {
    Passphrase(SecretValue),
    /// Random, made with the first secret, kept by the operating system.
    Keyring,
}

/// The file; unlocked when it is first needed, and again when it changed.
#[derive(Debug, Clone)]
pub struct EncryptedFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    key: FileKey,
    unlocked: Mutex<Option<(Stamp, Values)>>,
}

type Values = BTreeMap<SecretKey, SecretValue>;

/// Tells one version of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(SystemTime, u64);

impl EncryptedFile {
    pub fn new(path: PathBuf, key: FileKey) -> Self {
        Self(Arc::new(Inner { path, key, unlocked: Mutex::default() }))
    }

    /// Runs blocking work where it does not hold up others: deriving a key takes a while, and a keyring may ask the user.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SecretError> + Send + 'static,
    ) -> Result<T, SecretError> {
        let inner = self.0.clone();
        let result = tokio::task::spawn_blocking(move || work(&inner)).await;
        result.unwrap_or_else(|_| Err(SecretError::Undecryptable { path: self.0.path.clone() }))
    }
}

impl Inner {
    fn file(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> SecretError {
        let path = self.path.clone();
        move |source| SecretError::File { action, path, source }
    }

    /// The values as they are now; empty if there is no file, which needs no key.
    fn read(&self) -> Result<Values, SecretError> {
        let stamp = match std::fs::metadata(&self.path) {
            Ok(metadata) => Stamp(metadata.modified().map_err(self.file("look at"))?, metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Values::new()),
            Err(error) => return Err(self.file("look at")(error)),
        };
        let mut unlocked = self.unlocked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, values)) = &*unlocked
            && *of == stamp
        {
            return Ok(values.clone());
        }
        let sealed = std::fs::read(&self.path).map_err(self.file("read"))?;
        let mut identity = Identity::new(self.passphrase()?);
        identity.set_max_work_factor(WORK_FACTOR_MAX);
        let undecryptable = || SecretError::Undecryptable { path: self.path.clone() };
        let opened = age::decrypt(&identity, &sealed).map_err(|_| undecryptable())?;
        let entries: Vec<(String, String, String)> = serde_json::from_slice(&opened).map_err(|_| undecryptable())?;
        let values: Values =
            entries.into_iter().map(|(name, key, value)| (SecretKey { name, key }, SecretValue::new(value))).collect();
        *unlocked = Some((stamp, values.clone()));
        Ok(values)
    }

    /// Reads, changes and replaces the file, one process at a time; whole or not at all.
    fn change<T>(&self, change: impl FnOnce(&mut Values) -> T) -> Result<T, SecretError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(self.file("create the folder of"))?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.with_extension("lock"))
            .map_err(self.file("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| self.file("lock")(error.into()))?;
        let mut values = self.read()?;
        let result = change(&mut values);
        let entries: Vec<(&str, &str, &str)> =
            values.iter().map(|(key, value)| (key.name.as_str(), key.key.as_str(), value.expose_secret())).collect();
        let sealing = |_| SecretError::Undecryptable { path: self.path.clone() };
        let opened =
            serde_json::to_vec(&entries).map_err(|_| SecretError::Undecryptable { path: self.path.clone() })?;
        let mut recipient = Recipient::new(self.passphrase()?);
        recipient.set_work_factor(WORK_FACTOR);
        let sealed = age::encrypt(&recipient, &opened).map_err(sealing)?;
        let write = || {
            let mut draft = tempfile::NamedTempFile::new_in(folder)?;
            draft.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
            draft.write_all(&sealed)?;
            draft.as_file().sync_all()?;
            draft.persist(&self.path)?;
            Ok(())
        };
        write().map_err(self.file("write"))?;
        Ok(result)
    }

    fn passphrase(&self) -> Result<Passphrase, SecretError> {
        match &self.key {
            FileKey::Passphrase(passphrase) => Ok(Passphrase::from(passphrase.expose_secret().to_owned())),
            FileKey::Keyring => from_keyring(!self.path.exists()),
        }
    }
}

/// The passphrase in the keyring; with `first` one is made if there is none.
fn from_keyring(first: bool) -> Result<Passphrase, SecretError> {
    let failed = |error: keyring::Error| SecretError::Keyring(error.to_string());
    let entry = keyring::Entry::new(KEYRING.0, KEYRING.1).map_err(failed)?;
    match entry.get_password() {
        Ok(passphrase) => Ok(Passphrase::from(passphrase)),
        Err(keyring::Error::NoEntry) if first => {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|error| SecretError::Keyring(error.to_string()))?;
            let passphrase = hex::encode(bytes);
            entry.set_password(&passphrase).map_err(failed)?;
            Ok(Passphrase::from(passphrase))
        }
        Err(error) => Err(failed(error)),
    }
}

#[async_trait]
impl SecretBackend for EncryptedFile {
    async fn get(&self, key: &SecretKey) -> Result<Option<SecretValue>, SecretError> {
        let key = key.clone();
        self.blocking(move |file| Ok(file.read()?.get(&key).cloned())).await
    }

    async fn set(&self, key: &SecretKey, value: SecretValue) -> Result<(), SecretError> {
        let key = key.clone();
        self.blocking(move |file| file.change(|values| drop(values.insert(key, value)))).await
    }

    async fn list(&self) -> Result<Vec<SecretKey>, SecretError> {
        self.blocking(|file| Ok(file.read()?.into_keys().collect())).await
    }

    async fn delete(&self, key: &SecretKey) -> Result<bool, SecretError> {
        let key = key.clone();
        self.blocking(move |file| match file.read()?.contains_key(&key) {
            true => file.change(|values| values.remove(&key).is_some()),
            false => Ok(false),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> SecretKey {
        SecretKey { name: name.to_owned(), key: "token".to_owned() }
    }

    fn file(folder: &Path, passphrase: &str) -> EncryptedFile {
        EncryptedFile::new(folder.join("secrets.age"), FileKey::Passphrase(SecretValue::new(passphrase)))
    }

    #[tokio::test]
    async fn a_value_is_found_again_by_its_passphrase_alone_and_never_lies_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(file(folder.path(), "right").get(&key("a")).await.unwrap(), None);
        file(folder.path(), "right").set(&key("a"), SecretValue::new("hunter2")).await.unwrap();
        let found = file(folder.path(), "right").get(&key("a")).await.unwrap().unwrap();
        assert_eq!(found.expose_secret(), "hunter2");
        let error = file(folder.path(), "wrong").get(&key("a")).await.unwrap_err();
        assert!(error.to_string().contains("secrets.age"), "{error}");

        let bytes = std::fs::read(folder.path().join("secrets.age")).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
        let mode = std::fs::metadata(folder.path().join("secrets.age")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_change_by_another_process_is_seen_and_a_wrong_passphrase_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (file(folder.path(), "p"), file(folder.path(), "p"));
        one.set(&key("a"), SecretValue::new("1")).await.unwrap();
        assert_eq!(one.list().await.unwrap(), [key("a")]);
        other.set(&key("b"), SecretValue::new("22")).await.unwrap();
        assert_eq!(one.list().await.unwrap(), [key("a"), key("b")]);
        assert!(file(folder.path(), "q").set(&key("c"), SecretValue::new("3")).await.is_err());
        assert!(one.delete(&key("a")).await.unwrap());
        assert!(!one.delete(&key("a")).await.unwrap());
        assert_eq!(other.list().await.unwrap(), [key("b")]);
    }
}
