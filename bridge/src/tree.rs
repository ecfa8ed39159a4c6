//! Process trees: whose processes there are, and ending all of them.
//!
//! The bridge is a child subreaper, so a process whose parent dies becomes its child, however often it forked: every
//! process of the server is a descendant of the bridge, and can be found.

use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};

/// Time between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// Makes orphaned descendants ours instead of init's.
pub fn adopt_orphans() {
    // Refused only by kernels before 3.4; then the owner mark still finds strays.
    rustix::process::set_child_subreaper(Some(Pid::INIT)).ok();
}

/// Start time of a process in clock ticks since boot (`proc(5)`, field 22 of `stat`); `None` if there is none.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// All living descendants of this process, without zombies.
fn descendants() -> Vec<u32> {
    let mut family: Vec<(u32, u32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_ascii_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|field| field.parse().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && state != "Z"
        {
            family.push((pid, parent));
        }
    }
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(family.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    found
}

/// Collects exited orphans, but not `spared`, whose status tokio waits for.
pub fn reap(spared: Option<u32>) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if Some(pid) == spared {
            continue;
        }
        let zombie_of_ours = std::fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| {
            stat.rsplit_once(')').is_some_and(|(_, rest)| {
                let mut fields = rest.split_ascii_whitespace();
                fields.next() == Some("Z") && fields.next() == Some(&std::process::id().to_string())
            })
        });
        if zombie_of_ours {
            // Whoever collected it first is as good.
            rustix::process::waitpid(raw(pid), WaitOptions::NOHANG).ok();
        }
    }
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = raw(pid) {
        // It may have exited in the meantime, which is what is wanted.
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Ends every descendant but those of `spared` children: SIGTERM, [`GRACE`], SIGKILL until none is left.
pub async fn end_all(child: Option<u32>, roots: &[u32]) {
    let tree = || -> Vec<u32> {
        let all = descendants();
        if roots.is_empty() { all } else { all.into_iter().filter(|pid| belongs(*pid, roots)).collect() }
    };
    for pid in tree() {
        signal(pid, Signal::TERM);
    }
    let started = std::time::Instant::now();
    loop {
        reap(child);
        let left = tree();
        if left.is_empty() {
            return;
        }
        if started.elapsed() >= GRACE {
            for pid in left {
                signal(pid, Signal::KILL);
            }
        }
        // There is no event for the end of a grandchild; ten looks a second while something is being ended are cheap.
        tokio::time::sleep(Duration::from_millis(if started.elapsed() < GRACE { 20 } else { 100 })).await;
    }
}

/// Whether a process leads up to one of `roots`, or is one.
fn belongs(pid: u32, roots: &[u32]) -> bool {
    let mut pid = pid;
    // A chain longer than this is no family tree.
    for _ in 0..1000 {
        if roots.contains(&pid) {
            return true;
        }
        let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| {
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok())
        });
        match parent {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}
