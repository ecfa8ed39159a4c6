//! A client's request as a server is to get it: spliced where both speak one era, else translated.

use std::borrow::Cow;

use bytes::Bytes;
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Params, Place, quoted, splice_at, text, write_request};
use mcp_hub_mcp::methods;
use mcp_hub_mcp::object::RawObject;
use serde_json::value::RawValue;

use crate::exchange::Exchange;
use crate::fields::Fields;
use crate::param_headers;
use crate::translate;
use crate::upstream::{Upstream, modern_fields};

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

/// Where in a request the values stand that change on its way: it is parsed once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    id: Option<Place>,
    params: Option<Place>,
    name: Option<Place>,
    uri: Option<Place>,
    reference: Option<Place>,
    progress: Option<Place>,
}

impl Places {
    pub(crate) fn of(message: &[u8], envelope: &Envelope<'_>, params: &Params<'_>) -> Self {
        let place = |raw: Option<&RawValue>| raw.map(|raw| Place::of(message, raw));
        Self {
            id: place(envelope.id),
            params: place(envelope.params),
            name: place(params.name),
            uri: place(params.uri),
            reference: place(params.reference),
            progress: place(params.meta().progress_token),
        }
    }
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
    pub(crate) fn outgoing(&self, upstream: &Upstream, era: Era) -> (Outgoing, Fields) {
        let places = &self.places;
        let own_session = !upstream.is_shared() && self.client.session.is_some();
        let renumbered = era == Era::Legacy && !own_session || self.is_retry;
        let id = match (self.is_retry, renumbered) {
            // A number may be the id that the client gave to the first round.
            (true, _) => format!("\"hub-retry-{}\"", upstream.next_id()),
            (false, true) => upstream.next_id().to_string(),
            (false, false) => self.id.clone(),
        };
        let theirs = places.progress.filter(|_| renumbered);
        let token = theirs.map(|place| place.text(&self.message).to_owned());
        let body = if era == self.client.era {
            let aimed = match &self.aim {
                None => None,
                Some(Aim::Name(name)) => places.name.map(|place| (place, quoted(name))),
                Some(Aim::Uri(uri)) => places.uri.map(|place| (place, quoted(uri))),
                Some(Aim::Reference(reference)) => places.reference.map(|place| (place, reference.clone())),
            };
            let mut changes: Vec<(Place, &[u8])> = Vec::with_capacity(3);
            if renumbered {
                changes.extend(places.id.into_iter().chain(theirs).map(|place| (place, id.as_bytes())));
            }
            changes.extend(aimed.as_ref().map(|(place, with)| (*place, with.as_bytes())));
            if changes.is_empty() { self.message.clone() } else { splice_at(&self.message, &mut changes).into() }
        } else {
            let mut object = self.params().unwrap_or_default();
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
            Era::Legacy => Fields::new(),
            Era::Modern => self.modern_fields(upstream),
        };
        (Outgoing { era, body, id, renumbered, token }, headers)
    }

    fn params(&self) -> Option<RawObject> {
        RawObject::parse(self.places.params?.text(&self.message))
    }

    fn modern_fields(&self, upstream: &Upstream) -> Fields {
        let written = |place: Option<Place>| text(place?.text(&self.message));
        let named = match (&*self.method, &self.aim) {
            (methods::TOOLS_CALL | methods::PROMPTS_GET, Some(Aim::Name(name))) => Some(Cow::Borrowed(name.as_str())),
            (methods::TOOLS_CALL | methods::PROMPTS_GET, _) => written(self.places.name),
            (methods::RESOURCES_READ, Some(Aim::Uri(uri))) => Some(Cow::Borrowed(uri.as_str())),
            (methods::RESOURCES_READ, _) => written(self.places.uri),
            _ => None,
        };
        let mut extra = modern_fields(&self.method, named.as_deref());
        match self.client.era {
            Era::Modern => extra.extend(self.param_headers.clone()),
            Era::Legacy if self.method == methods::TOOLS_CALL => {
                let catalog = upstream.catalog();
                if let Some(annotations) = named.as_ref().and_then(|name| catalog.annotations.get(&**name)) {
                    let object = self.params();
                    let arguments = object.as_ref().and_then(|object| object.get("arguments"));
                    extra.extend(param_headers::headers(annotations, arguments));
                }
            }
            Era::Legacy => {}
        }
        extra
    }
}
