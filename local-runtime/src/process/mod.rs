//! The process runtime: each server is a program of this machine behind a bridge of its own.
//!
//! A server's bridge lives in a run folder ([`folder`]) that holds all there is to know of it; a new daemon adopts bridges
//! by looking at the folders' locks and asking their control sockets. The daemon may die at any point: what it left is
//! seen by [`Runtime::observe`] and finished by the next plan.

mod console;
mod folder;
mod lower;
mod seam;
mod source;
mod sweep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_hub_dataplane_api::launch::LaunchSpec;
use mcp_hub_dataplane_api::status::Phase;
use mcp_hub_packages::Packages;
use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::lower::{Lowered, Object, Unsupported};
use mcp_hub_reconcile::observed::{Failure, Observed, ObservedObject};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Console, Enforces, Progress, Runtime, RuntimeEvent, RuntimeInfo, Step, hints};
use mcp_hub_reconcile::workload::Workload;
use tokio::process::Command;
use tokio::sync::broadcast;
use tokio::task::AbortHandle;

use crate::control::Control;
use crate::follow;
use crate::host::Host;
use crate::prepare::Preparations;
use crate::secret_source::{self, SecretError, SecretSource, Secrets};
use console::ProcessConsole;
use folder::RunFolder;
#[cfg(feature = "testing")]
pub use seam::Hook;
use seam::Seam;
use source::Sources;

/// Name of this runtime in statuses.
pub const NAME: &str = "process";
/// A bridge binds two sockets and answers; even on a busy machine that takes far less.
const BRIDGE_START: Duration = Duration::from_secs(20);
/// A stop takes the server's grace period at most, and a little.
const BRIDGE_STOP: Duration = Duration::from_secs(15);
/// A bridge that finds its folder locked by one that is just ending is started again, this often.
const BRIDGE_STARTS: u32 = 5;
/// Exit code of such a bridge.
const EXIT_HELD: i32 = 3;
/// Events that a slow listener may lag behind before it is told to look at everything.
const EVENTS: usize = 256;

/// Where things lie.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// One folder a server lies below it; short, because control sockets do too.
    pub run_dir: PathBuf,
    pub cache_dir: PathBuf,
    /// The bridge program.
    pub bridge: PathBuf,
    /// Only owners of this installation are seen.
    pub installation: String,
    pub host: Host,
}

#[derive(Debug)]
pub struct ProcessRuntime {
    config: ProcessConfig,
    info: RuntimeInfo,
    secrets: Arc<dyn SecretSource>,
    seam: Seam,
    followers: Mutex<HashMap<OwnerKey, AbortHandle>>,
    preparations: Preparations,
    events: broadcast::Sender<RuntimeEvent>,
    console: ProcessConsole,
}

/// A failure of this runtime.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("could not {action} {path}", path = .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not start the bridge {path}", path = .path.display())]
    Spawn {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the bridge of {owner} ended at once: {output}")]
    Ended { owner: String, output: String },
    #[error("the bridge of {owner} does not answer on its control socket")]
    Mute { owner: String },
    #[error("{owner} is not known here")]
    Unknown { owner: String },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("processes of {owner} could not be ended: {pids:?}")]
    Undying { owner: String, pids: Vec<u32> },
    #[error("{what} holds no {wanted}")]
    Malformed {
        what: String,
        wanted: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("commands cannot be run inside a process server")]
    NoExec,
    /// Only in the crash sweep.
    #[error("cut off before: {deed}")]
    CutOff { deed: &'static str },
}

impl From<ProcessError> for RuntimeError {
    fn from(error: ProcessError) -> Self {
        let (reason, hint, retry) = match &error {
            ProcessError::File { .. } => ("RunFolderFailed", Some("is the disk full or read-only?"), Retry::Backoff),
            ProcessError::Spawn { .. } => ("BridgeMissing", None, Retry::Backoff),
            ProcessError::Ended { .. } => ("BridgeFailed", None, Retry::Backoff),
            ProcessError::Mute { .. } => ("BridgeMute", None, Retry::Backoff),
            ProcessError::Unknown { .. } => ("NotRunning", Some("start the server first"), Retry::OnChange),
            ProcessError::Secret(error) => (error.reason(), None, Retry::Backoff),
            ProcessError::Undying { .. } => ("ProcessesLeft", None, Retry::Backoff),
            ProcessError::Malformed { .. } => ("RunFolderFailed", None, Retry::Backoff),
            ProcessError::CutOff { .. } => ("CutOff", None, Retry::Backoff),
            ProcessError::NoExec => {
                ("Unsupported", Some("it runs on this machine: use your own shell"), Retry::OnChange)
            }
        };
        Self {
            reason,
            message: error.to_string(),
            hint: hint.map(str::to_owned),
            retry,
            source: std::error::Error::source(&error).map(|source| source.to_string().into()),
        }
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        for follower in self.followers.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            follower.abort();
        }
    }
}

