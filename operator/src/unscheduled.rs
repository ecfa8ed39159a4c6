//! Pods that no node takes: whether that lasts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::owner::OwnerKey;
use tokio::time::Instant;

use crate::pods::{PodFacts, UNSCHEDULABLE};

/// So long a pod without a node may only be waiting for another one to leave it. Calls for a server that is being woken wait
/// for it; whoever needs a new node waits for minutes, and is told.
const LASTS: Duration = Duration::from_secs(30);

/// Since when owners, by uid, have a pod that no node takes. By our own clock: those of other machines are not compared.
#[derive(Debug, Default)]
pub(crate) struct Unscheduled(Mutex<HashMap<String, Instant>>);

impl Unscheduled {
    /// Takes the pods that an owner has now.
    pub(crate) fn attend(&self, owner: &OwnerKey, pods: &[PodFacts]) {
        let waits = pods.iter().filter_map(|pod| pod.failure.as_ref()).any(|failure| failure.reason == UNSCHEDULABLE);
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            since.entry(owner.uid.clone()).or_insert_with(Instant::now);
        } else {
            since.remove(&owner.uid);
        }
    }

    /// The failure of an owner's pod, which may be over by itself if it is this one and young.
    pub(crate) fn weigh(&self, owner: &OwnerKey, failure: Failure) -> Failure {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&owner.uid).copied();
        let left = since.map(|since| LASTS.saturating_sub(since.elapsed())).unwrap_or_default();
        match failure.reason == UNSCHEDULABLE && !left.is_zero() {
            true => Failure { retry: Retry::After(left), ..failure },
            false => failure,
        }
    }
}
