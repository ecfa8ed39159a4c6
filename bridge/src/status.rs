//! The bridge's status: one value, watched by whoever wants to know.

use std::sync::Arc;

use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Exit, Handshake, Notice, Phase, ToolsSummary};
use tokio::sync::watch;

/// Keeps the status and tells of each change of its meaning.
#[derive(Debug, Clone)]
pub struct Board(Arc<watch::Sender<BridgeStatus>>);

impl Board {
    pub fn new(digest: String, endpoint: String) -> Self {
        Self(Arc::new(watch::Sender::new(BridgeStatus {
            bridge_version: crate::VERSION.to_owned(),
            digest,
            endpoint,
            phase: Phase::Starting,
            handshake: None,
            restarts: 0,
            last_exit: None,
            last_error: None,
            stderr_tail: Vec::new(),
            notices: Vec::new(),
            activity: Activity::default(),
        })))
    }

    pub fn watch(&self) -> watch::Receiver<BridgeStatus> {
        self.0.subscribe()
    }

    pub fn phase(&self) -> Phase {
        self.0.borrow().phase.clone()
    }

    /// The server is being started.
    pub fn starting(&self, pid: Option<u32>) {
        self.change(|status| {
            status.phase = Phase::Starting;
            status.activity.child_pid = pid;
        });
    }

    pub fn waiting_for_secrets(&self, missing: Vec<String>) {
        self.change(|status| status.phase = Phase::WaitingForSecrets { missing });
    }

    pub fn ready(&self, handshake: Handshake, notices: Vec<Notice>) {
        self.change(|status| {
            status.phase = Phase::Ready;
            status.handshake = Some(handshake);
            status.notices = notices;
            status.last_error = None;
            status.stderr_tail.clear();
        });
    }

    pub fn asleep(&self) {
        self.change(|status| {
            status.phase = Phase::Asleep;
            status.activity.child_pid = None;
        });
    }

    /// The server ended, or could not be started; what happens next is `phase`.
    pub fn ended(&self, phase: Phase, exit: Option<Exit>, error: String, stderr_tail: Vec<String>, counted: bool) {
        self.change(|status| {
            status.phase = phase;
            status.last_exit = exit.or(status.last_exit.take());
            status.last_error = Some(error);
            status.stderr_tail = stderr_tail;
            status.restarts += u64::from(counted);
            status.activity.child_pid = None;
        });
    }

    /// Activity is told without waking watchers: it has no meaning for a server's life.
    pub fn active(&self, change: impl FnOnce(&mut Activity)) {
        self.0.send_if_modified(|status| {
            change(&mut status.activity);
            false
        });
    }

    /// The server's lists changed while it ran.
    pub fn tools_changed(&self, tools: Option<ToolsSummary>) {
        self.change(|status| {
            if let Some(handshake) = &mut status.handshake {
                handshake.tools = tools;
            }
        });
    }

    /// One of several processes of the server ended by itself; the others go on, and it comes back with its client.
    pub fn one_of_many_ended(&self, exit: Exit) {
        self.change(|status| {
            status.restarts += 1;
            status.last_exit = Some(exit);
        });
    }

    fn change(&self, change: impl FnOnce(&mut BridgeStatus)) {
        self.0.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

/// Now, as RFC 3339.
pub fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
