//! Deletes: at once, gracefully, or when the last finalizer is gone.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::kind::Kind;
use crate::request::Request;
use crate::state::{State, represented};
use crate::store::Key;
use crate::write::{finalizers, is_deleting, is_deleting_gracefully};

/// Dependents are left alone.
pub(crate) const ORPHAN: &str = "orphan";
/// The object goes after its dependents.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// What a delete asks for, in its body or its query.
#[derive(Debug, Default)]
struct Options {
    uid: Option<String>,
    version: Option<String>,
    propagation: Option<String>,
    /// Seconds.
    grace: Option<i64>,
    dry_run: bool,
}

/// What a delete came to.
#[derive(Debug)]
enum Outcome {
    /// The object as it is now, on its way out.
    Going(Value),
    Gone(Value),
}

impl Options {
    fn of(request: &Request) -> Result<Self, Failure> {
        let body = if request.body.is_empty() { Value::Null } else { request.json()? };
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let query = |name: &str| Some(request.param(name).to_owned()).filter(|text| !text.is_empty());
        Ok(Self {
            uid: text(&body["preconditions"]["uid"]),
            version: text(&body["preconditions"]["resourceVersion"]),
            propagation: text(&body["propagationPolicy"]).or_else(|| query("propagationPolicy")),
            grace: body["gracePeriodSeconds"]
                .as_i64()
                .or_else(|| query("gracePeriodSeconds").and_then(|seconds| seconds.parse().ok())),
            dry_run: body["dryRun"][0] == "All" || request.dry_run(),
        })
    }
}

impl State {
    pub(crate) fn delete(&mut self, request: &Request) -> Result<Value, Failure> {
        let name = request.name.clone().unwrap_or_default();
        let key = request.key(&name);
        let options = Options::of(request)?;
        let kind = &*request.kind;
        Ok(match self.delete_one(kind, &key, &options)? {
            Outcome::Going(object) => represented(object, request.representation),
            Outcome::Gone(object) if kind.returns_deleted() => represented(object, request.representation),
            Outcome::Gone(object) => {
                let mut details = json!({"name": name, "kind": kind.plural, "uid": object["metadata"]["uid"]});
                if !kind.group.is_empty() {
                    details["group"] = Value::from(kind.group.clone());
                }
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
            }
        })
    }

    pub(crate) fn delete_collection(&mut self, request: &Request) -> Result<Value, Failure> {
        let options = Options::of(request)?;
        let keys: Vec<Key> = self.selected(request)?.into_keys().collect();
        let list = self.list(request)?;
        for key in keys {
            self.delete_one(&request.kind, &key, &options)?;
        }
        Ok(list)
    }

    /// Deletes an object as the server's own controllers do.
    pub(crate) fn delete_in_background(&mut self, kind: &Kind, key: &Key, grace: Option<i64>) {
        let options = Options { propagation: Some("Background".to_owned()), grace, ..Options::default() };
        // What is not there any more needs no delete.
        let _ = self.delete_one(kind, key, &options);
    }

    fn delete_one(&mut self, kind: &Kind, key: &Key, options: &Options) -> Result<Outcome, Failure> {
        let old = self.object(kind, key)?;
        let metadata = &old["metadata"];
        for (wanted, field, called) in
            [(&options.uid, "uid", "UID"), (&options.version, "resourceVersion", "ResourceVersion")]
        {
            if let Some(wanted) = wanted
                && metadata[field] != wanted.as_str()
            {
                let message = format!(
                    "Precondition failed: {called} in precondition: {wanted}, {called} in object meta: {}",
                    metadata[field].as_str().unwrap_or_default()
                );
                return Err(Failure::conflict(kind, &key.name, &message));
            }
        }
        let mut new = (*old).clone();
        set_propagation(&mut new, options.propagation.as_deref());
        let grace = grace_period(kind, &new, options.grace);
        let was_graceful = is_deleting_gracefully(&old);
        if !is_deleting(&old) || (was_graceful && grace == 0) {
            let at = jiff::SignedDuration::from_secs(grace);
            let deletion = self.now.saturating_add(at).unwrap_or(self.now);
            new["metadata"]["deletionTimestamp"] = Value::from(deletion.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            new["metadata"]["deletionGracePeriodSeconds"] = Value::from(grace);
            if !is_deleting(&old)
                && let Some(generation) = metadata["generation"].as_i64()
            {
                new["metadata"]["generation"] = Value::from(generation + 1);
            }
        }
        if kind.name == "Namespace" && kind.group.is_empty() {
            new["status"]["phase"] = Value::from("Terminating");
        }
        let waits = !finalizers(&new).is_empty()
            || is_deleting_gracefully(&new)
            || new["spec"]["finalizers"].as_array().is_some_and(|list| kind.name == "Namespace" && !list.is_empty());
        if options.dry_run {
            return Ok(if waits { Outcome::Going(new) } else { Outcome::Gone(new) });
        }
        if waits {
            if new == *old {
                return Ok(Outcome::Going(new));
            }
            return Ok(Outcome::Going((*self.store.put(key.clone(), new)).clone()));
        }
        self.store.delete(key).map(Outcome::Gone).ok_or_else(|| Failure::not_found(kind, &key.name))
    }
}

/// What becomes of the dependents is a finalizer for the garbage collector.
fn set_propagation(object: &mut Value, propagation: Option<&str>) {
    let mut list = finalizers(object);
    let wanted = match propagation {
        Some("Orphan") => Some(ORPHAN),
        Some("Foreground") => Some(FOREGROUND),
        Some(_) => None,
        None => return,
    };
    list.retain(|one| one != ORPHAN && one != FOREGROUND);
    list.extend(wanted.map(str::to_owned));
    if let Some(metadata) = object["metadata"].as_object_mut() {
        if list.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".to_owned(), json!(list));
        }
    }
}

/// Seconds that a pod on a node has to end; nothing else has any.
fn grace_period(kind: &Kind, object: &Value, asked: Option<i64>) -> i64 {
    let ended = object["status"]["phase"] == "Succeeded" || object["status"]["phase"] == "Failed";
    let placed = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if kind.name != "Pod" || ended || !placed {
        return 0;
    }
    asked.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30).max(0)
}
