//! Answers that come as a stream: what a server says on the way, what it asks for, and its answer in the end.
//!
//! A question of a legacy server ends the modern client's request with `input_required`; the call waits, parked, and goes
//! on on the stream of the retry. A result of that type of a modern server becomes requests on a legacy client's stream;
//! the call is made again with the answers.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Kind, Params, splice, write_error, write_request, write_result};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error, methods, sse};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::asked::{Asking, OPEN_MAX};
use crate::body::{Body, events};
use crate::ears::Ear;
use crate::exchange::{COMMENT_EVERY, Exchange, Permit, Reply, Return};
use crate::fields::Fields;
use crate::flights::Flight;
use crate::metrics::count;
use crate::outgoing::{Outgoing, Places};
use crate::questions::{self, InputRequired, Question, can_answer};
use crate::relay::Finished;
use crate::source::Source;
use crate::translate;
use crate::upstream::Failure;

/// Servers that ask for several things at once do so within this; a modern client is asked for all of them together.
const GATHER: Duration = Duration::from_millis(30);
/// Times that one call may ask a legacy client, as official clients bound it.
const ROUNDS_MAX: u32 = 10;
/// Before a call is made again for which nobody was asked anything; times the round.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// One call under way, between a server and the client's stream.
#[derive(Debug)]
pub(crate) struct Line {
    outgoing: Outgoing,
    flight: Flight,
    permit: Permit,
    deadline: Instant,
    sender: mpsc::Sender<Bytes>,
    /// What a legacy client was asked.
    asking: Option<Asking>,
    ear: Option<Ear>,
    /// Questions of the server, counted over all rounds.
    asked: usize,
    rounds: u32,
}

impl Line {
    /// With the client's response.
    pub(crate) fn open(
        outgoing: Outgoing,
        flight: Flight,
        ear: Option<Ear>,
        permit: Permit,
        deadline: Instant,
    ) -> (Self, Response<Body>) {
        let (sender, response) = events();
        (Self { outgoing, flight, permit, deadline, sender, asking: None, ear, asked: 0, rounds: 0 }, response)
    }

    /// Says something to the server in the session of the call. One that does not take it ends its own request.
    async fn reply(&self, message: impl Into<Bytes>) {
        let session = self.flight.session().map(|session| &**session);
        self.flight.upstream().post(session, Fields::new(), message.into()).await.ok();
    }
}

/// How a turn of the server ended.
enum Turn {
    Answer(Bytes),
    TimedOut,
    /// A legacy server asks a modern client.
    Questions(Vec<Question>),
    /// A modern server asks a legacy client.
    Wanted(InputRequired),
    /// The client is gone, or has cancelled the request.
    Over,
}

/// What is done with a message that comes before the answer.
enum Interim {
    Pass(Bytes),
    Drop,
    /// A request of the server that is answered here.
    Reply(Vec<u8>),
    /// A question for a modern client.
    Ask(Question),
}

impl Exchange {
    pub(crate) async fn converse(mut self, mut line: Line, mut source: Source) {
        loop {
            let turn = match source {
                Source::Wanted(wanted) => {
                    source = Source::Ended;
                    Turn::Wanted(wanted)
                }
                ref mut source => self.listen(&mut line, source).await,
            };
            let turn = match turn {
                Turn::Questions(asked) => match self.park(line, asked).await {
                    Some(back) => {
                        (self, line) = back;
                        continue;
                    }
                    None => return,
                },
                Turn::Wanted(wanted) => match self.ask(&mut line, wanted).await {
                    Ok(next) => {
                        source = next;
                        continue;
                    }
                    Err(turn) => turn,
                },
                turn => turn,
            };
            let Line { flight, sender, permit: _permit, .. } = line;
            let last = match turn {
                Turn::Answer(last) => {
                    flight.landed();
                    last
                }
                Turn::TimedOut => {
                    flight.abandon();
                    self.failure(&Failure::Timeout(self.limit()))
                }
                Turn::Questions(_) | Turn::Wanted(_) | Turn::Over => return,
            };
            // Whoever is gone misses it.
            sender.send(sse::event(&last)).await.ok();
            return;
        }
    }

