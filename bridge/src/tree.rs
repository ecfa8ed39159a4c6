//! Process trees: whose processes there are, and ending all of them.
//!
//! The bridge is a child subreaper, so a process whose parent dies becomes its child, however often it forked: every
//! process of the server is a descendant of the bridge, and can be found.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    fields(pid)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// `/proc/PID/stat` from its third field on: the second is the program's name in parentheses and may hold anything.
fn fields(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.to_owned())
}

/// Which processes are to be ended.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// Every descendant.
    Everything,
    /// Those of one of several servers: below it, in its process group, or with its mark in their environment, which
    /// finds those whose parents are gone.
    Run { child: u32, mark: &'a str },
}

/// The descendants of this process.
#[derive(Debug, Default)]
pub struct Tree {
    /// Children whose exit status somebody waits for.
    awaited: Mutex<BTreeSet<u32>>,
}

struct Member {
    pid: u32,
    parent: u32,
    group: u32,
    is_zombie: bool,
}

fn everybody() -> Vec<Member> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let fields = fields(pid)?;
        let mut fields = fields.split_ascii_whitespace();
        Some(Member {
            pid,
            is_zombie: fields.next()? == "Z",
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    })
    .collect()
}

fn below(root: u32, family: &[Member]) -> BTreeSet<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(family.iter().filter(|member| member.parent == parent).map(|member| member.pid));
        next += 1;
    }
    found.into_iter().collect()
}

/// The living members of a scope.
fn members(scope: Scope<'_>) -> Vec<u32> {
    let family = everybody();
    let ours = below(std::process::id(), &family);
    let below_child = match scope {
        Scope::Everything => BTreeSet::new(),
        Scope::Run { child, .. } => below(child, &family),
    };
    let belongs = |member: &Member| match scope {
        Scope::Everything => true,
        Scope::Run { child, mark } => {
            below_child.contains(&member.pid) || member.group == child || is_marked(member.pid, mark)
        }
    };
    let own = std::process::id();
    family
        .iter()
        .filter(|member| member.pid != own && !member.is_zombie && ours.contains(&member.pid) && belongs(member))
        .map(|member| member.pid)
        .collect()
}

fn is_marked(pid: u32, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
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

impl Tree {
    /// Leaves the exit status of a child to whoever waits for it.
    pub fn awaited(&self, child: u32) {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).insert(child);
    }

    /// Nobody waits for that child any more.
    pub fn forget(&self, child: u32) {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&child);
    }

    /// Collects exited orphans, as the process that inherits them has to.
    pub fn reap(&self) {
        let own = std::process::id();
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for member in everybody() {
            if member.is_zombie && member.parent == own && !awaited.contains(&member.pid) {
                // Whoever collected it first is as good.
                rustix::process::waitpid(raw(member.pid), WaitOptions::NOHANG).ok();
            }
        }
    }

    /// Ends a scope: SIGTERM, [`GRACE`], SIGKILL until none is left.
    pub async fn end(&self, scope: Scope<'_>) {
        let started = Instant::now();
        let mut asked = BTreeSet::new();
        let mut pause = Duration::from_millis(1);
        loop {
            let left = members(scope);
            if left.is_empty() {
                self.reap();
                return;
            }
            for pid in left {
                if started.elapsed() >= GRACE {
                    signal(pid, Signal::KILL);
                } else if asked.insert(pid) {
                    signal(pid, Signal::TERM);
                }
            }
            // The end of a grandchild gives no event; looks get rarer, as most servers end within milliseconds.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}
