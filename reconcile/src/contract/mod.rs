//! The suite that every runtime passes: one function per guarantee in the docs of [`Runtime`], named after it.
//!
//! The fake passes it, and a fake that breaks a guarantee fails at that guarantee; so a runtime that passes is as good as
//! the fake that all tests of passes stand on.

pub mod effect;
pub mod fields;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;

use crate::lower::{Lowered, Stage};
use crate::observed::{Observed, PrepareState};
use crate::owner::OwnerKey;
use crate::plan::{is_in_sync, plan, render};
use crate::ports::{Runtime, RuntimeEvent, Step};
use crate::workload::{ServerWorkload, Workload};

/// A place with a runtime on it, and the means to look at it without the runtime.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A new value over the same place, as a new daemon has it.
    async fn runtime(&self) -> Arc<dyn Runtime>;

    /// A server of this name that is not resolved yet. Names are unique over the suite.
    fn workload(&self, name: &str) -> ServerWorkload;

    /// The same server with a spec that asks for another object, resolved alike.
    fn changed(&self, workload: &ServerWorkload) -> ServerWorkload;

    /// A server of the same name and spec that comes after this one was deleted: told apart by its uid only.
    fn namesake(&self, workload: &ServerWorkload) -> ServerWorkload {
        let uid = format!("{}-namesake", workload.owner.uid);
        ServerWorkload { owner: OwnerKey { uid, ..workload.owner.clone() }, ..workload.clone() }
    }

    /// Whether names of objects are made from the server's name alone, so that a namesake takes the other's place.
    fn namesakes_exclude_each_other(&self) -> bool {
        false
    }

    /// Servers that the runtime cannot run as asked, with the path of the field.
    fn unsupported(&self) -> Vec<(&'static str, ServerWorkload)>;

    /// Waits until what was applied runs.
    async fn settled(&self, owner: &OwnerKey);

    /// What there is of an owner, found without the runtime: one line for each object and process.
    async fn remains(&self, owner: &OwnerKey) -> Vec<String>;

    /// Puts things of someone else there that look like this server's; gives how many things there are.
    async fn plant_foreign(&self, name: &str) -> usize;

    /// How many of the foreign things are still as they were.
    async fn foreign(&self) -> usize;

    /// Changes a value of the server's object behind the runtime's back. `false` if the place has no such thing.
    async fn drift(&self, owner: &OwnerKey) -> bool;
}

/// A guarantee that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{guarantee}: {what}")]
pub struct Breach {
    pub guarantee: &'static str,
    pub what: String,
}

/// Runs all of [`GUARANTEES`]; gives every breach.
pub async fn run(harness: &dyn Harness) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (guarantee, check) in GUARANTEES {
        if let Err(what) = check(harness).await {
            breaches.push(Breach { guarantee, what });
        }
    }
    breaches
}

type Check = for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, Result<(), String>>;

/// The guarantees by name.
pub const GUARANTEES: &[(&str, Check)] = &[
    ("lower_is_pure", |h| Box::pin(lower_is_pure(h))),
    ("lower_refuses_by_name_what_it_cannot_honour", |h| Box::pin(lower_refuses_by_name_what_it_cannot_honour(h))),
    ("what_was_applied_is_observed_at_once", |h| Box::pin(what_was_applied_is_observed_at_once(h))),
    ("execute_is_idempotent", |h| Box::pin(execute_is_idempotent(h))),
    ("a_settled_object_needs_no_step", |h| Box::pin(a_settled_object_needs_no_step(h))),
    ("drift_is_observed", |h| Box::pin(drift_is_observed(h))),
    ("foreign_objects_are_never_touched", |h| Box::pin(foreign_objects_are_never_touched(h))),
    ("steps_of_one_owner_leave_others_alone", |h| Box::pin(steps_of_one_owner_leave_others_alone(h))),
    ("nothing_is_left_after_remove", |h| Box::pin(nothing_is_left_after_remove(h))),
    ("owners_names_each_owner_of_which_anything_is_left", |h| {
        Box::pin(owners_names_each_owner_of_which_anything_is_left(h))
    }),
    ("a_new_value_sees_what_the_old_one_made", |h| Box::pin(a_new_value_sees_what_the_old_one_made(h))),
    ("a_dropped_execute_is_finished_by_the_next_plan", |h| Box::pin(a_dropped_execute_is_finished_by_the_next_plan(h))),
    ("changes_are_told", |h| Box::pin(changes_are_told(h))),
];

/// Far longer than any step of any runtime; reached only by a breach.
const PATIENCE: Duration = Duration::from_secs(60);
/// A preparation that goes on in the background is looked at this often.
const LOOK: Duration = Duration::from_millis(5);

