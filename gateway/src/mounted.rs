//! The configuration as a file that somebody replaces: a mounted Secret, or what an editor writes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use mcp_hub_dataplane_api::document::{self, DOCUMENT_MAX, NotAConfig};
use mcp_hub_dataplane_api::gateway::GatewayConfig;

use crate::given::{Given, NotGiven};

/// A configuration file.
#[derive(Debug)]
pub(crate) struct Mounted {
    path: PathBuf,
    /// Where the secrets are that the file only names; `None` if it names none.
    given: Option<Given>,
    /// Of the file that was read last.
    stamp: Option<Stamp>,
}

/// What tells one file from another without reading it: a Secret's is replaced by a link to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountedError {
    #[error("could not read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no gateway configuration: {source}{}", because(source), path = .path.display())]
    Config { path: PathBuf, source: NotAConfig },
    #[error("{path} cannot be used: {source}", path = .path.display())]
    Given { path: PathBuf, source: NotGiven },
}

fn because(error: &NotAConfig) -> String {
    std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"))
}

impl Mounted {
    /// With the configuration that the file holds now.
    pub(crate) fn open(path: impl Into<PathBuf>, given: Option<Given>) -> Result<(Self, GatewayConfig), MountedError> {
        let mut mounted = Self { path: path.into(), given, stamp: None };
        let stamp = mounted.stamp()?;
        let config = mounted.read(stamp)?;
        Ok((mounted, config))
    }

    /// The configuration, if the file has changed since it was last read with success.
    pub(crate) fn changed(&mut self) -> Result<Option<GatewayConfig>, MountedError> {
        let stamp = self.stamp()?;
        if self.stamp == Some(stamp) { Ok(None) } else { self.read(stamp).map(Some) }
    }

    fn stamp(&self) -> Result<Stamp, MountedError> {
        let file = std::fs::metadata(&self.path).map_err(|source| self.unread(source))?;
        let modified = (file.mtime(), file.mtime_nsec());
        Ok(Stamp { device: file.dev(), inode: file.ino(), bytes: file.len(), modified })
    }

    fn read(&mut self, stamp: Stamp) -> Result<GatewayConfig, MountedError> {
        let wrong = |source| MountedError::Config { path: self.path.clone(), source };
        if stamp.bytes > DOCUMENT_MAX as u64 {
            return Err(wrong(NotAConfig::TooLarge));
        }
        let bytes = std::fs::read(&self.path).map_err(|source| self.unread(source))?;
        let mut config = document::read(&bytes).map_err(wrong)?;
        if let Some(given) = &self.given {
            let unwritten = |source| MountedError::Given { path: self.path.clone(), source };
            given.write_out(&mut config).map_err(unwritten)?;
        }
        // Only now: a file that was read half written is read again.
        self.stamp = Some(stamp);
        Ok(config)
    }

    fn unread(&self, source: io::Error) -> MountedError {
        MountedError::Read { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const CONFIG: &str = r#"{"version":"1","hub":{"namespace":"n","name":"h","uid":"u"},"upstreams":[],
        "naming":{"mode":"bare","separator":"_","maxLength":48},"auth":{"mode":"none"},
        "limits":{"messageBytes":1,"resultBytes":null,"concurrentCalls":1,"staleForMs":1},
        "allowedHosts":[],"allowedOrigins":[]}"#;

    #[test]
    fn a_secret_that_is_replaced_by_its_link_is_read_once_more_and_a_broken_one_until_it_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // As a kubelet mounts it: the file is a link into a folder that is a link.
        for (name, content) in
            [("v1", CONFIG.to_owned()), ("v2", CONFIG.replace(r#""1""#, r#""2""#)), ("v3", CONFIG[..20].to_owned())]
        {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("config.json"), content).unwrap();
        }
        let swap = |to: &str| {
            symlink(to, at("next")).unwrap();
            std::fs::rename(at("next"), at("data")).unwrap();
        };
        swap("v1");
        symlink("data/config.json", at("config.json")).unwrap();
        let (mut mounted, first) = Mounted::open(at("config.json"), None).unwrap();
        assert_eq!(first.version, "1");
        assert_eq!(mounted.changed().unwrap(), None);
        swap("v2");
        assert_eq!(mounted.changed().unwrap().unwrap().version, "2");
        assert_eq!(mounted.changed().unwrap(), None);
        swap("v3");
        assert!(matches!(mounted.changed(), Err(MountedError::Config { .. })));
        std::fs::write(at("v3/config.json"), CONFIG).unwrap();
        assert_eq!(mounted.changed().unwrap().unwrap().version, "1");
        std::fs::remove_file(at("config.json")).unwrap();
        let error = mounted.changed().unwrap_err();
        assert!(error.to_string().starts_with("could not read "), "{error}");
    }
}
