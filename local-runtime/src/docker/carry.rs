//! The bridge on an engine: a static program in a named volume, which containers mount read-only.
//!
//! A container's read-only root takes no file, so the volume is filled through a container that is never started. A fill
//! that was cut off is seen by the file's size; the digest is in the volume's name.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, VolumeCreateRequest};
use bollard::query_parameters::{
    ContainerArchiveInfoOptions, CreateContainerOptions, RemoveVolumeOptions, UploadToContainerOptions,
};

use sha2::{Digest, Sha256};

use super::container::label;
use super::engine::{Engine, EngineError, is_absent, is_conflict};
use super::{lower, names};

/// Name of the program in the volume.
pub(super) const PROGRAM: &str = "mcp-bridge";
const HELPER: &str = "bridge";
/// Names a helper's volume.
const VOLUME: &str = "mcphub.io/volume";

/// A static program of ours that can be brought into containers: a bridge, or a relay.
#[derive(Debug, Clone)]
pub struct Program {
    /// As images name it: `amd64`, `arm64`.
    pub architecture: String,
    /// The beginning of its SHA-256 in lower-case hex, see [`DIGITS`].
    pub digest: String,
    pub image: ProgramImage,
}

/// Digits of a digest that tell one program from another.
pub const DIGITS: usize = 16;

#[derive(Debug, Clone)]
pub enum ProgramImage {
    Carried(&'static [u8]),
    Kept(PathBuf),
}

impl Program {
    /// Its bytes; `None` if they are others by now: kept ones lay in a folder for a while.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, EngineError> {
        let bytes = match &self.image {
            ProgramImage::Carried(bytes) => bytes.to_vec(),
            ProgramImage::Kept(path) => {
                let path = path.clone();
                std::fs::read(&path).map_err(|source| EngineError::File { path, source })?
            }
        };
        Ok(hex::encode(Sha256::digest(&bytes)).starts_with(&self.digest).then_some(bytes))
    }
}

/// The bridges of this release, and those of earlier ones that containers may still have.
#[derive(Debug, Clone)]
pub struct Bridges {
    own: Vec<Program>,
    kept: Vec<Program>,
    folder: PathBuf,
}

impl Bridges {
    /// `own`: one for each architecture. `folder`: where those that were brought into containers are kept, for as long as a
    /// container may need one that a newer release no longer carries.
    pub fn new(own: Vec<Program>, folder: PathBuf) -> Self {
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let kept = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let (architecture, digest) = name.split_once('-')?;
            let image = ProgramImage::Kept(file.path());
            (digest.len() == DIGITS).then(|| Program {
                architecture: architecture.to_owned(),
                digest: digest.to_owned(),
                image,
            })
        });
        Self { own, kept: kept.collect(), folder }
    }

    /// The bridge that a container was made with, if it is at hand: an upgrade rolls nothing. Else that of this release.
    pub(super) fn choose(&self, kept: Option<&str>, architecture: &str) -> Option<&Program> {
        let mut fitting = self.own.iter().chain(&self.kept).filter(|bridge| bridge.architecture == architecture);
        let pinned = fitting.clone().find(|bridge| Some(bridge.digest.as_str()) == kept);
        pinned.or_else(|| fitting.next())
    }

    fn of_volume(&self, installation: &str, volume: &str) -> Option<&Program> {
        let mut all = self.own.iter().chain(&self.kept);
        all.find(|bridge| names::bridge_volume(installation, &bridge.digest) == volume)
    }

    /// Keeps what a later release may not carry. One that cannot be kept rolls its container then, which is no reason not to
    /// start it now.
    fn keep(&self, bridge: &Program) {
        let ProgramImage::Carried(image) = &bridge.image else { return };
        let path = self.folder.join(format!("{}-{}", bridge.architecture, bridge.digest));
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let mut draft = tempfile::NamedTempFile::new_in(&self.folder)?;
            draft.write_all(image)?;
            draft.persist(&path)?;
            Ok(())
        };
        if !path.exists()
            && let Err(error) = write()
        {
            tracing::warn!(path = %path.display(), %error, "the bridge was not kept");
        }
    }

    /// Makes sure that the volume holds its bridge whole.
    pub(super) async fn bring(
        &self,
        engine: &Engine,
        installation: &str,
        volume: &str,
        image: &str,
    ) -> Result<(), EngineError> {
        let bridge = self.of_volume(installation, volume);
        let missing = || EngineError::NoBridge { architecture: engine.facts().architecture.clone() };
        let bridge = bridge.ok_or_else(missing)?;
        let program = bridge.read()?.ok_or_else(missing)?;
        let labels = labels(installation);
        let request =
            VolumeCreateRequest { name: Some(volume.to_owned()), labels: Some(labels.clone()), ..Default::default() };
        engine.api.create_volume(request).await.map_err(|error| engine.failed("create", volume, error))?;

        let helper = Helper::create(engine, volume, image, labels).await?;
        let filled = helper.fill(&program).await;
        engine.discard(&helper.name).await?;
        filled?;
        self.keep(bridge);
        Ok(())
    }
}

