//! Proxies towards servers elsewhere, as the environment names them: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`,
//! in either case, read as curl reads them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Which proxy leads where. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Proxies(Arc<Matcher>);

impl Proxies {
    pub(crate) fn of_environment() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    /// The proxy for a URL; none for this machine itself, whatever the environment says: a bridge is behind no proxy.
    pub(crate) fn of(&self, uri: &Uri) -> Option<Intercept> {
        if uri.host().is_some_and(is_loopback) {
            return None;
        }
        self.0.intercept(uri)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Connects to a host, through a tunnel where a proxy leads to it (RFC 9110, CONNECT).
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub(crate) tcp: HttpConnector,
    pub(crate) proxies: Proxies,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.tcp.poll_ready(cx).map_err(Error::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.of(&uri) else {
            let connecting = self.tcp.call(uri);
            return Box::pin(async move { Ok(connecting.await?) });
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let tunneling = tunnel.call(uri);
        let name = proxy.uri().authority().map(ToString::to_string).unwrap_or_default();
        Box::pin(async move { tunneling.await.map_err(|error| format!("through the proxy {name}: {error}").into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_behind_no_proxy() {
        let all = Proxies(Arc::new(Matcher::builder().all("http://proxy.test:3128").no("inside.test").build()));
        let proxied = |url: &str| all.of(&url.parse().unwrap()).is_some();
        for url in
            ["http://127.0.0.1:1/mcp", "http://[::1]:1/mcp", "https://LocalHost/mcp", "https://a.inside.test/mcp"]
        {
            assert!(!proxied(url), "{url}");
        }
        for url in ["http://elsewhere.test/mcp", "https://elsewhere.test/mcp", "http://10.0.0.1/mcp"] {
            assert!(proxied(url), "{url}");
        }
    }
}
