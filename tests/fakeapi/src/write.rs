//! Create, update, patch and server-side apply.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::defaults;
use crate::failure::{Cause, Failure};
use crate::fields::FieldSet;
use crate::kind::{Generation, Kind};
use crate::managers::{Operation, Owners, Write, Writer, same_but_for_times};
use crate::request::{Request, Verb};
use crate::schema::{Findings, Mismatch};
use crate::state::{State, Written};
use crate::store::Key;
use crate::structured::key_errors;
use crate::validate;

/// An object that a client sent, in the form in which it is stored.
struct Incoming {
    object: Value,
    /// It had empty lists or maps, and its kind takes those for a change.
    hollow: bool,
}

impl State {
    pub(crate) fn create(&mut self, request: &Request) -> Result<Written, Failure> {
        let new = self.decoded(request, request.json()?)?.object;
        if !new["metadata"]["resourceVersion"].is_null() {
            return Err(Failure::new(
                500,
                "InternalError",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.create_decoded(request, new)
    }

    fn create_decoded(&mut self, request: &Request, new: Value) -> Result<Written, Failure> {
        let owners = Owners::default().updated(&self.ownership(request), &empty(&request.kind), &new);
        self.store_new(request, new, owners)
    }

    pub(crate) fn update(&mut self, request: &Request) -> Result<Written, Failure> {
        let kind = &*request.kind;
        let name = request.name.clone().unwrap_or_default();
        let key = request.key(&name);
        let new = self.decoded(request, request.json()?)?;
        let metadata = &new.object["metadata"];
        if metadata["name"] != name.as_str() {
            return Err(Failure::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                metadata["name"].as_str().unwrap_or_default()
            )));
        }
        let Some(old) = self.store.get(&key).cloned() else {
            if kind.create_on_update() && request.subresource.is_empty() {
                return self.create_decoded(request, new.object);
            }
            return Err(Failure::not_found(kind, &name));
        };
        let versioned =
            metadata["resourceVersion"].as_str().is_some_and(|version| !version.is_empty() && version != "0");
        if !versioned && !kind.unconditional_update() {
            let cause = Cause::invalid("metadata.resourceVersion", "Invalid value: 0: must be specified for an update");
            return Err(Failure::invalid(kind, &name, &[cause]));
        }
        self.replace(request, &key, &old, new)
    }

    pub(crate) fn patch(&mut self, request: &Request) -> Result<Written, Failure> {
        let kind = &*request.kind;
        let name = request.name.clone().unwrap_or_default();
        if request.flag("force") {
            let cause = Cause::forbidden("force", "Forbidden: may not be specified for non-apply patch");
            return Err(Failure::invalid(kind, &name, &[cause]));
        }
        let key = request.key(&name);
        let old = self.object(kind, &key)?;
        let patch = request.json()?;
        let mut new = (*old).clone();
        match request.content_type.as_str() {
            "application/merge-patch+json" => json_patch::merge(&mut new, &patch),
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_value(patch)
                    .map_err(|error| Failure::bad_request(format!("the body is no JSON patch: {error}")))?;
                json_patch::patch(&mut new, &patch).map_err(|error| {
                    Failure::new(
                        422,
                        "Invalid",
                        format!("the server rejected our request due to an error in our request: {error}"),
                    )
                })?;
            }
            other => {
                return Err(Failure::new(
                    415,
                    "UnsupportedMediaType",
                    format!(
                        "the body of the request was in an unknown format - accepted media types of this server include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml (not {other:?})"
                    ),
                ));
            }
        }
        let new = self.decoded(request, new)?;
        self.replace(request, &key, &old, new)
    }