/// Makes a volume of the user's data if it is not there. A new one is open to whoever runs there; engines would give it to
/// root, who runs nothing here.
pub(super) async fn open(engine: &Engine, installation: &str, volume: &str, image: &str) -> Result<(), EngineError> {
    if engine.has_volume(volume).await? {
        return Ok(());
    }
    // Without our mark: what users keep there is not ours to remove.
    let request = VolumeCreateRequest { name: Some(volume.to_owned()), ..Default::default() };
    engine.api.create_volume(request).await.map_err(|error| engine.failed("create", volume, error))?;
    let helper = Helper::create(engine, volume, image, labels(installation)).await?;
    let opened = helper.upload("/", &root()).await;
    engine.discard(&helper.name).await?;
    if opened.is_err() {
        // Closed it would be taken for done; nothing is in it yet.
        engine.api.remove_volume(volume, None::<RemoveVolumeOptions>).await.unwrap_or_default();
    }
    opened
}

/// Removes helpers that somebody left who was killed.
pub(super) async fn remove_helpers(engine: &Engine, mark: &str) -> Result<(), EngineError> {
    for labels in engine.labels(&[mark.to_owned(), format!("{}={HELPER}", label::ROLE)]).await? {
        if let Some(volume) = labels.get(VOLUME) {
            engine.discard(&helper_of(volume)).await?;
        }
    }
    Ok(())
}

fn labels(installation: &str) -> HashMap<String, String> {
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    HashMap::from([text(label::INSTALLATION, installation), text(label::ROLE, HELPER)])
}

fn helper_of(volume: &str) -> String {
    format!("{volume}-fill")
}

/// The container that is never started.
struct Helper<'a> {
    engine: &'a Engine,
    name: String,
}

impl<'a> Helper<'a> {
    async fn create(
        engine: &'a Engine,
        volume: &str,
        image: &str,
        labels: HashMap<String, String>,
    ) -> Result<Self, EngineError> {
        let name = helper_of(volume);
        let mut labels = labels;
        labels.insert(VOLUME.to_owned(), volume.to_owned());
        let mount = Mount {
            target: Some(lower::BRIDGE_DIR.to_owned()),
            typ: Some(MountType::VOLUME),
            source: Some(volume.to_owned()),
            read_only: Some(false),
            ..Mount::default()
        };
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec![format!("{}/{PROGRAM}", lower::BRIDGE_DIR)]),
            labels: Some(labels),
            host_config: Some(HostConfig {
                mounts: Some(vec![mount]),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        match engine.api.create_container(Some(options), body).await {
            // Left by one that was cut off: as good as a new one.
            Err(error) if is_conflict(&error) => {}
            other => {
                other.map_err(|error| engine.failed("create", &name, error))?;
            }
        }
        Ok(Self { engine, name })
    }

    async fn fill(&self, program: &[u8]) -> Result<(), EngineError> {
        let api = &self.engine.api;
        let path = format!("{}/{PROGRAM}", lower::BRIDGE_DIR);
        let options = ContainerArchiveInfoOptions { path };
        match api.get_container_archive_info(&self.name, Some(options)).await {
            Ok(found) if u64::try_from(found.size).is_ok_and(|size| size == program.len() as u64) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(self.engine.failed("look into", &self.name, error)),
        }
        self.upload(lower::BRIDGE_DIR, &archive(program)).await
    }

    async fn upload(&self, path: &str, archive: &std::io::Result<Vec<u8>>) -> Result<(), EngineError> {
        let failed = |source: &std::io::Error| EngineError::File { path: PROGRAM.into(), source: source.kind().into() };
        let archive = archive.as_ref().map_err(failed)?.clone();
        let api = &self.engine.api;
        let options = UploadToContainerOptions { path: path.to_owned(), ..Default::default() };
        let sent = api.upload_to_container(&self.name, Some(options), bollard::body_full(archive.into())).await;
        sent.map_err(|error| self.engine.failed("fill", &self.name, error))
    }
}

/// The folder that the volume is mounted at, for everybody, as `/tmp` is. Named from above: engines leave the folder that they
/// unpack into as it is.
fn root() -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    header.set_mtime(0);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, format!("{}/", lower::BRIDGE_DIR.trim_start_matches('/')), std::io::empty())?;
    archive.into_inner()
}

/// One file, executable for everybody.
fn archive(program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    header.set_mtime(0);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, PROGRAM, program)?;
    archive.into_inner()
}
