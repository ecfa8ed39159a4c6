//! What a server says to a request, on its way to the client.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, splice, write_error, write_result};
use mcp_hub_mcp::{error, methods, sse};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::body::{Body, EVENTS, JSON, events, json};
use crate::exchange::{COMMENT_EVERY, Exchange, Opened, Outgoing, Permit, whole};
use crate::flights::Flight;
use crate::translate;
use crate::upstream::{Events, Failure, collect, is_type};
use crate::uris;

/// An answer up to this size is read before it is passed on, so that one that breaks off becomes a defined error.
const READ_FIRST: u64 = 64 << 10;

/// What is done with a message that comes before the answer.
enum Interim {
    Pass(Bytes),
    Drop,
    /// A request of the server that is answered here.
    Reply(Vec<u8>),
}

impl Exchange {
    pub(crate) async fn relay(self, opened: Opened, permit: Permit, deadline: Instant) -> Response<Body> {
        let Opened { outgoing, response, flight } = opened;
        let status = response.status();
        if is_type(response.headers(), EVENTS) {
            let (sender, ours) = events();
            let pump = self.pump(Events::new(response.into_body()), outgoing, flight, permit, deadline, sender);
            tokio::spawn(pump);
            return ours;
        }
        if !is_type(response.headers(), JSON) {
            flight.landed();
            return json(self.failure(&Failure::Unreadable(format!("HTTP {status}, and no JSON"))));
        }
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if self.is_verbatim(&outgoing) && status.is_success() && length.is_some_and(|length| length > READ_FIRST) {
            flight.landed();
            let mut ours = json(Bytes::new());
            *ours.body_mut() = Body::Upstream(response.into_body(), permit);
            return ours;
        }
        let limit = std::time::Duration::from_millis(self.upstream.config.call_timeout_ms);
        let answer = tokio::select! {
            answer = tokio::time::timeout_at(deadline, collect(response.into_body())) => answer,
            () = flight.cancelled() => return events().1,
        };
        let message = match answer {
            Ok(Ok(body)) => self.finish(&outgoing, &body, status),
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                flight.abandon();
                return json(self.failure(&Failure::Timeout(limit)));
            }
        };
        flight.landed();
        match message {
            Ok((message, code)) => whole(self.status_of(code), message),
            Err(failure) => json(self.failure(&failure)),
        }
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

