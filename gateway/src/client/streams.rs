//! Long streams of notifications: GET of the legacy era, `subscriptions/listen` of the modern one.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Params, quoted, write_request};
use mcp_hub_mcp::methods::{ACKNOWLEDGED, PROMPTS_CHANGED, RESOURCE_UPDATED, RESOURCES_CHANGED, TOOLS_CHANGED};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::sse;
use tokio::sync::{broadcast, mpsc};

use super::{Ask, Scope};
use crate::body::{Body, EVENTS, events, full};
use crate::exchange::{COMMENT_EVERY, Seat};
use crate::outgoing::Aim;
use crate::serve::Ending;
use crate::told::{News, Told};
use crate::upstream::{Events, Owner, Topic, Upstream, is_type};

/// The member of a subscription that asks for a notification.
const FILTERS: [(&str, &str); 3] = [
    ("toolsListChanged", TOOLS_CHANGED),
    ("promptsListChanged", PROMPTS_CHANGED),
    ("resourcesListChanged", RESOURCES_CHANGED),
];

/// Resources that one subscription may name.
const TOPICS_MAX: usize = 256;

/// Where notifications come from.
struct Source {
    lists: Changes,
    told: broadcast::Receiver<Told>,
}

/// Of lists.
enum Changes {
    Merged(broadcast::Receiver<&'static str>),
    Server(broadcast::Receiver<Bytes>),
}

/// Something for the stream, before it is looked at whether it concerns it.
enum Heard {
    /// A notification that is everybody's.
    Common(Bytes),
    Told(Told),
}

impl Source {
    fn of(ask: &Ask) -> Self {
        let lists = match &ask.scope {
            Scope::Aggregate => Changes::Merged(ask.inner.outdated.subscribe()),
            Scope::Server(upstream) => Changes::Server(upstream.notifications.subscribe()),
        };
        Self { lists, told: ask.inner.told.subscribe() }
    }

