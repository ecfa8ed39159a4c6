//! What a server says to a request, on its way to the client.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, splice, write_error, write_result};
use mcp_hub_mcp::{error, methods};
use tokio::time::Instant;

use crate::body::{Body, EVENTS, JSON, Passed, Upstream, events, json};
use crate::conversation::Line;
use crate::exchange::{Exchange, Opened, Permit, Reply, whole};
use crate::outgoing::Outgoing;
use crate::questions::InputRequired;
use crate::result_limit;
use crate::source::Source;
use crate::translate;
use crate::upstream::{Broken, Events, Failure, collect, is_type};
use crate::uris;

/// An answer up to this size is read before it is passed on, so that one that breaks off becomes a defined error.
pub(crate) const READ_FIRST: u64 = 64 << 10;

/// A server's response as far as it was read.
enum Read {
    Whole(Bytes),
    /// It goes on to the client while it comes.
    Passed(Passed),
}

/// What a server's response means for the client.
pub(crate) enum Finished {
    /// With its error code if it is an error.
    Answer(Bytes, Option<i64>),
    /// The server asks a legacy client for something first.
    Wanted(InputRequired),
}

impl Exchange {
    pub(crate) async fn relay(self, opened: Opened, permit: Permit, deadline: Instant) -> Response<Body> {
        let Opened { outgoing, reply, flight, ear } = opened;
        let response = match reply {
            Reply::Begun(response) if is_type(response.headers(), EVENTS) => {
                let source = Source::Stream(Events::new(response.into_body()));
                return self.stream(Line::open(outgoing, flight, ear, permit, deadline), source);
            }
            Reply::Begun(response) => response,
            Reply::Pending(begins) => {
                return self.stream(Line::open(outgoing, flight, ear, permit, deadline), Source::Pending(begins));
            }
        };
        let status = response.status();
        if !is_type(response.headers(), JSON) {
            flight.landed();
            return json(self.failure(&Failure::Unreadable(format!("HTTP {status}, and no JSON"))));
        }
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let is_passed = self.is_verbatim(&outgoing)
            && status.is_success()
            && length.is_some_and(|length| length > READ_FIRST && self.fits(length));
        let mut body = Passed::new(response.into_body());
        let reading = async {
            let broke_off = |error: Broken| Failure::Gone(error.to_string());
            if is_passed && (!outgoing.renumbered || body.renumber(&outgoing.id, &self.id).await.map_err(broke_off)?) {
                return Ok(Read::Passed(body));
            }
            collect(body).await.map(Read::Whole)
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout_at(deadline, reading) => answer,
            () = flight.cancelled() => return events().1,
        };
        let message = match answer {
            Ok(Ok(Read::Whole(message))) => self.finish(&outgoing, &message, status),
            Ok(Ok(Read::Passed(body))) => {
                flight.landed();
                let mut ours = json(Bytes::new());
                *ours.body_mut() = Body::Upstream(Upstream::new(body, (permit, self.busy.clone()), self.limit()));
                return ours;
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                flight.abandon();
                return json(self.failure(&Failure::Timeout(self.limit())));
            }
        };
        match message {
            Ok(Finished::Wanted(wanted)) if self.client.takes_events => {
                self.stream(Line::open(outgoing, flight, ear, permit, deadline), Source::Wanted(wanted))
            }
            Ok(Finished::Wanted(_)) => {
                flight.landed();
                json(
                    self.unanswerable(
                        "for something in the middle of the call, which needs a client that takes streams",
                    ),
                )
            }
            Ok(Finished::Answer(message, code)) => {
                flight.landed();
                whole(self.status_of(code), message)
            }
            Err(failure) => {
                flight.landed();
                json(self.failure(&failure))
            }
        }
    }

    /// A response that is a conversation.
    fn stream(self, (line, response): (Line, Response<Body>), source: Source) -> Response<Body> {
        tokio::spawn(self.converse(line, source));
        response
    }

    /// HTTP status of a JSON-RPC answer: only modern clients are told more than that there is one.
    fn status_of(&self, code: Option<i64>) -> StatusCode {
        match (self.client.era, code) {
            (Era::Modern, Some(error::METHOD_NOT_FOUND)) => StatusCode::NOT_FOUND,
            (
                Era::Modern,
                Some(error::HEADER_MISMATCH | error::MISSING_CLIENT_CAPABILITY | error::UNSUPPORTED_VERSION),
            ) => StatusCode::BAD_REQUEST,
            _ => StatusCode::OK,
        }
    }

