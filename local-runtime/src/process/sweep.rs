//! Processes that outlived their bridge, found by the owner mark in their environment.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::launch::OWNER_ENV;
use mcp_hub_reconcile::owner::OwnerKey;
use rustix::process::{Pid, Signal};

use super::ProcessError;

/// A killed process is gone as soon as it is collected; one in uninterruptible sleep may take longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Start time of a process in clock ticks since boot (`proc(5)`, field 22 of `stat`).
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Kills every process that carries the owner's mark, and waits until none is left.
pub(super) async fn end_strays(owner: &OwnerKey) -> Result<(), ProcessError> {
    let mark = format!("{OWNER_ENV}={}\0", owner.id());
    end_all(owner, |pid| has_word(pid, "environ", mark.as_bytes())).await
}

/// Kills what is left in the server's control group, which no process leaves by itself, and removes the group.
pub(super) async fn end_group(owner: &OwnerKey, group: &Path) -> Result<(), ProcessError> {
    let is_member = |pid: u32| {
        let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|line| line.parse() == Ok(pid))
    };
    end_all(owner, is_member).await?;
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ProcessError::File { action: "delete", path: group.to_owned(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Kills every bridge that was started on the run folder and holds no lock (yet), and waits until none is left.
pub(super) async fn end_bridges(owner: &OwnerKey, run_folder: &Path) -> Result<(), ProcessError> {
    let argument = [run_folder.as_os_str().as_bytes(), b"\0"].concat();
    end_all(owner, |pid| is_bridge_on(pid, &argument)).await
}

/// `condition` is looked at right before each signal, so that a reused process id is not hit.
async fn end_all(owner: &OwnerKey, condition: impl Fn(u32) -> bool) -> Result<(), ProcessError> {
    let started = Instant::now();
    loop {
        let strays: Vec<u32> = pids().filter(|pid| condition(*pid)).collect();
        if strays.is_empty() {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(ProcessError::Undying { owner: owner.to_string(), pids: strays });
        }
        for pid in strays {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // Gone already is what is wanted.
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
        // The end of a process that is not ours gives no event.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a file of words in `/proc` has this one; words end in a zero byte. A zombie's files read as empty, so it does
/// not count.
fn has_word(pid: u32, file: &str, word: &[u8]) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    words.split_inclusive(|byte| *byte == 0).any(|found| found == word)
}

/// A bridge has the run folder as its only argument. An editor opened on the folder would have too, hence the empty
/// environment, which no user's program has.
fn is_bridge_on(pid: u32, argument: &[u8]) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = words.split_inclusive(|byte| *byte == 0).skip(1);
    let only = arguments.next() == Some(argument) && arguments.next().is_none();
    only && std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| environment.is_empty())
}