/// `lower`: neither clock nor disk nor network, so it gives the same each time.
pub async fn lower_is_pure(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "pure").await?;
    let (one, two) = (lower(&*runtime, &workload)?, lower(&*runtime, &workload)?);
    check(one == two, || format!("the same workload gave {one:?} and {two:?}"))?;
    let later = lower(&*harness.runtime().await, &workload)?;
    check(one == later, || format!("a new value gave {later:?} instead of {one:?}"))?;
    clean_up(harness, &*runtime, &workload.owner).await
}

/// `Unsupported` names the field; none is dropped silently.
pub async fn lower_refuses_by_name_what_it_cannot_honour(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    for (field, workload) in harness.unsupported() {
        match runtime.lower(&Workload::Server(Box::new(workload))) {
            Ok(lowered) => return Err(format!("{field} was accepted: {lowered:?}")),
            Err(refusal) => {
                check(refusal.field.starts_with(field), || format!("{field} was refused as {}", refusal.field))?
            }
        }
    }
    Ok(())
}

/// What `execute` applied, `observe` shows at once, with the digest and body it was given.
pub async fn what_was_applied_is_observed_at_once(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "at-once").await?;
    let changed = harness.changed(&workload);
    for workload in [&workload, &changed] {
        let lowered = lower(&*runtime, workload)?;
        execute(&*runtime, &workload.owner, &plan(&lowered, &observe(&*runtime, &workload.owner).await?)).await?;
        let observed = observe(&*runtime, &workload.owner).await?;
        for object in &lowered.objects {
            let found = observed.objects.iter().find(|found| found.id == object.id);
            let found = found.ok_or_else(|| format!("{} was applied and is not observed", object.id))?;
            check(is_in_sync(object, found), || format!("{object:?} was applied and {found:?} is observed"))?;
        }
        check(observed.objects.len() == lowered.objects.len(), || format!("more than applied: {observed:?}"))?;
    }
    clean_up(harness, &*runtime, &workload.owner).await
}

/// The same step twice leaves what one leaves.
pub async fn execute_is_idempotent(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "twice").await?;
    let owner = &workload.owner;
    let lowered = lower(&*runtime, &workload)?;
    converge(&*runtime, owner, &lowered).await?;
    harness.settled(owner).await;
    let (once, observed) = (harness.remains(owner).await, observe(&*runtime, owner).await?);
    for step in lowered.objects.iter().cloned().flat_map(|object| [Step::Apply(object.clone()), Step::Replace(object)])
    {
        for _ in 0..2 {
            execute(&*runtime, owner, std::slice::from_ref(&step)).await?;
            harness.settled(owner).await;
            let again = harness.remains(owner).await;
            check(again == once, || {
                format!("{} again left {again:?} instead of {once:?}", render(std::slice::from_ref(&step)))
            })?;
            let seen = observe(&*runtime, owner).await?;
            check(seen.objects == observed.objects, || format!("objects became {:?}", seen.objects))?;
        }
    }
    let steps = plan(&Lowered::default(), &observed);
    execute(&*runtime, owner, &steps).await?;
    execute(&*runtime, owner, &steps).await?;
    clean_up(harness, &*runtime, owner).await
}

/// Planning again after the steps gives no step, for an unchanged and for a changed workload.
pub async fn a_settled_object_needs_no_step(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "settled").await?;
    for workload in [&workload, &harness.changed(&workload), &workload] {
        let lowered = lower(&*runtime, workload)?;
        let first = plan(&lowered, &observe(&*runtime, &workload.owner).await?);
        check(!first.is_empty(), || "a change of the spec gave no step".to_owned())?;
        execute(&*runtime, &workload.owner, &first).await?;
        harness.settled(&workload.owner).await;
        let steps = plan(&lowered, &observe(&*runtime, &workload.owner).await?);
        check(steps.is_empty(), || format!("still to do: {}", render(&steps)))?;
    }
    clean_up(harness, &*runtime, &workload.owner).await
}

/// A value that someone changed shows, and the next plan mends it.
pub async fn drift_is_observed(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "drift").await?;
    let lowered = lower(&*runtime, &workload)?;
    converge(&*runtime, &workload.owner, &lowered).await?;
    harness.settled(&workload.owner).await;
    if harness.drift(&workload.owner).await {
        let steps = plan(&lowered, &observe(&*runtime, &workload.owner).await?);
        check(!steps.is_empty(), || "a changed value is not seen".to_owned())?;
        converge(&*runtime, &workload.owner, &lowered).await?;
    }
    clean_up(harness, &*runtime, &workload.owner).await
}

/// Objects without our owner mark are never touched.
pub async fn foreign_objects_are_never_touched(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let planted = harness.plant_foreign("guest").await;
    let workload = resolve(harness, &*runtime, "guest").await?;
    for workload in [&workload, &harness.changed(&workload)] {
        converge(&*runtime, &workload.owner, &lower(&*runtime, workload)?).await?;
        harness.settled(&workload.owner).await;
    }
    clean_up(harness, &*runtime, &workload.owner).await?;
    let left = harness.foreign().await;
    check(left == planted, || format!("{planted} foreign things were there, {left} are left"))
}

