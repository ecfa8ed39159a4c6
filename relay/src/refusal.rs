//! Why a request goes no further. The text is read by whoever looks at the failed program, so it says what to do.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use http::StatusCode;

/// A request that is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("this is a proxy: ask it with CONNECT, or for an http URL")]
    NoProxyRequest,
    #[error("a proxy takes http URLs only: use CONNECT for everything else")]
    OtherScheme,
    #[error("the request names no port, or none that there is")]
    NoPort,
    #[error("the request names no host: give a whole name, or an address in its usual notation")]
    NoHost,
    #[error(
        "no valid credentials: use HTTP_PROXY or HTTPS_PROXY as the pod has it, with user and password; a pod that has it \
         from another installation, or from before its key changed, has to start anew"
    )]
    NoPermit,
    #[error(
        "{server} may not connect to {destination}: it is not in spec.permissions.network.egress of that MCPServer; add \
         it there if the server needs it"
    )]
    NotListed { server: String, destination: String },
    #[error(
        "{server} may not connect to {destination}: the name leads to {address}, which is no address of the internet; \
         add {address}:{port} to spec.permissions.network.egress as well if that is meant", port = .destination.rsplit(':').next().unwrap_or_default()
    )]
    Local { server: String, destination: String, address: IpAddr },
    #[error(
        "{destination} is {address}, the relay's own machine, its link, or no place at all: nobody connects to it from here"
    )]
    Never { destination: String, address: IpAddr },
    #[error("{server} has {most} connections already: close some, or try again later")]
    TooMany { server: String, most: usize },
    #[error("{most} names of {server} are being looked up already: check its DNS, or try again later")]
    TooManyLookups { server: String, most: usize },
    #[error("the relay has all the connections that it takes: try again later, or give it more replicas")]
    Full,
    #[error(
        "{destination} has no address: check the name, and the relay's DNS; names are looked up whole, without search domains"
    )]
    NotFound {
        destination: String,
        #[source]
        source: io::Error,
    },
    #[error("{destination} could not be looked up within {} s: check the relay's DNS", .within.as_secs())]
    SlowLookup { destination: String, within: Duration },
    #[error("could not connect to {destination} at {address}: {source}")]
    NotReached { destination: String, address: IpAddr, source: io::Error },
    #[error("{destination} at {address} did not answer within {} s", .within.as_secs())]
    SlowConnect { destination: String, address: IpAddr, within: Duration },
    #[error("{destination} ended the connection before it answered, or answered what is no HTTP")]
    BrokenAnswer { destination: String },
    #[error("{destination} sent nothing for {} s", .within.as_secs())]
    SlowAnswer { destination: String, within: Duration },
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoProxyRequest | Self::OtherScheme | Self::NoPort | Self::NoHost => StatusCode::BAD_REQUEST,
            Self::NoPermit => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            Self::NotListed { .. } | Self::Local { .. } | Self::Never { .. } => StatusCode::FORBIDDEN,
            Self::TooMany { .. } | Self::TooManyLookups { .. } | Self::Full => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotFound { .. } | Self::NotReached { .. } | Self::BrokenAnswer { .. } => StatusCode::BAD_GATEWAY,
            Self::SlowLookup { .. } | Self::SlowConnect { .. } | Self::SlowAnswer { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// A word for logs, without names.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoProxyRequest => "NoProxyRequest",
            Self::OtherScheme => "OtherScheme",
            Self::NoPort => "NoPort",
            Self::NoHost => "NoHost",
            Self::NoPermit => "NoPermit",
            Self::NotListed { .. } => "NotListed",
            Self::Local { .. } => "LocalAddress",
            Self::Never { .. } => "ForbiddenAddress",
            Self::TooMany { .. } => "TooManyConnections",
            Self::TooManyLookups { .. } => "TooManyLookups",
            Self::Full => "Full",
            Self::NotFound { .. } => "NotFound",
            Self::SlowLookup { .. } => "LookupTimeout",
            Self::NotReached { .. } => "NotReached",
            Self::SlowConnect { .. } => "ConnectTimeout",
            Self::BrokenAnswer { .. } => "BrokenAnswer",
            Self::SlowAnswer { .. } => "AnswerTimeout",
        }
    }
}
