//! Who owns which field: `metadata.managedFields`, kept by updates and decided on by server-side apply.

use serde_json::{Map, Value, json};

use crate::fields::FieldSet;
use crate::schema::Schema;
use crate::structured::{compare, field_set, merge, remove, with_named};

/// How a manager writes. Applied and updated fields of one name are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// Who writes, and through which door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writer {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    pub(crate) api_version: String,
    /// Empty for the object itself.
    pub(crate) subresource: String,
}

/// A write, as far as ownership is about it.
#[derive(Debug)]
pub(crate) struct Write<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) writer: Writer,
    /// The fields that it cannot change.
    pub(crate) kept: FieldSet,
    pub(crate) now: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Owner {
    writer: Writer,
    time: String,
    fields: FieldSet,
}

/// A field that another manager owns and that an apply without `force` would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldConflict {
    /// The other manager, as in the API server's message.
    pub(crate) manager: String,
    pub(crate) field: String,
}

// More owners by update than these are merged into one.
const MAX_UPDATERS: usize = 10;

/// All owners of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Owners(Vec<Owner>);

impl Owners {
    /// The owners that an object names.
    pub(crate) fn of(object: &Value) -> Self {
        let entries = object["metadata"]["managedFields"].as_array();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self(
            entries
                .into_iter()
                .flatten()
                .map(|entry| Owner {
                    writer: Writer {
                        manager: text(&entry["manager"]),
                        operation: if entry["operation"] == "Apply" { Operation::Apply } else { Operation::Update },
                        api_version: text(&entry["apiVersion"]),
                        subresource: text(&entry["subresource"]),
                    },
                    time: text(&entry["time"]),
                    fields: FieldSet::from_json(&entry["fieldsV1"]),
                })
                .collect(),
        )
    }

    /// Writes the owners into an object.
    pub(crate) fn store(mut self, object: &mut Value) {
        self.0.retain(|owner| !owner.fields.is_empty());
        self.0.sort_by(|a, b| {
            let key = |owner: &Owner| (owner.writer.operation, owner.time.clone(), owner.writer.manager.clone());
            key(a).cmp(&key(b)).then_with(|| a.writer.subresource.cmp(&b.writer.subresource))
        });
        let entries: Vec<Value> = self
            .0
            .iter()
            .map(|owner| {
                let mut entry = json!({
                    "manager": owner.writer.manager,
                    "operation": match owner.writer.operation { Operation::Apply => "Apply", Operation::Update => "Update" },
                    "apiVersion": owner.writer.api_version,
                    "time": owner.time,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": owner.fields.to_json(),
                });
                if !owner.writer.subresource.is_empty() {
                    entry["subresource"] = Value::from(owner.writer.subresource.clone());
                }
                entry
            })
            .collect();
        let Some(metadata) = object["metadata"].as_object_mut() else { return };
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }

    fn position(&self, writer: &Writer) -> Option<usize> {
        self.0.iter().position(|owner| {
            let theirs = &owner.writer;
            theirs.manager == writer.manager
                && theirs.operation == writer.operation
                && theirs.subresource == writer.subresource
                // An applier stays itself from one version of the API to the next.
                && (writer.operation == Operation::Apply || theirs.api_version == writer.api_version)
        })
    }

    /// An object was replaced: what changed belongs to the writer.
    pub(crate) fn updated(mut self, write: &Write<'_>, live: &Value, new: &Value) -> Self {
        let Write { schema, writer, kept, now } = write;
        let change = compare(schema, live, new);
        let taken = change.modified.union(&change.added).without(kept);
        let removed = change.removed.without(kept);
        for owner in &mut self.0 {
            owner.fields = owner.fields.difference(&taken).difference(&removed);
        }
        let taken = taken.difference(&never_owned());
        if !taken.is_empty() {
            match self.position(writer) {
                Some(own) => {
                    self.0[own].fields = self.0[own].fields.union(&taken);
                    self.0[own].time.clone_from(now);
                }
                None => self.0.push(Owner { writer: writer.clone(), time: now.clone(), fields: taken }),
            }
        }
        self.0.retain(|owner| !owner.fields.is_empty());
        self.merge_ancient();
        self
    }