/// Objects of one owner are never touched by a step of another.
pub async fn steps_of_one_owner_leave_others_alone(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let old = resolve(harness, &*runtime, "pair").await?;
    let lowered = lower(&*runtime, &old)?;
    converge(&*runtime, &old.owner, &lowered).await?;
    harness.settled(&old.owner).await;
    let new = harness.namesake(&old);
    converge(&*runtime, &new.owner, &lower(&*runtime, &new)?).await?;
    if harness.namesakes_exclude_each_other() {
        // A step that was planned before the other came goes over nothing.
        for object in &lowered.objects {
            check(runtime.execute(&old.owner, &Step::Apply(object.clone())).await.is_err(), || {
                format!("{} was made into one of a deleted namesake", object.id)
            })?;
        }
        let left = observe(&*runtime, &old.owner).await?.objects;
        check(left.is_empty(), || format!("both have objects: {left:?}"))?;
    }
    harness.settled(&new.owner).await;
    let before = (harness.remains(&new.owner).await, observe(&*runtime, &new.owner).await?.objects);
    check(!before.0.is_empty(), || "nothing of the second ran".to_owned())?;
    // Also those that are planned on what was seen long ago.
    let removals: Vec<Step> = lowered.objects.iter().map(|object| Step::Remove(object.id.clone())).collect();
    execute(&*runtime, &old.owner, &removals).await?;
    clean_up(harness, &*runtime, &old.owner).await?;
    let after = (harness.remains(&new.owner).await, observe(&*runtime, &new.owner).await?.objects);
    check(before == after, || format!("removing one owner's objects made of the other's {before:?} {after:?}"))?;
    clean_up(harness, &*runtime, &new.owner).await
}

/// After `Remove` nothing of the object is left, its processes included.
pub async fn nothing_is_left_after_remove(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "gone").await?;
    converge(&*runtime, &workload.owner, &lower(&*runtime, &workload)?).await?;
    harness.settled(&workload.owner).await;
    let running = harness.remains(&workload.owner).await;
    check(!running.is_empty(), || "nothing ran before".to_owned())?;
    execute_removal(&*runtime, &workload.owner).await?;
    let left = harness.remains(&workload.owner).await;
    check(left.is_empty(), || format!("left: {left:?}"))?;
    let observed = observe(&*runtime, &workload.owner).await?;
    check(observed.objects.is_empty() && observed.bridge.is_none(), || format!("still observed: {observed:?}"))
}

/// `owners` names each owner of which anything is left, and no other.
pub async fn owners_names_each_owner_of_which_anything_is_left(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "listed").await?;
    let owner = &workload.owner;
    converge(&*runtime, owner, &lower(&*runtime, &workload)?).await?;
    harness.settled(owner).await;
    let named = |owners: Vec<OwnerKey>| owners.iter().filter(|found| *found == owner).count();
    let owners = async |runtime: &dyn Runtime| runtime.owners().await.map_err(|error| error.to_string());
    check(named(owners(&*runtime).await?) == 1, || format!("{owner} runs and is not named once"))?;
    execute_removal(&*runtime, owner).await?;
    let (count, left) = (named(owners(&*runtime).await?), harness.remains(owner).await);
    check((count == 0) == left.is_empty(), || format!("named {count} times, left: {left:?}"))
}

/// Nothing is kept in a value that its successor needs.
pub async fn a_new_value_sees_what_the_old_one_made(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "adopted").await?;
    let owner = &workload.owner;
    let lowered = lower(&*runtime, &workload)?;
    converge(&*runtime, owner, &lowered).await?;
    harness.settled(owner).await;
    let remains = harness.remains(owner).await;
    drop(runtime);
    let successor = harness.runtime().await;
    let steps = plan(&lowered, &observe(&*successor, owner).await?);
    check(steps.is_empty(), || format!("a new value would {}", render(&steps)))?;
    let now = harness.remains(owner).await;
    check(now == remains, || format!("{remains:?} became {now:?}"))?;
    clean_up(harness, &*successor, owner).await
}

/// Dropping `execute` may leave a step half done; `observe` shows it and the next plan finishes it.
pub async fn a_dropped_execute_is_finished_by_the_next_plan(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "dropped").await?;
    let owner = &workload.owner;
    converge(&*runtime, owner, &lower(&*runtime, &workload)?).await?;
    harness.settled(owner).await;
    let whole = harness.remains(owner).await;
    let versions = [workload.clone(), harness.changed(&workload)];
    for polls in 1..=POLLS {
        let lowered = lower(&*runtime, &versions[polls % 2])?;
        for step in plan(&lowered, &observe(&*runtime, owner).await?) {
            poll_then_drop(runtime.execute(owner, &step), polls).await;
        }
        converge(&*runtime, owner, &lowered).await?;
        harness.settled(owner).await;
        let now = harness.remains(owner).await;
        check(now == whole, || format!("dropped at its wait {polls}: {now:?} instead of {whole:?}"))?;
    }
    clean_up(harness, &*runtime, owner).await
}

