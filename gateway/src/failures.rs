//! What a client is told when a server gave no answer.

use bytes::Bytes;
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{write_error_with, write_result};
use mcp_hub_mcp::object::RawObject;
use mcp_hub_mcp::{error, methods};
use serde_json::json;

use crate::exchange::Exchange;
use crate::metrics::count;
use crate::translate;
use crate::upstream::Failure;

impl Exchange {
    /// The message that tells the client of a failure.
    pub(crate) fn failure(&self, failure: &Failure) -> Bytes {
        let unseen = matches!(
            failure,
            Failure::Unavailable { .. } | Failure::Asleep | Failure::Unreachable(_) | Failure::AuthRequired(_)
        );
        if unseen {
            count(&self.inner.metrics.calls_unavailable);
        }
        if let Some(remembered) = self.remembered() {
            return remembered;
        }
        let name = &self.upstream.config.name;
        let text = format!("server `{name}`: {failure}");
        let code = match failure {
            Failure::Unavailable { .. } | Failure::Asleep | Failure::Unreachable(_) | Failure::AuthRequired(_) => {
                if self.method == methods::TOOLS_CALL {
                    return self.tool_error(failure, &text);
                }
                error::SERVER_UNAVAILABLE
            }
            Failure::Gone(_) | Failure::Cancelled => error::SERVER_GONE,
            Failure::Unreadable(_) => error::ANSWER_UNREADABLE,
            Failure::Timeout(_) => error::CALL_TIMEOUT,
            Failure::Refused { code, .. } => *code,
        };
        let data = match failure {
            Failure::Unavailable { reason, hint, .. } => Some(json!({"reason": reason, "hint": hint}).to_string()),
            _ => None,
        };
        write_error_with(Some(&self.id), code, &text, data.as_deref()).into()
    }

    /// A result in which the model reads why the tool could not be called.
    pub(crate) fn tool_error(&self, failure: &Failure, text: &str) -> Bytes {
        let text = match failure {
            Failure::Unavailable { reason, hint: Some(hint), .. } => {
                format!("{text} ({reason})\nhint: {hint}\nThe tool was not called.")
            }
            Failure::Unavailable { reason, hint: None, .. } => format!("{text} ({reason})\nThe tool was not called."),
            _ => format!("{text}\nThe tool was not called."),
        };
        let content = json!({"content": [{"type": "text", "text": text}], "isError": true}).to_string();
        let mut result = RawObject::parse(&content).unwrap_or_default();
        if self.client.era == Era::Modern {
            translate::complete(&self.method, &mut result);
        }
        write_result(&self.id, &result.to_string()).into()
    }

    /// The list as it was when the server was last there, on its own endpoint.
    fn remembered(&self) -> Option<Bytes> {
        let place = methods::LISTS.iter().position(|(list, _)| *list == self.method)?;
        let key = methods::LISTS[place].1;
        if !self.upstream.is_listed() {
            return None;
        }
        let catalog = self.upstream.catalog();
        let items: Vec<&str> = catalog.lists[place].as_ref()?.iter().map(|item| item.raw.as_str()).collect();
        let mut result = RawObject::default();
        result.set(key, format!("[{}]", items.join(",")));
        if self.client.era == Era::Modern {
            translate::complete(&self.method, &mut result);
        }
        let era = self.upstream.known_era().unwrap_or(self.client.era);
        let result = self.picked(era, &result.to_string());
        Some(write_result(&self.id, &result).into())
    }
}
