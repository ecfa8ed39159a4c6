//! The server's control group (cgroup v2): limits of all its processes together.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use mcp_hub_dataplane_api::launch::Cgroup;

/// Period of `cpu.max` in microseconds, the kernel's own default.
const CPU_PERIOD: u64 = 100_000;

/// Makes the group, or brings it up to date, before a process joins it.
pub fn make(group: &Cgroup) -> Result<(), Error> {
    let path = Path::new(&group.path);
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if let Some(bytes) = group.memory_bytes {
        std::fs::write(path.join("memory.max"), bytes.to_string())?;
        // A kernel without swap accounting has no such file, and a limit that holds without it.
        match std::fs::write(path.join("memory.swap.max"), "0") {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    if let Some(millis) = group.cpu_millis {
        let quota = millis.saturating_mul(CPU_PERIOD) / 1000;
        std::fs::write(path.join("cpu.max"), format!("{quota} {CPU_PERIOD}"))?;
    }
    Ok(())
}

/// Moves the calling process into the group; what it starts is born there.
pub fn join(path: &str) -> Result<(), Error> {
    std::fs::write(Path::new(path).join("cgroup.procs"), "0")
}

/// Removes the group when its last process is gone.
pub fn remove(group: &Cgroup) {
    // One that is not empty yet is removed by the daemon, which looks after leftovers.
    std::fs::remove_dir(&group.path).ok();
}

/// How often the kernel ended a process of the group for want of memory; without a group of the server's own, of the
/// bridge's. `None` where nobody counts.
///
/// A limit of a single process shows as failed allocations instead, which the server itself reports on stderr.
pub fn oom_kills(group: Option<&Cgroup>) -> Option<u64> {
    let counters = match group {
        Some(group) => vec![Path::new(&group.path).join("memory.events")],
        None => {
            let membership = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            own_counters(&membership, &std::fs::read_to_string("/proc/self/mountinfo").ok()?)
        }
    };
    counters.iter().find_map(|file| {
        let counts = std::fs::read_to_string(file).ok()?;
        counts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
    })
}

/// Files that may count for the group of this process: of the unified hierarchy, or of the memory controller's own
/// (cgroup v1). Which of them exist depends on the kernel and on what a container is shown (`proc(5)`, `cgroups(7)`).
fn own_counters(membership: &str, mounts: &str) -> Vec<PathBuf> {
    let group_of = |controller: &str| {
        membership.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == controller).then_some(path)
        })
    };
    let counter = |mount: &str| {
        let (place, kind) = mount.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (group, file) = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => (group_of("")?, "memory.events"),
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => {
                (group_of("memory")?, "memory.oom_control")
            }
            _ => return None,
        };
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        // A mount shows the hierarchy from its root down, in a container from the container's own group.
        let below = Path::new(group).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below).join(file))
    };
    mounts.lines().filter_map(counter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_in_the_kernels_terms() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("server");
        let group =
            Cgroup { path: path.to_string_lossy().into_owned(), memory_bytes: Some(256 << 20), cpu_millis: Some(500) };
        make(&group).unwrap();
        // Again, with the group there already.
        make(&group).unwrap();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(read("memory.max"), "268435456");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "50000 100000");
        std::fs::write(path.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        assert_eq!(oom_kills(Some(&group)), Some(2));
    }

    #[test]
    fn a_group_that_cannot_be_made_is_an_error() {
        let group = Cgroup { path: "/proc/none/server".to_owned(), memory_bytes: None, cpu_millis: None };
        assert!(make(&group).is_err());
    }

    #[test]
    fn the_counter_of_the_own_group_is_found_wherever_it_is_mounted() {
        let found = |membership: &str, mounts: &str| -> Vec<String> {
            own_counters(membership, mounts).iter().map(|path| path.to_string_lossy().into_owned()).collect()
        };
        let unified = "29 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate";
        assert_eq!(found("0::/\n", unified), ["/sys/fs/cgroup/memory.events"], "a container with a namespace");
        assert_eq!(
            found("0::/user.slice/hub.service\n", unified),
            ["/sys/fs/cgroup/user.slice/hub.service/memory.events"],
            "a machine"
        );
        let v1 = "4:memory:/kubepods/pod1/abc\n2:cpu,cpuacct:/kubepods/pod1/abc\n0::/x\n";
        let shown = "700 690 0:32 /kubepods/pod1/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                     701 690 0:33 /kubepods/pod1/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct";
        assert_eq!(found(v1, shown), ["/sys/fs/cgroup/memory/memory.oom_control"], "a container of a v1 node");
        let hybrid = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(
            found(v1, hybrid),
            ["/sys/fs/cgroup/memory/kubepods/pod1/abc/memory.oom_control", "/sys/fs/cgroup/unified/x/memory.events"]
        );
        // Another container's group says nothing of ours.
        assert_eq!(found("4:memory:/kubepods/pod2/def\n", shown), [""; 0]);
    }
}