    pub(crate) fn apply(&mut self, request: &Request) -> Result<Written, Failure> {
        let kind = &*request.kind;
        let name = request.name.clone().unwrap_or_default();
        let key = request.key(&name);
        let mut config = request.json()?;
        if request.param("fieldManager").is_empty() {
            let cause = Cause::required("fieldManager", "Required value: is required for apply patch");
            return Err(Failure::invalid(kind, &name, &[cause]));
        }
        if config["apiVersion"] != kind.api_version().as_str() || config["kind"] != kind.name.as_str() {
            return Err(Failure::bad_request(format!(
                "invalid object type: {}, Kind={}",
                config["apiVersion"].as_str().unwrap_or_default(),
                config["kind"].as_str().unwrap_or_default()
            )));
        }
        check_identity(request, &mut config, Some(&name))?;
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        let old = self.store.get(&key).cloned();
        if old.is_none() && !request.subresource.is_empty() && !kind.create_on_update() {
            return Err(Failure::not_found(kind, &name));
        }
        untyped(kind, &config)?;

        let write = self.ownership(request);
        let live = old.as_ref().map_or_else(|| empty(kind), |old| without_owners(old));
        let mut owners = old.as_ref().map(|old| Owners::of(old)).unwrap_or_default();
        if old.is_some() && owners == Owners::default() {
            let mut before = self.ownership(request);
            before.writer =
                Writer { manager: "before-first-apply".to_owned(), operation: Operation::Update, ..before.writer };
            before.kept = FieldSet::default();
            owners = owners.updated(&before, &empty(kind), &live);
        }
        let (new, owners) = owners
            .applied(&write, &live, &config, request.flag("force"))
            .map_err(|conflicts| Failure::field_conflicts(&conflicts))?;
        let new = self.decoded(request, new)?;
        match old {
            None => self.store_new(request, new.object, owners),
            Some(old) => self.store_changed(request, &key, &old, new, owners),
        }
    }

    /// Reads an object that a client sent, with all that the server fills in.
    fn decoded(&self, request: &Request, mut object: Value) -> Result<Incoming, Failure> {
        let kind = &*request.kind;
        if !object.is_object() {
            return Err(Failure::bad_request("the body is no object"));
        }
        let sent = (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
        let ours = (kind.api_version(), kind.name.clone());
        if kind.custom && (sent.0.is_empty() || sent.1.is_empty()) {
            return Err(Failure::bad_request("Object 'Kind' is missing"));
        }
        if (!sent.0.is_empty() && sent.0 != ours.0) || (!sent.1.is_empty() && sent.1 != ours.1) {
            return Err(Failure::bad_request(format!(
                "the API version in the data ({}, Kind={}) does not match the expected API version ({}, Kind={})",
                sent.0, sent.1, ours.0, ours.1
            )));
        }
        object["apiVersion"] = Value::from(ours.0);
        object["kind"] = Value::from(ours.1);
        let name = request.name.as_deref();
        check_identity(request, &mut object, name)?;
        // What an apply leaves of a custom resource is not read once more: its nulls stay, and are refused.
        let keep_nulls = kind.custom && request.verb == Verb::Apply;
        let mut findings = Findings { keep_nulls, ..Findings::default() };
        // Go tells an empty list from none, and one kind's strategy takes that for a change.
        let hollow = kind.name == "NetworkPolicy" && kind.schema.has_hollow(&json!({"spec": object["spec"]}));
        kind.schema.tidy(&mut object, "", &mut findings);
        if request.param("fieldValidation") == "Strict" && !findings.unknown.is_empty() {
            let unknown: Vec<String> =
                findings.unknown.iter().map(|path| format!("unknown field {:?}", &path[1..])).collect();
            return Err(Failure::bad_request(format!("strict decoding error: {}", unknown.join(", "))));
        }
        // Custom resources of ours are checked by all their rules later.
        if let (Some(wrong), None) = (findings.mismatches.first(), kind.ours) {
            return Err(mistyped(kind, object["metadata"]["name"].as_str().unwrap_or_default(), wrong));
        }
        if kind.name == "Secret" && kind.group.is_empty() {
            fold_string_data(&mut object);
        }
        if !kind.custom {
            if kind.status && request.verb == Verb::Create {
                object.as_object_mut().map(|members| members.remove("status"));
            }
            defaults::apply(kind, &mut object);
        }
        Ok(Incoming { object, hollow })
    }

    fn store_new(&mut self, request: &Request, mut new: Value, owners: Owners) -> Result<Written, Failure> {
        let kind = &*request.kind;
        let given = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let name = match (given.is_empty(), new["metadata"]["generateName"].as_str()) {
            (false, _) => given,
            (true, Some(prefix)) if !prefix.is_empty() => {
                let prefix: String = prefix.chars().take(58).collect();
                format!("{prefix}{}", self.next_suffix())
            }
            _ => {
                let cause = Cause::required("metadata.name", "Required value: name or generateName is required");
                return Err(Failure::invalid(kind, "", &[cause]));
            }
        };
        new["metadata"]["name"] = Value::from(name.clone());
        let key = request.key(&name);
        self.namespace_takes(kind, &key)?;

        let uid = self.next_uid();
        let time = self.time();
        let Some(metadata) = new["metadata"].as_object_mut() else {
            return Err(Failure::bad_request("metadata is no object"));
        };
        for own in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "resourceVersion"] {
            metadata.remove(own);
        }
        metadata.insert("uid".to_owned(), Value::from(uid));
        metadata.insert("creationTimestamp".to_owned(), Value::from(time));
        if kind.generation != Generation::Never {
            metadata.insert("generation".to_owned(), Value::from(1));
        }
        if kind.status {
            if let Some(members) = new.as_object_mut() {
                members.remove("status");
            }
            if !kind.custom {
                defaults::apply(kind, &mut new);
            }
        }
        self.allocate(kind, None, &mut new);
        check(kind, None, &new)?;
        if self.store.get(&key).is_some() {
            return Err(Failure::exists(kind, &name));
        }
        owners.store(&mut new);
        self.stored(request, key, 201, new)
    }