    fn merge_ancient(&mut self) {
        let updates = self.0.iter().filter(|owner| owner.writer.operation == Operation::Update).count();
        if updates <= MAX_UPDATERS {
            return;
        }
        self.0.sort_by(|a, b| (a.writer.operation, &a.time).cmp(&(b.writer.operation, &b.time)));
        let first = self.0.len() - updates;
        let old: Vec<Owner> = self.0.drain(first..=first + updates - MAX_UPDATERS).collect();
        let Some(newest) = old.last() else { return };
        let writer = Writer { manager: "ancient-changes".to_owned(), ..newest.writer.clone() };
        let fields = old.iter().fold(FieldSet::default(), |all, owner| all.union(&owner.fields));
        self.0.push(Owner { writer, time: newest.time.clone(), fields });
    }

    /// Lays a configuration over an object: the result, without what the writer applied before and does not now, and
    /// its owners.
    ///
    /// # Errors
    /// Fields of others that would change, unless `force`.
    pub(crate) fn applied(
        mut self,
        write: &Write<'_>,
        live: &Value,
        config: &Value,
        force: bool,
    ) -> Result<(Value, Self), Vec<FieldConflict>> {
        let Write { schema, writer, kept, now } = write;
        let merged = merge(schema, Some(live), Some(config)).unwrap_or_default();
        let mut set = field_set(schema, config).without(kept);
        let own = self.position(writer);
        let last = own.map(|own| self.0.remove(own).fields).unwrap_or_default();
        let owned = self.0.iter().fold(set.clone(), |all, owner| all.union(&owner.fields));
        let new = prune(schema, merged, &last, &owned);

        let change = compare(schema, live, &new);
        let taken = change.modified.union(&change.added).without(kept);
        let removed = change.removed.without(kept);
        let mut conflicts = Vec::new();
        for owner in &mut self.0 {
            let lost = owner.fields.intersection(&taken);
            if !force {
                conflicts.extend(
                    lost.paths().into_iter().map(|field| FieldConflict { manager: described(&owner.writer), field }),
                );
            }
            owner.fields = owner.fields.difference(&lost).difference(&removed);
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        set = set.difference(&never_owned());
        self.0.push(Owner { writer: writer.clone(), time: now.clone(), fields: set });
        self.0.retain(|owner| !owner.fields.is_empty());
        Ok((new, self))
    }
}

/// Takes away what was applied last time, is not now, and belongs to nobody else.
fn prune(schema: &Schema, merged: Value, last: &FieldSet, owned: &FieldSet) -> Value {
    if last.is_empty() {
        return merged;
    }
    let named = |set: &FieldSet| with_named(set, schema);
    let all = named(&field_set(schema, &merged));
    let last = named(last);
    let pruned = remove(schema, &merged, &last);
    // Back comes what is owned by somebody, and then what the writer never owned but lies below what it did.
    let left = named(&field_set(schema, &pruned)).union(&named(owned));
    let pruned = remove(schema, &merged, &all.difference(&left));
    let left = named(&field_set(schema, &pruned));
    remove(schema, &merged, &all.difference(&left).intersection(&last))
}

/// What belongs to no manager.
fn never_owned() -> FieldSet {
    FieldSet::of(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
}

fn described(writer: &Writer) -> String {
    let mut text = format!("{:?}", writer.manager);
    if !writer.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", writer.subresource));
    }
    if writer.operation == Operation::Update {
        text.push_str(&format!(" using {}", writer.api_version));
    }
    text
}

/// Whether two objects differ in nothing but the times of their owners.
pub(crate) fn same_but_for_times(a: &Value, b: &Value) -> bool {
    let without_times = |object: &Value| {
        let mut owners = Owners::of(object).0;
        for owner in &mut owners {
            owner.time.clear();
        }
        owners.sort_by(|a, b| {
            let key = |owner: &Owner| {
                (owner.writer.operation, owner.writer.manager.clone(), owner.writer.subresource.clone())
            };
            key(a).cmp(&key(b))
        });
        owners
    };
    let same_members = |a: &Map<String, Value>, b: &Map<String, Value>, except: &str| {
        let count = |members: &Map<String, Value>| members.keys().filter(|name| *name != except).count();
        count(a) == count(b) && a.iter().all(|(name, member)| name == except || b.get(name) == Some(member))
    };
    let (Some(left), Some(right)) = (a.as_object(), b.as_object()) else { return a == b };
    let (Some(left_meta), Some(right_meta)) = (a["metadata"].as_object(), b["metadata"].as_object()) else {
        return a == b;
    };
    same_members(left, right, "metadata")
        && same_members(left_meta, right_meta, "managedFields")
        && without_times(a) == without_times(b)
}