    /// Passes on what the server says until it is the client's turn.
    async fn listen(&self, line: &mut Line, source: &mut Source) -> Turn {
        // A legacy client may come and go; a modern server would take the end of the connection for a cancellation.
        let follows = self.client.era == Era::Modern || line.outgoing.era == Era::Legacy;
        let mut questions: Vec<Question> = Vec::new();
        let mut gathered = Instant::now();
        loop {
            let message = tokio::select! {
                message = source.next() => match message {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        let failure = Failure::Gone("its stream ended without an answer".to_owned());
                        return Turn::Answer(self.failure(&failure));
                    }
                    Err(failure) => return Turn::Answer(self.failure(&failure)),
                },
                () = line.sender.closed(), if follows => return Turn::Over,
                () = self.client.ending.begun(), if self.is_subscription() => return Turn::Over,
                () = line.flight.cancelled() => return Turn::Over,
                message = heard(&mut line.ear) => message,
                (server_id, answer) = answered(&mut line.asking) => {
                    if let Ok(envelope) = Envelope::parse(&answer) && let Some(id) = envelope.id {
                        line.reply(splice(&answer, &[(id, server_id.as_bytes())])).await;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(gathered), if !questions.is_empty() => return Turn::Questions(questions),
                () = tokio::time::sleep_until(line.deadline), if !self.is_subscription() => return Turn::TimedOut,
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    // Nobody reads it: noticed above, or meant to be.
                    line.sender.send(Bytes::from_static(sse::COMMENT)).await.ok();
                    continue;
                }
            };
            let Ok(envelope) = Envelope::parse(&message) else { continue };
            if envelope.kind() == Kind::Response {
                return self.turn(&line.outgoing, &message);
            }
            if envelope.method() == methods::CANCELLED && !questions.is_empty() {
                let withdrawn = Params::of(envelope.params).request_id;
                questions.retain(|question| Some(&*question.id) != withdrawn.map(|id| id.get()));
                continue;
            }
            match self.interim(line, &message, &envelope) {
                Interim::Pass(message) => {
                    if line.sender.send(sse::event(&message)).await.is_err() && follows {
                        return Turn::Over;
                    }
                }
                Interim::Drop => {}
                Interim::Reply(reply) => line.reply(reply).await,
                Interim::Ask(question) => {
                    if questions.is_empty() {
                        gathered = Instant::now() + GATHER;
                    }
                    questions.push(question);
                }
            }
        }
    }

    fn turn(&self, outgoing: &Outgoing, message: &Bytes) -> Turn {
        match self.finish(outgoing, message, StatusCode::OK) {
            Ok(Finished::Answer(message, _)) => Turn::Answer(message),
            Ok(Finished::Wanted(wanted)) => Turn::Wanted(wanted),
            Err(failure) => Turn::Answer(self.failure(&failure)),
        }
    }

    fn interim(&self, line: &mut Line, message: &[u8], envelope: &Envelope<'_>) -> Interim {
        let outgoing = &line.outgoing;
        let method = envelope.method();
        if let (Kind::Request, Some(id)) = (envelope.kind(), envelope.id) {
            let params = envelope.params.map(|raw| raw.get());
            return self.question(line, message, id.get(), &method, params);
        }
        let crossed = outgoing.era != self.client.era;
        if crossed && self.client.era == Era::Modern {
            match &*method {
                methods::PROGRESS => {}
                methods::MESSAGE if self.log_level().is_some() => {}
                // Nothing else belongs into a response stream of the modern era.
                _ => return Interim::Drop,
            }
        }
        if method == methods::MESSAGE
            && let Some(from) = self.log_level()
            && translate::level_of(envelope.params.map(|raw| raw.get())) < from
        {
            return Interim::Drop;
        }
        let token = Params::of(envelope.params).progress_token.filter(|_| method == methods::PROGRESS);
        match (token, &outgoing.token) {
            (Some(token), Some(theirs)) if token.get().trim_matches('"') == outgoing.id.trim_matches('"') => {
                Interim::Pass(splice(message, &[(token, theirs.as_bytes())]).into())
            }
            // Progress of somebody else's request.
            (Some(_), _) if outgoing.renumbered => Interim::Drop,
            _ => Interim::Pass(Bytes::copy_from_slice(message)),
        }
    }