    /// Puts an update or patch in the place of the stored object.
    fn replace(&mut self, request: &Request, key: &Key, old: &Value, mut new: Incoming) -> Result<Written, Failure> {
        let sent = &new.object["metadata"]["managedFields"];
        let reset = sent.as_array().is_some_and(|entries| entries.is_empty() || *entries == [json!({})]);
        let owners = if reset && request.subresource.is_empty() { Owners::default() } else { Owners::of(old) };
        if let Some(metadata) = new.object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        let owners = if owners == Owners::default() {
            owners
        } else {
            owners.updated(&self.ownership(request), &without_owners(old), &new.object)
        };
        self.store_changed(request, key, old, new, owners)
    }

    fn store_changed(
        &mut self,
        request: &Request,
        key: &Key,
        old: &Value,
        new: Incoming,
        owners: Owners,
    ) -> Result<Written, Failure> {
        let kind = &*request.kind;
        let Incoming { object: mut new, hollow } = new;
        let sent = |field: &str| new["metadata"][field].as_str().filter(|text| !text.is_empty());
        if let Some(version) = sent("resourceVersion")
            && version != "0"
            && old["metadata"]["resourceVersion"] != version
        {
            return Err(Failure::stale(kind, &key.name));
        }
        if let Some(uid) = sent("uid")
            && old["metadata"]["uid"] != uid
        {
            let message = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                old["metadata"]["uid"].as_str().unwrap_or_default()
            );
            return Err(Failure::conflict(kind, &key.name, &message));
        }

