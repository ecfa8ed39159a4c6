//! What a cluster must not leave, looked up at the system and not in the code that removes it.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "test support fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mcp_hub_test_cluster::{Cluster, Part, Record};

/// Longest wait for any state. Far longer than the slowest seen, because timing decides no test.
const PATIENCE: Duration = Duration::from_secs(120);

const PARTS: [Part; 9] = [
    Part::Etcd,
    Part::ApiServer,
    Part::ControllerManager,
    Part::Scheduler,
    Part::Containerd,
    Part::Kubelet,
    Part::Proxy,
    Part::Dns,
    Part::Door,
];

/// All by which a cluster is known, taken while it is up.
#[derive(Debug)]
pub(crate) struct Traces {
    name: String,
    pub(crate) processes: Vec<Record>,
    folder: PathBuf,
    /// Files of containers at places of the machine.
    files: Vec<PathBuf>,
}

impl Traces {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let processes = PARTS.into_iter().filter_map(|part| cluster.process(part)).collect();
        let folder = cluster.kubeconfig().parent().unwrap().to_owned();
        let containers = folder.join("cri/state/io.containerd.runtime.v2.task/k8s.io");
        let mut files = Vec::new();
        for id in names(&containers) {
            let shim = std::fs::read_to_string(containers.join(&id).join("address")).unwrap();
            files.push(PathBuf::from(shim.strip_prefix("unix://").unwrap()));
            files.push(PathBuf::from(format!("/var/lib/cni/results/cni-loopback-{id}-lo")));
        }
        Self { name: cluster.name().to_owned(), processes, folder, files }
    }

    /// Processes of the cluster's parts, containers and their shims; mounts; files.
    pub(crate) fn left(&self) -> Vec<String> {
        let folder = self.folder.to_str().unwrap();
        let mark = format!("mcphub-{}", self.name);
        let mut left: Vec<String> =
            self.processes.iter().filter(|r| r.lives()).map(|r| format!("process {r}")).collect();
        for id in names(Path::new("/proc")).iter().filter_map(|name| name.parse::<u32>().ok()) {
            let read = |file| std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
            // A shim's arguments name containerd's socket; a container's control groups lie below the cluster's.
            if read("cmdline").contains(folder) || read("cgroup").contains(&mark) && Record::of(id).is_some() {
                left.push(format!("process {id}: {}", read("cmdline").replace('\0', " ")));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(folder)).map(|line| format!("mount {line}")));
        let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path().join(&mark));
        let places =
            [PathBuf::from("/sys/fs/cgroup").join(&mark), PathBuf::from("/run/netns").join(&mark), self.folder.clone()];
        left.extend(
            groups
                .chain(places)
                .chain(self.files.clone())
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        for link in names(Path::new("/var/log/containers")) {
            let target = std::fs::read_link(Path::new("/var/log/containers").join(&link));
            left.extend(target.into_iter().filter(|target| target.starts_with(folder)).map(|_| format!("link {link}")));
        }
        left.extend(names(Path::new("/var/lib/cni/results")).into_iter().filter(|name| name.starts_with(&mark)));
        left
    }

    pub(crate) fn assert_gone(&self) {
        assert_eq!(self.left(), Vec::<String>::new());
    }
}

/// Names in a folder that may not be there.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Waits for a state; the last answer is told if it never comes.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < deadline, "{what}: not in time; last: {last}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
