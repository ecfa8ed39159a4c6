//! Where things lie on this machine.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// Puts every folder below one, for tests and for a second installation.
pub(crate) const HOME: &str = "MCPHUB_HOME";
/// `sockaddr_un` holds 108 bytes on Linux and 104 elsewhere; a server's folder and its socket take 26 of them.
const RUN_MAX: usize = 74;

#[derive(Debug, Clone)]
pub(crate) struct Places {
    config: PathBuf,
    state: PathBuf,
    cache: PathBuf,
    run: PathBuf,
}

impl Places {
    /// The platform's folders for `mcphub`, or those below `MCPHUB_HOME`.
    pub(crate) fn find() -> Result<Self, Error> {
        let places = match std::env::var_os(HOME) {
            Some(home) => {
                let home = std::path::absolute(PathBuf::from(&home)).map_err(Error::file("find", home))?;
                Self {
                    config: home.join("config"),
                    state: home.join("state"),
                    cache: home.join("cache"),
                    run: home.join("run"),
                }
            }
            None => {
                let folders = directories::ProjectDirs::from("", "", "mcphub").ok_or_else(|| Error::Invalid {
                    message: "this user has no home folder".to_owned(),
                    hint: Some(format!("set {HOME} to a folder for everything")),
                })?;
                let state = folders.state_dir().unwrap_or_else(|| folders.data_local_dir()).to_owned();
                Self {
                    config: folders.config_dir().to_owned(),
                    cache: folders.cache_dir().to_owned(),
                    run: folders.runtime_dir().map_or_else(|| state.join("run"), Path::to_owned),
                    state,
                }
            }
        };
        if places.run.as_os_str().len() > RUN_MAX {
            return Err(Error::Invalid {
                message: format!("{} is too long for sockets below it", places.run.display()),
                hint: Some(format!("set {HOME} to a shorter path")),
            });
        }
        Ok(places)
    }

    /// Manifests that `add` and `apply` write; always followed.
    pub(crate) fn servers(&self) -> PathBuf {
        self.config.join("servers")
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// One folder a server lies below it.
    pub(crate) fn run(&self) -> PathBuf {
        self.run.join("s")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }

    /// Which images were brought into engines.
    pub(crate) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    pub(crate) fn secrets_file(&self) -> PathBuf {
        self.state.join("secrets.age")
    }

    /// Makes the folders, for this user only.
    pub(crate) fn create(&self) -> Result<(), Error> {
        use std::os::unix::fs::DirBuilderExt;
        for folder in [&self.servers(), &self.state, &self.cache, &self.run] {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(folder).map_err(Error::file("create", folder))?;
        }
        Ok(())
    }
}