        if request.subresource == "status" {
            let status = new.get("status").cloned();
            new = without_owners(old);
            set_or_remove(&mut new, "status", status);
        } else if kind.status {
            set_or_remove(&mut new, "status", old.get("status").cloned());
        }
        for own in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ] {
            set_or_remove(&mut new["metadata"], own, old["metadata"].get(own).cloned());
        }
        self.allocate(kind, Some(old), &mut new);
        if (hollow || changes_generation(kind, old, &new))
            && let Some(generation) = old["metadata"]["generation"].as_i64()
        {
            new["metadata"]["generation"] = Value::from(generation + 1);
        }
        check(kind, Some(old), &new)?;
        owners.store(&mut new);
        if same_but_for_times(old, &new) {
            return Ok(Written { code: 200, object: old.clone() });
        }
        if is_deleting(&new) && finalizers(&new).is_empty() && !is_deleting_gracefully(&new) {
            if !request.dry_run() {
                self.store.delete(key);
            }
            return Ok(Written { code: 200, object: new });
        }
        self.stored(request, key.clone(), 200, new)
    }

    fn stored(&mut self, request: &Request, key: Key, code: u16, new: Value) -> Result<Written, Failure> {
        if new.to_string().len() > MAX_OBJECT {
            return Err(Failure::new(500, "InternalError", "etcdserver: request is too large"));
        }
        if request.dry_run() {
            return Ok(Written { code, object: new });
        }
        let object = self.store.put(key, new);
        Ok(Written { code, object: (*object).clone() })
    }

    fn ownership<'a>(&self, request: &'a Request) -> Write<'a> {
        let operation = if request.verb == Verb::Apply { Operation::Apply } else { Operation::Update };
        let writer = Writer {
            manager: request.manager(),
            operation,
            api_version: request.kind.api_version(),
            subresource: request.subresource.clone(),
        };
        let kept = kept(&request.kind, &request.subresource);
        Write { schema: &request.kind.schema, writer, kept, now: self.time() }
    }

    fn namespace_takes(&self, kind: &Kind, key: &Key) -> Result<(), Failure> {
        if !kind.namespaced {
            return Ok(());
        }
        let name = key.namespace.as_str();
        let namespaces = self.registry.find("", "v1", "namespaces");
        let place = Key { resource: "namespaces".to_owned(), namespace: String::new(), name: name.to_owned() };
        match (self.store.get(&place), namespaces) {
            (Some(namespace), _) if is_deleting(namespace) => {
                let cause = Cause {
                    reason: "NamespaceTerminating".to_owned(),
                    message: format!("namespace {name} is being terminated"),
                    field: "metadata.namespace".to_owned(),
                };
                let message =
                    format!("unable to create new content in namespace {name} because it is being terminated");
                Err(Failure::forbidden(kind, &key.name, &message, &[cause]))
            }
            (None, Some(namespaces)) => Err(Failure::not_found(&namespaces, name)),
            _ => Ok(()),
        }
    }

    /// Addresses of services, which the server chooses and keeps.
    fn allocate(&mut self, kind: &Kind, old: Option<&Value>, new: &mut Value) {
        if kind.name != "Service" || !kind.group.is_empty() || new["spec"]["type"] == "ExternalName" {
            return;
        }
        let before = old.map_or(Value::Null, |old| old["spec"]["clusterIP"].clone());
        if new["spec"]["clusterIP"].is_null() {
            new["spec"]["clusterIP"] = if before.is_string() { before } else { Value::from(self.next_address()) };
        }
        // Without address and selector, whoever makes the endpoints may use either family.
        let either = new["spec"]["clusterIP"] == "None" && new["spec"]["selector"].is_null();
        if new["spec"]["ipFamilyPolicy"].is_null() {
            let before = old.map(|old| old["spec"]["ipFamilyPolicy"].clone()).filter(Value::is_string);
            let first = || Value::from(if either { "RequireDualStack" } else { "SingleStack" });
            new["spec"]["ipFamilyPolicy"] = before.unwrap_or_else(first);
        }
        new["spec"]["clusterIPs"] = json!([new["spec"]["clusterIP"]]);
        if new["spec"]["ipFamilies"].is_null() {
            let two = either && new["spec"]["ipFamilyPolicy"] != "SingleStack";
            new["spec"]["ipFamilies"] = if two { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
        }
    }
}

/// What etcd takes in one request, in bytes.
const MAX_OBJECT: usize = 1_536 * 1_024;

/// The fields that a request through this door cannot change.
fn kept(kind: &Kind, subresource: &str) -> FieldSet {
    match subresource {
        "status" => FieldSet::of(&[&["metadata"], &["spec"]]),
        _ if kind.status => FieldSet::of(&[&["status"]]),
        _ => FieldSet::default(),
    }
}