impl ProcessRuntime {
    /// Adopts the bridges that run already. Needs a tokio runtime.
    pub fn new(config: ProcessConfig, secrets: Arc<dyn SecretSource>) -> Result<Arc<Self>, ProcessError> {
        Self::with_seam(config, secrets, Seam::default())
    }

    /// As [`ProcessRuntime::new`], with a hook that may cut it off before anything it does to files and processes.
    #[cfg(feature = "testing")]
    pub fn with_hook(
        config: ProcessConfig,
        secrets: Arc<dyn SecretSource>,
        hook: Hook,
    ) -> Result<Arc<Self>, ProcessError> {
        Self::with_seam(config, secrets, Seam::new(hook))
    }

    fn with_seam(config: ProcessConfig, secrets: Arc<dyn SecretSource>, seam: Seam) -> Result<Arc<Self>, ProcessError> {
        let failed = |source| ProcessError::File { action: "create", path: config.run_dir.clone(), source };
        std::fs::create_dir_all(&config.run_dir).map_err(failed)?;
        let events = broadcast::Sender::new(EVENTS);
        let runtime = Arc::new(Self {
            info: RuntimeInfo {
                name: NAME.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                enforces: Enforces {
                    filesystem: config.host.landlock,
                    memory_limit: config.host.cgroup.as_ref().is_some_and(|group| group.memory),
                    cpu_limit: config.host.cgroup.as_ref().is_some_and(|group| group.cpu),
                    ..Enforces::default()
                },
                collects_garbage: false,
                bridge: None,
            },
            preparations: Preparations::new(
                Arc::new(Sources::new(
                    Packages::new(&config.cache_dir.join("packages"), config.host.env.clone()),
                    config.host.clone(),
                )),
                events.clone(),
            ),
            console: ProcessConsole::new(config.run_dir.clone()),
            events,
            secrets,
            seam,
            followers: Mutex::default(),
            config,
        });
        for (owner, folder) in runtime.folders()? {
            runtime.follow(owner, &folder);
        }
        Ok(runtime)
    }

    fn folder(&self, owner: &OwnerKey) -> RunFolder {
        RunFolder::of(&self.config.run_dir, owner)
    }

    /// Run folders of this installation.
    fn folders(&self) -> Result<Vec<(OwnerKey, RunFolder)>, ProcessError> {
        let mut all = folder::all(&self.config.run_dir)?;
        all.retain(|(owner, _)| owner.installation == self.config.installation);
        Ok(all)
    }

    /// One follower an owner: a successor's takes its place.
    fn follow(&self, owner: OwnerKey, folder: &RunFolder) {
        let follower = tokio::spawn(follow::run(
            owner.clone(),
            Control::at_socket(folder.control_socket()),
            folder.clone(),
            self.events.clone(),
        ));
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(predecessor) = followers.insert(owner, follower.abort_handle()) {
            predecessor.abort();
        }
    }

    async fn apply(&self, owner: &OwnerKey, object: &Object, secrets: &Secrets) -> Result<(), ProcessError> {
        let folder = self.folder(owner);
        let control = Control::at_socket(folder.control_socket());
        let runs_it = folder.is_held()
            && folder.object()?.is_some_and(|found| found.digest == object.digest)
            && control.status().await.is_ok_and(|status| status.digest == object.digest);
        if !runs_it {
            // A bridge of another digest, or strays of a dead one, are in the way.
            self.end(owner, &folder).await?;
            folder.write(owner, object, &self.seam)?;
            self.spawn_bridge(owner, &folder, &control).await?;
            self.follow(owner.clone(), &folder);
        }
        if !secrets.is_empty() {
            self.seam.before("push secrets")?;
            control.push_secrets(secrets).await.map_err(|_| ProcessError::Mute { owner: owner.to_string() })?;
        }
        self.tell(owner);
        Ok(())
    }