    /// The next notification; `None` at the end. Whoever is slow misses some, which only say that something changed.
    async fn next(&mut self) -> Option<Heard> {
        loop {
            let received = tokio::select! {
                common = self.lists.next() => common.map(Heard::Common),
                told = self.told.recv() => told.map(Heard::Told),
            };
            match received {
                Ok(heard) => return Some(heard),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Changes {
    async fn next(&mut self) -> Result<Bytes, broadcast::error::RecvError> {
        match self {
            Self::Merged(receiver) => {
                receiver.recv().await.map(|method| Bytes::from(write_request(None, method, None)))
            }
            Self::Server(receiver) => receiver.recv().await,
        }
    }
}

impl Ask {
    /// GET: what a legacy client is told without having asked.
    pub(super) async fn stream(self) -> Response<Body> {
        if !self.client.takes_events {
            return full(StatusCode::NOT_ACCEPTABLE, "text/plain", "a stream is text/event-stream");
        }
        // What the session has asked to be told is known where it lives.
        if let Some(answer) = self.session_elsewhere(Method::GET, &Bytes::new(), None).await {
            return answer;
        }
        if let Scope::Server(upstream) = &self.scope
            && !upstream.is_shared()
            && upstream.known_era() == Some(Era::Legacy)
        {
            return self.own_stream(upstream.clone()).await;
        }
        let (sender, response) = events();
        let (source, ending) = (Source::of(&self), self.client.ending.clone());
        tokio::spawn(forward(source, sender, ending, move |heard| match heard {
            Heard::Common(message) => Some(message.clone()),
            Heard::Told(told) => self.shown(told),
        }));
        response
    }

    /// The stream of the client's own session with a server.
    async fn own_stream(&self, upstream: Arc<Upstream>) -> Response<Body> {
        let capabilities = self.client.session.as_ref().and_then(|session| session.capabilities.as_deref());
        let opened = async {
            let session = upstream.session(self.client.owner(), capabilities, None).await?;
            let response = upstream.stream(&session).await?;
            if response.status() != StatusCode::NOT_FOUND {
                return Ok(response);
            }
            let session = upstream.session(self.client.owner(), capabilities, Some(&session)).await?;
            upstream.stream(&session).await
        };
        let theirs = match opened.await {
            Ok(response) if is_type(response.headers(), EVENTS) => response.into_body(),
            Ok(_) => return full(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "the server offers no stream"),
            Err(failure) => return full(StatusCode::BAD_GATEWAY, "text/plain", failure.to_string()),
        };
        let (sender, response) = events();
        let ending = self.client.ending.clone();
        tokio::spawn(async move {
            let mut messages = Events::new(theirs);
            loop {
                let part = tokio::select! {
                    message = messages.next() => match message {
                        Ok(Some(message)) => sse::event(&message),
                        Ok(None) | Err(_) => return,
                    },
                    () = sender.closed() => return,
                    () = ending.begun() => return,
                    () = tokio::time::sleep(COMMENT_EVERY) => Bytes::from_static(sse::COMMENT),
                };
                if sender.send(part).await.is_err() {
                    return;
                }
            }
        });
        response
    }

    /// `subscriptions/listen`: acknowledged, then each notification under the request's id. A modern server on its own
    /// endpoint is asked itself.
    pub(super) async fn listen(self, message: &Bytes, envelope: &Envelope<'_>, params: &Params<'_>) -> Response<Body> {
        if let Scope::Server(upstream) = &self.scope
            && upstream.known_era() == Some(Era::Modern)
            && !upstream.is_asleep()
        {
            return self.pass(message, envelope, params).await;
        }
        let id = envelope.id.map_or("null", |id| id.get()).to_owned();
        let wanted = envelope.params.and_then(|raw| RawObject::parse(raw.get()));
        let wanted =
            wanted.as_ref().and_then(|params| RawObject::parse(params.get("notifications")?)).unwrap_or_default();
        let mut granted = RawObject::default();
        let mut lists = Vec::new();
        for (member, notification) in FILTERS {
            if wanted.get(member) == Some("true") {
                granted.set(member, "true");
                lists.push(notification);
            }
        }
        let uris = wanted.get("resourceSubscriptions").and_then(|raw| serde_json::from_str::<Vec<String>>(raw).ok());
        // Before anything is asked for, so that nothing is missed.
        let source = Source::of(&self);
        let topics = match uris {
            None => Vec::new(),
            Some(uris) => {
                let topics = self.topics(&uris, params).await;
                let taken: Vec<&str> = topics.iter().map(|topic| topic.shown.as_str()).collect();
                granted.set("resourceSubscriptions", serde_json::json!(taken).to_string());
                topics
            }
        };
        let meta = format!(r#"{{"io.modelcontextprotocol/subscriptionId":{id}}}"#);
        let (sender, response) = events();
        let params = format!(r#"{{"notifications":{granted},"_meta":{meta}}}"#);
        let acknowledged = write_request(None, ACKNOWLEDGED, Some(&params));
        let ending = self.client.ending.clone();
        tokio::spawn(async move {
            if sender.send(sse::event(&acknowledged)).await.is_err() {
                return;
            }
            let tagged = move |heard: &Heard| match heard {
                Heard::Common(message) => {
                    let method = Envelope::parse(message).ok()?.method().into_owned();
                    let params = format!(r#"{{"_meta":{meta}}}"#);
                    lists.contains(&method.as_str()).then(|| write_request(None, &method, Some(&params)).into())
                }
                Heard::Told(told) => {
                    let topic = topics.iter().find(|topic| topic.concerns(told))?;
                    let params = format!(r#"{{"uri":{},"_meta":{meta}}}"#, quoted(&topic.shown));
                    Some(write_request(None, RESOURCE_UPDATED, Some(&params)).into())
                }
            };
            forward(source, sender, ending, tagged).await;
        });
        response
    }

    /// Subscriptions to those of these resources that there are and whose servers tell of changes.
    async fn topics(&self, uris: &[String], params: &Params<'_>) -> Vec<Subscribed> {
        let subscribing = uris.iter().take(TOPICS_MAX).map(|shown| async move {
            let (upstream, uri) = self.locate(shown).await?;
            let seat = Seat::of(&self.client, &upstream, params);
            let topic = upstream.subscribe(&self.inner, &seat, &uri).await.ok()?;
            let server = upstream.config.name.clone();
            Some(Subscribed { shown: shown.clone(), server, uri, owner: seat.owner, _topic: topic })
        });
        futures::future::join_all(subscribing).await.into_iter().flatten().collect()
    }

    /// Whose a resource is, and what its server calls it.
    pub(super) async fn locate(&self, shown: &str) -> Option<(Arc<Upstream>, String)> {
        match &self.scope {
            Scope::Server(upstream) => Some((upstream.clone(), shown.to_owned())),
            Scope::Aggregate => {
                let route = self.served.route_uri(shown).await?;
                match route.aim {
                    Aim::Uri(uri) => Some((route.upstream, uri)),
                    Aim::Name(_) | Aim::Reference(_) => None,
                }
            }
        }
    }

    /// What a legacy client is shown of something that a server said; `None` if it does not concern it.
    fn shown(&self, told: &Told) -> Option<Bytes> {
        let ours = match &self.scope {
            Scope::Aggregate => true,
            Scope::Server(upstream) => *upstream.config.name == *told.server,
        };
        if !ours || told.owner != Owner::Shared && told.owner != self.client.owner() {
            return None;
        }
        let session = self.client.session.as_ref().map(|session| session.nonce);
        let concerns = match &told.news {
            News::Updated(uri) => {
                session.is_some_and(|session| self.inner.interests.is_subscribed(session, &told.server, uri))
            }
            News::Log(level) => {
                let from = session.and_then(|session| self.inner.interests.level(session));
                from.is_none_or(|from| *level >= from)
            }
        };
        if !concerns {
            return None;
        }
        match self.scope {
            Scope::Server(_) => Some(told.message.clone()),
            Scope::Aggregate => told.on_aggregate(),
        }
    }
}

/// A resource that a modern client wants to hear of.
struct Subscribed {
    /// Its URI as the client knows it.
    shown: String,
    server: String,
    uri: String,
    owner: Owner,
    /// Held, and given up with the stream.
    _topic: Topic,
}

impl Subscribed {
    fn concerns(&self, told: &Told) -> bool {
        let heard = told.owner == Owner::Shared || told.owner == self.owner;
        heard && *told.server == *self.server && matches!(&told.news, News::Updated(uri) if *uri == self.uri)
    }
}

/// Until the client is gone, or the listener ends.
async fn forward(
    mut source: Source,
    sender: mpsc::Sender<Bytes>,
    ending: Arc<Ending>,
    show: impl Fn(&Heard) -> Option<Bytes>,
) {
    // At once, so that the client sees that the stream is open.
    let mut part = Some(Bytes::from_static(sse::COMMENT));
    loop {
        if let Some(part) = part.take()
            && sender.send(part).await.is_err()
        {
            return;
        }
        tokio::select! {
            message = source.next() => match message {
                Some(heard) => part = show(&heard).map(|message| sse::event(&message)),
                None => return,
            },
            () = sender.closed() => return,
            () = ending.begun() => return,
            () = tokio::time::sleep(COMMENT_EVERY) => part = Some(Bytes::from_static(sse::COMMENT)),
        }
    }
}
