//! What a client asks for, read from the HTTP request.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use serde_json::Value;

use crate::failure::Failure;
use crate::kind::{Kind, Registry};
use crate::selector::Selector;
use crate::store::Key;

/// What is done to objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    /// Merge patch or JSON patch.
    Patch,
    /// Server-side apply.
    Apply,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// Whether it asks for a change.
    pub fn is_write(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// How much of an object is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Representation {
    Full,
    /// `PartialObjectMetadata`
    Metadata,
}

/// One request for objects of a known kind.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) kind: Arc<Kind>,
    /// None: all namespaces, or a kind without.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    /// Empty for the object itself.
    pub(crate) subresource: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    pub(crate) representation: Representation,
    pub(crate) user_agent: String,
    pub(crate) body: Bytes,
}

impl Request {
    /// # Errors
    /// 404 for a path that leads nowhere, 405 for a method that it does not have.
    pub(crate) fn read(registry: &Registry, parts: &Parts, body: Bytes) -> Result<Self, Failure> {
        let header =
            |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let segments: Vec<String> = parts.uri.path().split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match &segments[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(Failure::no_such_path()),
        };
        let (namespace, rest) = match rest {
            // The namespace itself has subresources, but no resources below it are called that.
            ["namespaces", name, "status"] if group.is_empty() => (None, vec!["namespaces", name, "status"]),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest.to_vec()),
            rest => (None, rest.to_vec()),
        };
        let (plural, name, subresource) = match &rest[..] {
            [plural] => (*plural, None, ""),
            [plural, name] => (*plural, Some((*name).to_owned()), ""),
            [plural, name, subresource] => (*plural, Some((*name).to_owned()), *subresource),
            _ => return Err(Failure::no_such_path()),
        };
        let kind = registry.find(group, version, plural).ok_or_else(Failure::no_such_path)?;
        let has = |subresource: &str| subresource.is_empty() || (subresource == "status" && kind.status);
        if !has(subresource) || (!kind.namespaced && namespace.is_some()) {
            return Err(Failure::no_such_path());
        }
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let content_type = header("content-type").split(';').next().unwrap_or_default().trim().to_owned();
        let watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let missing =
            || Failure::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        if kind.namespaced && namespace.is_none() && (name.is_some() || parts.method == http::Method::POST) {
            return Err(missing());
        }
        let verb = match (parts.method.as_str(), &name) {
            ("GET", Some(_)) => Verb::Get,
            ("GET", None) if watch => Verb::Watch,
            ("GET", None) => Verb::List,
            ("POST", None) => Verb::Create,
            ("PUT", Some(_)) => Verb::Update,
            ("PATCH", Some(_)) if content_type == APPLY => Verb::Apply,
            ("PATCH", Some(_)) => Verb::Patch,
            ("DELETE", Some(_)) if subresource.is_empty() => Verb::Delete,
            ("DELETE", None) => Verb::DeleteCollection,
            _ => return Err(missing()),
        };
        let metadata = header("accept").contains("as=PartialObjectMetadata");
        Ok(Self {
            verb,
            kind,
            namespace,
            name,
            subresource: subresource.to_owned(),
            query,
            content_type,
            representation: if metadata { Representation::Metadata } else { Representation::Full },
            user_agent: header("user-agent"),
            body,
        })
    }

    pub(crate) fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), "true" | "1" | "True")
    }

    pub(crate) fn dry_run(&self) -> bool {
        self.param("dryRun") == "All"
    }

    /// Who owns the fields that this request writes.
    pub(crate) fn manager(&self) -> String {
        match self.param("fieldManager") {
            "" => {
                let agent = self.user_agent.split('/').next().unwrap_or_default();
                if agent.is_empty() { "unknown".to_owned() } else { agent.to_owned() }
            }
            manager => manager.to_owned(),
        }
    }

    /// # Errors
    /// 400 for a selector that cannot be read.
    pub(crate) fn selector(&self) -> Result<Selector, Failure> {
        Selector::parse(&self.kind, self.param("labelSelector"), self.param("fieldSelector"))
            .map_err(Failure::bad_request)
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        Key {
            resource: self.kind.resource(),
            namespace: self.namespace.clone().unwrap_or_default(),
            name: name.to_owned(),
        }
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// 400 if it is none.
    pub(crate) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::bad_request(format!("the body is not JSON, which is all that this server reads: {error}"))
        })
    }
}

/// Content type of server-side apply.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

/// Percent-decoded.
fn decoded(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| segment.get(at + 1..at + 3)).flatten();
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
