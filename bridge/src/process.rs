//! One started server process, with its tree.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use mcp_hub_dataplane_api::launch::{Cgroup, LaunchSpec};
use mcp_hub_dataplane_api::status::Exit;
use tokio::io::AsyncRead;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::task::JoinSet;

use crate::cgroup;
use crate::logs::Log;
use crate::spawn::{SpawnError, spawn};
use crate::status::now;
use crate::tree::{Scope, Tree};

/// What an ended server still has in its pipes is copied for this long, should nobody take our log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A server process. Dropped, it is killed, but what it started is not: [`Self::end`] ends all of it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    /// `NAME=VALUE` in the environment of it and its children, where the bridge runs several servers.
    mark: Option<String>,
    tree: Arc<Tree>,
    group: Option<Cgroup>,
    oom_kills: Option<u64>,
    /// Copy what it says to the log.
    copies: JoinSet<()>,
}

#[derive(Debug)]
pub struct Pipes {
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

impl Process {
    pub fn start(
        spec: &LaunchSpec,
        secrets: &BTreeMap<String, String>,
        mark: Option<(&str, String)>,
        tree: &Arc<Tree>,
    ) -> Result<(Self, Pipes), SpawnError> {
        let group = spec.child.limits.cgroup.clone();
        let oom_kills = cgroup::oom_kills(group.as_ref());
        let mut child = spawn(spec, secrets, mark.as_ref().map(|(name, value)| (*name, value.as_str())))?;
        // Present, because all three were asked for and nothing was awaited in between.
        let (Some(pid), Some(stdin), Some(stdout), Some(stderr)) =
            (child.id(), child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(SpawnError::Pipes { program: spec.child.program.clone() });
        };
        tree.awaited(pid);
        let mark = mark.map(|(name, value)| format!("{name}={value}"));
        let process = Self { child, pid, mark, tree: tree.clone(), group, oom_kills, copies: JoinSet::new() };
        Ok((process, Pipes { stdin, stdout, stderr }))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Copies one of its streams to the log.
    pub fn copy(&mut self, stream: impl AsyncRead + Send + Unpin + 'static, log: &Log) {
        self.copies.spawn(log.clone().copy(stream));
    }

    /// Resolves when the process itself has ended.
    ///
    /// # Cancel safety
    /// May be dropped and asked again.
    pub async fn exit(&mut self) -> Exit {
        let status = self.child.wait().await.ok();
        self.describe(status)
    }

    fn describe(&self, status: Option<ExitStatus>) -> Exit {
        use std::os::unix::process::ExitStatusExt;
        let signal = status.and_then(|status| status.signal());
        let killed = signal == Some(rustix::process::Signal::KILL.as_raw());
        Exit {
            code: status.and_then(|status| status.code()),
            signal,
            out_of_memory: killed
                && match cgroup::oom_kills(self.group.as_ref()) {
                    Some(kills) => self.oom_kills.is_some_and(|before| kills > before),
                    None => is_alone(),
                },
            at: now(),
        }
    }

    /// Ends the process and all that it started. The log has what they said then.
    pub async fn end(mut self) {
        match &self.mark {
            Some(mark) => self.tree.end(Scope::Run { child: self.pid, mark }).await,
            None => self.tree.end(Scope::Everything).await,
        }
        let copied = async { while self.copies.join_next().await.is_some() {} };
        tokio::time::timeout(LAST_WORDS, copied).await.ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tree.forget(self.pid);
        // What is still on its way is copied to its end.
        self.copies.detach_all();
    }
}

/// Whether the bridge is the first process of a container. Nobody but the kernel kills its server then: we do so only after
/// its run, whose end is not described.
fn is_alone() -> bool {
    std::process::id() == 1
}

/// For people.
pub fn describe(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        _ if exit.out_of_memory && is_alone() && cgroup::oom_kills(None).is_none() => {
            "the server was killed, most likely because memory ran out".to_owned()
        }
        _ if exit.out_of_memory => "the kernel ended the server because memory ran out".to_owned(),
        (Some(code), _) => format!("the server exited with code {code}"),
        (None, Some(signal)) => format!("the server was ended by signal {signal}"),
        (None, None) => "the server ended".to_owned(),
    }
}
