//! Follows one bridge: tells of changes of its status and of its end, and ends one that hangs.

use std::time::{Duration, Instant};

use futures::StreamExt;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::broadcast;

use super::control::Control;
use super::folder::RunFolder;

/// A bridge that has told nothing for this long is asked whether it still answers: a hang gives no event.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A bridge that has not answered for this long hangs. Each question has a patience of its own, so even a machine that is
/// very busy has had several.
const HANGS_AFTER: Duration = Duration::from_secs(15);
/// How often a bridge is looked at that went silent and still holds its lock.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Returns when the bridge is gone. One that hangs is killed, which ends its server too; to the next pass that is the same
/// as a crash, and it starts another.
pub(super) async fn run(owner: OwnerKey, folder: RunFolder, events: broadcast::Sender<RuntimeEvent>) {
    let control = Control::new(folder.control_socket());
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
        while control.status().await.is_err() {
            if !folder.is_held() {
                tell();
                return;
            }
            if silent.elapsed() > HANGS_AFTER {
                tracing::warn!(%owner, "the bridge does not answer and is replaced");
                folder.kill_bridge();
                silent = Instant::now();
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