    /// A request of the server.
    fn question(&self, line: &mut Line, message: &[u8], id: &str, method: &str, params: Option<&str>) -> Interim {
        if line.outgoing.era == Era::Legacy && self.client.era == Era::Legacy && !line.outgoing.renumbered {
            if !self.aggregate {
                return Interim::Pass(Bytes::copy_from_slice(message));
            }
            // Several servers may ask under one id.
            if method != methods::PING && self.capabilities().is_some() {
                let asking = line.asking.get_or_insert_with(|| Asking::new(&self.inner, self.seat.owner));
                return match asking.ask(id, method, params) {
                    Some(request) => Interim::Pass(request.into()),
                    None => Interim::Reply(write_error(Some(id), error::OVERLOADED, "too many questions are open")),
                };
            }
        }
        if method == methods::PING {
            return Interim::Reply(write_result(id, "{}"));
        }
        let own_session = line.outgoing.era == Era::Legacy && !line.flight.upstream().is_shared();
        if !own_session || self.client.era == Era::Legacy {
            let text = format!("{method} cannot be passed on to this client");
            return Interim::Reply(write_error(Some(id), error::NOT_TRANSLATABLE, &text));
        }
        let params = params.and_then(RawObject::parse).unwrap_or_default();
        if !can_answer(self.capabilities(), method, &params) {
            let text = format!("the client does not offer {method}");
            return Interim::Reply(write_error(Some(id), error::METHOD_NOT_FOUND, &text));
        }
        line.asked += 1;
        Interim::Ask(Question::asked(id, format!("q{}", line.asked), method, params))
    }

    /// Ends the client's request with these questions, and waits for the retry that answers them, which takes the place of
    /// the request. `None` if none comes.
    async fn park(mut self, mut line: Line, mut questions: Vec<Question>) -> Option<(Self, Line)> {
        loop {
            let Some((mut place, state)) = self.inner.parked.park(self.client.principal, &self.claim(), self.limit())
            else {
                for question in &questions {
                    let text = "too many calls wait for their clients";
                    line.reply(write_error(Some(&question.id), error::OVERLOADED, text)).await;
                }
                return Some((self, line));
            };
            count(&self.inner.metrics.parked);
            let result = write_result(&self.id, &questions::input_required(&questions, &state));
            let Line { outgoing, flight, permit, sender, asking, ear, asked, rounds, .. } = line;
            // Whoever is gone does not come back, and the call ends with its time.
            sender.send(sse::event(&result)).await.ok();
            drop((sender, permit));
            let Ok(Ok(back)) = tokio::time::timeout(self.limit(), &mut place.returned).await else {
                count(&self.inner.metrics.parked_expired);
                flight.abandon();
                return None;
            };
            let Return { exchange, permit, deadline, sender } = back;
            self = exchange;
            line = Line { outgoing, flight, permit, deadline, sender, asking, ear, asked, rounds };
            let envelope = Envelope::parse(&self.message).ok()?;
            // The server knows of a token, or it does not: the retry's takes its place.
            line.outgoing.token = match line.outgoing.token {
                None => None,
                Some(_) => Params::of(envelope.params).meta().progress_token.map(|token| token.get().to_owned()),
            };
            let params = envelope.params.and_then(|raw| RawObject::parse(raw.get())).unwrap_or_default();
            let responses = params.get("inputResponses").and_then(RawObject::parse).unwrap_or_default();
            let (given, open) = questions::answers(questions, &responses);
            for (id, result) in given {
                line.reply(write_result(&id, &result)).await;
            }
            if open.is_empty() {
                return Some((self, line));
            }
            questions = open;
        }
    }