    async fn pump(
        self,
        mut messages: Events,
        outgoing: Outgoing,
        flight: Flight,
        permit: Permit,
        deadline: Instant,
        sender: mpsc::Sender<Bytes>,
    ) {
        let _permit = permit;
        // A legacy client may come and go; a modern server would take the end of the connection for a cancellation.
        let follows = self.client.era == Era::Modern || outgoing.era == Era::Legacy;
        let last = loop {
            let message = tokio::select! {
                message = messages.next() => match message {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        flight.landed();
                        break self.failure(&Failure::Gone("its stream ended without an answer".to_owned()));
                    }
                    Err(failure) => {
                        flight.landed();
                        break self.failure(&failure);
                    }
                },
                () = sender.closed(), if follows => return,
                () = flight.cancelled() => return,
                () = tokio::time::sleep_until(deadline), if !self.is_subscription() => {
                    flight.abandon();
                    let limit = std::time::Duration::from_millis(self.upstream.config.call_timeout_ms);
                    break self.failure(&Failure::Timeout(limit));
                }
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    // Nobody reads it: noticed above, or meant to be.
                    sender.send(Bytes::from_static(sse::COMMENT)).await.ok();
                    continue;
                }
            };
            let Ok(envelope) = Envelope::parse(&message) else { continue };
            if envelope.kind() == Kind::Response {
                flight.landed();
                break match self.finish(&outgoing, &message.into(), StatusCode::OK) {
                    Ok((message, _)) => message,
                    Err(failure) => self.failure(&failure),
                };
            }
            match self.interim(&outgoing, &message, &envelope) {
                Interim::Pass(message) => {
                    if sender.send(sse::event(&message)).await.is_err() && follows {
                        return;
                    }
                }
                Interim::Drop => {}
                Interim::Reply(reply) => {
                    let session = flight.session().map(|session| session.headers()).unwrap_or_default();
                    // A server that does not take the answer ends its own request.
                    flight.upstream().post(session, reply.into()).await.ok();
                }
            }
        };
        // Whoever is gone misses it.
        sender.send(sse::event(&last)).await.ok();
    }

    fn interim(&self, outgoing: &Outgoing, message: &[u8], envelope: &Envelope<'_>) -> Interim {
        let method = envelope.method();
        if let (Kind::Request, Some(id)) = (envelope.kind(), envelope.id) {
            let reaches = !outgoing.renumbered && outgoing.era == Era::Legacy && self.client.era == Era::Legacy;
            if reaches && !self.aggregate {
                return Interim::Pass(Bytes::copy_from_slice(message));
            }
            if method == methods::PING {
                return Interim::Reply(write_result(id.get(), "{}"));
            }
            let text = format!("{method} cannot be passed on to this client");
            return Interim::Reply(write_error(Some(id.get()), error::NOT_TRANSLATABLE, &text));
        }
        let crossed = outgoing.era != self.client.era;
        if crossed && self.client.era == Era::Modern {
            match &*method {
                methods::PROGRESS => {}
                methods::MESSAGE => {
                    let params = Envelope::parse(&self.message).map(|request| Params::of(request.params));
                    let wanted = params.ok().and_then(|params| translate::log_level(params.meta.map(|raw| raw.get())));
                    let text = envelope.params.map(|raw| raw.get());
                    if wanted.is_none_or(|from| !translate::is_wanted(text, from)) {
                        return Interim::Drop;
                    }
                }
                // Nothing else belongs into a response stream of the modern era.
                _ => return Interim::Drop,
            }
        }
        let token = Params::of(envelope.params).progress_token.filter(|_| method == methods::PROGRESS);
        match (token, &outgoing.token) {
            (Some(token), Some(theirs)) if token.get().trim_matches('"') == outgoing.id => {
                Interim::Pass(splice(message, &mut [(token, theirs.as_bytes())]).into())
            }
            // Progress of somebody else's request.
            (Some(_), _) if outgoing.renumbered => Interim::Drop,
            _ => Interim::Pass(Bytes::copy_from_slice(message)),
        }
    }

    /// The final answer in the client's terms, with its error code if it is an error.
    fn finish(
        &self,
        outgoing: &Outgoing,
        message: &Bytes,
        status: StatusCode,
    ) -> Result<(Bytes, Option<i64>), Failure> {
        let unreadable = |error: &dyn std::fmt::Display| Failure::Unreadable(format!("HTTP {status}: {error}"));
        if self.is_verbatim(outgoing) && status.is_success() && !may_be_unavailable(message) {
            return Ok((message.clone(), None));
        }
        let envelope = Envelope::parse(message).map_err(|error| unreadable(&error))?;
        if let Some(raw) = envelope.error {
            return Ok(self.finish_error(raw.get()));
        }
        let (Some(id), Some(result)) = (envelope.id, envelope.result) else {
            return Err(unreadable(&"its answer has no result"));
        };
        let crossed = outgoing.era != self.client.era;
        let named = self.aggregate && names_uris(result.get());
        let ruled = self.method == methods::TOOLS_LIST;
        if !crossed && !named && !ruled {
            let answer = if outgoing.renumbered {
                splice(message, &mut [(id, self.id.as_bytes())]).into()
            } else {
                message.clone()
            };
            return Ok((answer, None));
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
                return Ok((answer.into(), Some(error::NOT_TRANSLATABLE)));
            }
        };
        if named {
            result = uris::rewrite(&self.upstream.config.name, &result);
        }
        Ok((write_result(&self.id, &self.ruled(&result)).into(), None))
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
