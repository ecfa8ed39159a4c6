//! How clients reach a hub's endpoint from outside of a cluster.

use mcp_hub_crds::hub::{Gateway, HttpRoute, Ingress};

/// What is made for the endpoint so that clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    Ingress(Ingress),
    HttpRoute(HttpRoute),
}

impl Exposure {
    /// What the spec asks for. The schema holds it to one of them.
    pub fn of(gateway: &Gateway) -> Option<Self> {
        let ingress = gateway.ingress.clone().map(Self::Ingress);
        ingress.or_else(|| gateway.http_route.clone().map(Self::HttpRoute))
    }

    /// Path of the field that asks for it.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Ingress(_) => "spec.gateway.ingress",
            Self::HttpRoute(_) => "spec.gateway.httpRoute",
        }
    }

    /// Name under which clients reach the endpoint.
    pub fn host(&self) -> &str {
        match self {
            Self::Ingress(ingress) => &ingress.host,
            Self::HttpRoute(route) => &route.host,
        }
    }
}

/// The public endpoint as an origin, such as `https://hub.example.com`. Whether a route's listener has TLS only its Gateway
/// says, which is not ours to read; tokens pass through it, so that it should.
pub fn origin(gateway: &Gateway) -> Option<String> {
    let exposure = Exposure::of(gateway)?;
    let plain = match &exposure {
        Exposure::Ingress(ingress) => gateway.tls.is_none() && ingress.tls_secret_ref.is_none(),
        Exposure::HttpRoute(_) => false,
    };
    Some(format!("{}://{}", if plain { "http" } else { "https" }, exposure.host()))
}
