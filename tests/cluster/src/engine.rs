//! A container engine of a test's own, in a network namespace of its own: what it publishes on 127.0.0.1 is reached by who
//! enters it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::cluster::{made_up_name, sweep};
use crate::error::Error;
use crate::files;
use crate::folder::{Folder, registry};
use crate::namespace::NODE;
use crate::parts::Part;
use crate::process::{self, Record};
use crate::teardown::teardown;
use crate::tools::{self, Tool};

/// An engine begins to answer within a second; one that starts beside others on a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Addresses in an engine's network namespace that it speaks to in clear, for registries of the test. Docker does so to all of
/// 127.0.0.1, Podman only where it was told.
pub const REGISTRIES: [&str; 2] = ["127.0.0.1:5000", "127.0.0.1:5001"];

/// What an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    Docker,
    Podman,
}

impl EngineKind {
    fn part(self) -> Part {
        match self {
            Self::Docker => Part::Docker,
            Self::Podman => Part::Podman,
        }
    }

    /// Programs of the machine that it needs and that are not there.
    pub fn missing(self) -> Vec<Tool> {
        tools::missing_for_engine(self)
    }
}

/// An engine that answers. Dropped, it is ended with all its containers, and nothing of it is left.
#[derive(Debug)]
pub struct Engine {
    folder: Folder,
    kind: EngineKind,
    child: Option<Child>,
    lock: Option<File>,
}

impl Engine {
    /// Starts an engine that has no image, container or network. What killed tests left behind is ended first.
    ///
    /// # Errors
    /// It is not installed, this is not root, or it does not begin to answer.
    pub fn up(kind: EngineKind) -> Result<Self, Error> {
        Self::up_with(kind, None)
    }

    /// As [`Engine::up`], with so many bytes for its images, containers and volumes, at [`Engine::data`].
    ///
    /// # Errors
    /// As [`Engine::up`], or if the kernel does not give the room.
    pub fn up_on_disk(kind: EngineKind, bytes: u64) -> Result<Self, Error> {
        Self::up_with(kind, Some(bytes))
    }

