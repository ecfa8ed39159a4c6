//! One stand-in for the bridges of all pods that KWOK plays: they share one address.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::status::{Activity, BridgeStatus, Handshake, Phase};

use crate::stand_in::StandIn;

/// Answers `/status` to whoever asks. Ends with the value.
#[derive(Debug)]
pub(crate) struct Bridges {
    ready: Arc<AtomicBool>,
    _server: StandIn,
}

impl Bridges {
    pub(crate) fn listen(listener: TcpListener) -> Self {
        let ready = Arc::new(AtomicBool::new(true));
        let told = ready.clone();
        let answer = move |_: &str| {
            let status = status(told.load(Ordering::Relaxed));
            Some(("application/json", serde_json::to_string(&status).unwrap()))
        };
        Self { ready, _server: StandIn::listen(listener, answer) }
    }

    /// From now on all servers have shaken hands, or none has.
    pub(crate) fn say_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

fn status(ready: bool) -> BridgeStatus {
    let handshake = Handshake {
        era: Era::Modern,
        server_name: "stand-in".to_owned(),
        server_version: "1.0.0".to_owned(),
        protocol_versions: vec!["2026-07-28".to_owned()],
        tools: None,
        duration_ms: 12,
        at: "2026-08-01T00:00:00Z".to_owned(),
    };
    BridgeStatus {
        bridge_version: "1".to_owned(),
        digest: String::new(),
        // Whoever asks knows where the pod is.
        endpoint: String::new(),
        phase: if ready { Phase::Ready } else { Phase::Starting },
        handshake: ready.then_some(handshake),
        restarts: 0,
        last_exit: None,
        last_error: None,
        stderr_tail: Vec::new(),
        notices: Vec::new(),
        activity: Activity::default(),
    }
}
