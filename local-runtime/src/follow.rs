//! Follows one bridge: tells of changes of its status and of its end, and ends one that hangs.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::broadcast;

use crate::control::Control;

/// A bridge that has told nothing for this long is asked whether it still answers: a hang gives no event.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A bridge that has not answered for this long hangs. Each question has a patience of its own, so even a machine that is
/// very busy has had several.
const HANGS_AFTER: Duration = Duration::from_secs(15);
/// How soon, and how seldom at last, a bridge is looked at that went silent and still lives.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a bridge runs in.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// Whether the bridge still lives there, as far as can be told.
    async fn is_held(&self) -> bool;

    /// Ends the bridge without asking it.
    async fn kill(&self);
}

/// Returns when the bridge is gone. One that hangs is killed, which ends its server too; to the next pass that is the same
/// as a crash, and it starts another.
pub(crate) async fn run(owner: OwnerKey, control: Control, place: impl Place, events: broadcast::Sender<RuntimeEvent>) {
    // Nobody listening is no loss: who listens later looks at everything first.
    let tell = || events.send(RuntimeEvent::Changed(owner.clone())).ok();
    loop {
        let mut told = control.events().await.ok();
        while let Some(changes) = &mut told {
            match tokio::time::timeout(HEARTBEAT, changes.next()).await {
                Ok(Some(())) => {
                    tell();
                }
                Err(_) if control.status().await.is_ok() => {}
                Ok(None) | Err(_) => told = None,
            }
        }
        tell();
        // The sockets of a dying bridge close before its lock opens, and whoever looks in between sees a mute bridge instead
        // of a dead one; so its end is told once more.
        let mut silent = Instant::now();
        let mut pause = LOOK_AGAIN.0;
        while control.status().await.is_err() {
            if !place.is_held().await {
                tell();
                return;
            }
            if silent.elapsed() > HANGS_AFTER {
                tracing::warn!(%owner, "the bridge does not answer and is replaced");
                place.kill().await;
                // If it may not be the bridge that hangs, somebody is to look.
                tell();
                silent = Instant::now();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }
}