    fn up_with(kind: EngineKind, disk: Option<u64>) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let missing = kind.missing();
        if !missing.is_empty() {
            return Err(Error::NotInstalled(missing));
        }
        let folder = Folder::of(&made_up_name())?;
        let registry = registry()?;
        sweep()?;
        let lock = folder.create()?;
        drop(registry);
        let mut engine = Self { folder, kind, child: None, lock: Some(lock) };
        engine.folder.namespace().create()?;
        engine.configure()?;
        if let Some(bytes) = disk {
            let data = engine.data();
            files::make(&data)?;
            let size = CString::new(format!("size={bytes}")).unwrap_or_default();
            let mounted = rustix::mount::mount("tmpfs", &data, "tmpfs", MountFlags::empty(), Some(&*size));
            mounted.map_err(|error| Error::file("mount", &data)(error.into()))?;
        }
        engine.start()?;
        Ok(engine)
    }

    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// `unix://PATH` of its Docker-compatible API.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    /// Where it keeps images, containers and volumes.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.log(self.kind.part())
    }

    /// Moves the calling thread, and what it starts from now on, to where published ports are.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<(), Error> {
        self.folder.namespace().enter()
    }

    /// A command that runs where published ports are. It is killed with the engine.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.folder.namespace().command(program.as_ref())
    }

    /// Kills the engine as a crash would, and waits until it is gone. Containers of Docker without live restore, and all of
    /// Podman's, are left as they are.
    ///
    /// # Errors
    /// If it stays.
    pub fn kill(&mut self) -> Result<(), Error> {
        if let Some(mut child) = self.child.take() {
            // With what it started for itself, which is another service where engines are installed. Containers are none of
            // its children.
            let own: Vec<Record> = Record::of(child.id()).into_iter().collect();
            process::descendants(&own).iter().for_each(|record| record.signal(Signal::KILL));
            child.wait().map_err(|source| Error::Start { program: self.kind.part().name().to_owned(), source })?;
        }
        // A successor would wait for who has these ids, who may be dead and not reaped.
        files::remove(&self.folder.path().join("state/containerd/containerd.pid"))?;
        files::remove(&self.folder.path().join("docker.pid"))
    }

    /// Stops the engine's process where it is, so that it answers nothing, until what this gives is dropped.
    pub fn pause(&self) -> Paused<'_> {
        self.signal(Signal::STOP);
        Paused(self)
    }

    fn signal(&self, signal: Signal) {
        let record = self.child.as_ref().and_then(|child| Record::of(child.id()));
        record.into_iter().for_each(|record| record.signal(signal));
    }

    /// Starts the engine again after [`Engine::kill`], and waits until it answers.
    ///
    /// # Errors
    /// If it does not begin to answer.
    pub fn start(&mut self) -> Result<(), Error> {
        let part = self.kind.part();
        let mut command = self.folder.namespace().command(part.name());
        command.args(self.arguments());
        command.env("CONTAINERS_CONF", self.folder.at("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.folder.at("storage.conf"));
        command.env("CONTAINERS_REGISTRIES_CONF", self.folder.at("registries.conf"));
        let path = self.log();
        let log = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
        let copy = log.try_clone().map_err(Error::file("open", &path))?;
        command.stdin(Stdio::null()).stdout(copy).stderr(log).process_group(0).current_dir(self.folder.path());
        let child = command.spawn().map_err(|source| Error::Start { program: process::name(&command), source })?;
        if let Some(record) = Record::of(child.id()) {
            self.folder.record(part, record)?;
        }
        let child = self.child.insert(child);
        let deadline = Instant::now() + PATIENCE;
        while !answers(&self.folder.path().join("engine.sock")) {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(10).collect();
                let log = end.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(Error::Ended { part: part.name(), status, log });
            }
            if Instant::now() > deadline {
                let what = format!("{} answers", part.name());
                return Err(Error::Late { what, after: PATIENCE, logs: self.folder.logs() });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn configure(&self) -> Result<(), Error> {
        let write = |name: &str, text: String| files::write(&self.folder.path().join(name), text);
        // Names are the node's to know, as on a machine with a resolver of its own; what a test does not answer nobody does.
        // What a registry does wrong is seen at once, and not after tries of the engine's own, half a minute apart.
        write("daemon.json", format!("{{\"dns\": [\"{NODE}\"], \"max-download-attempts\": 1}}"))?;
        let in_clear = REGISTRIES.map(|address| format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n"));
        write("registries.conf", in_clear.concat())?;
        // Limits for a machine that allows less than what Podman sets by itself. Both the same: its Docker API takes the one
        // for the other (seen with 4.3).
        write(
            "containers.conf",
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
                 dns_servers = [\"{NODE}\"]\n\
                 [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
                 events_logfile_path = \"{0}\"\nstatic_dir = \"{1}\"\nvolume_path = \"{2}\"\n\
                 [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{3}\"\n",
                self.folder.at("events.log"),
                self.folder.at("libpod"),
                self.folder.at("volumes"),
                self.folder.at("networks"),
            ),
        )?;
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
                self.folder.at("data"),
                self.folder.at("state"),
            ),
        )
    }

    fn arguments(&self) -> Vec<String> {
        let at = |name: &str| self.folder.at(name);
        let words: Vec<String> = match self.kind {
            EngineKind::Docker => vec![
                format!("--host={}", self.address()),
                format!("--config-file={}", at("daemon.json")),
                format!("--data-root={}", at("data")),
                format!("--exec-root={}", at("state")),
                format!("--pidfile={}", at("docker.pid")),
                format!("--cgroup-parent=/{}", self.folder.mark()),
                "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
            ],
            EngineKind::Podman => {
                vec!["system".to_owned(), "service".to_owned(), "--time=0".to_owned(), self.address()]
            }
        };
        words
    }
}

/// An engine that answers nothing. Dropped, it goes on.
#[derive(Debug)]
pub struct Paused<'a>(&'a Engine);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // While the folder goes, it would look abandoned to others.
        let outcome = registry().and_then(|_registry| teardown(&self.folder));
        if let Some(child) = &mut self.child
            && outcome.is_ok()
        {
            // Killed above, so it waits for nothing.
            child.wait().map(drop).unwrap_or_default();
        }
        self.lock = None;
        if let Err(error) = outcome {
            // A panic here would hide the test's own.
            let _ = writeln!(std::io::stderr(), "the engine is not wholly gone: {error}");
        }
    }
}

/// Whether a Docker-compatible API answers on the socket.
fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.") && answer.contains(" 200 "))
}
