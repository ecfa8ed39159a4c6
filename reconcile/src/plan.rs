//! The planner: what has to be done so that what was observed becomes what was lowered.

use serde_json::Value;

use crate::lower::{Change, Lowered, Object, Stage};
use crate::observed::{Observed, ObservedObject};
use crate::ports::Step;

/// Orders the work that turns `observed` into `lowered`. No clock, no I/O, no randomness.
///
/// While something is still to be prepared, that is all the work: what runs goes on until its successor can start.
pub fn plan(lowered: &Lowered, observed: &Observed) -> Vec<Step> {
    let mut wanted: Vec<&Object> = lowered.objects.iter().collect();
    wanted.sort_by(|a, b| (a.stage, &a.id).cmp(&(b.stage, &b.id)));

    if wanted.iter().any(|object| object.stage == Stage::Prepare) {
        let open = wanted.into_iter().filter(|object| object.stage == Stage::Prepare && !is_underway(object, observed));
        return open.cloned().map(Step::Prepare).collect();
    }

    let mut steps = Vec::new();
    for object in &wanted {
        match observed.objects.iter().find(|found| found.id == object.id) {
            None => steps.push(Step::Apply((*object).clone())),
            Some(found) if is_in_sync(object, found) => {}
            Some(_) => steps.push(match object.change {
                Change::InPlace => Step::Apply((*object).clone()),
                Change::Recreate => Step::Replace((*object).clone()),
            }),
        }
    }
    let mut leftover: Vec<&ObservedObject> =
        observed.objects.iter().filter(|found| !wanted.iter().any(|object| object.id == found.id)).collect();
    leftover.sort_by(|a, b| (b.stage, &b.id).cmp(&(a.stage, &a.id)));
    steps.extend(leftover.into_iter().map(|found| Step::Remove(found.id.clone())));
    steps
}

/// Whether the object needs no work: it carries the digest of the wanted body, so a field taken out of the spec is
/// noticed, and shows every value we set, so that drift is noticed.
pub fn is_in_sync(object: &Object, found: &ObservedObject) -> bool {
    found.digest.as_deref() == Some(&object.digest) && covers(&found.body, &object.body)
}

/// A preparation that runs, is done or has failed is not started again: a runtime stops showing a failure when the time
/// to try again has come. Else each event of a failure would start the next try at once.
fn is_underway(object: &Object, observed: &Observed) -> bool {
    observed.prepare.as_ref().is_some_and(|prepare| prepare.digest == object.digest)
}

/// Whether `found` shows every value of `wanted`. Maps may hold more than we set (defaults of the runtime); lists are
/// compared whole, so that an added argument or rule is noticed.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| covers(found, wanted)))
        }
        _ => found == wanted,
    }
}