/// An object before anything is known of it: with the parts that a kind has even then.
fn empty(kind: &Kind) -> Value {
    let mut object = match kind.name.as_str() {
        _ if kind.custom => json!({}),
        "Deployment" => json!({"spec": {"strategy": {}, "template": {"metadata": {}, "spec": {}}}, "status": {}}),
        "ReplicaSet" => json!({"spec": {"template": {"metadata": {}, "spec": {}}}, "status": {}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "Lease" => json!({"spec": {}}),
        "Service" | "Ingress" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
        "Pod" | "PodDisruptionBudget" => json!({"spec": {}, "status": {}}),
        _ => json!({}),
    };
    object["apiVersion"] = Value::from(kind.api_version());
    object["kind"] = Value::from(kind.name.clone());
    object["metadata"] = json!({});
    object
}

fn without_owners(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

/// The name and namespace of an object are those of the request's path.
fn check_identity(request: &Request, object: &mut Value, name: Option<&str>) -> Result<(), Failure> {
    if object["metadata"].is_null() {
        object["metadata"] = Value::Object(Map::new());
    }
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return Err(Failure::bad_request("metadata is no object"));
    };
    let text = |metadata: &Map<String, Value>, field: &str| {
        metadata.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if let Some(namespace) = &request.namespace {
        if text(metadata, "namespace").is_some_and(|sent| sent != *namespace) {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.insert("namespace".to_owned(), Value::from(namespace.clone()));
    }
    if let Some(name) = name {
        if let Some(sent) = text(metadata, "name").filter(|sent| sent != name) {
            return Err(Failure::bad_request(format!(
                "the name of the object ({sent}) does not match the name on the URL ({name})"
            )));
        }
        if request.verb != Verb::Update {
            metadata.insert("name".to_owned(), Value::from(name));
        }
    }
    Ok(())
}

/// What is applied must fit the schema as it is.
fn untyped(kind: &Kind, config: &Value) -> Result<(), Failure> {
    let mut findings = Findings::default();
    kind.schema.tidy(&mut config.clone(), "", &mut findings);
    let mut wrong: Vec<String> =
        findings.unknown.iter().map(|path| format!("{path}: field not declared in schema")).collect();
    wrong.extend(findings.mismatches.iter().map(|wrong| format!("{}: expected {}", wrong.path, wrong.expected)));
    key_errors(&kind.schema, config, "", &mut wrong);
    if wrong.is_empty() {
        return Ok(());
    }
    let metadata = &config["metadata"];
    Err(Failure::new(
        500,
        "",
        format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {}",
            metadata["namespace"].as_str().unwrap_or_default(),
            metadata["name"].as_str().unwrap_or_default(),
            kind.api_version(),
            kind.name,
            wrong.join("\n")
        ),
    ))
}

fn mistyped(kind: &Kind, name: &str, wrong: &Mismatch) -> Failure {
    let path = wrong.path.trim_start_matches('.');
    if kind.custom {
        let cause = Cause {
            reason: "FieldValueTypeInvalid".to_owned(),
            message: format!("Invalid value: must be {}", wrong.expected),
            field: path.to_owned(),
        };
        Failure::invalid(kind, name, &[cause])
    } else {
        Failure::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {path} must be {}",
            kind.name, kind.version, kind.name, wrong.expected
        ))
    }
}

/// `stringData` is for writing only.
fn fold_string_data(secret: &mut Value) {
    let texts = secret.as_object_mut().and_then(|members| members.remove("stringData"));
    for (key, text) in texts.as_ref().and_then(Value::as_object).into_iter().flatten() {
        if secret["data"].is_null() {
            secret["data"] = Value::Object(Map::new());
        }
        secret["data"][key] = Value::from(STANDARD.encode(text.as_str().unwrap_or_default()));
    }
}

fn set_or_remove(object: &mut Value, name: &str, value: Option<Value>) {
    if let Some(members) = object.as_object_mut() {
        match value {
            Some(value) => members.insert(name.to_owned(), value),
            None => members.remove(name),
        };
    }
}

fn check(kind: &Kind, old: Option<&Value>, new: &Value) -> Result<(), Failure> {
    let causes = validate::causes(kind, old, new);
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    if causes.is_empty() { Ok(()) } else { Err(Failure::invalid(kind, name, &causes)) }
}

fn changes_generation(kind: &Kind, old: &Value, new: &Value) -> bool {
    match kind.generation {
        Generation::Never => false,
        Generation::Spec => old["spec"] != new["spec"],
        Generation::SpecAndAnnotations => {
            old["spec"] != new["spec"] || old["metadata"]["annotations"] != new["metadata"]["annotations"]
        }
        Generation::Content => {
            let content = |object: &Value| {
                let mut content = object.clone();
                if let Some(members) = content.as_object_mut() {
                    members.remove("metadata");
                    if kind.status {
                        members.remove("status");
                    }
                }
                content
            };
            content(old) != content(new)
        }
    }
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// A pod that still has time to end.
pub(crate) fn is_deleting_gracefully(object: &Value) -> bool {
    object["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0)
}

pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
