//! Operators that are killed at random, and two that work at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::join;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use rustix::process::Signal;
use serde_json::json;

use crate::audit::{Write, tally};
use crate::children::assert_same;
use crate::place::{Place, SYSTEM, all_ready, eventually, server};
use crate::unrest::{Census, Random, Wishes};

const KILLS: usize = 200;

/// Writes that one change may cause, its way to Ready included: three objects, the statuses of the server and of the hub,
/// the hub's configuration, and events.
const WRITES_A_CHANGE: usize = 16;
/// What a killed operator had begun may be done again by the next.
const WRITES_A_KILL: usize = 4;

/// The Secrets from which tokens are derived, which nothing may change.
async fn keys(place: &Place) -> Vec<Option<Secret>> {
    let system: Api<Secret> = Api::namespaced(place.client.0.clone(), SYSTEM);
    let installation = system.get_opt("mcp-hub-installation").await.unwrap();
    vec![installation]
}

/// What an operator asks for is never refused but where others were faster; 504 is the end of one that was killed.
fn assert_welcome(writes: &[Write]) {
    assert!(!writes.is_empty(), "no write of an operator was recognised");
    let refused: Vec<&Write> =
        writes.iter().filter(|write| write.code >= 400 && ![404, 409, 504].contains(&write.code)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

/// The end state is that of a fresh install of the same specs, and a settled cluster causes no write, not even by a restart.
async fn assert_as_new(place: &Place, wishes: &mut Wishes<'_>) {
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    place.settled(all_ready).await;
    wishes.assert_granted().await;
    wishes.resume().await;
    place.settled(all_ready).await;
    wishes.assert_granted().await;
    let (children, verdicts) = (place.children().await, place.verdicts().await);

    operator.kill();
    let audit = place.audit();
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    place.settled(all_ready).await;
    assert!(audit.writes().is_empty(), "a restart wrote {}", tally(&audit.writes()));

    operator.kill();
    place.wipe().await;
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    place.settled(all_ready).await;
    assert_same("what is left of the unrest differs from a fresh install", &children, &place.children().await);
    assert_eq!(verdicts, place.verdicts().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_two_hundred_times_it_loses_nothing_and_makes_no_pod_too_many() {
    let place = Place::new().await;
    let mut random = Random::seeded();
    let audit = place.audit();
    let census = Census::of(&place);
    let mut wishes = Wishes::begin(&place).await;
    // The first life may make the installation in peace, so that there is one to compare with.
    place.operator("op").until_it_leads().await;
    let before = keys(&place).await;

    let mut other = Random::seeded();
    let killing = async {
        let mut led = 0;
        for _ in 0..KILLS {
            let mut operator = place.operator("op");
            // Most of them get to work, some die on the way there.
            if random.below(4) > 0 {
                operator.until_it_leads().await;
            }
            tokio::time::sleep(random.millis(0, 300)).await;
            led += usize::from(operator.leads());
            operator.kill();
        }
        led
    };
    let over = AtomicBool::new(false);
    let killing = killing.inspect(|_| over.store(true, Ordering::Relaxed));
    let unrest = async {
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(other.millis(20, 300)).await;
            wishes.change(&mut other).await;
        }
    };
    let (led, ()) = join(killing, unrest).await;
    println!("{KILLS} kills, {led} of operators at work, {} changes", wishes.changes);
    assert!(led > KILLS / 2, "only {led} operators got to work");
    assert_eq!(keys(&place).await, before);

    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    place.settled(all_ready).await;
    census.assert_never_too_many();
    let writes = audit.writes();
    println!("{} writes: {}", writes.len(), tally(&writes));
    assert_welcome(&writes);
    let most = wishes.changes * WRITES_A_CHANGE + KILLS * WRITES_A_KILL;
    assert!(writes.len() <= most, "{} writes, and {most} would do: {}", writes.len(), tally(&writes));
    operator.kill();
    assert_as_new(&place, &mut wishes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_at_once_do_the_work_of_one() {
    let place = Place::new().await;
    let mut random = Random::seeded();
    // The same identity: each takes the other's lease for its own, so that none waits.
    let mut twins = [place.operator("op"), place.operator("op")];
    for twin in &mut twins {
        twin.until_it_leads().await;
    }
    let audit = place.audit();
    let census = Census::of(&place);
    let mut wishes = Wishes::begin(&place).await;
    for _ in 0..60 {
        tokio::time::sleep(random.millis(20, 300)).await;
        wishes.change(&mut random).await;
    }
    place.settled(all_ready).await;
    assert!(twins.iter_mut().all(|twin| twin.ended().is_none()), "both are at work");
    census.assert_never_too_many();
    let writes = audit.writes();
    println!("{} changes, {} writes: {}", wishes.changes, writes.len(), tally(&writes));
    assert_welcome(&writes);
    let most = 2 * wishes.changes * WRITES_A_CHANGE;
    assert!(writes.len() <= most, "{} writes, and {most} would do: {}", writes.len(), tally(&writes));
    let [first, second] = twins;
    first.kill();
    second.kill();
    assert_as_new(&place, &mut wishes).await;
}

async fn lease(place: &Place) -> LeaseSpec {
    let leases: Api<Lease> = Api::namespaced(place.client.0.clone(), SYSTEM);
    leases.get("mcp-hub-operator").await.unwrap().spec.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_in_line_takes_over() {
    let place = Place::new().await;
    let mut leader = place.operator("a");
    leader.until_it_leads().await;
    let mut next = place.operator("b");
    place.server("one", &server(json!({}))).await;
    place.settled(all_ready).await;
    assert!(!next.leads(), "one leads at a time");

    // Asked to go, it gives the lease back, so that nobody waits for its end.
    next.signal(Signal::STOP);
    let status = leader.stop().await;
    assert!(status.success(), "{status}");
    assert_eq!(lease(&place).await.holder_identity, None);
    next.signal(Signal::CONT);
    next.until_it_leads().await;

    // Killed, its time has to run out; and what was asked for meanwhile is done.
    let mut third = place.operator("c");
    let begun = Instant::now();
    next.kill();
    place.server("two", &server(json!({}))).await;
    third.until_it_leads().await;
    println!("taken over in {:?}", begun.elapsed());
    place.settled(all_ready).await;

    // The same pod, started anew, goes on with the lease that it has and waits for nothing.
    let taken = lease(&place).await.lease_transitions;
    third.kill();
    let mut again = place.operator("c");
    again.until_it_leads().await;
    assert_eq!(lease(&place).await.lease_transitions, taken);

    // Of several that wait for a lease one gets it.
    again.kill();
    let mut crowd = ["d", "e", "f"].map(|identity| place.operator(identity));
    eventually("one of them to lead", async || {
        if crowd.iter().any(|operator| operator.leads()) { Ok(()) } else { Err(String::new()) }
    })
    .await;
    // A second one would believe it by now.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let leading: usize = crowd.iter_mut().map(|operator| usize::from(operator.leads())).sum();
    assert_eq!(leading, 1);
}