    /// Asks a legacy client what a modern server wants to know, and makes the call again with the answers.
    async fn ask(&mut self, line: &mut Line, wanted: InputRequired) -> Result<Source, Turn> {
        line.rounds += 1;
        if line.rounds > ROUNDS_MAX {
            return Err(Turn::Answer(self.unanswerable(&format!("again after {ROUNDS_MAX} rounds"))));
        }
        let cannot = |question: &&Question| !can_answer(self.capabilities(), &question.method, &question.params);
        if let Some(question) = wanted.questions.iter().find(cannot) {
            let text = format!("for {}, which this client does not offer", question.method);
            return Err(Turn::Answer(self.unanswerable(&text)));
        }
        if wanted.questions.len() > OPEN_MAX {
            return Err(Turn::Answer(self.unanswerable(&format!("for more than {OPEN_MAX} things at once"))));
        }
        // The place is for calls that a server works on.
        line.permit = None;
        let answers = self.put(line, &wanted.questions).await?;
        if wanted.questions.is_empty() {
            tokio::time::sleep(RETRY_PAUSE * line.rounds).await;
        }
        let envelope = Envelope::parse(&self.message).ok();
        let params = envelope.and_then(|envelope| RawObject::parse(envelope.params?.get()));
        let mut params = params.unwrap_or_default();
        wanted.retry(&mut params, &answers);
        self.message = write_request(Some(&self.id), &self.method, Some(&params.to_string())).into();
        if let Ok(envelope) = Envelope::parse(&self.message) {
            self.places = Places::of(&self.message, &envelope, &Params::of(envelope.params));
        }
        self.is_retry = true;
        line.deadline = Instant::now() + self.limit();
        line.permit = self.permit(line.deadline).await.map_err(Turn::Answer)?;
        let opening = self.open(Some(line.deadline));
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    line.sender.send(Bytes::from_static(sse::COMMENT)).await.ok();
                }
            }
        };
        let opened = opened.map_err(|failure| match failure {
            Failure::Cancelled => Turn::Over,
            failure => Turn::Answer(self.failure(&failure)),
        })?;
        line.outgoing = opened.outgoing;
        std::mem::replace(&mut line.flight, opened.flight).landed();
        match opened.reply {
            Reply::Begun(response) => Source::of(response).map_err(|failure| Turn::Answer(self.failure(&failure))),
            Reply::Pending(begins) => Ok(Source::Pending(begins)),
        }
    }

    /// Puts questions to a legacy client; its answers under the server's keys.
    async fn put(&self, line: &mut Line, questions: &[Question]) -> Result<RawObject, Turn> {
        let mut answers = RawObject::default();
        let mut asking = Asking::new(&self.inner, self.seat.owner);
        for question in questions {
            let Some(request) = asking.ask(&question.key, &question.method, Some(&question.params.to_string())) else {
                continue;
            };
            if line.sender.send(sse::event(&request)).await.is_err() {
                return Err(Turn::Over);
            }
        }
        let until = Instant::now() + self.limit();
        while !asking.is_settled() {
            tokio::select! {
                (key, message) = asking.answered() => {
                    let Ok(envelope) = Envelope::parse(&message) else { continue };
                    match (envelope.result, envelope.error) {
                        (Some(result), _) => answers.set(&key, result.get()),
                        // A modern server is told of no refusal: the call ends with the client's own.
                        (None, refusal) => {
                            let refusal = refusal.map_or("null", |raw| raw.get());
                            let text = "the client refused what the server asked for";
                            let code = error::NOT_TRANSLATABLE;
                            let data = format!(r#"{{"refusal":{refusal}}}"#);
                            let last = mcp_hub_mcp::envelope::write_error_with(Some(&self.id), code, text, Some(&data));
                            return Err(Turn::Answer(last.into()));
                        }
                    }
                }
                () = line.flight.cancelled() => return Err(Turn::Over),
                () = tokio::time::sleep_until(until) => return Err(Turn::TimedOut),
                () = tokio::time::sleep(COMMENT_EVERY) => {
                    // A legacy client may come and go, and answers by another way.
                    line.sender.send(Bytes::from_static(sse::COMMENT)).await.ok();
                }
            }
        }
        Ok(answers)
    }
}

/// The next answer of a legacy client; never if it was asked nothing.
async fn answered(asking: &mut Option<Asking>) -> (String, Bytes) {
    match asking {
        Some(asking) => asking.answered().await,
        None => std::future::pending().await,
    }
}

/// The next message from outside of the call's own stream; never where there is no ear for it.
async fn heard(ear: &mut Option<Ear>) -> Bytes {
    match ear {
        Some(ear) => ear.heard().await,
        None => std::future::pending().await,
    }
}
