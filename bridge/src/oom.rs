//! Whether the kernel ended a process for want of memory.

/// How often it did so in our control group (cgroup v2, `memory.events`); `None` where there is none.
///
/// A limit of a single process shows as failed allocations instead, which the server itself reports on stderr.
pub fn kills() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let events = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.events")).ok()?;
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}
