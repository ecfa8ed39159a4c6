//! Where the key of an encrypted file comes from: never from beside the file.

use std::fmt;
use std::path::Path;

use keyring::v1::{Entry, Error};

use crate::{SecretError, SecretValue};

/// Service under which the operating system's keyring lists our entries.
const SERVICE: &str = "mcphub";

/// The key of a file, as a passphrase.
#[derive(Debug, Clone)]
pub enum FileKey {
    /// A person knows it.
    Passphrase(SecretValue),
    /// A random one, kept in the keyring of the operating system.
    Keyring,
}

/// Gives the passphrase of the file at a path. May ask other programs, so not for an async thread.
pub(crate) trait Unlock: fmt::Debug + Send + Sync {
    /// For a file that is there.
    fn existing(&self, path: &Path) -> Result<SecretValue, SecretError>;
    /// For a file that is about to be.
    fn made(&self, path: &Path) -> Result<SecretValue, SecretError>;
    /// Logarithm of the work that guessing a passphrase costs.
    fn work_factor(&self) -> u8;
}

impl FileKey {
    pub(crate) fn unlock(self) -> Box<dyn Unlock> {
        match self {
            Self::Passphrase(passphrase) => Box::new(Known(passphrase)),
            Self::Keyring => Box::new(OsKeyring),
        }
    }
}

#[derive(Debug)]
struct Known(SecretValue);

impl Unlock for Known {
    fn existing(&self, _: &Path) -> Result<SecretValue, SecretError> {
        Ok(self.0.clone())
    }

    fn made(&self, _: &Path) -> Result<SecretValue, SecretError> {
        Ok(self.0.clone())
    }

    /// 64 MiB and a few tenths of a second for each guess, and once for each unlocking here.
    fn work_factor(&self) -> u8 {
        16
    }
}

#[derive(Debug)]
struct OsKeyring;

impl OsKeyring {
    fn entry(path: &Path) -> Result<Entry, SecretError> {
        // By its path: each state folder has a file of its own.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Entry::new(SERVICE, &format!("secrets of {}", path.display())).map_err(|error| {
            let why = Entry::store_status().as_ref().err().map(ToString::to_string);
            SecretError::NoKeyring { message: why.unwrap_or_else(|| error.to_string()) }
        })
    }
}

impl Unlock for OsKeyring {
    fn existing(&self, path: &Path) -> Result<SecretValue, SecretError> {
        match Self::entry(path)?.get_password() {
            Ok(passphrase) => Ok(SecretValue::new(passphrase)),
            Err(Error::NoEntry) => Err(SecretError::KeyLost { path: path.to_owned() }),
            Err(error) => Err(SecretError::NoKeyring { message: error.to_string() }),
        }
    }

    fn made(&self, path: &Path) -> Result<SecretValue, SecretError> {
        match self.existing(path) {
            Err(SecretError::KeyLost { .. }) => {}
            result => return result,
        }
        let mut bytes = [0; 32];
        let failed = |message: String| SecretError::NoKeyring { message };
        getrandom::fill(&mut bytes).map_err(|error| failed(error.to_string()))?;
        let passphrase = hex::encode(bytes);
        Self::entry(path)?.set_password(&passphrase).map_err(|error| failed(error.to_string()))?;
        Ok(SecretValue::new(passphrase))
    }

    /// 256 random bits are not guessed, however cheap a guess is.
    fn work_factor(&self) -> u8 {
        10
    }
}
