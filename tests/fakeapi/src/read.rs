//! Gets and lists.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::request::{Representation, Request};
use crate::state::{State, represented};
use crate::store::Key;

/// Where the next page starts.
#[derive(Debug, Serialize, Deserialize)]
struct Page {
    revision: u64,
    namespace: String,
    name: String,
}

impl State {
    pub(crate) fn get(&self, request: &Request) -> Result<Value, Failure> {
        let name = request.name.as_deref().unwrap_or_default();
        let key = request.key(name);
        let resource = &key.resource;
        let object = match request.param("resourceVersion") {
            // From the cache, which may be behind.
            "0" if self.held.contains_key(resource) => self
                .store
                .list_at(resource, request.namespace.as_deref(), self.visible(resource))
                .and_then(|objects| objects.get(&key).cloned())
                .ok_or_else(|| Failure::not_found(&request.kind, name))?,
            "" | "0" => self.object(&request.kind, &key)?,
            version => {
                self.not_in_the_future(version)?;
                self.object(&request.kind, &key)?
            }
        };
        Ok(represented((*object).clone(), request.representation))
    }

    /// # Errors
    /// 504 if the version does not exist yet, 400 if it is no version.
    pub(crate) fn not_in_the_future(&self, version: &str) -> Result<u64, Failure> {
        let wanted: u64 = version
            .parse()
            .map_err(|_| Failure::bad_request(format!("Invalid value: {version:?}: resourceVersion is no number")))?;
        if wanted > self.store.revision() {
            return Err(Failure::too_large_version(wanted, self.store.revision()));
        }
        Ok(wanted)
    }

    pub(crate) fn list(&self, request: &Request) -> Result<Value, Failure> {
        let kind = &request.kind;
        let resource = kind.resource();
        let selector = request.selector()?;
        let version = request.param("resourceVersion");
        let exact = request.param("resourceVersionMatch") == "Exact";
        let mut limit: usize = match request.param("limit") {
            "" => 0,
            limit => limit.parse().map_err(|_| Failure::bad_request(format!("limit {limit:?} is no number")))?,
        };
        let gone = || {
            Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
            )
        };
        let page: Option<Page> = match request.param("continue") {
            "" => None,
            token => Some(
                URL_SAFE_NO_PAD
                    .decode(token)
                    .ok()
                    .and_then(|json| serde_json::from_slice(&json).ok())
                    .ok_or_else(|| Failure::bad_request("continue key is not valid"))?,
            ),
        };
        let revision = match (&page, version) {
            (Some(_), version) if !version.is_empty() && version != "0" => {
                return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
            }
            (Some(page), _) => page.revision,
            (None, "") => self.store.revision(),
            (None, "0") => {
                // The cache has no pages.
                limit = 0;
                self.visible(&resource)
            }
            (None, version) => {
                let wanted = self.not_in_the_future(version)?;
                let visible = self.visible(&resource);
                if exact || limit > 0 && request.param("resourceVersionMatch").is_empty() {
                    wanted
                } else if visible >= wanted {
                    visible
                } else {
                    self.store.revision()
                }
            }
        };
        let objects = self.store.list_at(&resource, request.namespace.as_deref(), revision).ok_or_else(|| {
            if page.is_some() {
                gone()
            } else {
                Failure::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
            }
        })?;
        let after = page.map(|page| (page.namespace, page.name));
        let mut left = objects
            .into_iter()
            .filter(|(key, _)| after.as_ref().is_none_or(|after| (&key.namespace, &key.name) > (&after.0, &after.1)));
        let mut selected: Vec<Arc<Value>> = Vec::new();
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if kind.custom && request.representation == Representation::Full {
            metadata["continue"] = Value::from("");
        }
        while let Some((key, object)) = left.next() {
            if !selector.matches(&object) {
                continue;
            }
            selected.push(object);
            if limit > 0 && selected.len() == limit {
                // Whether any of the others will be selected is not looked at.
                let count = left.by_ref().count();
                if count > 0 {
                    let page = Page { revision, namespace: key.namespace, name: key.name };
                    let token = serde_json::to_vec(&page).unwrap_or_default();
                    metadata["continue"] = Value::from(URL_SAFE_NO_PAD.encode(token));
                    if selector.is_empty() {
                        metadata["remainingItemCount"] = Value::from(count);
                    }
                }
            }
        }
        let items: Vec<Value> = selected
            .into_iter()
            .map(|object| {
                let mut object = represented((*object).clone(), request.representation);
                // In lists the built-in kinds do not repeat what they are.
                if let (Representation::Full, false, Some(members)) =
                    (request.representation, kind.custom, object.as_object_mut())
                {
                    members.remove("kind");
                    members.remove("apiVersion");
                }
                object
            })
            .collect();
        let (list, api_version) = match request.representation {
            Representation::Full => (format!("{}List", kind.name), kind.api_version()),
            Representation::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        Ok(json!({"kind": list, "apiVersion": api_version, "metadata": metadata, "items": items}))
    }

    /// The objects that a request selects, as they are now.
    pub(crate) fn selected(&self, request: &Request) -> Result<BTreeMap<Key, Arc<Value>>, Failure> {
        let selector = request.selector()?;
        let resource = request.kind.resource();
        let objects = self.store.list(&resource, request.namespace.as_deref());
        Ok(objects
            .filter(|(_, object)| selector.matches(object))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect())
    }
}