    /// The server's response in the client's terms.
    pub(crate) fn finish(&self, outgoing: &Outgoing, message: &Bytes, status: StatusCode) -> Result<Finished, Failure> {
        let unreadable = |error: &dyn std::fmt::Display| Failure::Unreadable(format!("HTTP {status}: {error}"));
        let fits = self.fits(message.len() as u64);
        if fits
            && !outgoing.renumbered
            && self.is_verbatim(outgoing)
            && status.is_success()
            && !may_be_unavailable(message)
        {
            return Ok(Finished::Answer(message.clone(), None));
        }
        let envelope = Envelope::parse(message).map_err(|error| unreadable(&error))?;
        if let Some(raw) = envelope.error {
            let (answer, code) = self.finish_error(raw.get());
            return Ok(Finished::Answer(answer, code));
        }
        let (Some(id), Some(result)) = (envelope.id, envelope.result) else {
            return Err(unreadable(&"its answer has no result"));
        };
        let crossed = outgoing.era != self.client.era;
        let named = self.aggregate && names_uris(result.get());
        if fits && !crossed && !named && !self.is_picked(outgoing.era) {
            let answer =
                if outgoing.renumbered { splice(message, &[(id, self.id.as_bytes())]).into() } else { message.clone() };
            return Ok(Finished::Answer(answer, None));
        }
        if crossed
            && self.client.era == Era::Legacy
            && memchr::memmem::find(result.get().as_bytes(), b"input_required").is_some()
            && let Some(wanted) = InputRequired::of(result.get())
        {
            return Ok(Finished::Wanted(wanted));
        }
        let translated = match (crossed, self.client.era) {
            (false, _) => Ok(result.get().to_owned()),
            (true, Era::Modern) => translate::result_to_modern(&self.method, result.get()),
            (true, Era::Legacy) => translate::result_to_legacy(result.get()),
        };
        let mut result = match translated {
            Ok(result) => result,
            Err(problem) => {
                let text = format!("server `{}`: {problem}", self.upstream.config.name);
                let answer = write_error(Some(&self.id), error::NOT_TRANSLATABLE, &text);
                return Ok(Finished::Answer(answer.into(), Some(error::NOT_TRANSLATABLE)));
            }
        };
        if let Some(limit) = self.result_limit.filter(|_| !fits) {
            result = result_limit::cut(&result, limit);
        }
        if named {
            result = uris::rewrite(&self.upstream.config.name, &result);
        }
        Ok(Finished::Answer(write_result(&self.id, &self.picked(outgoing.era, &result)).into(), None))
    }

    /// The answer for a client that cannot give what the server asks for.
    pub(crate) fn unanswerable(&self, asked: &str) -> Bytes {
        let text = format!("server `{}` asks {asked}", self.upstream.config.name);
        write_error(Some(&self.id), error::NOT_TRANSLATABLE, &text).into()
    }

    fn finish_error(&self, raw: &str) -> (Bytes, Option<i64>) {
        #[derive(serde::Deserialize)]
        struct Code {
            code: i64,
            #[serde(default)]
            message: String,
        }
        let parsed: Option<Code> = serde_json::from_str(raw).ok();
        if let Some(Code { code: error::SERVER_UNAVAILABLE, message }) = &parsed
            && self.method == methods::TOOLS_CALL
        {
            let text = format!("server `{}`: {message}", self.upstream.config.name);
            return (self.tool_error(&Failure::Unreachable(message.clone()), &text), None);
        }
        if parsed.as_ref().is_some_and(|parsed| parsed.code == error::HEADER_MISMATCH) {
            // The client made the headers and is told; the schema that it made them from may be our old one.
            self.upstream.refresh.notify_one();
        }
        let translated = if self.upstream.known_era() == Some(self.client.era) {
            raw.to_owned()
        } else {
            translate::error(self.client.era, &self.method, raw)
        };
        let answer = format!(r#"{{"jsonrpc":"2.0","id":{},"error":{translated}}}"#, self.id);
        (answer.into(), parsed.map(|parsed| parsed.code))
    }
}

/// Whether a result may hold URIs of resources.
fn names_uris(result: &str) -> bool {
    // The shortest of the member names is part of the others but for its capital.
    ["\"uri\"", "\"uriTemplate\"", "\"resourceUri\""]
        .iter()
        .any(|name| memchr::memmem::find(result.as_bytes(), name.as_bytes()).is_some())
}

/// Whether this may be a bridge's answer for a server that is not running, which a client is told in another form.
fn may_be_unavailable(message: &[u8]) -> bool {
    message.len() < 4096 && memchr::memmem::find(message, b"\"error\"").is_some()
}
