//! The run folder of one server: what the daemon writes for the bridge, and what it can tell from outside.
//!
//! `owner.json` comes first and names whose folder it is; `object.json` is the lowered object; `launch.json` is the
//! bridge's part of it. Lock, record, control socket and logs are the bridge's (see `dataplane_api::launch`).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use mcp_hub_dataplane_api::launch::BridgeRecord;
use mcp_hub_reconcile::lower::{Change, Object};
use mcp_hub_reconcile::owner::OwnerKey;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::seam::Seam;
use super::{ProcessError, launch_of, lower, sweep};
use crate::follow::Place;

#[derive(Debug, Clone)]
pub(super) struct RunFolder(PathBuf);

/// All run folders that say whose they are.
pub(super) fn all(run_dir: &Path) -> Result<Vec<(OwnerKey, RunFolder)>, ProcessError> {
    let failed = |source| ProcessError::File { action: "read", path: run_dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(run_dir).map_err(failed)? {
        let folder = RunFolder(entry.map_err(failed)?.path());
        if let Some(owner) = folder.owner() {
            found.push((owner, folder));
        }
    }
    Ok(found)
}

#[async_trait]
impl Place for RunFolder {
    async fn is_held(&self) -> bool {
        Self::is_held(self)
    }

    async fn kill(&self) {
        self.kill_bridge();
    }
}

impl RunFolder {
    /// Named by a hash of the owner: short whatever the server's name, because the control socket's path is limited.
    pub(super) fn of(run_dir: &Path, owner: &OwnerKey) -> Self {
        Self(run_dir.join(&hex::encode(Sha256::digest(owner.id()))[..12]))
    }

    /// Its last part, unlike that of any other owner's.
    pub(super) fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Temporary folder of a confined server.
    pub(super) fn temporary(&self) -> PathBuf {
        self.0.join("tmp")
    }

    pub(super) fn server_log(&self) -> PathBuf {
        self.0.join("server.log")
    }

    fn owner(&self) -> Option<OwnerKey> {
        serde_json::from_slice(&std::fs::read(self.0.join("owner.json")).ok()?).ok()
    }

    /// Whether a bridge lives here.
    pub(super) fn is_held(&self) -> bool {
        let Ok(lock) = File::options().write(true).open(self.0.join("lock")) else { return false };
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// The object as it was applied, with the launch specification that the bridge really reads.
    pub(super) fn object(&self) -> Result<Option<Object>, ProcessError> {
        let Some(mut object) = self.read("object.json")? else { return Ok(None) };
        let Some(owner) = self.owner() else { return Ok(None) };
        let mut launch = self.read("launch.json")?.unwrap_or_default();
        let digest = launch.as_object_mut().and_then(|launch| launch.remove("digest")).unwrap_or_default();
        object["launch"] = launch;
        let mut object = Object::new(lower::bridge_id(&owner), lower::BRIDGE_STAGE, Change::Recreate, object);
        object.digest = digest.as_str().unwrap_or_default().to_owned();
        Ok(Some(object))
    }

    /// The control group that the server was given, also by a daemon that could give one and this one cannot.
    pub(super) fn cgroup(&self) -> Option<PathBuf> {
        let launch = self.read("launch.json").ok()??;
        launch["child"]["limits"]["cgroup"]["path"].as_str().map(PathBuf::from)
    }

    fn read(&self, name: &str) -> Result<Option<Value>, ProcessError> {
        let path = self.0.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| ProcessError::Malformed {
                what: path.display().to_string(),
                wanted: "JSON",
                source,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ProcessError::File { action: "read", path, source }),
        }
    }

    /// Makes the folder and what a bridge needs in it. Each file is whole or absent; the owner comes first, so that a
    /// folder which a crash left behind is somebody's.
    pub(super) fn write(&self, owner: &OwnerKey, object: &Object, seam: &Seam) -> Result<(), ProcessError> {
        let failed = |source| ProcessError::File { action: "create", path: self.0.clone(), source };
        seam.before("create the folder")?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        seam.before("create the temporary folder")?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.temporary()).map_err(failed)?;
        seam.before("write owner.json")?;
        self.put("owner.json", &serde_json::to_value(owner).unwrap_or_default())?;
        let launch = launch_of(object)?;
        seam.before("write object.json")?;
        self.put(
            "object.json",
            &json!({"secrets": object.body["secrets"], "restartedAt": object.body["restartedAt"]}),
        )?;
        seam.before("write launch.json")?;
        self.put("launch.json", &serde_json::to_value(launch).unwrap_or_default())
    }

    fn put(&self, name: &str, document: &Value) -> Result<(), ProcessError> {
        let path = self.0.join(name);
        let write = || {
            let mut draft = tempfile::Builder::new().prefix(".draft").tempfile_in(&self.0)?;
            draft.write_all(document.to_string().as_bytes())?;
            draft.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| ProcessError::File { action: "write", path: path.clone(), source })
    }

    /// What the bridge itself prints: nothing, unless it fails.
    pub(super) fn bridge_log(&self) -> Result<File, ProcessError> {
        let path = self.0.join("bridge.log");
        File::create(&path).map_err(|source| ProcessError::File { action: "create", path, source })
    }

    pub(super) fn bridge_output(&self) -> String {
        let mut text = std::fs::read_to_string(self.0.join("bridge.log")).unwrap_or_default();
        text.truncate(text.floor_char_boundary(500));
        text.trim().to_owned()
    }

    /// What the bridge wrote when it took the lock.
    pub(super) fn record(&self) -> Option<BridgeRecord> {
        serde_json::from_slice(&std::fs::read(self.0.join("bridge.json")).ok()?).ok()
    }

    /// Kills the bridge by its record, if the process of that id is still the one that wrote it.
    pub(super) fn kill_bridge(&self) {
        if let Some(record) = self.record()
            && sweep::start_ticks(record.pid) == Some(record.start_ticks)
            && let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw)
        {
            // Gone already is what is wanted.
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }

    /// Removes the folder; the owner's name goes last, so that a crash in between leaves a folder that is known.
    pub(super) fn delete(&self, seam: &Seam) -> Result<(), ProcessError> {
        let failed = |source| ProcessError::File { action: "delete", path: self.0.clone(), source };
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_name() == "owner.json" {
                continue;
            }
            seam.before("delete a file of the folder")?;
            if entry.file_type().map_err(failed)?.is_dir() {
                std::fs::remove_dir_all(entry.path()).map_err(failed)?;
            } else {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        seam.before("delete the folder")?;
        std::fs::remove_dir_all(&self.0).map_err(failed)
    }
}
