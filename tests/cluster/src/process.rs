//! Processes: started, written down, recognised again.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::{Command, Output};
use std::str::FromStr;

use rustix::process::{Pid, Signal};

use crate::error::Error;

/// A process of this machine: its id, and when it started in the kernel's clock ticks since boot. An id that was given to
/// another process since is told from it by the second number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub pid: u32,
    started: u64,
}

impl Record {
    /// The process that has this id now; `None` if there is none, or one that ended and only waits to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name stands in parentheses and may hold anything, so fields are counted from the last one on.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        // Fields 3, 20 and 22 of proc_pid_stat(5).
        let state = fields.next()?;
        let threads: u32 = fields.nth(16)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        // The first thread may have ended before others, which hold the process's sockets until they end, too.
        let ended = state == "X" || state == "Z" && threads <= 1;
        if ended { None } else { Some(Self { pid, started }) }
    }

    pub fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Stops it where it is, so that it hears nothing but a kill.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends a signal if the process still lives.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.lives()) {
            // It may have ended since, which is what was wanted.
            rustix::process::kill_process(pid, signal).unwrap_or_default();
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for Record {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers =
            text.trim().split_once(' ').and_then(|(pid, started)| Some((pid.parse().ok()?, started.parse().ok()?)));
        numbers.map(|(pid, started)| Self { pid, started }).ok_or("not a process id and a start time")
    }
}

/// Every process that lives.
pub(crate) fn all() -> impl Iterator<Item = Record> {
    let folders = crate::files::list(Path::new("/proc")).into_iter();
    folders.filter_map(|folder| folder.file_name()?.to_str()?.parse().ok()).filter_map(Record::of)
}

/// The processes that these started, and those that they started in turn.
pub(crate) fn descendants(of: &[Record]) -> Vec<Record> {
    let parents: Vec<(Record, u32)> = all().filter_map(|record| Some((record, parent(record.pid)?))).collect();
    let mut found: Vec<Record> = of.to_vec();
    let mut next = 0;
    while let Some(record) = found.get(next).copied() {
        next += 1;
        let children = parents.iter().filter(|(child, parent)| *parent == record.pid && !found.contains(child));
        let children: Vec<Record> = children.map(|(child, _)| *child).collect();
        found.extend(children);
    }
    found
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 4 of proc_pid_stat(5), see `Record::of`.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Runs to the end; what it printed is in the error.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    output(command).map(drop)
}

/// Runs to the end and gives stdout.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|source| Error::Start { program: name(command), source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if status.success() {
        return Ok(text(&stdout));
    }
    let words = command.get_args().map(OsStr::to_string_lossy);
    let line = std::iter::once(name(command).into()).chain(words).collect::<Vec<_>>().join(" ");
    Err(Error::Failed { command: line, status, output: text(&stderr) })
}

/// The program without its folder.
pub(crate) fn name(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_and_one_that_took_its_id_is_not() {
        let own = Record::of(std::process::id()).unwrap();
        assert!(own.lives());
        assert_eq!(own.to_string().parse(), Ok(own));
        assert!(!Record { started: own.started + 1, ..own }.lives());
    }

    #[test]
    fn a_process_that_ended_does_not_live_though_nobody_reaped_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let record = Record::of(child.id()).unwrap();
        record.signal(Signal::KILL);
        while record.lives() {
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists(), "it is still there to be reaped");
        child.wait().unwrap();
    }
}
