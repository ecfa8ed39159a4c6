//! What an engine tells: its events as hints, from one stream; a gap in it is a reason to look at everything.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bollard::query_parameters::{EventsOptions, KillContainerOptions};
use futures::StreamExt;
use mcp_hub_reconcile::ports::RuntimeEvent;

use super::container::{is_running, label};
use super::engine::Engine;
use super::{DockerRuntime, container, relay};
use crate::follow::Place;

/// How often it is looked for an engine while there is none: a look costs a few calls on files that are not there.
const LOOK_FOR: Duration = Duration::from_secs(10);
/// Waits before an engine that went away is asked again, doubled each time.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Runs as long as the runtime does.
pub(super) async fn run(runtime: Weak<DockerRuntime>) {
    let mut pause = RECONNECT.0;
    loop {
        let Some(strong) = runtime.upgrade() else { return };
        let is_news = strong.place.look(&strong.config).await;
        let Ok(engine) = strong.engine() else {
            if is_news {
                // Servers that are to run here show why they do not.
                strong.tell(RuntimeEvent::Resync);
            }
            let place = strong.place.clone();
            drop(strong);
            // Sooner if somebody asks for it.
            tokio::time::timeout(LOOK_FOR, place.until_wanted()).await.unwrap_or_default();
            continue;
        };
        // From before the look at what is there: what changes in between is told twice, not never.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map(|now| now.as_secs().to_string()).ok();
        let mut events = engine.api.events(Some(EventsOptions {
            since,
            filters: Some(HashMap::from([
                ("type".to_owned(), vec!["container".to_owned()]),
                ("label".to_owned(), strong.marks()),
            ])),
            ..EventsOptions::default()
        }));
        if strong.adopt().await {
            strong.tell(RuntimeEvent::Resync);
        }
        drop(strong);
        let began = Instant::now();
        while let Some(Ok(event)) = events.next().await {
            let Some(strong) = runtime.upgrade() else { return };
            let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
            if let Some(namespace) = relay_of(&attributes).filter(|_| ends(event.action.as_deref())) {
                // Each server mends its own way through it.
                let led_through: Vec<_> =
                    strong.known().iter().filter(|owner| owner.namespace == *namespace).cloned().collect();
                led_through.into_iter().for_each(|owner| strong.tell(RuntimeEvent::Changed(owner)));
            } else if let Some(owner) = container::owner(&attributes).filter(|_| matters(event.action.as_deref())) {
                // Of one that is gone nothing is to be remembered.
                if matches!(event.action.as_deref(), Some("create" | "start")) {
                    strong.known().insert(owner.clone());
                }
                strong.tell(RuntimeEvent::Changed(owner));
            }
        }
        if began.elapsed() > RECONNECT.1 {
            pause = RECONNECT.0;
        }
        tracing::debug!(address = engine.facts().address, "the engine's events ended");
        let Some(strong) = runtime.upgrade() else { return };
        // Servers in its containers show that it is away.
        strong.tell(RuntimeEvent::Resync);
        drop(strong);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT.1);
    }
}

/// Commands that are run in a container, among them the engine's own health checks, change nothing of it.
fn matters(action: Option<&str>) -> bool {
    !action.is_some_and(|action| action.starts_with("exec_") || action.starts_with("health_status"))
}

/// The namespace whose relay a container is.
fn relay_of(attributes: &HashMap<String, String>) -> Option<&String> {
    attributes.get(label::NAMESPACE).filter(|_| attributes.get(label::ROLE).is_some_and(|role| role == relay::ROLE))
}

/// What happens to a relay that we did not do, or that was done to remove it.
fn ends(action: Option<&str>) -> bool {
    matches!(action, Some("die" | "died" | "pause" | "update" | "rename" | "destroy" | "remove"))
}

/// The container of a bridge that is followed.
pub(super) struct Held {
    pub(super) engine: Engine,
    pub(super) name: String,
    /// Through which the bridge is asked, if it is enclosed.
    pub(super) relay: Option<String>,
}

#[async_trait]
impl Place for Held {
    async fn is_held(&self) -> bool {
        match self.engine.container(&self.name).await {
            Ok(found) => found.is_some_and(|found| is_running(&found)),
            // An engine that does not answer says nothing of its containers.
            Err(_) => true,
        }
    }

    async fn kill(&self) {
        // Without the relay nobody hears the bridge, which says nothing against it.
        if let Some(relay) = &self.relay {
            match self.engine.container(relay).await {
                Ok(Some(relay)) if relay::answers(&relay).await => {}
                _ => return,
            }
        }
        let options = KillContainerOptions { signal: "SIGKILL".to_owned() };
        if let Err(error) = self.engine.api.kill_container(&self.name, Some(options)).await {
            tracing::debug!(container = self.name, %error, "not killed");
        }
    }
}