/// The steps as people read them, one a line; `mcpctl plan` prints this.
pub fn render(steps: &[Step]) -> String {
    let line = |step: &Step| match step {
        Step::Prepare(object) => format!(". prepare {}\n", object.id),
        Step::Apply(object) => format!("+ apply {}\n", object.id),
        Step::Replace(object) => format!("~ replace {}\n", object.id),
        Step::Remove(id) => format!("- remove {id}\n"),
    };
    steps.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::error::Retry;
    use crate::lower::ObjectId;
    use crate::observed::{Failure, Prepare, PrepareState};

    fn object(kind: &str, stage: Stage, change: Change, body: Value) -> Object {
        Object::new(ObjectId::new(kind, "github"), stage, change, body)
    }

    fn found(object: &Object) -> ObservedObject {
        ObservedObject {
            id: object.id.clone(),
            stage: object.stage,
            digest: Some(object.digest.clone()),
            body: object.body.clone(),
        }
    }

    fn wants(objects: &[Object]) -> Lowered {
        Lowered { objects: objects.to_vec(), degraded: Vec::new() }
    }

    fn has(objects: &[Object]) -> Observed {
        Observed { objects: objects.iter().map(found).collect(), ..Observed::default() }
    }

    fn network() -> Object {
        object("network", Stage::Network, Change::InPlace, json!({"egress": ["a:1"]}))
    }

    fn bridge(image: &str) -> Object {
        object("bridge", Stage::Workload, Change::Recreate, json!({"image": image}))
    }

    #[test]
    fn a_new_server_gets_its_network_before_its_bridge() {
        insta::assert_snapshot!(render(&plan(&wants(&[bridge("gh:1"), network()]), &Observed::default())), @r"
        + apply network github
        + apply bridge github
        ");
    }

    #[test]
    fn a_changed_body_replaces_what_cannot_change_in_place() {
        let opened = object("network", Stage::Network, Change::InPlace, json!({"egress": []}));
        let steps = plan(&wants(&[opened, bridge("gh:2")]), &has(&[network(), bridge("gh:1")]));
        insta::assert_snapshot!(render(&steps), @r"
        + apply network github
        ~ replace bridge github
        ");
    }

    #[test]
    fn a_changed_source_is_prepared_before_the_old_one_goes() {
        let prepare = object("package", Stage::Prepare, Change::InPlace, json!({"version": "2"}));
        let running = has(&[bridge("gh:1")]);
        insta::assert_snapshot!(render(&plan(&wants(std::slice::from_ref(&prepare)), &running)), @". prepare package github");

        let state = PrepareState::Running { progress: "installing".to_owned() };
        let underway = Observed { prepare: Some(Prepare { digest: prepare.digest.clone(), state }), ..running };
        assert_eq!(plan(&wants(&[prepare]), &underway), []);
    }

    #[test]
    fn a_failed_preparation_is_tried_again_only_when_the_runtime_no_longer_shows_it() {
        let prepare = object("package", Stage::Prepare, Change::InPlace, json!({"version": "2"}));
        for retry in [Retry::Backoff, Retry::OnChange] {
            let failure = Failure { reason: "InstallFailed", message: String::new(), hint: None, retry };
            let state = PrepareState::Failed(failure);
            let failed =
                Observed { prepare: Some(Prepare { digest: prepare.digest.clone(), state }), ..Observed::default() };
            assert_eq!(plan(&wants(std::slice::from_ref(&prepare)), &failed), []);
        }
        assert_eq!(plan(&wants(&[prepare]), &Observed::default()).len(), 1);
    }

    #[test]
    fn nothing_wanted_removes_everything_in_the_opposite_order() {
        insta::assert_snapshot!(render(&plan(&Lowered::default(), &has(&[network(), bridge("gh:1")]))), @r"
        - remove bridge github
        - remove network github
        ");
    }

    #[test]
    fn drift_under_an_unchanged_digest_is_mended() {
        let mut observed = has(&[bridge("gh:1")]);
        observed.objects[0].body = json!({"image": "evil:1"});
        insta::assert_snapshot!(render(&plan(&wants(&[bridge("gh:1")]), &observed)), @"~ replace bridge github");
    }

    #[test]
    fn a_field_taken_out_of_the_spec_is_noticed_by_the_digest() {
        let before = object("network", Stage::Network, Change::InPlace, json!({"egress": ["a:1"], "dns": true}));
        assert_eq!(plan(&wants(&[network()]), &has(&[before])).len(), 1);
    }

    #[test]
    fn values_that_the_runtime_adds_are_no_drift_but_list_items_are() {
        let mut observed = has(&[network()]);
        observed.objects[0].body = json!({"egress": ["a:1"], "id": 7});
        assert_eq!(plan(&wants(&[network()]), &observed), []);
        observed.objects[0].body = json!({"egress": ["a:1", "b:2"]});
        assert_eq!(plan(&wants(&[network()]), &observed).len(), 1);
    }

    fn objects() -> impl Strategy<Value = Vec<Object>> {
        let stage = prop_oneof![Just(Stage::Network), Just(Stage::Config), Just(Stage::Workload), Just(Stage::Service)];
        let change = prop_oneof![Just(Change::InPlace), Just(Change::Recreate)];
        let one = ("[a-d]", stage, change, 0..3);
        proptest::collection::vec(one, 0..5).prop_map(|list| {
            let mut objects: Vec<Object> = list
                .into_iter()
                .map(|(name, stage, change, n)| Object::new(ObjectId::new("x", name), stage, change, json!({"n": n})))
                .collect();
            objects.sort_by(|a, b| a.id.cmp(&b.id));
            objects.dedup_by(|a, b| a.id == b.id);
            objects
        })
    }

    /// What a runtime that does as told has after the steps.
    fn after(observed: &Observed, steps: &[Step]) -> Observed {
        let mut objects = observed.objects.clone();
        for step in steps {
            match step {
                Step::Apply(object) | Step::Replace(object) => {
                    objects.retain(|found| found.id != object.id);
                    objects.push(found(object));
                }
                Step::Remove(id) => objects.retain(|found| found.id != *id),
                Step::Prepare(_) => {}
            }
        }
        Observed { objects, ..observed.clone() }
    }

    proptest! {
        #[test]
        fn planning_again_after_the_steps_changes_nothing(a in objects(), b in objects()) {
            let observed = has(&a);
            let steps = plan(&wants(&b), &observed);
            prop_assert_eq!(plan(&wants(&b), &after(&observed, &steps)), vec![]);
            prop_assert_eq!(plan(&wants(&b), &observed), steps);
        }

        #[test]
        fn there_and_back_restores_what_was(a in objects(), b in objects()) {
            let start = has(&a);
            let there = after(&start, &plan(&wants(&b), &start));
            let mut back = after(&there, &plan(&wants(&a), &there)).objects;
            back.sort_by(|x, y| x.id.cmp(&y.id));
            prop_assert_eq!(back, start.objects);
        }
    }
}
