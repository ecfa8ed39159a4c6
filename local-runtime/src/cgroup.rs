//! Control groups (cgroup v2) that were delegated to this daemon, so that limits hold for a server's processes together.
//!
//! Only what is really delegated is used: a group in which systemd or a container manager has processes of its own may be
//! changed by them at any time, and a limit that silently goes away is worse than none. Under systemd that means
//! `Delegate=yes` with `DelegateSubgroup=daemon` in the unit.

use std::path::{Path, PathBuf};

/// Name of the group inside the delegated one that holds the daemon itself: a group with controllers for its children has
/// no processes of its own ("no internal processes", Linux `cgroup-v2.rst`).
const DAEMON: &str = "daemon";

/// A group below which groups for servers can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    pub path: PathBuf,
    /// Whether children can be limited in memory.
    pub memory: bool,
    /// Whether children can be limited in processor time.
    pub cpu: bool,
}

impl Delegation {
    /// Makes use of the delegation of this process: switches its controllers on, and moves the process into a group of its
    /// own inside it. `None` if there is none that limits anything; nothing is changed then.
    pub fn claim() -> Option<Self> {
        let mount = mount(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        Self::take(&mount, &mount.join(own), std::process::id())
    }

    /// As seen from the group `own` of process `pid`.
    fn take(mount: &Path, own: &Path, pid: u32) -> Option<Self> {
        // A unit may have started us aside already.
        let path = if own.ends_with(DAEMON) { own.parent()? } else { own };
        let offered = std::fs::read_to_string(path.join("cgroup.controllers")).ok()?;
        if !["memory", "cpu"].iter().any(|wanted| offered.split_whitespace().any(|name| name == *wanted)) {
            return None;
        }
        // The root may have processes beside groups with limits; any other group must be ours alone.
        if path != mount {
            let processes = std::fs::read_to_string(path.join("cgroup.procs")).ok()?;
            let mut others = processes.lines().filter_map(|line| line.trim().parse::<u32>().ok());
            if others.any(|other| other != pid) {
                return None;
            }
            let daemon = path.join(DAEMON);
            std::fs::create_dir_all(&daemon).ok()?;
            std::fs::write(daemon.join("cgroup.procs"), pid.to_string()).ok()?;
        }
        // One at a time: a controller that cannot be had must not keep the others away.
        let switch_on = |name: &str| {
            offered.split_whitespace().any(|offered| offered == name)
                && std::fs::write(path.join("cgroup.subtree_control"), format!("+{name}")).is_ok()
        };
        let (memory, cpu) = (switch_on("memory"), switch_on("cpu"));
        (memory || cpu).then(|| Self { path: path.to_owned(), memory, cpu })
    }
}

/// Where the cgroup v2 hierarchy is mounted (`proc(5)`, mountinfo: the fifth field, and the type after ` - `).
fn mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, filesystem) = line.split_once(" - ")?;
        let path = place.split(' ').nth(4)?;
        filesystem.starts_with("cgroup2 ").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a group, with these processes in it.
    fn group(path: &Path, controllers: &str, processes: &str) {
        std::fs::create_dir_all(path).unwrap();
        std::fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        std::fs::write(path.join("cgroup.procs"), processes).unwrap();
    }

    #[test]
    fn a_unit_of_its_own_is_used_and_the_daemon_steps_aside() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("user.slice/hub.service");
        group(&unit, "cpuset cpu memory pids", "71\n");
        let found = Delegation::take(mount.path(), &unit, 71).unwrap();
        assert_eq!(found, Delegation { path: unit.clone(), memory: true, cpu: true });
        assert_eq!(std::fs::read_to_string(unit.join("daemon/cgroup.procs")).unwrap(), "71");
        assert!(std::fs::read_to_string(unit.join("cgroup.subtree_control")).unwrap().starts_with('+'));

        // The next daemon starts where the unit says, in the subgroup.
        std::fs::write(unit.join("cgroup.procs"), "").unwrap();
        assert_eq!(Delegation::take(mount.path(), &unit.join("daemon"), 72).unwrap().path, unit);
    }

    #[test]
    fn a_group_that_others_live_in_is_left_alone() {
        let mount = tempfile::tempdir().unwrap();
        let scope = mount.path().join("user.slice/terminal.scope");
        group(&scope, "cpu memory", "70\n71\n");
        assert_eq!(Delegation::take(mount.path(), &scope, 71), None);
        assert!(!scope.join("daemon").exists() && !scope.join("cgroup.subtree_control").exists());
    }

    #[test]
    fn what_limits_nothing_is_no_delegation() {
        let mount = tempfile::tempdir().unwrap();
        group(mount.path(), "hugetlb pids", "1\n71\n");
        assert_eq!(Delegation::take(mount.path(), mount.path(), 71), None);
        group(mount.path(), "memory", "1\n71\n");
        let root = Delegation::take(mount.path(), mount.path(), 71).unwrap();
        assert_eq!((root.memory, root.cpu), (true, false));
    }

    #[test]
    fn the_hierarchy_is_found_among_the_mounts() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount("30 24 0:26 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu\n"), None);
    }
}
