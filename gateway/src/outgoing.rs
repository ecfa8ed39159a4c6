//! A client's request as a server is to get it: spliced where both speak one era, else translated.

use bytes::Bytes;
use http::HeaderMap;
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, MalformedMessage, Params, quoted, splice, string, write_request};
use mcp_hub_mcp::methods;
use mcp_hub_mcp::object::RawObject;
use serde_json::value::RawValue;

use crate::exchange::Exchange;
use crate::param_headers;
use crate::translate;
use crate::upstream::{Failure, Upstream, modern_headers};

/// What the server is to read in place of what the client wrote.
#[derive(Debug, Clone)]
pub(crate) enum Aim {
    /// `params.name`.
    Name(String),
    /// `params.uri`.
    Uri(String),
    /// `params.ref`, raw.
    Reference(String),
}

/// A message as a server is to get it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) era: Era,
    pub(crate) body: Bytes,
    /// The id under which the server knows the request, raw.
    pub(crate) id: String,
    /// Whether that is not the client's.
    pub(crate) renumbered: bool,
    /// The client's progress token, raw, if the server got another.
    pub(crate) token: Option<String>,
}

impl Exchange {
    /// The message for a server of this era, and the headers that it wants with it.
    pub(crate) fn outgoing(&self, upstream: &Upstream, era: Era) -> Result<(Outgoing, HeaderMap), Failure> {
        let unreadable = |error: MalformedMessage| Failure::Unreadable(error.to_string());
        let envelope = Envelope::parse(&self.message).map_err(unreadable)?;
        let params = Params::of(envelope.params);
        let own_session = !upstream.is_shared() && self.client.session.is_some();
        let renumbered = era == Era::Legacy && !own_session || self.is_retry;
        let id = match (self.is_retry, renumbered) {
            // A number may be the id that the client gave to the first round.
            (true, _) => format!("\"hub-retry-{}\"", upstream.next_id()),
            (false, true) => upstream.next_id().to_string(),
            (false, false) => self.id.clone(),
        };
        let theirs = if renumbered { params.meta().progress_token } else { None };
        let token = theirs.map(|token| token.get().to_owned());
        let body = if era == self.client.era {
            let aimed = match &self.aim {
                None => None,
                Some(Aim::Name(name)) => params.name.map(|raw| (raw, quoted(name))),
                Some(Aim::Uri(uri)) => params.uri.map(|raw| (raw, quoted(uri))),
                Some(Aim::Reference(reference)) => params.reference.map(|raw| (raw, reference.clone())),
            };
            let mut changes: Vec<(&RawValue, &[u8])> = Vec::with_capacity(3);
            if renumbered {
                changes.extend(envelope.id.map(|raw| (raw, id.as_bytes())));
                changes.extend(theirs.map(|raw| (raw, id.as_bytes())));
            }
            changes.extend(aimed.as_ref().map(|(raw, with)| (*raw, with.as_bytes())));
            if changes.is_empty() { self.message.clone() } else { splice(&self.message, &mut changes).into() }
        } else {
            let mut object = envelope.params.and_then(|raw| RawObject::parse(raw.get())).unwrap_or_default();
            match &self.aim {
                None => {}
                Some(Aim::Name(name)) => object.set("name", quoted(name)),
                Some(Aim::Uri(uri)) => object.set("uri", quoted(uri)),
                Some(Aim::Reference(reference)) => object.set("ref", reference.clone()),
            }
            match era {
                Era::Modern => translate::params_to_modern(&mut object, self.capabilities(), self.log_level()),
                Era::Legacy => translate::params_to_legacy(&mut object),
            }
            if theirs.is_some()
                && let Some(mut meta) = object.get("_meta").and_then(RawObject::parse)
            {
                meta.set("progressToken", id.clone());
                object.set("_meta", meta.to_string());
            }
            write_request(Some(&id), &self.method, Some(&object.to_string())).into()
        };
        let headers = match era {
            Era::Legacy => HeaderMap::new(),
            Era::Modern => self.modern_headers(upstream, &params),
        };
        Ok((Outgoing { era, body, id, renumbered, token }, headers))
    }

    fn modern_headers(&self, upstream: &Upstream, params: &Params<'_>) -> HeaderMap {
        let named = match (&*self.method, &self.aim) {
            (methods::TOOLS_CALL | methods::PROMPTS_GET, Some(Aim::Name(name))) => Some(name.clone()),
            (methods::TOOLS_CALL | methods::PROMPTS_GET, _) => params.name.and_then(string).map(Into::into),
            (methods::RESOURCES_READ, Some(Aim::Uri(uri))) => Some(uri.clone()),
            (methods::RESOURCES_READ, _) => params.uri.and_then(string).map(Into::into),
            _ => None,
        };
        let mut extra = modern_headers(&self.method, named.as_deref());
        match self.client.era {
            Era::Modern => extra.extend(self.param_headers.clone()),
            Era::Legacy if self.method == methods::TOOLS_CALL => {
                let catalog = upstream.catalog();
                if let Some(annotations) = named.as_ref().and_then(|name| catalog.annotations.get(name)) {
                    let envelope = Envelope::parse(&self.message).ok();
                    let object = envelope.and_then(|envelope| RawObject::parse(envelope.params?.get()));
                    let arguments = object.as_ref().and_then(|object| object.get("arguments"));
                    extra.extend(param_headers::headers(annotations, arguments));
                }
            }
            Era::Legacy => {}
        }
        extra
    }
}
