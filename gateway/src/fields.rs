//! MCP's own HTTP header fields, their names parsed once for all requests.

use http::{HeaderName, HeaderValue};
use mcp_hub_mcp::headers;

pub(crate) static SESSION_ID: HeaderName = HeaderName::from_static(headers::SESSION_ID);
pub(crate) static PROTOCOL_VERSION: HeaderName = HeaderName::from_static(headers::PROTOCOL_VERSION);
pub(crate) static METHOD: HeaderName = HeaderName::from_static(headers::METHOD);
pub(crate) static NAME: HeaderName = HeaderName::from_static(headers::NAME);

/// Fields that a request has beside those of every request; each name once.
pub(crate) type Fields = Vec<(HeaderName, HeaderValue)>;
