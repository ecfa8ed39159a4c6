//! The end of a bridge that others still call: in good order, within its times.

use std::sync::Arc;
use std::time::Duration;

use mcp_hub_dataplane_api::launch::Drain;
use tokio::task::JoinHandle;

use crate::server::Server;

/// Lets callers go elsewhere, finishes what is under way, then stops the server. `serving` resolves when the last answer
/// has left.
pub async fn run(server: Arc<Server>, serving: JoinHandle<()>) {
    let Drain { accept_ms, finish_ms } = server.spec.drain;
    server.drain();
    tokio::time::sleep(Duration::from_millis(accept_ms)).await;
    server.close();
    // What has not finished by then ends with the server.
    tokio::time::timeout(Duration::from_millis(finish_ms), serving).await.ok();
    server.stop();
}