    async fn spawn_bridge(&self, owner: &OwnerKey, folder: &RunFolder, control: &Control) -> Result<(), ProcessError> {
        let mut starts = 1;
        let mut bridge = self.spawn(folder)?;
        let started = Instant::now();
        loop {
            if control.status().await.is_ok() {
                break;
            }
            match bridge.try_wait() {
                // Somebody looked at the lock at the moment the bridge took it.
                Ok(Some(exit)) if exit.code() == Some(EXIT_HELD) && starts < BRIDGE_STARTS => {
                    starts += 1;
                    bridge = self.spawn(folder)?;
                }
                Ok(Some(_)) => {
                    let output = folder.bridge_output();
                    return Err(ProcessError::Ended { owner: owner.to_string(), output });
                }
                Ok(None) | Err(_) => {}
            }
            if started.elapsed() > BRIDGE_START {
                return Err(ProcessError::Mute { owner: owner.to_string() });
            }
            // A socket that is about to be bound gives no event; it takes a few milliseconds.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        // Collects it when it ends, so that no zombie is left.
        tokio::spawn(async move { bridge.wait().await });
        Ok(())
    }

    fn spawn(&self, folder: &RunFolder) -> Result<tokio::process::Child, ProcessError> {
        let path = self.config.bridge.clone();
        self.seam.before("create bridge.log")?;
        let output = folder.bridge_log()?;
        let errors = output.try_clone().map_err(|source| ProcessError::Spawn { path: path.clone(), source })?;
        self.seam.before("spawn the bridge")?;
        Command::new(&path)
            .arg(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Not in the daemon's group: Ctrl-C in its terminal is not meant for servers.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| ProcessError::Spawn { path, source })
    }

    async fn secrets_of(&self, owner: &OwnerKey, object: &Object) -> Result<Secrets, ProcessError> {
        Ok(secret_source::values(&*self.secrets, owner, &object.body).await?)
    }

    fn tell(&self, owner: &OwnerKey) {
        // Nobody listening is no loss: who listens later looks at everything first.
        self.events.send(RuntimeEvent::Changed(owner.clone())).ok();
    }

    /// Ends the bridge, its server and every stray, and leaves the folder.
    async fn end(&self, owner: &OwnerKey, folder: &RunFolder) -> Result<(), ProcessError> {
        if folder.is_held() {
            let control = Control::at_socket(folder.control_socket());
            self.seam.before("stop the bridge")?;
            let stopped = tokio::time::timeout(BRIDGE_STOP, control.stop()).await;
            if !matches!(stopped, Ok(Ok(()))) {
                folder.kill_bridge();
            }
            let started = Instant::now();
            while folder.is_held() {
                if started.elapsed() > BRIDGE_STOP {
                    folder.kill_bridge();
                }
                if started.elapsed() > 2 * BRIDGE_STOP {
                    return Err(ProcessError::Mute { owner: owner.to_string() });
                }
                // The lock's end gives no event.
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        self.seam.before("end strays")?;
        // First bridges that a dead daemon started and that have not taken the lock yet, then what servers left.
        sweep::end_bridges(owner, folder.path()).await?;
        sweep::end_strays(owner).await?;
        match folder.cgroup() {
            Some(group) => sweep::end_group(owner, &group).await,
            None => Ok(()),
        }
    }

    async fn remove(&self, owner: &OwnerKey) -> Result<(), ProcessError> {
        let folder = self.folder(owner);
        self.end(owner, &folder).await?;
        folder.delete(&self.seam)?;
        self.preparations.forget(owner);
        let follower = self.followers.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
        if let Some(follower) = follower {
            follower.abort();
        }
        self.tell(owner);
        Ok(())
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported> {
        lower::lower(workload, &self.config.host, &self.config.run_dir)
    }

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError> {
        Ok(self.folders()?.into_iter().map(|(owner, _)| owner).collect())
    }

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError> {
        let folder = self.folder(owner);
        let mut observed = Observed { prepare: self.preparations.state(owner), ..Observed::default() };
        if !folder.exists() {
            return Ok(observed);
        }
        let object = folder.object().unwrap_or_default();
        // A folder without a living bridge is a leftover: known, but in nobody's sense in sync.
        let mut digest = None;
        if folder.is_held() {
            match Control::at_socket(folder.control_socket()).status().await {
                Ok(status) => {
                    // What the bridge really runs: it may have read its specification before the last one was written.
                    // And one that waits for its secrets was left by a daemon that died before it could push them.
                    let waits = matches!(status.phase, Phase::WaitingForSecrets { .. });
                    digest = Some(status.digest.clone()).filter(|_| !waits);
                    observed.bridge = Some(status);
                }
                Err(_) => {
                    digest = folder.record().map(|record| record.digest);
                    observed.failure = Some(Failure {
                        reason: "BridgeMute",
                        message: "the server's bridge does not answer".to_owned(),
                        hint: None,
                        retry: Retry::Backoff,
                    });
                }
            }
        }
        observed.objects.push(ObservedObject {
            id: lower::bridge_id(owner),
            stage: lower::BRIDGE_STAGE,
            digest: digest.filter(|digest| object.as_ref().is_some_and(|object| object.digest == *digest)),
            body: object.map(|object| object.body).unwrap_or_default(),
        });
        Ok(observed)
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError> {
        match step {
            Step::Prepare(object) => {
                self.preparations.start(owner, object);
                return Ok(Progress::Pending);
            }
            Step::Apply(object) => {
                let secrets = self.secrets_of(owner, object).await?;
                self.apply(owner, object, &secrets).await?;
            }
            Step::Replace(object) => {
                let secrets = self.secrets_of(owner, object).await?;
                self.end(owner, &self.folder(owner)).await?;
                self.apply(owner, object, &secrets).await?;
            }
            Step::Remove(_) => self.remove(owner).await?,
        }
        Ok(Progress::Done)
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        hints(&self.events)
    }

    fn console(&self) -> &dyn Console {
        &self.console
    }
}

/// The launch specification inside an object's body.
fn launch_of(object: &Object) -> Result<LaunchSpec, ProcessError> {
    lower::launch(object).map_err(|source| ProcessError::Malformed {
        what: object.id.to_string(),
        wanted: "launch specification",
        source,
    })
}
