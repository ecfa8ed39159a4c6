//! Long streams of notifications: GET of the legacy era, `subscriptions/listen` of the modern one.

use bytes::Bytes;
use http::{Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Params, write_request};
use mcp_hub_mcp::methods::{PROMPTS_CHANGED, RESOURCES_CHANGED, TOOLS_CHANGED};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::sse;
use tokio::sync::{broadcast, mpsc};

use super::{Ask, Scope};
use crate::body::{Body, EVENTS, events, full};
use crate::exchange::COMMENT_EVERY;
use crate::upstream::{Events, is_type};

/// The member of a subscription that asks for a notification.
const FILTERS: [(&str, &str); 3] = [
    ("toolsListChanged", TOOLS_CHANGED),
    ("promptsListChanged", PROMPTS_CHANGED),
    ("resourcesListChanged", RESOURCES_CHANGED),
];

/// Where notifications come from.
enum Source {
    Merged(broadcast::Receiver<&'static str>),
    Server(broadcast::Receiver<Bytes>),
}

impl Source {
    fn of(ask: &Ask) -> Self {
        match &ask.scope {
            Scope::Aggregate => Self::Merged(ask.inner.outdated.subscribe()),
            Scope::Server(upstream) => Self::Server(upstream.notifications.subscribe()),
        }
    }

    /// The next notification; `None` at the end. Whoever is slow misses some, which only say that something changed.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let received = match self {
                Self::Merged(receiver) => {
                    receiver.recv().await.map(|method| Bytes::from(write_request(None, method, None)))
                }
                Self::Server(receiver) => receiver.recv().await,
            };
            match received {
                Ok(message) => return Some(message),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Ask {
    /// GET: what a legacy client is told without having asked.
    pub(super) async fn stream(self) -> Response<Body> {
        if !self.client.takes_events {
            return full(StatusCode::NOT_ACCEPTABLE, "text/plain", "a stream is text/event-stream");
        }
        if let Scope::Server(upstream) = &self.scope
            && !upstream.is_shared()
            && upstream.known_era() == Some(Era::Legacy)
        {
            return self.own_stream(upstream.clone()).await;
        }
        let (sender, response) = events();
        tokio::spawn(forward(Source::of(&self), sender, |message| Some(message.clone())));
        response
    }

    /// The stream of the client's own session with a server.
    async fn own_stream(&self, upstream: std::sync::Arc<crate::upstream::Upstream>) -> Response<Body> {
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
        tokio::spawn(async move {
            let mut messages = Events::new(theirs);
            loop {
                let part = tokio::select! {
                    message = messages.next() => match message {
                        Ok(Some(message)) => sse::event(&message),
                        Ok(None) | Err(_) => return,
                    },
                    () = sender.closed() => return,
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
        {
            return self.pass(message, envelope, params).await;
        }
        let id = envelope.id.map_or("null", |id| id.get()).to_owned();
        let wanted = envelope.params.and_then(|raw| RawObject::parse(raw.get()));
        let wanted =
            wanted.as_ref().and_then(|params| RawObject::parse(params.get("notifications")?)).unwrap_or_default();
        let mut granted = RawObject::default();
        let mut told = Vec::new();
        for (member, notification) in FILTERS {
            if wanted.get(member) == Some("true") {
                granted.set(member, "true");
                told.push(notification);
            }
        }
        let source = Source::of(&self);
        let meta = format!(r#"{{"io.modelcontextprotocol/subscriptionId":{id}}}"#);
        let (sender, response) = events();
        let params = format!(r#"{{"notifications":{granted},"_meta":{meta}}}"#);
        let acknowledged = write_request(None, "notifications/subscriptions/acknowledged", Some(&params));
        tokio::spawn(async move {
            if sender.send(sse::event(&acknowledged)).await.is_err() {
                return;
            }
            let tagged = move |message: &Bytes| {
                let method = Envelope::parse(message).ok()?.method().into_owned();
                let params = format!(r#"{{"_meta":{meta}}}"#);
                told.contains(&method.as_str()).then(|| write_request(None, &method, Some(&params)).into())
            };
            forward(source, sender, tagged).await;
        });
        response
    }
}

/// Until the client is gone.
async fn forward(mut source: Source, sender: mpsc::Sender<Bytes>, show: impl Fn(&Bytes) -> Option<Bytes>) {
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
                Some(message) => part = show(&message).map(|message| sse::event(&message)),
                None => return,
            },
            () = sender.closed() => return,
            () = tokio::time::sleep(COMMENT_EVERY) => part = Some(Bytes::from_static(sse::COMMENT)),
        }
    }
}
