//! Taking a cluster down, whatever state it is in: up, half up, or left by a process that was killed.
//!
//! Nothing is asked of the cluster itself. What is its own is told by what it was given when it began: recorded
//! processes, its network namespace, its control group, its folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::error::Error;
use crate::files;
use crate::folder::Folder;
use crate::process::{self, Record};

/// Killed processes are gone in milliseconds; only the kernel, busy with a disk, can hold one longer.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Ends every process, unmounts, and removes all that is the cluster's. Done twice it finds nothing the second time.
pub(crate) fn teardown(folder: &Folder) -> Result<(), Error> {
    let left = |what: &str, these: Vec<String>| Error::Remains {
        cluster: folder.name.clone(),
        left: format!("{what}: {}", these.join(", ")),
    };
    until_empty(|| kill(folder)).map_err(|processes| left("processes", processes))?;
    remove_traces(folder)?;
    // Before anything is deleted: a mount below the folder may show files that are not ours.
    until_empty(|| unmount(folder.path())).map_err(|mounts| left("mounts", mounts))?;
    until_empty(|| remove_groups(&folder.mark())).map_err(|groups| left("control groups", groups))?;
    folder.namespace().delete()?;
    match std::fs::remove_dir_all(folder.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", folder.path())(error)),
        _ => Ok(()),
    }
}

/// Repeats until nothing is left, or gives what is.
fn until_empty(mut attempt: impl FnMut() -> Vec<String>) -> Result<(), Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = attempt();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(left);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Kills what runs, and gives what that was. Nothing has state to save, and kubelet and containerd die in the first round,
/// so nothing comes back.
fn kill(folder: &Folder) -> Vec<String> {
    let own = std::process::id();
    let mut processes: Vec<Record> = folder.records();
    processes.extend(folder.namespace().processes());
    for group in groups(&folder.mark()) {
        let ids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        processes.extend(ids.lines().filter_map(|id| Record::of(id.parse().ok()?)));
    }
    // Of an engine's containers, each has a namespace of its own, and Podman's no control group that is the engine's.
    processes.retain(|record| record.pid != own);
    processes.extend(process::descendants(&processes));
    processes.retain(|record| record.lives());
    processes.iter().for_each(|record| record.signal(Signal::KILL));
    processes.iter().map(|record| record.pid.to_string()).collect()
}

/// Files that kubelet, containerd's shims and the network plugins keep at places of the machine.
fn remove_traces(folder: &Folder) -> Result<(), Error> {
    for link in files::list(Path::new("/var/log/containers")) {
        if std::fs::read_link(&link).is_ok_and(|target| target.starts_with(folder.path())) {
            files::remove(&link)?;
        }
    }
    let mut results = vec![format!("{}-", folder.mark())];
    // A container's folder bears its id, and names the socket of its shim.
    for container in files::list(&folder.path().join("cri/state/io.containerd.runtime.v2.task/k8s.io")) {
        let address = std::fs::read_to_string(container.join("address")).unwrap_or_default();
        if let Some(socket) = address.strip_prefix("unix://") {
            files::remove(Path::new(socket.trim()))?;
        }
        let id = container.file_name().unwrap_or_default().to_string_lossy();
        // The loopback device of every pod is set up as a network of this name.
        results.push(format!("cni-loopback-{id}-"));
    }
    for result in files::list(Path::new("/var/lib/cni/results")) {
        let name = result.file_name().unwrap_or_default().to_string_lossy();
        if results.iter().any(|start| name.starts_with(start)) {
            files::remove(&result)?;
        }
    }
    Ok(())
}

/// Unmounts what is mounted below the folder, newest first, and gives what that was.
fn unmount(folder: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(unescaped);
    let mut ours: Vec<PathBuf> = points.map(PathBuf::from).filter(|point| point.starts_with(folder)).collect();
    ours.reverse();
    for point in &ours {
        // Tried again in the next round, and named in the end.
        rustix::mount::unmount(point, UnmountFlags::DETACH).unwrap_or_default();
    }
    ours.iter().map(|point| point.display().to_string()).collect()
}

/// As in proc_pid_mounts(5): a space is `\040`.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// The cluster's control groups in every hierarchy, children before parents.
fn groups(mark: &str) -> Vec<PathBuf> {
    fn descend(group: PathBuf, found: &mut Vec<PathBuf>) {
        files::list(&group).into_iter().filter(|path| path.is_dir()).for_each(|child| descend(child, found));
        found.push(group);
    }
    let mut found = Vec::new();
    hierarchies().into_iter().map(|root| root.join(mark)).filter(|group| group.is_dir()).for_each(|group| {
        descend(group, &mut found);
    });
    found
}

fn remove_groups(mark: &str) -> Vec<String> {
    let groups = groups(mark);
    for group in &groups {
        // Busy until its last process is reaped; tried again in the next round.
        std::fs::remove_dir(group).unwrap_or_default();
    }
    groups.iter().filter(|group| group.exists()).map(|group| group.display().to_string()).collect()
}

/// kubelet puts its pods into a group that must be there in every hierarchy.
pub(crate) fn make_groups(mark: &str) -> Result<(), Error> {
    hierarchies().into_iter().try_for_each(|root| files::make(&root.join(mark)))
}

/// Where control groups are mounted: one folder for version 2, one for each controller with version 1.
fn hierarchies() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter(|words| matches!(words.get(2), Some(&("cgroup" | "cgroup2"))))
        .filter_map(|words| Some(PathBuf::from(*words.get(1)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_is_read_as_it_is() {
        assert_eq!(unescaped(r"/tmp/a\040b"), "/tmp/a b");
    }

    #[test]
    fn taking_down_what_never_was_finds_nothing() {
        teardown(&Folder::of("never-was").unwrap()).unwrap();
    }
}