/// A dropped step is dropped at each of its first waits.
const POLLS: usize = 6;

/// `events` hints that an owner's state may have changed: what came of steps, too, if not the steps themselves.
pub async fn changes_are_told(harness: &dyn Harness) -> Result<(), String> {
    let runtime = harness.runtime().await;
    let workload = resolve(harness, &*runtime, "told").await?;
    let owner = workload.owner.clone();
    let mut events = runtime.events();
    let heard = async |events: &mut futures::stream::BoxStream<'static, RuntimeEvent>, what: &str| {
        let mine = events.by_ref().any(|event| {
            std::future::ready(event == RuntimeEvent::Changed(owner.clone()) || event == RuntimeEvent::Resync)
        });
        match tokio::time::timeout(EVENT_PATIENCE, mine).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(format!("nothing was told of {what}")),
        }
    };
    converge(&*runtime, &owner, &lower(&*runtime, &workload)?).await?;
    harness.settled(&owner).await;
    heard(&mut events, "a new object").await?;
    execute_removal(&*runtime, &owner).await?;
    harness.remains(&owner).await;
    heard(&mut events, "a removed object").await
}

/// An event takes milliseconds; a machine under load may be slow.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn lower(runtime: &dyn Runtime, workload: &ServerWorkload) -> Result<Lowered, String> {
    runtime.lower(&Workload::Server(Box::new(workload.clone()))).map_err(|refusal| refusal.to_string())
}

async fn observe(runtime: &dyn Runtime, owner: &OwnerKey) -> Result<Observed, String> {
    runtime.observe(owner).await.map_err(|error| error.to_string())
}

async fn execute(runtime: &dyn Runtime, owner: &OwnerKey, steps: &[Step]) -> Result<(), String> {
    for step in steps {
        let done = tokio::time::timeout(PATIENCE, runtime.execute(owner, step)).await;
        let done = done.map_err(|_| format!("{} did not end", render(std::slice::from_ref(step))))?;
        done.map_err(|error| format!("{}: {error}", render(std::slice::from_ref(step)).trim_end()))?;
    }
    Ok(())
}

async fn execute_removal(runtime: &dyn Runtime, owner: &OwnerKey) -> Result<(), String> {
    execute(runtime, owner, &plan(&Lowered::default(), &observe(runtime, owner).await?)).await
}

async fn converge(runtime: &dyn Runtime, owner: &OwnerKey, lowered: &Lowered) -> Result<(), String> {
    execute(runtime, owner, &plan(lowered, &observe(runtime, owner).await?)).await
}

async fn clean_up(harness: &dyn Harness, runtime: &dyn Runtime, owner: &OwnerKey) -> Result<(), String> {
    execute_removal(runtime, owner).await?;
    let left = harness.remains(owner).await;
    check(left.is_empty(), || format!("clean-up left {left:?}"))
}

/// The workload of this name with what its preparation found.
async fn resolve(harness: &dyn Harness, runtime: &dyn Runtime, name: &str) -> Result<ServerWorkload, String> {
    let mut workload = harness.workload(name);
    if workload.resolved.is_some() {
        return Ok(workload);
    }
    let lowered = lower(runtime, &workload)?;
    check(lowered.objects.iter().all(|object| object.stage == Stage::Prepare), || {
        format!("an unresolved server lowers to more than its preparation: {lowered:?}")
    })?;
    converge(runtime, &workload.owner, &lowered).await?;
    let found = async {
        loop {
            match observe(runtime, &workload.owner).await?.prepare.map(|prepare| prepare.state) {
                Some(PrepareState::Done(resolved)) => return Ok(resolved),
                Some(PrepareState::Failed(failure)) => return Err(failure.message),
                Some(PrepareState::Running { .. }) => tokio::time::sleep(LOOK).await,
                None => return Err("a started preparation is not observed".to_owned()),
            }
        }
    };
    workload.resolved = Some(tokio::time::timeout(PATIENCE, found).await.map_err(|_| "not resolved in time")??);
    Ok(workload)
}

/// Polls `future` up to `polls` times, then drops it.
async fn poll_then_drop<T>(future: impl Future<Output = T>, polls: usize) {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        left -= 1;
        match future.as_mut().poll(context) {
            std::task::Poll::Ready(_) => std::task::Poll::Ready(()),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(()),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await;
}
