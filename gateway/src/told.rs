//! What servers say outside of any call, on its way to the streams of those whom it concerns.

use std::sync::Arc;

use bytes::Bytes;
use mcp_hub_mcp::envelope::{Envelope, Params, quoted, string, write_request};
use mcp_hub_mcp::methods;
use mcp_hub_mcp::object::RawObject;

use crate::translate;
use crate::upstream::Owner;
use crate::uris;

/// Messages that a slow stream may lag behind; whoever is slower misses some.
pub(crate) const BACKLOG: usize = 256;

/// One notification.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) server: Arc<str>,
    /// Whose session it came in.
    pub(crate) owner: Owner,
    pub(crate) news: News,
    pub(crate) message: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// A resource changed: its URI as the server knows it.
    Updated(String),
    /// A log message, with its level.
    Log(usize),
}

impl News {
    /// `None` for messages that say something else.
    pub(crate) fn of(envelope: &Envelope<'_>) -> Option<Self> {
        match &*envelope.method() {
            methods::RESOURCE_UPDATED => {
                let uri = Params::of(envelope.params).uri.and_then(string)?;
                Some(Self::Updated(uri.into_owned()))
            }
            methods::MESSAGE => Some(Self::Log(translate::level_of(envelope.params.map(|raw| raw.get())))),
            _ => None,
        }
    }
}

impl Told {
    /// As clients of the aggregate are told: whose resource it is, and who logs.
    pub(crate) fn on_aggregate(&self) -> Option<Bytes> {
        let envelope = Envelope::parse(&self.message).ok()?;
        let mut params = RawObject::parse(envelope.params?.get())?;
        match &self.news {
            News::Updated(uri) => params.set("uri", quoted(&uris::outward(&self.server, uri))),
            News::Log(_) => {
                let logger = params.get("logger").and_then(|raw| serde_json::from_str::<String>(raw).ok());
                let logger = logger.map_or_else(|| self.server.to_string(), |own| format!("{}/{own}", self.server));
                params.set("logger", quoted(&logger));
            }
        }
        Some(write_request(None, &envelope.method(), Some(&params.to_string())).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(message: &str) -> Option<Told> {
        let news = News::of(&Envelope::parse(message.as_bytes()).unwrap())?;
        Some(Told { server: "one".into(), owner: Owner::Shared, news, message: message.to_owned().into() })
    }

    #[test]
    fn the_aggregate_says_whose_a_resource_is_and_who_logs() {
        for (message, shown) in [
            (
                r#"{"method":"notifications/resources/updated","params":{"x":1.0,"uri":"a:b"}}"#,
                r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"x":1.0,"uri":"one+a:b"}}"#,
            ),
            (
                r#"{"method":"notifications/message","params":{"level":"info","logger":"db"}}"#,
                r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","logger":"one/db"}}"#,
            ),
            (
                r#"{"method":"notifications/message","params":{"level":"info"}}"#,
                r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","logger":"one"}}"#,
            ),
        ] {
            assert_eq!(told(message).unwrap().on_aggregate().unwrap(), shown);
        }
        assert!(told(r#"{"method":"notifications/other"}"#).is_none());
        assert!(told(r#"{"method":"notifications/resources/updated","params":{}}"#).is_none());
        assert_eq!(told(r#"{"method":"notifications/message","params":{"level":"?"}}"#).unwrap().news, News::Log(7));
    }
}
