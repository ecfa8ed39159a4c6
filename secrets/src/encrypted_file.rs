//! Secrets in one encrypted file, in the format of `age`, so that other tools can read it with the passphrase.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use age::scrypt::{Identity, Recipient};
use age::secrecy::SecretString as Passphrase;
use age::{DecryptError, EncryptError};
use async_trait::async_trait;
use rustix::fs::FlockOperation;

use crate::unlock::{FileKey, Unlock};
use crate::{SecretBackend, SecretError, SecretKey, SecretValue};

/// Files of other programs may ask for this much work: 1 GiB for a moment. What asks for more is an attack on memory.
const WORK_MAX: u8 = 20;

/// Secret to key to value.
type Values = BTreeMap<String, BTreeMap<String, String>>;

/// An encrypted file of secrets. It is unlocked when first needed, and what was read is kept in memory until the file
/// changes. A file that does not exist holds no secrets, and needs no key.
#[derive(Debug, Clone)]
pub struct EncryptedFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    unlock: Box<dyn Unlock>,
    work_factor: u8,
    read: Mutex<Option<Read>>,
}

/// What was read, and of which file.
struct Read {
    stamp: Stamp,
    values: Values,
}

/// Tells a file from its successor: device, inode, length and time of change in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl EncryptedFile {
    pub fn new(path: PathBuf, key: FileKey) -> Self {
        Self::unlocked_by(path, key.unlock())
    }

    fn unlocked_by(path: PathBuf, unlock: Box<dyn Unlock>) -> Self {
        let work_factor = unlock.work_factor();
        Self(Arc::new(Inner { path, unlock, work_factor, read: Mutex::default() }))
    }

    /// With a passphrase that is guessed as fast as tests want it.
    #[cfg(test)]
    pub(crate) fn cheap(self) -> Self {
        let Ok(inner) = Arc::try_unwrap(self.0) else { panic!("in use") };
        Self(Arc::new(Inner { work_factor: 2, ..inner }))
    }

    /// Runs where waiting for disks, keyrings and arithmetic is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SecretError> + Send + 'static,
    ) -> Result<T, SecretError> {
        let inner = self.0.clone();
        let path = inner.path.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| Err(SecretError::Io { action: "work on", path, source: io::Error::other(error) }))
    }
}

impl Inner {
    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> SecretError {
        let path = self.path.clone();
        move |source| SecretError::Io { action, path: path.clone(), source }
    }

