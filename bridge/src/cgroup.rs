//! The server's control group (cgroup v2): limits of all its processes together.

use std::io::{Error, ErrorKind};
use std::path::Path;

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
    let events = match group {
        Some(group) => Path::new(&group.path).join("memory.events"),
        None => {
            let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
            format!("/sys/fs/cgroup{path}/memory.events").into()
        }
    };
    let events = std::fs::read_to_string(events).ok()?;
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
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
}
