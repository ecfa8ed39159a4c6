//! An MCP client that reaches a gateway through the API server, as `kubectl port-forward` does.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use kube::api::Portforwarder;
use rmcp::model::{CallToolRequestParams, CallToolResult, ClientConfig};
use rmcp::service::RunningService;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, ServiceExt};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig as TlsConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::Place;

/// A session; the way to the gateway ends with it.
#[derive(Debug)]
pub struct Session {
    service: RunningService<RoleClient, ClientConfig>,
    _way: Way,
}

#[derive(Debug)]
struct Way(JoinHandle<()>);

impl Drop for Way {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    pub(crate) async fn open(place: &Place, hub: &str, server: Option<&str>, tls: Option<Trust>) -> Self {
        let secret: Secret = place.api::<Secret>().get(&format!("mcp-hub-{hub}-token")).await.unwrap();
        let token = String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap();
        let (port, way) = forward(place, hub, tls).await;
        let path = server.map_or_else(|| "/mcp".to_owned(), |server| format!("/servers/{server}/mcp"));
        let config =
            StreamableHttpClientTransportConfig::with_uri(format!("http://127.0.0.1:{port}{path}")).auth_header(token);
        let service = ClientConfig::default().serve(StreamableHttpClientTransport::from_config(config)).await.unwrap();
        Self { service, _way: way }
    }

    /// Names of the tools, in the hub's order.
    pub async fn tools(&self) -> Vec<String> {
        self.service.list_all_tools().await.unwrap().into_iter().map(|tool| tool.name.to_string()).collect()
    }

    /// The tools as soon as all of these are listed: a gateway lists what it has learned of its servers by then.
    pub async fn until_listed(&self, wanted: &[&str]) -> Vec<String> {
        crate::eventually("the tools to be listed", async || {
            let tools = self.tools().await;
            match wanted.iter().find(|tool| !tools.iter().any(|listed| listed == *tool)) {
                None => Ok(tools),
                Some(missing) => Err(format!("{missing} is not in {tools:?}")),
            }
        })
        .await
    }

    /// Calls a tool; the text of its answer, an error as the protocol gives it.
    pub async fn call(&self, tool: &str, arguments: Value) -> Result<String, String> {
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params.arguments = arguments.as_object().cloned();
        let result = self.service.call_tool(params).await.map_err(|error| error.to_string())?;
        let text = text(&result);
        if result.is_error == Some(true) { Err(text) } else { Ok(text) }
    }
}

fn text(result: &CallToolResult) -> String {
    let json = serde_json::to_value(&result.content).unwrap();
    json.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect()
}

/// By which certificate and under which name a gateway is known.
#[derive(Debug, Clone)]
pub struct Trust {
    config: Arc<TlsConfig>,
    name: ServerName<'static>,
}

impl Trust {
    pub fn new(root: CertificateDer<'static>, name: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let config = TlsConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Self { config: Arc::new(config.with_no_client_auth()), name }
    }

    async fn shake(&self, stream: impl Stream) -> std::io::Result<Box<dyn Stream>> {
        let connector = TlsConnector::from(self.config.clone());
        Ok(Box::new(connector.connect(self.name.clone(), stream).await?))
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// Shakes hands with a gateway of a hub; the refusal if it does not show what is trusted.
pub(crate) async fn shake(place: &Place, hub: &str, trust: &Trust) -> Result<(), String> {
    let (stream, _open) = reach(place, hub).await.ok_or("no gateway is ready")?;
    trust.shake(stream).await.map(drop).map_err(|error| error.to_string())
}

/// A connection to any ready pod of a hub's gateway, and what keeps it open.
async fn reach(place: &Place, hub: &str) -> Option<(impl Stream, Portforwarder)> {
    let pods = place.pods_of(hub).await;
    let pod = pods.iter().find(|pod| is_ready(pod))?;
    let mut forwarded = place.api::<Pod>().portforward(&pod.name_any(), &[8080]).await.ok()?;
    Some((forwarded.take_stream(8080)?, forwarded))
}

/// A port of this machine that leads to any ready pod of a hub's gateway, another one when that is gone.
async fn forward(place: &Place, hub: &str, tls: Option<Trust>) -> (u16, Way) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (place, hub) = (place.clone(), hub.to_owned());
    let way = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (place, hub, tls) = (place.clone(), hub.clone(), tls.clone());
            tokio::spawn(async move {
                let Some((far, _open)) = reach(&place, &hub).await else { return };
                let mut far: Box<dyn Stream> = match tls {
                    None => Box::new(far),
                    // Whoever is not who it should be gets nothing.
                    Some(trust) => match trust.shake(far).await {
                        Ok(far) => far,
                        Err(_) => return,
                    },
                };
                // Either end may close.
                tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
            });
        }
    });
    (port, Way(way))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
