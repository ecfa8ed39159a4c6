//! Who leads: of several operators the one that holds a Lease.
//!
//! Every write of the Lease names the version that it was decided on, so that of two that reach for it one is refused. A
//! holder counts as gone when its Lease has not changed for [`LEASE`] by the watcher's own clock; clocks of different
//! machines are never compared. A leader that could not renew in time gives up before anybody may take over.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const NAME: &str = "mcp-hub-operator";
const FIELD_MANAGER: &str = "mcp-hub/lease";

/// A Lease that did not change for so long is anybody's.
const LEASE: Duration = Duration::from_secs(15);
const LEASE_SECONDS: i32 = 15;
/// A leader that could not renew for so long leads no more; what it has under way ends within the rest.
const GIVE_UP: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(4);
/// Those that wait look this often, and a leader tries again this soon: one small read a second.
const LOOK: Duration = Duration::from_secs(1);
/// A Lease that cannot be given back by then runs out by itself.
const LET_GO: Duration = Duration::from_secs(5);

/// Taking part in the election. Dropped, it stops renewing.
#[derive(Debug)]
pub struct Election {
    leads: watch::Receiver<bool>,
    resign: oneshot::Sender<()>,
    standing: JoinHandle<()>,
}

impl Election {
    /// Stands for election. Who finds its own identity in the Lease leads at once: a pod keeps its name when its container
    /// is started anew.
    pub fn stand(client: &Client, namespace: &str, identity: &str) -> Self {
        let candidate = Candidate {
            api: Api::namespaced(client.clone(), namespace),
            identity: identity.to_owned(),
            seen: None,
            renewed: None,
        };
        let (tell, leads) = watch::channel(false);
        let (resign, resigned) = oneshot::channel();
        Self { leads, resign, standing: tokio::spawn(candidate.stand(tell, resigned)) }
    }

    /// Whether this operator leads; it does not do so again once it has lost the lead.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Gives the Lease back, so that a successor need not wait for it to run out.
    pub async fn resign(self) {
        // An election that has ended by itself holds nothing.
        self.resign.send(()).ok();
        tokio::time::timeout(LET_GO, self.standing).await.ok();
    }
}

struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// Version of the Lease as it was last seen, and since when it has not changed.
    seen: Option<(String, Instant)>,
    /// When the last request that renewed it was begun.
    renewed: Option<Instant>,
}

/// What may be done about a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// It is ours already.
    Renew,
    /// Nobody's, or of somebody who is gone.
    Take,
    /// Somebody else's.
    Wait,
}

fn claim(lease: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Claim {
    match lease.holder_identity.as_deref() {
        Some(holder) if holder == identity => Claim::Renew,
        None | Some("") => Claim::Take,
        Some(_) if unchanged_for >= LEASE => Claim::Take,
        Some(_) => Claim::Wait,
    }
}

impl Candidate {
    async fn stand(mut self, tell: watch::Sender<bool>, mut resigned: oneshot::Receiver<()>) {
        loop {
            let begun = Instant::now();
            let deadline = self.renewed.map_or(begun + GIVE_UP, |renewed| renewed + GIVE_UP);
            let attempt = tokio::time::timeout_at(deadline, self.attempt());
            let outcome = tokio::select! {
                outcome = attempt => outcome,
                _ = &mut resigned => return self.give_back().await,
            };
            let pause = match outcome {
                Ok(Ok(Claim::Renew | Claim::Take)) => {
                    self.renewed = Some(begun);
                    tell.send_if_modified(|leads| !std::mem::replace(leads, true));
                    RENEW
                }
                // Another one has the Lease.
                Ok(Ok(Claim::Wait)) if self.renewed.is_some() => break,
                Ok(Ok(Claim::Wait)) => LOOK,
                Ok(Err(error)) => {
                    tracing::warn!(error = %error, "the lease could not be read or written");
                    LOOK
                }
                Err(_) => {
                    tracing::warn!("the API server did not answer about the lease");
                    LOOK
                }
            };
            if self.renewed.is_some_and(|renewed| renewed.elapsed() >= GIVE_UP) {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = &mut resigned => return self.give_back().await,
            }
        }
        tell.send_replace(false);
    }

    /// Reads the Lease and makes it ours if it may be.
    async fn attempt(&mut self) -> Result<Claim, kube::Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            return self.create().await;
        };
        let version = lease.resource_version().unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version.clone(), since));
        let spec = lease.spec.unwrap_or_default();
        let claim = claim(&spec, &self.identity, now - since);
        let renewal = json!({"renewTime": MicroTime(Timestamp::now()), "leaseDurationSeconds": LEASE_SECONDS});
        let change = match claim {
            Claim::Wait => return Ok(claim),
            Claim::Renew => renewal,
            Claim::Take => json!({
                "holderIdentity": self.identity,
                "acquireTime": renewal["renewTime"], "renewTime": renewal["renewTime"],
                "leaseDurationSeconds": LEASE_SECONDS,
                "leaseTransitions": spec.lease_transitions.unwrap_or(0).saturating_add(1),
            }),
        };
        self.write(&version, &change).await?;
        Ok(claim)
    }

    async fn create(&self) -> Result<Claim, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let lease = Lease {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_duration_seconds: Some(LEASE_SECONDS),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.api.create(&params, &lease).await?;
        Ok(Claim::Take)
    }

    /// Refused if the Lease is not of this version any more.
    async fn write(&self, version: &str, change: &serde_json::Value) -> Result<(), kube::Error> {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": change});
        self.api.patch(NAME, &params, &Patch::Merge(patch)).await.map(drop)
    }

    async fn give_back(&self) {
        if self.renewed.is_none() {
            return;
        }
        let given = async {
            let lease = self.api.get(NAME).await?;
            let version = lease.resource_version().unwrap_or_default();
            let holder = lease.spec.and_then(|spec| spec.holder_identity);
            match holder.as_deref() == Some(&self.identity) {
                true => self.write(&version, &json!({"holderIdentity": null})).await,
                false => Ok(()),
            }
        };
        if let Err(error) = given.await {
            tracing::warn!(error = %error, "the lease was not given back; it runs out by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_from_nobody_who_may_still_lead() {
        let held =
            |holder: Option<&str>| LeaseSpec { holder_identity: holder.map(str::to_owned), ..LeaseSpec::default() };
        for (holder, unchanged_for, wanted) in [
            (None, Duration::ZERO, Claim::Take),
            (Some(""), Duration::ZERO, Claim::Take),
            (Some("me"), Duration::ZERO, Claim::Renew),
            (Some("me"), LEASE, Claim::Renew),
            (Some("other"), LEASE - Duration::from_millis(1), Claim::Wait),
            (Some("other"), LEASE, Claim::Take),
        ] {
            assert_eq!(claim(&held(holder), "me", unchanged_for), wanted, "{holder:?} for {unchanged_for:?}");
        }
    }

    #[test]
    fn a_leader_gives_up_before_anybody_may_take_over() {
        assert!(RENEW + LOOK < GIVE_UP);
        assert!(GIVE_UP < LEASE);
        assert_eq!(LEASE, Duration::from_secs(LEASE_SECONDS.try_into().unwrap()));
    }
}