    /// Gives what the file holds to `look`; unlocks it if it changed since the last time.
    fn look<T>(&self, look: impl FnOnce(&Values) -> T) -> Result<T, SecretError> {
        // Held while unlocking: ten servers that ask at once make one unlocking, not ten.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = match self.path.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *read = None;
                return Ok(look(&Values::new()));
            }
            Err(error) => return Err(self.failed("read")(error)),
        };
        if let Some(read) = read.as_ref().filter(|read| read.stamp == stamp(&metadata)) {
            return Ok(look(&read.values));
        }
        let (stamp, values) = self.decrypt()?;
        Ok(look(&read.insert(Read { stamp, values }).values))
    }

    fn decrypt(&self) -> Result<(Stamp, Values), SecretError> {
        let damaged = || SecretError::Damaged { path: self.path.clone() };
        let mut file = File::open(&self.path).map_err(self.failed("read"))?;
        // Of the very file that is read, which may be another one by now.
        let stamp = stamp(&file.metadata().map_err(self.failed("read"))?);
        let mut sealed = Vec::new();
        io::Read::read_to_end(&mut file, &mut sealed).map_err(self.failed("read"))?;
        let passphrase = self.unlock.existing(&self.path)?;
        let mut identity = Identity::new(Passphrase::from(passphrase.expose_secret().to_owned()));
        identity.set_max_work_factor(WORK_MAX);
        let plain = age::decrypt(&identity, &sealed).map_err(|error| match error {
            DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
                SecretError::WrongPassphrase { path: self.path.clone() }
            }
            // What is no file of ours, cut, or asks for too much work; its enum is open, so the rest is not named.
            _ => damaged(),
        })?;
        Ok((stamp, serde_json::from_slice(&plain).map_err(|_| damaged())?))
    }

    /// Changes what the file holds, alone among all that do; `change` says whether there is anything to write.
    fn change(&self, change: impl FnOnce(&mut Values) -> bool) -> Result<bool, SecretError> {
        let _alone = self.lock()?;
        let mut values = self.look(Clone::clone)?;
        if !change(&mut values) {
            return Ok(false);
        }
        let passphrase = match self.path.exists() {
            true => self.unlock.existing(&self.path)?,
            false => self.unlock.made(&self.path)?,
        };
        let mut recipient = Recipient::new(Passphrase::from(passphrase.expose_secret().to_owned()));
        recipient.set_work_factor(self.work_factor);
        // A map of texts always has a JSON form.
        let plain = serde_json::to_vec(&values).unwrap_or_default();
        let sealed =
            age::encrypt(&recipient, &plain).map_err(|error: EncryptError| io::Error::other(error.to_string()));
        let sealed = sealed.map_err(self.failed("encrypt"))?;
        let stamp = self.replace(&sealed).map_err(self.failed("write"))?;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Read { stamp, values });
        Ok(true)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The lock is a file of its own, because the secrets' file is replaced.
    fn lock(&self) -> Result<File, SecretError> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".lock");
        let open = || {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false).mode(0o600);
            let file = file.open(self.folder().join(&name))?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        open().map_err(self.failed("lock"))
    }

    /// Whole or as before, whenever the machine stops. Temporary files are for their user only.
    fn replace(&self, sealed: &[u8]) -> io::Result<Stamp> {
        let mut draft = tempfile::Builder::new().prefix(".secrets").tempfile_in(self.folder())?;
        draft.write_all(sealed)?;
        draft.as_file().sync_all()?;
        let file = draft.persist(&self.path)?;
        Ok(stamp(&file.metadata()?))
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

#[async_trait]
impl SecretBackend for EncryptedFile {
    async fn get(&self, key: &SecretKey) -> Result<Option<SecretValue>, SecretError> {
        let key = key.clone();
        self.blocking(move |file| {
            file.look(|values| values.get(&key.name).and_then(|secret| secret.get(&key.key)).map(SecretValue::new))
        })
        .await
    }

    async fn set(&self, key: &SecretKey, value: SecretValue) -> Result<(), SecretError> {
        let key = key.clone();
        self.blocking(move |file| {
            file.change(|values| {
                let value = value.expose_secret().to_owned();
                let before = values.entry(key.name).or_default().insert(key.key, value.clone());
                before != Some(value)
            })
        })
        .await
        .map(drop)
    }

    async fn list(&self) -> Result<Vec<SecretKey>, SecretError> {
        self.blocking(|file| {
            file.look(|values| {
                let keys = values.iter().flat_map(|(name, secret)| secret.keys().map(move |key| (name, key)));
                keys.map(|(name, key)| SecretKey { name: name.clone(), key: key.clone() }).collect()
            })
        })
        .await
    }

    async fn delete(&self, key: &SecretKey) -> Result<bool, SecretError> {
        let key = key.clone();
        self.blocking(move |file| {
            file.change(|values| {
                let Some(secret) = values.get_mut(&key.name) else { return false };
                let was_there = secret.remove(&key.key).is_some();
                if secret.is_empty() {
                    values.remove(&key.name);
                }
                was_there
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn key(name: &str) -> SecretKey {
        SecretKey { name: name.to_owned(), key: "token".to_owned() }
    }

    fn by_passphrase(path: &Path, passphrase: &str) -> EncryptedFile {
        EncryptedFile::new(path.to_owned(), FileKey::Passphrase(SecretValue::new(passphrase))).cheap()
    }

    async fn value(file: &EncryptedFile, name: &str) -> Option<String> {
        file.get(&key(name)).await.unwrap().map(|value| value.expose_secret().to_owned())
    }

    #[tokio::test]
    async fn secrets_survive_and_neither_file_nor_debug_shows_them() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("deeper/secrets.age");
        let file = by_passphrase(&path, "open sesame");
        assert_eq!((value(&file, "a").await, file.list().await.unwrap()), (None, vec![]));
        assert!(!path.exists(), "reading made a file");
        file.set(&key("a"), SecretValue::new("hunter2")).await.unwrap();
        assert_eq!(value(&file, "a").await.as_deref(), Some("hunter2"));

        let sealed = std::fs::read(&path).unwrap();
        assert!(sealed.starts_with(b"age-encryption.org/v1"));
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert!(!format!("{file:?}").contains("sesame"));
        for entry in path.parent().unwrap().read_dir().unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "others may read");
        }

        let again = by_passphrase(&path, "open sesame");
        assert_eq!(again.list().await.unwrap(), [key("a")]);
        assert_eq!(value(&again, "a").await.as_deref(), Some("hunter2"));
        assert!(again.delete(&key("a")).await.unwrap());
        assert!(!again.delete(&key("a")).await.unwrap());
        // Another process's change is seen by who has read the file before.
        assert_eq!(value(&file, "a").await, None);
    }

    #[tokio::test]
    async fn a_wrong_passphrase_is_told_and_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secrets.age");
        by_passphrase(&path, "right").set(&key("a"), SecretValue::new("v")).await.unwrap();
        let before = std::fs::read(&path).unwrap();
        let wrong = by_passphrase(&path, "wrong");
        for refusal in [
            wrong.get(&key("a")).await.unwrap_err(),
            wrong.set(&key("b"), SecretValue::new("v")).await.unwrap_err(),
            wrong.delete(&key("a")).await.unwrap_err(),
        ] {
            assert!(matches!(refusal, SecretError::WrongPassphrase { .. }), "{refusal:?}");
            assert!(refusal.hint().unwrap().contains("MCPHUB_SECRETS_PASSPHRASE"));
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[tokio::test]
    async fn a_damaged_file_is_refused_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secrets.age");
        let file = by_passphrase(&path, "p");
        file.set(&key("a"), SecretValue::new("v")).await.unwrap();
        let mut sealed = std::fs::read(&path).unwrap();
        let cut = sealed.len() - 3;
        sealed.truncate(cut);
        for text in [&sealed[..], b"no age file"] {
            std::fs::write(&path, text).unwrap();
            let refusal = file.set(&key("b"), SecretValue::new("v")).await.unwrap_err();
            assert!(matches!(refusal, SecretError::Damaged { .. }), "{refusal:?}");
            assert_eq!(std::fs::read(&path).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn changes_from_many_sides_are_all_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secrets.age");
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                // Each with a memory of its own, as processes have.
                let file = by_passphrase(&path, "p");
                tokio::spawn(async move { file.set(&key(&format!("s{n}")), SecretValue::new("v")).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(by_passphrase(&path, "p").list().await.unwrap().len(), 10);
    }

    /// A keyring that is there, counts how often it is asked, and can lose its entry.
    #[derive(Debug, Default)]
    struct Ring {
        entry: Mutex<Option<SecretValue>>,
        asked: Arc<AtomicUsize>,
    }

    impl Unlock for Ring {
        fn existing(&self, path: &Path) -> Result<SecretValue, SecretError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.entry.lock().unwrap().clone().ok_or_else(|| SecretError::KeyLost { path: path.to_owned() })
        }

        fn made(&self, _: &Path) -> Result<SecretValue, SecretError> {
            Ok(self.entry.lock().unwrap().get_or_insert_with(|| SecretValue::new("random")).clone())
        }

        fn work_factor(&self) -> u8 {
            2
        }
    }

    #[tokio::test]
    async fn a_key_from_a_keyring_is_made_once_asked_for_when_needed_and_missed_when_lost() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secrets.age");
        let ring = Ring::default();
        let asked = ring.asked.clone();
        let file = EncryptedFile::unlocked_by(path.clone(), Box::new(ring));
        assert_eq!(value(&file, "a").await, None);
        assert_eq!(asked.load(Ordering::Relaxed), 0, "asked for a key that nothing needs");
        file.set(&key("a"), SecretValue::new("v")).await.unwrap();
        for _ in 0..5 {
            assert_eq!(value(&file, "a").await.as_deref(), Some("v"));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0, "what was just written was read again");

        let lost = EncryptedFile::unlocked_by(path.clone(), Box::new(Ring::default()));
        let refusal = lost.set(&key("b"), SecretValue::new("v")).await.unwrap_err();
        assert!(matches!(refusal, SecretError::KeyLost { .. }), "{refusal:?}");
        assert!(refusal.hint().is_some());
        assert_eq!(value(&file, "a").await.as_deref(), Some("v"));
    }
}
