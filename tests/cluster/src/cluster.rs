//! A cluster: brought up step by step, used, taken down.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::door::Door;
use crate::error::Error;
use crate::folder::{Folder, registry};
use crate::namespace::NODE;
use crate::parts::{API_PORT, API_SERVICE, FAKE, NODE_NAME, Part};
use crate::pki::{Authority, Identity, account_keys};
use crate::process::{self, Record};
use crate::programs::Programs;
use crate::teardown::{make_groups, teardown};
use crate::{files, node, tools};

/// Longest wait for any step. The slowest seen took 8 s on two busy cores; timing decides nothing here.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);

/// What runs in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// etcd and the API server: objects are kept and checked, nothing acts on them.
    ApiServer,
    /// With the controller manager and the scheduler: deployments make pods, owners are collected, nothing runs.
    ControlPlane,
    /// With a node that runs pods, services and DNS.
    Node,
}

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct Options {
    pub shape: Shape,
    /// 1 to 20 lower-case letters, digits and dashes; made up if none is given.
    pub name: Option<String>,
    /// An audit policy in YAML, such as [`Options::AUDIT_WRITES`]; the log is [`Cluster::audit_log`].
    pub audit: Option<String>,
    /// More arguments for the API server, such as `--etcd-compaction-interval=10s`.
    pub api_server: Vec<String>,
}

impl Options {
    /// Records who wrote what, without bodies.
    pub const AUDIT_WRITES: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
        - {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}\n- {level: None}\n";

    pub fn new(shape: Shape) -> Self {
        Self { shape, name: None, audit: None, api_server: Vec::new() }
    }
}

/// A cluster that is up. Dropped, it is taken down, unless it was [detached](Cluster::detach) or only
/// [attached](Cluster::attach) to.
#[derive(Debug)]
pub struct Cluster {
    folder: Folder,
    options: Options,
    programs: Programs,
    /// Of this process; an attached cluster's are others'.
    children: Mutex<BTreeMap<Part, Child>>,
    door: Option<Door>,
    /// Held by the owner as long as it lives.
    lock: Option<File>,
}

