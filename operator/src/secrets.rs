//! The Secrets that we wrote: looked at again and again instead of watched.
//!
//! A role grants the watching of all Secrets of a namespace or of none: labels do not count, and the names of hubs are not
//! known when a role is written. Users' Secrets are not ours to list, so a role has `get` only, and what others do to a
//! Secret of ours is noticed within [`LOOK_AGAIN`], not at once.

use std::time::Duration;

use kube::{Api, Client, ResourceExt};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;
use tokio::sync::broadcast;

use crate::cache::{Cache, Place, version_of};
use crate::children::{Child, ChildKind};

/// Each hub has two Secrets, asked for one after the other: a hundred hubs make at most twenty requests a second.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Follows the Secrets in the cache for ever, and tells whose changed or went.
pub(crate) async fn follow(client: Client, cache: Cache<Child>, events: broadcast::Sender<RuntimeEvent>) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        for place in cache.places() {
            let concerned = match look(&client, &cache, &place).await {
                Ok(concerned) => concerned,
                Err(error) => {
                    // What is known stands; the next round asks again.
                    tracing::warn!(error = %error, "a Secret could not be looked at");
                    Vec::new()
                }
            };
            for owner in concerned {
                // Nobody listening is no loss: who listens later looks at everything.
                events.send(RuntimeEvent::Changed(owner)).ok();
            }
        }
    }
}

async fn look(client: &Client, cache: &Cache<Child>, place: &Place) -> Result<Vec<OwnerKey>, kube::Error> {
    let Place { namespace, name, uid, version } = place;
    let api = Api::namespaced_with(client.clone(), namespace, &ChildKind::Secret.resource());
    let seen = api.get_metadata_opt(name).await?;
    if seen.is_some_and(|seen| seen.uid().as_ref() == Some(uid) && version_of(&seen) == *version) {
        return Ok(Vec::new());
    }
    // Its values are fetched only when there is something new in them.
    Ok(match api.get_opt(name).await? {
        Some(object) => cache.see(&object, Child::of(ChildKind::Secret, &object)),
        None => cache.lost(namespace, name, uid),
    })
}

#[cfg(test)]
mod tests {
    use kube::api::{Patch, PatchParams};
    use mcp_hub_fakeapi::{FakeApi, Verb};
    use mcp_hub_reconcile::owner::OwnerKind;
    use serde_json::json;

    use super::*;
    use crate::children::FIELD_MANAGER;
    use crate::labels;

    /// Longer than any round.
    const LONG: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn what_others_do_to_a_secret_is_noticed_and_a_settled_one_is_only_looked_at() {
        let fake = FakeApi::new();
        let client = fake.client("test");
        let hub = OwnerKey {
            installation: "i".to_owned(),
            kind: OwnerKind::MCPHub,
            namespace: "default".to_owned(),
            name: "main".to_owned(),
            uid: "u".to_owned(),
        };
        let api = Api::namespaced_with(client.clone(), "default", &ChildKind::Secret.resource());
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mcp-hub-main-token", "labels": labels::of(&hub)},
            "data": {"token": "b25l"},
        });
        let written = api.patch("mcp-hub-main-token", &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&secret)).await;
        let (cache, events) = (Cache::new(0), broadcast::Sender::new(16));
        let written = written.unwrap();
        cache.see(&written, Child::of(ChildKind::Secret, &written));
        let mut told = events.subscribe();
        let following = tokio::spawn(follow(client, cache.clone(), events.clone()));

        fake.clear_log();
        tokio::time::timeout(LONG, told.recv()).await.unwrap_err();
        assert!(fake.log().len() > 10);
        assert!(fake.log().iter().all(|entry| entry.verb == Verb::Get), "{:?}", fake.log());

        let changed = RuntimeEvent::Changed(hub);
        fake.edit("Secret", "default", "mcp-hub-main-token", |secret| secret["data"]["token"] = json!("dHdv")).unwrap();
        assert_eq!(tokio::time::timeout(LONG, told.recv()).await.unwrap().unwrap(), changed);
        fake.delete("Secret", "default", "mcp-hub-main-token");
        assert_eq!(tokio::time::timeout(LONG, told.recv()).await.unwrap().unwrap(), changed);
        assert!(cache.places().is_empty());
        following.abort();
    }
}