impl Cluster {
    /// Brings a cluster up and waits until it is of use: about 4 s for a control plane, 8 s with a node. Clusters that a
    /// killed process left behind are taken down first.
    ///
    /// # Errors
    /// If a program is not built or not installed, or a step fails; then what was started is taken down again.
    pub fn up(options: Options) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let programs = Programs::find()?;
        let missing = tools::missing(options.shape);
        if !missing.is_empty() {
            return Err(Error::NotInstalled(missing));
        }
        let folder = Folder::of(&options.name.clone().unwrap_or_else(made_up_name))?;
        let registry = registry()?;
        sweep()?;
        let lock = folder.create()?;
        drop(registry);
        let mut cluster = Self { folder, options, programs, children: Mutex::default(), door: None, lock: Some(lock) };
        cluster.folder.namespace().create()?;
        cluster.start_control_plane()?;
        if cluster.options.shape >= Shape::ControlPlane {
            cluster.start_controllers()?;
        }
        if cluster.options.shape == Shape::Node {
            cluster.start_node()?;
        }
        Ok(cluster)
    }

    /// A handle to a cluster that is up, for as long as its owner wants.
    ///
    /// # Errors
    /// [`Error::NotUp`] if there is none of this name.
    pub fn attach(name: &str) -> Result<Self, Error> {
        let (folder, programs) = (Folder::of(name)?, Programs::find()?);
        if !folder.path().join("kubeconfig").is_file() {
            return Err(Error::NotUp(name.to_owned()));
        }
        // What it is made of is seen from what runs; the rest is the owner's business.
        let has = |part| folder.recorded(part).is_some();
        let shape = match (has(Part::ControllerManager), has(Part::Kubelet)) {
            (_, true) => Shape::Node,
            (true, false) => Shape::ControlPlane,
            (false, false) => Shape::ApiServer,
        };
        let options = Options { name: Some(name.to_owned()), ..Options::new(shape) };
        Ok(Self { folder, options, programs, children: Mutex::default(), door: None, lock: None })
    }

    /// Leaves the cluster up when this process ends. `door` is the command of a process that calls [`Cluster::hold_door`]
    /// and so keeps the API server's port.
    ///
    /// # Errors
    /// If that process does not begin to answer; the cluster is taken down then.
    pub fn detach(mut self, mut door: Command) -> Result<Self, Error> {
        self.door = None;
        self.spawn(Part::Door, &mut door)?;
        self.wait("the API server answers through the door", || self.is_ready())?;
        self.folder.detach()?;
        self.lock = None;
        Ok(self)
    }

    /// Keeps the API server's port of a detached cluster until this process is ended.
    ///
    /// # Errors
    /// If there is no such cluster, or its port is taken.
    pub fn hold_door(name: &str) -> Result<(), Error> {
        let folder = Folder::of(name)?;
        let path = folder.path().join("port");
        let text = std::fs::read_to_string(&path).map_err(|_| Error::NotUp(name.to_owned()))?;
        let port = text.trim().parse().map_err(io::Error::other).map_err(Error::file("read", path))?;
        Door::open(&folder.namespace(), port, api_address())?.hold();
        Ok(())
    }

    /// Takes the cluster down, whoever started it, and says so if anything stays.
    ///
    /// # Errors
    /// [`Error::Remains`] if a process or a mount cannot be ended.
    pub fn down(mut self) -> Result<(), Error> {
        let outcome = self.take_down();
        self.lock = None;
        outcome
    }

    /// Takes a cluster of this name down, also one that is only half there, and all that killed processes left behind.
    ///
    /// # Errors
    /// [`Error::Remains`] if a process or a mount cannot be ended.
    pub fn down_named(name: &str) -> Result<(), Error> {
        let folder = Folder::of(name)?;
        let _registry = registry()?;
        teardown(&folder)?;
        sweep()
    }

    pub fn name(&self) -> &str {
        &self.folder.name
    }

    /// For programs of this machine: the administrator, through a port of 127.0.0.1. Needs no other file.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// For programs in the cluster's network, as those of [`command`](Self::command).
    pub fn kubeconfig_inside(&self) -> PathBuf {
        self.folder.path().join("inside.kubeconfig")
    }

    /// One JSON document a line, if [`Options::audit`] has a policy.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// Where each part writes its log.
    pub fn logs(&self) -> PathBuf {
        self.folder.logs()
    }

    /// Runs kubectl as the administrator and gives what it printed.
    ///
    /// # Errors
    /// If it fails; the error has what it said.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String, Error> {
        process::output(self.kubectl_command().args(arguments).stdin(Stdio::null()))
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// If an object of it is refused; the error has what the API server said.
    pub fn apply(&self, manifest: &str) -> Result<String, Error> {
        // A file, because a pipe that is both written and read can get stuck.
        let failed = Error::file("write", self.folder.path());
        let mut file = tempfile::NamedTempFile::new_in(self.folder.path()).map_err(failed)?;
        io::Write::write_all(&mut file, manifest.as_bytes()).map_err(Error::file("write", file.path()))?;
        self.kubectl(["apply".as_ref(), "--filename".as_ref(), file.path().as_os_str()])
    }

    /// kubectl as the administrator, for callers who give it input or follow its output.
    pub fn kubectl_command(&self) -> Command {
        self.program("kubectl")
    }

    /// A program that was built with the cluster, such as `helm` or `kwok`, with the administrator's kubeconfig.
    pub fn program(&self, name: &str) -> Command {
        let mut program = Command::new(self.programs.path(name));
        program.env("KUBECONFIG", self.kubeconfig());
        // A cache of the user's would outlive the cluster, and be taken for the next one's at the same port.
        for variable in ["KUBECACHEDIR", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            program.env(variable, self.folder.path().join("home").join(variable));
        }
        program
    }

    /// A command that runs in the cluster's network, where pods and services can be reached by their addresses. It is
    /// killed with the cluster.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.folder.namespace().command(program);
        command.env("KUBECONFIG", self.kubeconfig_inside());
        command
    }

    /// A port of 127.0.0.1 that leads to an address in the cluster's network: a pod's, a service's, the node's.
    ///
    /// # Errors
    /// If no port is free.
    pub fn door(&self, target: SocketAddr) -> Result<Door, Error> {
        let failed = |source| Error::Door { target: target.to_string(), source };
        Door::open(&self.folder.namespace(), mcp_hub_test_port::free_port().map_err(failed)?, target)
    }

    /// Listens in the cluster's network, at [`NODE`] for example, which is the address of all pods of fake nodes.
    ///
    /// # Errors
    /// If the address is not the cluster's, or taken.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener, Error> {
        let bind = move || TcpListener::bind(address);
        self.folder.namespace().inside(bind)?.map_err(|source| Error::Listen { address, source })
    }

    /// Puts the images of an OCI archive on the node. Give them a tag other than `latest`, which pods would ask a registry
    /// for.
    ///
    /// # Errors
    /// If containerd does not take the archive.
    pub fn load(&self, archive: &Path) -> Result<(), Error> {
        let images = |arguments: &[&OsStr]| {
            let mut ctr = Command::new("ctr");
            ctr.args(["--address", &node::containerd_socket(&self.folder), "--namespace", "k8s.io", "images"]);
            process::output(ctr.args(arguments))
        };
        images(&["import".as_ref(), archive.as_os_str()])?;
        // kubelet sees an image only when containerd has told its own Kubernetes side, which then labels it.
        self.wait("containerd knows the image", || {
            let list = images(&["list".as_ref()]).unwrap_or_default();
            list.lines().skip(1).all(|line| line.contains("io.cri-containerd.image=managed"))
        })
    }

    /// Adds nodes that KWOK plays, each with room for 1,000 pods. Pods on them are Running and Ready at once, and nothing
    /// runs; all have the address [`NODE`].
    ///
    /// # Errors
    /// If KWOK cannot be started, or a node is refused.
    pub fn add_fake_nodes(&self, count: u32) -> Result<(), Error> {
        if !self.process(Part::Kwok).is_some_and(|kwok| kwok.lives()) {
            files::write(&self.folder.path().join("fake-nodes.yaml"), STAGES.replace("NODE", &NODE.to_string()))?;
            self.start(Part::Kwok)?;
        }
        let label = FAKE.replace('=', ": \"") + "\"";
        let room = "{cpu: \"1000\", memory: 1000Gi, pods: \"1000\"}";
        let nodes = (0..count).map(|number| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: fake{number}, labels: {{{label}}}}}\n\
                 status: {{allocatable: {room}, capacity: {room}}}\n"
            )
        });
        self.apply(&nodes.collect::<String>())?;
        let wait = ["wait", "--for=condition=Ready", "node", "--timeout=120s", "--selector", FAKE];
        self.kubectl(wait).map(drop)
    }

    /// Kills a part, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if it does not run.
    pub fn kill(&self, part: Part) -> Result<(), Error> {
        let record = self.folder.recorded(part).filter(Record::lives);
        let record = record.ok_or_else(|| Error::NotRunning { cluster: self.name().to_owned(), part: part.name() })?;
        record.signal(Signal::KILL);
        if let Some(mut child) = self.children().remove(&part) {
            child.wait().map_err(|source| Error::Start { program: part.name().to_owned(), source })?;
        }
        self.wait(&format!("{} is gone", part.name()), || !record.lives())
    }

    /// Starts a part that was killed, as it was. Does not wait until it is of use.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, part: Part) -> Result<(), Error> {
        let program = match part.is_built() {
            true => self.programs.path(part.name()),
            false => part.name().into(),
        };
        let mut command = self.folder.namespace().command(program);
        command.args(self.folder.arguments(part, || part.arguments(&self.folder, &self.options))?);
        self.spawn(part, &mut command)
    }

    /// The process of a part, if it was ever started.
    pub fn process(&self, part: Part) -> Option<Record> {
        self.folder.recorded(part)
    }

    /// Whether the API server answers and is ready.
    pub fn is_ready(&self) -> bool {
        self.kubectl(["get", "--raw=/readyz", "--request-timeout=2s"]).is_ok()
    }

    fn start_control_plane(&mut self) -> Result<(), Error> {
        self.write_identities()?;
        if let Some(policy) = &self.options.audit {
            files::write(&self.folder.path().join("audit-policy.yaml"), policy)?;
        }
        self.start(Part::Etcd)?;
        self.start(Part::ApiServer)?;
        let inside = self.folder.namespace();
        self.wait("the API server listens", || inside.answers(api_address()))?;
        self.wait("the API server is ready", || self.is_ready())
    }

    /// Certificates of everyone, the kubeconfigs, and the door that the outer one names.
    fn write_identities(&mut self) -> Result<(), Error> {
        let node = NODE.to_string();
        let authority = Authority::new()?;
        let api = ["127.0.0.1", "localhost", &node, API_SERVICE, "kubernetes.default.svc"];
        let api_server = authority.issue("kube-apiserver", "system:masters", &api)?;
        let admin = authority.issue("admin", "system:masters", &[])?;
        let kubelet = authority.issue(&format!("system:node:{NODE_NAME}"), "system:nodes", &[&node, NODE_NAME])?;

        let pki = self.folder.path().join("pki");
        files::write(&pki.join("ca.crt"), authority.certificate())?;
        let (signing, checking) = account_keys()?;
        files::write(&pki.join("accounts.key"), signing)?;
        files::write(&pki.join("accounts.pub"), checking)?;
        for (name, Identity { certificate, key }) in
            [("apiserver", &api_server), ("admin", &admin), ("kubelet", &kubelet)]
        {
            files::write(&pki.join(format!("{name}.crt")), certificate)?;
            files::write(&pki.join(format!("{name}.key")), key)?;
        }

        let door = self.door(api_address())?;
        files::write(&self.folder.path().join("port"), door.address().port().to_string())?;
        let (inside, outside) = (format!("https://{}", api_address()), format!("https://{}", door.address()));
        self.door = Some(door);
        authority.kubeconfig(&self.folder.path().join("kubelet.kubeconfig"), &inside, &kubelet)?;
        authority.kubeconfig(&self.kubeconfig_inside(), &inside, &admin)?;
        authority.kubeconfig(&self.kubeconfig(), &outside, &admin)
    }

    fn start_controllers(&self) -> Result<(), Error> {
        self.start(Part::ControllerManager)?;
        self.start(Part::Scheduler)?;
        // Pods are refused before it exists.
        self.wait("the default service account", || self.kubectl(["get", "serviceaccount", "default"]).is_ok())
    }

    fn start_node(&self) -> Result<(), Error> {
        node::configure(&self.folder)?;
        make_groups(&self.folder.mark())?;
        self.start(Part::Containerd)?;
        let socket = node::containerd_socket(&self.folder);
        self.wait("containerd answers", || {
            process::run(Command::new("ctr").args(["--address", &socket, "version"])).is_ok()
        })?;
        for (_, archive) in node::images() {
            self.load(&self.folder.path().join(archive))?;
        }
        for part in [Part::Kubelet, Part::Proxy, Part::Dns] {
            self.start(part)?;
        }
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.wait("the node is ready", || {
            self.kubectl(["get", "node", NODE_NAME, "--output", ready]).is_ok_and(|status| status == "True")
        })?;
        let inside = self.folder.namespace();
        self.wait("service addresses answer", || {
            API_SERVICE.parse().is_ok_and(|address| inside.answers(SocketAddr::new(address, 443)))
        })?;
        self.wait("DNS answers", || inside.answers(SocketAddr::new(NODE, 53)))
    }

    /// Starts a process that outlives this one if need be: with its own process group, so that Ctrl-C of a terminal is not
    /// meant for it, and its own log.
    fn spawn(&self, part: Part, command: &mut Command) -> Result<(), Error> {
        let path = self.folder.log(part);
        let log = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
        let copy = log.try_clone().map_err(Error::file("open", &path))?;
        command.stdin(Stdio::null()).stdout(copy).stderr(log).process_group(0).current_dir(self.folder.path());
        let child = command.spawn().map_err(|source| Error::Start { program: process::name(command), source })?;
        // One that ended already is noticed by the wait for its work.
        if let Some(record) = Record::of(child.id()) {
            self.folder.record(part, record)?;
        }
        self.children().insert(part, child);
        Ok(())
    }

    /// Waits for a state; ends early if a part of the cluster ended.
    fn wait(&self, what: &str, reached: impl Fn() -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !reached() {
            self.check_children()?;
            if Instant::now() > deadline {
                return Err(Error::Late { what: what.to_owned(), after: PATIENCE, logs: self.folder.logs() });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn check_children(&self) -> Result<(), Error> {
        for (part, child) in self.children().iter_mut() {
            let failed = |source| Error::Start { program: part.name().to_owned(), source };
            if let Some(status) = child.try_wait().map_err(failed)? {
                let log = std::fs::read_to_string(self.folder.log(*part)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n");
                return Err(Error::Ended { part: part.name(), status, log: end });
            }
        }
        Ok(())
    }

    fn children(&self) -> MutexGuard<'_, BTreeMap<Part, Child>> {
        // Nothing that holds the lock leaves the map half changed.
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_down(&mut self) -> Result<(), Error> {
        self.door = None;
        // While the folder goes, it would look abandoned to others.
        let outcome = registry().and_then(|_registry| teardown(&self.folder));
        for child in std::mem::take(&mut *self.children()).values_mut() {
            // Killed above, so it waits for nothing; one that cannot be reaped goes with this process.
            if outcome.is_ok() {
                child.wait().map(drop).unwrap_or_default();
            }
        }
        outcome
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        if let Err(error) = self.take_down() {
            // A closed stderr leaves nobody to tell.
            io::Write::write_all(&mut io::stderr(), format!("{error}\n").as_bytes()).unwrap_or_default();
        }
    }
}

/// What KWOK does with nodes and pods.
const STAGES: &str = include_str!("fake-nodes.yaml");
/// As many lines of a log as an error shows.
const LOG_LINES: usize = 15;

fn api_address() -> SocketAddr {
    SocketAddr::new(NODE, API_PORT)
}

/// Takes down what killed processes left. The registry is locked.
pub(crate) fn sweep() -> Result<(), Error> {
    Folder::all().iter().filter(|folder| folder.is_abandoned()).try_for_each(teardown)
}

/// No other name of a living process.
pub(crate) fn made_up_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}
